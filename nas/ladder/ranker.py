"""From what is known of candidates - free features, and outcomes at some rungs - to their score after full training.

The model is a Gaussian process over (candidate, rung), the Bayesian form of ridge regression: every outcome at every
rung speaks about every candidate's full score, with weights that follow from four statements.

1. *Own*: a candidate's scores at two rungs correlate, the less the further apart their costs are.
2. *Family*: candidates with the same free features (the same size, mostly the same operations) resemble one another,
   after full training more than after a short one.
3. *Trend*: a bigger network is better by `size_slope` deviations per e-fold of its parameters, until the outcomes
   say otherwise; nothing is presumed of other features. Slopes count for less at cheap rungs, where big networks lag.
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
"""What a search knows of a candidate before training."""

FEW = 8
"""Candidates known at a rung and above it, below which the rung's score speaks alone and not its further signals."""


@dataclass(frozen=True)
class Beliefs:
    """What the ranker presumes before it sees outcomes. Scores are thought of in standard deviations at their rung."""

    size_slope: float = 0.5  # per e-fold of parameters, after full training
    slope_doubt: float = 0.4  # deviation of that slope, and of the other features' together
    slope_kept: float = 0.8  # correlation of slopes over a factor of 3 in cost
    family: float = 0.6  # share of the variance of full scores that families explain
    family_fade: float = 0.15  # less of it for each factor of 3 in cost
    family_width: float = 0.004  # in e-folds (or deviations): what counts as the same feature
    family_kept: float = 0.95  # correlation of a family's means over a factor of 3 in cost
    own_kept: float = 0.82  # correlation of a candidate's own part over a factor of 3 in cost
    noise: float = 0.05  # variance of a training repeated from another seed
    level: float = 4.0  # variance of a rung's level


@dataclass(frozen=True)
class Pool:
    """Free features of all candidates: one row of `values` (F features) a family, and each candidate's family."""

    values: Floats
    slopes: Floats  # (F,) presumed slope of each feature
    doubts: Floats  # (F,) its deviation, in slope_doubt
    family: Ints

    @classmethod
    def of(cls, features: Floats, names: Sequence[str], beliefs: Beliefs | None = None) -> Pool:
        """From (candidates, features). Features that are constant or never known are left out; a missing one is median.

        Positive features that vary by more than half are taken as logarithms, as sizes always are; others are
        standardised.
        """
        beliefs = beliefs or Beliefs()
        columns, slopes = [], []
        others: list[bool] = []
        for column, name in zip(np.asarray(features, dtype=np.float64).T, names, strict=True):
            column = np.where(np.isfinite(column), column, np.nan)
            if np.isnan(column).all() or np.nanmin(column) == np.nanmax(column):
                continue
            column = np.where(np.isnan(column), np.nanmedian(column), column)
            if column.min() > 0 and (name == "params" or column.max() > 1.5 * column.min()):
                column = np.log(column)
            else:
                column = column / column.std()
            columns.append(column - column.mean())
            slopes.append(beliefs.size_slope if name == "params" else 0.0)
            others.append(name != "params")
        if not columns:
            return cls(np.zeros((1, 0)), np.zeros(0), np.zeros(0), np.zeros(len(features), dtype=np.int64))
        doubts = np.where(others, 1 / math.sqrt(max(1, sum(others))), 1.0)
        values, family = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
        return cls(values, np.array(slopes), doubts, family.reshape(-1).astype(np.int64))


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


class Ranker:
    """Predicts full scores, in standard deviations. `costs` of the rungs ascend; the last is of full training."""

    def __init__(self, costs: Sequence[float], beliefs: Beliefs | None = None) -> None:
        self._beliefs = told = beliefs or Beliefs()
        thirds = np.log(np.asarray(costs, dtype=np.float64) / costs[-1]) / math.log(3)  # 0 at full training, else < 0
        apart = np.abs(thirds[:, None] - thirds[None])
        family = np.clip(told.family + told.family_fade * thirds, 0.05, None)
        self._family = np.sqrt(np.outer(family, family)) * told.family_kept**apart
        self._own = np.sqrt(np.outer(1 - family, 1 - family)) * told.own_kept**apart + told.noise * np.eye(len(costs))
        self._trend = np.clip(1 + thirds / 3, 0.0, None)
        self._slopes = told.slope_doubt**2 * told.slope_kept**apart
        self._top = len(costs) - 1

    def predict(self, pool: Pool, seen: Observations) -> tuple[Floats, Floats]:
        """Mean and deviation of every candidate's full score, given the outcomes of all."""
        from scipy.linalg import cho_factor, cho_solve, solve_triangular

        beliefs = self._beliefs
        at, rung = seen.candidate, seen.rung
        family = pool.family[at]
        drift = pool.values @ pool.slopes
        known = self._kernel(pool, family, rung, family, rung)
        known += beliefs.level * (rung[:, None] == rung[None])
        known += self._own[rung[:, None], rung[None]] * (at[:, None] == at[None])
        factor = cho_factor(known + 1e-6 * np.eye(len(at)), lower=True)
        weights = cho_solve(factor, self.standardised(seen) - self._trend[rung] * drift[family])

        families = np.arange(len(pool.values))
        top = np.full(len(families), self._top)
        cross = self._kernel(pool, families, top, family, rung)
        slopes = self._slopes[-1, -1] * ((pool.values * pool.doubts) ** 2).sum(axis=1)
        prior = self._family[-1, -1] + self._own[-1, -1] + slopes
        mean = (self._trend[-1] * drift + cross @ weights)[pool.family]
        variance = (prior - (solve_triangular(factor[0], cross.T, lower=True) ** 2).sum(axis=0))[pool.family]

        tried = np.unique(at)  # these have scores of their own too
        cross = cross[pool.family[tried]] + self._own[self._top, rung][None] * (tried[:, None] == at[None])
        mean[tried] = self._trend[-1] * drift[pool.family[tried]] + cross @ weights
        explained = (solve_triangular(factor[0], cross.T, lower=True) ** 2).sum(axis=0)
        variance[tried] = prior[pool.family[tried]] - explained
        return mean, np.sqrt(np.clip(variance, 1e-6, None))

    def standardised(self, seen: Observations) -> Floats:
        """Each outcome as a normal score among those at its rung; one number from all signals where enough went on."""
        values = np.zeros(len(seen.score))
        for rung in np.unique(seen.rung):
            here = seen.rung == rung
            values[here] = _normal_scores(seen.score[here])
            if seen.signals.shape[1] and rung < self._top:
                values[here] = self._combined(seen, rung, values[here])
        return values

    def _combined(self, seen: Observations, rung: int, scores: Floats) -> Floats:
        """Score and signals of a rung as one number: ridge regression of the score at a higher rung, cross-fitted.

        The higher rung is the highest at which enough candidates of this one have a score; there may be none.
        """
        here = np.flatnonzero(seen.rung == rung)
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

    def _kernel(self, pool: Pool, one: Ints, one_rung: Ints, other: Ints, other_rung: Ints) -> Floats:
        """Covariance of what families share, of (family, rung) with (family, rung)."""
        a, b = pool.values[one], pool.values[other]
        apart = ((a[:, None] - b[None]) ** 2).sum(axis=2) / self._beliefs.family_width**2
        alike = self._family[one_rung[:, None], other_rung[None]] * np.exp(-0.5 * np.minimum(apart, 100.0))
        slopes = self._slopes[one_rung[:, None], other_rung[None]] * (a * pool.doubts**2 @ b.T)
        return np.asarray(alike + slopes)


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
