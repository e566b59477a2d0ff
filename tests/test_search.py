"""The loop: what it measures and what it never measures twice, when it ends, and that it may be killed anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sqlite3
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import sqlalchemy as sql
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

from nas import leaderboard
from nas.config import DataConfig, ExecutorConfig, Recipe, SearchConfig, TowersConfig
from nas.data import load
from nas.errors import LeaseLost, SearchError
from nas.evaluation.cost_model import Work
from nas.evaluation.evaluator import Job, Outcome, Setup, SpaceSpec
from nas.executor import Executor, InProcess
from nas.ladder import Rung, budget_for
from nas.ladder.ranker import FEW
from nas.progress import Budget, Event, Progress
from nas.search import loop as looping
from nas.search.candidates import Candidates, Prices
from nas.search.loop import Search
from nas.search.proposer import Draw, Proposer
from nas.search.scheduler import Scheduler
from nas.search.state import SearchState
from nas.search.study import CAUSE, study_of
from nas.space import Architecture, SearchSpace
from nas.store import Entry, Measurement, Store, open_database

RUNG = Rung("proxy", Recipe(epochs=1, augment=()), TowersConfig(placement="none"))
SHAPE = (1, 4, 4)
STUDY = "experiment"


# ----------------------------------------------------------------------------- a space and an executor to watch


class Dial(Architecture):
    width: int
    turn: int


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        if width == 13:
            raise ValueError("no network is 13 wide")
        self.first, self.last = nn.Linear(16, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)))


class Dials(SearchSpace):
    """`widths` times three architectures, each of which two proposals lead to. 20 parameters a width, and 3."""

    architecture_type = Dial

    def __init__(self, widths: int = 100, counted: bool = True, named: Mapping[str, tuple[int, int]] | None = None):
        super().__init__()
        self.widths, self.counted = widths, counted
        self._named = {name: {"width": width, "turn": turn} for name, (width, turn) in (named or {}).items()}

    def suggest(self, trial: Any) -> Dial:
        return Dial(width=trial.suggest_int("width", 1, self.widths), turn=trial.suggest_int("turn", 0, 5) // 2)

    def build(self, architecture: Any, input_shape: Any, num_classes: int) -> nn.Module:
        return Net(architecture.width)

    def size(self) -> int | None:
        return 3 * self.widths if self.counted else None

    def named(self) -> Mapping[str, Mapping[str, Any]]:
        return self._named


def loss(key: str) -> float:
    """A made-up score of an architecture."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:6], 16) / 16**6


def measured(job: Job) -> Outcome:
    """What a worker would make of a job, at once."""
    width = Dial.from_json(job.architecture).width
    signals = {"params": 20.0 * width + 3, "flops": 38.0 * width, "val_loss": loss(job.key)}
    signals["val_accuracy"] = 1 - signals["val_loss"]
    return Outcome(job, job.measurement("done", signals, {"seconds": 0.01, "images": 10.0}, ()), None)


@dataclass
class Instant(Executor):
    """Answers whoever waits, the job that came last first; keeps a list of what it was given."""

    workers: int = 1
    answer: Callable[[Job], Outcome] = measured
    given: list[Job] = field(default_factory=list)
    dies_at: int | None = None
    concurrent: bool = False
    _queue: deque[Job] = field(default_factory=deque)
    _answers: int = 0

    @property
    def running(self) -> int:
        return len(self._queue)

    def use(self, setting: Setup) -> None:
        raise NotImplementedError

    def submit(self, job: Job) -> None:
        assert self.free > 0 or self._answers == 0, "more than there are workers, other than at a resume"
        self.given.append(job)
        self._queue.append(job)

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        if timeout == 0 or not self._queue:
            return []
        self._answers += 1
        if self._answers == self.dies_at:
            raise Killed
        return [self.answer(self._queue.pop())]

    def close(self) -> None:
        self._queue.clear()


class Killed(Exception):
    """Stands for the death of the driver."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with all tables and nothing in them, which takes a while to make."""
    file = tmp_path_factory.mktemp("empty") / "study.db"
    engine = open_database(f"sqlite:///{file}")
    Store(engine, STUDY)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return file.read_bytes()


class Bed:
    """An experiment's database, and drivers that start on it."""

    def __init__(self, file: Path, content: bytes) -> None:
        self.file = file
        self.url = f"sqlite:///{file}"
        self.events: list[Event] = []
        self.objectives: Sequence[str] = ("loss",)
        self.rungs: Sequence[Rung] = (RUNG,)
        self.constraints: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda signals: {}
        self.chosen: tuple[str, float, float] | None = None
        file.write_bytes(content)

    def drive(
        self,
        executor: Executor,
        space: SearchSpace | None = None,
        trials: int | None = 8,
        sampler: str = "random",
        seconds: float | None = None,
        share: float = 1.0,
        max_step_seconds: float | None = None,
        full: float | None = None,
        check: Callable[[], None] = lambda: None,
        rungs: Sequence[Rung] = (RUNG,),
        **limits: Any,
    ) -> Progress:
        """A new driver, as after a restart."""
        engine = open_database(self.url)
        config = SearchConfig.model_validate({"sampler": sampler, **limits})
        self.objectives, self.rungs = config.objectives, rungs
        try:
            records = Store(engine, STUDY)
            prices = cast("Prices", ByParameters()) if full or max_step_seconds else None
            candidates = Candidates(space or Dials(), SHAPE, 3, config, prices, max_step_seconds)
            budget = Budget(records, seconds)
            listen = self.events.append
            self.constraints = candidates.constraints
            search = Search(candidates, rungs, 0, records, executor, budget, listen, check, full)
            progress = search.run(trials, share)
            self.chosen = search.chosen
            assert search.state == self.state(), "live and resumed searches have one state"
            return progress
        finally:
            engine.dispose()

    def records(self) -> Store:
        return Store(sql.create_engine(self.url, poolclass=sql.NullPool), STUDY)

    def entries(self) -> list[Entry]:
        return self.records().all()

    def state(self) -> SearchState:
        """As a driver that starts now computes it."""
        return SearchState.replay([one.key for one in self.rungs], 0, self.objectives[0], self.records().events())

    def trials(self) -> list[FrozenTrial]:
        return self.study().get_trials()

    def study(self) -> optuna.Study:
        """As Optuna's tools have it."""
        return study_of(self.state(), self.objectives, self.constraints, STUDY)

    def keys(self) -> list[str]:
        """Of each trial, its architecture."""
        return [Dial.from_json(trial.user_attrs["architecture"]).key for trial in self.trials()]

    def states(self) -> Counter[str]:
        return Counter(trial.state.name for trial in self.trials())


