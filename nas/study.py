"""Optuna, and nothing but: storage, samplers, constraints. The only module that knows it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from nas import records
from nas.errors import CandidateError
from nas.leaderboard import HIGHER_IS_BETTER
from nas.space import Architecture, SearchSpace

GENERATION = 16
"""Population of nsga2: Optuna's 50 would make a short search a random one."""

ARCHITECTURE = "architecture"
CAUSE = "cause"

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Asked:
    """A proposal: the trial's number and the architecture."""

    number: int
    architecture: Architecture


class Study:
    """Ask and tell over a durable study.

    The sampler is made anew before each ask from (seed, number of trials): a seeded sampler that lives on would
    propose the same points again after a resume.
    """

    def __init__(self, url: str, name: str, objectives: Sequence[str], sampler: str, seed: int) -> None:
        storage = optuna.storages.RDBStorage(url)
        records.tune(storage.engine)
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize" if one in HIGHER_IS_BETTER else "minimize" for one in objectives],
            load_if_exists=True,
        )
        self._sampler = sampler
        self._seed = seed
        self._asked: dict[int, optuna.Trial] = {}

    def __len__(self) -> int:
        """Trials of any state."""
        return len(self._study.get_trials(deepcopy=False))

    def enqueue(self, values: Mapping[str, Any]) -> None:
        """Propose this point before any other, once."""
        self._study.enqueue_trial(dict(values), skip_if_exists=True)

    def ask(self, space: SearchSpace, explore: bool = False) -> Asked:
        """The next proposal; `explore` draws it at random instead of by the sampler.

        Raises CandidateError, the trial told as failed, where the space makes no architecture of these values.
        """
        name = "random" if explore else self._sampler
        self._study.sampler = make_sampler(name, _seed_of(self._seed, len(self)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self._study.ask()
            self._asked[trial.number] = trial
            try:
                architecture = space.suggest(trial)
            except Exception as error:  # a third-party space may raise anything, and its other points may be sound
                cause = f"suggest failed: {type(error).__name__}: {' '.join(str(error).split())}"
                self.tell_failed(trial.number, cause)
                raise CandidateError(cause) from error
        trial.set_user_attr(ARCHITECTURE, architecture.to_json())
        return Asked(trial.number, architecture)

    def tell(self, number: int, values: Sequence[float]) -> None:
        """The objectives' values of a measured candidate."""
        self._study.tell(number, list(values))

    def tell_failed(self, number: int, cause: str) -> None:
        """A fault, from which the sampler learns nothing."""
        self._note(number, cause)
        self._study.tell(number, state=TrialState.FAIL)

    def tell_infeasible(self, number: int, cause: str) -> None:
        """Over a limit. With its constraints set (see `constrain`) the sampler learns to stay below."""
        self._note(number, cause)
        self._study.tell(number, state=TrialState.PRUNED)

    def constrain(self, number: int, excess: Mapping[str, float]) -> None:
        """By how much each limit is exceeded; feasible at 0 or less. Also to be said of feasible trials.

        Said before a trial is told, once: what an interrupted driver has said already stays.
        """
        trial = self._trial(number)
        said = trial.constraints
        for name, value in excess.items():
            if name not in said:
                trial.set_constraint(name, value)

    def running(self, space: SearchSpace) -> list[Asked]:
        """Proposals of an earlier driver that were never told, to be measured now.

        A trial that was interrupted before its architecture was chosen is told as failed; if it was enqueued, it is
        enqueued again.
        """
        found = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            text = trial.user_attrs.get(ARCHITECTURE)
            if text is None:
                if given := trial.system_attrs.get("fixed_params"):
                    self._study.enqueue_trial(given)
                self.tell_failed(trial.number, "interrupted before an architecture was chosen")
            else:
                found.append(Asked(trial.number, space.architecture_type.from_json(text)))
        return found

    def _note(self, number: int, cause: str) -> None:
        self._trial(number).set_user_attr(CAUSE, cause)

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._asked:
            frozen = next(t for t in self._study.get_trials(deepcopy=False) if t.number == number)
            self._asked[number] = optuna.Trial(self._study, frozen._trial_id)
        return self._asked[number]


def proposals(url: str, name: str) -> list[tuple[int, str]]:
    """Number and architecture JSON of every trial of a study that exists."""
    study = optuna.load_study(storage=url, study_name=name)
    found = [(trial.number, trial.user_attrs.get(ARCHITECTURE)) for trial in study.get_trials(deepcopy=False)]
    return [(number, text) for number, text in found if text is not None]


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """A sampler by name: tpe, random, gp or nsga2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=GENERATION, seed=seed)
        return optuna.samplers.TPESampler(seed=seed)


def _seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
