"""Ranks measurements and finds their Pareto front. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal

from nas import metrics, verdict
from nas.errors import InputError
from nas.store import Entry, Measurement, Store

Kind = Literal["candidate", "reference"]

Predictions = Mapping[str, tuple[float, float, float]]
"""By architecture: the accuracy expected of full training, and the ends of its interval."""


@dataclass(frozen=True)
class Record:
    """One row of the board. Accuracies are shares from 0 to 1, `seconds` what the measurement took.

    `values` holds the metrics that the row has, by name: those of `nas.metrics.on_board`. Each of these is an attribute
    too, such as `row.loss`, and None where the row has no value of it.
    Of dense prediction accuracies are of pixels, and there are mean intersections over union (mIoU) beside them.
    `predicted` is the accuracy expected of full training, with its 95 % interval, where the search was calibrated.
    `test_low` and `test_high` are the 95 % interval that `test_images` allow; they do not count what seeds change.
    Of dense prediction there is no such interval. `tied` candidates cannot be told from the one of rank 1.
    """

    rank: int | None
    name: str
    kind: Kind
    key: str
    status: str
    rung: str
    values: Mapping[str, float] = field(default_factory=dict)
    test_accuracy: float | None = None
    test_std: float | None = None
    test_low: float | None = None
    test_high: float | None = None
    test_images: int | None = None
    test_miou: float | None = None
    test_seeds: int = 0
    predicted: float | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None
    seconds: float | None = None
    towers: tuple[int, ...] = ()
    pareto: bool = False
    tied: bool = False
    cause: str | None = None

    def __getattr__(self, name: str) -> float | None:
        if name not in [metric.name for metric in metrics.on_board()]:
            raise AttributeError(f"a row of the board has no {name!r}; it has: {', '.join(columns())}")
        return self.values.get(name)

    def as_dict(self) -> dict[str, Any]:
        """Every column's value, by its name."""
        return {column: getattr(self, column) for column in columns()}


def columns() -> list[str]:
    """Every column of the board, in its order; the metrics stand together."""
    names = [one.name for one in fields(Record)]
    place = names.index("values")
    return [*names[:place], *(metric.name for metric in metrics.on_board()), *names[place + 1 :]]


@dataclass(frozen=True)
class ImageCounts:
    """How many images scores are of; None where that is not recorded."""

    validation: int | None = None
    test: int | None = None

    @classmethod
    def of(cls, records: Store) -> ImageCounts:
        """From the facts ``validation_images`` and ``test_images``."""
        return cls(records.fact("validation_images"), records.fact("test_images"))


def board(
    entries: Sequence[Entry],
    rungs: Sequence[str],
    retrain_rung: str | None,
    objective: str,
    references: Mapping[str, Sequence[str]],
    others: Sequence[str] = (),
    predictions: Predictions | None = None,
    images: ImageCounts | None = None,
    chosen: str | None = None,
) -> list[Record]:
    """Every measured candidate and the reference rows, best first by `objective`.

    `rungs` are the keys of the ladder's rungs, the lowest first. A row shows a candidate's highest rung; candidates at
    a higher rung come first, for that is what they were promoted for, and scores of different rungs are never
    compared. With `predictions` (of a calibrated search, by key) these rank instead; who has none comes after.
    Results of retraining stand beside them as test accuracy.
    `others` are the further objectives, which span the Pareto front with the first; with none, FLOPs do.
    `references` maps a row's name to architecture keys; the row shows the mean of those that were measured.
    Candidates that failed or were stopped come last, with their cause. What was retrained without a search has a row
    too, called "retrained". With `images`, test accuracies have intervals, and ties with the best are marked. The
    candidate that the search has `chosen`, by key, is the first.
    """
    images = images or ImageCounts()
    proxies, lowest = _highest(entries, rungs), _highest(entries, rungs[:1])
    retrained: dict[str, list[Measurement]] = {}
    for entry in entries:
        if entry.measurement.rung == retrain_rung and entry.measurement.status == "done":
            retrained.setdefault(entry.measurement.key, []).append(entry.measurement)

    rows = [
        _record(f"trial {e.trial}", "candidate", [e.measurement], retrained)
        for e in proxies.values()
        if e.trial is not None
    ]
    named = {key for keys in references.values() for key in keys}
    rows += [
        _record("retrained", "candidate", trainings[:1], retrained)
        for key, trainings in retrained.items()
        if key not in proxies and key not in named
    ]
    for name, keys in references.items():
        measured = [lowest[key].measurement for key in keys if key in lowest]
        if measured:
            measured = [m for m in measured if m.status == "done"] or measured[:1]
            label = f"{name} (mean of {len(measured)})" if len(measured) > 1 else name
            rows.append(_record(label, "reference", measured, retrained))
    heights = {e.measurement.key: _height(e, rungs) for e in proxies.values()}
    rows = [_predicted(_with_interval(row, images.test), (predictions or {}).get(row.key)) for row in rows]
    objectives = [objective, *(others or ["flops"])]
    rows = _with_front(rows, objectives, {key: e.measurement for key, e in lowest.items()})
    rows = _ranked(rows, objective, heights, chosen)
    at_rung = {key: e.measurement.rung for key, e in proxies.items()}
    tied = _tied(rows, objective, at_rung, [e.measurement for e in entries], images.validation)
    return [replace(row, tied=row.kind == "candidate" and row.key in tied) for row in rows]


