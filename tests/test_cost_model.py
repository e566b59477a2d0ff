"""Work by hand arithmetic, weights found again in synthetic samples, shrinkage, the cache; no clock is compared."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import search_spaces
from nas.errors import InputError
from nas.evaluation import cost_model
from nas.evaluation.cost_model import (
    PRIOR,
    TERMS,
    Conditions,
    CostModel,
    Sample,
    Weights,
    Work,
    corrected,
    load_or_fit,
    measure,
    spread_over_cost,
)

CONDITIONS = Conditions(batch=4)
IMAGE = (3, 8, 8)
MULTIPLY_ADDS = ("pointwise", "narrow", "regular", "wide", "grouped", "products")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 20, 1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 24, 3, padding=1),
        nn.Conv2d(24, 24, (1, 7), padding=(0, 3)),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )


class Joined(nn.Module):
    """A concatenation and a sum, written without modules."""

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, x], 1)
        return (both + both).mean((2, 3))


class Foreign(nn.Module):
    """Looks at values, so it cannot run on the meta device, and has a layer that no class of work knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        x = self.conv(x)
        if x.sum().item() > 1e30:
            raise AssertionError
        return self.linear(torch.cumsum(x, 1).amax((2, 3))), "something else"


def random_work(seed: int) -> Work:
    chance = np.random.default_rng(seed)
    size = 2.0 ** chance.uniform(0, 6)
    scale = {term: 20 if term in MULTIPLY_ADDS else 1 for term in TERMS}  # channels add up
    each = {term: int(1e5 * size * scale[term] * chance.uniform(0, 2) ** 2) for term in TERMS}
    return Work(**each | {"layers": int(chance.integers(10, 200))})


def samples_of(model: CostModel, count: int, first: int = 0) -> list[Sample]:
    works = [random_work(seed) for seed in range(first, first + count)]
    batches = itertools.cycle([32, 128, 512])
    return [
        Sample(work, batch, model.seconds_per_step(work, batch), model.seconds_per_batch(work, batch))
        for work, batch in zip(works, batches, strict=False)
    ]


def other_machine() -> CostModel:
    """Each weight is from a third to three times that of the prior."""
    chance = np.random.default_rng(1)
    ratios = 3 ** chance.uniform(-1, 1, len(TERMS))
    return CostModel(
        training=Weights.of(PRIOR.training.vector() * ratios), inference=Weights.of(PRIOR.inference.vector() * ratios)
    )


def test_work_by_hand() -> None:
    work = Work.of(tiny(), IMAGE)
    assert work == Work(
        layers=10,
        parameters=(432 + 32) + (320 + 20) + (4320 + 24) + (4032 + 24) + (216 + 24) + (3840 + 10),
        narrow=64 * 9 * 3 * 16,  # the three channels of an image are not rounded up
        pointwise=64 * 16 * 24,  # 20 outputs cost as much as 24
        regular=16 * 9 * 24 * 24,  # as do 20 inputs
        wide=16 * 7 * 24 * 24,
        grouped=16 * 9 * 24,
        products=384 * 10,
        convolved=64 * (3 + 16) + 64 * (16 + 20) + 16 * (20 + 24) + 2 * 16 * (24 + 24),
        normalised=64 * 16,
        rectified=64 * 16,
        activated=64 * 20,
        pooled=(64 + 16) * 20,
    )


def test_functions_count_as_modules_do() -> None:
    assert Work.of(Joined(), IMAGE) == Work(layers=3, joined=2 * 64 * 6, pooled=64 * 6 + 6)


def test_meta_and_computed_work_agree() -> None:
    space = search_spaces.load("inception", {})
    for network in (tiny(), space.build(space.random(3), IMAGE, 10)):
        with torch.no_grad(), cost_model._Recorder() as recorder:
            network.eval()(torch.zeros(1, *IMAGE))
        counts = {term: count for term, count in recorder.counts.items() if term != "parameters"}
        work = Work.of(network, IMAGE)
        assert {term: getattr(work, term) for term in counts} == counts


def test_work_leaves_the_network_as_it_was() -> None:
    network = tiny().train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    Work.of(network, IMAGE)
    assert network.training
    assert not network[1].training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert "forward" not in vars(network[1])


def test_work_of_a_network_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = tiny()
    assert Work.of(network, IMAGE) == Work.of(tiny(), IMAGE)


