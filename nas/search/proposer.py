"""New candidates: an Optuna sampler draws points, and the surrogate picks the best of them.

As soon as there are measurements to judge by, several points are drawn for each candidate (a batch), and the one of the
best predicted score is taken. The others are discarded; the sampler learns nothing of them. For every second candidate
the points are drawn at random: the sampler alone soon proposes variations of one network only.

The sampler is made anew before each draw from (seed, number of draws): a seeded sampler that lives on would propose the
same points again after a resume. It learns from a study in memory, which is a projection of the search's state.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from nas.search.candidates import Candidates
from nas.search.state import SearchState
from nas.search.study import constraints_of, distribution_text, make_sampler, outcome_of, study_of, values_of
from nas.space import Architecture
from nas.store import Measurement, Origin, Proposal

FIXED = "fixed_params"
"""Optuna's note of a point that was enqueued."""


@dataclass(frozen=True)
class Draw:
    """A point that was drawn and is not recorded yet.

    Attributes:
        number: How many points were drawn before it.
        architecture: What the space made of the parameters.
        sizes: What is known of the network before training; empty where it cannot be built here.
        excess: By how much each limit is exceeded.
        cause: Why it may not be measured, None: it may.
    """

    number: int
    study: optuna.Study = field(compare=False, repr=False)
    trial: optuna.Trial = field(compare=False, repr=False)
    architecture: Architecture | None
    origin: Origin
    sizes: Mapping[str, float] = field(default_factory=dict)
    excess: Mapping[str, float] = field(default_factory=dict)
    cause: str | None = None

    @property
    def key(self) -> str:
        return "" if self.architecture is None else self.architecture.key

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the space chose, by name."""
        return self.trial.params

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What the sampler noted of the trial, such as nsga2 its generation."""
        noted = self.study.get_trials(deepcopy=False)[self.trial.number].system_attrs
        return {key: value for key, value in noted.items() if key != FIXED}


Predict = Callable[[Sequence[Draw]], NDArray[np.float64]]
"""Draws -> their predicted scores."""


