"""The cheapest proxy that is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from nas.errors import InputError
from nas.proxy_fidelity.calibration.analysis import RUN, Report

DEFAULT_SHARE = 0.85
DEFAULT_TAU = 0.6
NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Recommendation:
    """The tau asked for; the cheapest row of signals or rankers that reaches it, and that surely does; in words.

    `reached` holds it by the estimate, `surely` by the lower end of its interval; None where nothing does. As the
    best of many is chosen, the first is optimistic.
    """

    wanted: float
    reached: dict[str, Any] | None
    surely: dict[str, Any] | None
    sentence: str


def recommend(report: Report, *, tau: float | None = None, of_ceiling: float | None = None) -> Recommendation:
    """The cheapest signal or ranker whose tau reaches `tau`, or this share of the ceiling; of equals, the better one.

    With neither, 85 % of the ceiling, or .6 where no ceiling is known. Raises InputError where a share is asked for
    and no ceiling is known, or both are given.
    """
    limits = report.ceiling
    highest = limits[(limits["what"] == RUN) & (limits["group"] == "all")].iloc[0]
    ceiling = float(highest["tau"])
    known = ceiling == ceiling  # NaN is unequal to itself
    if tau is not None and of_ceiling is not None:
        raise InputError("give a tau or a share of the ceiling, not both")
    if of_ceiling is not None and not known:
        raise InputError("no share of the ceiling can be asked for: no architecture was trained fully from two seeds")
    if tau is None and of_ceiling is None and known:
        of_ceiling = DEFAULT_SHARE
    wanted = of_ceiling * ceiling if of_ceiling is not None else DEFAULT_TAU if tau is None else tau
    if not 0 < wanted <= 1:
        raise InputError(f"the tau to reach must be in (0, 1], got {wanted:g}")
    goal = f"tau {wanted:.2f}" + (f" ({of_ceiling:.0%} of the ceiling)" if of_ceiling is not None else "")
    rows = candidates(report)
    reached, surely = (_cheapest(rows[rows[column] >= wanted]) for column in ("tau", "tau_low"))
    if reached is None:
        best = _cheapest(rows[rows["tau"] == rows["tau"].max()])
        return Recommendation(wanted, None, None, f"Nothing reaches {goal}; the best is {_words(best)}.")
    sure = (
        "nothing does so with its whole interval"
        if surely is None
        else "so does its whole interval"
        if surely == reached
        else f"with its whole interval: {_words(surely)}"
    )
    sentence = f"Cheapest to reach {goal}: {_words(reached)}; {sure}."
    if known and highest["low"] <= 0:
        sentence += (
            f" The ceiling itself is hardly told from 0 [{highest['low']:.2f}, {highest['high']:.2f}]: "
            "more architectures or seeds first."
        )
    return Recommendation(wanted, reached, surely, sentence)


def candidates(report: Report) -> pd.DataFrame:
    """Signals and rankers of what costs less than full training, with a `name`; those that nearly all candidates have.

    What only some have, such as the loss of a fourth tower, cannot rank the others.
    """
    signals = report.signals[report.signals["kind"].isin(["baseline", "free", "proxy"]) & general(report.signals)]
    named = signals.assign(name=signals["signal"])
    both = report.rankers.assign(name=report.rankers["ranker"] + " on " + report.rankers["features"])
    return pd.concat([named, both], ignore_index=True)


def general(signals: pd.DataFrame) -> pd.Series[bool]:
    """Which signals nearly all architectures have."""
    return signals["n"] >= NEARLY_ALL * signals["n"].max()


def _cheapest(rows: pd.DataFrame) -> dict[str, Any] | None:
    if rows.empty:
        return None
    first = rows.sort_values(["cost", "tau"], ascending=[True, False], kind="stable").iloc[0]
    return {str(name): value for name, value in first.items()}


def _words(row: dict[str, Any] | None) -> str:
    assert row is not None
    where = "without training" if row["cost"] == 0 else f"at {row['rung']} ({row['cost']:.1%} of full training)"
    return f"{row['name']} {where}, tau {row['tau']:.2f} [{row['tau_low']:.2f}, {row['tau_high']:.2f}]"
