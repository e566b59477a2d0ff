"""The loop of a search: propose or promote, measure, record, learn. It resumes where it was stopped.

Each candidate is measured at the lowest rung, and Optuna is told its score there once: the sampler never sees a score
of another rung. The proposer makes new candidates, the scheduler decides between them and promotions. Every proposal
and every measurement is durable before anything is decided from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nas.errors import SearchError
from nas.evaluation.evaluator import Job, Outcome
from nas.executor import Executor
from nas.ladder import Rung
from nas.progress import Budget, Event, Listener, Progress
from nas.search.candidates import Candidates
from nas.search.proposer import Draw, Proposer
from nas.search.scheduler import Scheduler
from nas.search.state import SearchState
from nas.search.study import Journal
from nas.store import Measurement, Proposal, Store

FRUITLESS_BEFORE_EXPLORING = 20
"""Draws in a row that were known, beyond the limits or none at all, after which one is drawn at random."""

DRAWS_WITHOUT_CANDIDATE = 1000
"""Draws in a row without a new feasible candidate, after which the search ends."""


class Search:
    """One search over one store. `check` is called before anything is decided, and may raise."""

    def __init__(
        self,
        candidates: Candidates,
        rungs: Sequence[Rung],
        seed: int,
        store: Store,
        executor: Executor,
        budget: Budget,
        listen: Listener,
        check: Callable[[], None] = lambda: None,
        full: float | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`full` as in `Scheduler`."""
        self.candidates = candidates
        self.store = store
        self.executor = executor
        self.budget = budget
        self._rungs = tuple(rungs)
        self._listen = listen
        self._check = check
        self._journal = journal
        objective = candidates.limits.objectives[0]
        self.state = SearchState.replay([rung.key for rung in rungs], seed, objective, store.events())
        self._scheduler = Scheduler(self.state, candidates.space, rungs, budget, executor.workers, full)
        self._proposer = Proposer(candidates, candidates.limits.sampler, seed)
        self._running: dict[str, Proposal] = {}  # at the lowest rung, by key
        self._promoting = 0
        self._fruitless = 0
        self._trials: int | None = None
        self._share = 1.0

    def run(self, trials: int | None, share: float = 1.0) -> Progress:
        """Measure until there are `trials` candidates, or `share` of the budget is spent, or nothing new is left."""
        self._trials, self._share = trials, share
        self.budget.enter(search=True)
        self._scheduler.start(trials, share)
        self._proposer.start(self.state, self._warm_start())
        for proposal in self.state.pending:
            self._resume(proposal)
        while True:
            self._check()
            free, over = self.executor.free > 0, self._is_over()
            self._scheduler.hold(free and not over)
            if free and (over or not self._scheduler.wants_candidate) and self._promote():
                continue
            if over and not self.executor.running:
                break
            if not over and (free or self._draws_ahead):
                self._propose()
            thinking = not over and (self.executor.free > 0 or self._draws_ahead)
            self._listen(Event(self._progress()))
            for outcome in self.executor.wait(timeout=0.0 if thinking else 1.0):
                self._check()
                self._finish(outcome)
        self._proposer.clear()
        self.budget.enter(search=False)
        self.budget.save()
        self._update_journal()
        if not self.state.counts["done"]:
            raise SearchError(self._why_nothing())
        return self._progress()

    @property
    def chosen(self) -> tuple[str, float, float] | None:
        """The winner by its predicted full score; see `Scheduler.choose`."""
        return self._scheduler.choose()

    def _warm_start(self) -> list[Mapping[str, Any]]:
        """Named points to begin with, in the space's order: those asked for, or all that a time budget allows."""
        named, chosen = self.candidates.space.named(), self.candidates.limits.warm_start
        if chosen is not None or self.candidates.max_step_seconds is None:
            return [named[name] for name in (named if chosen is None else chosen)]
        within = []
        for values in named.values():
            sizes = self.candidates.sizes(self.candidates.space.point(values))
            if all(over <= 0 for over in self.candidates.beyond(sizes)[0].values()):
                within.append(values)
        return within

    def _is_over(self) -> bool:
        measured = self.state.counts["done"] + self.state.counts["failed"]
        if self._trials is not None and measured + len(self._running) >= self._trials:
            return True
        left = self.budget.left_to_search(self._share)
        begun = measured or self._running  # one candidate at least: without it nothing can be exported
        done = self.state.counts["done"] or self._running
        if left is not None and left <= (self._scheduler.seconds_of_candidate if done else 0.0) and begun:
            return True
        size = self.candidates.space.size()
        seen = len(self.state.candidates) + len(self.state.infeasible)
        return self._fruitless >= DRAWS_WITHOUT_CANDIDATE or (size is not None and seen >= size)

    # -------------------------------------------------------------------------------------------- new candidates

    @property
    def _batch_size(self) -> int:
        """How many are drawn for each candidate, where there is time. Several objectives have no one best."""
        screened = self._scheduler.informed and len(self.candidates.limits.objectives) == 1
        return self.candidates.limits.proposals if screened else 1

    @property
    def _waits(self) -> bool:
        """Whether a worker waits while a batch is drawn."""
        return self.executor.concurrent and self.executor.free > 0

    @property
    def draws_at_random(self) -> bool:
        """Whether points are drawn at random: every second candidate's, where several are drawn for each.

        Not after so many that may not be measured, nor while a worker waits: the sampler's first is the better one.
        """
        turn = len(self.state.candidates) % 2 == 1
        return turn and not self._waits and 1 < self._batch_size > self._proposer.drawn

    @property
    def _draws_ahead(self) -> bool:
        """Whether there are points to draw while all workers are busy."""
        return self.executor.concurrent and 1 < self._batch_size > self._proposer.drawn

    @property
    def _enough(self) -> bool:
        """Whether to draw no more: there are as many as are wanted, or one, where a worker would wait for more."""
        return len(self._proposer) > 0 and (self._waits or self._proposer.drawn >= self._batch_size)

    def _propose(self) -> None:
        """Measure the best of the batch, where a worker is free and the batch is complete; draw one where not."""
        if not self._enough:
            self._draw()
        if self._enough and self.executor.free > 0:
            self._begin(self._proposer.take(self._scheduler.predict))

    def _draw(self) -> None:
        """Draw one point, and keep it in the batch if it may become a candidate.

        The sampler is not told of points that are drawn at random beyond limits: many of them would hide what is good.
        """
        at_random = self.draws_at_random
        explore = self._fruitless > 0 and self._fruitless % FRUITLESS_BEFORE_EXPLORING == 0
        draw = self._proposer.draw(self.state, at_random or explore)
        if draw.key in self._proposer:
            self._proposer.discard(draw)
        elif draw.key in self.state:
            self._fruitless += 1
            self._proposer.discard(draw)
        elif draw.cause is not None and at_random and draw.architecture is not None and draw.origin != "named":
            self._proposer.discard(draw)
        elif draw.cause is not None or draw.key in self.state.lowest:  # the latter as a reference: it costs nothing
            self._begin(draw)
        else:
            self._proposer.add(draw)

    def _begin(self, draw: Draw) -> None:
        """Record a proposal; a candidate is measured."""
        known = self.state.lowest.get(draw.key)
        proposal = self._proposer.record(draw, self.state.next_number, known)
        self.store.add_proposal(proposal)
        self.state.apply(proposal)
        self._proposer.recorded(draw, proposal)
        if proposal.status != "candidate":
            self._fruitless += 1
            self._update_journal()
            return
        self._scheduler.enter(proposal, draw.sizes)
        if known is None:
            self._measure(proposal)
        else:
            self._learn(proposal, known)

    def _resume(self, proposal: Proposal) -> None:
        """Measure a candidate of an earlier run."""
        architecture = self.candidates.space.architecture_type.from_json(proposal.architecture)
        try:
            sizes = self.candidates.sizes(architecture)
        except Exception:  # a third-party network may raise anything: measuring it says what is wrong
            sizes = {}
        self._scheduler.enter(proposal, sizes)
        self._measure(proposal)

    # ------------------------------------------------------------------------------------------------- trainings

    def _measure(self, proposal: Proposal) -> None:
        """On its way to the lowest rung."""
        architecture = self.candidates.space.architecture_type.from_json(proposal.architecture)
        self._running[proposal.key] = proposal
        self.executor.submit(self._job(proposal, architecture, self._rungs[0]))

    def _promote(self) -> bool:
        """Train the candidate that the scheduler chooses at a higher rung, where there is time for it."""
        promotion = self._scheduler.next_promotion()
        if promotion is None:
            return False
        proposal, rung = promotion
        self._promoting += 1
        architecture = self.candidates.space.architecture_type.from_json(proposal.architecture)
        self.executor.submit(self._job(proposal, architecture, rung))
        return True

    def _job(self, proposal: Proposal, architecture: Any, rung: Rung) -> Job:
        """At a rung of seconds, the job says how many steps they are for this architecture."""
        prices, steps = self.candidates.prices, None
        if rung.seconds is not None and prices is not None:
            steps = max(1, round(rung.seconds / prices.of_worker(self.candidates.work(architecture))))
        return Job.of(architecture, rung, self.state.seed, proposal.number, steps)

    def _finish(self, outcome: Outcome) -> None:
        """Write down first, decide afterwards."""
        measurement, job = outcome.measurement, outcome.job
        self.store.add(measurement)
        self.state.apply(measurement)
        if job.rung.key == self._rungs[0].key:
            self._learn(self._running.pop(measurement.key), measurement)
            name = f"trial {job.trial}"
        else:
            self._promoting -= 1
            self._scheduler.tell(measurement)
            name = f"trial {job.trial} {job.rung.name}"
        self.budget.save()
        self._listen(Event(self._progress(), name, measurement))

    def _learn(self, proposal: Proposal, measurement: Measurement) -> None:
        """What a measurement at the lowest rung says goes to the sampler and to the scheduler."""
        self._fruitless = self._fruitless + 1 if measurement.status == "infeasible" else 0
        self._proposer.tell(proposal, measurement)
        self._scheduler.tell(measurement)
        self._update_journal()

    # ---------------------------------------------------------------------------------------------- what is shown

    def _update_journal(self) -> None:
        if self._journal is not None:
            self._journal.update(self.state)

    def _progress(self) -> Progress:
        return Progress(
            stage="search",
            done=self.state.counts["done"],
            failed=self.state.counts["failed"],
            infeasible=self.state.infeasible_count,
            running=len(self._running) + self._promoting,
            best=self.state.best,
            total=self._trials,
            seconds_left=self.budget.left_to_search(self._share),
        )

    def _why_nothing(self) -> str:
        causes = [one.cause for one in self.state.measured if one.status == "failed"]
        if causes:
            return f"no candidate could be measured; the first failed with: {causes[0]}"
        if self.state.infeasible_count:
            raised = "search.time" if self.candidates.max_step_seconds is not None else "search.max_*"
            return f"none of {self.state.infeasible_count} proposals was within the limits; raise {raised}"
        if self.state.unsuggested:
            return self.state.unsuggested[0].cause or ""
        return "no candidate was measured in the time given"
