"""The surrogate: predicts full scores from what is known before training and from outcomes at any rung.

The model is a Gaussian process over (candidate, rung), the Bayesian form of ridge regression: every outcome at every
rung speaks about every candidate's full score, with weights that follow from four statements.

1. *Own*: a candidate's scores at two rungs correlate, the less the further apart their costs are.
2. *Family*: candidates of the same size (parameters and FLOPs; so mostly of the same operations) resemble one another,
   after full training more than after a short one. A size that many candidates share says less of each.
3. *Trend*: a bigger network is better by `size_slope` deviations per e-fold of its parameters, until the outcomes
   say otherwise; of other features, among them the space's choices (`nas.ladder.choices`), nothing is presumed but
   that they may matter. Slopes count for less at cheap rungs, where big networks lag.
4. Each rung has its own level, of which nothing is presumed: scores of different rungs are never compared.

Sizes are taken as logarithms and not standardised: where all are nearly equal, the presumed trend says nearly nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FREE = ("params", "flops")
"""What a search knows of a candidate before training, beside the choices that made it."""

SIGNALS = ("val_loss", "val_accuracy", "tse_ema", "train_accuracy", "tower_loss")
"""What a search reads of a training at a rung below the highest, beside the objective: that one is the score."""

CHOICE = "choice "
"""Names of features begin so that say which choice was taken; these are on one scale already."""

FEW = 8
"""Candidates known at a rung and above it, below which the rung's score speaks alone and not its further signals; and
at the cheapest rung, below which nothing is said of the untrained."""


@dataclass(frozen=True)
class Prior:
    """What the ranker presumes before it sees outcomes. Scores are thought of in standard deviations at their rung."""

    size_slope: float = 0.5  # per e-fold of parameters, after full training
    slope_doubt: float = 0.4  # deviation of that slope, and of the other features' together
    choice_doubt: float = 2.0  # deviation of the slopes of all choices together, in slope_doubt
    slope_kept: float = 0.8  # correlation of slopes over a factor of 3 in cost
    family: float = 0.6  # share of the variance of full scores that families explain
    family_common: float = 0.45  # what is left of that share where very many candidates have the same size
    family_fade: float = 0.15  # less of it for each factor of 3 in cost
    family_width: float = 0.004  # in e-folds (or deviations): what counts as the same feature
    family_kept: float = 0.95  # correlation of a family's means over a factor of 3 in cost
    own_kept: float = 0.82  # correlation of a candidate's own part over a factor of 3 in cost
    noise: float = 0.05  # variance of a training repeated from another seed
    level: float = 4.0  # variance of a rung's level


@dataclass(frozen=True)
class Reading:
    """How a feature is read: the logarithm or a multiple of it, less its mean; what is missing is `usual`."""

    place: int
    logarithm: bool
    scale: float
    mean: float
    usual: float

    def read(self, features: Floats) -> Floats:
        """Of each candidate, from (candidates, features)."""
        raw = _known(features[:, self.place], self.usual)
        return (np.log(np.maximum(raw, 1e-300)) if self.logarithm else raw / self.scale) - self.mean


@dataclass(frozen=True)
class Pool:
    """Free features of all candidates: `values` (rows, F features), each candidate's row of it, and its family."""

    values: Floats
    slopes: Floats  # (F,) presumed slope of each feature
    doubts: Floats  # (F,) its deviation, in slope_doubt
    row: Ints
    family: Ints
    kin: NDArray[np.bool_]  # (F,) whether candidates must have it alike to be of one family: sizes
    readings: tuple[Reading, ...] = ()  # what `values` were read by

    @classmethod
    def of(cls, features: Floats, names: Sequence[str], prior: Prior | None = None) -> Pool:
        """From (candidates, features). Features that are constant or never known are left out; a missing one is median.

        Positive features that vary by more than half are taken as logarithms, as sizes always are; others are
        standardised, unless they are choices.
        """
        prior = prior or Prior()
        features = np.asarray(features, dtype=np.float64)
        readings, kinds = [], []
        for place, name in enumerate(names):
            raw = features[:, place]
            if not np.isfinite(raw).any() or np.ptp(raw[np.isfinite(raw)]) == 0:
                continue
            usual = float(np.median(raw[np.isfinite(raw)]))
            raw = _known(raw, usual)
            kind = name if name == "params" else "choice" if name.startswith(CHOICE) else "other"
            logarithm = kind != "choice" and raw.min() > 0 and (kind == "params" or raw.max() > 1.5 * raw.min())
            scale = 1.0 if kind == "choice" else float(raw.std())
            mean = float((np.log(raw) if logarithm else raw / scale).mean())
            readings.append(Reading(place, bool(logarithm), scale, mean, usual))
            kinds.append(kind)
        if not readings:
            nothing, alike = np.zeros(0), np.zeros(len(features), np.int64)
            return cls(np.zeros((1, 0)), nothing, nothing, alike, alike, nothing.astype(bool))
        together = {"params": 1.0, "choice": prior.choice_doubt, "other": 1.0}
        doubts = np.array([together[kind] / math.sqrt(kinds.count(kind)) for kind in kinds])
        slopes = np.array([prior.size_slope if kind == "params" else 0.0 for kind in kinds])
        read = np.stack([one.read(features) for one in readings], axis=1)
        kin = np.array([names[one.place] in FREE for one in readings])
        values, row = _distinct(read)
        _, family = _distinct(read[:, kin])
        return cls(values, slopes, doubts, row, family, kin, tuple(readings))

    def members(self, values: Floats) -> Ints:
        """How many of the pool's candidates have the size of each of these (N, F)."""
        _, first, counts = np.unique(self.family, return_index=True, return_counts=True)
        sizes = self.values[self.row[first]][:, self.kin]
        counted = {size.tobytes(): int(count) for size, count in zip(sizes, counts, strict=True)}
        return np.array([counted.get(size.tobytes(), 0) for size in values[:, self.kin]], dtype=np.int64)

    @property
    def spacing(self) -> float:
        """Mean distance of neighbouring sizes, in deviations of the full score, as the presumed trend has it."""
        return float(np.ptp(self.values @ self.slopes)) / (int(self.family.max()) + 1)

    def read(self, features: Floats) -> Floats:
        """The values (N, F) of others than the pool's own candidates, from (N, features)."""
        features = np.asarray(features, dtype=np.float64)
        rows = [one.read(features) for one in self.readings]
        return np.stack(rows, axis=1) if rows else np.zeros((len(features), 0))