def in_order(
    entries: Iterable[Entry], rungs: Sequence[str], objective: str, predictions: Predictions | None = None
) -> list[Measurement]:
    """The measured candidates (never mere references) as on the board, best first."""
    done = [e for e in _highest(entries, rungs).values() if e.measurement.status == "done" and e.trial is not None]
    metric, known = metrics.named(objective), predictions or {}

    def place(entry: Entry) -> tuple[float, float, float, str]:
        one = entry.measurement
        predicted = -known[one.key][0] if one.key in known else 0.0
        return (predicted, -_height(entry, rungs), -metric.score(metric.read(one.signals)), one.key)

    return [entry.measurement for entry in sorted(done, key=place)]


def standing(records: Store, objective: str) -> list[Measurement]:
    """The measured candidates of an experiment as on its board, best first: the one that the search has chosen."""
    predictions = records.fact("calibration", {}).get("predictions")
    ordered = in_order(records.all(), records.fact("rungs", []), objective, predictions)
    chosen = records.fact("chosen")
    return sorted(ordered, key=lambda one: one.key != chosen)


def _highest(entries: Iterable[Entry], rungs: Sequence[str]) -> dict[str, Entry]:
    """The entry of each architecture at its highest rung; what failed counts only where nothing was done.

    It is a candidate's where any of them is: promotions belong to the trial that the first rung was measured for.
    """
    found: dict[str, Entry] = {}
    trials: dict[str, int] = {}
    for entry in entries:
        key = entry.measurement.key
        if entry.measurement.rung in rungs:
            if key not in found or _precedence(entry, rungs) > _precedence(found[key], rungs):
                found[key] = entry
            if entry.trial is not None:
                trials[key] = entry.trial
    return {key: replace(one, trial=trials.get(key)) for key, one in found.items()}


def _height(entry: Entry, rungs: Sequence[str]) -> int:
    return rungs.index(entry.measurement.rung)


def _precedence(entry: Entry, rungs: Sequence[str]) -> tuple[bool, int]:
    return entry.measurement.status == "done", _height(entry, rungs)


