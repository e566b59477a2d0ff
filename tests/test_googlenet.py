"""GoogLeNet by the numbers of the paper: parameters, multiply-adds, and what its two towers see."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from nas import auxiliary
from nas.complexity import count
from search_spaces.googlenet import ARCHITECTURE, INPUT_SHAPE, SETTINGS, TOWERS, googlenet
from search_spaces.inception import InceptionNetwork, InceptionSpace

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
    found = auxiliary.rehearse(network, network.cell_names, torch.zeros(1, *INPUT_SHAPE))
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
