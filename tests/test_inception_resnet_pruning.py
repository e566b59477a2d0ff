"""Pruning of Inception-ResNet networks: channels that do nothing go first and change nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

import search_spaces
from nas.errors import InputError
from nas.evaluation.complexity import complexity
from nas.space import SearchSpace, Shape
from nas.steps import prune
from search_spaces.inception_resnet import (
    PORTFOLIO,
    Cell,
    InceptionResNetArchitecture,
    InceptionResNetNetwork,
    Layer,
    Stage,
)

SPACES: dict[str, tuple[dict[str, Any], Shape]] = {
    "as it comes": ({"stem": [16, 32], "widths": [[16, 32, 48], [32, 64], [64]]}, (1, 12, 12)),
    "narrow": ({"stem": [8, 16], "widths": [[8, 16, 24], [16, 24], [24]], "narrowest": 8}, (3, 9, 8)),
    "small maps": ({"stem": [16], "widths": [[16, 32], [32, 48]], "cells": [2, 3]}, (1, 5, 5)),
    "large stem": ({"stem": [8, 16], "widths": [[24, 48], [24]], "narrowest": 8, "resolution": 4}, (3, 32, 32)),
}


def space_of(name: str) -> SearchSpace:
    return search_spaces.load("inception_resnet", SPACES[name][0])


def layer(kind: Any, width: int) -> Layer:
    return Layer(kind=kind, width=width)


def trained(space: SearchSpace, architecture: Any, shape: Shape, seed: int = 0) -> InceptionResNetNetwork:
    """A network whose channels all matter, each by chance."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = space.build(architecture, shape, 4)
        assert isinstance(network, InceptionResNetNetwork)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.data.uniform_(0.5, 2)
    return network.eval()


def widths(architecture: InceptionResNetArchitecture) -> dict[str, int]:
    """Every width, by a name."""
    found = {"stem": architecture.stem}
    for place, cell in enumerate(architecture.cells):
        for number, branch in enumerate((cell.main, *cell.sides)):
            found |= {f"{place}.{number}.{depth}": one.width for depth, one in enumerate(branch)}
        if cell.pool:
            found[f"{place}.pool"] = cell.pool
    return found


class Silencer:
    """Makes channels 0 everywhere, and counts them by width: in the test's own words, what is added goes together.

    Silent are the channels whose number has one remainder, so that no group is silent as a whole.
    """

    def __init__(self, seed: int, share: float) -> None:
        self.chance = torch.Generator().manual_seed(seed)
        self.share = share
        self.counts: dict[str, int] = {}

    def some(self, channels: int) -> Tensor:
        """The channels to silence of a layer."""
        if torch.rand((), generator=self.chance) > self.share:
            return torch.zeros(channels, dtype=torch.bool)
        modulus = int(torch.randint(2, 5, (), generator=self.chance))
        return torch.arange(channels) % modulus == int(torch.randint(modulus, (), generator=self.chance))

    def silence(self, name: str | None, unit: Any, channels: Tensor) -> None:
        for tensor in (unit.norm.weight, unit.norm.bias):
            tensor.data[channels] = 0
        if name is not None:
            self.counts[name] = int(channels.sum())

    def network(self, network: InceptionResNetNetwork, shape: Shape) -> None:
        stem: Any = network.stem
        large = hasattr(stem, "second")
        silent = self.some(stem.first.conv.out_channels)
        cells: list[Any] = [network.get_submodule(name) for name in network.cell_names]
        if large and isinstance(getattr(cells[0], "shortcut", None), nn.Identity):
            silent = torch.zeros_like(silent)
        self.silence("stem", stem.first, silent)
        if large:
            self.silence(None, stem.reduce, silent)
            silent = torch.cat([silent, silent, silent])
            self.silence(None, stem.second, silent)
        for place, cell in enumerate(cells):
            shortcut = getattr(cell, "shortcut", None)
            branches = [
                ("main", cell.main),
                *enumerate(cell.sides, 1),
                *([("pool", cell.pool)] if cell.has_pool else []),
            ]
            total = sum(branch[-1].conv.out_channels for _, branch in branches)
            if not isinstance(shortcut, nn.Identity):
                silent = self.some(total)
            if shortcut is not None and not isinstance(shortcut, nn.Identity):
                self.silence(None, shortcut, silent)
            start = 0
            for which, branch in branches:
                units = [unit for unit in branch if hasattr(unit, "conv")]
                number = 0 if which == "main" else which
                for depth, unit in enumerate(units):
                    channels = unit.conv.out_channels
                    name = f"{place}.pool" if which == "pool" else f"{place}.{number}.{depth}"
                    last = depth == len(units) - 1
                    self.silence(name, unit, silent[start : start + channels] if last else self.some(channels))
                start += units[-1].conv.out_channels


