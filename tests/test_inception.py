"""The Inception space: its size is exact, equal architectures are equal, every point of it builds and computes."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import search_spaces
from nas.errors import SpaceError
from nas.export import fold
from nas.space import RandomTrial
from search_spaces.inception import (
    FIVE_KINDS,
    POOL_KINDS,
    Cell,
    CellArchitecture,
    InceptionArchitecture,
    InceptionSettings,
    InceptionSpace,
    reduce_width,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def space(**keys: Any) -> Any:
    return InceptionSpace(InceptionSettings.model_validate(keys))


# ---------------------------------------------------------------------------------------------------- size


class Odometer:
    """A trial that walks through all combinations of what is asked for: one full turn of `run` is one enumeration."""

    def __init__(self, turned: list[int]) -> None:
        self.turned = turned
        self.options: list[int] = []

    def _choose(self, choices: Sequence[Any]) -> Any:
        place = len(self.options)
        self.options.append(len(choices))
        return choices[self.turned[place] if place < len(self.turned) else 0]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._choose(range(low, high + 1, step)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        raise AssertionError("a float cannot be enumerated")

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._choose(choices)


def enumerate_all(one: InceptionSpace) -> Iterator[InceptionArchitecture]:
    turned: list[int] = []
    while True:
        trial = Odometer(turned)
        yield one.suggest(trial)
        turned += [0] * (len(trial.options) - len(turned))
        place = len(turned) - 1
        while place >= 0 and turned[place] == trial.options[place] - 1:
            place -= 1
        if place < 0:
            return
        turned[place:] = [turned[place] + 1]


SMALL: dict[str, dict[str, Any]] = {
    "one stage, all kinds": {"widths": (8,), "cells": (1, 2), "stem": (8, 16)},
    "two stages, all kinds": {"widths": (8, 8), "cells": (1, 1), "stem": (8, 8), "reduce": (0.5,)},
    "one kind of each": {"widths": (16,), "cells": (1, 3), "five_kinds": ("5x5",), "pool_kinds": ("avg",)},
    "shares that give the same width": {"widths": (8,), "cells": (1, 1), "step": 4, "five_kinds": ("5x5",)},
    "widths between two steps": {"widths": (11,), "cells": (2, 3), "stem": (9, 30), "reduce": (0.5, 1.0)},
    "untied": {
        "widths": (8,),
        "cells": (1, 3),
        "tied": False,
        "reduce": (0.5,),
        "stem": (8, 8),
        "five_kinds": ("5x5",),
    },
    "untied, two stages": {"widths": (8, 8), "cells": (1, 1), "tied": False, "reduce": (1.0,), "stem": (8, 8)},
    "untied, always two cells": {"widths": (8,), "cells": (2, 2), "tied": False, "reduce": (0.5, 1.0), "stem": (8, 8)},
}


@pytest.mark.parametrize("name", SMALL)
def test_size_is_the_number_of_different_architectures(name: str) -> None:
    small = space(**SMALL[name])
    found = set(enumerate_all(small))
    assert small.size() == len(found)
    assert len({one.key for one in found}) == len(found)  # different architectures have different keys


def test_the_size_of_a_large_space_is_exact_too() -> None:
    """One stage by hand: cells of widths 0 to 64, three shares that all differ from width 16 on."""
    large = space(widths=(64,), cells=(1, 1), stem=(16, 16), five_kinds=("5x5",), pool_kinds=("max",))
    reduced = 1 + sum(len({reduce_width(width, share) for share in (0.25, 0.5, 0.75)}) for width in range(8, 65, 8))
    assert large.size() == 9 * reduced * reduced * 9 - 1
    assert space(widths=(64,), cells=(1, 4), stem=(16, 32), five_kinds=("5x5",), pool_kinds=("max",)).size() == (
        4 * 3 * (9 * reduced * reduced * 9 - 1)
    )


# ------------------------------------------------------------------------------------------- architectures


def test_what_an_absent_branch_would_look_like_does_not_matter() -> None:
    plain = CellArchitecture(one=8)
    for others in (
        {"three_reduce": 8},
        {"five_reduce": 4, "five_kind": "1x7+7x1"},
        {"pool_kind": "avg"},
        {"three": 0, "three_reduce": 16, "five": 0, "five_kind": "3x3+3x3", "pool": 0, "pool_kind": "avg"},
    ):
        other = CellArchitecture.model_validate({"one": 8, **others})
        assert other == plain
        assert other.key == plain.key
    assert CellArchitecture(one=8, pool=8, pool_kind="avg") != CellArchitecture(one=8, pool=8)


@pytest.mark.parametrize("cell", [{}, {"three_reduce": 8, "five_reduce": 8}, {"pool_kind": "avg"}])
def test_a_cell_without_branches_is_refused(cell: dict[str, Any]) -> None:
    architecture = {"stem": 8, "stages": [[cell]]}
    with pytest.raises(SpaceError, match="at least one branch") as caught:
        InceptionArchitecture.from_json(json.dumps(architecture))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"stem":0,"stages":[[{"one":8}]]}', "stem"),
        ('{"stem":8,"stages":[]}', "stages"),
        ('{"stem":8,"stages":[[]]}', "every stage needs a cell"),
        ('{"stem":8,"stages":[[{"one":-8}]]}', "one"),
        ('{"stem":8,"stages":[[{"three":8}]]}', "reduce"),
        ('{"stem":8,"stages":[[{"five":8}]]}', "reduce"),
        ('{"stem":8,"stages":[[{"one":8,"six":8}]]}', "six"),
        ('{"stem":8,"stages":[[{"five":8,"five_reduce":4,"five_kind":"7x7"}]]}', "five_kind"),
    ],
)
def test_what_is_no_architecture_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(SpaceError, match=complaint) as caught:
        InceptionArchitecture.from_json(text)
    assert "\n" not in str(caught.value)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"tied": False},
    {"batch_norm": False, "widths": (16,), "cells": (2, 4)},
    {"stem": (8, 8), "widths": (8, 8), "cells": (1, 1), "step": 4, "dropout": 0.5},
    {"tied": False, "widths": (24, 12, 9, 30), "step": 3, "stem": (4, 7), "reduce": (0.1, 1.0), "cells": (1, 5)},
    {"five_kinds": ("1x7+7x1",), "pool_kinds": ("avg",), "resolution": 8},
]


@hypothesis_settings(deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), keys=st.sampled_from(SETTINGS))
def test_a_random_architecture_is_json_and_can_be_suggested_again(seed: int, keys: dict[str, Any]) -> None:
    trial = RandomTrial(seed)
    architecture = space(**keys).suggest(trial)
    again = InceptionArchitecture.from_json(architecture.to_json())
    assert again == architecture
    assert again.key == architecture.key
    assert space(**keys).point(trial.params) == architecture
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert space(**keys).suggest(optuna.trial.FixedTrial(trial.params)) == architecture


# ------------------------------------------------------------------------------------------------ encoding


@pytest.mark.parametrize("keys", SETTINGS, ids=str)
def test_every_trial_is_asked_for_the_same_names(keys: dict[str, Any]) -> None:
    """A width of 0 stands for "absent": with names that come and go, TPE was seen to model no width at all."""
    asked = []
    for seed in range(100):
        trial = RandomTrial(seed)
        space(**keys).suggest(trial)
        asked.append(tuple(trial.params))
    assert len(set(asked)) == 1


def test_the_default_encoding_has_24_names() -> None:
    trial = RandomTrial(0)
    space().suggest(trial)
    assert len(trial.params) == 24


def test_tied_cells_of_a_stage_are_alike_and_untied_ones_need_not_be() -> None:
    tied = [stage for seed in range(30) for stage in space().random(seed).stages]
    assert all(len(set(stage)) == 1 for stage in tied)
    assert {len(stage) for stage in tied} == {1, 2, 3}
    untied = [stage for seed in range(30) for stage in space(tied=False).random(seed).stages]
    assert any(len(set(stage)) == 3 for stage in untied)


def test_a_cell_whose_branches_are_all_absent_becomes_the_nearest_cell() -> None:
    values: dict[str, Any] = {"five_kind": "5x5", "pool_kind": "max", "stem": 8, "stage1.cells": 1}
    values |= {f"stage1.{branch}": 0 for branch in ("one", "three", "five", "pool")}
    values |= {"stage1.three_reduce": 0.5, "stage1.five_reduce": 0.5}
    ((cell,),) = space(widths=(16,)).point(values).stages
    assert cell == CellArchitecture(one=8)


@pytest.mark.parametrize("keys", [{}, {"tied": False, "widths": (16, 16), "cells": (1, 2)}], ids=["tied", "untied"])
def test_tpe_learns_on_the_space(keys: dict[str, Any]) -> None:
    one = space(**keys)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=10))
    chosen = []
    for _ in range(40):
        trial = study.ask()
        architecture = one.suggest(trial)
        chosen.append(sum(cell.width for stage in architecture.stages for cell in stage))
        study.tell(trial, chosen[-1])
    assert len({len(trial.params) for trial in study.trials}) == 1
    assert sum(chosen[-10:]) < 0.7 * sum(chosen[:10])  # it was asked for narrow networks, and found them


@pytest.mark.parametrize(
    "keys",
    [
        *SETTINGS,
        {"widths": (256, 480, 832), "cells": (1, 9), "stem": (8, 128)},
        {"widths": (8,) * 5},
        {"widths": (12, 12), "cells": (3, 4)},
    ],
    ids=str,
)
def test_the_named_point_lies_in_the_ranges(keys: dict[str, Any]) -> None:
    one = space(**keys)
    ((name, values),) = one.named().items()
    assert name == "googlenet-small"
    trial = optuna.trial.FixedTrial(dict(values))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna warns of a value out of its range
        architecture = one.suggest(trial)
    assert set(trial.params) == set(values)
    assert architecture == one.point(values)
    # it is GoogLeNet still: every cell has all four branches, and the 3x3 is the widest but in the very smallest spaces
    cells = [cell for stage in architecture.stages for cell in stage]
    assert all(cell.one and cell.three and cell.five and cell.pool for cell in cells)
    assert all(cell.three == max(cell.one, cell.three, cell.five, cell.pool) for cell in cells)


# ------------------------------------------------------------------------------------------------ networks


def check(architecture: InceptionArchitecture, one: InceptionSpace, shape: tuple[int, int, int], classes: int) -> None:
    network = one.build(architecture, shape, classes).eval()
    cells = [network.get_submodule(name) for name in network.cell_names]
    assert all(isinstance(cell, Cell) for cell in cells)
    assert len(cells) == sum(len(stage) for stage in architecture.stages)
    assert len(one.describe(architecture)) == len(cells)
    with torch.no_grad():
        logits = network(torch.randn(2, *shape))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()
    assert logits.std() > 0


@hypothesis_settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    keys=st.sampled_from(SETTINGS),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 64),
    width=st.integers(8, 64),
    classes=st.integers(2, 100),
)
def test_every_architecture_builds_and_computes(
    seed: int, keys: dict[str, Any], channels: int, height: int, width: int, classes: int
) -> None:
    one = space(**keys)
    torch.manual_seed(seed)
    check(one.random(seed), one, (channels, height, width), classes)


@hypothesis_settings(deadline=None, derandomize=True, max_examples=20)
@given(seed=st.integers(0, 2**32), keys=st.sampled_from(SETTINGS), width=st.sampled_from([0.25, 0.5, 0.75]))
def test_a_thinner_network_has_the_same_cells_and_branches(seed: int, keys: dict[str, Any], width: float) -> None:
    one = space(**keys)
    whole = one.random(seed)
    thin = one.with_width(whole, width)
    check(thin, one, (1, 16, 16), 3)
    assert [len(stage) for stage in thin.stages] == [len(stage) for stage in whole.stages]
    pairs = [pair for stages in zip(whole.stages, thin.stages, strict=True) for pair in zip(*stages, strict=True)]
    for before, after in pairs:
        for branch in ("one", "three_reduce", "three", "five_reduce", "five", "pool"):
            wide, narrow = getattr(before, branch), getattr(after, branch)
            assert bool(wide) == bool(narrow)
            assert narrow <= wide
            assert abs(narrow - width * wide) <= 2 or narrow == min(4, wide)
        assert (before.five_kind, before.pool_kind) == (after.five_kind, after.pool_kind)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_224_pixels_meet_the_stem_of_googlenet(channels: int) -> None:
    one = space()
    check(one.random(channels), one, (channels, 224, 224), 1000)
    stem = one.build(one.random(0), (channels, 224, 224), 10).stem
    assert [type(layer) for layer in stem].count(nn.MaxPool2d) == 3
    assert stem(torch.zeros(1, channels, 224, 224)).shape[2:] == (14, 14)


@pytest.mark.parametrize("size", [4, 5, 8, 15, 28, 32, 33, 64, 96, 224])
def test_maps_are_at_most_the_resolution_after_the_stem_and_never_vanish(size: int) -> None:
    one = space(widths=(8, 8, 8, 8, 8), cells=(1, 1))
    sizes: list[int] = []
    network = one.build(one.random(0), (1, size, size), 10).eval()
    for name in network.cell_names:
        network.get_submodule(name).register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2]))
    with torch.no_grad():
        network(torch.zeros(1, 1, size, size))
    assert sizes[0] <= 16
    assert min(sizes) >= 3
    for before, after in itertools.pairwise(sizes):
        assert after == ((before + 1) // 2 if before >= 6 else before)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(SpaceError, match="at least 4x4 pixels, got 3x64"):
        space().build(space().random(0), (1, 3, 64), 10)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_batch_norm_is_an_option_of_the_space_and_stands_in_for_biases(batch_norm: bool) -> None:
    one = space(batch_norm=batch_norm)
    modules = list(one.build(one.random(0), (3, 224, 224), 10).modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    norms = [module.num_features for module in modules if isinstance(module, nn.BatchNorm2d)]
    assert norms == ([module.out_channels for module in convolutions] if batch_norm else [])
    assert all((module.bias is None) == batch_norm for module in convolutions)


def test_more_cells_than_letters() -> None:
    deep = InceptionArchitecture(stem=4, stages=((CellArchitecture(one=4),) * 28,))
    check(deep, space(), (1, 8, 8), 2)


# ------------------------------------------------------------------------------------------------- siblings


def separately(cell: Cell, a: CellArchitecture, x: Tensor, training: bool) -> tuple[Tensor, Tensor | None]:
    """What the cell computes, each sibling a convolution, batch norm and ReLU of its own, from slices of the weights.

    Also gives the siblings' running means and variances afterwards, where there is batch norm.
    """
    pieces: list[Tensor | None] = []
    statistics: list[Tensor] = []
    start = 0
    for width in (a.one, a.three_reduce, a.five_reduce):
        if not width:
            pieces.append(None)
            continue
        own = slice(start, start + width)
        start += width
        bias = None if cell.siblings.conv.bias is None else cell.siblings.conv.bias[own]
        y = functional.conv2d(x, cell.siblings.conv.weight[own], bias)
        if bias is None:
            norm = cell.siblings.norm
            mean, variance = norm.running_mean[own].clone(), norm.running_var[own].clone()
            y = functional.batch_norm(y, mean, variance, norm.weight[own], norm.bias[own], training, norm.momentum)
            statistics.append(torch.stack([mean, variance]))
        pieces.append(functional.relu(y))
    one, three, five = pieces
    branches = [one] if one is not None else []
    if three is not None:
        branches.append(cell.three(three))
    if five is not None:
        branches.append(cell.five(five))
    if a.pool:
        branches.append(cell.pool(x))
    return torch.cat(branches, 1), torch.cat(statistics, 1) if statistics else None


@hypothesis_settings(deadline=None, derandomize=True, max_examples=60)
@given(
    one=st.sampled_from([0, 8]),
    three=st.sampled_from([0, 8, 12]),
    five=st.sampled_from([0, 8]),
    pool=st.sampled_from([0, 4]),
    five_kind=st.sampled_from(FIVE_KINDS),
    pool_kind=st.sampled_from(POOL_KINDS),
    batch_norm=st.booleans(),
    training=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fused_siblings_compute_what_separate_convolutions_compute(
    one: int,
    three: int,
    five: int,
    pool: int,
    five_kind: str,
    pool_kind: str,
    batch_norm: bool,
    training: bool,
    channels_last: bool,
    seed: int,
) -> None:
    if not one + three + five + pool:
        one = 8
    architecture = CellArchitecture.model_validate(
        {
            "one": one,
            "three": three,
            "three_reduce": three // 2,
            "five": five,
            "five_reduce": five // 2,
            "pool": pool,
            "five_kind": five_kind,
            "pool_kind": pool_kind,
        }
    )
    torch.manual_seed(seed)
    cell = Cell(architecture, 6, batch_norm)
    for module in cell.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    cell.train(training)
    x = torch.randn(4, 6, 7, 5).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    x.requires_grad_()
    expected, statistics = separately(cell, architecture, x, training)  # leaves the siblings' own statistics alone
    found = cell(x)
    assert found.shape == (4, architecture.width, 7, 5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if statistics is not None:
        norm = cell.siblings.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        torch.testing.assert_close(torch.stack([norm.running_mean, norm.running_var]), statistics)
    weight = torch.randn_like(found)
    inputs = [x, *cell.parameters()]
    ours = torch.autograd.grad((weight * found).sum(), inputs)
    theirs = torch.autograd.grad((weight * expected).sum(), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_every_batch_norm_of_a_network_can_be_folded() -> None:
    """torch.fx must be able to trace a cell, or exports would keep their batch norms, with no more than a note."""
    inception = space()
    network = inception.build(inception.random(0), (1, 28, 28), 10)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert fold(network)[1] == f"folded: {norms} of {norms}"


@pytest.mark.parametrize("one", [0, 8])
def test_gradients_reach_every_relu_without_gaps(one: int) -> None:
    """ReLU's backward pass is many times slower on a slice of channels; the values are the same."""
    sizes = {"one": one, "three": 8, "three_reduce": 4, "five": 8, "five_reduce": 4, "pool": 4}
    cell = Cell(CellArchitecture.model_validate(sizes), 6, batch_norm=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = []
    for module in cell.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # so that a hook may listen
            module.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    cell(torch.randn(4, 6, 7, 5).to(memory_format=torch.channels_last)).square().sum().backward()
    assert len(seen) == 4
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in seen)


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"widths": []}, "widths"),
        ({"widths": [4, 8]}, "reach step (8)"),
        ({"widths": [0]}, "reach step (8)"),
        ({"stem": [32, 16]}, "stem must be [least, largest]"),
        ({"stem": [0, 16]}, "stem must be [least, largest]"),
        ({"stem": [9, 15]}, "stem holds no multiple of step (8)"),
        ({"stem": 16}, "stem"),
        ({"cells": [0, 3]}, "cells must be [least, largest]"),
        ({"cells": [3, 1]}, "cells must be [least, largest]"),
        ({"step": 0}, "step"),
        ({"reduce": []}, "reduce"),
        ({"reduce": [0.0, 0.5]}, "reduce must be shares"),
        ({"reduce": [float("nan")]}, "reduce must be shares"),
        ({"reduce": [0.5, 0.5]}, "reduce names a value twice"),
        ({"five_kinds": []}, "five_kinds"),
        ({"five_kinds": ["5x5", "5x5"]}, "five_kinds names a value twice"),
        ({"five_kinds": ["9x9"]}, "five_kinds"),
        ({"pool_kinds": ["mean"]}, "pool_kinds"),
        ({"resolution": 3}, "resolution"),
        ({"dropout": 1.0}, "dropout"),
        ({"tied": "perhaps"}, "tied"),
        ({"depth": 3}, "unknown key 'depth'"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_in_one_line(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpaceError) as caught:
        search_spaces.load("inception", keys)
    message = str(caught.value)
    assert complaint in message
    assert "[space]" in message
    assert "\n" not in message
