"""The space of bottlenecks: its encoding, the networks, and the published ones as points of it."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import search_spaces
from nas import auxiliary
from nas.config import TowersConfig
from nas.errors import SpaceError
from nas.evaluation import complexity
from nas.space import RandomTrial
from search_spaces.resnet import (
    Bottleneck,
    PyramidPooling,
    ResNetArchitecture,
    ResNetSettings,
    ResNetSpace,
)

WIDTHS = ((64, 64), (128, 128), (256, 256), (512, 512))


def space(**keys: Any) -> Any:
    return ResNetSpace(ResNetSettings(**keys))


def published(*blocks: int, **keys: Any) -> Any:
    """A space of one point, as a system is written."""
    ranges = tuple((count, count) for count in blocks)
    return space(stem=(64, 64), blocks=ranges, widths=WIDTHS, resolution=64, **keys)


def on_meta(one: ResNetSpace, shape: tuple[int, int, int], classes: int) -> Any:
    with torch.device("meta"):
        return one.build(one.random(0), shape, classes)


SETTINGS = {
    "default": {},
    "narrow": {"stem": (5, 17), "step": 4, "blocks": ((1, 2),), "widths": ((4, 9),)},
    "four stages": {"blocks": ((1, 2),) * 4, "widths": ((8, 16),) * 4, "output_stride": 4},
    "pyramid": {"pyramid": (1, 2, 3, 6), "output_stride": 8},
}
each_space = pytest.mark.parametrize("keys", SETTINGS.values(), ids=SETTINGS)


# ----------------------------------------------------------------------------------------------- published


@pytest.mark.parametrize(
    ("blocks", "params", "gflops"), [((3, 4, 6, 3), 25_557_032, 8.178), ((3, 4, 23, 3), 44_549_160, 15.603)]
)
def test_resnet_50_and_101_are_points_of_the_space(blocks: tuple[int, ...], params: int, gflops: float) -> None:
    one = published(*blocks)
    found = complexity.complexity(one, one.random(0), (3, 224, 224), 1000)
    assert found.params == params
    assert found.flops / 1e9 == pytest.approx(gflops, abs=0.001)  # twice the 4.09 and 7.80 G multiply-adds
    assert one.size() == 1
    assert one.point(next(iter(one.named().values()))) == one.random(0)


def test_maps_of_resnet_101_halve_where_the_paper_s_do() -> None:
    network = on_meta(published(3, 4, 23, 3), (3, 224, 224), 1000)
    first, pool = network.stem
    assert first.conv.kernel_size == (7, 7)
    assert (first.conv.stride, pool.stride) == ((2, 2), 2)
    x, sizes = network.stem(torch.zeros(2, 3, 224, 224, device="meta")), []
    for stage in network.body:
        x = stage(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]


def test_pspnet() -> None:
    """ResNet-101 at stride 8 by dilation, and its head: 65,584,725 parameters at the 21 classes of PASCAL VOC."""
    network = on_meta(published(3, 4, 23, 3, output_stride=8, pyramid=(1, 2, 3, 6)), (3, 473, 473), 21)
    trunk = 44_549_160 - 2_049_000  # ResNet-101 without its last layer
    pooling = 4 * (2048 * 512 + 2 * 512)
    head = 4096 * 512 * 9 + 2 * 512 + 512 * 21 + 21
    assert sum(p.numel() for p in network.parameters()) == trunk + pooling + head == 65_584_725
    assert len(network.cell_names) == 33
    assert network.cell_names[29] == "body.stage3.block23"  # res4b22
    x = torch.zeros(2, 3, 473, 473, device="meta")
    assert network(x).shape == (2, 21, 473, 473)
    assert network.body(network.stem(x)).shape == (2, 2048, 60, 60)
    middle = [unit[1].conv for stage in network.body for unit in (block.residual for block in stage)]
    assert {conv.dilation[0] for conv in middle[:7]} == {1}
    assert {conv.dilation[0] for conv in middle[7:30]} == {2}
    assert {conv.dilation[0] for conv in middle[30:]} == {4}
    assert [i for i, conv in enumerate(middle) if conv.stride[0] == 2] == [3]
    dropouts = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.1]


def test_the_tower_of_pspnet() -> None:
    """3x3 from the 1024 channels of res4b22 to 256, batch norm, and 1x1 to the classes."""
    one = published(3, 4, 23, 3, output_stride=8, pyramid=(1, 2, 3, 6))
    towers = TowersConfig.model_validate({"kind": "fcn", "placement": [29], "weight": 0.4})
    model = auxiliary.supervise(one.build(one.random(0), (3, 65, 65), 21), towers, (3, 65, 65), 21)
    assert model.cells == (29,)
    params = sum(p.numel() for p in model.towers.parameters())
    assert params == pytest.approx(1024 * 256 * 9 + 2 * 256 + 257 * 21, abs=256)  # the 3x3 may have a bias


# ------------------------------------------------------------------------------------------------ encoding


@each_space
def test_every_trial_is_asked_for_the_same_names(keys: dict[str, Any]) -> None:
    asked = []
    for seed in range(20):
        space(**keys).suggest(trial := RandomTrial(seed))
        asked.append(list(trial.params))
    assert all(names == asked[0] for names in asked)
    assert len(asked[0]) == 1 + 2 * len(space(**keys).settings.blocks)


def test_the_default_encoding_has_7_names() -> None:
    space().suggest(trial := RandomTrial(0))
    assert len(trial.params) == 7


@pytest.mark.parametrize(
    "keys",
    [
        {"blocks": ((1, 2), (1, 1)), "widths": ((8, 24), (8, 8)), "stem": (8, 16)},
        {"blocks": ((2, 4),), "widths": ((3, 9),), "stem": (2, 6), "step": 2},
    ],
)
def test_size_is_the_number_of_different_architectures(keys: dict[str, Any]) -> None:
    one = space(**keys)
    found = {one.random(seed) for seed in range(600)}
    assert len(found) == one.size()


def test_the_default_size() -> None:
    assert space().size() == 3 * (3 * 4 * 4) * (2 * 4 * 5)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seed=st.integers(0, 2**63), keys=st.sampled_from(list(SETTINGS.values())))
def test_a_random_architecture_is_json_and_can_be_suggested_again(seed: int, keys: dict[str, Any]) -> None:
    one = space(**keys)
    architecture = one.suggest(trial := RandomTrial(seed))
    assert ResNetArchitecture.from_json(architecture.to_json()) == architecture
    assert one.suggest(optuna.trial.FixedTrial(trial.params)) == architecture
    assert one.point(trial.params) == architecture


@each_space
def test_named_points_lie_in_the_ranges(keys: dict[str, Any]) -> None:
    one = space(**keys)
    assert one.named()
    for values in one.named().values():
        one.suggest(trial := RandomTrial(0))
        assert set(values) == set(trial.params)
        architecture = one.point(values)
        s = one.settings
        assert architecture.stem % s.step == 0
        for stage, blocks, widths in zip(architecture.stages, s.blocks, s.widths, strict=True):
            assert blocks[0] <= stage.blocks <= blocks[1]
            assert widths[0] <= stage.width <= widths[1]
            assert stage.width % s.step == 0


def test_names_are_exact_where_they_can_be() -> None:
    wide = space(stem=(32, 64), blocks=((1, 3), (1, 4), (1, 23), (1, 3)), widths=tuple((8, high) for _, high in WIDTHS))
    assert set(wide.named()) == {"resnet50", "resnet101"}
    assert [stage.blocks for stage in wide.point(wide.named()["resnet101"]).stages] == [3, 4, 23, 3]
    assert set(published(3, 4, 6, 3).named()) == {"resnet50"}
    assert set(space().named()) == {"resnet50-small"}


def test_description_names_the_widths_of_each_bottleneck() -> None:
    one = space(stem=(16, 16), blocks=((2, 2), (1, 1)), widths=((8, 8), (16, 16)))
    assert one.describe(one.random(0)) == ["16>8>32", "32>8>32", "32>16>64"]


def test_the_space_goes_by_its_name() -> None:
    assert search_spaces.available()["resnet"].startswith("Stacked bottlenecks")
    assert isinstance(search_spaces.load("resnet", {"pyramid": [1, 2]}), ResNetSpace)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"blocks": [[1, 2]]}, "a range for each stage, got 1 and 3"),
        ({"stem": [32, 16]}, r"stem must be \[least, largest\], got \[32, 16\]"),
        ({"stem": [9, 15]}, "stem holds no multiple of step"),
        ({"widths": [[8, 8], [17, 23], [8, 8]]}, "widths holds no multiple of step"),
        ({"blocks": [[0, 2], [1, 1], [1, 1]]}, "greater than or equal to 1"),
        ({"output_stride": 3}, "power of 2, got 3"),
        ({"pyramid": [0]}, "pyramid"),
        ({"depth": 3}, "unknown key 'depth'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpaceError, match=complaint) as caught:
        search_spaces.load("resnet", keys)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- network


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    keys=st.sampled_from(list(SETTINGS.values())),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(4, 40), st.integers(4, 40)),
    classes=st.integers(2, 12),
)
def test_every_architecture_builds_and_computes(
    seed: int, keys: dict[str, Any], shape: tuple[int, int, int], classes: int
) -> None:
    one = space(**keys)
    architecture = one.random(seed)
    network = one.build(architecture, shape, classes).train()
    assert len(auxiliary.cell_names(network)) == sum(stage.blocks for stage in architecture.stages)
    logits = network(torch.randn(2, *shape))
    assert logits.shape == ((2, classes, *shape[1:]) if one.settings.pyramid else (2, classes))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("size", "sizes"), [(8, [8, 4, 4]), (28, [14, 7, 4]), (32, [16, 8, 4]), (224, [56, 28, 14])])
def test_reductions_adapt_to_the_images(size: int, sizes: list[int]) -> None:
    network = on_meta(space(), (3, size, size), 10)
    x, found = network.stem(torch.zeros(2, 3, size, size, device="meta")), []
    for stage in network.body:
        x = stage(x)
        found.append(x.shape[-1])
    assert found == sizes


@settings(deadline=None, derandomize=True, max_examples=10)
@given(size=st.integers(16, 260), stride=st.sampled_from([1, 2, 4, 8, 16]))
def test_images_are_never_made_smaller_than_the_output_stride_says(size: int, stride: int) -> None:
    one = space(blocks=((1, 1),) * 4, widths=((8, 8),) * 4, output_stride=stride)
    network = on_meta(one, (3, size, size), 10)
    features = network.body(network.stem(torch.zeros(2, 3, size, size, device="meta")))
    assert size / features.shape[-1] <= stride


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(SpaceError, match="at least 4x4 pixels, got 3x9"):
        space().build(space().random(0), (1, 3, 9), 10)


def test_a_bottleneck_is_its_residual_beside_its_shortcut() -> None:
    torch.manual_seed(0)
    same, wider = Bottleneck(32, 8, 1, 1).eval(), Bottleneck(16, 8, 2, 1).eval()
    x = torch.randn(2, 32, 8, 8)
    assert isinstance(same.shortcut, nn.Identity)
    assert torch.equal(same(x), (same.residual(x) + x).relu())
    y = torch.randn(2, 16, 8, 8)
    assert wider(y).shape == (2, 32, 4, 4)
    assert torch.equal(wider(y), (wider.residual(y) + wider.shortcut(y)).relu())


def test_dilation_reaches_further_and_keeps_the_map() -> None:
    """A gradient of one place of the output comes from places two apart."""
    block = Bottleneck(32, 8, 1, 2).eval()  # in training batch norm would join all places
    x = torch.randn(2, 32, 9, 9, requires_grad=True)
    block.residual(x)[0, :, 4, 4].sum().backward()
    assert x.grad is not None
    rows, columns = (x.grad[0].abs().sum(0) > 0).nonzero().unbind(1)
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 4, 6}


def test_the_pyramid_tells_each_place_of_the_whole() -> None:
    torch.manual_seed(0)
    pooling = PyramidPooling(8, (1, 2)).eval()
    assert pooling.width == 16
    x = torch.randn(1, 8, 6, 6)
    out: Tensor = pooling(x)
    assert torch.equal(out[:, :8], x)
    whole, quarters = out[:, 8:12], out[:, 12:]
    assert torch.allclose(whole, whole[..., :1, :1].expand_as(whole))  # one bin: the same everywhere
    assert not torch.allclose(quarters, quarters[..., :1, :1].expand_as(quarters))
    changed = x.clone()
    changed[..., 5, 5] += 10
    assert not torch.allclose(pooling(changed)[:, 8:12, 0, 0], whole[..., 0, 0])
