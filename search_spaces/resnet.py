"""Stacked bottlenecks: the architecture value, the block, the network, its two heads and the space.

After He et al., *Deep Residual Learning* (2015, arXiv:1512.03385): a bottleneck is 1x1, 3x3, 1x1 beside a shortcut,
four times as wide at its ends; a stage stacks bottlenecks, and each stage but the first halves height and width. With
pyramid pooling the network is PSPNet (Zhao et al. 2017, arXiv:1612.01105) and predicts a class for each pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.space import Architecture, SearchSpace, Shape, SpaceSettings, Trial

EXPANSION = 4
"""Output channels of a bottleneck, for each of its width."""

SMALLEST_MAP = 6
"""Maps of fewer pixels a side are not halved again."""

CLASSICAL = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
"""Bottlenecks a stage (He et al. 2015, table 1); the widths are 64, 128, 256, 512."""

Positive = Annotated[int, Field(ge=1)]
Range = tuple[Positive, Positive]


class StageArchitecture(Architecture):
    """So many bottlenecks, of so many channels inside."""

    blocks: Positive
    width: Positive


class ResNetArchitecture(Architecture):
    """A stem and stages of bottlenecks."""

    stem: Positive
    stages: tuple[StageArchitecture, ...] = Field(min_length=1)


class ConvUnit(nn.Sequential):
    """Convolution that keeps the size (or halves it), batch norm, ReLU where wanted."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(outputs)
        if relu:
            self.relu = nn.ReLU(inplace=True)


class Bottleneck(nn.Module):
    """``(N, inputs, H, W)`` to ``(N, 4 * width, H / stride, W / stride)``; the 3x3 carries stride and dilation."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.residual = nn.Sequential(
            ConvUnit(inputs, width, 1),
            ConvUnit(width, width, 3, stride=stride, dilation=dilation),
            ConvUnit(width, outputs, 1, relu=False),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvUnit(inputs, outputs, 1, stride=stride, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))  # type: ignore[no-any-return]


class PyramidPooling(nn.Module):
    """The features beside averages of them over 1x1, 2x2, ... bins: ``(N, C, H, W)`` to about ``(N, 2C, H, W)``.

    Each average is reduced to a share of C by a 1x1 convolution and upsampled (Zhao et al. 2017, section 3.2).
    """

    def __init__(self, channels: int, bins: Sequence[int]) -> None:
        super().__init__()
        reduced = max(1, channels // len(bins))
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(count), ConvUnit(channels, reduced, 1)) for count in bins
        )
        self.width = channels + reduced * len(bins)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [F.interpolate(level(x), x.shape[-2:], mode="bilinear", align_corners=False) for level in self.levels]
        return torch.cat([x, *pooled], 1)


def classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """One prediction an image: global average pooling, dropout, one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, num_classes))