@pytest.fixture
def bed(tmp_path: Path, empty: bytes) -> Bed:
    return Bed(tmp_path / "study.db", empty)


@pytest.fixture
def beds(tmp_path: Path, empty: bytes) -> Callable[[], Bed]:
    numbers = iter(range(1000))
    return lambda: Bed(tmp_path / f"study{next(numbers)}.db", empty)


# --------------------------------------------------------------------------- several proposals for each candidate


def wide_is_good(job: Job) -> Outcome:
    """Scores that a proposal's values foretell, but for some noise."""
    outcome = measured(job)
    value = 1 - Dial.from_json(job.architecture).width / 100 + 0.2 * loss(job.key)
    signals = {**outcome.measurement.signals, "val_loss": value}
    return Outcome(job, job.measurement("done", signals, outcome.measurement.cost, ()), None)


def watch_draws(monkeypatch: pytest.MonkeyPatch, tell: Callable[[int, bool], None]) -> None:
    """Tell the number of each draw, and whether it is of chance."""
    draw = Proposer.draw

    def watched(proposer: Proposer, state: SearchState, at_random: bool) -> Any:
        drawn = draw(proposer, state, at_random)
        tell(drawn.number, at_random)
        return drawn

    monkeypatch.setattr(Proposer, "draw", watched)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of all draws."""
    numbers: list[int] = []
    watch_draws(monkeypatch, lambda number, at_random: numbers.append(number))
    return numbers


@pytest.fixture
def discarded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of those that were discarded."""
    numbers: list[int] = []
    discard = Proposer.discard

    def watched(draw: Draw) -> None:
        numbers.append(draw.number)
        discard(draw)

    monkeypatch.setattr(Proposer, "discard", staticmethod(watched))
    return numbers


def widths_of(executor: Instant) -> list[int]:
    return [Dial.from_json(job.architecture).width for job in executor.given]


@pytest.mark.parametrize("rungs", [(RUNG,), None], ids=["one rung", "ladder"])
def test_once_there_are_outcomes_the_proposal_that_promises_most_is_measured(
    beds: Callable[[], Bed], draws: list[int], discarded: list[int], rungs: Sequence[Rung] | None
) -> None:
    plain, screened = Instant(1, wide_is_good), Instant(1, wide_is_good)
    beds().drive(plain, trials=30, rungs=rungs or LADDER, proposals=1)
    assert len(draws) <= 32  # some are known
    assert len(draws) - len(discarded) == 30
    draws.clear()
    discarded.clear()
    bed = beds()
    progress = bed.drive(screened, trials=30, rungs=rungs or LADDER, proposals=4)
    assert progress.done == 30
    assert len(draws) >= 8 + 4 * 22
    lowest = [[job for job in one.given if job.rung.name == RUNG.name][FEW:] for one in (screened, plain)]
    late = [statistics.fmean(Dial.from_json(job.architecture).width for job in jobs) for jobs in lowest]
    assert late[0] > late[1] + 10
    assert [one.key for one in screened.given[:FEW]] == [one.key for one in plain.given[:FEW]]  # nothing known by then
    recorded = [one.draw for one in bed.records().proposals()]
    assert len(recorded) == 30  # those that were not taken have left no rows
    assert sorted([*recorded, *discarded]) == draws
    assert [one.number for one in bed.records().proposals()] == list(range(30))
    assert bed.states().keys() == {"COMPLETE"}


def test_who_turns_out_to_be_beyond_a_limit_or_fails_is_not_what_is_chosen_ever_more(beds: Callable[[], Bed]) -> None:
    """Wide ones are the best as far as scores tell, but too slow; or fail. Both show on the worker alone."""

    def too_slow(job: Job) -> Outcome:
        outcome = wide_is_good(job)
        if Dial.from_json(job.architecture).width <= 50:
            return outcome
        return job.failed("too slow", "infeasible", {**outcome.measurement.signals, "latency_ms": 2.0})

    def failing(job: Job) -> Outcome:
        return wide_is_good(job) if Dial.from_json(job.architecture).width <= 50 else job.failed("no memory")

    for answer in (too_slow, failing):
        wasted = []
        for proposals in (1, 4):
            executor = Instant(1, answer)
            beds().drive(executor, trials=30, max_latency=1.0, proposals=proposals)
            late = widths_of(executor)[15:]
            wasted.append(sum(width > 50 for width in late) / len(late))
        assert wasted[1] < wasted[0] / 2 < 0.4


def test_ever_so_many_proposals_measure_a_small_space_whole(bed: Bed) -> None:
    assert bed.drive(Instant(1, wide_is_good), Dials(widths=8), trials=None, proposals=64).done == 24


