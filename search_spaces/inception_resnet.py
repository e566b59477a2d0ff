"""Modern Inception cells that contain the textbook networks: architecture, cell, network and space.

A cell concatenates branches of convolutions (a main branch, further sides, a pooling branch), after Szegedy et al.,
*Going Deeper with Convolutions* (2014, arXiv:1409.4842), and may have a shortcut around them, after He et al., *Deep
Residual Learning* (2015, arXiv:1512.03385) and Szegedy et al., *Inception-v4, Inception-ResNet* (2016,
arXiv:1602.07261). With one branch and shortcuts the network is a ResNet; with one branch and none it is VGG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.space import Architecture, SearchSpace, Shape, SpaceSettings, Trial
from search_spaces.concatenation import concatenated

LayerKind = Literal["1x1", "3x3", "5x5", "1x7", "7x1"]
PoolKind = Literal["max", "avg"]
Reduction = Literal["none", "stride", "pool", "inner-pool"]
Activation = Literal["relu", "gelu"]
MainKind = Literal["3x3", "3x3-3x3", "1x1-3x3", "1x1-3x3-1x1"]
SideKind = Literal["none", "1x1", "3x3", "5x5", "3x3-3x3", "1x7-7x1", "pool"]

KERNELS: dict[LayerKind, tuple[int, int]] = {"1x1": (1, 1), "3x3": (3, 3), "5x5": (5, 5), "1x7": (1, 7), "7x1": (7, 1)}

MAINS: dict[MainKind, tuple[LayerKind, ...]] = {
    "3x3": ("3x3",),
    "3x3-3x3": ("3x3", "3x3"),
    "1x1-3x3": ("1x1", "3x3"),
    "1x1-3x3-1x1": ("1x1", "3x3", "1x1"),
}
"""Layers of the main branch."""

SIDES: dict[SideKind, tuple[LayerKind, ...]] = {
    "1x1": ("1x1",),
    "3x3": ("1x1", "3x3"),
    "5x5": ("1x1", "5x5"),
    "3x3-3x3": ("1x1", "3x3", "3x3"),
    "1x7-7x1": ("1x1", "1x7", "7x1"),
}
"""Layers of a side branch; the pooling branch is a field of its own."""

SMALLEST_MAP = 6
"""Maps of fewer pixels a side are not halved again."""

STEP = 8
"""Widths that the space suggests are multiples of this."""

REDUCE_SHARES = (0.25, 0.5)
SIDE_SHARES = (0.125, 0.25)


# ---------------------------------------------------------------------------------------------- architecture


class Layer(Architecture):
    """One convolution with its batch norm: kernel and output channels."""

    kind: LayerKind
    width: int = Field(gt=0)


Branch = tuple[Layer, ...]
"""Layers one after the other; the width of the last is the width of the branch."""


class Cell(Architecture):
    """Branches side by side, with or without a shortcut around them.

    Sides are sorted by their kinds, and no two have the same kinds: so equal cells are equal, and a side keeps its
    place when widths change.
    """

    main: Branch = Field(min_length=1)
    sides: tuple[Branch, ...] = ()
    pool: int = Field(0, ge=0)
    pool_kind: PoolKind = "max"
    shortcut: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("pool"):
            return {key: value for key, value in values.items() if key != "pool_kind"}
        return values

    @field_validator("sides")
    @classmethod
    def _sorted(cls, sides: tuple[Branch, ...]) -> tuple[Branch, ...]:
        if not all(sides):
            raise ValueError("every side needs a layer")
        if len(set(map(kinds_of, sides))) < len(sides):
            raise ValueError(f"two sides have the same kinds of layers: {' | '.join(map(_branch_text, sides))}")
        return tuple(sorted(sides, key=kinds_of))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """In the order of the concatenation: main, sides, and the convolution of the pooling branch."""
        pooling: tuple[Branch, ...] = ((Layer(kind="1x1", width=self.pool),),) if self.pool else ()
        return (self.main, *self.sides, *pooling)

    @property
    def width(self) -> int:
        """Output channels."""
        return self.main[-1].width + sum(side[-1].width for side in self.sides) + self.pool

    @property
    def is_chain(self) -> bool:
        """Whether the cell is a plain sequence of layers."""
        return not self.sides and not self.pool and not self.shortcut


class Stage(Architecture):
    """Cells that work on maps of one size, and how the map is halved before or in the first of them.

    ``stride``: in the first cell, the first layer of each branch that is not 1x1 has stride 2 (in a branch of 1x1
    layers alone: its first layer), and so have the pooling of the pooling branch and the projection of the shortcut.
    ``pool``: max pooling before the first cell. ``inner-pool``: max pooling between convolution and batch norm of the
    first layer of each branch of the first cell, which has no shortcut.

    A cell that is a plain sequence of layers is brought to cells of one layer each, which compute the same.
    """

    reduction: Reduction = "none"
    cells: tuple[Cell, ...] = Field(min_length=1)

    @field_validator("cells")
    @classmethod
    def _one_form(cls, cells: tuple[Cell, ...], info: ValidationInfo) -> tuple[Cell, ...]:
        reduction = info.data.get("reduction")
        if reduction == "inner-pool" and cells[0].shortcut:
            raise ValueError("the first cell of a stage with reduction inner-pool cannot have a shortcut")
        found: list[Cell] = []
        for number, cell in enumerate(cells):
            strided_inside = number == 0 and reduction == "stride" and cell.main[0].kind == "1x1"
            if cell.is_chain and not strided_inside:
                found += [Cell(main=(layer,)) for layer in cell.main]
            else:
                found.append(cell)
        return tuple(found)


class InceptionResNetArchitecture(Architecture):
    """A stem, stages of cells, and a head: global pooling before the one linear layer."""

    stem: int = Field(gt=0)
    stem_stride: Literal[1, 2] = 1
    activation: Activation = "relu"
    head: Literal["average", "max"] = "average"
    stages: tuple[Stage, ...] = Field(min_length=1)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, by depth."""
        return tuple(cell for stage in self.stages for cell in stage.cells)


