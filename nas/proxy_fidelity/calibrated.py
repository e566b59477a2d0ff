"""Predicts full scores from some full trainings, and says how well the proxy ranks.

Pure. The candidates trained fully are spread over the board; their accuracy is on images that no proxy was scored on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nas.config.sections import FEWEST_TO_CALIBRATE
from nas.errors import InputError
from nas.ladder.ranker import FREE, SIGNALS, Observations, Pool, Ranker
from nas.metrics import named
from nas.space import Architecture
from nas.store import Entry, Measurement

NOISE = 0.05
"""Variance between seeds of one network, as a share of that between networks."""


@dataclass(frozen=True)
class Calibrated:
    """Tau of the proxy's score against full training, and for each candidate (by key) a predicted full accuracy.

    A prediction is [mean, low, high], the interval of 95 %; that of a candidate which was trained fully itself rests on
    a presumed noise between seeds (`NOISE`).
    """

    tau: float
    low: float
    high: float
    trained: int
    predictions: Mapping[str, tuple[float, float, float]]
    epochs: int | None = None
    """Of the trainings that stand for full ones, where time cut them."""

    def as_fact(self) -> dict[str, Any]:
        """As JSON, to be remembered."""
        return asdict(self) | {"sentence": self.sentence}

    @classmethod
    def of_fact(cls, fact: Mapping[str, Any] | None) -> Calibrated | None:
        """What was remembered."""
        return None if fact is None else cls(**{name: value for name, value in fact.items() if name != "sentence"})

    @property
    def sentence(self) -> str:
        """How far the ranking can be trusted."""
        how = "fully" if self.epochs is None else f"for {self.epochs} epochs (limited by time)"
        said = (
            f"Among {self.trained} candidates trained {how}, the proxy orders "
            f"{100 * (1 + self.tau) / 2:.0f} % of the pairs correctly (tau {self.tau:.2f}, "
            f"95 % interval {self.low:.2f} to {self.high:.2f})"
        )
        if self.low > 0:
            return f"{said}."
        return f"{said}. This may be chance; train more candidates fully (search.calibrate)."


def calibrated(
    entries: Sequence[Entry], rungs: Sequence[str], full: str, objective: str, images: Sequence[float]
) -> Calibrated | None:
    """From all measurements; `rungs` are the ladder's, lowest first, `full` the key of full training.

    `images` are how many a training at each rung, and full training, sees. None where fewer than five candidates were
    trained fully.
    """
    candidates = {e.measurement.key for e in entries if e.trial is not None}
    done = [e.measurement for e in entries if e.measurement.status == "done" and e.measurement.key in candidates]
    lowest = {m.key: m for m in done if m.rung == rungs[0]}
    truths = {m.key: m.signals["truth_accuracy"] for m in done if m.rung == full and m.key in lowest}
    if len(truths) < FEWEST_TO_CALIBRATE:
        return None
    from nas.proxy_fidelity.calibration import proxy_tau  # pandas and scipy: a second, at the start of every search

    tau = proxy_tau([_score(lowest[key], objective) for key in truths], list(truths.values()))
    ladder = [*rungs, full]
    observed = [m for m in done if m.rung in ladder and m.key in lowest]
    predictions = _predictions(list(lowest.values()), observed, ladder, truths, objective, images)
    return Calibrated(tau.value, tau.low, tau.high, len(truths), predictions)


def spread(scored: Sequence[Measurement], kind: type[Architecture], count: int) -> tuple[Architecture, ...]:
    """So many of these measured architectures, best first, spread evenly from the best to the worst."""
    if len(scored) < count:
        raise InputError(f"{count} architectures were asked for, but only {len(scored)} have been measured")
    places = np.linspace(0, len(scored) - 1, count).round().astype(int)
    return tuple(kind.from_json(scored[place].architecture) for place in places)


def _predictions(
    candidates: Sequence[Measurement],
    observed: Sequence[Measurement],
    ladder: Sequence[str],
    truths: Mapping[str, float],
    objective: str,
    images: Sequence[float],
) -> dict[str, tuple[float, float, float]]:
    """The ranker's predictions, brought to accuracies by those that were trained fully, each left out in turn."""
    number = {m.key: place for place, m in enumerate(candidates)}
    pool = Pool.of(np.array([[m.signals.get(name, np.nan) for name in FREE] for m in candidates]), FREE)
    signals = [name for name in SIGNALS if name != named(objective).signal]
    seen = Observations(
        np.array([number[m.key] for m in observed]),
        np.array([ladder.index(m.rung) for m in observed]),
        np.array([m.signals["truth_accuracy"] if m.rung == ladder[-1] else _score(m, objective) for m in observed]),
        np.array([[m.signals.get(name, np.nan) for name in signals] for m in observed]),
    )
    ranker = Ranker([one / images[-1] for one in images])
    top = len(ladder) - 1
    known = [number[key] for key in truths]
    without = [ranker.predict(pool, seen.where((seen.candidate != one) | (seen.rung != top))) for one in known]
    left_out = np.array([mean[one] for (mean, _), one in zip(without, known, strict=True)])
    usual = float(np.mean([doubt[one] for (_, doubt), one in zip(without, known, strict=True)]))
    accuracies = np.array(list(truths.values()))
    slope, level = _line(left_out, accuracies)
    residuals = accuracies - (level + slope * left_out)
    deviation = float(np.sqrt((residuals**2).sum() / max(1, len(known) - 2)))
    mean, doubt = ranker.predict(pool, seen)
    noise = NOISE * float(accuracies.var()) + 1e-12
    found = {}
    for m in candidates:
        place = number[m.key]
        if m.key in truths:  # what was expected of it before, and what was then seen
            one = known.index(place)
            before = deviation**2 + 1e-12
            weight = before / (before + noise)
            value = (1 - weight) * (level + slope * left_out[one]) + weight * accuracies[one]
            reach = _t(len(known)) * math.sqrt(weight * noise)
        else:
            value = level + slope * mean[place]
            reach = _t(len(known)) * deviation * doubt[place] / usual
        found[m.key] = (float(value), float(max(0.0, value - reach)), float(min(1.0, value + reach)))
    return found


def _line(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Slope (never negative: a better prediction is not a worse network) and level by least squares."""
    spread = float(((x - x.mean()) ** 2).sum())
    slope = max(0.0, float(((x - x.mean()) * (y - y.mean())).sum()) / spread) if spread else 0.0
    return slope, float(y.mean() - slope * x.mean())


def _t(count: int) -> float:
    """How many deviations hold 95 % of the cases where these were estimated from so many."""
    from scipy import stats

    return float(stats.t.ppf(0.975, max(1, count - 2)) * np.sqrt(1 + 1 / count))


def _score(measurement: Measurement, objective: str) -> float:
    """Higher is better."""
    metric = named(objective)
    return metric.score(metric.read(measurement.signals))
