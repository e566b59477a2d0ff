"""The choices of a search space as numbers on one scale, for the surrogate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.ladder.ranker import CHOICE
from nas.space import RandomTrial, SearchSpace

DRAWN = 64
"""Random points of a space that say what is chosen in it, and how widely it varies."""


@dataclass(frozen=True)
class Choice:
    """One number of a point: the value chosen under a name or, for other values than numbers, whether it is `value`."""

    asked: str
    value: str | None
    mean: float
    deviation: float

    @property
    def name(self) -> str:
        return f"{CHOICE}{self.asked}" + ("" if self.value is None else f"={self.value}")

    def read(self, values: Mapping[str, Any]) -> float:
        if self.asked not in values:
            return 0.0
        chosen = values[self.asked]
        if self.value is None:
            return (float(chosen) - self.mean) / self.deviation if _is_number(chosen) else 0.0
        return (float(str(chosen) == self.value) - self.mean) / self.deviation


@dataclass(frozen=True)
class Choices:
    """Reads points of a space, which are values by the names that its `suggest` asks for.

    Numbers are in deviations from their mean over random points. What was not asked for counts as the mean; of other
    values than numbers, one that no random point had is none of those that they had.
    """

    columns: tuple[Choice, ...]

    @classmethod
    def of(cls, space: SearchSpace) -> Choices:
        """From random points of the space."""
        points: list[Mapping[str, Any]] = []
        for seed in range(DRAWN):
            trial = RandomTrial(seed)
            try:
                space.suggest(trial)
            except Exception:  # a third-party space may raise anything, and its other points may be sound
                continue
            points.append(trial.params)
        found = []
        for name in dict.fromkeys(name for point in points for name in point):
            values = [point[name] for point in points if name in point]
            if all(map(_is_number, values)):
                found.append(_column(name, None, [float(value) for value in values]))
            else:
                texts = [str(value) for value in values]
                kinds = sorted(set(texts))
                found += [_column(name, kind, [float(text == kind) for text in texts]) for kind in kinds]
        return cls(tuple(column for column in found if column.deviation > 0))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers, as the ranker takes them."""
        return tuple(column.name for column in self.columns)

    def read(self, values: Mapping[str, Any]) -> NDArray[np.float64]:
        """The numbers of one point."""
        return np.array([column.read(values) for column in self.columns])


def _column(asked: str, value: str | None, seen: Sequence[float]) -> Choice:
    return Choice(asked, value, float(np.mean(seen)), float(np.std(seen)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