def kinds_of(branch: Branch) -> tuple[LayerKind, ...]:
    """The kinds of the layers of a branch."""
    return tuple(layer.kind for layer in branch)


# --------------------------------------------------------------------------------------------------- network


class ConvUnit(nn.Sequential):
    """Convolution, max pooling where `pooled`, batch norm, and an activation where there is one."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        activation: Activation | None,
        *,
        stride: int = 1,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        if pooled:
            self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(outputs)
        if activation is not None:
            self.activation = activation_module(activation)


def activation_module(activation: Activation) -> nn.Module:
    """The activation; what reads it must not need its input afterwards."""
    return nn.ReLU(inplace=True) if activation == "relu" else nn.GELU()


class CellNetwork(nn.Module):
    """One cell: ``(N, inputs, H, W)`` to ``(N, cell.width, H', W')``.

    H' and W' are H and W; with reduction ``stride`` half of them, rounded up, with ``inner-pool`` rounded down.

    Args:
        cell: The architecture.
        inputs: Channels of the input.
        activation: After each layer; in a cell with a shortcut, after all layers but the last of each branch, and
            after the sum.
        reduction: How this cell halves its map; ``none`` and ``pool``: not at all.
    """

    def __init__(self, cell: Cell, inputs: int, activation: Activation, reduction: Reduction) -> None:
        super().__init__()
        last = None if cell.shortcut else activation
        stride = 2 if reduction == "stride" else 1
        pooled = reduction == "inner-pool"

        def sequence(branch: Branch) -> nn.Sequential:
            units, channels = nn.Sequential(), inputs
            strided = next((place for place, layer in enumerate(branch) if layer.kind != "1x1"), 0)
            for place, layer in enumerate(branch):
                unit = ConvUnit(
                    channels,
                    layer.width,
                    KERNELS[layer.kind],
                    last if place == len(branch) - 1 else activation,
                    stride=stride if place == strided else 1,
                    pooled=pooled and place == 0,
                )
                units.add_module(f"layer{place + 1}", unit)
                channels = layer.width
            return units

        self.main = sequence(cell.main)
        self.sides = nn.ModuleList(map(sequence, cell.sides))
        if cell.pool:
            pooling: nn.Module = (
                nn.MaxPool2d(3, stride, 1)
                if cell.pool_kind == "max"
                else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
            )
            self.pool = nn.Sequential(pooling, ConvUnit(inputs, cell.pool, (1, 1), last, pooled=pooled))
        self.has_pool = cell.pool > 0
        self.has_shortcut = cell.shortcut
        if cell.shortcut:
            same = inputs == cell.width and stride == 1
            self.shortcut = nn.Identity() if same else ConvUnit(inputs, cell.width, (1, 1), None, stride=stride)
            self.activation = activation_module(activation)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.main(x), *(side(x) for side in self.sides)]
        if self.has_pool:
            maps.append(self.pool(x))
        y = maps[0] if len(maps) == 1 else concatenated(maps)
        if self.has_shortcut:
            y = self.activation(y + self.shortcut(x))
        return y


class InceptionResNetNetwork(nn.Module):
    """Stem, stages of cells, global pooling, dropout, one linear layer.

    ``(N, C, H, W)`` to logits ``(N, classes)``. ``cell_names`` names the cells by depth.
    """

    def __init__(
        self,
        architecture: InceptionResNetArchitecture,
        input_shape: Shape,
        num_classes: int,
        settings: InceptionResNetSettings,
    ) -> None:
        super().__init__()
        self.stem, channels, size = _stem(architecture, input_shape, settings.resolution)
        self.body = nn.Sequential()
        names: list[str] = []
        for number, stage in enumerate(architecture.stages, 1):
            reduction: Reduction = stage.reduction if size >= SMALLEST_MAP else "none"
            if reduction != "none":
                size = _halved(size) if reduction == "stride" else size // 2
            cells = nn.Sequential()
            if reduction == "pool":
                cells.add_module("reduction", nn.MaxPool2d(2))
            for place, cell in enumerate(stage.cells, 1):
                own: Reduction = reduction if place == 1 and reduction != "pool" else "none"
                cells.add_module(f"cell{place}", CellNetwork(cell, channels, architecture.activation, own))
                names.append(f"body.stage{number}.cell{place}")
                channels = cell.width
            self.body.add_module(f"stage{number}", cells)
        self.cell_names = tuple(names)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1) if architecture.head == "average" else nn.AdaptiveMaxPool2d(1)
        self.dropout = nn.Dropout(settings.dropout)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.body(self.stem(x)))
        return self.linear(self.dropout(x.flatten(1)))  # type: ignore[no-any-return]


def _stem(
    architecture: InceptionResNetArchitecture, input_shape: Shape, resolution: int
) -> tuple[nn.Sequential, int, int]:
    """Layers before the first cell, their output channels and the shorter side of their map.

    The input is halved until it is at most `resolution` pixels a side, and with a stem of stride 2 once more: by the
    first convolution, then by max poolings. With three halvings or more the stem is that of GoogLeNet (7x7; 1x1 and
    3x3 between its poolings), which gives three times its width.
    """
    channels, height, length = input_shape
    size, halvings = min(height, length), 0
    if size < 4:
        raise SpaceError(f"images must have at least 4x4 pixels, got {height}x{length}")
    while size > resolution:
        size, halvings = _halved(size), halvings + 1
    if architecture.stem_stride == 2 and size >= SMALLEST_MAP:
        size, halvings = _halved(size), halvings + 1
    width, activation = architecture.stem, architecture.activation
    large = halvings >= 3
    stem = nn.Sequential()
    kernel = (7, 7) if large else (3, 3)
    stem.add_module("first", ConvUnit(channels, width, kernel, activation, stride=2 if halvings else 1))
    for pooling in range(1, halvings):
        stem.add_module(f"pool{pooling}", nn.MaxPool2d(3, 2, 1))
        if large and pooling == 1:
            stem.add_module("reduce", ConvUnit(width, width, (1, 1), activation))
            stem.add_module("second", ConvUnit(width, 3 * width, (3, 3), activation))
    return stem, 3 * width if large else width, size


def _halved(size: int) -> int:
    return (size + 1) // 2


# ---------------------------------------------------------------------------------------------------- space


class InceptionResNetSettings(SpaceSettings):
    """The ranges of the space."""

    stem: tuple[int, ...] = Field((16, 32, 48, 64), min_length=1, description="Stem widths.")
    widths: tuple[tuple[int, ...], ...] = Field(
        ((16, 32, 48, 64, 96), (32, 48, 64, 96, 128, 192), (64, 96, 128, 192, 256)),
        min_length=1,
        description="Output widths of the cells of each stage.",
    )
    cells: tuple[int, int] = Field((1, 3), description="Least and largest number of cells a stage.")
    mains: tuple[MainKind, ...] = Field(tuple(MAINS), min_length=1, description="Forms of the main branch.")
    side_kinds: tuple[SideKind, ...] = Field(
        ("none", *SIDES, "pool"), min_length=1, description="Forms of the two side branches."
    )
    activations: tuple[Activation, ...] = Field(("relu", "gelu"), min_length=1, description="Activations.")
    reductions: tuple[Literal["stride", "pool", "inner-pool"], ...] = Field(
        ("stride", "pool", "inner-pool"), min_length=1, description="How stages halve their maps."
    )
    narrowest: int = Field(16, ge=STEP, description="Least width of a branch, a multiple of 8.")
    resolution: int = Field(32, ge=4, description="The stem brings images to at most this many pixels a side.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the last linear layer.")

    @model_validator(mode="after")
    def _ranges_hold_something(self) -> InceptionResNetSettings:
        low, high = self.cells
        if not 1 <= low <= high:
            raise ValueError(f"cells must be [least, largest] with 1 <= least <= largest, got {[low, high]}")
        if self.narrowest % STEP:
            raise ValueError(f"narrowest must be a multiple of {STEP}, got {self.narrowest}")
        named = {f"widths of stage {number}": widths for number, widths in enumerate(self.widths, 1)}
        for key, widths in {"stem": self.stem, **named}.items():
            least = STEP if key == "stem" else self.narrowest
            if not widths:
                raise ValueError(f"{key} holds no width")
            if any(width % STEP or width < least for width in widths):
                raise ValueError(f"{key} must be multiples of {STEP} from {least} on, got {list(widths)}")
        lists = ("stem", "mains", "side_kinds", "activations", "reductions")
        for key, values in {**{key: getattr(self, key) for key in lists}, **named}.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{key} names a value twice: {list(values)}")
        return self


class InceptionResNetSpace(SearchSpace):
    """Inception cells with or without shortcuts, among them ResNets and VGG.

    The encoding has a fixed number of names (20 with three stages): 14 for the whole network, and for each stage the
    width and the number of cells. Cells of a stage are alike, but for the first where shortcuts are ``inner``.
    """

    architecture_type = InceptionResNetArchitecture
    settings_type = InceptionResNetSettings
    settings: InceptionResNetSettings

    def suggest(self, trial: Trial) -> InceptionResNetArchitecture:
        s = self.settings
        stem = trial.suggest_categorical("stem", s.stem)
        stem_stride = trial.suggest_categorical("stem_stride", (1, 2))
        reduction = trial.suggest_categorical("reduction", s.reductions)
        first_reduction = trial.suggest_categorical("first_reduction", (False, True))
        shortcut = trial.suggest_categorical("shortcut", ("none", "inner", "all"))
        values = {
            "main": trial.suggest_categorical("main", s.mains),
            "main_reduce": trial.suggest_categorical("main_reduce", REDUCE_SHARES),
            "side1": trial.suggest_categorical("side1", s.side_kinds),
            "side2": trial.suggest_categorical("side2", s.side_kinds),
            "side_share": trial.suggest_categorical("side_share", SIDE_SHARES),
            "side_reduce": trial.suggest_categorical("side_reduce", REDUCE_SHARES),
        }
        sides_from = trial.suggest_int("sides_from", 1, len(s.widths))
        activation = trial.suggest_categorical("activation", s.activations)
        head = trial.suggest_categorical("head", ("average", "max"))
        if reduction == "inner-pool" and shortcut == "all":
            reduction = "pool"  # there is no inner pooling beside a shortcut
        stages = []
        for number, widths in enumerate(s.widths, 1):
            width = trial.suggest_categorical(f"stage{number}.width", widths)
            count = trial.suggest_int(f"stage{number}.cells", *s.cells)
            cell = self._cell(width, values, shortcut != "none", number >= sides_from)
            first = Cell(main=(Layer(kind="3x3", width=width),)) if shortcut == "inner" else cell
            own = reduction if number > 1 or first_reduction else "none"
            stages.append(Stage(reduction=own, cells=(first, *[cell] * (count - 1))))
        return InceptionResNetArchitecture(
            stem=stem, stem_stride=stem_stride, activation=activation, head=head, stages=tuple(stages)
        )

    def build(
        self, architecture: InceptionResNetArchitecture, input_shape: Shape, num_classes: int
    ) -> InceptionResNetNetwork:
        return InceptionResNetNetwork(architecture, input_shape, num_classes, self.settings)

    def size(self) -> int | None:
        """None: many combinations of names give the same network, in ways that do not factorise by stage."""
        return None

    def named(self) -> Mapping[str, Mapping[str, Any]]:
        """Textbook networks and small Inception networks over several octaves of cost, where they are in the ranges.

        ``resnet14``, ``resnet20``: He et al. 2015, section 4.2, with projections. ``vgg-small``: cells and pooling of
        Keller Jordan's airbench (arXiv:2404.00498). ``resnet9``: David Page's DAWNBench network in small.
        """
        return {name: values for name, values in PORTFOLIO.items() if self._holds(values)}

    def describe(self, architecture: InceptionResNetArchitecture) -> Sequence[str]:
        """The branches of each cell, such as ``3x3:64-3x3:64 | 1x1:16 | max:16  + shortcut  /2``."""
        marks = {"none": "", "stride": "  /2", "pool": "  /2 pool", "inner-pool": "  /2 inner-pool"}
        return [
            _cell_text(cell) + (marks[stage.reduction] if place == 0 else "")
            for stage in architecture.stages
            for place, cell in enumerate(stage.cells)
        ]

    def prune_path(self, architecture: Any, network: Any, step: int) -> Sequence[InceptionResNetArchitecture]:
        from search_spaces import inception_resnet_pruning

        return inception_resnet_pruning.prune_path(architecture, network, step)

    def pruned_weights(self, architecture: Any, network: Any, smaller: Any) -> Mapping[str, Tensor]:
        from search_spaces import inception_resnet_pruning

        return inception_resnet_pruning.pruned_weights(network, smaller)

    def with_width(self, architecture: InceptionResNetArchitecture, width: float) -> InceptionResNetArchitecture:
        """In multiples of 4 channels, and at least 4 where there are as many.

        Outputs of equal width stay of equal width, so that a shortcut without a projection stays without one.
        """
        branches: dict[int, int] = {}
        for cell in architecture.cells:
            branches[cell.width] = max(branches.get(cell.width, 1), len(cell.branches))

        def total(channels: int) -> int:
            return max(_thin(channels, width), min(channels, 4 * branches.get(channels, 1)))

        stages = tuple(
            Stage(
                reduction=stage.reduction,
                cells=tuple(_thin_cell(cell, width, total(cell.width)) for cell in stage.cells),
            )
            for stage in architecture.stages
        )
        values = dict(architecture) | {"stem": total(architecture.stem), "stages": stages}
        return InceptionResNetArchitecture(**values)

    def _cell(self, width: int, values: Mapping[str, Any], shortcut: bool, with_sides: bool) -> Cell:
        """The cell of a stage of `width` channels; sides that leave the main branch no room are dropped."""
        narrowest = self.settings.narrowest
        asked = {values["side1"], values["side2"]} - {"none"} if with_sides else set()
        kinds = [kind for kind in (*SIDES, "pool") if kind in asked]
        side = max(narrowest, _rounded(values["side_share"] * width))
        kinds = kinds[: max(0, (width - narrowest) // side)]
        main = width - side * len(kinds)

        def branch(layers: Sequence[LayerKind], channels: int, share: float) -> Branch:
            """With a 1x1 layer first, that is the reduction, and layers up to the next 1x1 layer are as wide."""
            reduced = min(channels, max(narrowest, _rounded(share * channels)))
            widths = [channels] * len(layers)
            if len(layers) > 1 and layers[0] == "1x1":
                widths[0] = reduced
                if layers[-1] == "1x1":
                    widths[1:-1] = [reduced] * (len(layers) - 2)
            return tuple(Layer(kind=kind, width=width) for kind, width in zip(layers, widths, strict=True))

        return Cell(
            main=branch(MAINS[values["main"]], main, values["main_reduce"]),
            sides=tuple(branch(SIDES[kind], side, values["side_reduce"]) for kind in kinds if kind != "pool"),
            pool=side if "pool" in kinds else 0,
            shortcut=shortcut,
        )

    def _holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the values are what `suggest` asks for, and in its ranges."""
        trial = _Ranges()
        self.suggest(trial)
        return set(values) == set(trial.choices) and all(values[name] in trial.choices[name] for name in values)


