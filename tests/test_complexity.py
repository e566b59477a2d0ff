"""Parameters and FLOPs by hand arithmetic, counted without touching the network; limits and their words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import search_spaces
from nas.config import SearchConfig
from nas.evaluation.complexity import activation_bytes, cause, complexity, count, flops_by_module, latency, violations
from nas.space import Architecture, SearchSpace


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Width(Architecture):
    width: int


class Twins(nn.Module):
    """A grouped convolution, a strided one and a linear layer; `asks` makes it impossible on the meta device."""

    def __init__(self, width: int, classes: int, asks: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Conv2d(width, 2 * width, (5, 1), stride=2, padding=(2, 0), groups=2, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(2 * width, classes)
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.body(x))
        if self.asks and x.abs().max() < 0:
            x = x + 1
        return self.linear(self.dropout(x.mean((2, 3))))


class Space(SearchSpace):
    architecture_type = Width

    def __init__(self, asks: bool = False) -> None:
        super().__init__()
        self.asks = asks

    def suggest(self, trial: Any) -> Width:
        return Width(width=trial.suggest_int("width", 2, 8))

    def build(self, architecture: Width, input_shape: tuple[int, int, int], num_classes: int) -> Twins:
        return Twins(architecture.width, num_classes, self.asks)


# width 4, 10 classes, 3x8x6 images: what each layer has and does
PARAMS = (3 * 9 * 4 + 4) + 2 * 4 + (2 * 5 * 8) + (8 * 10 + 10)
BODY = 2 * (8 * 6) * (3 * 9 * 4)
DOWN = 2 * (4 * 3) * (2 * 5 * 8)  # 2 of the 4 inputs reach each output
LINEAR = 2 * 8 * 10


def test_parameters_and_flops_by_hand() -> None:
    cost = count(Twins(4, 10), (3, 8, 6))
    assert cost.params == PARAMS
    assert cost.flops == BODY + DOWN + LINEAR


def test_flops_of_each_module_with_its_children() -> None:
    found = flops_by_module(Twins(4, 10), (3, 8, 6))
    assert found == {
        "": BODY + DOWN + LINEAR,
        "body": BODY,
        "body.0": BODY,
        "body.1": 0,
        "body.2": 0,
        "down": DOWN,
        "dropout": 0,
        "linear": LINEAR,
    }


def test_flops_of_cells_stem_and_head_sum_up_to_the_networks() -> None:
    space = search_spaces.load("inception")
    network = space.build(space.random(5), (1, 28, 28), 10)
    found = flops_by_module(network, (1, 28, 28))
    cells = [found[name] for name in network.cell_names]
    assert found[""] == found["stem"] + sum(cells) + found["linear"]
    assert found[""] == count(network, (1, 28, 28)).flops


@pytest.mark.parametrize("measure", [count, flops_by_module, latency])
def test_measuring_leaves_mode_state_and_random_numbers(measure: Any) -> None:
    network = Twins(4, 10).train()
    network.body.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    measure(network, (3, 8, 6))
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    with pytest.raises(RuntimeError):
        measure(network, (5, 8, 6))
    assert modes == [module.training for module in network.modules()]


def test_nothing_is_computed_to_count() -> None:
    """An architecture whose weights alone are 28 TB costs no memory and no random number."""
    random = torch.get_rng_state()
    cost = complexity(Space(), Width(width=10**6), (3, 8, 6), 10**6)
    assert cost.params == 28 * 10**6 + 2 * 10**6 + 5 * 10**12 + 2 * 10**12 + 10**6
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("asks", [False, True], ids=["meta", "cannot live on meta"])
def test_the_count_without_computing_equals_the_count_on_the_cpu(asks: bool) -> None:
    random = torch.get_rng_state()
    cost = complexity(Space(asks), Width(width=4), (3, 8, 6), 10)
    assert torch.equal(random, torch.get_rng_state())
    assert cost == count(Twins(4, 10), (3, 8, 6))


@pytest.mark.parametrize("size", [8, 28, 64])
def test_inception_counts_alike_on_meta_and_cpu(size: int) -> None:
    space = search_spaces.load("inception")
    for seed in range(2):
        architecture = space.random(seed)
        network = space.build(architecture, (3, size, size), 10)
        assert complexity(space, architecture, (3, size, size), 10) == count(network, (3, size, size))


def test_batch_norms_count_for_nothing_and_are_left_as_they_were() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        network[1].running_mean += 1.0  # type: ignore[assignment]
    images = torch.randn(1, 3, 8, 8)
    before = network(images)
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert count(network, (3, 8, 8)).flops == counter.get_total_flops() > 0
    assert torch.equal(network(images), before)


def test_latency_is_the_median_in_milliseconds() -> None:
    class Slow(Twins):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            assert not self.training
            assert x.shape == (1, 3, 8, 6)
            time.sleep(0.5 if self.calls in (1, 8) else 0.004)  # a slow start and one hiccup
            return super().forward(x)

    assert 4 <= latency(Slow(4, 10), (3, 8, 6), repeats=5) < 100


def test_memory_is_counted_alike_without_computing() -> None:
    space = search_spaces.load("inception", {})
    architecture = space.random(3)
    found = complexity(space, architecture, (1, 28, 28), 10, memory=True)
    assert found.memory == activation_bytes(space.build(architecture, (1, 28, 28), 10), (1, 28, 28))
    assert complexity(space, architecture, (1, 28, 28), 10).memory is None


# -------------------------------------------------------------------------------------------------- limits


def limits(**keys: Any) -> SearchConfig:
    return SearchConfig(**keys)


def test_limits_are_judged_as_shares_of_themselves() -> None:
    found = {"params": 1500.0, "flops": 1e6, "latency_ms": 4.0, "val_loss": 9.0}
    excess = violations(limits(max_params=1000, max_flops=2_000_000, max_latency=4.0), found)
    assert excess == pytest.approx({"params": 0.5, "flops": -0.5, "latency_ms": 0.0})
    assert violations(limits(), found) == {}
    assert violations(limits(max_latency=1), {"params": 1.0}) == {}  # not measured yet: not judged


def test_a_time_budget_limits_the_seconds_of_a_step() -> None:
    found = {"flops": 3.0, "step_seconds": 0.3}
    assert violations(limits(max_flops=2), found, max_step_seconds=0.2) == {
        "flops": 0.5,
        "step_seconds": pytest.approx(0.5),
    }
    assert violations(limits(), found) == {}
    assert violations(limits(), {"flops": 3.0}, max_step_seconds=0.2) == {}


def test_the_cause_names_what_is_exceeded_and_nothing_else() -> None:
    found = {"params": 1_500_000.0, "flops": 1e6, "latency_ms": 4.1}
    excess = violations(limits(max_params=1_000_000, max_flops=2_000_000, max_latency=4.0), found)
    assert cause(excess, found) == "params 1,500,000 is 50 % over the limit; latency_ms 4.1 is 2.5 % over the limit"
    assert cause({"params": -0.5, "latency_ms": 0.0}, found) is None
    assert cause({}, found) is None


# ------------------------------------------------------------------------------------------- memory at inference


class Fork(nn.Module):
    """Two convolutions of one input, side by side, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


@pytest.mark.parametrize(
    ("layers", "peak"),
    [  # in numbers of 4 bytes: the image lives throughout; a layer's input dies when its output is there
        (lambda: nn.Conv2d(1, 2, 3, padding=1), 16 + 32),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True)), 16 + 32),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()), 16 + 32 + 32),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 1, 1)), 16 + 32 + 64),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 1), Fork()), 16 + 32 + 48 + 80 + 128),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 4), nn.Flatten(), nn.Linear(8, 1000)), 16 + 8 + 1000),
        (lambda: nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 1, 1)), 16 + 16),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_peak_activation_memory_by_hand(layers: Callable[[], nn.Module], peak: int, device: str) -> None:
    with torch.device(device):
        network = layers().train()
    assert activation_bytes(network, (1, 4, 4)) == 4 * peak
    assert network.training


def test_memory_grows_with_the_image_and_not_with_the_weights() -> None:
    small, large = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 31, padding=15)
    assert activation_bytes(small, (1, 8, 8)) == activation_bytes(large, (1, 8, 8)) == 2 * 64 * 4
    assert activation_bytes(small, (1, 16, 16)) == 2 * 256 * 4
