"""Predicts the time of longer trainings from those that the search has seen."""

from __future__ import annotations

import heapq
import math
from statistics import fmean

from nas.ladder import due

LEADERS = 4
"""So many of the best tell what it takes to train one of their kind for longer: they are larger than most."""

UNSURE = 1.2
"""A longer training is planned with so many times what the leaders let expect, and may begin while there is time for
1 / UNSURE of that: it would be a pity to miss it by seconds."""


class Pace:
    """Seconds of trainings at the lowest rung, whose share of a full training's cost is `lowest`."""

    def __init__(self) -> None:
        self.lowest = 1.0
        self._count = 0
        self._seconds = 0.0
        self._leaders: list[tuple[float, int, float]] = []  # a heap of (score, count, seconds)

    def add(self, score: float, seconds: float) -> None:
        """A candidate was trained; higher scores are better."""
        self._count += 1
        self._seconds += seconds
        push = heapq.heappush if len(self._leaders) < LEADERS else heapq.heappushpop
        push(self._leaders, (score, self._count, seconds))

    @property
    def full(self) -> float:
        """What the best would take at the highest rung, by what they took at the lowest; 0: unknown."""
        return fmean(seconds for *_, seconds in self._leaders) / self.lowest if self._leaders else 0.0

    def most(self, left: float | None) -> float:
        """What a training may cost by the seconds that are left (None: no limit), in those of the highest rung."""
        return math.inf if left is None or not self.full else UNSURE * left / self.full

    def late(self, left: float, whole: float, workers: int, promoted: int, share: float) -> bool:
        """Whether it is time for full trainings (see `nas.ladder.due`), with `left` seconds of the `whole`."""
        mean = self._seconds / max(1, self._count)
        return self.full > 0 and due(left, whole, UNSURE * self.full, mean, workers, promoted, share)
