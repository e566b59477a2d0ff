"""Progress of a piece of work, and its time budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from nas.store import Measurement, Store


@dataclass(frozen=True)
class Progress:
    """Where a piece of work stands. `best` is the first objective's; `total` and `seconds_left` are None if unknown."""

    stage: str
    done: int = 0
    failed: int = 0
    infeasible: int = 0
    running: int = 0
    best: float | None = None
    total: int | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Event:
    """Something to tell a person: a line of text, a named measurement that came in, or just where the work stands."""

    progress: Progress
    name: str | None = None
    measurement: Measurement | None = None
    text: str | None = None


Listener = Callable[[Event], None]


def counted(number: int, noun: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class Budget:
    """Seconds to spend, counted over all runs of an experiment: a resumed one goes on with what was left.

    What the search spends is counted apart, so that its share of a raised budget is measured against its own time.
    """

    def __init__(self, records: Store, seconds: float | None, began: float | None = None) -> None:
        """`began` is when this run began, as `time.monotonic` tells, and with it the search; None: now, without one."""
        self.seconds = seconds
        self._records = records
        spent = records.fact("spent", {})
        self._search = float(spent.get("search", 0.0))
        self._rest = float(spent.get("rest", 0.0))
        self._in_search = began is not None
        self._since = time.monotonic() if began is None else began

    def enter(self, search: bool) -> None:
        """From now on the search spends (or the rest does)."""
        self._count()
        self._in_search = search

    @property
    def spent(self) -> float:
        """Seconds spent by this run and those before it."""
        self._count()
        return self._search + self._rest

    @property
    def searched(self) -> float:
        """Seconds that the search spent, of them."""
        self._count()
        return self._search

    def left(self) -> float | None:
        """Seconds left of the whole budget; None where there is none."""
        return None if self.seconds is None else max(0.0, self.seconds - self.spent)

    def left_to_search(self, share: float) -> float | None:
        """Seconds left of the search's share of the budget; None where there is none."""
        left = self.left()
        if self.seconds is None or left is None:
            return None
        return min(left, max(0.0, share * self.seconds - self._search))

    def save(self) -> None:
        """Make what was spent durable."""
        self._count()
        self._records.set_fact("spent", {"search": self._search, "rest": self._rest})

    def _count(self) -> None:
        now = time.monotonic()
        if self._in_search:
            self._search += now - self._since
        else:
            self._rest += now - self._since
        self._since = now