def pyramid_head(channels: int, num_classes: int, bins: Sequence[int], dropout: float) -> nn.Sequential:
    """A prediction for each place of the map: pyramid pooling, 3x3 to a quarter of the channels, dropout, 1x1."""
    pooling, quarter = PyramidPooling(channels, bins), max(1, channels // 4)
    return nn.Sequential(
        pooling, ConvUnit(pooling.width, quarter, 3), nn.Dropout(dropout), nn.Conv2d(quarter, num_classes, 1)
    )


class ResNetNetwork(nn.Module):
    """Stem, stages of bottlenecks, and a head.

    ``(N, C, H, W)`` to logits ``(N, classes)``, or with pyramid pooling ``(N, classes, H, W)``. ``cell_names`` names
    the bottlenecks by depth.
    """

    def __init__(
        self, architecture: ResNetArchitecture, input_shape: Shape, num_classes: int, settings: ResNetSettings
    ) -> None:
        super().__init__()
        self.stem, size, stride = _stem(architecture.stem, input_shape, settings)
        self.body = nn.Sequential()
        names: list[str] = []
        channels, dilation = architecture.stem, 1
        for number, stage in enumerate(architecture.stages, 1):
            halve = number > 1 and size >= SMALLEST_MAP
            if halve and settings.output_stride is not None and 2 * stride > settings.output_stride:
                halve, dilation = False, 2 * dilation
            if halve:
                size, stride = _halved(size), 2 * stride
            blocks = nn.Sequential()
            for block in range(1, stage.blocks + 1):
                blocks.add_module(
                    f"block{block}", Bottleneck(channels, stage.width, 2 if halve and block == 1 else 1, dilation)
                )
                names.append(f"body.stage{number}.block{block}")
                channels = EXPANSION * stage.width
            self.body.add_module(f"stage{number}", blocks)
        self.cell_names = tuple(names)
        self.dense = bool(settings.pyramid)
        self.head = (
            pyramid_head(channels, num_classes, settings.pyramid, settings.head_dropout)
            if self.dense
            else classifier(channels, num_classes, settings.head_dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.body(self.stem(x)))
        if self.dense:
            return F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return logits  # type: ignore[no-any-return]


def _stem(width: int, input_shape: Shape, settings: ResNetSettings) -> tuple[nn.Sequential, int, int]:
    """Layers before the first bottleneck, their map size and total stride.

    The input is halved until it is at most `settings.resolution` pixels a side, twice at most: by the convolution,
    then by max pooling. Halved twice, it is the classical stem (7x7); otherwise the convolution is 3x3.
    """
    channels, height, length = input_shape
    size, stride = min(height, length), 1
    if size < 4:
        raise SpaceError(f"images must have at least 4x4 pixels, got {height}x{length}")
    while size > settings.resolution and stride < min(4, settings.output_stride or 4):
        size, stride = _halved(size), 2 * stride
    stem = nn.Sequential()
    stem.add_module("first", ConvUnit(channels, width, 7 if stride == 4 else 3, stride=min(stride, 2)))
    if stride == 4:
        stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
    return stem, size, stride


def _halved(size: int) -> int:
    return (size + 1) // 2


class ResNetSettings(SpaceSettings):
    """The ranges of the space."""

    stem: Range = Field((16, 32), description="Least and largest stem width.")
    blocks: tuple[Range, ...] = Field(
        ((1, 3), (1, 4), (1, 4)), min_length=1, description="Least and largest number of bottlenecks of each stage."
    )
    widths: tuple[Range, ...] = Field(
        ((8, 16), (8, 32), (16, 48)),
        min_length=1,
        description="Least and largest width of each stage's bottlenecks; four times as wide outside.",
    )
    step: Positive = Field(8, description="Widths are multiples of this.")
    resolution: int = Field(
        16, ge=4, description="The stem brings images to at most this many pixels a side, halving them twice at most."
    )
    output_stride: int | None = Field(
        None, description="Images are made this many times smaller at most (1, 2, 4, ...); then stages dilate instead."
    )
    pyramid: tuple[Positive, ...] = Field(
        (),
        description="Bins a side of pyramid pooling, such as [1, 2, 3, 6]: a prediction for each pixel; empty: none.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout before the last layer; unset: 0.1 with a pyramid, else 0."
    )

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> ResNetSettings:
        if len(self.blocks) != len(self.widths):
            raise ValueError(
                f"blocks and widths must have a range for each stage, got {len(self.blocks)} and {len(self.widths)}"
            )
        for key, ranges in {"stem": (self.stem,), "blocks": self.blocks, "widths": self.widths}.items():
            for low, high in ranges:
                if low > high:
                    raise ValueError(f"{key} must be [least, largest], got {[low, high]}")
                if key != "blocks" and not multiples((low, high), self.step):
                    raise ValueError(f"{key} holds no multiple of step ({self.step}), got {[low, high]}")
        stride = self.output_stride
        if stride is not None and (stride < 1 or stride & (stride - 1)):
            raise ValueError(f"output_stride must be a power of 2, got {stride}")
        return self

    @property
    def head_dropout(self) -> float:
        """Dropout before the last layer."""
        return self.dropout if self.dropout is not None else 0.1 if self.pyramid else 0.0


def multiples(limits: Range, step: int) -> range:
    """The widths of a range to choose from."""
    return range(-(-limits[0] // step) * step, limits[1] + 1, step)


class ResNetSpace(SearchSpace):
    """Stacked bottlenecks with adaptive reductions; with pyramid pooling, a prediction for each pixel (PSPNet).

    The encoding has a fixed number of names (7 with three stages): the stem, and per stage the number of
    bottlenecks and their width. Ranges of one point make one network of the space, as in ``systems/pspnet.toml``.
    """

    architecture_type = ResNetArchitecture
    settings_type = ResNetSettings
    settings: ResNetSettings

    def suggest(self, trial: Trial) -> ResNetArchitecture:
        s = self.settings
        stem = self._suggest_width(trial, "stem", s.stem)
        stages = []
        for number, (blocks, widths) in enumerate(zip(s.blocks, s.widths, strict=True), 1):
            count = trial.suggest_int(f"stage{number}.blocks", *blocks)
            width = self._suggest_width(trial, f"stage{number}.width", widths)
            stages.append(StageArchitecture(blocks=count, width=width))
        return ResNetArchitecture(stem=stem, stages=tuple(stages))

    def build(self, architecture: ResNetArchitecture, input_shape: Shape, num_classes: int) -> ResNetNetwork:
        return ResNetNetwork(architecture, input_shape, num_classes, self.settings)

    def size(self) -> int:
        """Exact."""
        s = self.settings
        widths = math.prod(len(multiples(limits, s.step)) for limits in (s.stem, *s.widths))
        return widths * math.prod(high - low + 1 for low, high in s.blocks)

    def named(self) -> Mapping[str, Mapping[str, Any]]:
        """The classical networks that lie in the ranges; else ``resnet50-small``, ResNet-50 scaled into them."""
        exact = {name: self._values(blocks, 1.0) for name, blocks in CLASSICAL.items() if self._holds(blocks)}
        return exact or {"resnet50-small": self._values(CLASSICAL["resnet50"], self._largest_factor())}

    def describe(self, architecture: ResNetArchitecture) -> Sequence[str]:
        """The widths of each bottleneck, such as ``256>64>256``."""
        lines, channels = [], architecture.stem
        for stage in architecture.stages:
            for _ in range(stage.blocks):
                lines.append(f"{channels}>{stage.width}>{EXPANSION * stage.width}")
                channels = EXPANSION * stage.width
        return lines

    def _suggest_width(self, trial: Trial, name: str, limits: Range) -> int:
        widths = multiples(limits, self.settings.step)
        return trial.suggest_int(name, widths[0], widths[-1], step=self.settings.step)

    def _holds(self, blocks: Sequence[int]) -> bool:
        s = self.settings
        return (
            len(s.blocks) == len(blocks)
            and all(low <= count <= high for count, (low, high) in zip(blocks, s.blocks, strict=True))
            and all(classical_width(i) in multiples(limits, s.step) for i, limits in enumerate(s.widths))
            and classical_width(0) in multiples(s.stem, s.step)
        )

    def _largest_factor(self) -> float:
        """By which the classical widths fit every stage."""
        return min(high / classical_width(number) for number, (_, high) in enumerate(self.settings.widths))

    def _values(self, blocks: Sequence[int], factor: float) -> dict[str, Any]:
        """What `suggest` would ask for, brought into the ranges; further stages repeat the last number of blocks."""
        s = self.settings

        def nearest(width: float, limits: Range) -> int:
            return min(multiples(limits, s.step), key=lambda one: abs(one - width))

        values: dict[str, Any] = {"stem": nearest(factor * classical_width(0), s.stem)}
        for number, ((low, high), widths) in enumerate(zip(s.blocks, s.widths, strict=True)):
            count = blocks[min(number, len(blocks) - 1)]
            values[f"stage{number + 1}.blocks"] = min(max(count, low), high)
            values[f"stage{number + 1}.width"] = nearest(factor * classical_width(number), widths)
        return values


def classical_width(number: int) -> int:
    """64 in the first stage (0) and in the stem, twice as many in each further one."""
    return 64 << number
