"""The Inception-ResNet space: equal networks are equal, textbook networks are points of it, every point computes."""

from __future__ import annotations

import itertools
import json
import warnings
from typing import Any

import onnxruntime
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import search_spaces
from nas import auxiliary
from nas.config import TowersConfig
from nas.errors import SpaceError
from nas.evaluation.complexity import complexity
from nas.export import fold
from nas.space import RandomTrial, Shape
from search_spaces.inception_resnet import (
    PORTFOLIO,
    Cell,
    CellNetwork,
    ConvUnit,
    InceptionResNetArchitecture,
    InceptionResNetNetwork,
    InceptionResNetSpace,
    Layer,
    Stage,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "narrow": {"stem": [8], "widths": [[8, 16], [24]], "cells": [1, 2], "narrowest": 8},
    "one stage": {"widths": [[32, 96]], "cells": [2, 4], "side_kinds": ["1x7-7x1", "pool"], "activations": ["gelu"]},
    "small maps": {"resolution": 8, "dropout": 0.5, "reductions": ["inner-pool"], "mains": ["1x1-3x3-1x1"]},
}
SHAPES: list[Shape] = [(3, 8, 8), (1, 28, 28), (3, 32, 32), (3, 40, 24), (1, 4, 5)]

PLAIN: dict[str, Any] = {"main": [{"kind": "3x3", "width": 8}]}

each_setting = pytest.mark.parametrize("keys", SETTINGS.values(), ids=SETTINGS)


def space(**keys: Any) -> Any:
    loaded = search_spaces.load("inception_resnet", keys)
    assert isinstance(loaded, InceptionResNetSpace)
    return loaded


def branch(text: str) -> tuple[Layer, ...]:
    """Layers such as ``1x1:16-3x3:32``."""
    pairs = (layer.split(":") for layer in text.split("-"))
    return tuple(Layer.model_validate({"kind": kind, "width": int(width)}) for kind, width in pairs)


def cell(main: str, *sides: str, **keys: Any) -> Cell:
    return Cell(main=branch(main), sides=tuple(map(branch, sides)), **keys)


def architecture(*stages: Stage, **keys: Any) -> InceptionResNetArchitecture:
    return InceptionResNetArchitecture(stem=keys.pop("stem", 8), stages=stages, **keys)


def point(**values: Any) -> InceptionResNetArchitecture:
    """The point ``resnet14`` with other values."""
    chosen = space().point(PORTFOLIO["resnet14"] | {key.replace("__", "."): value for key, value in values.items()})
    assert isinstance(chosen, InceptionResNetArchitecture)
    return chosen


def sizes_of_maps(network: InceptionResNetNetwork, shape: Shape) -> list[tuple[int, int]]:
    """Height and width of the output of each cell."""
    sizes: list[tuple[int, int]] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        sizes.append((output.shape[2], output.shape[3]))

    for name in network.cell_names:
        network.get_submodule(name).register_forward_hook(note)
    device = network.linear.weight.device
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape, device=device))
    return sizes


# --------------------------------------------------------------------------------------------- named points


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet8", 77_754),
        ("resnet8-s2", 77_754),
        ("resnet14", 174_970),
        ("resnet20", 272_186),
        ("resnet8-wide", 308_074),
        ("vgg-small", 574_314),
        ("vgg-pool", 574_314),
    ],
)
def test_textbook_networks_have_their_number_of_parameters(name: str, params: int) -> None:
    assert complexity(space(), space().point(space().named()[name]), (1, 28, 28), 10).params == params


def test_the_portfolio_spans_octaves_of_cost() -> None:
    found = {
        name: complexity(space(), space().point(values), (1, 28, 28), 10) for name, values in space().named().items()
    }
    assert list(found) == list(PORTFOLIO)
    assert 8 <= len(found) <= 12
    assert found["inception-tiny"].params < 40_000
    assert 80_000 < found["inception-resnet"].params < 120_000
    flops = sorted(one.flops for one in found.values())
    assert flops[0] < 4e6
    assert flops[-1] > 80e6
    assert all(after < 3 * before for before, after in itertools.pairwise(flops))


