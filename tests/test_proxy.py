"""measure(): self-contained, honest about what it scores, and never the end of a worker."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from nas.config import DataConfig, Recipe, SearchConfig, TowersConfig
from nas.data import Data, Images, load
from nas.evaluation import complexity
from nas.evaluation.evaluator import Evaluator, Job, Outcome, Setup, SpaceSpec, variant_of, variant_share
from nas.ladder import Rung
from nas.metrics import named, of_signal
from nas.store import Measurement
from nas.training import loop as training

CPU = torch.device("cpu")
NAMED = SpaceSpec.of("inception", {"widths": [8, 8, 8], "stem": [8, 8]})
TOWERS = TowersConfig(placement="middle")
RECIPE = Recipe(epochs=1, images=256, learning_rate=0.05, augment=("crop",))
PROXY = Rung("proxy", RECIPE, TOWERS)
FINAL = Rung("retrain", RECIPE, TOWERS, final=True)

FAULTY = '''
"""Networks of three cells that fail where their architecture says."""
import torch
from torch import nn
from nas.space import Architecture, SearchSpace

class Faulty(Architecture):
    fails: str = "nowhere"
    words: str = "it broke"

class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        raise ArithmeticError("no gradient here")

class Network(nn.Module):
    cell_names = ("cells.0", "cells.1", "cells.2")

    def __init__(self, architecture, channels, classes):
        super().__init__()
        self.fails, self.words = architecture.fails, architecture.words
        if self.fails == "build":
            raise ValueError(self.words)
        widths = [channels, 4, 4, 4]
        self.cells = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:])))
        self.linear = nn.Linear(4, classes)
        if self.fails == "cells":
            self.cell_names = ("body",)

    def forward(self, x):
        if self.fails == "forward" and self.training:
            raise KeyError(self.words)
        y = self.linear(torch.relu(self.cells(x)).mean((2, 3)))
        if self.fails == "backward":
            y = BadBackward.apply(y)
        if self.fails == "shape":
            y = y[:, :3]
        if self.fails == "score" and not self.training:
            y = y / 0
        if self.fails == "training" and self.training:
            y = y * float("nan")
        return y

class Space(SearchSpace):
    """Faulty networks."""
    architecture_type = Faulty
    def suggest(self, trial):
        return Faulty(fails=trial.suggest_categorical("fails", ["nowhere", "build"]))
    def build(self, architecture, input_shape, num_classes):
        return Network(architecture, input_shape[0], num_classes)
'''


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """A evaluator sets the threads and the determinism of its process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig())


@pytest.fixture(scope="module")
def evaluator(data: Data) -> Evaluator:
    return Evaluator(Setup(NAMED, data.without_test(), SearchConfig()), CPU)


@pytest.fixture
def faulty(tmp_path: Path, data: Data) -> Evaluator:
    """A evaluator on a space of one's own, whose file is gone by the time that the worker needs it."""
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    setting = Setup(SpaceSpec.of(f"{file}:Space", {}), data.without_test(), SearchConfig())
    shipped = pickle.dumps(setting)
    file.unlink()
    return Evaluator(pickle.loads(shipped), CPU)


def architecture(seed: int = 3) -> Any:
    return NAMED.load().random(seed)


def breaking(
    evaluator: Evaluator, fails: str, words: str = "it broke", rung: Rung = PROXY, trial: int | None = None
) -> Outcome:
    architecture_type: Any = evaluator.space.architecture_type
    return evaluator.measure(Job.of(architecture_type(fails=fails, words=words), rung, 0, trial))


# ---------------------------------------------------------------------------------------- self-contained


def test_everything_that_crosses_to_a_worker_and_back_survives_pickling(evaluator: Evaluator, data: Data) -> None:
    job = Job.of(architecture(), PROXY, 5, trial=7)
    assert pickle.loads(pickle.dumps(job)) == job
    assert job.unit == (architecture().key, PROXY.key, 5)
    setting = pickle.loads(pickle.dumps(evaluator.setting))
    assert setting.space == NAMED
    assert setting.limits == SearchConfig()
    assert np.array_equal(setting.data.train.pixels, data.train.pixels)
    outcome = evaluator.measure(job)
    assert outcome.measurement.status == "done"
    assert pickle.loads(pickle.dumps(outcome)) == outcome
    failed = job.failed("no\n  room")
    assert pickle.loads(pickle.dumps(failed)) == failed
    assert failed.measurement.cause == "no room"