class _Ranges:
    """A trial that takes the first value of each name and notes all of them."""

    def __init__(self) -> None:
        self.choices: dict[str, Sequence[Any]] = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.choices[name] = range(low, high + 1, step)
        return low

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        raise NotImplementedError("this space asks for no float")

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.choices[name] = choices
        return choices[0]


def _point(stages: Sequence[tuple[int, int]], **values: Any) -> dict[str, Any]:
    """The values of a named point: (width, cells) of each stage, and what differs from a plain ResNet."""
    point: dict[str, Any] = {
        "stem": 16,
        "stem_stride": 1,
        "reduction": "stride",
        "first_reduction": False,
        "shortcut": "all",
        "main": "3x3-3x3",
        "main_reduce": 0.5,
        "side1": "none",
        "side2": "none",
        "side_share": 0.25,
        "side_reduce": 0.5,
        "sides_from": 1,
        "activation": "relu",
        "head": "average",
    }
    for number, (width, cells) in enumerate(stages, 1):
        point |= {f"stage{number}.width": width, f"stage{number}.cells": cells}
    return point | values


_VGG: dict[str, Any] = {"stem": 32, "first_reduction": True, "shortcut": "none", "main": "3x3", "head": "max"}

PORTFOLIO: dict[str, dict[str, Any]] = {
    "vgg-pool": _point([(64, 2), (128, 2), (128, 2)], **_VGG, reduction="pool"),
    "vgg-wide": _point([(64, 2), (128, 2), (256, 2)], **_VGG, reduction="pool"),
    "resnet9": _point(
        [(64, 2), (128, 2), (256, 2)], stem=32, shortcut="inner", reduction="pool", first_reduction=True, head="max"
    ),
    "vgg-small": _point([(64, 2), (128, 2), (128, 2)], **_VGG, reduction="inner-pool", activation="gelu"),
    "resnet20": _point([(16, 3), (32, 3), (64, 3)]),
    "resnet14": _point([(16, 2), (32, 2), (64, 2)]),
    "resnet8-wide": _point([(32, 1), (64, 1), (128, 1)], stem=32),
    "resnet8": _point([(16, 1), (32, 1), (64, 1)]),
    "inception-resnet": _point([(32, 1), (64, 1), (96, 1)], side1="1x1", side2="3x3"),
    "googlenet-small": _point(
        [(64, 1), (96, 2), (128, 2)], shortcut="none", main="1x1-3x3", side1="5x5", side2="pool", first_reduction=True
    ),
    "resnet8-s2": _point([(16, 1), (32, 1), (64, 1)], stem_stride=2),
    "inception-tiny": _point([(32, 1), (48, 1), (64, 1)], stem_stride=2, side1="1x1", side2="pool", main="3x3"),
}
"""Named points by name, as `suggest` would ask for them in the default ranges; short budgets try the first ones."""