@pytest.mark.parametrize("name", PORTFOLIO)
def test_a_named_point_is_asked_for_and_trains(name: str) -> None:
    one, values = space(), space().named()[name]
    trial = optuna.trial.FixedTrial(dict(values))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna warns of a value out of its range
        chosen = one.suggest(trial)
    assert set(trial.params) == set(values)
    assert one.point(values) == chosen == one.architecture_type.from_json(chosen.to_json())
    torch.manual_seed(0)
    network = one.build(chosen, (1, 28, 28), 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images, labels = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    losses = []
    for _ in range(3):
        loss = functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_cells_of_named_points() -> None:
    one = space()

    def described(name: str) -> list[str]:
        return list(one.describe(one.point(one.named()[name])))

    assert described("resnet8") == [
        "3x3:16-3x3:16  + shortcut",
        "3x3:32-3x3:32  + shortcut  /2",
        "3x3:64-3x3:64  + shortcut  /2",
    ]
    assert described("vgg-small")[:3] == ["3x3:64  /2 inner-pool", "3x3:64", "3x3:128  /2 inner-pool"]
    assert described("resnet9")[:2] == ["3x3:64  /2 pool", "3x3:64-3x3:64  + shortcut"]
    assert described("googlenet-small")[-1] == "1x1:32-3x3:64 | 1x1:16-5x5:32 | max:32"
    wide = cell("3x3:64-3x3:64", "1x1:16", pool=16, shortcut=True)
    assert one.describe(architecture(Stage(cells=(wide,), reduction="stride"))) == [
        "3x3:64-3x3:64 | 1x1:16 | max:16  + shortcut  /2"
    ]


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"activations": ["gelu"]}, {"vgg-small"}),
        ({"stem": [32], "side_kinds": ["none"], "reductions": ["stride"]}, {"resnet8-wide"}),
        ({"cells": [3, 3]}, {"resnet20"}),
        ({"widths": [[16, 32], [32]]}, set()),
        ({"side_kinds": ["5x5", "pool"]}, {"googlenet-small"}),
        ({"mains": ["3x3"]}, {"vgg-small", "vgg-pool", "vgg-wide", "inception-tiny"}),
    ],
    ids=["gelu", "one side", "deep", "two stages", "sides", "one main"],
)
def test_points_out_of_the_ranges_are_left_out(keys: dict[str, Any], names: set[str]) -> None:
    assert set(space(**keys).named()) == names


def test_resnet8_is_written_out_the_textbook_network() -> None:
    """Weights moved into layers written by hand give the same logits."""
    torch.manual_seed(0)
    one = space()
    network = one.build(one.point(one.named()["resnet8"]), (3, 32, 32), 10).eval()
    x = torch.randn(4, 3, 32, 32)

    def unit(module: Any, y: Tensor, stride: int = 1) -> Tensor:
        padding = module.conv.kernel_size[0] // 2
        return module.norm(functional.conv2d(y, module.conv.weight, None, stride, padding))  # type: ignore[no-any-return]

    y = unit(network.stem.first, x).relu()
    for number, stride in ((1, 1), (2, 2), (3, 2)):
        own: Any = network.get_submodule(f"body.stage{number}.cell1")
        inside = unit(own.main.layer2, unit(own.main.layer1, y, stride).relu())
        y = (inside + (unit(own.shortcut, y, stride) if number > 1 else y)).relu()
    torch.testing.assert_close(network(x), network.linear(y.mean((2, 3))))


# ------------------------------------------------------------------------------------------- architectures


def test_equal_cells_are_equal() -> None:
    assert cell("3x3:16", pool_kind="avg") == cell("3x3:16")
    assert cell("3x3:16", pool=8, pool_kind="avg") != cell("3x3:16", pool=8)
    one, other = cell("3x3:16", "1x1:8", "1x1:8-5x5:8"), cell("3x3:16", "1x1:8-5x5:8", "1x1:8")
    assert one == other
    assert one.key == other.key
    assert one.width == 32