def test_the_same_job_gives_the_same_signals_on_any_bench_in_any_order(evaluator: Evaluator, data: Data) -> None:
    job, other = Job.of(architecture(3), PROXY, 0), Job.of(architecture(4), PROXY, 1)
    first = evaluator.measure(job).measurement
    another = evaluator.measure(other).measurement
    torch.rand(17)
    again = evaluator.measure(job).measurement
    fresh = Evaluator(pickle.loads(pickle.dumps(evaluator.setting)), CPU)
    assert fresh.measure(other).measurement.signals == another.signals
    assert first.signals == again.signals == fresh.measure(job).measurement.signals
    assert first.signals != another.signals
    assert dataclasses.replace(first, cost={}) == dataclasses.replace(again, cost={})
    assert evaluator.measure(Job.of(architecture(3), PROXY, 1)).measurement.signals != first.signals  # the seed counts


def test_a_space_in_a_file_works_after_the_file_is_gone(faulty: Evaluator) -> None:
    measurement = breaking(faulty, "nowhere").measurement
    assert (measurement.status, measurement.towers) == ("done", (1,))
    assert 0 <= measurement.signals["val_accuracy"] <= 1


# ---------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("fails", "cause"),
    [
        ("build", "ValueError: it broke badly"),
        ("forward", r"KeyError: 'it broke\\nbadly'"),
        ("backward", "ArithmeticError: no gradient here"),
        ("shape", "(Index|Runtime|Value)Error: .+"),
        ("cells", "network Network has no module 'body' named in cell_names"),
        ("training", r"the training loss was not finite by step \d+"),
        ("score", "val_loss was not finite after training"),
    ],
)
def test_whatever_a_network_raises_is_its_failure_in_one_line(faulty: Evaluator, fails: str, cause: str) -> None:
    good = breaking(faulty, "nowhere").measurement
    outcome = breaking(faulty, fails, "it broke\nbadly")
    measurement = outcome.measurement
    assert measurement.status == "failed"
    assert measurement.cause is not None
    assert "\n" not in measurement.cause
    assert re.fullmatch(cause, measurement.cause), measurement.cause
    assert outcome.weights is None
    assert breaking(faulty, "nowhere").measurement.signals == good.signals  # the evaluator is none the worse


def test_what_is_no_architecture_of_the_space_is_a_failure(evaluator: Evaluator) -> None:
    job = dataclasses.replace(Job.of(architecture(), PROXY, 0), architecture='{"stem":-1,"stages":[]}')
    measurement = evaluator.measure(job).measurement
    assert measurement.status == "failed"
    assert measurement.cause is not None
    assert measurement.cause.startswith("not an architecture of type InceptionArchitecture")
    assert (measurement.key, measurement.rung, measurement.seed) == job.unit


def test_a_tower_on_a_cell_that_is_not_there_is_a_failure_and_not_a_missing_tower(faulty: Evaluator) -> None:
    measurement = breaking(faulty, "nowhere", rung=Rung("proxy", RECIPE, TowersConfig(placement=(3,)))).measurement
    assert measurement.cause == "towers.placement names cell 3, but this network has cells 0 to 2"