def _rounded(width: float) -> int:
    return round(width / STEP) * STEP


def _thin(channels: int, width: float) -> int:
    """A share of so many channels in multiples of 4, at least 4 where there are as many."""
    return min(channels, max(4, round(channels * width / 4) * 4))


def _thin_cell(cell: Cell, width: float, total: int) -> Cell:
    """With so many output channels in all; the main branch has what the others leave it."""
    last = [_thin(branch[-1].width, width) for branch in cell.branches[1:]]
    while total - sum(last) < min(4, cell.main[-1].width) and max(last) > 1:
        widest = last.index(max(last))
        last[widest] = max(1, last[widest] - 4)
    widths = iter([total - sum(last), *last])

    def thin(branch: Branch) -> Branch:
        inner = [Layer(kind=layer.kind, width=_thin(layer.width, width)) for layer in branch[:-1]]
        return (*inner, Layer(kind=branch[-1].kind, width=next(widths)))

    main = thin(cell.main)
    sides = tuple(thin(side) for side in cell.sides)
    pool = next(widths, 0)
    return Cell(main=main, sides=sides, pool=pool, pool_kind=cell.pool_kind, shortcut=cell.shortcut)


def _branch_text(branch: Branch) -> str:
    return "-".join(f"{layer.kind}:{layer.width}" for layer in branch)


def _cell_text(cell: Cell) -> str:
    branches = [_branch_text(branch) for branch in (cell.main, *cell.sides)]
    if cell.pool:
        branches.append(f"{cell.pool_kind}:{cell.pool}")
    return " | ".join(branches) + ("  + shortcut" if cell.shortcut else "")