def test_plain_sequences_are_cells_of_one_layer() -> None:
    merged = Stage(reduction="pool", cells=(cell("3x3:16-3x3:16"), cell("1x1:8-3x3:16")))
    apart = Stage(reduction="pool", cells=(cell("3x3:16"), cell("3x3:16"), cell("1x1:8"), cell("3x3:16")))
    assert merged == apart
    assert merged.key == apart.key
    strided = Stage(reduction="stride", cells=(cell("1x1:8-3x3:16"), cell("1x1:8-3x3:16")))
    assert strided.cells == (cell("1x1:8-3x3:16"), cell("1x1:8"), cell("3x3:16"))  # the stride is on the 3x3
    kept = Stage(cells=(cell("3x3:16-3x3:16", shortcut=True), cell("3x3:16-3x3:16", pool=8)))
    assert len(kept.cells) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"side1": "1x1", "side2": "5x5"}, {"side1": "5x5", "side2": "1x1"}),
        ({"side1": "1x1", "side2": "1x1"}, {"side1": "none", "side2": "1x1"}),
        ({"reduction": "inner-pool"}, {"reduction": "pool"}),
        ({"side_share": 0.125, "sides_from": 2}, {}),
        ({"main_reduce": 0.25}, {}),
        (
            {"shortcut": "none", "stage1__cells": 1, "stage2__cells": 1, "stage3__cells": 1},
            {"shortcut": "none", "main": "3x3"},
        ),
        ({"side1": "5x5", "stage1__width": 16, "sides_from": 1}, {"side1": "5x5", "sides_from": 2}),
        (
            {"shortcut": "inner", "stage1__cells": 1, "stage2__cells": 1, "stage3__cells": 1, "side1": "5x5"},
            {"shortcut": "none", "stage1__cells": 1, "stage2__cells": 1, "stage3__cells": 1, "main": "3x3"},
        ),
    ],
)
def test_equal_networks_have_equal_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert point(**one) == point(**other)
    assert point(**one).key == point(**other).key


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stem": 0}, "stem"),
        ({"stem_stride": 3}, "stem_stride"),
        ({"activation": "tanh"}, "activation"),
        ({"head": "fully-connected"}, "head"),
        ({"stages": []}, "stages"),
        ({"stages": [{"cells": []}]}, "cells"),
        ({"stages": [{"cells": [{"main": []}]}]}, "main"),
        ({"stages": [{"cells": [{"main": [{"kind": "9x9", "width": 8}]}]}]}, "kind"),
        ({"stages": [{"cells": [{"main": [{"kind": "3x3", "width": 0}]}]}]}, "width"),
        ({"stages": [{"cells": [PLAIN | {"sides": [[]]}]}]}, "every side needs a layer"),
        (
            {"stages": [{"cells": [PLAIN | {"sides": [PLAIN["main"]] * 2}]}]},
            r"two sides have the same kinds of layers: 3x3:8 \| 3x3:8",
        ),
        (
            {"stages": [{"reduction": "inner-pool", "cells": [PLAIN | {"shortcut": True}]}]},
            "inner-pool cannot have a shortcut",
        ),
        ({"stages": [{"reduction": "half", "cells": [PLAIN]}]}, "reduction"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_is_no_architecture_is_refused_in_one_line(changes: dict[str, Any], complaint: str) -> None:
    values = {"stem": 8, "stages": [{"cells": [PLAIN]}]}
    InceptionResNetArchitecture.from_json(json.dumps(values))
    with pytest.raises(SpaceError, match=complaint) as caught:
        InceptionResNetArchitecture.from_json(json.dumps(values | changes))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ encoding


@each_setting
def test_every_trial_is_asked_for_the_same_names(keys: dict[str, Any]) -> None:
    asked = []
    for seed in range(60):
        space(**keys).suggest(trial := RandomTrial(seed))
        asked.append(tuple(trial.params))
    assert len(set(asked)) == 1
    assert len(asked[0]) == 14 + 2 * len(space(**keys).settings.widths)


@hypothesis_settings(deadline=None, derandomize=True, max_examples=100)
@given(seed=st.integers(0, 2**32), keys=st.sampled_from(list(SETTINGS.values())))
def test_a_random_architecture_is_json_and_can_be_suggested_again(seed: int, keys: dict[str, Any]) -> None:
    one = space(**keys)
    chosen = one.suggest(trial := RandomTrial(seed))
    again = InceptionResNetArchitecture.from_json(chosen.to_json())
    assert again == chosen
    assert again.key == chosen.key
    assert hash(again) == hash(chosen)
    assert one.point(trial.params) == chosen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.suggest(optuna.trial.FixedTrial(trial.params)) == chosen


@hypothesis_settings(deadline=None, derandomize=True, max_examples=200)
@given(seed=st.integers(0, 2**32), keys=st.sampled_from(list(SETTINGS.values())))
def test_cells_have_the_width_of_their_stage_and_no_branch_is_too_narrow(seed: int, keys: dict[str, Any]) -> None:
    one = space(**keys)
    chosen = one.suggest(trial := RandomTrial(seed))
    for number, stage in enumerate(chosen.stages, 1):
        if trial.params["shortcut"] == "all":
            assert all(cell.shortcut for cell in stage.cells)
        if trial.params["shortcut"] == "none":
            assert not any(cell.shortcut for cell in stage.cells)
        if trial.params["shortcut"] == "inner":
            assert [cell.shortcut for cell in stage.cells] == [False] + [True] * (len(stage.cells) - 1)
            assert stage.cells[0].main == branch(f"3x3:{stage.cells[0].width}")
        if number < trial.params["sides_from"]:
            assert all(len(cell.branches) == 1 for cell in stage.cells)
        assert (stage.reduction == "none") == (number == 1 and not trial.params["first_reduction"])
        for own in stage.cells:
            if not own.is_chain:
                assert own.width == trial.params[f"stage{number}.width"]
            for layer in itertools.chain.from_iterable(own.branches):
                assert layer.width >= one.settings.narrowest
                assert layer.width % 8 == 0


def test_sides_are_dropped_where_there_is_no_room() -> None:
    def sides(width: int) -> list[str]:
        chosen = point(side1="5x5", side2="pool", side_share=0.25, stage2__width=width)
        return [text.partition(":")[0] for text in space().describe(chosen)[2].partition("  ")[0].split(" | ")[1:]]

    assert sides(32) == ["1x1"]  # the reduction of the 5x5
    assert sides(48) == ["1x1", "max"]
    assert len(point(side1="5x5").stages[0].cells[0].branches) == 1


def test_random_points_cost_from_1_to_200_mflops() -> None:
    one = space()
    flops = sorted(complexity(one, one.random(seed), (1, 28, 28), 10).flops / 1e6 for seed in range(40))
    assert flops[0] < 4
    assert 10 < flops[20] < 60
    assert flops[-1] > 200
    assert len({one.random(seed) for seed in range(200)}) > 190


@pytest.mark.parametrize("name", ["stem", "shortcut", "main", "side1", "stage2.width", "head"])
def test_every_choice_makes_a_difference(name: str) -> None:
    values = PORTFOLIO["inception-resnet"] | {"side2": "pool"}
    ranges = {
        "stem": (16, 64),
        "shortcut": ("none", "inner", "all"),
        "main": ("3x3", "3x3-3x3", "1x1-3x3", "1x1-3x3-1x1"),
        "side1": ("none", "1x1", "3x3", "5x5", "3x3-3x3", "1x7-7x1"),
        "stage2.width": (32, 96),
        "head": ("average", "max"),
    }
    assert len({space().point(values | {name: value}) for value in ranges[name]}) == len(ranges[name])


# ------------------------------------------------------------------------------------------------ networks


def check(chosen: InceptionResNetArchitecture, one: InceptionResNetSpace, shape: Shape, classes: int) -> None:
    network = one.build(chosen, shape, classes)
    cells = [network.get_submodule(name) for name in network.cell_names]
    assert all(isinstance(cell, CellNetwork) for cell in cells)
    order = [module for module in network.modules() if isinstance(module, CellNetwork)]
    assert order == cells
    assert len(cells) == len(chosen.cells) == len(one.describe(chosen))
    logits = network(torch.randn(3, *shape))
    assert logits.shape == (3, classes)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    images = torch.randn(4, *shape)
    with torch.no_grad():
        network.eval()
        torch.testing.assert_close(network(images)[:2], network(images[:2]), atol=1e-4, rtol=1e-4)


@hypothesis_settings(deadline=None, derandomize=True, max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    keys=st.sampled_from(list(SETTINGS.values())),
    shape=st.sampled_from(SHAPES),
    classes=st.integers(2, 12),
)
def test_every_architecture_builds_and_computes(seed: int, keys: dict[str, Any], shape: Shape, classes: int) -> None:
    one = space(**keys)
    torch.manual_seed(seed)
    check(one.random(seed), one, shape, classes)


@hypothesis_settings(deadline=None, derandomize=True, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    keys=st.sampled_from(list(SETTINGS.values())),
    height=st.integers(4, 300),
    width=st.integers(4, 300),
)
def test_branches_agree_on_images_of_any_size(seed: int, keys: dict[str, Any], height: int, width: int) -> None:
    one = space(**keys)
    with torch.device("meta"):
        network = one.build(one.random(seed), (3, height, width), 10)
    sizes = sizes_of_maps(network, (3, height, width))
    assert min(min(size) for size in sizes) >= 3
    assert min(sizes[0]) <= one.settings.resolution
    for before, after in itertools.pairwise(sizes):
        if min(before) < 6:
            assert after == before
        assert after in (
            before,
            tuple(side // 2 for side in before),
            tuple((side + 1) // 2 for side in before),
        )


@pytest.mark.parametrize(
    ("name", "size", "sides"),
    [
        ("vgg-small", 28, [14, 14, 7, 7, 3, 3]),
        ("vgg-pool", 28, [14, 14, 7, 7, 3, 3]),
        ("vgg-pool", 8, [4, 4, 4, 4, 4, 4]),
        ("resnet8", 28, [28, 14, 7]),
        ("resnet8-s2", 28, [14, 7, 4]),
        ("resnet8-s2", 5, [5, 5, 5]),
        ("resnet8", 224, [28, 14, 7]),
        ("resnet8-s2", 224, [14, 7, 4]),
        ("resnet8", 64, [32, 16, 8]),
    ],
)
def test_maps_halve_until_they_are_small(name: str, size: int, sides: list[int]) -> None:
    one = space()
    with torch.device("meta"):
        network = one.build(one.point(PORTFOLIO[name]), (3, size, size), 10)
    assert [height for height, _ in sizes_of_maps(network, (3, size, size))] == sides


def test_images_of_224_pixels_meet_the_stem_of_googlenet() -> None:
    with torch.device("meta"):
        stem = space().build(space().random(0), (3, 224, 224), 10).stem
    assert [name for name, _ in stem.named_children()][:5] == ["first", "pool1", "reduce", "second", "pool2"]


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(SpaceError, match="at least 4x4 pixels, got 3x64"):
        space().build(space().random(0), (1, 3, 64), 10)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("shortcut", [True, False])
def test_a_cell_is_its_branches_and_its_shortcut(activation: Any, shortcut: bool) -> None:
    torch.manual_seed(0)
    own = cell("1x1:4-3x3:6", "1x1:4", "1x1:4-1x7:4-7x1:6", pool=4, pool_kind="avg", shortcut=shortcut)
    network: Any = CellNetwork(own, 5, activation, "stride").eval()
    act = functional.relu if activation == "relu" else functional.gelu

    def unit(module: Any, y: Tensor, linear: bool = False) -> Tensor:
        y = module.norm(module.conv(y))
        return y if linear else act(y)

    x = torch.randn(2, 5, 7, 9)
    main, sides = network.main, network.sides
    branches = [
        unit(main.layer2, unit(main.layer1, x), shortcut),
        unit(sides[0].layer1, x, shortcut),
        unit(sides[1].layer3, unit(sides[1].layer2, unit(sides[1].layer1, x)), shortcut),
        unit(network.pool[1], functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False), shortcut),
    ]
    expected = torch.cat(branches, 1)
    if shortcut:
        expected = act(expected + unit(network.shortcut, x, True))
    assert network(x).shape == (2, 20, 4, 5)
    torch.testing.assert_close(network(x), expected)


def test_inner_pooling_stands_between_convolution_and_batch_norm() -> None:
    unit = CellNetwork(cell("3x3:6-3x3:6", pool=4), 5, "gelu", "inner-pool").main.layer1
    assert [name for name, _ in unit.named_children()] == ["conv", "pool", "norm", "activation"]  # type: ignore[union-attr]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("reduction", ["none", "stride"])
def test_a_cell_leaves_its_input_as_it_is(activation: Any, reduction: Any) -> None:
    """A tower taps the output of the cell before it."""
    for own in (cell("3x3:8", shortcut=True), cell("3x3:4", "1x1:2", pool=2, shortcut=True), cell("3x3:8", "1x1:8")):
        network, x = CellNetwork(own, 8, activation, reduction), torch.randn(2, 8, 6, 6)
        before = x.clone()
        network(x)
        assert torch.equal(x, before)


def test_identity_where_shape_stays_and_a_projection_elsewhere() -> None:
    same = cell("3x3:4", "1x1:4", shortcut=True)
    assert isinstance(CellNetwork(same, 8, "relu", "none").shortcut, nn.Identity)
    assert isinstance(CellNetwork(same, 8, "relu", "stride").shortcut, ConvUnit)
    assert isinstance(CellNetwork(same, 6, "relu", "none").shortcut, ConvUnit)


@pytest.mark.parametrize("head", ["average", "max"])
def test_the_head_pools_the_whole_map(head: Any) -> None:
    torch.manual_seed(0)
    chosen = architecture(Stage(cells=(cell("3x3:6"),)), head=head)
    network = space().build(chosen, (3, 12, 9), 4).eval()
    x = torch.randn(2, 3, 12, 9)
    features = network.body(network.stem(x))
    pooled = features.mean((2, 3)) if head == "average" else features.amax((2, 3))
    torch.testing.assert_close(network(x), network.linear(pooled))


@hypothesis_settings(deadline=None, derandomize=True, max_examples=10)
@given(seed=st.integers(0, 2**32), placement=st.sampled_from(["auto", "middle", "thirds", "stages", "every:1"]))
def test_towers_attach_and_leave_the_network_as_it_is(seed: int, placement: str) -> None:
    one, shape = space(), (1, 16, 16)
    torch.manual_seed(seed)
    network = one.build(one.random(seed), shape, 5).eval()
    images, labels = torch.randn(4, *shape), torch.arange(4)
    with torch.no_grad():
        before = network(images)
    keys = set(network.state_dict())
    model = auxiliary.supervise(network, TowersConfig.model_validate({"placement": placement}), shape, 5)
    if placement == "every:1":
        assert len(model.cells) == len(network.cell_names) - 1
    model.train()
    losses = model.losses(model(images), labels, progress=0.0)
    losses.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert set(network.state_dict()) == keys
    fresh = one.build(one.random(seed), shape, 5)
    fresh.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images), network.eval()(images))
        assert before.shape == network(images).shape