def sort(rows: Sequence[Record], column: str) -> list[Record]:
    """Rows by a column, best first; rows without a value last. Raises InputError when there is no such column."""
    if column not in columns():
        raise InputError(f"no column {column!r} to sort by; there are: {', '.join(columns())}")
    metric = metrics.find(column)

    def order(row: Record) -> tuple[Any, ...]:
        value = getattr(row, column)
        if value is None:
            return (True,)
        if isinstance(value, bool):  # marked rows first
            return (False, not value)
        return (False, value if metric is None else -metric.score(float(value)))

    return sorted(rows, key=order)


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points (less is better in each coordinate) no other point dominates."""
    found: list[tuple[float, ...]] = []
    for point in sorted({tuple(one) for one in points}):  # only one that comes before can dominate
        if not any(all(x <= y for x, y in zip(other, point, strict=True)) for other in reversed(found)):
            found.append(point)
    inside = set(found)
    return [tuple(point) in inside for point in points]


def _record(
    name: str, kind: Kind, measured: Sequence[Measurement], retrained: Mapping[str, Sequence[Measurement]]
) -> Record:
    """One row: the only measurement's values, or the mean over several architectures."""
    done = [m for m in measured if m.status == "done"]
    means = {
        metric.name: _mean([metric.read(m.signals) for m in done if metric.signal in m.signals])
        for metric in metrics.on_board()
    }
    trainings = [m for one in measured for m in retrained.get(one.key, ())]
    tests = [m.signals["test_accuracy"] for m in trainings]
    first = measured[0]
    return Record(
        rank=None,
        name=name,
        kind=kind,
        key=first.key if len(measured) == 1 else "",
        status="done" if done else first.status,
        rung=("retrain" if tests else first.rung.partition("-")[0]),
        values={name: mean for name, mean in means.items() if mean is not None},
        test_accuracy=_mean(tests),
        test_std=stdev(tests) if len(tests) > 1 else None,
        test_miou=_mean([m.signals["test_miou"] for m in trainings if "test_miou" in m.signals]),
        test_seeds=len(tests),
        seconds=_mean([m.cost["seconds"] for m in measured if "seconds" in m.cost]),
        towers=first.towers if len(measured) == 1 else (),
        cause=first.cause,
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _with_front(rows: list[Record], objectives: Sequence[str], lowest: Mapping[str, Measurement]) -> list[Record]:
    """Marks the Pareto front of the objectives among the measured candidates, by their scores at the lowest rung."""

    spanning = [metrics.named(objective) for objective in objectives]

    def less_is_better(row: Record, metric: metrics.Metric) -> float:
        own = lowest.get(row.key)
        value = row.values.get(metric.name) if own is None else own.signals.get(metric.signal)
        return math.inf if value is None else -metric.score(value)

    measured = [row for row in rows if row.kind == "candidate" and row.status == "done"]
    points = [[less_is_better(row, metric) for metric in spanning] for row in measured]
    on_front = {id(row) for row, inside in zip(measured, front(points), strict=True) if inside}
    return [replace(row, pareto=id(row) in on_front) for row in rows]


def _predicted(row: Record, predicted: tuple[float, float, float] | None) -> Record:
    if predicted is None or row.kind != "candidate":
        return row
    value, low, high = predicted
    return replace(row, predicted=value, predicted_low=low, predicted_high=high)


def _with_interval(row: Record, images: int | None) -> Record:
    if images is None or row.test_accuracy is None or row.test_miou is not None:
        return row
    low, high = verdict.accuracy_interval(row.test_accuracy, images)
    return replace(row, test_low=low, test_high=high, test_images=images)


def _tied(
    rows: Sequence[Record],
    objective: str,
    at_rung: Mapping[str, str],
    measurements: Iterable[Measurement],
    images: int | None,
) -> set[str]:
    """Keys of the candidates that cannot be told from rank 1.

    By predicted accuracies, where there are such. Else by scores of the rung of rank 1, with the noise between seeds of
    the same candidate, or that of so many validation images. Where neither is known there is no mark.
    """
    ranked = [row for row in rows if row.rank is not None]
    metric, best = _ties_judged_by(objective), next(iter(ranked), None)
    if best is None or metric is None:
        return set()
    if best.predicted is not None:
        rivals = [row for row in ranked if row.predicted is not None]
        return {row.key for row in rivals[1:] if _predicted_apart(best, row) <= verdict.tie_margin(len(rivals), 1.0)}
    rung = at_rung.get(best.key)
    values = {row.key: row.values.get(metric.name) for row in ranked if at_rung.get(row.key) == rung}
    scores = {key: score for key, score in values.items() if score is not None}
    if rung is None or len(scores) < len(values):
        return set()
    top = scores[best.key]
    repeats: dict[str, list[float]] = {}
    for one in measurements:
        if one.rung == rung and one.status == "done" and one.key in scores:
            repeats.setdefault(one.key, []).append(metric.read(one.signals))
    deviation = verdict.seed_deviation(repeats.values(), top, images if best.miou is None else None)
    if deviation is None:
        return set()
    margin = verdict.tie_margin(len(scores), deviation)
    return {key for key, score in scores.items() if key != best.key and score >= top - margin}


def _ties_judged_by(objective: str) -> metrics.Metric | None:
    """The score in which ties are looked for; None for an objective that is no score, such as FLOPs.

    A board ranked by loss is judged by accuracy: the noise of a mean loss does not follow from the number of images.
    """
    metric = metrics.named(objective)
    if metric.known != "after training":
        return None
    return metric if metric.unit == "share" else metrics.named("accuracy")


def _predicted_apart(best: Record, row: Record) -> float:
    """How far a prediction is below the best one, in standard deviations of a prediction (the mean of both)."""
    assert best.predicted is not None
    assert best.predicted_low is not None
    assert row.predicted is not None
    assert row.predicted_high is not None
    reach = math.hypot(best.predicted - best.predicted_low, row.predicted_high - row.predicted)
    deviation = reach / math.sqrt(2) / NormalDist().inv_cdf(0.975)
    return (best.predicted - row.predicted) / deviation if deviation else math.inf


def _ranked(rows: list[Record], objective: str, heights: Mapping[str, int], chosen: str | None = None) -> list[Record]:
    by_key = sorted(rows, key=lambda row: row.key)  # as `best` decides between equal scores
    done = sort([row for row in by_key if row.status == "done"], objective)
    # stable: by score within a rung; references are of the lowest one
    done.sort(key=lambda row: -heights.get(row.key, 0) if row.kind == "candidate" else 0)
    done.sort(key=lambda row: -(row.predicted or 0.0))
    done.sort(key=lambda row: row.kind != "candidate" or row.key != chosen)
    rest = [row for row in rows if row.status != "done"]
    ranks = iter(range(1, len(done) + 1))
    return [replace(r, rank=next(ranks) if r.kind == "candidate" else None) for r in done] + rest
