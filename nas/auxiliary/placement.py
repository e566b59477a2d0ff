"""Placement of towers: rules that choose cells of a network.

A rule may choose none (a network too shallow to have one); a cell named explicitly must be there. No rule takes
the last cell, which the main head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nas.config import TowersConfig
from nas.errors import ConfigError

Sides = Sequence[int]
"""Shorter side of each cell's output map, by depth."""

Cells = tuple[int, ...]
"""Numbers of cells, from 0."""


def auto(sides: Sides) -> Cells:
    """One tower on the middle cell, none on networks of fewer than three cells.

    Evidence (results/reference/auxiliary; Fashion-MNIST at 14x14, batch norm): one middle tower gained 2.5 ± 1.9 points
    of accuracy after one epoch on networks of 18 cells, nothing visible on 3 to 12, and harmed none; two towers did
    no better than one. That it makes candidates rank better could not be shown (results/reference/calibration).
    """
    return middle(sides) if len(sides) >= 3 else ()


def middle(sides: Sides) -> Cells:
    """The cell at half depth."""
    return ((len(sides) - 1) // 2,) if len(sides) >= 2 else ()


def thirds(sides: Sides) -> Cells:
    """Two towers, after one and two thirds of the cells, as GoogLeNet has them on its third and sixth of nine."""
    cells = len(sides)
    return tuple(sorted({cells // 3 - 1, 2 * cells // 3 - 1})) if cells >= 3 else ()


def two_thirds(sides: Sides) -> Cells:
    """One tower at two thirds, as NASNet and DARTS have it: cell ``2 * cells // 3``, counted from 0."""
    return (min(2 * len(sides) // 3, len(sides) - 2),) if len(sides) >= 2 else ()


def stages(sides: Sides) -> Cells:
    """A tower before each reduction: on every cell that is followed by one with a smaller map."""
    return tuple(cell for cell in range(len(sides) - 1) if sides[cell + 1] < sides[cell])


def every(k: int, sides: Sides) -> Cells:
    """A tower on each k-th cell."""
    return tuple(range(k - 1, len(sides) - 1, k))


RULES: dict[str, Callable[[Sides], Cells]] = {
    "auto": auto,
    "middle": middle,
    "thirds": thirds,
    "two-thirds": two_thirds,
    "stages": stages,
    "none": lambda sides: (),
}


def place(config: TowersConfig, sides: Sides) -> Cells:
    """The cells that carry a tower; raises ConfigError for an explicit cell that is not there."""
    rule = config.placement
    if not isinstance(rule, str):
        missing = [cell for cell in rule if not 0 <= cell < len(sides)]
        if missing:
            raise ConfigError(
                f"towers.placement names cell {missing[0]}, but this network has cells 0 to {len(sides) - 1}"
            )
        return tuple(sorted(set(rule)))
    if rule.startswith("every:"):
        return every(int(rule.removeprefix("every:")), sides)
    return RULES[rule](sides)