class Proposer:
    """Draws points and keeps a batch of those that may become a candidate."""

    def __init__(self, candidates: Candidates, sampler: str, seed: int) -> None:
        self._candidates = candidates
        self._sampler = sampler
        self._seed = seed
        self._study: optuna.Study | None = None
        self._stale = True  # whether the study lacks something of the state
        self._open: dict[int, Draw] = {}  # recorded candidates of this study that are not measured yet, by number
        self._named: deque[Mapping[str, Any]] = deque()
        self._batch: dict[str, Draw] = {}
        self._draws = 0
        self.drawn = 0
        """Points drawn since a candidate was taken."""

    def start(self, state: SearchState, named: Sequence[Mapping[str, Any]]) -> None:
        """Begin or go on with a search; the named points come first, but for those that were considered before."""
        self._draws = state.draws
        for parameters in named:
            architecture = self._candidates.space.point(parameters)
            if architecture.key not in state:
                self._named.append(parameters)

    def __len__(self) -> int:
        """Points in the batch."""
        return len(self._batch)

    def draw(self, state: SearchState, at_random: bool) -> Draw:
        """The next point: a named one where one is left, else of the sampler or, `at_random`, of chance.

        The draw of a point of which the space makes no architecture has a cause and no architecture.
        """
        study = self._study_of(state)
        named = bool(self._named)
        origin: Origin = "named" if named else "random" if at_random else "sampler"
        name = "random" if at_random else self._sampler
        number = self._draws
        self._draws += 1
        self.drawn += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if name == "nsga2":  # its first draw of a generation has the parents in another order than the later ones
                self._draw_in_vain(study)
            if named:
                study.enqueue_trial(dict(self._named.popleft()))
            study.sampler = make_sampler(name, _seed_of(self._seed, number))
            trial = study.ask()
            try:
                architecture = self._candidates.space.suggest(trial)
            except Exception as error:  # a third-party space may raise anything, and its other points may be sound
                cause = f"suggest failed: {type(error).__name__}: {' '.join(str(error).split())}"
                return Draw(number, study, trial, None, origin, cause=cause)
        return Draw(number, study, trial, architecture, origin, *self._limits(architecture))

    def _draw_in_vain(self, study: optuna.Study) -> None:
        study.sampler = make_sampler(self._sampler, 0)
        trial = study.ask()
        with suppress(Exception):  # a third-party space may raise anything
            self._candidates.space.suggest(trial)
        study.tell(trial, state=TrialState.FAIL)

    def _limits(self, architecture: Architecture) -> tuple[dict[str, float], dict[str, float], str | None]:
        try:
            sizes = self._candidates.sizes(architecture)
        except Exception:  # a third-party network may raise anything: measuring it says what is wrong
            return {}, {}, None
        return sizes, *self._candidates.beyond(sizes)

    # --------------------------------------------------------------------------------------------------- the batch

    def __contains__(self, key: str) -> bool:
        return key in self._batch

    def add(self, draw: Draw) -> None:
        """Into the batch."""
        self._batch[draw.key] = draw

    def take(self, predict: Predict) -> Draw:
        """The draw of the batch with the best predicted score, which is asked for where there are several.

        Named points come first, and those that are left stay in the batch. The others are discarded.
        """
        batch, self._batch, self.drawn = self._batch, {}, 0
        named = [key for key, draw in batch.items() if draw.origin == "named"]
        if named:
            best = named[0]
            self._batch = {key: batch.pop(key) for key in named[1:]}
        elif len(batch) == 1:
            best = next(iter(batch))
        else:
            best = list(batch)[int(np.argmax(predict(list(batch.values()))))]
        taken = batch.pop(best)
        for draw in batch.values():
            self.discard(draw)
        return taken

    def clear(self) -> None:
        """Nothing more will be measured."""
        for draw in self._batch.values():
            self.discard(draw)
        self._batch = {}

    @staticmethod
    def discard(draw: Draw) -> None:
        """Drop a point that is not recorded: nothing is learned from it."""
        draw.study.tell(draw.trial, state=TrialState.FAIL)

    # -------------------------------------------------------------------------------------------------- the record

    def record(self, draw: Draw, number: int, measurement: Measurement | None = None) -> Proposal:
        """The proposal of a draw, to be written down.

        A known `measurement` of the architecture tells of limits that only measuring shows.
        """
        excess, cause = draw.excess, draw.cause
        if draw.architecture is not None and measurement is not None and cause is None:
            excess, cause = self._candidates.beyond(measurement.signals)
        failed = draw.architecture is None
        return Proposal(
            number=number,
            draw=draw.number,
            draws=self._draws,
            architecture="" if draw.architecture is None else draw.architecture.to_json(),
            key=draw.key,
            parameters=dict(draw.parameters),
            distributions={name: distribution_text(one) for name, one in draw.trial.distributions.items()},
            origin=draw.origin,
            status="failed" if failed else "infeasible" if cause is not None else "candidate",
            excess={} if failed else dict(excess),
            cause=cause,
            attributes=draw.attributes,
        )

    def recorded(self, draw: Draw, proposal: Proposal) -> None:
        """The proposal is durable: the sampler learns of it, at once where it is no candidate."""
        self._open[draw.number] = draw
        if proposal.status != "candidate":
            self.tell(proposal, None)

    def tell(self, proposal: Proposal, measurement: Measurement | None) -> None:
        """The measurement of a candidate at the lowest rung is durable: the sampler learns from it."""
        draw = self._open.pop(proposal.draw, None)
        if draw is None or draw.study is not self._study:  # proposed by an earlier run
            self._stale = True
            return
        for name, value in constraints_of(proposal, measurement, self._candidates.constraints).items():
            draw.trial.set_constraint(name, value)
        state, _ = outcome_of(proposal, measurement)
        values = None
        if state == TrialState.COMPLETE and measurement is not None:
            values = values_of(measurement, self._candidates.limits.objectives)
        self._study.tell(draw.trial, values, state)

    def _study_of(self, state: SearchState) -> optuna.Study:
        """The study that samplers learn from."""
        if self._study is None or (self._stale and not self._batch):
            self._study = study_of(state, self._candidates.limits.objectives, self._candidates.constraints)
            self._stale, self._open = False, {}
        return self._study


def _seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
