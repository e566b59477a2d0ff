"""Towers never enter the network, really train, fit any shape, and leave the trunk as it was (invariants 1 to 4)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from nas.auxiliary import DeepSupervision, Tap, cell_names, course, dry_run, place, supervise, towers
from nas.config import TowersConfig
from nas.errors import ConfigError, SpaceError
from search_spaces.inception import InceptionSettings, InceptionSpace

SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Block(nn.Module):
    """A residual block that leaves the last ReLU to whoever stacks it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + self.downsample(x)


class Residual(nn.Module):
    """Somebody else's network, in the manner of torchvision; `between` comes after every block, in place."""

    def __init__(self, classes: int = 10, channels: int = 3, between: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = Block(8, 8, 1)
        self.layer2 = Block(8, 16, 2)
        self.layer3 = Block(16, 24, 2)
        self.between = between or nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(24, classes)
        self.cell_names = ("layer1", "layer2", "layer3")

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            x = self.between(layer(x))
        return self.fc(self.avgpool(x).flatten(1))


class Fickle(Residual):
    """Draws random numbers and counts its forwards, whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1  # type: ignore[assignment]
        return super().forward(x + 0.1 * torch.randn_like(x))


def inception(seed: int = 3, **keys: Any) -> nn.Module:
    keys = {"widths": (16, 16, 16), "cells": (2, 2), "stem": (8, 16), **keys}
    space = InceptionSpace(InceptionSettings.model_validate(keys))
    torch.manual_seed(seed)
    return space.build(space.random(seed), SHAPE, 10)


NETWORKS = {"inception": inception, "residual": Residual, "without batch norm": lambda: inception(batch_norm=False)}


def with_towers(network: nn.Module, *cells: int, kind: str = "light", shape: tuple[int, int, int] = SHAPE) -> Any:
    """Towers on these cells (none given: at the thirds), of whatever size they like."""
    config = TowersConfig.model_validate({"placement": cells or "thirds", "kind": kind, "share": 0.99})
    return supervise(network, config, shape, 10)


def hooks(network: nn.Module) -> list[tuple[str, str]]:
    """Every hook of every kind that a module of the network carries."""
    return [
        (name, kind)
        for name, module in network.named_modules()
        for kind, found in vars(module).items()
        if "hook" in kind and found
    ]


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


# ------------------------------------------------------------ 1: a tower never enters the network


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_no_hook_and_no_key_is_left_behind(name: str, training: bool) -> None:
    network = NETWORKS[name]()
    keys = list(network.state_dict())
    modules = [name for name, _ in network.named_modules()]
    supervised = with_towers(network).train(training)
    assert supervised.network is network
    for _ in range(2):
        supervised(torch.randn(2, *SHAPE))
    assert hooks(network) == []
    assert list(network.state_dict()) == keys
    assert [name for name, _ in network.named_modules()] == modules


def test_no_hook_is_left_behind_when_the_forward_raises() -> None:
    network = Residual()
    supervised = with_towers(network, 0, 1)
    assert supervised.taps[0].changed_later
    for broken in (network.layer3, network.layer1, network.fc):
        blow = broken.register_forward_pre_hook(lambda module, inputs: 1 / 0)  # type: ignore[arg-type, return-value]
        with pytest.raises(ZeroDivisionError):
            supervised(torch.randn(2, *SHAPE))
        blow.remove()
        assert hooks(network) == []
    with pytest.raises(RuntimeError):
        supervised(torch.randn(2, 5, 16, 16))
    assert hooks(network) == []
    supervised.towers[0].forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        supervised(torch.randn(2, *SHAPE))
    assert hooks(network) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_after_a_supervised_forward_the_network_copies_pickles_and_exports(name: str) -> None:
    network = NETWORKS[name]()
    x = torch.randn(2, *SHAPE)
    logits, aside = with_towers(network)(x)
    (functional.cross_entropy(logits, torch.tensor([0, 1])) + sum(one.sum() for one in aside)).backward()
    expected = network.eval()(x)
    assert torch.equal(copy.deepcopy(network)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)
    exported = torch.export.export(network, (x,))
    assert set(exported.state_dict) <= set(network.state_dict())
    torch.testing.assert_close(exported.module()(x), expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["light", "googlenet"])
def test_eval_logits_are_bit_identical_with_and_without_towers(name: str, kind: str) -> None:
    network = NETWORKS[name]()
    x = torch.randn(5, *SHAPE)
    with torch.no_grad():
        before = network.eval()(x)
        beside = with_towers(network, kind=kind).eval()(x)[0]
        after = network(x)
    assert torch.equal(before, beside)
    assert torch.equal(before, after)


def test_training_logits_and_statistics_are_bit_identical_too() -> None:
    """Paired comparisons: towers, their dropout included, draw nothing before the network does."""
    x = torch.randn(5, *SHAPE)
    alone, beside = inception(dropout=0.5), inception(dropout=0.5)
    supervised = with_towers(beside)
    for network, run in ((alone, alone), (beside, lambda x: supervised(x)[0])):
        torch.manual_seed(1)
        network.logits = run(x).detach()  # type: ignore[assignment]
    assert torch.equal(alone.logits, beside.logits)  # type: ignore[arg-type]
    assert same(alone.state_dict(), beside.state_dict())


# ----------------------------------------------------------------------- 2: towers really train


def before_and_after(network: nn.Module, cell: str) -> tuple[list[str], list[str]]:
    """Names of parameters up to the end of a cell and after it; modules of these networks stand in order."""
    names = [name for name, _ in network.named_parameters()]
    last = max(i for i, name in enumerate(names) if name.startswith(f"{cell}."))
    return names[: last + 1], names[last + 1 :]


@pytest.mark.parametrize("kind", ["light", "googlenet"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_towers_loss_reaches_it_and_all_of_the_trunk_before_it(name: str, kind: str) -> None:
    network = NETWORKS[name]()
    names = cell_names(network)
    supervised = with_towers(network, *range(len(names)), kind=kind)
    assert supervised.cells == tuple(range(len(names)))
    for number, cell in enumerate(names):
        supervised.zero_grad(set_to_none=True)
        _, aside = supervised(torch.randn(4, *SHAPE))
        functional.cross_entropy(aside[number], torch.tensor([0, 1, 2, 3])).backward()
        got = {name for name, p in network.named_parameters() if p.grad is not None}
        before, after = before_and_after(network, cell)
        assert got == set(before)
        assert got.isdisjoint(after)
        for other, tower in enumerate(supervised.towers):
            assert all((p.grad is not None) == (other == number) for p in tower.parameters())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in supervised.towers[number].parameters())
        assert any(network.get_parameter(name).grad.abs().sum() > 0 for name in before)  # type: ignore[union-attr]


def test_rules_place_towers_on_intermediate_cells() -> None:
    def placed(rule: Any, cells: int) -> tuple[int, ...]:
        return place(TowersConfig(placement=rule), [16] * cells)

    for rule in ("auto", "middle", "thirds", "two-thirds", "every:1", "every:2"):
        for cells in range(1, 60):
            chosen = placed(rule, cells)
            assert list(chosen) == sorted(set(chosen))
            assert all(0 <= cell < cells - 1 for cell in chosen)  # never the last, which the main head reads
            assert chosen or cells < 3
    assert placed("thirds", 9) == (2, 5)  # as in GoogLeNet
    assert placed("middle", 9) == (4,)
    assert placed("two-thirds", 20) == (13,)  # as in DARTS: layers = 20, i == 2 * layers // 3
    assert placed("every:3", 9) == (2, 5)
    assert placed("auto", 2) == ()
    assert placed("none", 9) == ()
    assert placed((5, 0, 5), 9) == (0, 5)
    assert place(TowersConfig(placement="stages"), [16, 16, 8, 8, 8, 4]) == (1, 4)
    assert place(TowersConfig(placement="stages"), [8, 8, 8]) == ()


def test_a_network_may_be_too_shallow_for_the_automatic_placement() -> None:
    network = inception(widths=(16,), cells=(1, 2), seed=1)
    supervised = supervise(network, TowersConfig(), SHAPE, 10)
    assert supervised.cells == ()
    logits, aside = supervised(torch.randn(2, *SHAPE))
    assert logits.shape == (2, 10)
    assert aside == []


@pytest.mark.parametrize("cells", [(6,), (0, 99), (3, 6)])
def test_an_explicit_placement_that_finds_no_cell_is_an_error(cells: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"towers\.placement names cell {max(cells)}, .* cells 0 to 5"):
        with_towers(inception(), *cells)


# ------------------------------------------------- 3: towers fit any shape and leave the trunk as it was


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    keys=st.sampled_from([{}, {"tied": False}, {"batch_norm": False}, {"widths": (16,) * 4, "cells": (1, 4)}]),
    placement=st.sampled_from(["auto", "middle", "thirds", "none", "all", "last"]),
    kind=st.sampled_from(["light", "googlenet"]),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 64),
    width=st.integers(8, 64),
    classes=st.integers(2, 100),
)
def test_towers_fit_every_architecture_and_size(
    seed: int,
    keys: dict[str, Any],
    placement: str,
    kind: str,
    channels: int,
    height: int,
    width: int,
    classes: int,
) -> None:
    space = InceptionSpace(InceptionSettings.model_validate({"widths": (16, 24), "cells": (1, 3), **keys}))
    shape = (channels, height, width)
    torch.manual_seed(seed)
    network = space.build(space.random(seed), shape, classes)
    cells = len(cell_names(network))
    where: Any = {"all": tuple(range(cells)), "last": (cells - 1,)}.get(placement, placement)
    before, random = snapshot(network), torch.get_rng_state()
    supervised = supervise(network, TowersConfig(placement=where, kind=kind), shape, classes)  # type: ignore[arg-type]
    assert same(before, network.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    logits, aside = supervised(torch.randn(2, *shape))
    assert len(aside) == len(supervised.cells) == len(supervised.towers)
    for one in (logits, *aside):
        assert one.shape == (2, classes)
        assert one.isfinite().all()
    sum(one.square().sum() for one in (logits, *aside)).backward()
    assert all(p.grad is not None for p in supervised.parameters())
    assert hooks(network) == []


@pytest.mark.parametrize("make", [inception, Residual, Fickle])
def test_attaching_changes_neither_state_nor_mode_nor_random_numbers(make: Any) -> None:
    network = make()
    network.train()
    for module in list(network.modules())[3::4]:
        module.training = False  # as somebody has who freezes some batch norms
    modes = [module.training for module in network.modules()]
    assert len(set(modes)) == 2
    before = snapshot(network)
    assert any("num_batches_tracked" in name for name in before)
    random = torch.get_rng_state()
    with_towers(network)
    assert same(before, network.state_dict())
    assert modes == [module.training for module in network.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert hooks(network) == []


def test_attaching_does_not_reseed_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    network = inception()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    with_towers(network)


def test_a_dry_run_that_fails_leaves_the_network_as_it_was() -> None:
    network = Residual()
    network.layer2.training = False
    before, random = snapshot(network), torch.get_rng_state()
    with pytest.raises(RuntimeError):
        dry_run(network, ["layer1"], torch.zeros(2, 5, 16, 16))
    assert same(before, network.state_dict())
    assert [name for name, module in network.named_modules() if not module.training] == ["layer2"]
    assert torch.equal(random, torch.get_rng_state())
    assert hooks(network) == []


def test_towers_come_from_their_seed_alone() -> None:
    def towers(seed: int, disturbance: int) -> dict[str, Tensor]:
        network = inception()
        torch.manual_seed(disturbance)
        return supervise(network, TowersConfig(placement="thirds"), SHAPE, 10, seed).towers.state_dict()

    assert same(towers(0, 1), towers(0, 2))
    assert not same(towers(0, 1), towers(1, 1))


@pytest.mark.parametrize(
    "between", [nn.ReLU(inplace=True), nn.Dropout(0.9, inplace=True), nn.Hardtanh(-0.1, 0.1, inplace=True)], ids=str
)
def test_a_tower_reads_the_cell_before_the_trunk_changes_it_in_place(between: nn.Module) -> None:
    torch.manual_seed(0)
    network = Residual(between=between)
    supervised = with_towers(network, 0, 1)
    assert all(tap.changed_later for tap in supervised.taps)
    supervised.towers.eval()  # without dropout, to compare
    x = torch.randn(4, *SHAPE)
    torch.manual_seed(1)
    _, aside = supervised(x)
    sum(one.square().sum() for one in aside).backward()
    gradients = {name: p.grad.clone() for name, p in supervised.named_parameters() if p.grad is not None}

    supervised.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    first = network.layer1(functional.relu(network.bn1(network.conv1(x))))
    second = network.layer2(between(first.clone()))
    expected = [tower(cell) for tower, cell in zip(supervised.towers, (first, second), strict=True)]
    sum(one.square().sum() for one in expected).backward()
    for one, other in zip(aside, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert gradients.keys() == {name for name, p in supervised.named_parameters() if p.grad is not None}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, supervised.get_parameter(name).grad)


def test_a_tower_reads_the_very_tensor_where_nothing_changes_it() -> None:
    assert not any(tap.changed_later for tap in with_towers(inception()).taps)
    assert not any(tap.changed_later for tap in with_towers(Residual(between=nn.ReLU())).taps)


def test_the_tower_of_googlenet_pools_14x14_maps_as_the_paper_does_and_any_other_adaptively() -> None:
    x = torch.arange(14.0 * 14).reshape(1, 1, 14, 14)
    pooling = towers.googlenet(Tap("", 1, 14, 14, False), 10, 0)[0]  # type: ignore[index]
    assert torch.equal(pooling(x), functional.avg_pool2d(x, 5, 3))
    assert pooling(x).shape == (1, 1, 4, 4)
    for height, width in ((1, 1), (2, 3), (7, 7), (14, 15), (64, 9)):
        tower = towers.googlenet(Tap("", 6, height, width, False), 10, 0)
        assert tower(torch.randn(2, 6, height, width)).shape == (2, 10)


class Odd(nn.Module):
    """A network with one cell that is not as it should be."""

    def __init__(self, cell_names: Sequence[str] | None, output: Any = None) -> None:
        super().__init__()
        self.cell = nn.Conv2d(3, 4, 1)
        self.unused = nn.Identity()
        self.pair = _Pair()
        self.flat = nn.Flatten()
        if cell_names is not None:
            self.cell_names = cell_names

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.pair(self.cell(x))
        return self.flat(x)


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (None, "Odd names no cells"),
        ((), "Odd names no cells"),
        (("cell", "cel"), "no module 'cel'"),
        (("unused",), "'unused' takes no part"),
        (("pair",), "'pair' must give a tensor"),
        (("flat",), "'flat' must give a tensor"),
    ],
)
def test_a_network_that_names_its_cells_wrongly_is_refused(names: Sequence[str] | None, complaint: str) -> None:
    with pytest.raises(SpaceError, match=complaint):
        with_towers(Odd(names), 0)


def test_the_only_cell_may_carry_a_tower_when_it_is_named() -> None:
    supervised = with_towers(Odd(("cell",)), 0)
    assert isinstance(supervised, DeepSupervision)
    assert [one.shape for one in supervised(torch.randn(2, *SHAPE))[1]] == [(2, 10)]


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", [0.3, 0.3, 0.3, 0.3, 0.3]),
        ("linear", [0.3, 0.225, 0.15, 0.075, 0.0]),
        ("cosine", [0.3, 0.256066, 0.15, 0.043934, 0.0]),
        ("off:0.5", [0.3, 0.3, 0.0, 0.0, 0.0]),
    ],
)
def test_weights_over_training(schedule: Any, values: list[float]) -> None:
    assert [0.3 * course(schedule, quarter / 4) for quarter in range(5)] == pytest.approx(values, abs=1e-6)
