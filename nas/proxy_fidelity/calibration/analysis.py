"""The report on a truth table: how well each signal and ranker predicts full training, and its cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas.errors import InputError
from nas.proxy_fidelity.calibration import rankers
from nas.proxy_fidelity.calibration.agreement import Array, Ranked, bootstrap, estimate, filled, mean, proxy_tau
from nas.proxy_fidelity.calibration.arms import Pair, pairs
from nas.proxy_fidelity.calibration.ceiling import ceilings, decompose, expected_on_top
from nas.proxy_fidelity.calibration.table import BASELINES, Series, Truth, checked, costs, done, series_of, truth_of

BINS = 5
TOP = 0.1

SMALLEST = 5
"""Of a group with fewer architectures nothing is said: it has too few pairs."""

RUN, LEFT_OUT, PERFECT = "one further training", "one training against the others", "a perfect predictor"

Groups = NDArray[np.bool_]
"""(1 + BINS + 1, n): all architectures; bins of equally many by size; the top tenth by truth."""

PARTS = {"": slice(0, 1), "bins_": slice(1, 1 + BINS), "top_": slice(1 + BINS, None)}
"""Which groups a column's prefix is the mean of."""


@dataclass(frozen=True)
class Report:
    """What a truth table says, as tidy frames. `_low` and `_high` are 95 % intervals, NaN is what cannot be said.

    `signals`: a row a signal and rung: tau and rho, both in the top tenth by truth and as the mean within five bins of
    size, share of the ceiling, and gain over params alone (paired). `rankers`: the same of cross-fitted regressions;
    their intervals are conditional on the fits. `bins`: tau within each bin of size. `towers`: with and without towers
    at equal cost, paired. `ceiling`: what can be reached. `truths`: other full trainings (another recipe, more epochs)
    against this truth: tau, and by how much their accuracy is higher. `costs`: a row a rung; `cost` and `time` are
    shares of full training in multiply-adds and in seconds. `points`: score by `signal` and truth, a row a proxy and
    architecture. `notes`: what a reader must know.
    """

    signal: str
    signals: pd.DataFrame
    rankers: pd.DataFrame
    bins: pd.DataFrame
    towers: pd.DataFrame
    ceiling: pd.DataFrame
    truths: pd.DataFrame
    costs: pd.DataFrame
    points: pd.DataFrame
    notes: tuple[str, ...]

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("signal", "notes")}


@dataclass(frozen=True)
class Judged:
    """A signal, or a ranker with its repetitions: what is said of it, and its scores (n, P) each."""

    about: dict[str, Any]
    scores: list[Array]

    @property
    def name(self) -> str:
        """The signal's or the ranker's."""
        return str(self.about.get("signal") or self.about["ranker"])


class Batch:
    """Rankings to be judged on the same resamples; the same one is judged once."""

    def __init__(self) -> None:
        self.rankings: list[Array] = []
        self._places: dict[bytes, int] = {}

    def pair(self, a: Array, b: Array) -> tuple[int, int]:
        """Places of two rankings on the architectures that both have."""
        both = np.logical_and(~np.isnan(a).all(1), ~np.isnan(b).all(1))[:, None]
        return self._add(np.where(both, a, np.nan)), self._add(np.where(both, b, np.nan))

    def _add(self, scores: Array) -> int:
        place = self._places.setdefault(scores.tobytes(), len(self.rankings))
        if place == len(self.rankings):
            self.rankings.append(scores)
        return place


Places = list[tuple[int, int]]
"""Where in a batch a judged one's repetitions are, and what each is compared with."""


