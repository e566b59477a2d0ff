"""Candidates that do nothing: twenty numbers, and a tiny network. For scripts/benchmarks/driver.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.space import Architecture, SearchSpace, Shape, Trial

NAMES = 20
STARTED = "NAS_BENCHMARK_STARTED"
"""The environment's variable that names a file, into which the time of the first training step goes."""


class Numbers(Architecture):
    """Twenty numbers."""

    numbers: tuple[int, ...]


class Tiny(nn.Module):
    """A 1x1 convolution, the mean of each channel, a linear layer: ``(N, C, H, W)`` to ``(N, classes)``."""

    cell_names = ("cell",)

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cell = nn.Conv2d(channels, 4, 1)
        self.linear = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        path = os.environ.get(STARTED)
        if path and torch.is_grad_enabled() and not Path(path).exists():  # dry runs and counts need no gradient
            Path(path).write_text(str(time.time()))
        return self.linear(self.cell(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Nothing(SearchSpace):
    """Twenty numbers that change nothing."""

    architecture_type = Numbers

    def suggest(self, trial: Trial) -> Numbers:
        return Numbers(numbers=tuple(trial.suggest_int(f"number{i}", 0, 9) for i in range(NAMES)))

    def build(self, architecture: Numbers, input_shape: Shape, num_classes: int) -> Tiny:
        return Tiny(input_shape[0], num_classes)
