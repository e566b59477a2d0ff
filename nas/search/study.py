"""The Optuna study: a projection of the record, made anew whenever it is needed.

Samplers learn from it in memory (`nas.search.proposer`). `Journal` keeps it in a file for Optuna's own tools, which may
read it while a search runs. Nothing is ever read back from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nas.metrics import named
from nas.search.state import SearchState
from nas.store import Measurement, Proposal

ARCHITECTURE, CAUSE, TRIAL = "architecture", "cause", "trial"
"""User attributes of an Optuna trial: canonical JSON, why it has no value, and the trial's number on the board."""

JOURNAL = "optuna.log"
"""The file of `Journal` in an experiment's folder."""

GENERATION = 16
"""Population of nsga2: Optuna's 50 would make a short search a random one."""

Constraints = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Signals -> by how much each limit is exceeded; 0 or less: kept."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def directions(objectives: Sequence[str]) -> list[StudyDirection]:
    """Optuna's directions of the objectives."""
    upwards = [named(one).direction == "maximise" for one in objectives]
    return [StudyDirection.MAXIMIZE if up else StudyDirection.MINIMIZE for up in upwards]


def values_of(measurement: Measurement, objectives: Sequence[str]) -> list[float]:
    """The objectives' values of a measured candidate."""
    return [named(one).read(measurement.signals) for one in objectives]


def outcome_of(proposal: Proposal, measurement: Measurement | None) -> tuple[TrialState, str | None]:
    """Optuna's state of a trial, and the cause where it has no value."""
    if proposal.status != "candidate":
        return (TrialState.PRUNED if proposal.status == "infeasible" else TrialState.FAIL), proposal.cause
    if measurement is None:
        return TrialState.RUNNING, None
    states = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL, "infeasible": TrialState.PRUNED}
    return states[measurement.status], measurement.cause


def constraints_of(proposal: Proposal, measurement: Measurement | None, constraints: Constraints) -> dict[str, float]:
    """By how much a trial exceeds each limit, as far as that is known."""
    if proposal.status == "candidate" and measurement is not None and measurement.status != "failed":
        return {**constraints(measurement.signals), **proposal.excess}
    return dict(proposal.excess)


def frozen_trial(
    proposal: Proposal, measurement: Measurement | None, objectives: Sequence[str], constraints: Constraints
) -> FrozenTrial:
    """The trial of a proposal and the measurement of its architecture at the lowest rung."""
    state, cause = outcome_of(proposal, measurement)
    attributes = {ARCHITECTURE: proposal.architecture} if proposal.architecture else {}
    attributes |= {TRIAL: str(proposal.number)} | ({} if cause is None else {CAUSE: cause})
    done = state == TrialState.COMPLETE and measurement is not None
    trial = optuna.trial.create_trial(
        state=state,
        values=values_of(measurement, objectives) if done and measurement is not None else None,
        params=dict(proposal.parameters),
        distributions={name: _distribution(text) for name, text in proposal.distributions.items()},
        user_attrs=attributes,
        system_attrs=dict(proposal.attributes),
        constraints=constraints_of(proposal, measurement, constraints),
    )
    trial.datetime_start = datetime.fromtimestamp(proposal.created)
    if state.is_finished():
        trial.datetime_complete = datetime.fromtimestamp(measurement.created if measurement else proposal.created)
    return trial


def study_of(
    state: SearchState, objectives: Sequence[str], constraints: Constraints, name: str | None = None
) -> optuna.Study:
    """All trials of a search in memory, in the order in which they were drawn."""
    study = optuna.create_study(study_name=name, directions=directions(objectives))
    study.add_trials([frozen_trial(*pair, objectives, constraints) for pair in trials_of(state)])
    return study


def trials_of(state: SearchState) -> list[tuple[Proposal, Measurement | None]]:
    """Every proposal with the measurement of its architecture at the lowest rung, in the order of the draws."""
    ordered = sorted(state.proposals.values(), key=lambda one: one.draw)
    return [(one, _measurement(state, one)) for one in ordered]


def _measurement(state: SearchState, proposal: Proposal) -> Measurement | None:
    return state.lowest.get(proposal.key) if proposal.status == "candidate" else None


def distribution_text(distribution: BaseDistribution) -> str:
    """A distribution as the record holds it."""
    return distribution_to_json(distribution)


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


class Journal:
    """The trials in a file, for ``optuna.load_study`` and ``optuna-dashboard``.

    A trial is added when it and all with lower numbers are finished, so that Optuna's numbers are the board's.
    """

    def __init__(self, folder: Path, name: str, objectives: Sequence[str], constraints: Constraints) -> None:
        self._file = folder / JOURNAL
        self._name = name
        self._objectives = tuple(objectives)
        self._constraints = constraints
        self._study: optuna.Study | None = None
        self._next = 0

    def update(self, state: SearchState) -> None:
        """Add the trials that are finished by now."""
        if self._study is None:
            self._study = self._open()
            self._next = len(self._study.get_trials(deepcopy=False))
            if self._next > state.next_number:  # of an experiment that had this folder before
                self._file.unlink()
                self._study, self._next = self._open(), 0
        while (proposal := state.proposals.get(self._next)) is not None:
            trial = frozen_trial(proposal, _measurement(state, proposal), self._objectives, self._constraints)
            if not trial.state.is_finished():
                break
            self._study.add_trial(trial)
            self._next += 1

    def _open(self) -> optuna.Study:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = JournalStorage(JournalFileBackend(str(self._file)))
            return optuna.create_study(
                study_name=self._name, storage=storage, directions=directions(self._objectives), load_if_exists=True
            )
