"""How far each loss reaches: exactly the parameters it should, by name, and no other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import search_spaces
from nas.auxiliary import DeepSupervision, attach, cell_names, supervise
from nas.auxiliary.reach import backward
from nas.config import TowersConfig
from nas.errors import ConfigError
from nas.training.task import TASKS
from search_spaces.inception import InceptionSettings, InceptionSpace

SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Stack(nn.Module):
    """A stem, six cells with a convolution of their own between each two, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.cells = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))
        self.between = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(5))
        self.head = nn.Linear(4, 5)
        self.cell_names = tuple(f"cells.{i}" for i in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for number, cell in enumerate(self.cells):
            x = F.relu(cell(x))
            if number < 5:
                x = self.between[number](x)
        return self.head(x.mean((2, 3)))


def reached(model: DeepSupervision, number: int, classes: int = 5) -> set[str]:
    """Names of the modules whose parameters the main loss (0) or a tower's (1, 2, ...) gives a gradient to."""
    images = torch.randn(4, *SHAPE)
    losses = model.losses(model(images), torch.arange(4) % classes)
    model.zero_grad(set_to_none=True)
    parameters = model.reached()
    one = (losses.main, *losses.towers)[number]
    if parameters is None:
        one.backward()
    else:
        backward([one], [parameters[number]], None)
    return {name.rpartition(".")[0] for name, p in model.named_parameters() if p.grad is not None}


def layers(*names: str) -> set[str]:
    return {f"network.{name}" for name in names}


@pytest.mark.parametrize(
    ("k", "first", "second"),
    [
        (1, {"cells.1", "between.0"}, {"cells.4", "between.3"}),
        (2, {"cells.1", "between.0", "cells.0"}, {"cells.4", "between.3", "cells.3", "between.2"}),
        (
            4,  # reaches below the first cell: the stem is the one below it
            {"cells.1", "between.0", "cells.0", "stem"},
            {"cells.4", "between.3", "cells.3", "between.2", "cells.2", "between.1", "cells.1", "between.0"},
        ),
    ],
)
def test_relay_reaches_k_cells_below_the_tap(k: int, first: set[str], second: set[str]) -> None:
    model = attach(Stack(), {1: "linear", 4: "linear"}, torch.zeros(2, *SHAPE), reach=f"relay:{k}", share=0.9)
    tower = [f"towers.{number}.2" for number in range(2)]
    assert reached(model, 1) == layers(*first) | {tower[0]}
    assert reached(model, 2) == layers(*second) | {tower[1]}
    everything = {"stem", "head", *(f"cells.{i}" for i in range(6)), *(f"between.{i}" for i in range(5))}
    assert reached(model, 0) == layers(*everything)


def test_the_main_loss_may_be_kept_from_the_lowest_cells() -> None:
    model = attach(
        Stack(), {1: "linear", 3: "linear"}, torch.zeros(2, *SHAPE), reach="relay:3", main_reach=2, share=0.9
    )
    assert reached(model, 0) == layers("head", "cells.5", "between.4", "cells.4", "between.3")


@pytest.mark.parametrize(
    ("cells", "k", "main", "missing"),
    [
        ((1, 3), 2, 2, "the stem"),
        ((1, 4), 3, 1, r"cell 2 \(cells.2\)|none"),
        ((4,), 2, 1, "the stem"),
        ((0, 4), 2, 1, r"cell 1 \(cells.1\)"),
    ],
)
def test_segments_must_cover_the_network(cells: tuple[int, ...], k: int, main: int, missing: str) -> None:
    def make() -> DeepSupervision:
        towers = dict.fromkeys(cells, "linear")
        return attach(Stack(), towers, torch.zeros(2, *SHAPE), reach=f"relay:{k}", main_reach=main, share=0.9)

    if "none" in missing:
        make()
    else:
        with pytest.raises(ConfigError, match=f"no loss reaches {missing}"):
            make()


def test_overlapping_segments_add_up_to_what_each_loss_gives_alone() -> None:
    model = attach(Stack(), {2: "linear", 4: "linear"}, torch.zeros(2, *SHAPE), reach="relay:3", share=0.9)
    images, labels = torch.randn(4, *SHAPE), torch.arange(4)
    losses = model.losses(model(images), labels)
    losses.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    parameters = model.reached()
    assert parameters is not None
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    losses = model.losses(model(images), labels)
    for weight, loss, inputs in zip((1.0, *losses.weights), (losses.main, *losses.towers), parameters, strict=True):
        for one, gradient in zip(inputs, torch.autograd.grad(loss, inputs, retain_graph=True), strict=True):
            expected[names[id(one)]] += weight * gradient
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_a_detached_tower_measures_and_does_not_teach() -> None:
    model = attach(Stack(), {2: "light"}, torch.zeros(2, *SHAPE), reach="detached", share=0.9)
    assert reached(model, 1) == {f"towers.0.{i}" for i in (1, 2, 5, 8)}
    network = Stack()
    network.load_state_dict(model.network.state_dict())
    images = torch.randn(4, *SHAPE)
    model.zero_grad()
    model.losses(model(images), torch.arange(4)).backward()
    F.cross_entropy(network(images), torch.arange(4)).backward()
    for (name, one), other in zip(model.network.named_parameters(), network.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]


PLACEMENTS = ["auto", "middle", "thirds", "two-thirds", "stages", "every:1", "every:2", "none", "last"]
REACHES = ["full", "relay:1", "relay:2", "relay:3", "detached"]


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    seed=st.integers(0, 2**31),
    keys=st.sampled_from([{}, {"tied": False}, {"batch_norm": False}, {"widths": (16,) * 4, "cells": (1, 4)}]),
    placement=st.sampled_from(PLACEMENTS),
    reach=st.sampled_from(REACHES),
    kind=st.sampled_from(["light", "linear", "googlenet", "darts"]),
    height=st.integers(8, 64),
    width=st.integers(8, 64),
    classes=st.integers(2, 100),
)
def test_gradients_are_exactly_where_they_should_be_and_the_trunk_is_as_it_was(
    seed: int, keys: dict[str, Any], placement: str, reach: str, kind: str, height: int, width: int, classes: int
) -> None:
    assume(height * width <= 40 * 40)
    space = InceptionSpace(InceptionSettings.model_validate({"widths": (16, 24), "cells": (1, 3), **keys}))
    shape = (3, height, width)
    torch.manual_seed(seed)
    network = space.build(space.random(seed), shape, classes)
    cells = cell_names(network)
    where: Any = (len(cells) - 1,) if placement == "last" else placement
    config = TowersConfig.model_validate({"placement": where, "reach": reach, "kind": kind, "share": 0.5})
    images = torch.randn(2, *shape)
    alone = activations(network.eval(), images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tower over its share is left out
        model = supervise(network, config, shape, classes)
    beside = activations(network, images, model.eval())
    assert alone.keys() == beside.keys()
    assert all(torch.equal(one, beside[name]) for name, one in alone.items())

    model.train()
    labels = torch.arange(2) % classes
    k = int(reach.partition(":")[2] or 0)
    position = {name: -1 for name, _ in network.named_parameters()}  # the stem
    for name in position:
        inside = [number for number, cell in enumerate(cells) if name.startswith(f"{cell}.")]
        position[name] = inside[0] if inside else len(cells) if name.startswith("linear.") else -1
    losses = model.losses(model(images), labels)
    parameters = model.reached()
    for number, loss in enumerate((losses.main, *losses.towers)):
        model.zero_grad(set_to_none=True)
        if parameters is None:
            loss.backward(retain_graph=True)
        else:
            torch.autograd.backward(loss, inputs=parameters[number], retain_graph=True)
        got = {name for name, p in model.named_parameters() if p.grad is not None}
        if number == 0:
            expected = {f"network.{name}" for name in position}
        else:
            tap = model.cells[number - 1]
            lowest = {"full": -1, "detached": len(cells)}.get(reach, tap - k + 1)
            expected = {f"network.{name}" for name, at in position.items() if lowest <= at <= tap}
            expected |= {f"towers.{number - 1}.{name}" for name, _ in model.towers[number - 1].named_parameters()}
        assert got == expected
    model.zero_grad(set_to_none=True)
    losses = model.losses(model(images), labels)
    losses.backward()
    assert all(p.grad is not None for p in model.parameters())


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    placement=st.sampled_from(PLACEMENTS),
    reach=st.sampled_from(["full", "relay:2", "detached"]),
    kind=st.sampled_from(["light", "linear", "fcn"]),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    classes=st.integers(2, 30),
)
def test_towers_for_one_label_a_pixel_fit_and_teach_too(
    seed: int, placement: str, reach: str, kind: str, height: int, width: int, classes: int
) -> None:
    ranges = {"blocks": [[1, 2]] * 3, "widths": [[8, 16]] * 3, "stem": [8, 8], "pyramid": [1, 2], "output_stride": 8}
    space = search_spaces.load("resnet", ranges)
    shape = (3, height, width)
    torch.manual_seed(seed)
    network = space.build(space.random(seed), shape, classes)
    where: Any = (len(cell_names(network)) - 1,) if placement == "last" else placement
    config = TowersConfig.model_validate({"placement": where, "reach": reach, "kind": kind, "share": 0.5})
    images = torch.randn(2, *shape)
    with torch.no_grad():
        alone = network.eval()(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = supervise(network, config, shape, classes)
    with torch.no_grad():
        assert torch.equal(model.eval()(images)[0], alone)
    model.train()
    labels = torch.randint(classes, (2, height, width))
    outputs = model(images)
    for tap, one in zip(model.taps, outputs[1], strict=True):
        assert one.shape == (2, classes, tap.height, tap.width)
    losses = model.losses(outputs, labels, criterion=TASKS["dense"].loss)
    losses.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def activations(network: nn.Module, images: Tensor, through: nn.Module | None = None) -> dict[str, Tensor]:
    """What every module of the network gives, run by itself or through its wrapper."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: found.update({name: output.clone()}))
        for name, module in network.named_modules()
    ]
    with torch.no_grad():
        (through or network)(images)
    for handle in handles:
        handle.remove()
    assert found
    return found
