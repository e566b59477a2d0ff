"""Optuna, and nothing but: samplers, trials and their durable table, constraints. The only module that knows it.

Samplers work on a study in memory. Each trial is written down as one row of a table beside the measurements, when it is
kept and when it is told (a proposal that is forgotten never is): Optuna's own database storage takes a transaction a
parameter, and reads all trials that run again at each proposal, which many workers turn into seconds. `load` gives the
study to look at with Optuna's tools.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import optuna
import sqlalchemy as sql
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from nas.errors import CandidateError
from nas.metrics import named
from nas.space import Architecture, SearchSpace

GENERATION = 16
"""Population of nsga2: Optuna's 50 would make a short search a random one."""

ARCHITECTURE = "architecture"
CAUSE = "cause"

KEPT_BY_SAMPLERS = ("_search_space", "_intersection_search_space")
"""Where Optuna's samplers (tpe and nsga2; gp) keep the names and ranges that all trials have in common."""

WHOLE = -1
"""The row, in place of a trial's number, of what is noted of the whole study (by nsga2: its parents)."""

ASKED = "nas:asked"
"""Noted of the whole study: how many proposals there were. Those that were forgotten have no rows."""

_metadata = sql.MetaData()
_trials = sql.Table(
    "nas_trials",
    _metadata,
    sql.Column("study", sql.String(128), primary_key=True),
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("trial", sql.Text, nullable=False),
)

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Asked:
    """A proposal: the trial's number, the architecture, and the values it was made of.

    `given`: a person asked for it, not the sampler.
    """

    number: int
    architecture: Architecture
    values: Mapping[str, Any]
    given: bool


