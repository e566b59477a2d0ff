"""Retraining: what fits into the time, who stands beside the winner, and weights that precede their record."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import sqlalchemy as sql
import torch

from nas.config import DataConfig, ExecutorConfig, Recipe, SearchConfig, TowersConfig
from nas.data import Data, load
from nas.errors import LeaseLost
from nas.evaluation.evaluator import Job, Setup, SpaceSpec
from nas.executor import Executor, InProcess
from nas.ladder import Rung
from nas.progress import Budget, Event
from nas.search.candidates import Candidates
from nas.space import Architecture
from nas.steps import retrain
from nas.steps.retrain import NAMED_REFERENCES, RANDOM_REFERENCES, SAFETY, affordable_epochs, references
from nas.store import Measurement, Store

SPEC = SpaceSpec.of("inception", {"widths": [8, 8, 8], "stem": [8, 8]})
RECIPE = Recipe(epochs=1, images=256, augment=())
PROXY = Rung("proxy", RECIPE, TowersConfig())
FINAL = Rung("retrain", RECIPE, TowersConfig(), final=True)


def candidates(**limits: Any) -> Candidates:
    return Candidates(SPEC.load(), (1, 8, 8), 10, SearchConfig.model_validate(limits))


def probe(seconds: float = 1.0, images: float = 1000.0, flops: float = 1e6) -> Measurement:
    signals, cost = {"flops": flops}, {"seconds": seconds, "images": images}
    return Measurement("{}", "key", "proxy-1", 0, "done", signals, cost)


# ----------------------------------------------------------------------------------- what fits into the time


def test_affordable_epochs_by_hand() -> None:
    one = probe(seconds=2, images=1000)  # 2 ms an image
    assert affordable_epochs(100, [one], 1000, 1) == int(SAFETY * 50) == 42
    assert affordable_epochs(100, [one] * 4, 1000, 1) == 10
    assert affordable_epochs(100, [one] * 4, 1000, 2) == 21
    assert affordable_epochs(100, [one] * 4, 1000, 3) == 21  # one worker has two of them
    assert affordable_epochs(100, [one] * 4, 1000, 100) == 42
    assert affordable_epochs(100, [one, probe(seconds=6)], 1000, 2) == 14  # the slowest decides
    assert affordable_epochs(100, [one, one, probe(seconds=3)], 1000, 2) == 21  # the longest goes first: 3 beside 2 + 2
    assert affordable_epochs(0.001, [one], 1000, 1) == 1


# ------------------------------------------------------------------------------------------------ references


def test_references_are_the_same_each_time_and_within_the_limits() -> None:
    limited = candidates(max_params=6000)
    rows = references(limited, 0)
    assert rows == references(candidates(max_params=6000), 0)
    assert list(rows) == ["googlenet-small", "random"]
    named = SPEC.load().named()["googlenet-small"]
    assert rows["googlenet-small"] == [SPEC.load().point(named)]
    assert len(rows["random"]) == len({one.key for one in rows["random"]}) == RANDOM_REFERENCES
    for architecture in rows["random"]:
        assert limited.excess(architecture)[1] is None
    unlimited = references(candidates(), 0)["random"]
    assert any(limited.excess(architecture)[1] for architecture in unlimited)  # so that the limit did choose
    assert references(candidates(), 1)["random"] != unlimited


def test_textbook_references_are_the_best_ranked_within_the_limits() -> None:
    spec = SpaceSpec.of("inception_resnet", {})
    limited = Candidates(spec.load(), (1, 8, 8), 10, SearchConfig(max_params=100_000))
    points = {name: spec.load().point(values) for name, values in spec.load().named().items()}
    ranked = [points[name].key for name in ("resnet20", "resnet8", "inception-tiny", "resnet8-s2")]
    rows = references(limited, 0, ranked)
    assert list(rows) == ["resnet8", "inception-tiny", "random"]
    assert NAMED_REFERENCES == 2
    assert len(references(limited, 0)) == NAMED_REFERENCES + 1
    impossible = Candidates(spec.load(), (1, 8, 8), 10, SearchConfig(max_params=10))
    assert list(references(impossible, 0)) == [next(iter(points)), "random"]


def test_references_come_nearest_to_limits_that_none_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrain, "RANDOM_DRAWS", 25)
    impossible = candidates(max_params=1)
    chosen = references(impossible, 3)["random"]
    drawn = {one.key: one for one in (SPEC.load().random(25 * 3 + number) for number in range(25))}
    params = sorted(impossible.excess(one)[0]["params"] for one in drawn.values())
    assert [impossible.excess(one)[0]["params"] for one in chosen] == params[:RANDOM_REFERENCES]


def test_what_cannot_be_built_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SPEC.load()
    first = space.random(0).key
    original = type(space).build

    def build(self: Any, architecture: Architecture, *arguments: Any) -> Any:
        if architecture.key == first:
            raise ArithmeticError("not this one")
        return original(self, architecture, *arguments)

    monkeypatch.setattr(type(space), "build", build)
    chosen = references(candidates(), 0)["random"]
    assert len(chosen) == RANDOM_REFERENCES
    assert first not in {one.key for one in chosen}


def test_jobs_are_the_winner_from_each_seed_and_each_reference_from_one() -> None:
    space = SPEC.load()
    winner, other, third = (space.random(seed) for seed in range(3))
    found = retrain.jobs(winner, FINAL, 5, 3, {"named": [other], "random": [third, winner]})
    assert [(job.key, job.seed, name) for job, name in found.items()] == [
        (winner.key, 5, "winner, seed 5"),
        (winner.key, 6, "winner, seed 6"),
        (winner.key, 7, "winner, seed 7"),
        (other.key, 5, "named"),
        (third.key, 5, "random"),
    ]
    assert {job.rung for job in found} == {FINAL}


# --------------------------------------------------------------------------------------------------- measure


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig())


@pytest.fixture
def executor(data: Data) -> Iterator[Executor]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with InProcess(ExecutorConfig()) as made:
        made.use(Setup(SPEC, data, SearchConfig()))
        yield made
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_flush_denormal(False)


class Watched(Store):
    """Looks at the weights folder whenever a measurement is written down."""

    def __init__(self, file: Path, weights: Path) -> None:
        super().__init__(sql.create_engine(f"sqlite:///{file}"), "experiment")
        self.weights = weights
        self.there: list[bool] = []

    def add(self, measurement: Measurement) -> bool:
        self.there.append(retrain.weights_file(self.weights, measurement).is_file())
        return super().add(measurement)


@pytest.fixture
def records(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "study.db", tmp_path / "weights")


def measure(
    jobs: Mapping[Job, str],
    executor: Executor,
    records: Watched,
    listen: Callable[[Event], None] = lambda event: None,
    check: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    return retrain.measure(jobs, executor, records, Budget(records, None), listen, "retrain", records.weights, check)


def test_what_is_recorded_is_not_trained_again_and_weights_come_first(executor: Executor, records: Watched) -> None:
    space = SPEC.load()
    jobs = retrain.jobs(space.random(1), FINAL, 0, 2, {"random": [space.random(2)]})
    events: list[Event] = []
    measured = measure(jobs, executor, records, events.append)
    assert [m.status for m in measured] == ["done"] * 3
    assert records.there == [True] * 3
    assert [event.name for event in events] == ["winner, seed 0", "winner, seed 1", "random"]
    assert [event.progress.done for event in events] == [1, 2, 3]
    assert {(event.progress.stage, event.progress.total) for event in events} == {("retrain", 3)}
    files = sorted(records.weights.iterdir())
    kinds = (retrain.weights_file, retrain.towers_file)
    there = {kind(records.weights, m) for m in measured for kind in kinds[: 1 + bool(m.towers)]}
    assert set(files) == there  # and nothing half written
    for one in measured:
        weights = safetensors.torch.load_file(retrain.weights_file(records.weights, one))
        network = space.build(space.architecture_type.from_json(one.architecture), (1, 8, 8), 10)
        network.load_state_dict(weights)
    times = [file.stat().st_mtime_ns for file in files]

    more = retrain.jobs(space.random(1), FINAL, 0, 3, {"random": [space.random(2)]})
    again = measure(more, executor, records, events.append)
    assert [event.name for event in events[3:]] == ["winner, seed 2"]
    assert len(again) == 4
    assert {(m.key, m.seed): m.signals for m in measured}.items() <= {(m.key, m.seed): m.signals for m in again}.items()
    assert [file.stat().st_mtime_ns for file in files] == times
    assert all(entry.trial is None for entry in records.all())  # no candidates of the search


def test_proxies_of_references_leave_no_weights(executor: Executor, records: Watched) -> None:
    space = SPEC.load()
    (measured,) = measure({Job.of(space.random(1), PROXY, 0): "random"}, executor, records)
    assert measured.status == "done"
    assert not records.weights.exists()
    assert len(records.all()) == 1


@pytest.mark.parametrize(("rung", "kept"), [(FINAL, 0), (PROXY, 1)])
def test_a_failed_retraining_is_tried_again_next_time_and_a_failed_proxy_is_not(
    executor: Executor, records: Watched, monkeypatch: pytest.MonkeyPatch, rung: Rung, kept: int
) -> None:
    job = Job.of(SPEC.load().random(1), rung, 0)
    with monkeypatch.context() as patch:
        patch.setattr("nas.training.loop.fit", lambda *_: 1 / 0)
        (failed,) = measure({job: "winner"}, executor, records)
    assert failed.status == "failed"
    assert len(records.all()) == kept
    (again,) = measure({job: "winner"}, executor, records)
    assert again.status == ("failed" if kept else "done")


def test_a_driver_that_lost_its_lease_writes_nothing_more(executor: Executor, records: Watched) -> None:
    calls = itertools.count()

    def check() -> None:
        if next(calls):
            raise LeaseLost("another driver took over")

    jobs = retrain.jobs(SPEC.load().random(1), FINAL, 0, 3, {})
    with pytest.raises(LeaseLost):
        measure(jobs, executor, records, check=check)
    assert len(records.all()) == 1
    [only] = records.all()
    assert retrain.weights_file(records.weights, only.measurement).is_file()
    assert {file.name.split("-")[3][0] for file in records.weights.iterdir()} == {"0"}, "the first seed's alone"


def test_an_interrupted_write_leaves_nothing_that_looks_finished(
    executor: Executor, records: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job.of(SPEC.load().random(1), FINAL, 0)
    original = Path.write_bytes

    def torn(self: Path, content: bytes) -> int:
        original(self, content[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", torn)
        with pytest.raises(KeyboardInterrupt):
            measure({job: "winner"}, executor, records)
    assert not list(records.weights.glob("*.safetensors"))
    assert records.all() == []
    (measured,) = measure({job: "winner"}, executor, records)
    kinds = (retrain.weights_file, retrain.towers_file)[: 1 + bool(measured.towers)]
    assert set(records.weights.iterdir()) == {kind(records.weights, measured) for kind in kinds}
