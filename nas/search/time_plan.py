"""Divides a time budget between the search and the training of the winner. Pure.

Short budgets go nearly all to one training, for which the space's named points are known to be good; a search pays
where there is time for many candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SEARCH_SHARES = (0.08, 0.45)
"""Least and largest share of a budget that the search takes."""

SHARE_AT_FIVE_MINUTES = 0.10
SHARE_PER_DOUBLING = 0.07

CANDIDATES_AT_TEN_MINUTES = 8
"""Candidates that a search of a ten-minute budget has time for; their number grows with the root of the budget."""

MOST_OF_FULL = 1 / 9
"""A training at the lowest rung takes at most this share of a full one."""

TWO_RUNGS_FROM = 1200.0
"""Seconds of a budget from which candidates are promoted."""

FACTOR = 3
"""Seconds of a rung over those of the rung below, under a time budget."""

LEAST_PROXY_SECONDS = 2.0

LEAST_EPOCHS = 5.0
"""A candidate is too slow for a budget that gives its full training fewer passes over the images than this."""

LEAST_STEPS = 2000
"""... and too slow where it has fewer steps than this."""

MOST_EPOCHS = 400.0
"""Full training has at most so many passes over the images, or `LEAST_STEPS` steps."""

SAVED_FOR_WRITING = 6.0
"""Seconds kept for writing and loading the export and for ending the process ..."""

WRITING_OF_STARTING = 1.3
"""... beside so many times those in which the run started: a slow machine is slow at both. Measured on two cores: 20
seconds from the end of training to the exit where the start took 14."""

FORWARD_SHARE = 1 / 3
"""Seconds of a forward pass over those of a training step."""

MARGIN = 0.97
"""Share of the time that is left which the winner's training is planned to take."""


@dataclass(frozen=True)
class TimePlan:
    """Seconds of each part of a budget of `total` seconds.

    `proxy` are one worker's for a candidate at the lowest of so many `rungs`.
    """

    total: float
    search: float
    final: float
    proxy: float
    rungs: int

    def rung_seconds(self) -> list[float]:
        """Seconds of one worker for one candidate at each rung, lowest first."""
        return [self.proxy * FACTOR**height for height in range(self.rungs)]

    def steps(self, step_seconds: float, steps_an_epoch: int) -> int:
        """Steps of a full training whose steps take so long."""
        most = max(LEAST_STEPS, MOST_EPOCHS * steps_an_epoch)
        return max(1, min(int(self.final / step_seconds), int(most)))

    def slowest_step(self, steps_an_epoch: int) -> float:
        """Seconds of a step with which full training just has `LEAST_EPOCHS` and `LEAST_STEPS`."""
        return self.final / max(LEAST_STEPS, LEAST_EPOCHS * steps_an_epoch)


def search_share(seconds: float) -> float:
    """Share of a budget of `nas run` that the search takes, where the user does not say."""
    least, most = SEARCH_SHARES
    return min(most, max(least, SHARE_AT_FIVE_MINUTES + SHARE_PER_DOUBLING * math.log2(max(seconds, 1.0) / 300)))


def time_plan(seconds: float, workers: int, share: float | None = None, rungs: int | None = None) -> TimePlan:
    """The plan of a budget on so many workers; `share` is the search's part, `rungs` how many there are at most."""
    share = search_share(seconds) if share is None else share
    search = share * seconds
    final = max(0.5 * (seconds - search), MARGIN * (seconds - search) - SAVED_FOR_WRITING)
    wanted = CANDIDATES_AT_TEN_MINUTES * math.sqrt(seconds / 600)
    proxy = min(search * workers / max(3.0, wanted), MOST_OF_FULL * final * workers)
    count = 2 if seconds >= TWO_RUNGS_FROM else 1
    proxy = max(LEAST_PROXY_SECONDS, proxy / count)
    return TimePlan(seconds, search, final, float(f"{proxy:.2g}"), min(count, rungs or count))
