"""GoogLeNet (Szegedy et al., *Going Deeper with Convolutions*, 2014) as a point of the Inception space, and as one of
its own, with deeper and wider siblings.

Widths are those of the paper's Table 1, with the real 5x5 kernels, biases and no batch norm: 6,998,552 parameters and
1.58 G multiply-adds at 224x224 and 1000 classes, 13,378,280 parameters with both towers. Local response
normalisation, which has no parameters, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from nas.config import TowersConfig
from nas.space import SearchSpace, Shape, SpaceSettings, Trial
from search_spaces.inception import (
    CellArchitecture,
    InceptionArchitecture,
    InceptionNetwork,
    InceptionSettings,
    InceptionSpace,
)

INPUT_SHAPE = (3, 224, 224)

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
TABLE_1 = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)

ARCHITECTURE = InceptionArchitecture(
    stem=64,
    stages=tuple(
        tuple(
            CellArchitecture(one=one, three_reduce=r3, three=three, five_reduce=r5, five=five, pool=pool)
            for one, r3, three, r5, five, pool in stage
        )
        for stage in TABLE_1
    ),
)

SETTINGS = InceptionSettings(batch_norm=False, resolution=32, dropout=0.4)

TOWERS = TowersConfig(kind="googlenet", placement=(2, 5), weight=0.3)
"""Both towers as they were: on cells 4a and 4d."""


Multipliers = Annotated[tuple[Annotated[float, Field(gt=0, le=16)], ...], Field(min_length=1)]


class GoogLeNetSettings(SpaceSettings):
    """Which siblings there are, and what all of them share."""

    width: Multipliers = Field((1.0,), description="Multipliers of the channels, rounded to multiples of 8.")
    depth: Multipliers = Field((1.0,), description="Multipliers of the cells of each stage.")
    batch_norm: bool = Field(SETTINGS.batch_norm, description="Batch norm after each convolution; the paper had none.")
    resolution: int = Field(
        SETTINGS.resolution, ge=4, description="The stem brings images to at most this many pixels a side."
    )
    dropout: float = Field(SETTINGS.dropout, ge=0, lt=1, description="Dropout before the last linear layer.")


class GoogLeNetSpace(SearchSpace):
    """GoogLeNet of 2014, and siblings of other widths and depths."""

    architecture_type = InceptionArchitecture
    settings_type = GoogLeNetSettings
    settings: GoogLeNetSettings

    def suggest(self, trial: Trial) -> InceptionArchitecture:
        width = trial.suggest_categorical("width", self.settings.width)
        return scaled(ARCHITECTURE, width, trial.suggest_categorical("depth", self.settings.depth))

    def build(self, architecture: InceptionArchitecture, input_shape: Shape, num_classes: int) -> InceptionNetwork:
        shared = self.settings.model_dump(include={"batch_norm", "resolution", "dropout"})
        return InceptionNetwork(architecture, input_shape, num_classes, SETTINGS.model_copy(update=shared))

    def size(self) -> int:
        """Siblings that differ: multipliers that round to the same widths and cells count once."""
        return len({scaled(ARCHITECTURE, w, d).key for w in self.settings.width for d in self.settings.depth})

    def named(self) -> Mapping[str, Mapping[str, Any]]:
        """``googlenet``: the paper's own, where both multipliers may be 1."""
        own = 1.0 in self.settings.width and 1.0 in self.settings.depth
        return {"googlenet": {"width": 1.0, "depth": 1.0}} if own else {}

    def describe(self, architecture: InceptionArchitecture) -> Sequence[str]:
        """The branches of each cell."""
        return InceptionSpace(SETTINGS).describe(architecture)

    def prune_path(self, architecture: Any, network: Any, step: int) -> Sequence[InceptionArchitecture]:
        return InceptionSpace(SETTINGS).prune_path(architecture, network, step)

    def with_width(self, architecture: InceptionArchitecture, width: float) -> InceptionArchitecture:
        return InceptionSpace(SETTINGS).with_width(architecture, width)

    def pruned_weights(self, architecture: Any, network: Any, smaller: Any) -> Mapping[str, Tensor]:
        return InceptionSpace(SETTINGS).pruned_weights(architecture, network, smaller)