def rebuilt(space: SearchSpace, network: Any, architecture: Any, smaller: Any, shape: Shape) -> nn.Module:
    made = space.build(smaller, shape, 4)
    made.load_state_dict(dict(space.pruned_weights(architecture, network, smaller)), strict=True)
    return made.eval()


@hypothesis_settings(deadline=None, derandomize=True, max_examples=30)
@given(name=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 2**32), share=st.sampled_from([0.3, 0.7, 1.0]))
def test_channels_that_do_nothing_go_first_and_change_no_logit(name: str, seed: int, share: float) -> None:
    space, shape = space_of(name), SPACES[name][1]
    architecture: Any = space.random(seed)
    network = trained(space, architecture, shape, seed % 1000)
    silencer = Silencer(seed % 2**31, share)
    silencer.network(network, shape)
    images = torch.randn(3, *shape, generator=silencer.chance)
    with torch.no_grad():
        expected = network(images)
    assert expected.std() > 1e-4, "logits too alike to compare"
    whole = widths(architecture)
    path: list[Any] = list(space.prune_path(architecture, network, 1))

    def is_silent(smaller: Any) -> bool:
        return all(whole[width] - left <= silencer.counts[width] for width, left in widths(smaller).items())

    silent = [smaller for smaller in path if is_silent(smaller)]
    assert silent == path[: len(silent)], "those that do nothing go first"
    for smaller in silent[len(silent) // 2 :: max(1, len(silent) // 2 - 1)] if silent else ():
        with torch.no_grad():
            torch.testing.assert_close(
                rebuilt(space, network, architecture, smaller, shape)(images), expected, atol=1e-4, rtol=1e-4
            )
    if silent:  # all of them are gone, but where a projection would have become an identity
        missing = sum(silencer.counts[width] - (whole[width] - left) for width, left in widths(silent[-1]).items())
        assert missing <= 0.1 * sum(silencer.counts.values()) + 4


@hypothesis_settings(deadline=None, derandomize=True, max_examples=15)
@given(name=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 2**32), step=st.sampled_from([1, 3, 4, 8]))
def test_ever_narrower_architectures_build_with_the_weights_that_are_left(name: str, seed: int, step: int) -> None:
    space, shape = space_of(name), SPACES[name][1]
    architecture: Any = space.random(seed)
    network = trained(space, architecture, shape)
    path: list[Any] = [architecture, *space.prune_path(architecture, network, step)]
    assert len(set(path)) == len(path)
    for before, after in itertools.pairwise(path):
        assert all(left <= widths(before)[width] for width, left in widths(after).items())
        assert widths(before) != widths(after)
        assert min(widths(after).values()) >= 1
    shortcuts = [type(getattr(network.get_submodule(cell), "shortcut", None)) for cell in network.cell_names]
    for smaller in path[:: 1 + len(path) // 4] + path[-1:]:
        assert InceptionResNetArchitecture.from_json(smaller.to_json()) == smaller
        made: Any = rebuilt(space, network, architecture, smaller, shape)
        assert [type(getattr(made.get_submodule(cell), "shortcut", None)) for cell in made.cell_names] == shortcuts
        with torch.no_grad():
            assert made(torch.randn(2, *shape)).isfinite().all()


@pytest.mark.parametrize("name", PORTFOLIO)
def test_half_of_the_multiply_adds_of_a_named_point_can_go(name: str) -> None:
    space, shape = search_spaces.load("inception_resnet"), (1, 28, 28)
    architecture: Any = space.point(PORTFOLIO[name])
    network = trained(space, architecture, shape)
    whole = complexity(space, architecture, shape, 4).flops
    smaller = prune.smaller(space, architecture, network, 0.5, 8, shape, 4)
    assert 0.3 * whole < complexity(space, smaller, shape, 4).flops <= 0.5 * whole
    prune.weights_left(space, architecture, network, smaller, shape, 4)
    with pytest.raises(InputError, match="is more than can be removed"):
        prune.smaller(space, architecture, network, 0.999, 8, shape, 4)


def test_channels_that_are_added_leave_together() -> None:
    """The stem and three cells, with branches cut at 4, 8 and 12 of 16 channels."""
    space, shape = search_spaces.load("inception_resnet"), (1, 8, 8)
    one = Cell(main=(layer("3x3", 8),), sides=((layer("1x1", 8),),), shortcut=True)
    other = Cell(main=(layer("3x3", 4),), sides=((layer("1x1", 8),),), pool=4, shortcut=True)
    architecture = InceptionResNetArchitecture(stem=16, stages=(Stage(cells=(one, other, one)),))
    network: Any = trained(space, architecture, shape)
    assert all(isinstance(network.get_submodule(name).shortcut, nn.Identity) for name in network.cell_names)
    for smaller in map(widths, map(_typed, space.prune_path(architecture, network, 1))):
        assert smaller["stem"] == smaller["0.0.0"] + smaller["0.1.0"] == smaller["2.0.0"] + smaller["2.1.0"]
        assert smaller["stem"] == smaller["1.0.0"] + smaller["1.1.0"] + smaller["1.pool"]
        assert smaller["0.0.0"] == smaller["2.0.0"]
    images, silent = torch.randn(3, *shape), torch.tensor([1, 2, 6, 11, 13, 14])
    cells = [network.get_submodule(name) for name in network.cell_names]
    for start, unit in [
        (0, network.stem.first),
        *((0, cell.main.layer1) for cell in cells),
        *((start, cell.sides[0].layer1) for start, cell in zip((8, 4, 8), cells, strict=True)),
        (12, cells[1].pool[1]),
    ]:
        own = silent[(silent >= start) & (silent < start + unit.conv.out_channels)] - start
        unit.norm.weight.data[own] = unit.norm.bias.data[own] = 0
    sixth = space.prune_path(architecture, network, 1)[5]
    assert widths(_typed(sixth)) == {
        "stem": 10, "0.0.0": 5, "0.1.0": 5, "1.0.0": 2, "1.1.0": 6, "1.pool": 2, "2.0.0": 5, "2.1.0": 5,
    }  # fmt: skip
    made: Any = rebuilt(space, network, architecture, sixth, shape)
    with torch.no_grad():
        torch.testing.assert_close(made(images), network(images))
    left = [channel for channel in range(16) if channel not in silent]
    assert torch.equal(made.stem.first.norm.weight, network.stem.first.norm.weight[left])


def test_a_projection_is_never_made_an_identity() -> None:
    space, shape = search_spaces.load("inception_resnet"), (1, 8, 8)
    wider = Cell(main=(layer("3x3", 24),), shortcut=True)
    architecture = InceptionResNetArchitecture(stem=16, stages=(Stage(cells=(wider,)),))
    network = trained(space, architecture, shape)
    pairs = [
        (smaller["stem"], smaller["0.0.0"])
        for smaller in map(widths, map(_typed, space.prune_path(architecture, network, 4)))
    ]
    assert pairs
    assert all(stem != outputs for stem, outputs in pairs)


def test_a_large_stem_that_is_added_to_a_cell_stays() -> None:
    space, shape = search_spaces.load("inception_resnet", {"resolution": 4}), (1, 32, 32)
    same = Cell(main=(layer("3x3", 8), layer("3x3", 24)), shortcut=True)
    architecture = InceptionResNetArchitecture(stem=8, stages=(Stage(cells=(same,)),))
    network = trained(space, architecture, shape)
    path = space.prune_path(architecture, network, 1)
    assert [widths(_typed(one)) for one in path] == [
        {"stem": 8, "0.0.0": left, "0.0.1": 24} for left in range(7, 0, -1)
    ]
    rebuilt(space, network, architecture, path[-1], shape)


def _typed(architecture: Any) -> InceptionResNetArchitecture:
    assert isinstance(architecture, InceptionResNetArchitecture)
    return architecture