def calibrate(table: pd.DataFrame, *, signal: str = "val_loss", resamples: int = 1000, seed: int = 0) -> Report:
    """The report on a truth table. Towers are compared by `signal`. Raises InputError where the table is unusable."""
    if resamples < 2:
        raise InputError(f"resamples must be at least 2, got {resamples}")
    rows = done(checked(table))
    truth = truth_of(rows)
    cost = costs(rows, truth)
    series = series_of(rows, truth, cost)
    named = sorted({one.signal for one in series if one.kind == "proxy"})
    if signal not in named:
        raise InputError(f"no proxy has the signal {signal!r}; there are: {', '.join(named) or 'none'}")
    groups = groups_of(truth)

    judged = [Judged(_about(one), [one.scores]) for one in series if one.kind not in ("reading", "full")]
    judged += _rankers(series, truth)
    arms = list(_arms(list(pairs(rows, cost)), judged, signal))
    batch = Batch()
    places = [[batch.pair(scores, truth.params[:, None]) for scores in one.scores] for one in judged]
    paired = [[batch.pair(*both) for both in zip(a.scores, b.scores, strict=True)] for _, a, b in arms]
    ranked = bootstrap(batch.rankings, truth.accuracies[None], groups, resamples, seed)

    full = list(_of_full(series, truth, groups, resamples, seed))
    limits = _ceilings(truth, full, groups, resamples, seed)
    best = float(limits.loc[(limits["what"] == RUN) & (limits["group"] == "all"), "tau"].iloc[0])
    found = [one.about | _said(ranked, where) for one, where in zip(judged, places, strict=True)] + full
    found = [row | {"of_ceiling": row["tau"] / best if best > 0 else np.nan} for row in found]
    bins = [row for one, where in zip(judged, places, strict=True) for row in _bins(one, ranked, where, truth, groups)]
    return Report(
        signal=signal,
        signals=pd.DataFrame([row for row in found if "signal" in row]),
        rankers=pd.DataFrame([row for row in found if "ranker" in row]),
        bins=pd.DataFrame(bins),
        towers=pd.DataFrame([_difference(pair, a, ranked, p) for (pair, a, _), p in zip(arms, paired, strict=True)]),
        ceiling=limits,
        truths=pd.DataFrame(_truths(rows, truth, resamples, seed)),
        costs=cost,
        points=_points(series, truth, signal),
        notes=tuple(_notes(table, truth, best)),
    )


def groups_of(truth: Truth) -> Groups:
    """All, the bins of size, the top."""
    n = len(truth.params)
    by_size = np.array_split(np.argsort(truth.params, kind="stable"), BINS)
    top = np.argsort(-mean(truth.accuracies, 1), kind="stable")[: int(np.ceil(TOP * n))]
    groups = np.zeros((BINS + 2, n), bool)
    for place, members in enumerate([np.arange(n), *by_size, top]):
        groups[place, members] = True
    return groups


def _about(one: Series) -> dict[str, Any]:
    names = ("rung", "signal", "kind", "towers", "epochs", "cost", "time")
    return {name: getattr(one, name) for name in names}


def _rankers(series: Sequence[Series], truth: Truth) -> Iterator[Judged]:
    """Of size (params, FLOPs), of all that an untrained network shows, and of that beside the signals of each proxy."""
    free = {"rung": "free", "towers": "none", "epochs": 0.0, "cost": 0.0, "time": 0.0}
    seen = [(free | {"features": "untrained"}, rankers.features(series, None))]
    if any(one.signal in BASELINES for one in series):
        seen.insert(0, (free | {"features": "size"}, rankers.features(series, None, BASELINES)))
    proxies = [one for one in series if one.kind == "proxy"]
    for rung, (one, *_) in groupby(proxies, key=lambda one: one.rung):
        about = {name: getattr(one, name) for name in free}
        seen.append((about | {"features": "all"}, rankers.features(series, rung)))
    for about, features in seen:
        for model in rankers.MODELS:
            if features.shape[2] and (predicted := rankers.cross_fitted(features, truth, model)):
                yield Judged(about | {"ranker": model}, predicted)


def _arms(found: Sequence[Pair], judged: Sequence[Judged], signal: str) -> Iterator[tuple[Pair, Judged, Judged]]:
    """With and without towers: the signal and each ranker, where both arms have it."""
    known = {(one.about["rung"], one.name): one for one in judged}
    for pair in found:
        for name in (signal, *rankers.MODELS):
            if (pair.rung, name) in known and (pair.none, name) in known:
                yield pair, known[pair.rung, name], known[pair.none, name]


