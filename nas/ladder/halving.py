"""Asynchronous successive halving: the schedule of a search whose budget is not known beforehand. Pure."""

from __future__ import annotations

from collections.abc import Iterator


class Halving:
    """Asynchronous successive halving (Li et al. 2020, ASHA): who is promoted next. Pure.

    Of the candidates measured at a rung the best `1 / factor` go on to the next. Nobody waits for a rung to fill:
    whoever belongs there by now is promoted as soon as a worker is free, from the highest rung downwards. Scores of
    different rungs are never compared.
    """

    def __init__(self, rungs: int, factor: int) -> None:
        self._factor = factor
        self._scores: list[dict[str, float]] = [{} for _ in range(rungs)]
        self._promoted: list[set[str]] = [set() for _ in range(rungs)]

    def tell(self, key: str, rung: int, score: float) -> None:
        """A candidate was measured at a rung; less is better."""
        self._scores[rung][key] = score

    def leave(self, key: str, rung: int) -> None:
        """A candidate is on its way to a rung or was there: it has left those below, whatever becomes of it."""
        for lower in self._promoted[:rung]:
            lower.add(key)

    def candidates(self) -> Iterator[tuple[str, int]]:
        """Who may be promoted to which rung now: the highest rungs first, the best of each first."""
        for rung in range(len(self._scores) - 2, -1, -1):
            ranked = sorted(self._scores[rung], key=lambda key: (self._scores[rung][key], key))
            for key in ranked[: len(ranked) // self._factor]:
                if key not in self._promoted[rung]:
                    yield key, rung + 1
