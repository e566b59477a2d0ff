"""Decides which training comes next: a new candidate, or a promotion.

The policy is that of `nas.ladder.promotion`, which `nas simulate` replays. Where time ends the search, trainings at the
highest rung wait until just enough of it is left for those that are planned: `scripts/studies/simulate_deadline.py`
replays that.
Under a time budget with a plan (`nas.search.time_plan`) full training follows the search, and the surrogate's predicted
full score chooses the winner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.ladder import FREE, SIGNALS, Choices, Policy, Promotion, Rung, budget_for
from nas.metrics import named
from nas.progress import Budget
from nas.search.pace import Pace
from nas.search.proposer import Draw
from nas.search.state import SearchState
from nas.space import SearchSpace
from nas.store import Measurement, Proposal

POLICY = Policy(refit=0.03)
"""Trainings take longer than a fit: the surrogate is fitted more often than where trainings are replayed."""

ENDLESS = 1e6
"""Trainings at the highest rung, where only time ends the search."""


class Scheduler:
    """Decides between promotions and new candidates, and predicts full scores.

    It is a cache beside the state: made from it, and told what is added to it.
    """

    def __init__(
        self,
        state: SearchState,
        space: SearchSpace,
        rungs: Sequence[Rung],
        budget: Budget,
        workers: int,
        full: float | None = None,
    ) -> None:
        """`full` is the effort of full training, where it follows the search, in the unit of the rungs' efforts."""
        self._state = state
        self._rungs = tuple(rungs)
        self._budget = budget
        self._workers = workers
        self._full = full
        self._objective = named(state.objective)
        self._choices = Choices.of(space)
        self._signals = tuple(name for name in SIGNALS if name != self._objective.signal)
        self._pace = Pace()
        self._promoted = sum(one.rung == self._rungs[-1].key for one in state.higher)  # to the highest rung
        self._scoring = 0.0  # seconds, of the latest measurement
        self._ladder: Promotion[str] = Promotion([1.0], ENDLESS)
        self._costs = np.ones(1)
        self._trials: int | None = None
        self._share = 1.0
        for measurement in state.measured:
            self._learn_pace(measurement)

    def start(self, trials: int | None, share: float) -> None:
        """Plan for so many candidates (None: as long as there is time), with all that is known by now.

        There is one rung where too few candidates are wanted for a promotion.
        """
        self._trials, self._share = trials, share
        efforts = [rung.effort for rung in self._rungs] + ([] if self._full is None else [self._full])
        count, budget = len(efforts), ENDLESS
        if trials is not None and self._full is None:
            count, _, budget = budget_for(trials, efforts)
        self._costs = np.array(efforts[:count]) / efforts[count - 1]
        self._pace.lowest = float(self._costs[0])
        features = (*FREE, *self._choices.names)
        self._ladder = Promotion(list(self._costs), budget, features, self._signals, POLICY, self._state.seed)
        lowest = self._state.measured
        if lowest:
            known = [self._known(one.signals, self._state.candidates[one.key].parameters) for one in lowest]
            keys = [one.key for one in lowest]
            self._ladder.offer(keys, np.stack(known), np.tile(self._costs, (len(lowest), 1)))
        for one in [*lowest, *self._higher()]:
            height = self._height(one)
            done_below = one.rung == self._rungs[0].key or self._state.lowest[one.key].status == "done"
            if height < count and done_below:
                self._ladder.replay(one.key, height, *self._outcome(one), cost=_waived(one))

    def _higher(self) -> list[Measurement]:
        """Measurements of candidates at higher rungs, those at lower ones first."""
        candidates = [one for one in self._state.higher if one.key in self._state.lowest]
        return sorted((one for one in candidates if one.key in self._state.candidates), key=self._height)

    # ---------------------------------------------------------------------------------------------- what comes next

    def hold(self, proposing: bool) -> None:
        """Where time ends the search: full trainings wait as long as there will be time for them."""
        left = self._budget.left_to_search(self._share)
        if self._full is not None:
            self._ladder.hold(True)
        elif len(self._costs) == 1 or self._trials is not None or left is None:
            return
        else:
            whole, share = left + self._budget.searched, POLICY.share(list(self._costs))
            late = self._pace.late(left, whole, self._workers, self._promoted, share)
            self._ladder.hold(proposing and not late)

    @property
    def wants_candidate(self) -> bool:
        """Whether a new candidate comes before a promotion."""
        return self._ladder.wants_candidate

    def next_promotion(self) -> tuple[Proposal, Rung] | None:
        """The candidate to train at a higher rung now; None: there is none, or no time for it."""
        chosen = self._ladder.next(self._most())
        if chosen is None:
            return None
        key, height = chosen
        self._promoted += height == len(self._costs) - 1
        return self._state.candidates[key], self._rungs[height]

    def _most(self) -> float:
        """What a training may cost, in full trainings, by the time that is left to the search."""
        left = self._budget.left_to_search(self._share)
        if self._full is None:
            return self._pace.most(left)
        return math.inf if left is None else max(0.0, left - self._scoring) / self._full

    @property
    def seconds_of_candidate(self) -> float:
        """Seconds without which no candidate is begun, where they are known."""
        seconds = self._rungs[0].seconds
        return 0.0 if seconds is None else seconds + self._scoring

    # ------------------------------------------------------------------------------------------------- what happens

    def enter(self, proposal: Proposal, sizes: Mapping[str, float]) -> None:
        """A new candidate begins its training at the lowest rung."""
        self._ladder.enter(proposal.key, self._known(sizes, proposal.parameters), self._costs)

    def tell(self, measurement: Measurement) -> None:
        """A candidate's measurement at any rung."""
        if measurement.rung == self._rungs[0].key:
            self._learn_pace(measurement)
        score, signals = self._outcome(measurement)
        self._ladder.tell(measurement.key, self._height(measurement), score, signals, _waived(measurement))

    def _learn_pace(self, measurement: Measurement) -> None:
        if measurement.status != "done":
            return
        self._scoring = measurement.cost.get("scoring_seconds", 0.0)
        score = self._objective.score(self._objective.read(measurement.signals))
        self._pace.add(score, measurement.cost["seconds"])

    # -------------------------------------------------------------------------------------------- predicted scores

    @property
    def informed(self) -> bool:
        """Whether enough is measured to tell candidates apart before training."""
        return self._ladder.informed

    def predict(self, draws: Sequence[Draw]) -> NDArray[np.float64]:
        """The predicted full score of each; higher is better."""
        return self._ladder.predict(np.stack([self._known(one.sizes, one.parameters) for one in draws]))

    def choose(self) -> tuple[str, float, float] | None:
        """The measured candidate of the best predicted full score: (key, mean, deviation); higher is better.

        None where full training is at the highest rung, whose scores choose.
        """
        done = [one.key for one in self._state.measured if one.status == "done"]
        if self._full is None or not done:
            return None
        means, deviations = self._ladder.predicted_scores()
        places = {key: place for place, key in enumerate(self._ladder.keys)}
        best = max(done, key=lambda key: (means[places[key]], key))
        return best, float(means[places[best]]), float(deviations[places[best]])

    def _height(self, measurement: Measurement) -> int:
        return self._state.rungs.index(measurement.rung)

    def _outcome(self, measurement: Measurement) -> tuple[float | None, list[float]]:
        """Score, higher is better (None: there is none), and signals."""
        if measurement.status != "done":
            return None, []
        signals = [measurement.signals.get(name, math.nan) for name in self._signals]
        return self._objective.score(self._objective.read(measurement.signals)), signals

    def _known(self, sizes: Mapping[str, float], parameters: Mapping[str, Any]) -> NDArray[np.float64]:
        """What is known of a candidate before training."""
        return np.concatenate([[sizes.get(name, math.nan) for name in FREE], self._choices.read(parameters)])


def _waived(measurement: Measurement) -> float | None:
    """What a training cost, where that is not what was expected: beyond a limit, none took place."""
    return 0.0 if measurement.status == "infeasible" else None