@pytest.mark.parametrize("name", ["resnet20", "resnet9", "googlenet-small", "inception-resnet", "vgg-pool"])
def test_every_batch_norm_of_a_network_can_be_folded(name: str) -> None:
    """torch.fx must be able to trace a cell, or exports would keep their batch norms, with no more than a note."""
    network = space().build(space().point(PORTFOLIO[name]), (1, 28, 28), 10)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert fold(network)[1] == f"folded: {norms} of {norms}"


@pytest.mark.parametrize("name", ["vgg-small", "inception-tiny"])
def test_networks_export(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    network = space().build(space().point(PORTFOLIO[name]), (1, 28, 28), 10).eval()
    images = torch.randn(2, 1, 28, 28)
    program = torch.export.export(network, (images,))
    expected = network(images).detach()
    torch.testing.assert_close(program.module()(images), expected)
    torch.onnx.export(network, (images,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------- thinner


@hypothesis_settings(deadline=None, derandomize=True, max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    keys=st.sampled_from(list(SETTINGS.values())),
    width=st.sampled_from([0.05, 0.25, 0.4, 0.5, 0.75, 0.9]),
)
def test_a_thinner_network_has_the_same_cells_and_shortcuts(seed: int, keys: dict[str, Any], width: float) -> None:
    one, shape = space(**keys), (1, 16, 16)
    whole = one.random(seed)
    thin = one.with_width(whole, width)
    assert InceptionResNetArchitecture.from_json(thin.to_json()) == thin
    with torch.device("meta"):
        networks = [one.build(chosen, shape, 3) for chosen in (whole, thin)]
        assert networks[1](torch.zeros(2, *shape)).shape == (2, 3)
    for name in networks[0].cell_names:
        before, after = (network.get_submodule(name) for network in networks)
        assert isinstance(getattr(before, "shortcut", None), nn.Identity) <= isinstance(
            getattr(after, "shortcut", None), nn.Identity
        )
    for before_cell, after_cell in zip(whole.cells, thin.cells, strict=True):
        for wide, narrow in zip(before_cell.branches, after_cell.branches, strict=True):
            for first, second in zip(wide, narrow, strict=True):
                assert first.kind == second.kind
                assert 4 <= second.width <= max(first.width, 4)
                assert second.width % 4 == 0
        assert abs(after_cell.width - width * before_cell.width) <= 2 or width <= 0.4


def test_very_narrow_networks_can_be_thinned_too() -> None:
    odd = cell("3x3:4", "1x1:6", "1x1:2-5x5:6", pool=1, shortcut=True)
    thin = space().with_width(architecture(Stage(cells=(odd, odd))), 0.5)
    assert thin.cells[0] == thin.cells[1]
    assert all(branch[-1].width >= 1 for branch in thin.cells[0].branches)


# ------------------------------------------------------------------------------------------------ settings


def test_the_space_goes_by_its_name() -> None:
    assert search_spaces.available()["inception_resnet"].startswith("Inception cells with or without shortcuts")
    assert space().size() is None


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"stem": []}, "stem"),
        ({"stem": [12]}, "stem must be multiples of 8 from 8 on, got [12]"),
        ({"stem": 16}, "stem"),
        ({"stem": [16, 16]}, "stem names a value twice"),
        ({"widths": []}, "widths"),
        ({"widths": [[16], []]}, "widths of stage 2 holds no width"),
        ({"widths": [[8]]}, "widths of stage 1 must be multiples of 8 from 16 on, got [8]"),
        ({"widths": [[16], [32, 32]]}, "widths of stage 2 names a value twice"),
        ({"cells": [0, 3]}, "cells must be [least, largest]"),
        ({"cells": [3, 1]}, "cells must be [least, largest]"),
        ({"mains": []}, "mains"),
        ({"mains": ["5x5"]}, "mains"),
        ({"side_kinds": ["1x1", "1x1"]}, "side_kinds names a value twice"),
        ({"activations": ["tanh"]}, "activations"),
        ({"reductions": ["none"]}, "reductions"),
        ({"narrowest": 4}, "narrowest"),
        ({"narrowest": 12}, "narrowest must be a multiple of 8, got 12"),
        ({"resolution": 3}, "resolution"),
        ({"dropout": 1.0}, "dropout"),
        ({"depth": 3}, "unknown key 'depth'"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_in_one_line(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpaceError) as caught:
        search_spaces.load("inception_resnet", keys)
    message = str(caught.value)
    assert complaint in message
    assert "[space]" in message
    assert "\n" not in message