def test_work_grows_with_the_input() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    small, large = Work.of(network, (3, 8, 8)), Work.of(network, (3, 16, 16))
    assert (large.narrow, large.rectified, large.pooled) == (
        4 * small.narrow,
        4 * small.rectified,
        4 * small.pooled - 48,
    )
    assert (large.layers, large.parameters) == (small.layers, small.parameters)


def test_foreign_networks_with_unknown_layers() -> None:
    work = Work.of(Foreign(), IMAGE)
    assert work.narrow == 36 * 9 * 3 * 8
    assert work.products == 8 * 5
    assert work.other >= 36 * 8
    assert measure([Foreign()], IMAGE, CONDITIONS)[0].work == work


def test_fit_finds_the_weights_again() -> None:
    truth = other_machine()
    model = CostModel.fit(samples_of(truth, 60), ridge=0)
    assert model.training.vector() == pytest.approx(truth.training.vector(), rel=1e-4)
    for sample in samples_of(truth, 20, first=100):
        assert model.seconds_per_step(sample.work, sample.batch) == pytest.approx(sample.seconds_per_step, rel=1e-5)
        assert model.seconds_per_batch(sample.work, sample.batch) == pytest.approx(sample.seconds_per_batch, rel=1e-5)


def test_a_machine_of_another_speed_needs_one_sample() -> None:
    slower = corrected(PRIOR, [(1.0, 3.0)])
    model = CostModel.fit(samples_of(slower, 1))
    for sample in samples_of(slower, 20, first=100):
        assert model.seconds_per_step(sample.work, sample.batch) == pytest.approx(sample.seconds_per_step)
        assert model.seconds_per_batch(sample.work, sample.batch) == pytest.approx(sample.seconds_per_batch)


def test_few_samples_of_another_machine_say_more_than_one_factor() -> None:
    """A machine that multiplies faster than this and has slower memory."""
    ratios = np.array([0.4 if term in MULTIPLY_ADDS else 2.0 for term in TERMS])
    truth = CostModel(
        training=Weights.of(PRIOR.training.vector() * ratios), inference=Weights.of(PRIOR.inference.vector() * ratios)
    )

    def error(model: CostModel) -> float:
        ratios = [model.seconds_per_step(s.work, s.batch) / s.seconds_per_step for s in samples_of(truth, 40, 100)]
        return float(np.median(np.abs(np.array(ratios) - 1)))

    scaled, fitted = (CostModel.fit(samples_of(truth, 12), ridge=ridge) for ridge in (1e9, cost_model.RIDGE))
    assert error(fitted) < 0.5 * error(scaled)
    assert error(fitted) < 0.1


def test_one_bad_sample_moves_little() -> None:
    samples = samples_of(PRIOR, 12)
    samples[5] = replace(samples[5], seconds_per_step=10 * samples[5].seconds_per_step)
    model = CostModel.fit(samples)
    ratios = [model.seconds_per_step(s.work, s.batch) / s.seconds_per_step for s in samples_of(PRIOR, 20, 100)]
    assert max(abs(ratio - 1) for ratio in ratios) < 0.1


def test_no_samples_give_the_prior() -> None:
    assert CostModel.fit([]) == PRIOR


def test_inference_that_was_not_measured_follows_training() -> None:
    slower = corrected(PRIOR, [(1.0, 3.0)])
    model = CostModel.fit([replace(sample, seconds_per_batch=None) for sample in samples_of(slower, 4)])
    work = random_work(200)
    assert model.seconds_per_batch(work, 64) == pytest.approx(slower.seconds_per_batch(work, 64))


@pytest.mark.parametrize("term", TERMS)
def test_more_work_never_takes_less_time(term: str) -> None:
    model = CostModel.fit(samples_of(other_machine(), 10))
    work = random_work(7)
    more = replace(work, **{term: 2 * getattr(work, term)})
    assert model.seconds_per_step(more, 64) >= model.seconds_per_step(work, 64)
    assert model.seconds_per_batch(more, 64) >= model.seconds_per_batch(work, 64)
    assert model.seconds_per_step(work, 65) > model.seconds_per_step(work, 64)


def test_corrected_applies_the_median_ratio() -> None:
    work = random_work(3)
    before = PRIOR.seconds_per_step(work, 64)
    model = corrected(corrected(PRIOR, [(1.0, 2.0), (2.0, 3.0), (1.0, 50.0)]), [(4.0, 2.0)])
    assert model.seconds_per_step(work, 64) == pytest.approx(before)
    assert corrected(model, []) == model