class Study:
    """Ask and tell over a durable study.

    The sampler is made anew before each ask from (seed, number of trials): a seeded sampler that lives on would
    propose the same points again after a resume.
    """

    def __init__(self, engine: sql.Engine, name: str, objectives: Sequence[str], sampler: str, seed: int) -> None:
        self._engine = engine
        self._name = name
        self._objectives = tuple(objectives)
        self._study = load(engine, name, objectives)
        self._noted = dict(_noted(self._study))
        self._sampler = sampler
        self._seed = seed
        self._asked: dict[int, optuna.Trial] = {}
        self._proposals = len(self)
        self._known_space: Any = None

    def __len__(self) -> int:
        """Trials of any state."""
        return len(self._study.get_trials(deepcopy=False))

    def enqueue(self, values: Mapping[str, Any]) -> None:
        """Propose this point before any other, once; to be said again by a driver that goes on."""
        self._study.enqueue_trial(dict(values), skip_if_exists=True)

    def ask(self, space: SearchSpace, explore: bool = False) -> Asked:
        """The next proposal; `explore` draws it at random instead of by the sampler.

        It is not durable before it is kept or told.
        Raises CandidateError, the trial told as failed, where the space makes no architecture of these values.
        """
        name = "random" if explore else self._sampler
        self._study.sampler = self._with_known_space(make_sampler(name, _seed_of(self._seed, len(self))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self._study.ask()
            self._asked[trial.number] = trial
            self._proposals = trial.number + 1
            try:
                architecture = space.suggest(trial)
            except Exception as error:  # a third-party space may raise anything, and its other points may be sound
                cause = f"suggest failed: {type(error).__name__}: {' '.join(str(error).split())}"
                self.tell_failed(trial.number, cause)
                raise CandidateError(cause) from error
        trial.set_user_attr(ARCHITECTURE, architecture.to_json())
        given = "fixed_params" in self._study.get_trials(deepcopy=False)[trial.number].system_attrs
        return Asked(trial.number, architecture, trial.params, given)

    def keep(self, number: int) -> None:
        """Make a proposal durable, as it is going to be measured, and how many there were by now."""
        if number < self._proposals - 1:  # else the row itself tells
            self._study._storage.set_study_system_attr(self._study._study_id, ASKED, self._proposals)
        self._write(number)

    def forget(self, number: int) -> None:
        """Drop a proposal that will not be measured: nothing is learned from it."""
        self._study.tell(number, None, TrialState.FAIL)
        self._asked.pop(number, None)

    def values(self) -> Mapping[int, Mapping[str, Any]]:
        """What each trial chose, by name."""
        return {trial.number: trial.params for trial in self._study.get_trials(deepcopy=False)}

    def tell(self, number: int, values: Sequence[float]) -> None:
        """The objectives' values of a measured candidate."""
        self._finish(number, TrialState.COMPLETE, values)

    def tell_failed(self, number: int, cause: str) -> None:
        """A fault, from which the sampler learns nothing."""
        self._trial(number).set_user_attr(CAUSE, cause)
        self._finish(number, TrialState.FAIL)

    def tell_infeasible(self, number: int, cause: str) -> None:
        """Over a limit. With its constraints set (see `constrain`) the sampler learns to stay below."""
        self._trial(number).set_user_attr(CAUSE, cause)
        self._finish(number, TrialState.PRUNED)

    def constrain(self, number: int, excess: Mapping[str, float]) -> None:
        """By how much each limit is exceeded; feasible at 0 or less. Also to be said of feasible trials, before `tell`.

        What was said of a trial stays.
        """
        trial = self._trial(number)
        said = trial.constraints
        for name, value in excess.items():
            if name not in said:
                trial.set_constraint(name, value)

    def limited_by(self, limits: Sequence[str], excess: Mapping[str, Mapping[str, float]]) -> None:
        """The limits from now on. Samplers want the same of all trials (gp: in the same order); those from before one
        of them exceed it as `excess` says by architecture, or keep to it.
        """
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if any(set(limits) - set(trial.constraints) for trial in done):
            self._study = load(self._engine, self._name, self._objectives, limits, excess)
            self._known_space, self._asked = None, {}

    def running(self, space: SearchSpace) -> list[Asked]:
        """Proposals of an earlier driver that were never told, to be measured now."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        read = space.architecture_type.from_json
        return [Asked(trial.number, read(trial.user_attrs[ARCHITECTURE]), trial.params, False) for trial in running]

    def _with_known_space(self, sampler: optuna.samplers.BaseSampler) -> optuna.samplers.BaseSampler:
        """The sampler, with the names that one before found in all trials: a new one would compare them all again."""
        for name in KEPT_BY_SAMPLERS:
            if hasattr(sampler, name):
                self._known_space = self._known_space or getattr(sampler, name)
                setattr(sampler, name, self._known_space)
        return sampler

    def _trial(self, number: int) -> optuna.Trial:
        if number not in self._asked:
            frozen = self._study.get_trials(deepcopy=False)[number]
            self._asked[number] = optuna.Trial(self._study, frozen._trial_id)
        return self._asked[number]

    def _finish(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        self._study.tell(number, None if values is None else list(values), state)
        self._asked.pop(number, None)
        self._write(number)

    def _write(self, number: int) -> None:
        """Make the trial durable as it is now."""
        rows = {number: _text(self._study.get_trials(deepcopy=False)[number])}
        if (noted := _noted(self._study)) != self._noted:
            rows[WHOLE], self._noted = json.dumps(noted), dict(noted)
        where = (_trials.c.study == self._name) & _trials.c.number.in_(rows)
        values = [{"study": self._name, "number": one, "trial": text} for one, text in rows.items()]
        with self._engine.begin() as connection:
            connection.execute(_trials.delete().where(where))
            connection.execute(_trials.insert(), values)


def load(
    engine: sql.Engine,
    name: str,
    objectives: Sequence[str],
    limits: Sequence[str] = (),
    excess: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> optuna.Study:
    """The study as it was written down, in memory, as for Optuna's plots and importances; empty where there is none.

    `limits` and `excess` as in `Study.limited_by`.
    """
    study = optuna.create_study(
        study_name=name,
        directions=["maximize" if named(one).direction == "maximise" else "minimize" for one in objectives],
    )
    for number, text in _rows(engine, name):
        if number == WHOLE:
            for key, value in json.loads(text).items():
                study._storage.set_study_system_attr(study._study_id, key, value)
            continue
        missing = number - len(study.get_trials(deepcopy=False))
        trial = _trial_of(text)
        if limits and trial.state == TrialState.COMPLETE:
            _constrain(trial, limits, excess.get(trial.user_attrs[ARCHITECTURE], {}))
        study.add_trials([optuna.create_trial(state=TrialState.FAIL)] * missing + [trial])
    forgotten = _noted(study).get(ASKED, 0) - len(study.get_trials(deepcopy=False))
    study.add_trials([optuna.create_trial(state=TrialState.FAIL)] * forgotten)
    return study


def proposals(engine: sql.Engine, name: str) -> list[tuple[int, str]]:
    """Number and architecture JSON of every trial of a study."""
    rows = [(number, json.loads(text)) for number, text in _rows(engine, name) if number != WHOLE]
    found = [(number, trial["user"].get(ARCHITECTURE)) for number, trial in rows]
    return [(number, text) for number, text in found if text is not None]


def _noted(study: optuna.Study) -> Mapping[str, Any]:
    return study._storage.get_study_system_attrs(study._study_id)


def _rows(engine: sql.Engine, name: str) -> list[tuple[int, str]]:
    _metadata.create_all(engine)
    query = sql.select(_trials.c.number, _trials.c.trial).where(_trials.c.study == name).order_by(_trials.c.number)
    with engine.connect() as connection:
        return [(number, text) for number, text in connection.execute(query)]


def _text(trial: FrozenTrial) -> str:
    """A trial as JSON. Values of parameters are in Optuna's internal form, as its own database holds them."""
    distributions = trial.distributions
    return json.dumps(
        {
            "state": trial.state.name,
            "values": trial.values,
            "params": {name: distributions[name].to_internal_repr(value) for name, value in trial.params.items()},
            "distributions": {name: distribution_to_json(one) for name, one in distributions.items()},
            "user": trial.user_attrs,
            "system": trial.system_attrs,
            "times": [one and one.isoformat() for one in (trial.datetime_start, trial.datetime_complete)],
        }
    )


def _trial_of(text: str) -> FrozenTrial:
    table = json.loads(text)
    distributions = {name: _distribution(one) for name, one in table["distributions"].items()}
    begun, completed = (one and datetime.fromisoformat(one) for one in table["times"])
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState[table["state"]],
        value=None,
        values=table["values"],
        datetime_start=begun,
        datetime_complete=completed,
        params={name: distributions[name].to_external_repr(value) for name, value in table["params"].items()},
        distributions=distributions,
        user_attrs=table["user"],
        system_attrs=table["system"],
        intermediate_values={},
    )


def _constrain(trial: FrozenTrial, limits: Sequence[str], excess: Mapping[str, float]) -> None:
    """Give the trial each limit, in this order; what it says of one stays."""
    said = trial.constraints
    for name in [name for name in trial.system_attrs if name.rpartition(":")[2] in said]:
        del trial.system_attrs[name]
    for limit in (*limits, *(name for name in said if name not in limits)):
        trial.set_constraint(limit, said.get(limit, excess.get(limit, -1.0)))


@lru_cache(maxsize=1000)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


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
