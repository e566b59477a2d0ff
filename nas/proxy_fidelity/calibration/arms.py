"""Pairs each arm with towers with the arm without towers that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

SHARED = ("epochs", "images", "size", "width")
"""What the two have in common. Learning rate and batch size are each arm's own: towers may want others."""

EQUAL = 0.02
"""Arms whose costs differ by at most this share count as equally costly: training ends on whole steps."""


@dataclass(frozen=True)
class Pair:
    """A rung with towers and the rung without that it is compared with, costs as shares of full training."""

    rung: str
    none: str
    towers: str
    epochs: float
    cost: float
    cost_none: float

    @property
    def equal_cost(self) -> bool:
        """Whether neither arm had more computing than the other."""
        return abs(self.cost_none - self.cost) <= EQUAL * self.cost


def pairs(rows: pd.DataFrame, costs: pd.DataFrame) -> Iterator[Pair]:
    """Each proxy with towers beside the one without of the same epochs, images, size and width.

    Of several: the one that was given further steps for exactly these towers, else the nearest in cost. One without
    any such partner is left out.
    """
    known = [name for name in SHARED if name in rows.columns]
    settings = rows.groupby("rung")[known].first().fillna(-1.0)
    proxies = costs[~costs["full"].astype(bool) & (costs["epochs"] > 0)]
    without = proxies[proxies["towers"] == "none"]
    for arm in proxies[proxies["towers"] != "none"].to_dict("records"):
        alike = [(settings.loc[rung] == settings.loc[arm["rung"]]).all() for rung in without["rung"]]
        partners = without[alike].to_dict("records")
        if partners:
            chosen = min(
                partners,
                key=lambda one: (one["equal_to"] != arm["towers"], abs(one["cost"] - arm["cost"])),
            )
            yield Pair(arm["rung"], chosen["rung"], arm["towers"], arm["epochs"], arm["cost"], chosen["cost"])