def test_for_every_second_candidate_proposals_are_drawn_at_random(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Instant(1, wide_is_good)
    drawn: dict[int, list[bool]] = defaultdict(list)
    watch_draws(monkeypatch, lambda number, at_random: drawn[len(executor.given)].append(at_random))
    for trials in (15, 24):  # in two runs
        bed.drive(executor, Dials(widths=10_000), trials=trials, rungs=(RUNG,), proposals=4)
    assert [drawn[number] for number in range(24)] == [[False]] * FEW + [[False] * 4, [True] * 4] * 8


def test_random_proposals_beyond_limits_are_few_and_the_sampler_is_not_told_of_them(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Instant(1, wide_is_good)
    drawn: dict[int, list[int]] = defaultdict(list)
    monkeypatch.setattr(looping, "FRUITLESS_BEFORE_EXPLORING", 10_000)  # else the sampler's are random at times, too
    watch_draws(monkeypatch, lambda number, at_random: drawn[len(executor.given)].append(number) if at_random else None)
    progress = bed.drive(executor, Dials(widths=1000), trials=20, rungs=(RUNG,), proposals=4, max_params=20 * 30 + 3)
    assert progress.done == 20
    assert max(map(len, drawn.values())) == 4
    at_random = {number for numbers in drawn.values() for number in numbers}
    assert not at_random & {one.draw for one in bed.records().proposals() if one.status == "infeasible"}


def test_no_worker_waits_for_what_is_drawn_at_random(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Instant(20, wide_is_good, concurrent=True)
    seen: set[tuple[bool, bool]] = set()
    watch_draws(monkeypatch, lambda number, at_random: seen.add((at_random, executor.free > 0)))
    bed.drive(executor, trials=60, proposals=4)
    assert seen == {(False, True), (False, False), (True, False)}


def test_several_objectives_have_no_best_proposal(bed: Bed, draws: list[int], discarded: list[int]) -> None:
    bed.drive(Instant(1, wide_is_good), trials=30, objectives=("loss", "params"), sampler="nsga2")
    assert len(draws) == len(bed.trials()) + len(discarded)  # of which the latter were known
    assert len(discarded) < 10


@pytest.mark.parametrize("workers", [1, 3])
def test_proposals_are_drawn_while_all_workers_are_busy_and_none_waits_for_more(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    executor, moments = Instant(workers, wide_is_good, concurrent=True), []
    watch_draws(monkeypatch, lambda *_: moments.append((executor.free, executor.running, len(executor.given))))
    bed.drive(executor, trials=40, proposals=4)
    ahead = Counter(given for free, _, given in moments if free == 0)
    assert max(ahead.values()) == 4
    assert len(ahead) >= 25
    kept_waiting = Counter(given for free, running, given in moments if free > 0 and running > 0)
    assert all(kept_waiting[given] <= 1 for given in ahead)  # one that was known or beyond the limits, at most
    assert statistics.fmean(widths_of(executor)[20:]) > 60


def test_a_point_that_a_person_asks_for_is_measured_whatever_it_promises(bed: Bed) -> None:
    executor = Instant(1, wide_is_good)
    bed.drive(executor, trials=15)
    bed.drive(executor, Dials(named={"worst": (1, 0), "poor": (2, 4)}), trials=17)
    assert widths_of(executor)[15:] == [1, 2]


# --------------------------------------------------------------------------------------------- duplicates


def test_no_architecture_is_measured_or_told_twice(bed: Bed, discarded: list[int]) -> None:
    executor = Instant()
    progress = bed.drive(executor, Dials(widths=4), trials=10)
    assert Counter(job.key for job in executor.given).most_common(1)[0][1] == 1
    assert len(executor.given) == len(bed.entries()) == progress.done == 10
    assert discarded  # there were duplicates
    keys = bed.keys()
    assert len(set(keys)) == len(keys) == 10
    assert [trial.values for trial in bed.trials()] == [[loss(key)] for key in keys]
    assert [entry.trial for entry in bed.entries()] == list(range(10))


def test_what_is_infeasible_is_told_once_over_all_runs(bed: Bed) -> None:
    """Three architectures are beyond the limit; each is one trial, whatever is drawn, and stays counted."""
    for _ in range(3):
        progress = bed.drive(Instant(), Dials(widths=3), trials=None, max_params=45)
        assert (progress.done, progress.infeasible) == (6, 3)
    assert len(bed.keys()) == len(set(bed.keys())) == 9
    assert bed.states() == {"COMPLETE": 6, "PRUNED": 3}


def test_a_duplicate_of_a_running_candidate_is_discarded(bed: Bed, discarded: list[int]) -> None:
    space = Dials(named={"one": (5, 2), "the same": (5, 3), "another": (6, 0)})
    executor = Instant(workers=2)
    bed.drive(executor, space, trials=2)
    first, another = bed.trials()
    assert len(executor.given) == 2
    assert discarded == [1]
    assert first.values == [loss(space.point(space.named()["one"]).key)]
    assert another.values != first.values
    assert [entry.trial for entry in bed.entries()] == [0, 1]


def test_after_many_duplicates_in_a_row_one_point_is_drawn_at_random(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looping, "DRAWS_WITHOUT_CANDIDATE", 50)
    explored: list[bool] = []
    watch_draws(monkeypatch, lambda number, at_random: explored.append(at_random))
    bed.drive(Instant(), Dials(widths=1, counted=False), trials=None)
    assert [number for number, explore in enumerate(reversed(explored)) if explore] == [9, 29]  # the 40th and 20th


# ----------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_small_space_is_measured_whole_and_then_the_search_ends(bed: Bed, sampler: str) -> None:
    executor = Instant(workers=2)
    progress = bed.drive(executor, Dials(widths=3), trials=None, sampler=sampler)
    assert len({job.key for job in executor.given}) == len(executor.given) == progress.done == 9
    bed.drive(executor, Dials(widths=3), trials=100, sampler=sampler)
    assert len(executor.given) == 9
    assert "RUNNING" not in bed.states()


def test_infeasible_architectures_count_as_seen_in_a_small_space(bed: Bed) -> None:
    executor = Instant()
    progress = bed.drive(executor, Dials(widths=3), trials=None, max_params=45)
    assert (progress.done, progress.infeasible) == (6, 3)
    assert {Dial.from_json(job.architecture).width for job in executor.given} == {1, 2}


def test_a_space_of_unknown_size_ends_when_proposals_bring_nothing_new(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looping, "DRAWS_WITHOUT_CANDIDATE", 30)
    progress = bed.drive(Instant(), Dials(widths=1, counted=False), trials=None)
    assert progress.done == len(bed.trials()) == 3


@pytest.mark.parametrize("workers", [1, 3])
def test_there_are_as_many_candidates_as_asked_for_and_more_may_be_asked_for(bed: Bed, workers: int) -> None:
    executor = Instant(workers)
    assert bed.drive(executor, trials=5).done == 5
    assert bed.drive(executor, trials=5).done == 5
    assert len(executor.given) == len(bed.entries()) == 5
    assert bed.drive(executor, trials=7).done == 7
    assert bed.drive(executor, trials=3).done == 7
    assert len(executor.given) == len(bed.entries()) == 7


def test_a_time_budget_is_spent_over_all_runs(bed: Bed) -> None:
    def slow(job: Job) -> Outcome:
        time.sleep(0.1)
        return measured(job)

    executor = Instant(2, slow)
    progress = bed.drive(executor, trials=None, seconds=0.7)
    first = progress.done
    assert 2 <= first <= 8
    assert progress.seconds_left == 0
    assert sum(bed.records().fact("spent").values()) >= 0.7
    assert "RUNNING" not in bed.states()  # what has begun is finished and told
    assert bed.drive(executor, trials=None, seconds=0.7).done == first  # nothing left
    assert bed.drive(executor, trials=None, seconds=1.5).done > first
    assert bed.drive(executor, trials=first, seconds=1000).done > first


def test_the_search_has_its_share_of_the_budget(bed: Bed) -> None:
    def slow(job: Job) -> Outcome:
        time.sleep(0.1)
        return measured(job)

    progress = bed.drive(Instant(1, slow), trials=None, seconds=10, share=0.05)
    assert 1 <= progress.done <= 6
    spent = bed.records().fact("spent")
    assert 0.5 <= spent["search"] < 5
    budget = Budget(bed.records(), 10)
    assert budget.left_to_search(0.05) == 0
    assert budget.left_to_search(1.0) == pytest.approx(10 - spent["search"], abs=1)
    assert budget.left() == pytest.approx(10 - sum(spent.values()), abs=1)
    assert Budget(bed.records(), None).left() is Budget(bed.records(), None).left_to_search(0.5) is None


# -------------------------------------------------------------------------------------- durable, then told


def test_a_measurement_is_durable_before_anything_learns_of_it(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[int]] = {"Proposer": [], "Scheduler": []}

    def watched(kind: Any, counts: list[int]) -> None:
        original = kind.tell

        def tell(one: Any, *what: Any) -> None:
            with sqlite3.connect(bed.file) as other:  # as another process sees it
                counts.append(other.execute("SELECT count(*) FROM nas_evaluations").fetchone()[0])
            original(one, *what)

        monkeypatch.setattr(kind, "tell", tell)

    watched(Proposer, told["Proposer"])
    watched(Scheduler, told["Scheduler"])
    bed.drive(Instant(answer=lambda job: measured(job) if loss(job.key) < 0.7 else job.failed("it broke")), trials=6)
    assert told == {"Proposer": [1, 2, 3, 4, 5, 6], "Scheduler": [1, 2, 3, 4, 5, 6]}
    assert {"COMPLETE", "FAIL"} == set(bed.states())


def test_a_proposal_is_durable_before_it_is_trained(bed: Bed) -> None:
    def answer(job: Job) -> Outcome:
        with sqlite3.connect(bed.file) as other:
            keys = {key for (key,) in other.execute("SELECT key FROM nas_proposals")}
        assert job.key in keys
        return measured(job)

    assert bed.drive(Instant(3, answer), trials=6).done == 6


def test_a_driver_that_lost_its_lease_writes_nothing_more(bed: Bed) -> None:
    """Taken over while a candidate trains: its outcome is not written down, nor is anything else."""
    executor = Instant()

    def check() -> None:
        if len(executor.given) >= 3 and (len(executor.given) > 3 or not executor.running):
            raise LeaseLost("another driver took over")

    with pytest.raises(LeaseLost):
        bed.drive(executor, check=check)
    assert len(bed.entries()) == 2
    assert bed.states() == {"COMPLETE": 2, "RUNNING": 1}
    with pytest.raises(LeaseLost):  # nor does such a driver ask for more
        bed.drive(executor, check=check)
    assert bed.states() == {"COMPLETE": 2, "RUNNING": 1}


# ------------------------------------------------------------------------------------ failures and limits


def test_failures_are_written_down_and_do_not_end_the_search(bed: Bed) -> None:
    def answer(job: Job) -> Outcome:
        return job.failed(f"{job.key} broke") if loss(job.key) < 0.5 else measured(job)

    progress = bed.drive(Instant(answer=answer), trials=10)
    assert progress.done + progress.failed == 10
    assert progress.failed > 0
    assert progress.best is not None
    assert progress.best >= 0.5
    for trial, key in zip(bed.trials(), bed.keys(), strict=True):
        assert trial.state == (TrialState.FAIL if loss(key) < 0.5 else TrialState.COMPLETE)
        assert trial.user_attrs.get(CAUSE) == (f"{key} broke" if loss(key) < 0.5 else None)
    causes = {e.measurement.cause for e in bed.entries() if e.measurement.status == "failed"}
    assert len(causes) == progress.failed


def test_a_network_that_cannot_even_be_built_is_left_to_the_worker(bed: Bed) -> None:
    executor = Instant(
        answer=lambda job: job.failed("no network is 13 wide") if '"width":13' in job.architecture else measured(job)
    )
    progress = bed.drive(executor, Dials(named={"impossible": (13, 0)}), trials=3)
    assert (progress.done, progress.failed) == (2, 1)
    assert bed.trials()[0].user_attrs[CAUSE] == "no network is 13 wide"


class Picky(Dials):
    """Refuses some of the values it asked for, as a validator of its architecture may."""

    def suggest(self, trial: Any) -> Dial:
        if (dial := super().suggest(trial)).width > self.widths // 2:
            raise ValueError("this wide\nis no architecture")
        return dial


def test_a_space_that_makes_nothing_of_some_values_does_not_end_the_search(bed: Bed) -> None:
    assert bed.drive(Instant(), Picky()).done == 8
    causes = {trial.user_attrs[CAUSE] for trial in bed.trials() if trial.state == TrialState.FAIL}
    assert causes == {"suggest failed: ValueError: this wide is no architecture"}


def test_a_space_that_makes_nothing_at_all_says_why(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looping, "DRAWS_WITHOUT_CANDIDATE", 5)
    with pytest.raises(SearchError, match="suggest failed: ValueError: this wide"):
        bed.drive(Instant(), Picky(widths=1))
    assert bed.states() == {"FAIL": 5}


@pytest.mark.parametrize("limits", [{"max_params": 1003}, {"max_flops": 38 * 50 + 37}])
def test_what_is_beyond_the_limits_is_told_so_and_never_trained(bed: Bed, limits: dict[str, int]) -> None:
    executor = Instant()
    progress = bed.drive(executor, trials=8, **limits)
    widths = [Dial.from_json(trial.user_attrs["architecture"]).width for trial in bed.trials()]
    assert {trial.number for trial in bed.trials() if trial.state == TrialState.PRUNED} == {
        number for number, width in enumerate(widths) if width > 50
    }
    assert bed.states()["COMPLETE"] == progress.done == 8
    assert progress.infeasible == bed.states()["PRUNED"] > 0
    assert all(Dial.from_json(job.architecture).width <= 50 for job in executor.given)
    for trial, width in zip(bed.trials(), widths, strict=True):
        (name, limit) = next(iter(limits.items()))
        cost = 20 * width + 3 if name == "max_params" else 96 * width  # not what the made-up signals say
        assert set(trial.constraints) == {name.removeprefix("max_")}
        if name == "max_params":
            assert trial.constraints["params"] == pytest.approx(cost / limit - 1)
        assert (trial.constraints[name.removeprefix("max_")] > 0) is (width > 50)
        assert ("over the limit" in trial.user_attrs.get(CAUSE, "")) is (width > 50)


def test_a_limit_that_the_time_sets_holds_too(bed: Bed) -> None:
    executor = Instant()
    bed.drive(executor, max_step_seconds=1003.0)
    bed.drive(executor, trials=12)
    assert max(Dial.from_json(job.architecture).width for job in executor.given[:8]) <= 50


def test_over_the_latency_limit_is_infeasible_once_measured(bed: Bed) -> None:
    def answer(job: Job) -> Outcome:
        outcome = measured(job)
        signals = {**outcome.measurement.signals, "latency_ms": 10 * loss(job.key)}
        if signals["latency_ms"] > 5:
            return job.failed(
                "latency_ms is over the limit", "infeasible", {"params": 1.0, "latency_ms": signals["latency_ms"]}
            )
        return Outcome(job, job.measurement("done", signals, outcome.measurement.cost, ()), None)

    executor = Instant(answer=answer)
    progress = bed.drive(executor, max_latency=5.0, trials=10)
    assert progress.done == 10  # of those asked for, these do not count ...
    assert progress.infeasible == len(executor.given) - 10 > 0
    assert bed.drive(executor, max_latency=5.0, trials=12).done == 12
    assert len({job.key for job in executor.given}) == len(executor.given)  # ... but they are written down
    for trial, key in zip(bed.trials(), bed.keys(), strict=True):
        assert trial.constraints["latency_ms"] == pytest.approx(2 * loss(key) - 1)
        assert trial.state == (TrialState.PRUNED if loss(key) > 0.5 else TrialState.COMPLETE)


@pytest.mark.parametrize("sampler", ["gp", "tpe", "nsga2"])
def test_every_completed_trial_has_the_same_constraints_which_gp_insists_on(bed: Bed, sampler: str) -> None:
    space = Dials(named={"one": (5, 2), "the same": (5, 3)})
    bed.drive(Instant(), space, trials=11, sampler=sampler, max_params=1003)
    names = [set(trial.constraints) for trial in bed.trials() if trial.state == TrialState.COMPLETE]
    assert len(names) >= 11
    assert all(one == {"params"} for one in names)


@pytest.mark.parametrize(
    ("limits", "answer", "message"),
    [
        ({"max_params": 1}, measured, r"none of 9 proposals was within the limits; raise search.max_\*"),
        ({}, lambda job: job.failed("it broke"), "no candidate could be measured; the first failed with: it broke"),
        (
            {"max_latency": 1},
            lambda job: job.failed("latency_ms is over the limit", "infeasible", {"latency_ms": 3.0}),
            r"none of 9 proposals was within the limits; raise search.max_\*",
        ),
    ],
)
def test_a_search_without_a_single_candidate_says_why(
    bed: Bed, limits: dict[str, Any], answer: Callable[[Job], Outcome], message: str
) -> None:
    with pytest.raises(SearchError, match=f"^{message}$"):
        bed.drive(Instant(answer=answer), Dials(widths=3), trials=None, **limits)
    assert "RUNNING" not in bed.states()


def test_a_budget_that_is_spent_still_measures_one_candidate(bed: Bed) -> None:
    executor = Instant()
    assert bed.drive(executor, trials=None, seconds=1e-9).done == 1
    assert bed.drive(executor, trials=None, seconds=1e-9).done == 1


# ------------------------------------------------------------------------------------------- rungs of seconds


TIMED = (
    Rung("proxy", Recipe(), TowersConfig(), seconds=1000.0),
    Rung("x3", Recipe(), TowersConfig(), seconds=3000.0),
)


class ByParameters:
    """Steps that take a second a parameter."""

    def of_whole(self, work: Work) -> float:
        return float(work.parameters)

    of_worker = of_whole


def test_jobs_of_timed_rungs_have_the_steps_of_their_seconds(bed: Bed) -> None:
    executor = Instant(answer=wide_is_good)
    bed.drive(executor, trials=20, rungs=TIMED, full=27_000.0)
    assert {job.rung.name for job in executor.given} == {"proxy", "x3"}  # and nothing is trained fully
    for job in executor.given:
        width = Dial.from_json(job.architecture).width
        assert job.rung.seconds is not None
        assert job.steps == max(1, round(job.rung.seconds / (20 * width + 3)))


def test_the_expected_full_score_chooses_among_the_measured(bed: Bed) -> None:
    executor = Instant(answer=wide_is_good)
    bed.drive(executor, trials=30, rungs=TIMED, full=27_000.0)
    assert bed.chosen is not None
    key, mean, deviation = bed.chosen
    widths = {job.key: Dial.from_json(job.architecture).width for job in executor.given}
    assert key in widths
    assert widths[key] > sorted(widths.values())[len(widths) // 2]  # wide is good
    assert mean > 0
    assert deviation > 0
    bed.drive(Instant(), trials=30, rungs=TIMED, full=27_000.0)
    assert bed.chosen[0] == key  # the same from the same measurements


def test_without_timed_rungs_scores_choose(bed: Bed) -> None:
    bed.drive(Instant())
    assert bed.chosen is None


def test_under_a_budget_the_named_points_within_it_come_first(bed: Bed) -> None:
    executor = Instant()
    named = {"small": (5, 2), "large": (60, 2), "middle": (30, 2)}
    bed.drive(executor, Dials(named=named), trials=4, max_step_seconds=1003.0)
    assert [Dial.from_json(job.architecture).width for job in executor.given[:2]] == [5, 30]


# ------------------------------------------------------------------------------------ warm start, references


NAMED = {"small": (3, 0), "large": (90, 4), "middle": (40, 2)}


@pytest.mark.parametrize(("chosen", "widths"), [(None, [3, 90, 40]), (("middle", "small"), [40, 3]), ((), [])])
def test_warm_start_points_come_first(bed: Bed, chosen: tuple[str, ...] | None, widths: list[int]) -> None:
    executor = Instant()
    bed.drive(executor, Dials(named=NAMED), trials=5, sampler="tpe", warm_start=chosen)
    bed.drive(executor, Dials(named=NAMED), trials=8, sampler="tpe", warm_start=chosen)
    first = [Dial.from_json(job.architecture).width for job in executor.given]
    assert first[: len(widths)] == widths
    assert not widths or all(first.count(width) == 1 for width in widths)
    assert len(executor.given) == 8


def test_what_was_measured_as_a_reference_becomes_a_candidate_without_training(bed: Bed) -> None:
    space = Dials(named=NAMED)
    reference = space.point(space.named()["large"])
    bed.records().add(measured(Job.of(reference, RUNG, 0)).measurement)
    executor = Instant()
    assert bed.drive(executor, space, trials=4).done == 4
    assert reference.key not in {job.key for job in executor.given}
    assert len(executor.given) == 3
    assert {e.measurement.key: e.trial for e in bed.entries()}[reference.key] == 1
    assert bed.trials()[1].values == [loss(reference.key)]


def test_a_reference_beyond_the_latency_limit_is_no_candidate(bed: Bed) -> None:
    """Limits are not for references; a candidate's latency is known from where it was measured as one."""
    space = Dials(named=NAMED)
    slow = measured(Job.of(space.point(space.named()["large"]), RUNG, 0)).measurement
    bed.records().add(dataclasses.replace(slow, signals={**slow.signals, "latency_ms": 9.0}))
    progress = bed.drive(Instant(), space, trials=4, max_latency=6.0)
    assert (progress.done, progress.infeasible) == (4, 1)
    assert slow.key not in {e.measurement.key for e in bed.entries() if e.trial is not None}
    assert bed.trials()[1].constraints["latency_ms"] == pytest.approx(0.5)


def test_measurements_of_another_rung_or_seed_are_never_taken_for_this_one(bed: Bed) -> None:
    """Rungs are never mixed, nor in what the sampler learns from."""
    space = Dials(named=NAMED)
    for rung, seed in ((Rung("proxy", Recipe(epochs=2), RUNG.towers), 0), (RUNG, 1)):
        other = measured(Job.of(space.point(space.named()["small"]), rung, seed)).measurement
        bed.records().add(Measurement(**{**vars(other), "signals": {"val_loss": -1.0}}))
    executor = Instant()
    progress = bed.drive(executor, space, trials=3)
    assert progress.done == len(executor.given) == 3
    assert progress.best is not None
    assert progress.best >= 0
    assert min(trial.values[0] for trial in bed.trials()) >= 0


# ------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(("sampler", "workers"), [("random", 1), ("random", 3), ("tpe", 1)])
def test_a_search_killed_at_any_outcome_goes_on_as_if_nothing_had_happened(
    beds: Callable[[], Bed], sampler: str, workers: int
) -> None:
    trials = 4 if sampler == "random" else 12  # tpe begins after ten
    settings: dict[str, Any] = {"sampler": sampler, "trials": trials, "max_params": 1603}
    space = Dials(named={"large": (90, 4), "middle": (40, 2)})
    whole = beds()
    whole.drive(Instant(workers), space, **settings)
    for k in range(1, 5) if sampler == "random" else (2, 11):
        bed = beds()
        killed, after = Instant(workers, dies_at=k), Instant(workers)
        with pytest.raises(Killed):
            bed.drive(killed, space, **settings)
        assert len(bed.entries()) == k - 1
        done = {entry.measurement.key for entry in bed.entries()}
        progress = bed.drive(after, space, **settings)
        assert progress.done == trials
        assert not done & {job.key for job in after.given}  # what is written down is not measured again
        assert len(after.given) == trials - (k - 1)
        assert {e.measurement.key for e in bed.entries()} == {e.measurement.key for e in whole.entries()}
        assert set(bed.keys()) == set(whole.keys())
        assert "RUNNING" not in bed.states()
        if workers == 1:
            assert bed.keys() == whole.keys()
            assert [t.values for t in bed.trials()] == [t.values for t in whole.trials()]


@contextmanager
def death_before_commit(number: int) -> Iterator[None]:
    """The driver dies before the database's so-manieth commit; what was committed stays."""
    commits = 0

    def count(_: sql.Connection) -> None:
        nonlocal commits
        commits += 1
        if commits == number:
            raise Killed

    sql.event.listen(sql.Engine, "commit", count)
    try:
        yield
    finally:
        sql.event.remove(sql.Engine, "commit", count)


@pytest.mark.slow
def test_a_search_killed_before_any_commit_loses_nothing_and_counts_nothing_twice(beds: Callable[[], Bed]) -> None:
    """Six architectures, of which three are over the limit and one fails, with duplicates and a warm start."""

    def answer(job: Job) -> Outcome:
        return job.failed("it broke") if job.architecture == '{"turn":1,"width":1}' else measured(job)

    space = Dials(widths=2, named={"best": (1, 0), "same": (1, 1)})
    settings: dict[str, Any] = {"trials": None, "max_params": 25}
    whole = beds()
    progress = whole.drive(Instant(2, answer), space, **settings)
    assert (progress.done, progress.failed, progress.infeasible) == (2, 1, 3)
    expected = {e.measurement.key: e.measurement for e in whole.entries()}

    number = 0
    while True:
        number += 3
        bed = beds()
        killed, after = Instant(2, answer), Instant(2, answer)
        try:
            with death_before_commit(number):
                bed.drive(killed, space, **settings)
        except Killed:
            pass
        else:
            break
        written = {e.measurement.key for e in bed.entries()}
        bed.drive(after, space, **settings)
        assert {e.measurement.key: e.measurement for e in bed.entries()} == expected
        assert not written & {job.key for job in after.given}, number
        assert len({job.key for job in after.given}) == len(after.given), number
        for trial in bed.trials():
            assert trial.state.is_finished(), number
            if trial.state == TrialState.COMPLETE:
                key = Dial.from_json(trial.user_attrs["architecture"]).key
                assert trial.values == [expected[key].signals["val_loss"]]
    assert number > 15, "the search made fewer commits than there are places to die"


@pytest.mark.slow
@pytest.mark.parametrize("concurrent", [False, True])
def test_a_search_killed_with_proposals_in_hand_forgets_them_and_nothing_else(
    beds: Callable[[], Bed], concurrent: bool
) -> None:
    settings: dict[str, Any] = {"trials": 14, "max_params": 20 * 30 + 3, "proposals": 4}
    space = Dials(widths=40)
    for number in range(20, 1000, 9):
        bed = beds()
        killed, after = (Instant(2, wide_is_good, concurrent=concurrent) for _ in range(2))
        try:
            with death_before_commit(number):
                bed.drive(killed, space, **settings)
        except Killed:
            pass
        else:
            break
        written = {e.measurement.key for e in bed.entries()}
        progress = bed.drive(after, space, **settings)
        assert progress.done == len(bed.entries()) == 14, number
        assert not written & {job.key for job in after.given}, number
        assert len({job.key for job in after.given}) == len(after.given), number
        assert all(trial.state.is_finished() for trial in bed.trials()), number
    assert number > 45


# ----------------------------------------------------------------------------------------- what one sees


def test_each_measurement_is_told_to_the_listener_with_where_the_work_stands(bed: Bed) -> None:
    bed.drive(Instant(answer=lambda job: measured(job) if loss(job.key) < 0.8 else job.failed("it broke")), trials=6)
    events = [event for event in bed.events if event.measurement is not None]
    assert [event.measurement for event in events] == [entry.measurement for entry in bed.entries()]
    assert [event.name for event in events] == [f"trial {entry.trial}" for entry in bed.entries()]
    losses: list[float] = []
    for number, event in enumerate(events, 1):
        assert event.measurement is not None
        losses += [event.measurement.signals["val_loss"]] if event.measurement.status == "done" else []
        assert (event.progress.done, event.progress.failed) == (len(losses), number - len(losses))
        assert event.progress.best == min(losses, default=None)
        assert (event.progress.stage, event.progress.total) == ("search", 6)


def test_accuracy_is_maximised(bed: Bed) -> None:
    progress = bed.drive(Instant(), objectives=("accuracy", "params"), sampler="nsga2", trials=6)
    assert progress.best == max(entry.measurement.signals["val_accuracy"] for entry in bed.entries())
    study = bed.study()
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    for trial, key in zip(study.trials, bed.keys(), strict=True):
        assert trial.values == [1 - loss(key), 20 * trial.params["width"] + 3]


# ------------------------------------------------------------------------------------------------ ladder


LADDER = tuple(
    Rung(name, Recipe(epochs=epochs, augment=()), RUNG.towers) for name, epochs in (("proxy", 1), ("x3", 3), ("x9", 9))
)


def climbing(job: Job) -> Outcome:
    """Scores that differ from rung to rung; time by epochs."""
    outcome = measured(job)
    signals = {**outcome.measurement.signals, "val_loss": loss(job.key + job.rung.name)}
    signals["val_accuracy"] = 1 - signals["val_loss"]
    cost = {"seconds": 0.01 * job.rung.epochs, "images": 10.0}
    return Outcome(job, job.measurement("done", signals, cost, ()), None)


def by_rung(entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {rung.name: {} for rung in LADDER}
    for one in (entry.measurement for entry in entries):
        found[one.rung.partition("-")[0]][one.key] = one.signals.get("val_loss", math.inf)
    return found


@pytest.mark.parametrize("workers", [1, 3])
def test_the_best_are_measured_at_a_higher_rung_and_optuna_hears_of_the_lowest_alone(bed: Bed, workers: int) -> None:
    bed.drive(Instant(workers, climbing), trials=60, rungs=LADDER)
    found = by_rung(bed.entries())
    lowest, highest = found["proxy"], found["x9"]
    assert len(lowest) == 60
    assert 15 <= len(found["x3"]) <= 25
    assert 8 <= len(highest) <= 12
    assert set(highest) <= set(found["x3"]) <= set(lowest)
    assert statistics.median(lowest[key] for key in highest) < statistics.quantiles(lowest.values(), n=3)[0]
    told = {trial.user_attrs["architecture"]: trial.values for trial in bed.trials()}
    for text, values in told.items():
        assert values == [lowest[Dial.from_json(text).key]]
    assert all(entry.trial is not None for entry in bed.entries())
    keys = [rung.key for rung in LADDER]
    rows = leaderboard.board(bed.entries(), keys, None, "loss", {})
    assert [row.rung for row in rows] == sorted((row.rung for row in rows), key=["x9", "x3", "proxy"].index)
    assert rows[0].loss == min(highest.values())
    assert leaderboard.in_order(bed.entries(), keys, "loss")[0].key == rows[0].key


def test_promotions_from_stand_ins_are_paid_by_what_those_cost(bed: Bed) -> None:
    rungs = (dataclasses.replace(LADDER[0], shrink=2, share=0.25), LADDER[2])
    bed.drive(executor := Instant(1, climbing), trials=108, rungs=rungs)
    names = Counter(job.rung.name for job in executor.given)
    assert names == {"proxy": 108, "x9": budget_for(108, [0.25, 9])[1]}
    assert names["x9"] == 6  # 27 passes below are worth 3 full trainings, which are two thirds


def test_a_promotion_does_not_wait_for_the_lowest_rung_to_be_done(bed: Bed) -> None:
    executor = Instant(1, climbing)
    bed.drive(executor, trials=60, rungs=LADDER)
    names = [job.rung.name for job in executor.given]
    assert 1 < names.index("x9") < 20
    assert max(place for place, name in enumerate(names) if name == "proxy") > len(names) / 2


def test_nobody_is_promoted_where_few_candidates_are_wanted(bed: Bed) -> None:
    bed.drive(executor := Instant(1, climbing), trials=2, rungs=(LADDER[0], LADDER[2]))
    assert [job.rung.name for job in executor.given] == ["proxy"] * 2


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("rungs", [LADDER, (LADDER[0], LADDER[2])])
def test_with_time_alone_full_training_comes_as_late_as_it_fits(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, rungs: Sequence[Rung], workers: int
) -> None:
    """A virtual clock, by which each job takes its seconds, as if its worker had been alone with it."""
    now, ended = [0.0], dict[str, list[float]]()
    monkeypatch.setattr("nas.progress.time", SimpleNamespace(monotonic=lambda: now[0]))

    def passing(job: Job) -> Outcome:
        outcome = climbing(job)
        now[0] += outcome.measurement.cost["seconds"] / workers
        ended.setdefault(job.rung.name, []).append(now[0])
        return outcome

    bed.drive(Instant(workers, passing), trials=None, seconds=1.0, rungs=rungs)
    lowest, full = ended["proxy"], ended["x9"]
    spent = {rung.name: rung.epochs * len(ended[rung.name]) for rung in rungs}
    assert 0.2 < spent["x9"] / sum(spent.values()) < 0.7
    before = sum(end < full[0] for end in lowest)  # nearly all new candidates, of whom the first could be chosen
    assert before >= 0.65 * len(lowest)
    assert 0.85 < now[0] <= 1.0 + 0.09
    if len(rungs) == 3:
        assert spent["x3"] == pytest.approx(spent["proxy"], rel=0.3)
        assert ended["x3"][0] < 0.2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_ladder_killed_at_any_outcome_goes_on_as_if_nothing_had_happened(
    beds: Callable[[], Bed], workers: int
) -> None:
    whole = beds()
    uninterrupted = Instant(workers, climbing)
    whole.drive(uninterrupted, Dials(widths=12), trials=20, rungs=LADDER)
    promoted = len(by_rung(whole.entries())["x9"])
    assert promoted >= 1
    for k in range(3, len(uninterrupted.given) + 1, 3):
        bed = beds()
        killed, after = Instant(workers, climbing, dies_at=k), Instant(workers, climbing)
        with pytest.raises(Killed):
            bed.drive(killed, Dials(widths=12), trials=20, rungs=LADDER)
        before = {(e.measurement.key, e.measurement.rung) for e in bed.entries()}
        bed.drive(after, Dials(widths=12), trials=20, rungs=LADDER)
        assert not before & {(job.key, job.rung.key) for job in after.given}
        found = by_rung(bed.entries())
        assert set(found["proxy"]) == set(by_rung(whole.entries())["proxy"])
        assert len(found["x9"]) == promoted


def test_who_fails_at_a_rung_keeps_its_place_below_and_is_not_tried_again(bed: Bed) -> None:
    def answer(job: Job) -> Outcome:
        return climbing(job) if job.rung.name == "proxy" else job.failed("no memory")

    executor = Instant(1, answer)
    bed.drive(executor, trials=40, rungs=LADDER)
    bed.drive(executor, trials=40, rungs=LADDER)
    promotions = [job.key for job in executor.given if job.rung.name != "proxy"]
    assert len(promotions) == len(set(promotions)) >= 2
    rows = leaderboard.board(bed.entries(), [rung.key for rung in LADDER], None, "loss", {})
    assert {row.status for row in rows} == {"done"}
    assert {row.rung for row in rows} == {"proxy"}


def test_nobody_is_promoted_for_whom_there_is_no_time(bed: Bed) -> None:
    def slow(job: Job) -> Outcome:
        outcome = climbing(job)
        cost = {"seconds": 1e6, "images": 10.0}
        return Outcome(job, dataclasses.replace(outcome.measurement, cost=cost), None)

    executor = Instant(1, slow)
    bed.drive(executor, trials=40, seconds=1000.0, rungs=LADDER)
    assert {job.rung.name for job in executor.given} == {"proxy"}


def test_real_candidates_of_a_real_space_on_real_data(bed: Bed) -> None:
    data = load(DataConfig()).without_test()
    spec = SpaceSpec.of("inception", {"widths": [8, 8, 8], "stem": [8, 8]})
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    limits = SearchConfig(max_params=20_000)
    try:
        with InProcess(ExecutorConfig()) as executor:
            executor.use(Setup(spec, data, limits))
            engine = open_database(bed.url)
            records = Store(engine, STUDY)
            candidates = Candidates(spec.load(), data.input_shape, 10, limits)
            rung = Rung("proxy", Recipe(epochs=1, augment=()), TowersConfig())
            arguments = (candidates, [rung], 0, records, executor, Budget(records, None), bed.events.append)
            progress = Search(*arguments).run(trials=3)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_flush_denormal(False)
    assert progress.done == 3
    assert progress.best == min(e.measurement.signals["val_loss"] for e in bed.entries())
    for entry in bed.entries():
        assert entry.measurement.signals["params"] <= 20_000
        counted, _ = candidates.excess(spec.load().architecture_type.from_json(entry.measurement.architecture))
        assert counted["params"] == entry.measurement.signals["params"] / 20_000 - 1
