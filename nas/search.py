"""The loop: ask, check the limits, measure, write down, tell, promote. On any executor; resumes where it was killed.

As soon as there are outcomes to judge by, several proposals are drawn for each candidate, and the one with the best
outlook is measured: the free rung of the ladder. They are drawn while all workers are busy; one that is free takes the
best of those that there are. The others are forgotten; the sampler learns nothing of them. For every second candidate
they are drawn at random: the sampler alone soon proposes variations of one network only.

Each candidate is measured at the lowest rung, and its trial is told to Optuna once, when that is done, with its score
there (a trial that proposes it again, too): the sampler never sees a score of another rung. A trial that waits for its
promotion, or is being trained at a higher rung, is complete for Optuna. Who is promoted, and when, the ladder says
(`nas.ladder.promotion`, which `nas simulate` replays): newcomers are Optuna's proposals, promotions go to the
candidates with the best outlook of its ranker. Where time ends the search, trainings at the highest rung wait until
just enough of it is left for those that are planned (`scripts/simulate_deadline` replays that).

Under a time budget with a plan (`nas.time_plan`) rungs are seconds of one worker, full training follows the search, and
the ladder's expectation of it chooses the winner (`Search.chosen`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.candidates import Candidates
from nas.errors import CandidateError, SearchError
from nas.executor import Executor
from nas.hand import Hand, Option
from nas.ladder import FREE, SIGNALS, Choices, Policy, Promotion, Rung, budget_for
from nas.metrics import named
from nas.pace import Pace
from nas.progress import Budget, Event, Listener, Progress
from nas.proxy import Job, Outcome
from nas.records import Measurement, Records, Status
from nas.study import Asked, Study

POLICY = Policy(refit=0.03)
"""Trainings take longer than a fit: the ranker looks more often than where they are replayed."""

ENDLESS = 1e6
"""Trainings at the highest rung, where only time ends the search."""

FRUITLESS_BEFORE_EXPLORING = 20
"""Proposals in a row that were known, beyond the limits or none at all, after which one is drawn at random."""

PROPOSALS_WITHOUT_CANDIDATE = 1000
"""Proposals in a row without a new feasible candidate, after which the search ends."""


class Search:
    """One search over one study. `check` is called before anything is decided, and may raise.

    `full` is the effort of full training, in that of `rungs`, where it comes after the search and not at the highest
    of its rungs: then the ladder predicts full scores, and nothing is trained fully here.
    """

    def __init__(
        self,
        candidates: Candidates,
        rungs: Sequence[Rung],
        seed: int,
        study: Study,
        records: Records,
        executor: Executor,
        budget: Budget,
        listen: Listener,
        check: Callable[[], None] = lambda: None,
        full: float | None = None,
    ) -> None:
        self._full = full
        self._candidates = candidates
        self._rungs = tuple(rungs)
        self._rung = rungs[0]
        self._seed = seed
        self._study = study
        self._records = records
        self._executor = executor
        self._budget = budget
        self._listen = listen
        self._check = check
        self._objectives = tuple(named(name) for name in candidates.limits.objectives)
        self._signals = tuple(name for name in SIGNALS if name != self._objectives[0].signal)
        everything = [e for e in records.all() if e.measurement.seed == seed]
        entries = [e for e in everything if e.measurement.rung == self._rung.key]
        self._known = {e.measurement.key: e.measurement for e in entries}
        self._trials = {e.measurement.key: e.trial for e in entries if e.trial is not None}
        keys = [rung.key for rung in rungs]
        told = [e.measurement for e in everything if e.measurement.rung in keys and e.measurement.key in self._trials]
        self._told = sorted(told, key=lambda m: keys.index(m.rung))
        self._choices = Choices.of(candidates.space)
        self._ladder: Promotion[str] = Promotion([1.0], ENDLESS)
        self._costs = np.ones(1)
        self._hand = Hand(study)
        self._promoting = 0
        self._waiting: dict[str, list[int]] = {}  # by architecture in flight: the trials that asked for it
        self._infeasible: set[str] = set()
        self._counts: Counter[Status] = Counter()  # of candidates
        self._best: float | None = None
        self._pace = Pace()
        self._promoted = sum(one.rung == keys[-1] for one in told)  # to the highest rung
        for key in self._trials:
            self._count(self._known[key])
        self._fruitless = 0
        self._unsuggested: str | None = None  # why the first proposal that gave no architecture did not
        self._total: int | None = None
        self._share = 1.0
        self._scoring = 0.0  # seconds, the last seen

    def run(self, trials: int | None, share: float = 1.0) -> Progress:
        """Measure until there are `trials` candidates, or `share` of the budget is spent, or nothing new is left."""
        self._total, self._share = trials, share
        self._ladder = self._make_ladder()
        self._budget.enter(search=True)
        known = {one.architecture: self._candidates.beyond(one.signals)[0] for one in self._known.values()}
        self._study.limited_by(self._candidates.limited_by, known)
        for values in self._warm_start():
            self._study.enqueue(values)
        for asked in self._study.running(self._candidates.space):
            if (sizes := self._sifted(asked)) is not None:
                self._submit(asked, sizes)
        while True:
            self._check()
            free, over = self._executor.free > 0, self._is_over()
            self._hold(free and not over)
            if free and (over or not self._ladder.wants_newcomer) and self._promote():
                continue
            if over and not self._executor.running:
                break
            if not over and (free or self._draws_ahead):
                self._propose()
            thinking = not over and (self._executor.free > 0 or self._draws_ahead)
            self._listen(Event(self._progress()))
            for outcome in self._executor.wait(timeout=0.0 if thinking else 1.0):
                self._check()
                self._finish(outcome)
        self._hand.put_down()
        self._budget.enter(search=False)
        self._budget.save()
        if not self._counts["done"]:
            raise SearchError(self._why_nothing())
        return self._progress()

    def _warm_start(self) -> list[Mapping[str, Any]]:
        """Named points to begin with, in the space's order: those asked for, or all that a time budget allows."""
        named, chosen = self._candidates.space.named(), self._candidates.limits.warm_start
        if chosen is not None or self._candidates.max_step_seconds is None:
            return [named[name] for name in (named if chosen is None else chosen)]
        within = []
        for values in named.values():
            sizes = self._candidates.sizes(self._candidates.space.point(values))
            if all(over <= 0 for over in self._candidates.beyond(sizes)[0].values()):
                within.append(values)
        return within

    @property
    def chosen(self) -> tuple[str, float, float] | None:
        """The measured candidate of the best expected full score: (key, mean, deviation), in the ladder's units.

        None where full training is at the highest rung, whose scores choose.
        """
        done = [key for key, one in self._known.items() if key in self._trials and one.status == "done"]
        if self._full is None or not done:
            return None
        means, deviations = self._ladder.outlook()
        places = {key: place for place, key in enumerate(self._ladder.keys)}
        best = max(done, key=lambda key: (means[places[key]], key))
        return best, float(means[places[best]]), float(deviations[places[best]])

    def _is_over(self) -> bool:
        measured = self._counts["done"] + self._counts["failed"]
        if self._total is not None and measured + len(self._waiting) >= self._total:
            return True
        left = self._budget.left_to_search(self._share)
        begun = measured or self._waiting  # one candidate at least: without it nothing can be exported
        if left is not None and left <= self._least and begun:
            return True
        size = self._candidates.space.size()
        seen = len(self._trials) + len(self._infeasible) + len(self._waiting)
        return self._fruitless >= PROPOSALS_WITHOUT_CANDIDATE or (size is not None and seen >= size)

    @property
    def _least(self) -> float:
        """Seconds without which no candidate is begun: what one takes where that is known, but for the first."""
        if self._rung.seconds is None or not (self._counts["done"] or self._waiting):
            return 0.0
        return self._rung.seconds + self._scoring

    @property
    def _proposals(self) -> int:
        """How many are drawn for each candidate, where there is time. Several objectives have no one best."""
        screened = self._ladder.informed and len(self._objectives) == 1
        return self._candidates.limits.proposals if screened else 1

    @property
    def _at_random(self) -> bool:
        """Whether proposals are drawn at random: every second candidate's, where several are drawn for each.

        Not after so many that may not be measured, nor while a worker waits: the sampler's first is the better one.
        """
        turn = (len(self._trials) + len(self._waiting)) % 2 == 1
        waits = self._executor.concurrent and self._executor.free > 0
        return turn and not waits and 1 < self._proposals > self._hand.drawn

    @property
    def _draws_ahead(self) -> bool:
        """Whether there are proposals to draw while all workers are busy."""
        return self._executor.concurrent and 1 < self._proposals > self._hand.drawn

    def _propose(self) -> None:
        """Measure the best of the proposals drawn, where a worker is free and they are enough; draw one where not."""
        if not self._enough:
            self._draw()
        if self._enough and self._executor.free > 0:
            self._submit(*self._hand.take(self._promise))

    @property
    def _enough(self) -> bool:
        """Whether to draw no more: there are as many as are wanted, or one, where a worker would wait for more."""
        waits = self._executor.concurrent and self._executor.free > 0
        return len(self._hand) > 0 and (waits or self._hand.drawn >= self._proposals)

    def _draw(self) -> None:
        at_random = self._at_random
        explore = self._fruitless > 0 and self._fruitless % FRUITLESS_BEFORE_EXPLORING == 0
        self._hand.drawn += 1
        try:
            asked = self._study.ask(self._candidates.space, explore or at_random)
        except CandidateError as error:
            self._fruitless += 1
            self._unsuggested = self._unsuggested or str(error)
            return
        sizes = self._sifted(asked, at_random)
        if sizes is None:
            return
        if asked.architecture.key in self._known:  # as a reference: it costs nothing
            self._submit(asked, sizes)
        else:
            self._hand.add(asked, sizes)

    def _sifted(self, asked: Asked, at_random: bool = False) -> Mapping[str, float] | None:
        """Sizes of a proposal that may be measured. None: it is known, on its way or beyond limits, and dealt with.

        The sampler is not told of those that are `at_random` beyond limits: many of them would hide what is good.
        """
        key = asked.architecture.key
        if key in self._trials:
            self._fruitless += 1
            self._settle(asked.number, self._known[key])
            return None
        if key in self._waiting:
            self._fruitless += 1
            self._study.keep(asked.number)
            self._waiting[key].append(asked.number)
            return None
        if key in self._hand:
            self._study.forget(asked.number)
            return None
        sizes, excess, over = self._judged(asked)
        if not over and key in self._known:  # measured as a reference, whatever its latency
            excess, over = self._candidates.beyond(self._known[key].signals)
        if over and at_random and not asked.given:
            self._study.forget(asked.number)
            return None
        if over:
            self._fruitless += 1
            self._infeasible.add(key)
            self._study.constrain(asked.number, excess)
            self._study.tell_infeasible(asked.number, over)
            return None
        return sizes

    def _promise(self, options: Sequence[Option]) -> NDArray[np.float64]:
        """What the ladder expects of each after full training."""
        return self._ladder.judge(np.stack([self._free(sizes, asked.values) for asked, sizes in options]))

    def _submit(self, asked: Asked, sizes: Mapping[str, float]) -> None:
        """On its way to the lowest rung."""
        key = asked.architecture.key
        self._study.keep(asked.number)
        self._ladder.enter(key, self._free(sizes, asked.values), self._costs)
        if key in self._known:
            self._settle(asked.number, self._known[key])
            return
        self._waiting[key] = [asked.number]
        steps = self._steps(asked.architecture, self._rung)
        self._executor.submit(Job.of(asked.architecture, self._rung, self._seed, asked.number, steps))

    def _steps(self, architecture: Any, rung: Rung) -> int | None:
        """Steps of a rung of seconds, for this architecture."""
        prices = self._candidates.prices
        if rung.seconds is None or prices is None:
            return None
        return max(1, round(rung.seconds / prices.of_worker(self._candidates.work(architecture))))

    def _judged(self, asked: Asked) -> tuple[dict[str, float], dict[str, float], str | None]:
        try:
            sizes = self._candidates.sizes(asked.architecture)
        except Exception:  # a third-party network may raise anything: measuring it says what is wrong
            return {}, {}, None
        return sizes, *self._candidates.beyond(sizes)

    def _finish(self, outcome: Outcome) -> None:
        """Write down first, decide afterwards."""
        measurement, job = outcome.measurement, outcome.job
        if job.rung.key == self._rung.key:
            for number in self._waiting.pop(measurement.key):
                self._settle(number, measurement)
            name = f"trial {job.trial}"
        else:
            self._promoting -= 1
            self._records.add(measurement, job.trial)
            self._judge(measurement)
            name = f"trial {job.trial} {job.rung.name}"
        self._budget.save()
        self._listen(Event(self._progress(), name, measurement))

    def _make_ladder(self) -> Promotion[str]:
        """The ladder for so many candidates, or for as long as there is time, with all that is known by now.

        It has one rung where too few candidates are wanted for anybody to be promoted.
        """
        efforts = [rung.effort for rung in self._rungs] + ([] if self._full is None else [self._full])
        rungs, budget = len(efforts), ENDLESS
        if self._total is not None and self._full is None:
            rungs, _, budget = budget_for(self._total, efforts)
        self._costs = np.array(efforts[:rungs]) / efforts[rungs - 1]
        self._pace.lowest = float(self._costs[0])
        features = (*FREE, *self._choices.names)
        ladder: Promotion[str] = Promotion(list(self._costs), budget, features, self._signals, POLICY, self._seed)
        values = self._study.values()
        lowest = [one for one in self._told if one.rung == self._rung.key]
        if lowest:
            free = [self._free(one.signals, values.get(self._trials[one.key], {})) for one in lowest]
            ladder.offer([one.key for one in lowest], np.stack(free), np.tile(self._costs, (len(lowest), 1)))
        for one in self._told:
            height = self._height(one)
            if height < rungs and (one.rung == self._rung.key or self._known[one.key].status == "done"):
                ladder.recall(one.key, height, *self._outcome(one), cost=self._waived(one))
        return ladder

    def _hold(self, proposing: bool) -> None:
        """Where time ends the search: full trainings wait as long as there will be time for them."""
        left = self._budget.left_to_search(self._share)
        if self._full is not None:
            self._ladder.hold(True)
        elif len(self._costs) == 1 or self._total is not None or left is None:
            return
        else:
            whole, share = left + self._budget.searched, POLICY.share(list(self._costs))
            late = self._pace.late(left, whole, self._executor.slots, self._promoted, share)
            self._ladder.hold(proposing and not late)

    def _promote(self) -> bool:
        """Send whoever the ladder chooses to a higher rung, where there is time for it."""
        chosen = self._ladder.next(self._most())
        if chosen is None:
            return False
        key, height = chosen
        architecture = self._candidates.space.architecture_type.from_json(self._known[key].architecture)
        self._promoting += 1
        self._promoted += height == len(self._costs) - 1
        rung = self._rungs[height]
        steps = self._steps(architecture, rung)
        self._executor.submit(Job.of(architecture, rung, self._seed, self._trials[key], steps))
        return True

    def _most(self) -> float:
        """What a training may cost, in full trainings, by the time that is left to the search."""
        left = self._budget.left_to_search(self._share)
        if self._full is None:
            return self._pace.most(left)
        return math.inf if left is None else max(0.0, left - self._scoring) / self._full

    def _judge(self, measurement: Measurement) -> None:
        """Tell the ladder what became of a candidate at a rung of it."""
        score, signals = self._outcome(measurement)
        self._ladder.tell(measurement.key, self._height(measurement), score, signals, self._waived(measurement))

    @staticmethod
    def _waived(measurement: Measurement) -> float | None:
        """What a training cost, where that is not what was expected: beyond a limit, none took place."""
        return 0.0 if measurement.status == "infeasible" else None

    def _height(self, measurement: Measurement) -> int:
        return [rung.key for rung in self._rungs].index(measurement.rung)

    def _outcome(self, measurement: Measurement) -> tuple[float | None, list[float]]:
        """Score, higher is better (None: there is none), and signals, as the ladder is told."""
        if measurement.status != "done":
            return None, []
        objective = self._objectives[0]
        signals = [measurement.signals.get(name, math.nan) for name in self._signals]
        return objective.score(objective.read(measurement.signals)), signals

    def _free(self, sizes: Mapping[str, float], values: Mapping[str, Any]) -> NDArray[np.float64]:
        """What is known of a candidate before training."""
        return np.concatenate([[sizes.get(name, math.nan) for name in FREE], self._choices.read(values)])

    def _settle(self, number: int, measurement: Measurement) -> None:
        """Write the measurement down for this trial, then tell the trial what it says."""
        self._records.add(measurement, number)
        self._known[measurement.key] = measurement
        if measurement.key not in self._trials:
            self._fruitless = self._fruitless + 1 if measurement.status == "infeasible" else 0
            self._trials[measurement.key] = number
            self._count(measurement)
            self._judge(measurement)
        if measurement.status == "failed":
            self._study.tell_failed(number, measurement.cause or "")
            return
        excess = self._candidates.beyond(measurement.signals)[0]
        if self._candidates.max_step_seconds is not None:
            excess.setdefault("step_seconds", 0.0)  # what was measured was within it
        self._study.constrain(number, excess)
        if measurement.status == "infeasible":
            self._study.tell_infeasible(number, measurement.cause or "")
        else:
            self._study.tell(number, [objective.read(measurement.signals) for objective in self._objectives])

    def _count(self, candidate: Measurement) -> None:
        """Keep the tallies that are told and decided by: nothing is counted over all candidates each time."""
        self._counts[candidate.status] += 1
        if candidate.status != "done":
            return
        objective = self._objectives[0]
        self._scoring = candidate.cost.get("scoring_seconds", 0.0)
        value = objective.read(candidate.signals)
        self._pace.add(objective.score(value), candidate.cost["seconds"])
        self._best = value if self._best is None else max(self._best, value, key=objective.score)

    def _progress(self) -> Progress:
        return Progress(
            stage="search",
            done=self._counts["done"],
            failed=self._counts["failed"],
            infeasible=len(self._infeasible) + self._counts["infeasible"],
            running=len(self._waiting) + self._promoting,
            best=self._best,
            total=self._total,
            seconds_left=self._budget.left_to_search(self._share),
        )

    def _why_nothing(self) -> str:
        causes = [m.cause for m in self._known.values() if m.status == "failed"]
        if causes:
            return f"no candidate could be measured; the first failed with: {causes[0]}"
        over = len(self._infeasible) + self._counts["infeasible"]
        if over:
            raised = "search.time" if self._candidates.max_step_seconds is not None else "search.max_*"
            return f"none of {over} proposals was within the limits; raise {raised}"
        return self._unsuggested or "no candidate was measured in the time given"