def _of_full(
    series: Sequence[Series], truth: Truth, groups: Groups, resamples: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows of what full trainings show, each against a truth without the seed that it comes from."""
    late = [one for one in series if one.kind in ("reading", "full")]
    for _, same in groupby(late, key=lambda one: one.owners.tobytes()):
        members = list(same)
        truths = truth.apart_from(members[0].owners)
        if np.isnan(truths).all():  # one seed, and it is the score's own
            continue
        ranked = bootstrap([one.scores for one in members], truths, groups, resamples, seed)
        for place, one in enumerate(members):
            yield _about(one) | _said(ranked, [(place, place)], against_params=False)


def _said(ranked: Ranked, places: Places, against_params: bool = True) -> dict[str, Any]:
    """All columns of a row; a ranker's are means over its repetitions."""
    own, base = [a for a, _ in places], [b for _, b in places]
    found: dict[str, Any] = {"n": int(ranked.n[0, own[0]]), "n_top": int(ranked.n[-1, own[0]])}
    for prefix, part in PARTS.items():
        for measure in ("tau", "rho"):
            found |= _columns(f"{prefix}{measure}", *_values(ranked, measure, part, own))
        if against_params:
            (value, drawn), (other, others) = (_values(ranked, "tau", part, chosen) for chosen in (own, base))
            found |= _columns(f"{prefix}gain", value - other, drawn - others, limit=2.0)
    return found


def _values(ranked: Ranked, measure: str, part: slice, places: list[int]) -> tuple[float, Array]:
    """Mean over groups and repetitions: the value, and its resamples (B,). NaN where a group is too small."""
    large = (ranked.n[part][:, places[0]] >= SMALLEST).all()
    value = getattr(ranked, measure)[part][:, places] if large else np.full((1, 1), np.nan)
    drawn = getattr(ranked, f"{measure}s")[:, part][:, :, places]
    return float(mean(value.ravel(), 0)), mean(drawn.reshape(len(drawn), -1), 1)


def _columns(name: str, value: float, drawn: Array, limit: float = 1.0) -> dict[str, float]:
    found = estimate(value, drawn, 0, limit)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _bins(one: Judged, ranked: Ranked, places: Places, truth: Truth, groups: Groups) -> Iterator[dict[str, Any]]:
    own = [a for a, _ in places]
    about = {name: one.about.get(name, "") for name in ("rung", "signal", "ranker", "features", "cost")}
    for place in range(1, 1 + BINS):
        params = truth.params[groups[place]]
        value = _columns("tau", *_values(ranked, "tau", slice(place, place + 1), own))
        size = {"bin": place, "params_low": params.min(), "params_high": params.max()}
        yield about | size | {"n": int(ranked.n[place, own[0]])} | value


def _difference(pair: Pair, one: Judged, ranked: Ranked, places: Places) -> dict[str, Any]:
    """With towers less without, on the same architectures, seeds and folds."""
    everyone = PARTS[""]
    with_towers = _values(ranked, "tau", everyone, [a for a, _ in places])
    without = _values(ranked, "tau", everyone, [b for _, b in places])
    return {
        "of": one.name,
        "rung": pair.rung,
        "none": pair.none,
        "towers": pair.towers,
        "epochs": pair.epochs,
        "cost": pair.cost,
        "cost_none": pair.cost_none,
        "equal_cost": pair.equal_cost,
        "n": int(ranked.n[0, places[0][0]]),
        "tau": with_towers[0],
        "tau_none": without[0],
        **_columns("difference", with_towers[0] - without[0], with_towers[1] - without[1], limit=2.0),
    }


def _ceilings(truth: Truth, full: Sequence[dict[str, Any]], groups: Groups, resamples: int, seed: int) -> pd.DataFrame:
    """A row a kind of ceiling and group of architectures; `noise` and `spread` are deviations of accuracies."""
    parts = decompose(truth.accuracies)
    about = {"noise": parts.noise if parts else np.nan, "spread": parts.spread if parts else np.nan}
    found = []
    for what, perfect in ((RUN, False), (PERFECT, True)):
        everyone, *_, within = ceilings(truth.accuracies, groups[: 1 + BINS], perfect, resamples, seed)
        for group, one in (("all", everyone), ("size bins", within)):
            found.append({"what": what, "group": group, "tau": one.value, "low": one.low, "high": one.high, "n": one.n})
        top = expected_on_top(parts, TOP, perfect, seed) if parts and groups[-1].sum() >= SMALLEST else np.nan
        found.append({"what": what, "group": "top tenth", "tau": top, "n": int(groups[-1].sum())})
    for row in full:
        if (row["rung"], row["signal"]) == (truth.rung, "truth_accuracy"):
            for prefix, group in (("", "all"), ("bins_", "size bins"), ("top_", "top tenth")):
                values = {"tau": row[f"{prefix}tau"], "low": row[f"{prefix}tau_low"], "high": row[f"{prefix}tau_high"]}
                n = row["n_top"] if prefix == "top_" else row["n"]
                found.append({"what": LEFT_OUT, "group": group, **values, "n": n})
    return pd.DataFrame([row | about for row in found])


def _truths(rows: pd.DataFrame, truth: Truth, resamples: int, seed: int) -> Iterator[dict[str, Any]]:
    """Whether the truth is itself true: a row each other way of full training.

    Each is held against a truth without its own seed, with which it shares initial weights.
    """
    others = rows[rows["full"] & (rows["rung"] != truth.rung) & rows["truth_accuracy"].notna()]
    for rung, group in others.groupby("rung", sort=False):
        wide = group.pivot(index="architecture", columns="seed", values="truth_accuracy").reindex(truth.architectures)
        accuracies = wide.to_numpy(float)
        higher = mean(accuracies, 1) - mean(truth.accuracies, 1)
        owners = np.where(np.isnan(accuracies), np.nan, wide.columns.to_numpy(float))
        truths = truth.apart_from(filled(owners))
        if np.isnan(truths).all():
            continue
        found = proxy_tau(filled(accuracies), truths, resamples=resamples, seed=seed)
        about = {"rung": rung, "architectures": found.n, "higher": float(np.nanmean(higher))}
        yield about | {"tau": found.value, "tau_low": found.low, "tau_high": found.high}


def _points(series: Sequence[Series], truth: Truth, signal: str) -> pd.DataFrame:
    """What is plotted: means over seeds; the score's sign is such that more is better."""
    accuracy = mean(truth.accuracies, 1)
    frames = [
        pd.DataFrame(
            {
                "rung": one.rung,
                "architecture": truth.architectures,
                "params": truth.params,
                "score": mean(one.scores, 1),
                "truth": accuracy,
            }
        )
        for one in series
        if one.kind == "proxy" and one.signal == signal
    ]
    return pd.concat(frames, ignore_index=True).dropna()


def _notes(table: pd.DataFrame, truth: Truth, best: float) -> Iterator[str]:
    seeds = (~np.isnan(truth.accuracies)).sum(1)
    most = "1 seed" if seeds.max() == 1 else f"{seeds.max()} seeds"
    count = most if np.ptp(seeds) == 0 else f"{seeds.min()} to {most}"
    yield f"truth: accuracy at rung {truth.rung}, {len(seeds)} architectures, mean over {count}"
    if dropped := int((table["status"] != "done").sum()):
        yield f"{dropped} of {len(table)} measurements did not end well and are left out"
    if others := sorted(set(table.loc[table["full"], "rung"]) - {truth.rung}):
        yield f"other full trainings are not mixed into the truth: {', '.join(others)}"
    if np.isnan(best):
        yield "no ceiling: no architecture was trained fully from two seeds"
    if np.ceil(len(seeds) * TOP) < SMALLEST:
        yield f"nothing is said of the top tenth: of {len(seeds)} architectures it has too few pairs"
    yield "rankers are cross-fitted over architectures; their intervals are conditional on the fits"