def scaled(architecture: InceptionArchitecture, width: float = 1.0, depth: float = 1.0) -> InceptionArchitecture:
    """Its deeper or wider sibling: channels times `width`, in multiples of 8, and cells of each stage times `depth`.

    A multiplier of 1 changes nothing. The cells of a deeper stage are copies of its cells, in their order.
    """

    def channels(number: int) -> int:
        return number if width == 1 or not number else max(8, math.floor(number * width / 8 + 0.5) * 8)

    def widened(cell: CellArchitecture) -> CellArchitecture:
        branches = ("one", "three_reduce", "three", "five_reduce", "five", "pool")
        return cell.model_copy(update={branch: channels(getattr(cell, branch)) for branch in branches})

    stages = (tuple(widened(stage[i]) for i in copied(len(stage), depth)) for stage in architecture.stages)
    return InceptionArchitecture(stem=channels(architecture.stem), stages=tuple(stages))


def copied(cells: int, depth: float) -> list[int]:
    """Which cell of a stage of so many stands at each place once its depth is multiplied; at least one is left."""
    count = max(1, math.floor(cells * depth + 0.5))
    return [place * cells // count for place in range(count)]


def tower_cells(depth: float = 1.0) -> tuple[int, int]:
    """The cells that stand for 4a and 4d at a depth: the last copy of each."""
    before, stage = len(copied(len(TABLE_1[0]), depth)), copied(len(TABLE_1[1]), depth)
    return (before + _last(stage, 0), before + _last(stage, 3))


def _last(stage: Sequence[int], cell: int) -> int:
    """The last place at which the cell stands, or one before it where it has none."""
    return max((place for place, copy in enumerate(stage) if copy <= cell), default=0)


def googlenet(num_classes: int = 1000) -> InceptionNetwork:
    """The bare network, freshly initialised, for images ``(N, 3, 224, 224)``."""
    return InceptionSpace(SETTINGS).build(ARCHITECTURE, INPUT_SHAPE, num_classes)


def scaled_down(settings: InceptionSettings) -> Mapping[str, Any]:
    """GoogLeNet in the ranges of a space: the values that its `suggest` asks for.

    Widths are averaged over each stage of Table 1 and scaled by one factor, so that the widest branch of every
    stage fits. A space of fewer stages takes the first ones; one of more repeats the last.
    """
    stages = [TABLE_1[min(number, 2)] for number in range(len(settings.widths))]
    means = [[fmean(column) for column in zip(*stage, strict=True)] for stage in stages]
    factor = min(widest / max(mean) for widest, mean in zip(settings.widths, means, strict=True))
    stems = settings.stem_widths
    values: dict[str, Any] = {
        "five_kind": settings.five_kinds[0],
        "pool_kind": settings.pool_kinds[0],
        "stem": min(stems, key=lambda width: abs(width - 64 * factor)),
    }
    for number, (stage, mean, widest) in enumerate(zip(stages, means, settings.widths, strict=True), 1):
        values[f"stage{number}.cells"] = min(max(len(stage), settings.cells[0]), settings.cells[1])
        one, r3, three, r5, five, pool = mean
        cell: dict[str, Any] = {
            branch: min(max(round(width * factor / settings.step), 1), widest // settings.step) * settings.step
            for branch, width in {"one": one, "three": three, "five": five, "pool": pool}.items()
        }
        cell["three_reduce"] = min(settings.reduce, key=lambda share: abs(share - r3 / three))
        cell["five_reduce"] = min(settings.reduce, key=lambda share: abs(share - r5 / five))
        prefixes = (
            [f"stage{number}"] if settings.tied else [f"stage{number}.cell{i}" for i in range(1, settings.cells[1] + 1)]
        )
        values |= {f"{prefix}.{name}": value for prefix in prefixes for name, value in cell.items()}
    return values