def _distinct(rows: Floats) -> tuple[Floats, Ints]:
    """Each row that there is, once, and which of them each was."""
    found, which = np.unique(rows, axis=0, return_inverse=True)
    return found, which.reshape(-1).astype(np.int64)


def _known(values: Floats, usual: float) -> Floats:
    return np.where(np.isfinite(values), values, usual)


@dataclass(frozen=True)
class Observations:
    """Outcomes: candidate and rung by number, score (higher is better), further signals (NaN where not known)."""

    candidate: Ints
    rung: Ints
    score: Floats
    signals: Floats  # (outcomes, signals)

    def where(self, chosen: NDArray[np.bool_]) -> Observations:
        """Some of the outcomes."""
        return Observations(self.candidate[chosen], self.rung[chosen], self.score[chosen], self.signals[chosen])


@dataclass(frozen=True)
class Points:
    """Where scores are: values (N, F) of the candidates, their rungs, and what is left of their family share."""

    values: Floats
    rung: Ints
    kept: Floats


class Ranker:
    """Predicts full scores, in standard deviations. `costs` of the rungs ascend; the last is of full training."""

    def __init__(self, costs: Sequence[float], prior: Prior | None = None) -> None:
        self._prior = told = prior or Prior()
        thirds = np.log(np.asarray(costs, dtype=np.float64) / costs[-1]) / math.log(3)  # 0 at full training, else < 0
        apart = np.abs(thirds[:, None] - thirds[None])
        self._share = np.clip(told.family + told.family_fade * thirds, 0.05, None)
        self._family = np.sqrt(np.outer(self._share, self._share)) * told.family_kept**apart
        self._own_kept = told.own_kept**apart
        self._trend = np.clip(1 + thirds / 3, 0.0, None)
        self._slopes = told.slope_doubt**2 * told.slope_kept**apart
        self._top = len(costs) - 1

    def predict(self, pool: Pool, seen: Observations) -> tuple[Floats, Floats]:
        """Mean and deviation of every candidate's full score, given the outcomes of all."""
        fit = self.fit(pool, seen)
        return fit.mean, fit.deviation

    def fit(self, pool: Pool, seen: Observations) -> Fit:
        """What the outcomes say, to be asked about candidates of the pool and others."""
        from scipy.linalg import cho_factor, cho_solve, solve_triangular

        at, rung = seen.candidate, seen.rung
        kept = self.kept(pool, pool.values)
        points = Points(pool.values[pool.row[at]], rung, kept[pool.row[at]])
        known = self._kernel(pool, points, points)
        known += self._prior.level * (rung[:, None] == rung[None])
        same = at[:, None] == at[None]
        known += self._own(rung[:, None], rung[None], points.kept) * same
        factor = cho_factor(known + 1e-6 * np.eye(len(at)), lower=True)
        weights = cho_solve(factor, self.standardised(seen) - self._trend[rung] * (points.values @ pool.slopes))

        cross = self._to_full(pool, pool.values, kept, points)
        slopes = self._slopes[-1, -1] * ((pool.values * pool.doubts) ** 2).sum(axis=1)
        prior = self._family[-1, -1] * kept + self._own(self._top, self._top, kept) + slopes
        drift = self._trend[-1] * (pool.values @ pool.slopes)
        mean = (drift + cross @ weights)[pool.row]
        variance = (prior - (solve_triangular(factor[0], cross.T, lower=True) ** 2).sum(axis=0))[pool.row]

        tried = np.unique(at)  # these have scores of their own too
        row = pool.row[tried]
        own = self._own(self._top, rung, points.kept)
        cross = cross[row] + own[None] * (tried[:, None] == at[None])
        mean[tried] = drift[row] + cross @ weights
        variance[tried] = prior[row] - (solve_triangular(factor[0], cross.T, lower=True) ** 2).sum(axis=0)
        return Fit(self, pool, points, weights, mean, np.sqrt(np.clip(variance, 1e-6, None)))

    def kept(self, pool: Pool, values: Floats) -> Floats:
        """What is left of the family share of candidates (N, F): all where nobody shares their size, else less."""
        least = self._prior.family_common
        return least + (1 - least) / np.maximum(pool.members(values), 1)

    def _own(self, one_rung: Ints | int, other_rung: Ints | int, kept: Floats) -> Floats:
        """Covariance of a candidate's own part at two rungs, where `kept` of the family share is left to its family."""
        left = np.sqrt((1 - self._share[one_rung] * kept) * (1 - self._share[other_rung] * kept))
        return np.asarray(left * self._own_kept[one_rung, other_rung] + self._prior.noise * (one_rung == other_rung))

    def _to_full(self, pool: Pool, values: Floats, kept: Floats, seen: Points) -> Floats:
        """Covariance of full scores of candidates with these values with the outcomes that were seen."""
        return self._kernel(pool, Points(values, np.full(len(values), self._top), kept), seen)

    def standardised(self, seen: Observations) -> Floats:
        """Each outcome as a normal score among those at its rung; one number from all signals where enough went on."""
        values = np.zeros(len(seen.score))
        for rung in np.unique(seen.rung):
            here = np.flatnonzero(seen.rung == rung)
            here = here[np.argsort(seen.candidate[here])]  # in whatever order they came
            values[here] = _normal_scores(seen.score[here])
            if seen.signals.shape[1] and rung < self._top:
                values[here] = self._combined(seen, rung, here, values[here])
        return values

    def _combined(self, seen: Observations, rung: int, here: Ints, scores: Floats) -> Floats:
        """Score and signals of the outcomes `here`, at a rung, as one number.

        That is ridge regression of the score at a higher rung, cross-fitted: at the highest where enough candidates of
        this one have a score; there may be none.
        """
        known = np.isfinite(seen.signals[here]).mean(axis=0) > 0.5
        for higher in range(self._top, rung, -1):
            later = dict(zip(seen.candidate[seen.rung == higher], seen.score[seen.rung == higher], strict=True))
            went = np.array([candidate in later for candidate in seen.candidate[here]])
            if went.sum() >= FEW and known.any():
                break
        else:
            return scores
        from sklearn.linear_model import RidgeCV
        from sklearn.model_selection import cross_val_predict

        signals = np.stack([_normal_scores(column) for column in seen.signals[here].T[known]], axis=1)
        inputs = np.column_stack([scores, signals])
        beyond = _normal_scores(np.array([later[candidate] for candidate in seen.candidate[here][went]])) - scores[went]
        ridge = RidgeCV(alphas=(1.0, 10.0, 100.0))  # of what the score leaves unsaid, so that it is shrunk to the score
        said = np.asarray(ridge.fit(inputs[went], beyond).predict(inputs))
        said[went] = cross_val_predict(ridge, inputs[went], beyond, cv=4)
        return _normal_scores(scores + said)

    def _kernel(self, pool: Pool, one: Points, other: Points) -> Floats:
        """Covariance of what families share, and of the trend."""
        from scipy.spatial.distance import cdist

        rungs = one.rung[:, None], other.rung[None]
        apart = cdist(one.values[:, pool.kin], other.values[:, pool.kin], "sqeuclidean") / self._prior.family_width**2
        alike = self._family[rungs] * np.exp(-0.5 * np.minimum(apart, 100.0))
        alike *= np.sqrt(one.kept[:, None] * other.kept[None])
        slopes = self._slopes[rungs] * (one.values * pool.doubts**2 @ other.values.T)
        return np.asarray(alike + slopes)


@dataclass(frozen=True)
class Fit:
    """What outcomes say: mean and deviation of the full score of each of the pool, and `of_others` what is asked."""

    ranker: Ranker
    pool: Pool
    points: Points  # where the outcomes are
    weights: Floats
    mean: Floats
    deviation: Floats

    def of_others(self, features: Floats) -> Floats:
        """Mean full score of candidates (N, features) that are not of the pool."""
        values = self.pool.read(features)
        cross = self.ranker._to_full(self.pool, values, self.ranker.kept(self.pool, values), self.points)
        return np.asarray(self.ranker._trend[-1] * (values @ self.pool.slopes) + cross @ self.weights)


def _normal_scores(values: Floats) -> Floats:
    """Quantiles of the normal distribution in the order of the values; 0 where a value is missing."""
    from scipy.special import ndtri

    known = np.isfinite(values)
    scores = np.zeros(len(values))
    if known.any():
        order = np.sort(values[known])
        below, upto = (np.searchsorted(order, values[known], side) for side in ("left", "right"))
        scores[known] = ndtri((below + upto) / (2 * len(order)))
    return scores
