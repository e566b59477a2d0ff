"""GoogLeNet (Szegedy et al., *Going Deeper with Convolutions*, 2014) as a point of the Inception space.

Widths are those of the paper's Table 1, with the real 5x5 kernels, biases and no batch norm: 6,998,552 parameters and
1.58 G multiply-adds at 224x224 and 1000 classes, 13,378,280 parameters with both towers. Local response
normalisation, which has no parameters, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from nas.config import TowersConfig
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
