"""The input and output values of an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.images import TaskName
from nas.space import Shape
from nas.training.task import TASKS

Pixels = NDArray[np.uint8]
"""Images as they are stored, (N, C, H, W), 0 to 255."""
Logits = NDArray[np.float32]
"""(N, classes), or (N, classes, H, W); of a model with early exits (N, classes, heads), the network's own first."""
Labels = NDArray[np.integer[Any]]
"""(N,), or masks (N, H, W)."""
Predict = Callable[[Pixels], Logits]


@dataclass(frozen=True)
class Compared:
    """A network beside others: its cost, its test accuracies, 0 to 1, by seed, and how fast it is.

    `flops` are for one image, 2 a multiply-add; `latency` holds milliseconds an image on one CPU thread, by form.
    """

    name: str
    key: str
    architecture: str
    params: int
    flops: int
    accuracies: Mapping[int, float]
    latency: Mapping[str, float]


@dataclass(frozen=True)
class Facts:
    """What the card says and the verification needs.

    `architecture` is canonical JSON. `mean` and `std` are one number a channel, in pixel units (0 to 255).
    `params` and `flops` (one image, 2 a multiply-add) are the bare network's. `accuracies` holds the test
    accuracy, 0 to 1, of each retrained network, by its seed; of a dense prediction it is of pixels, and `mious`
    holds the mean intersections over union. Of an ensemble there is `members` instead, by name. `notes` are free
    lines: experiment, recipe, towers. `accuracy_note` says how the tested networks differ from the exported one, if
    they do. Of a pruned network, `compared` begins with what it was pruned from, and it.
    """

    space: str
    architecture: str
    data: str
    classes: tuple[str, ...]
    input_shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    params: int
    flops: int
    accuracies: Mapping[int, float]
    exported_seed: int | None
    notes: Mapping[str, str] = field(default_factory=dict)
    task: TaskName = "classification"
    accuracy_note: str = ""
    mious: Mapping[int, float] = field(default_factory=dict)
    members: Mapping[str, float] = field(default_factory=dict)
    compared: tuple[Compared, ...] = ()

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """Of one image: (classes,), or (classes, H, W)."""
        return TASKS[self.task].logits_shape(self.input_shape, len(self.classes))


@dataclass(frozen=True)
class Check:
    """One file against the trained network: largest logit difference, share of same predictions, images."""

    file: str
    max_difference: float
    agreement: float
    images: int


@dataclass(frozen=True)
class Exported:
    """A finished export: its folder, its verification, and what ``model_card.json`` holds."""

    folder: Path
    checks: tuple[Check, ...]
    card: dict[str, Any]
