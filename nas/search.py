"""The loop: ask, check the limits, measure, write down, tell. On any executor; resumes where it was killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nas import complexity
from nas.config import SearchConfig
from nas.errors import CandidateError, SearchError
from nas.executor import Executor
from nas.ladder import Rung
from nas.leaderboard import HIGHER_IS_BETTER, SIGNAL_OF
from nas.progress import Budget, Event, Listener, Progress
from nas.proxy import Job, Outcome
from nas.records import Measurement, Records
from nas.space import SearchSpace, Shape
from nas.study import Asked, Study

FRUITLESS_BEFORE_EXPLORING = 20
"""Proposals in a row that were known, beyond the limits or none at all, after which one is drawn at random."""

PROPOSALS_WITHOUT_CANDIDATE = 1000
"""Proposals in a row without a new feasible candidate, after which the search ends."""


@dataclass(frozen=True)
class Candidates:
    """What a candidate is in this search: drawn from a space, for these images, within these limits."""

    space: SearchSpace
    input_shape: Shape
    classes: int
    limits: SearchConfig
    max_flops: int | None = None

    def excess(self, architecture: object) -> tuple[dict[str, float], str | None]:
        """By how much the limits known before training are exceeded, and the cause in words (None: feasible)."""
        found = complexity.complexity(self.space, architecture, self.input_shape, self.classes)
        values = {"params": float(found.params), "flops": float(found.flops)}
        excess = complexity.violations(self.limits, values, self.max_flops)
        return excess, complexity.cause(excess, values)


class Search:
    """One search over one study. `check` is called before anything is decided, and may raise."""

    def __init__(
        self,
        candidates: Candidates,
        rung: Rung,
        seed: int,
        study: Study,
        records: Records,
        executor: Executor,
        budget: Budget,
        listen: Listener,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._candidates = candidates
        self._rung = rung
        self._seed = seed
        self._study = study
        self._records = records
        self._executor = executor
        self._budget = budget
        self._listen = listen
        self._check = check
        self._objectives = candidates.limits.objectives
        entries = [e for e in records.all() if e.measurement.rung == rung.key and e.measurement.seed == seed]
        self._known = {e.measurement.key: e.measurement for e in entries}
        self._candidate_keys = {e.measurement.key for e in entries if e.trial is not None}
        self._waiting: dict[str, list[int]] = {}  # by architecture in flight: the trials that asked for it
        self._infeasible: set[str] = set()
        self._fruitless = 0
        self._unsuggested: str | None = None  # why the first proposal that gave no architecture did not
        self._total: int | None = None
        self._share = 1.0

    def run(self, trials: int | None, share: float = 1.0) -> Progress:
        """Measure until there are `trials` candidates, or `share` of the budget is spent, or nothing new is left."""
        self._total, self._share = trials, share
        self._budget.enter(search=True)
        for name in self._warm_start():
            self._study.enqueue(self._candidates.space.named()[name])
        for asked in self._study.running(self._candidates.space):
            self._consider(asked)
        while True:
            self._check()
            proposing = self._executor.free > 0 and not self._is_over()
            if proposing:
                explore = self._fruitless > 0 and self._fruitless % FRUITLESS_BEFORE_EXPLORING == 0
                self._propose(explore)
            elif not self._executor.running:
                break
            self._listen(Event(self._progress()))
            for outcome in self._executor.wait(timeout=0.0 if self._executor.free > 0 and proposing else 1.0):
                self._check()
                self._finish(outcome)
        self._budget.enter(search=False)
        self._budget.save()
        if not any(m.status == "done" for m in self._known.values() if m.key in self._candidate_keys):
            raise SearchError(self._why_nothing())
        return self._progress()

    def _warm_start(self) -> tuple[str, ...]:
        chosen = self._candidates.limits.warm_start
        return tuple(self._candidates.space.named()) if chosen is None else chosen

    def _is_over(self) -> bool:
        measured = sum(self._known[key].status != "infeasible" for key in self._candidate_keys)
        if self._total is not None and measured + len(self._waiting) >= self._total:
            return True
        left = self._budget.left_to_search(self._share)
        if left is not None and left <= 0:
            return True
        size = self._candidates.space.size()
        seen = len(self._candidate_keys | self._infeasible | set(self._waiting))
        return self._fruitless >= PROPOSALS_WITHOUT_CANDIDATE or (size is not None and seen >= size)

    def _propose(self, explore: bool) -> None:
        try:
            asked = self._study.ask(self._candidates.space, explore)
        except CandidateError as error:
            self._fruitless += 1
            self._unsuggested = self._unsuggested or str(error)
        else:
            self._consider(asked)

    def _consider(self, asked: Asked) -> None:
        """Measure a proposal, unless its measurement is there already, is being made, or is beyond the limits."""
        key = asked.architecture.key
        if key in self._candidate_keys:
            self._fruitless += 1
            self._settle(asked.number, self._known[key])
            return
        if key in self._waiting:
            self._fruitless += 1
            self._waiting[key].append(asked.number)
            return
        excess, over = self._judged(asked)
        if over:
            self._fruitless += 1
            self._infeasible.add(key)
            self._study.constrain(asked.number, excess)
            self._study.tell_infeasible(asked.number, over)
            return
        if key in self._known:  # measured as a reference
            self._settle(asked.number, self._known[key])
            return
        self._waiting[key] = [asked.number]
        self._executor.submit(Job.of(asked.architecture, self._rung, self._seed, asked.number))

    def _judged(self, asked: Asked) -> tuple[dict[str, float], str | None]:
        try:
            return self._candidates.excess(asked.architecture)
        except Exception:  # a third-party network may raise anything: measuring it says what is wrong
            return {}, None

    def _finish(self, outcome: Outcome) -> None:
        """Write down first, decide afterwards."""
        measurement = outcome.measurement
        numbers = self._waiting.pop(measurement.key)
        for number in numbers:
            self._settle(number, measurement)
        self._budget.save()
        self._listen(Event(self._progress(), f"trial {numbers[0]}", measurement))

    def _settle(self, number: int, measurement: Measurement) -> None:
        """Write the measurement down for this trial, then tell the trial what it says."""
        self._records.add(measurement, number)
        self._known[measurement.key] = measurement
        if measurement.key not in self._candidate_keys:
            self._fruitless = self._fruitless + 1 if measurement.status == "infeasible" else 0
        self._candidate_keys.add(measurement.key)
        if measurement.status == "failed":
            self._study.tell_failed(number, measurement.cause or "")
            return
        limits, max_flops = self._candidates.limits, self._candidates.max_flops
        self._study.constrain(number, complexity.violations(limits, measurement.signals, max_flops))
        if measurement.status == "infeasible":
            self._study.tell_infeasible(number, measurement.cause or "")
        else:
            self._study.tell(number, [measurement.signals[SIGNAL_OF[one]] for one in self._objectives])

    def _progress(self) -> Progress:
        measured = [m for m in self._known.values() if m.key in self._candidate_keys]
        objective = self._objectives[0]
        values = [m.signals[SIGNAL_OF[objective]] for m in measured if m.status == "done"]
        pick = max if objective in HIGHER_IS_BETTER else min
        return Progress(
            stage="search",
            done=len(values),
            failed=sum(m.status == "failed" for m in measured),
            infeasible=len(self._infeasible) + sum(m.status == "infeasible" for m in measured),
            running=len(self._waiting),
            best=pick(values) if values else None,
            total=self._total,
            seconds_left=self._budget.left_to_search(self._share),
        )

    def _why_nothing(self) -> str:
        causes = [m.cause for m in self._known.values() if m.status == "failed"]
        if causes:
            return f"no candidate could be measured; the first failed with: {causes[0]}"
        over = len(self._infeasible) + sum(m.status == "infeasible" for m in self._known.values())
        if over:
            raised = "search.time" if self._candidates.max_flops is not None else "search.max_*"
            return f"none of {over} proposals was within the limits; raise {raised}"
        return self._unsuggested or "no candidate was measured in the time given"
