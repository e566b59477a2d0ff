"""Stacked Inception cells: the architecture value, the cell, the network and the space.

After Szegedy et al., *Going Deeper with Convolutions* (2014): a cell concatenates up to four branches (1x1;
1x1 then 3x3; 1x1 then 5x5, or a factorised form of it; pooling then 1x1), a stage stacks cells, and stages are
separated by max pooling that halves height and width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.space import Architecture, SearchSpace, Shape, SpaceSettings, Trial
from search_spaces.concatenation import concatenated

FiveKind = Literal["5x5", "3x3+3x3", "1x7+7x1"]
PoolKind = Literal["max", "avg"]

FIVE_KINDS: tuple[FiveKind, ...] = ("5x5", "3x3+3x3", "1x7+7x1")
POOL_KINDS: tuple[PoolKind, ...] = ("max", "avg")

SMALLEST_MAP = 6
"""Maps of fewer pixels a side are not halved again."""


class CellArchitecture(Architecture):
    """Branch widths (output channels) of one cell; width 0 means that the branch is absent.

    What an absent branch would have looked like is brought to one form, so that equal cells are equal.
    """

    one: int = Field(0, ge=0)
    three_reduce: int = Field(0, ge=0)
    three: int = Field(0, ge=0)
    five_reduce: int = Field(0, ge=0)
    five: int = Field(0, ge=0)
    five_kind: FiveKind = "5x5"
    pool: int = Field(0, ge=0)
    pool_kind: PoolKind = "max"

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        if not values.get("three"):
            values.pop("three_reduce", None)
        if not values.get("five"):
            values.pop("five_reduce", None)
            values.pop("five_kind", None)
        if not values.get("pool"):
            values.pop("pool_kind", None)
        return values

    @model_validator(mode="after")
    def _is_a_cell(self) -> CellArchitecture:
        if not self.width:
            raise ValueError("a cell needs at least one branch of width above 0")
        if bool(self.three) != bool(self.three_reduce) or bool(self.five) != bool(self.five_reduce):
            raise ValueError("a present 3x3 or 5x5 branch needs a reduce width above 0")
        return self

    @property
    def width(self) -> int:
        """Output channels."""
        return self.one + self.three + self.five + self.pool


class InceptionArchitecture(Architecture):
    """A stem and stages of cells."""

    stem: int = Field(gt=0)
    stages: tuple[tuple[CellArchitecture, ...], ...] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _no_empty_stage(
        cls, stages: tuple[tuple[CellArchitecture, ...], ...]
    ) -> tuple[tuple[CellArchitecture, ...], ...]:
        if not all(stages):
            raise ValueError("every stage needs a cell")
        return stages


class ConvUnit(nn.Sequential):
    """Convolution that keeps the size (or halves it), batch norm where wanted, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], *, stride: int = 1, batch_norm: bool
    ) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2)
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not batch_norm)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out" if batch_norm else "fan_in")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        if batch_norm:
            self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)


