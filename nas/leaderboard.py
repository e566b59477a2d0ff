"""From measurements to a ranked board and its Pareto front. Pure: values in, values out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal

from nas import verdict
from nas.errors import InputError
from nas.store import Entry, Measurement, Store

SIGNAL_OF = {
    "loss": "val_loss",
    "accuracy": "val_accuracy",
    "miou": "val_miou",
    "params": "params",
    "flops": "flops",
    "latency": "latency_ms",
}
"""Which signal an objective or a column reads."""

HIGHER_IS_BETTER = frozenset(
    {
        "accuracy",
        "miou",
        "test_accuracy",
        "test_miou",
        "test_low",
        "test_high",
        "test_images",
        "test_seeds",
        "pareto",
        "tied",
        "predicted",
        "predicted_low",
        "predicted_high",
    }
)
"""Objectives and columns of which more is better; of all others less is."""

TIED_BY = {"loss": "accuracy", "accuracy": "accuracy", "miou": "miou"}
"""By objective, the column in which ties are looked for; other objectives have none.

A board ranked by loss is judged by accuracy: the noise of a mean loss does not follow from the number of images.
"""

Kind = Literal["candidate", "reference"]

Predictions = Mapping[str, tuple[float, float, float]]
"""By architecture: the accuracy expected of full training, and the ends of its interval."""


@dataclass(frozen=True)
class Record:
    """One row of the board. Accuracies are shares from 0 to 1, `seconds` what the measurement took.

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
    loss: float | None = None
    accuracy: float | None = None
    miou: float | None = None
    params: float | None = None
    flops: float | None = None
    latency: float | None = None
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
    sign = -1 if objective in HIGHER_IS_BETTER else 1
    known = predictions or {}

    def place(entry: Entry) -> tuple[float, float, float, str]:
        one = entry.measurement
        predicted = -known[one.key][0] if one.key in known else 0.0
        return (predicted, -_height(entry, rungs), sign * one.signals[SIGNAL_OF[objective]], one.key)

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
    columns = [column.name for column in fields(Record)]
    if column not in columns:
        raise InputError(f"no column {column!r} to sort by; there are: {', '.join(columns)}")
    sign = -1 if column in HIGHER_IS_BETTER else 1

    def order(row: Record) -> tuple[Any, ...]:
        value = getattr(row, column)
        if value is None:
            return (True,)
        return (False, value) if isinstance(value, (str, tuple)) else (False, sign * float(value))

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
    signals: dict[str, Any] = {
        column: _mean([m.signals[signal] for m in done if signal in m.signals]) for column, signal in SIGNAL_OF.items()
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
        test_accuracy=_mean(tests),
        test_std=stdev(tests) if len(tests) > 1 else None,
        test_miou=_mean([m.signals["test_miou"] for m in trainings if "test_miou" in m.signals]),
        test_seeds=len(tests),
        seconds=_mean([m.cost["seconds"] for m in measured if "seconds" in m.cost]),
        towers=first.towers if len(measured) == 1 else (),
        cause=first.cause,
        **signals,
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _with_front(rows: list[Record], objectives: Sequence[str], lowest: Mapping[str, Measurement]) -> list[Record]:
    """Marks the Pareto front of the objectives among the measured candidates, by their scores at the lowest rung."""

    def less_is_better(row: Record, objective: str) -> float:
        own = lowest.get(row.key)
        value = getattr(row, objective) if own is None else own.signals.get(SIGNAL_OF[objective])
        return math.inf if value is None else -value if objective in HIGHER_IS_BETTER else value

    measured = [row for row in rows if row.kind == "candidate" and row.status == "done"]
    points = [[less_is_better(row, one) for one in objectives] for row in measured]
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
    column, best = TIED_BY.get(objective), next(iter(ranked), None)
    if best is None or column is None:
        return set()
    if best.predicted is not None:
        rivals = [row for row in ranked if row.predicted is not None]
        return {row.key for row in rivals[1:] if _predicted_apart(best, row) <= verdict.tie_margin(len(rivals), 1.0)}
    rung, top = at_rung.get(best.key), getattr(best, column)
    scores = {row.key: getattr(row, column) for row in ranked if at_rung.get(row.key) == rung}
    if rung is None or any(score is None for score in scores.values()):
        return set()
    repeats: dict[str, list[float]] = {}
    for one in measurements:
        if one.rung == rung and one.status == "done" and one.key in scores:
            repeats.setdefault(one.key, []).append(one.signals[SIGNAL_OF[column]])
    deviation = verdict.seed_deviation(repeats.values(), top, images if best.miou is None else None)
    if deviation is None:
        return set()
    margin = verdict.tie_margin(len(scores), deviation)
    return {key for key, score in scores.items() if key != best.key and score >= top - margin}


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