def test_json_round_trip() -> None:
    model = corrected(CostModel.fit(samples_of(other_machine(), 20)), [(1.0, 1.25)])
    assert CostModel.from_json(model.to_json()) == model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a cost model"),
        (json.dumps(PRIOR.model_dump() | {"version": 2}), "cost model of version 2"),
        (json.dumps(PRIOR.model_dump() | {"more": 2}), "unknown key 'more'"),
        (json.dumps(PRIOR.model_dump() | {"factor": -1.0}), "factor"),
        (PRIOR.to_json().replace('"layers":', '"layers":-', 1), "training.layers"),
    ],
)
def test_json_of_others_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CostModel.from_json(text)
    assert "\n" not in str(caught.value)


def test_spread_over_cost() -> None:
    costs = [float(2**power) for power in (3, 0, 10, 1, 5, 9, 8)]
    assert [costs[index] for index in spread_over_cost(costs, 3)] == [1.0, 32.0, 1024.0]
    assert spread_over_cost(costs, 99) == sorted(range(7), key=lambda index: costs[index])


class Clock:
    """Each look at it takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._ticks, self._seconds = itertools.count(), seconds

    def __call__(self) -> float:
        return next(self._ticks) * self._seconds


def test_measure_takes_the_cheapest_first_and_stops_in_time() -> None:
    networks = [tiny(width) for width in (64, 16, 32)]
    assert torch.get_num_threads() == 1
    samples = measure(networks, IMAGE, replace(CONDITIONS, threads=2), clock=Clock(0.01))
    assert torch.get_num_threads() == 1
    assert [sample.work for sample in samples] == [Work.of(tiny(width), IMAGE) for width in (16, 32, 64)]
    assert all(sample.seconds_per_step == pytest.approx(0.01) for sample in samples)
    assert [sample.batch for sample in samples] == [4] * 3
    assert len(measure(networks, IMAGE, CONDITIONS, seconds=5.0, clock=Clock(1.0))) == 1


def test_measure_puts_threads_back_after_an_error() -> None:
    class Broken(Foreign):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            if len(x) > 1:
                raise ValueError("no")
            return super().forward(x)

    with pytest.raises(ValueError, match="no"):
        measure([Broken()], IMAGE, replace(CONDITIONS, threads=2))
    assert torch.get_num_threads() == 1


def test_bfloat16_steps_run() -> None:
    assert len(measure([tiny()], IMAGE, replace(CONDITIONS, precision="bfloat16"))) == 1


class Makes:
    """Networks, and how often they were asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> list[nn.Module]:
        self.calls += 1
        return [tiny(), tiny(32)]


def test_cache_is_used_and_keyed(tmp_path: Path) -> None:
    make = Makes()
    model = load_or_fit(tmp_path / "new", CONDITIONS, IMAGE, make)
    assert load_or_fit(tmp_path / "new", CONDITIONS, IMAGE, make) == model
    assert make.calls == 1
    for calls, other in enumerate([{"batch": 8}, {"busy_workers": 2}, {"precision": "bfloat16"}], 2):
        load_or_fit(tmp_path / "new", replace(CONDITIONS, **other), IMAGE, make)  # type: ignore[arg-type]
        assert make.calls == calls
    assert len(list((tmp_path / "new").iterdir())) == 4


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"key": 1}', "version", "key", "bytes"])
def test_damaged_cache_is_measured_again(tmp_path: Path, damage: str) -> None:
    make = Makes()
    load_or_fit(tmp_path, CONDITIONS, IMAGE, make)
    [path] = tmp_path.iterdir()
    stored = json.loads(path.read_text())
    if damage == "version":
        damage = json.dumps(stored | {"model": stored["model"] | {"version": 0}})
    elif damage == "key":
        damage = json.dumps(stored | {"key": stored["key"] | {"torch": "0.1"}})
    path.write_bytes(b"\xff\xfe" if damage == "bytes" else damage.encode())
    model = load_or_fit(tmp_path, CONDITIONS, IMAGE, make)
    assert make.calls == 2
    assert load_or_fit(tmp_path, CONDITIONS, IMAGE, make) == model
    assert make.calls == 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert load_or_fit(tmp_path / "file" / "cache", CONDITIONS, IMAGE, Makes()).factor == 1


def test_cache_folder_honours_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cost_model.cache_folder() == Path("/somewhere/inception-nas")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    assert cost_model.cache_folder() == Path(os.path.expanduser("~/.cache/inception-nas"))