def five_branch(kind: FiveKind, inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    """The wide receptive field: 5x5, or two layers that factorise it (Szegedy et al. 2015, sections 3.1, 3.2)."""
    kernels = {"5x5": [(5, 5)], "3x3+3x3": [(3, 3), (3, 3)], "1x7+7x1": [(1, 7), (7, 1)]}[kind]
    widths = [inputs] + [outputs] * len(kernels)
    return nn.Sequential(
        *(
            ConvUnit(before, after, kernel, batch_norm=batch_norm)
            for (before, after), kernel in zip(itertools.pairwise(widths), kernels, strict=True)
        )
    )


class Cell(nn.Module):
    """One Inception cell: ``(N, inputs, H, W)`` to ``(N, architecture.width, H, W)``.

    The 1x1 convolutions that read the input (the 1x1 branch and both reduces) are siblings: computed as one
    convolution, batch norm and ReLU, then split. The mathematics is the same; the input is read once.
    """

    def __init__(self, architecture: CellArchitecture, inputs: int, batch_norm: bool) -> None:
        super().__init__()
        a = architecture
        self.shares = (a.one, a.three_reduce, a.five_reduce)
        self.pools = a.pool > 0
        if sum(self.shares):
            self.siblings = ConvUnit(inputs, sum(self.shares), (1, 1), batch_norm=batch_norm)
        if a.three:
            self.three = ConvUnit(a.three_reduce, a.three, (3, 3), batch_norm=batch_norm)
        if a.five:
            self.five = five_branch(a.five_kind, a.five_reduce, a.five, batch_norm)
        if self.pools:
            pooling: nn.Module = (
                nn.MaxPool2d(3, 1, 1) if a.pool_kind == "max" else nn.AvgPool2d(3, 1, 1, count_include_pad=False)
            )
            self.pool = nn.Sequential(pooling, ConvUnit(inputs, a.pool, (1, 1), batch_norm=batch_norm))

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        present = [(name, share) for name, share in zip(("one", "three", "five"), self.shares, strict=True) if share]
        if present:  # only these are split: an absent one's gradient would be zeros in another memory format
            pieces = self.siblings(x).split([share for _, share in present], dim=1)
            for number, (name, _) in enumerate(present):
                branches.append(pieces[number] if name == "one" else self.get_submodule(name)(pieces[number]))
        if self.pools:
            branches.append(self.pool(x))
        return branches[0] if len(branches) == 1 else concatenated(branches)


class InceptionNetwork(nn.Module):
    """Stem, stages of cells with max pooling between them, average pooling (or none), dropout, one linear layer.

    ``(N, C, H, W)`` to logits ``(N, classes)``. ``cell_names`` names the cells by depth.
    """

    def __init__(
        self,
        architecture: InceptionArchitecture,
        input_shape: Shape,
        num_classes: int,
        settings: InceptionSettings,
    ) -> None:
        super().__init__()
        self.stem, channels, size = _stem(architecture.stem, input_shape, settings)
        self.body = nn.Sequential()
        names = []
        for number, stage in enumerate(architecture.stages, 1):
            if number > 1 and size >= SMALLEST_MAP:
                self.body.add_module(f"reduction{number - 1}", nn.MaxPool2d(3, 2, 1))
                size = _halved(size)
            for letter, cell in zip(_letters(), stage, strict=False):
                self.body.add_module(f"cell{number}{letter}", Cell(cell, channels, settings.batch_norm))
                names.append(f"body.cell{number}{letter}")
                channels = cell.width
        self.cell_names = tuple(names)
        side = 1 if settings.head == "average" else size
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.dropout = nn.Dropout(settings.dropout)
        self.linear = nn.Linear(channels * side * side, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.body(self.stem(x)))
        return self.linear(self.dropout(x.flatten(1)))  # type: ignore[no-any-return]


def _stem(width: int, input_shape: Shape, settings: InceptionSettings) -> tuple[nn.Sequential, int, int]:
    """Layers before the first cell, their output channels and map size.

    The input is halved until it is at most `settings.resolution` pixels a side: by the first convolution, then by max
    poolings. Where three halvings are needed, the stem is GoogLeNet's (7x7; 1x1 and 3x3 between its poolings).
    """
    channels, height, length = input_shape
    size, halvings = min(height, length), 0
    if size < 4:
        raise SpaceError(f"images must have at least 4x4 pixels, got {height}x{length}")
    while size > settings.resolution:
        size, halvings = _halved(size), halvings + 1
    norm = settings.batch_norm
    large = halvings >= 3
    stem = nn.Sequential()
    kernel = (7, 7) if large else (3, 3)
    stem.add_module("first", ConvUnit(channels, width, kernel, stride=2 if halvings else 1, batch_norm=norm))
    for pooling in range(1, halvings):
        stem.add_module(f"pool{pooling}", nn.MaxPool2d(3, 2, 1))
        if large and pooling == 1:
            stem.add_module("reduce", ConvUnit(width, width, (1, 1), batch_norm=norm))
            stem.add_module("second", ConvUnit(width, 3 * width, (3, 3), batch_norm=norm))
    return stem, 3 * width if large else width, size


def _halved(size: int) -> int:
    return (size + 1) // 2


def _letters() -> Iterator[str]:
    """a, b, ... z, then z1, z2, ..."""
    yield from "abcdefghijklmnopqrstuvwxyz"
    for number in itertools.count(1):
        yield f"z{number}"


class InceptionSettings(SpaceSettings):
    """The ranges of the space."""

    stem: tuple[int, int] = Field((16, 32), description="Least and largest stem width.")
    widths: tuple[int, ...] = Field((24, 32, 48), min_length=1, description="Largest branch width of each stage.")
    cells: tuple[int, int] = Field((1, 3), description="Least and largest number of cells a stage.")
    step: int = Field(8, ge=1, description="Widths are multiples of this.")
    reduce: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75), min_length=1, description="Reduce widths as shares of the convolution's width."
    )
    five_kinds: tuple[FiveKind, ...] = Field(FIVE_KINDS, min_length=1, description="Forms of the 5x5 branch.")
    pool_kinds: tuple[PoolKind, ...] = Field(POOL_KINDS, min_length=1, description="Kinds of pooling.")
    tied: bool = Field(True, description="All cells of a stage are alike.")
    resolution: int = Field(16, ge=4, description="The stem brings images to at most this many pixels a side.")
    batch_norm: bool = Field(True, description="Batch norm after each convolution.")
    head: Literal["average", "fully-connected"] = Field(
        "average", description="What the last linear layer reads: the average of the map, or all of it."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the last linear layer.")

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> InceptionSettings:
        for key in ("stem", "cells"):
            low, high = getattr(self, key)
            if not 1 <= low <= high:
                raise ValueError(f"{key} must be [least, largest] with 1 <= least <= largest, got {[low, high]}")
        if any(width < self.step for width in (*self.widths, self.stem[1])):
            raise ValueError(f"widths and stem must reach step ({self.step}), got {self.widths}, {self.stem}")
        if not self.stem_widths:
            raise ValueError(f"stem holds no multiple of step ({self.step}), got {list(self.stem)}")
        if not all(0 < share <= 1 for share in self.reduce):
            raise ValueError(f"reduce must be shares above 0 and up to 1, got {list(self.reduce)}")
        for key in ("reduce", "five_kinds", "pool_kinds"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key} names a value twice: {list(getattr(self, key))}")
        return self

    @property
    def stem_widths(self) -> range:
        """Stem widths to choose from."""
        return range(-(-self.stem[0] // self.step) * self.step, self.stem[1] + 1, self.step)


class InceptionSpace(SearchSpace):
    """Stacked Inception cells with adaptive reductions between stages.

    The encoding has a fixed number of names (24 with three stages): the stem, per stage the number of cells, four
    branch widths (0 = absent) and two reduce shares, and two kinds for the whole network. Untied, every possible
    cell has widths of its own, asked for whether it is used or not.
    """

    architecture_type = InceptionArchitecture
    settings_type = InceptionSettings
    settings: InceptionSettings

    def suggest(self, trial: Trial) -> InceptionArchitecture:
        s = self.settings
        kinds = {
            "five_kind": trial.suggest_categorical("five_kind", s.five_kinds),
            "pool_kind": trial.suggest_categorical("pool_kind", s.pool_kinds),
        }
        stem = trial.suggest_int("stem", s.stem_widths[0], s.stem_widths[-1], step=s.step)
        stages = []
        for number, widest in enumerate(s.widths, 1):
            count = trial.suggest_int(f"stage{number}.cells", *s.cells)
            prefixes = [f"stage{number}"] if s.tied else [f"stage{number}.cell{i}" for i in range(1, s.cells[1] + 1)]
            cells = [self._suggest_cell(trial, prefix, widest, kinds) for prefix in prefixes]
            stages.append(tuple(cells * count if s.tied else cells[:count]))
        return InceptionArchitecture(stem=stem, stages=tuple(stages))

    def build(self, architecture: InceptionArchitecture, input_shape: Shape, num_classes: int) -> InceptionNetwork:
        return InceptionNetwork(architecture, input_shape, num_classes, self.settings)

    def size(self) -> int:
        """Exact. The two kinds matter only where some cell has the branch, hence inclusion and exclusion."""
        s = self.settings
        total = 0
        for with_five, with_pool in itertools.product((False, True), repeat=2):
            ways = (len(s.five_kinds) if with_five else 1) * (len(s.pool_kinds) if with_pool else 1)
            exactly = 0
            for five, pool in itertools.product((False, True), repeat=2):
                if five <= with_five and pool <= with_pool:
                    sign = (-1) ** ((with_five - five) + (with_pool - pool))
                    exactly += sign * math.prod(self._stage_size(widest, five, pool) for widest in s.widths)
            total += ways * exactly
        return total * len(s.stem_widths)

    def named(self) -> Mapping[str, Mapping[str, Any]]:
        """``googlenet-small``: Table 1's widths, averaged over each stage and scaled into the ranges."""
        from search_spaces.googlenet import scaled_down

        return {"googlenet-small": scaled_down(self.settings)}

    def describe(self, architecture: InceptionArchitecture) -> Sequence[str]:
        """The branches of each cell, such as ``1x1:32  3x3:24>32  5x5:8>16  max:16``."""
        return [_described(cell) for stage in architecture.stages for cell in stage]

    def prune_path(self, architecture: Any, network: Any, step: int) -> Sequence[InceptionArchitecture]:
        from search_spaces import inception_pruning

        return inception_pruning.prune_path(architecture, network, step)

    def pruned_weights(self, architecture: Any, network: Any, smaller: Any) -> Mapping[str, Tensor]:
        from search_spaces import inception_pruning

        return inception_pruning.pruned_weights(architecture, network, smaller)

    def with_width(self, architecture: InceptionArchitecture, width: float) -> InceptionArchitecture:
        """In multiples of 4 channels, and at least 4 where there are as many."""
        branches = ("one", "three_reduce", "three", "five_reduce", "five", "pool")

        def channels(number: int) -> int:
            return min(number, reduce_width(number, width))

        def thinned(cell: CellArchitecture) -> CellArchitecture:
            return cell.model_copy(update={branch: channels(getattr(cell, branch)) for branch in branches})

        stages = tuple(tuple(map(thinned, stage)) for stage in architecture.stages)
        return InceptionArchitecture(stem=channels(architecture.stem), stages=stages)

    def _suggest_cell(self, trial: Trial, prefix: str, widest: int, kinds: Mapping[str, Any]) -> CellArchitecture:
        s = self.settings
        top = widest // s.step * s.step
        one, three, five, pool = (
            trial.suggest_int(f"{prefix}.{branch}", 0, top, step=s.step) for branch in ("one", "three", "five", "pool")
        )
        three_share, five_share = (
            trial.suggest_categorical(f"{prefix}.{branch}_reduce", s.reduce) for branch in ("three", "five")
        )
        if not one + three + five + pool:
            one = s.step  # a cell without branches is none: the nearest cell stands for it
        return CellArchitecture(
            one=one,
            three=three,
            three_reduce=reduce_width(three, three_share),
            five=five,
            five_reduce=reduce_width(five, five_share),
            pool=pool,
            **kinds,
        )

    def _stage_size(self, widest: int, with_five: bool, with_pool: bool) -> int:
        """How many stages there are, with the 5x5 and the pooling branch allowed or not; kinds not counted."""
        s = self.settings
        widths = range(s.step, widest + 1, s.step)
        reduced = sum(len({reduce_width(width, share) for share in s.reduce}) for width in widths)
        convolved = 1 + reduced
        cells = (1 + len(widths)) * convolved * (convolved if with_five else 1) * (1 + len(widths) if with_pool else 1)
        cells -= 1  # no branch at all
        least, most = s.cells
        return sum(cells if s.tied else cells**count for count in range(least, most + 1))


def _described(cell: CellArchitecture) -> str:
    branches = {
        "1x1": str(cell.one) if cell.one else "",
        "3x3": f"{cell.three_reduce}>{cell.three}" if cell.three else "",
        cell.five_kind: f"{cell.five_reduce}>{cell.five}" if cell.five else "",
        cell.pool_kind: str(cell.pool) if cell.pool else "",
    }
    return "  ".join(f"{name}:{widths}" for name, widths in branches.items() if widths)


def reduce_width(width: int, share: float) -> int:
    """The 1x1 reduction before a convolution of `width` channels: a share of it in multiples of 4, at least 4."""
    return max(4, round(width * share / 4) * 4) if width else 0
