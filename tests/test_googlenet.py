"""GoogLeNet by the numbers of the paper: parameters, multiply-adds, and what its two towers see."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import search_spaces
from nas import auxiliary
from nas.errors import SpaceError
from nas.evaluation.complexity import activation_bytes, count
from nas.space import Shape
from search_spaces.googlenet import (
    ARCHITECTURE,
    INPUT_SHAPE,
    SETTINGS,
    TOWERS,
    GoogLeNetSettings,
    GoogLeNetSpace,
    googlenet,
    scaled,
    tower_cells,
)
from search_spaces.inception import (
    Cell,
    CellArchitecture,
    InceptionArchitecture,
    InceptionNetwork,
    InceptionSpace,
)

PARAMETERS = {
    "3a": 163_696,
    "3b": 388_736,
    "4a": 376_176,
    "4b": 449_160,
    "4c": 510_104,
    "4d": 605_376,
    "4e": 868_352,
    "5a": 1_043_456,
    "5b": 1_444_080,
}
"""Of each Inception module, from the widths of Table 1: real 5x5 kernels, and biases."""

WIDTHS = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "5a": 832, "5b": 1024}
"""The column "output size" of Table 1."""

SIZES = {"3": 28, "4": 14, "5": 7}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def network() -> InceptionNetwork:
    """Shapes and numbers need no arithmetic, so it lies on the meta device."""
    with torch.device("meta"):
        return googlenet()


def test_the_three_numbers(network: InceptionNetwork) -> None:
    assert parameters(network) == 6_998_552
    cost = count(network, INPUT_SHAPE)
    assert cost.params == 6_998_552
    assert 1.575e9 <= cost.flops / 2 <= 1.585e9  # 2 FLOPs a multiply-add
    supervised = auxiliary.supervise(network, TOWERS, INPUT_SHAPE, 1000)
    assert parameters(supervised) == 13_378_280
    assert parameters(network) == 6_998_552


def test_each_module_has_the_parameters_of_table_1(network: InceptionNetwork) -> None:
    cells = [network.get_submodule(name) for name in network.cell_names]
    assert {name: parameters(cell) for name, cell in zip(PARAMETERS, cells, strict=True)} == PARAMETERS


def test_each_module_has_the_output_of_table_1(network: InceptionNetwork) -> None:
    found = auxiliary.dry_run(network, network.cell_names, torch.zeros(1, *INPUT_SHAPE))
    taps = [found.tap(name) for name in network.cell_names]
    shapes = {name: (tap.channels, tap.height, tap.width) for name, tap in zip(WIDTHS, taps, strict=True)}
    assert shapes == {name: (width, SIZES[name[0]], SIZES[name[0]]) for name, width in WIDTHS.items()}


def test_the_stem_is_the_papers(network: InceptionNetwork) -> None:
    convolutions = [module for module in network.stem.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (3, 64, 7, 2),
        (64, 64, 1, 1),
        (64, 192, 3, 1),
    ]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert isinstance(network.dropout, nn.Dropout)
    assert network.dropout.p == 0.4


def test_the_towers_stand_on_4a_and_4d_and_see_4x4_maps() -> None:
    network = googlenet()
    supervised = auxiliary.supervise(network, TOWERS, INPUT_SHAPE, 1000)
    assert [(tap.channels, tap.height, tap.width) for tap in supervised.taps] == [(512, 14, 14), (528, 14, 14)]
    assert [network.cell_names[cell] for cell in supervised.cells] == ["body.cell2a", "body.cell2d"]
    seen: list[tuple[int, ...]] = []
    for tower in supervised.towers:
        pooling = next(module for module in tower.modules() if "Pool" in type(module).__name__)
        pooling.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    with torch.no_grad():
        logits, aside = supervised.eval()(torch.randn(1, *INPUT_SHAPE))
    assert seen == [(512, 4, 4), (528, 4, 4)]
    assert all(one.shape == (1, 1000) and one.isfinite().all() for one in (logits, *aside))
    assert len(aside) == 2
    assert TOWERS.weight == 0.3


def test_it_is_a_point_of_the_space_and_json() -> None:
    assert type(ARCHITECTURE).from_json(ARCHITECTURE.to_json()) == ARCHITECTURE
    one = InceptionSpace(SETTINGS).build(ARCHITECTURE, INPUT_SHAPE, 10)
    same = googlenet(num_classes=10)
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in same.state_dict().items()}
    assert parameters(same) == 6_998_552 - 990 * 1025


def test_maps_are_halved_five_times(network: InceptionNetwork) -> None:
    strides = [
        module.stride if isinstance(module.stride, int) else module.stride[0]
        for module in itertools.chain(network.stem.modules(), network.body.modules())
        if isinstance(module, nn.Conv2d | nn.MaxPool2d)
    ]
    assert strides.count(2) == 5
    assert set(strides) == {1, 2}


# ----------------------------------------------------------------------------------------------- the whole of it


def test_it_has_22_layers_with_parameters_in_depth_and_27_with_pooling(network: InceptionNetwork) -> None:
    """Along its longest path: the stem's three, two in each of nine modules, the classifier; and five poolings."""

    def longest(modules: Iterable[nn.Module], kinds: tuple[type[nn.Module], ...]) -> int:
        return sum(isinstance(module, kinds) for one in modules for module in one.modules())

    def depth(kinds: tuple[type[nn.Module], ...]) -> int:
        total = longest([network.stem, network.pool, network.linear], kinds)
        for part in network.body:
            if isinstance(part, Cell):  # side by side: the longest branch counts; siblings stand for each first 1x1
                first = longest([part.siblings], kinds)
                total += max(first + longest([part.three], kinds), first + longest([part.five], kinds))
            else:
                total += longest([part], kinds)
        return total

    weighted = (nn.Conv2d, nn.Linear)
    pooling = (nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    assert depth(weighted) == 22
    assert depth((*weighted, *pooling)) == 27


def test_the_head_is_average_pooling_40_percent_dropout_and_one_linear_layer(network: InceptionNetwork) -> None:
    names = [name for name, _ in network.named_children()]
    assert names == ["stem", "body", "pool", "dropout", "linear"]
    assert isinstance(network.pool, nn.AdaptiveAvgPool2d)
    assert network.pool.output_size == 1
    assert isinstance(network.dropout, nn.Dropout)
    assert network.dropout.p == 0.4
    assert isinstance(network.linear, nn.Linear)
    assert (network.linear.in_features, network.linear.out_features) == (1024, 1000)
    body = nn.Sequential(nn.Identity(), network.pool, network.dropout, nn.Flatten())
    maps = torch.randn(2, 1024, 7, 7)
    torch.testing.assert_close(body.eval()(maps), maps.mean((2, 3)))


def test_the_gradient_of_each_tower_alone_reaches_the_first_convolution() -> None:
    torch.manual_seed(0)
    supervised = auxiliary.supervise(googlenet(10), TOWERS, INPUT_SHAPE, 10)
    trunk = dict(supervised.network.named_parameters())
    _, aside = supervised.train()(torch.randn(2, *INPUT_SHAPE))
    for number, (cell, logits) in enumerate(zip(supervised.cells, aside, strict=True)):
        supervised.zero_grad(set_to_none=True)
        F.cross_entropy(logits, torch.tensor([3, 7])).backward(retain_graph=number == 0)
        reached = {name for name, p in trunk.items() if p.grad is not None}
        below = ("stem.", *(f"{name}." for name in supervised.network.cell_names[: cell + 1]))
        assert reached == {name for name in trunk if name.startswith(below)}
        first = supervised.network.stem.first.conv.weight.grad  # type: ignore[union-attr]
        assert first is not None
        assert float(first.abs().max()) > 0


def test_a_small_batch_overfits() -> None:
    """A quarter of the width, on 16x16 images, with both towers as the paper weighs them."""
    torch.manual_seed(1)
    space = GoogLeNetSpace(GoogLeNetSettings(width=(0.25,)))
    network = space.build(space.random(0), (3, 16, 16), 4)
    supervised = auxiliary.supervise(network, TOWERS, (3, 16, 16), 4).train()
    images, labels, steps = torch.randn(8, 3, 16, 16), torch.arange(8) % 4, 80
    before = F.cross_entropy(network(images), labels).item()
    optimizer = torch.optim.Adam(supervised.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        logits, aside = supervised(images)
        loss = F.cross_entropy(logits, labels)
        for one in aside:
            loss = loss + TOWERS.weight * F.cross_entropy(one, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(supervised.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        after = network.eval()(images)
    assert (after.argmax(1) == labels).all()
    assert F.cross_entropy(after, labels).item() < 0.01 < 1 < before


def test_inference_memory_is_the_first_feature_maps_and_what_pools_them(network: InceptionNetwork) -> None:
    """At its peak: the image, 64 maps of 112x112, and the 56x56 that max pooling makes of them with 8-byte indices."""
    image, first, pooled = 3 * 224 * 224 * 4, 64 * 112 * 112 * 4, 64 * 56 * 56 * (4 + 8)
    assert activation_bytes(network, INPUT_SHAPE) == image + first + pooled


# --------------------------------------------------------------------------------------- the space and its siblings


@pytest.fixture(scope="module")
def space() -> GoogLeNetSpace:
    return GoogLeNetSpace()


def test_the_space_holds_one_point_which_is_the_paper_s_network(space: GoogLeNetSpace, network: nn.Module) -> None:
    assert space.size() == 1
    assert space.random(3) == space.point(space.named()["googlenet"]) == ARCHITECTURE
    with torch.device("meta"):
        built = space.build(ARCHITECTURE, INPUT_SHAPE, 1000)
    shapes = [(name, tuple(p.shape)) for name, p in built.named_parameters()]
    assert shapes == [(name, tuple(p.shape)) for name, p in network.named_parameters()]
    assert str(built) == str(network)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 48)])
def test_it_runs_on_images_of_any_size(space: GoogLeNetSpace, shape: Shape) -> None:
    with torch.device("meta"):
        built = space.build(ARCHITECTURE, shape, 10)
        assert built(torch.zeros(2, *shape)).shape == (2, 10)
    assert len(built.cell_names) == 9


def test_widths_are_rounded_to_multiples_of_8_and_exact_at_1() -> None:
    assert scaled(ARCHITECTURE) == ARCHITECTURE
    assert scaled(ARCHITECTURE, 1.0, 1.0).to_json() == ARCHITECTURE.to_json()
    half = scaled(ARCHITECTURE, width=0.5)
    assert half.stem == 32
    first = half.stages[0][0]  # of 64, 96 > 128, 16 > 32, 32
    assert (first.one, first.three_reduce, first.three) == (32, 48, 64)
    assert (first.five_reduce, first.five, first.pool) == (8, 16, 16)
    odd = scaled(ARCHITECTURE, width=0.6).stages[1][
        3
    ]  # of 112, 144 > 288, 32 > 64, 64: 67.2, 86.4 > 172.8, 19.2 > 38.4
    assert (odd.one, odd.three_reduce, odd.three, odd.five_reduce, odd.five) == (64, 88, 176, 16, 40)
    assert scaled(ARCHITECTURE, width=0.01).stages[0][0].five == 8
    wide = scaled(ARCHITECTURE, width=2.0)
    assert [cell.width for stage in wide.stages for cell in stage] == [2 * width for width in WIDTHS.values()]
    absent = InceptionArchitecture(stem=8, stages=((CellArchitecture(one=8),),))
    assert scaled(absent, width=3.0).stages[0][0] == CellArchitecture(one=24)


def test_depth_multiplies_the_cells_of_each_stage() -> None:
    def cells(depth: float) -> list[list[int]]:
        stages = scaled(ARCHITECTURE, depth=depth).stages
        return [[ARCHITECTURE.stages[i].index(cell) for cell in stage] for i, stage in enumerate(stages)]

    assert cells(1.0) == [[0, 1], [0, 1, 2, 3, 4], [0, 1]]
    assert cells(2.0) == [[0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [0, 0, 1, 1]]
    assert cells(1.5) == [[0, 0, 1], [0, 0, 1, 1, 2, 3, 3, 4], [0, 0, 1]]
    assert cells(0.5) == [[0], [0, 1, 3], [0]]
    assert cells(0.01) == [[0], [0], [0]]


@pytest.mark.parametrize(
    ("depth", "towers"), [(1.0, (2, 5)), (1.5, (4, 9)), (2.0, (5, 11)), (0.5, (1, 3)), (0.2, (1, 1))]
)
def test_towers_stand_behind_4a_and_4d_at_every_depth(depth: float, towers: tuple[int, int]) -> None:
    assert tower_cells(depth) == towers
    if depth >= 1:
        cells = [cell for stage in scaled(ARCHITECTURE, depth=depth).stages for cell in stage]
        assert [cells[cell] for cell in towers] == [ARCHITECTURE.stages[1][0], ARCHITECTURE.stages[1][3]]


def test_several_multipliers_make_a_space_of_siblings() -> None:
    siblings = GoogLeNetSpace(GoogLeNetSettings(width=(0.25, 0.5, 1.0), depth=(1.0, 2.0)))
    assert siblings.size() == 6
    assert {siblings.random(seed).key for seed in range(60)} == {
        scaled(ARCHITECTURE, width, depth).key for width in (0.25, 0.5, 1.0) for depth in (1.0, 2.0)
    }
    assert list(siblings.named()) == ["googlenet"]
    same = GoogLeNetSpace(GoogLeNetSettings(width=(0.25, 0.2501), depth=(1.5, 1.51)))
    assert same.size() == 1
    assert same.named() == {}
    with pytest.raises(SpaceError, match=r"width\.0: Input should be greater than 0"):
        search_spaces.load("googlenet", {"width": [0.0]})