def test_an_interrupt_is_no_failure(faulty: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        breaking(faulty, "nowhere")


# ----------------------------------------------------------------------------------- what a score is of


def test_a_proxy_is_scored_on_validation_and_ranked_by_the_main_head(evaluator: Evaluator, data: Data) -> None:
    bare = Rung("proxy", RECIPE, TowersConfig(placement="none"))
    towered, plain = (evaluator.measure(Job.of(architecture(), rung, 0)).measurement for rung in (PROXY, bare))
    heads = {"params", "flops", "tower_share", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    heads |= {"tse", "tse_e", "tse_ema"}
    assert set(plain.signals) == heads
    (cell,) = towered.towers
    of_towers = {"tower_loss", "tower_accuracy", "tower_gap"}
    assert set(towered.signals) == heads | of_towers | {f"tower{cell}_{name}" for name in ("loss", "accuracy", "gap")}
    assert all(of_signal(name) for name in towered.signals)
    assert plain.towers == ()
    assert plain.signals["tower_share"] == 0
    assert 0 < towered.signals["tower_share"] <= 0.1
    found = complexity.count(NAMED.load().build(architecture(), data.input_shape, 10), data.input_shape)
    for signals in (plain.signals, towered.signals):
        assert (signals["params"], signals["flops"]) == (found.params, found.flops)  # of the bare network
    assert towered.signals["val_loss"] != plain.signals["val_loss"]
    assert towered.cost["images"] == plain.cost["images"] == 256
    assert evaluator.measure(Job.of(architecture(), PROXY, 0)).weights is None


@pytest.mark.parametrize("small", [{"shrink": 2}, {"width": 0.5}, {"shrink": 2, "width": 0.5}])
def test_a_stand_in_is_trained_but_the_candidate_is_told_of(data: Data, small: dict[str, Any]) -> None:
    """Digits drawn twice as large, so that halving them is the digits again."""
    train, validation = (
        Images(one.pixels.repeat(2, 2).repeat(2, 3), one.labels) for one in (data.train, data.validation)
    )
    large = dataclasses.replace(data.without_test(), train=train, validation=validation)
    spec = SpaceSpec.of("inception", {"widths": [32, 32, 32], "stem": [16, 16]})
    space, candidate = spec.load(), spec.load().random(3)
    evaluator = Evaluator(Setup(spec, large, SearchConfig(max_latency=1e6, max_memory=2**40)), CPU)
    rung = dataclasses.replace(PROXY, **small)
    itself, other = (evaluator.measure(Job.of(candidate, one, 0)).measurement for one in (PROXY, rung))
    assert {itself.status, other.status} == {"done"}
    for name in ("params", "flops", "activation_bytes"):
        assert other.signals[name] == itself.signals[name]
    assert "latency_ms" in other.signals
    assert other.signals["val_loss"] != itself.signals["val_loss"]
    trained = complexity.complexity(space, *variant_of(space, candidate, rung, large.input_shape), 10)
    share = trained.flops / itself.signals["flops"]
    assert share < 0.6
    assert other.cost["images"] == pytest.approx(share * itself.cost["images"])
    assert other.cost["multiply_adds"] == pytest.approx(share * itself.cost["multiply_adds"], rel=0.1)
    if small == {"shrink": 2}:
        same = Evaluator(Setup(spec, data.without_test(), SearchConfig()), CPU).measure(Job.of(candidate, PROXY, 0))
        assert same.measurement.signals["val_loss"] == pytest.approx(other.signals["val_loss"], rel=0.2)
    assert variant_share(space, rung, large.input_shape, 10, 0) == pytest.approx(share, rel=0.5)
    assert variant_share(space, PROXY, large.input_shape, 10, 0) == 1


def test_a_tower_may_learn_groups_of_classes(evaluator: Evaluator, data: Data, tmp_path: Path) -> None:
    parity = {name: "odd" if int(name) % 2 else "even" for name in data.classes}
    (tmp_path / "parity.json").write_text(json.dumps(parity))
    recipe = RECIPE.model_copy(update={"epochs": 8, "images": None})
    scores = {}
    for labels in ("own", str(tmp_path / "parity.json")):
        towers = TowersConfig(placement="middle", labels=labels)
        scores[labels] = evaluator.measure(Job.of(architecture(), Rung("proxy", recipe, towers), 0)).measurement.signals
    own, grouped = scores.values()
    (accuracy,) = [name for name in grouped if re.fullmatch(r"tower\d_accuracy", name)]
    assert grouped[accuracy] > max(own[accuracy], 0.6)  # two groups are told apart more easily than ten classes
    assert grouped["tower_share"] < own["tower_share"]  # and take two logits

    without = TowersConfig(placement="middle", labels="coarse")
    outcome = evaluator.measure(Job.of(architecture(), Rung("proxy", RECIPE, without), 0)).measurement
    assert "this data set has no coarse labels" in str(outcome.cause)
    coarse = dataclasses.replace(evaluator.setting.data, coarse=tuple(int(name) % 2 for name in data.classes))
    with_groups = Evaluator(Setup(NAMED, coarse, SearchConfig()), CPU)
    again = with_groups.measure(Job.of(architecture(), Rung("proxy", recipe, without), 0)).measurement
    assert again.signals[accuracy] == grouped[accuracy]


def test_the_norm_of_each_cells_gradient_is_a_signal_when_asked_for(evaluator: Evaluator) -> None:
    recipe = RECIPE.model_copy(update={"gradient_norms": (1, 2)})
    signals = evaluator.measure(Job.of(architecture(), Rung("proxy", recipe, TOWERS), 0)).measurement.signals
    norms = {name: value for name, value in signals.items() if name.startswith("gradient_norm")}
    assert len(norms) == 2 * sum(map(len, architecture().stages))
    assert all(value > 0 for value in norms.values())
    assert {of_signal(name) for name in norms} == {named("gradient_norm")}
    plain = evaluator.measure(Job.of(architecture(), PROXY, 0)).measurement.signals
    assert {name: value for name, value in signals.items() if name not in norms} == plain


def test_proxies_cannot_see_the_test_split(evaluator: Evaluator, data: Data) -> None:
    assert evaluator.setting.data.test is None
    assert data.test is not None
    job = Job.of(architecture(), PROXY, 0)
    noise = np.random.default_rng(0).integers(0, 256, data.test.pixels.shape, dtype=np.uint8)
    spoilt = dataclasses.replace(data, test=Images(noise, data.test.labels))
    on_noise = Evaluator(Setup(NAMED, spoilt, SearchConfig()), CPU).measure(job).measurement
    assert on_noise.signals == evaluator.measure(job).measurement.signals
    final = evaluator.measure(Job.of(architecture(), FINAL, 0)).measurement
    assert final.status == "failed"
    assert not any(name.startswith("test") for name in final.signals)


def test_a_final_rung_trains_on_all_but_test_and_returns_the_bare_network_that_it_scored(data: Data) -> None:
    evaluator = Evaluator(
        Setup(NAMED, data, SearchConfig(max_latency=1e-9)), CPU
    )  # limits judge candidates, not the winner
    job = Job.of(architecture(), Rung("retrain", Recipe(epochs=6, augment=()), TOWERS, final=True), 0)
    outcome = evaluator.measure(job)
    measurement = outcome.measurement
    assert measurement.status == "done"
    scores = {name for name in measurement.signals if name.endswith(("loss", "accuracy")) and "tower" not in name}
    assert scores == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    assert measurement.towers
    used = (len(data.train) + len(data.validation)) // 128 * 128
    assert measurement.cost["images"] == 6 * used
    assert used > len(data.train)

    assert outcome.weights is not None
    weights = safetensors.torch.load(outcome.weights)
    assert not [name for name in weights if "tower" in name]
    network = NAMED.load().build(architecture(), data.input_shape, 10)
    network.load_state_dict(weights)
    network.eval()
    assert data.test is not None
    test = training.Resident(data.test, data.mean, data.std, CPU)
    with torch.no_grad():
        right = network(test.normalised(test.pixels)).argmax(1) == test.labels
    assert float(right.double().mean()) == pytest.approx(measurement.signals["test_accuracy"], abs=1e-9)
    assert measurement.signals["test_accuracy"] > 0.3


def test_a_free_rung_trains_nothing_and_reads_the_untrained_network(evaluator: Evaluator) -> None:
    measurement = evaluator.measure(Job.of(architecture(), Rung("free", RECIPE, TOWERS, free=True), 0)).measurement
    assert {"params", "flops", "naswot", "synflow", "az_expressivity"} <= set(measurement.signals)
    assert not {"val_loss", "train_loss"} & set(measurement.signals)
    assert measurement.cost["images"] == 0
    assert 0 < measurement.cost["multiply_adds"] < 200 * measurement.signals["flops"]


@pytest.mark.parametrize("towers", [TOWERS, TowersConfig(placement="every:1", share=0.9)], ids=["one", "all"])
def test_without_towers_as_many_more_steps_are_trained_as_these_would_have_cost(
    evaluator: Evaluator, towers: TowersConfig
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 3, "images": None, "batch_size": 16, "readings": (1, 3)})
    bare = Rung("proxy", recipe, TowersConfig(placement="none"), as_costly_as=towers)
    towered, plain = (
        evaluator.measure(Job.of(architecture(), rung, 0)).measurement for rung in (Rung("proxy", recipe, towers), bare)
    )
    a_step = 3 * 16 * plain.signals["flops"] / 2
    assert abs(plain.cost["multiply_adds"] - towered.cost["multiply_adds"]) <= a_step / 2 * 1.001
    assert plain.cost["images"] > towered.cost["images"]
    assert {"averaged_val_loss", "averaged_val_loss_epoch1"} <= set(plain.signals) & set(towered.signals)


def test_a_rung_of_truth_is_trained_without_validation_and_scored_on_images_of_its_own(data: Data) -> None:
    assert data.test is not None
    held = dataclasses.replace(data.without_test(), truth=data.test)
    evaluator = Evaluator(Setup(NAMED, held, SearchConfig()), CPU)
    full = evaluator.measure(Job.of(architecture(), Rung("full", RECIPE, TOWERS, truth=True), 0)).measurement
    proxy = evaluator.measure(Job.of(architecture(), PROXY, 0)).measurement
    assert full.signals["val_loss"] == proxy.signals["val_loss"]  # the same training
    assert set(full.signals) - set(proxy.signals) == {"truth_loss", "truth_accuracy"}
    swapped = dataclasses.replace(held, validation=data.test)
    again = Evaluator(Setup(NAMED, swapped, SearchConfig()), CPU).measure(Job.of(architecture(), PROXY, 0)).measurement
    assert full.signals["truth_loss"] == pytest.approx(again.signals["val_loss"], rel=1e-6)


# ------------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    ("limit", "name"),
    [("max_latency", "latency_ms"), ("max_params", "params"), ("max_memory", "activation_bytes")],
)
def test_a_candidate_over_a_limit_is_infeasible_before_training(
    tmp_path: Path, data: Data, limit: str, name: str
) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    spec = SpaceSpec.of(f"{file}:Space", {})

    def measured(value: float, trial: int | None) -> Measurement:
        limits = SearchConfig.model_validate({limit: value})
        evaluator = Evaluator(Setup(spec, data.without_test(), limits), CPU)
        return breaking(evaluator, "forward", trial=trial).measurement  # trained, it would fail

    tight = 1e-9 if name == "latency_ms" else 1
    over = measured(tight, trial=7)
    assert over.status == "infeasible"
    assert {name} <= set(over.signals) <= {"params", "flops", name}
    assert over.cost == {}
    assert re.fullmatch(rf"{name} [\d.,e-]+ is [\d.,e+]+ % over the limit", over.cause or "")
    assert measured(10**9, trial=7).status == "failed"
    assert measured(tight, trial=None).status == "failed"  # a reference keeps no limits


@pytest.mark.parametrize("limits", [SearchConfig(max_latency=1e9), SearchConfig(objectives=("loss", "latency"))])
def test_latency_is_measured_where_it_matters(data: Data, limits: SearchConfig, evaluator: Evaluator) -> None:
    job = Job.of(architecture(), PROXY, 0, 1)
    measured = Evaluator(Setup(NAMED, data.without_test(), limits), CPU).measure(job).measurement
    plain = evaluator.measure(job).measurement
    assert 0 < measured.signals["latency_ms"] < 1000
    assert "latency_ms" not in plain.signals
    assert measured.signals["val_loss"] == plain.signals["val_loss"]  # looking at the clock changes nothing
