"""Rankers: regressions from signals, sizes and zero-cost scores to accuracy, fitted on other architectures.

Architectures are dealt into five folds; each fold is predicted by a model fitted on the other four, all seeds of a
proxy of one architecture on the same side. This is repeated with other folds, and tau is the mean over the
repetitions, each on its own: predictions are not averaged into a better ranker than a person would have. Folds depend
on the architecture only, so that two arms are compared on the same ones.

Signals of one sign are taken as logarithms (losses, sizes and scores that differ by factors), the target is the
normal score of an architecture's rank among those fitted on: an order is wanted, and a few failures must not decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nas.proxy_fidelity.calibration.agreement import Array, mean
from nas.proxy_fidelity.calibration.table import Series, Truth, is_free

FOLDS = 5


def _ridge() -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))


def _boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=60, max_leaf_nodes=4, min_samples_leaf=10)


MODELS: dict[str, tuple[Callable[[], Any], int, int]] = {"ridge": (_ridge, 10, 0), "boosting": (_boosting, 2, 30)}
"""How each is made, with how many different folds it is repeated (boosting costs ten times as much), and the fewest
architectures that it is fitted on: trees on fewer do not split."""


def folds(n: int, repetition: int) -> NDArray[np.int64]:
    """Which fold each of n architectures is in, as equal in size as can be."""
    return np.random.default_rng(repetition).permutation(n) % FOLDS


def features(series: Sequence[Series], rung: str | None, names: Sequence[str] = ()) -> Array:
    """(n, P, F): the rung's signals that nine in ten architectures have, beside those of the untrained network.

    `rung` None: without training; `names` restricts to these. An architecture without anything from the rung is NaN.
    """
    free = [one for one in series if is_free(one.signal) and (not names or one.signal in names)]
    own = [one for one in series if one.rung == rung]
    measured = np.array([~np.isnan(one.scores).all(1) for one in own or free])
    present = measured.any(0)
    chosen = [one for one, there in zip(own or free, measured, strict=True) if there.sum() >= 0.9 * present.sum()]
    chosen = chosen + (free if own else [])
    if not chosen:
        return np.zeros((len(series[0].scores), 1, 0))
    seeds = max(one.scores.shape[1] for one in chosen)
    columns = [one.scores[:, np.arange(seeds) % one.scores.shape[1]] for one in chosen]
    found = np.stack([_logarithm(one) for one in columns], axis=2)
    found[~present] = np.nan
    return found


def _logarithm(values: Array) -> Array:
    """Of what has one sign everywhere (losses stand negated), sign kept; else as it is."""
    size = np.abs(values)
    if np.nanmin(size) > 0 and abs(np.nanmean(np.sign(values))) == 1:
        return np.asarray(np.sign(values) * np.log(size))
    return values


def cross_fitted(features: Array, truth: Truth, model: str) -> list[Array]:
    """Predictions (n, P), one array a repetition, by models that have not seen the architecture; none of too few."""
    make, repetitions, fewest = MODELS[model]
    target = mean(truth.accuracies, 1)
    known = ~np.isnan(features).all((1, 2)) & ~np.isnan(target)
    found: list[Array] = []
    for repetition in range(repetitions if known.sum() >= fewest else 0):
        fold = folds(len(target), repetition)
        predicted = np.full(features.shape[:2], np.nan)
        for one in range(FOLDS):
            train, test = np.flatnonzero(known & (fold != one)), np.flatnonzero(known & (fold == one))
            if len(test) and len(train):
                predicted[test] = _fit_predict(make(), features[train], target[train], features[test])
        found.append(predicted)
    return found


def _fit_predict(model: Any, given: Array, target: Array, asked: Array) -> Array:
    """Each seed of an architecture is an example with the same target."""
    seeds, width = given.shape[1:]
    normal = stats.norm.ppf((stats.rankdata(target) - 0.5) / len(target))
    model.fit(given.reshape(-1, width), np.repeat(normal, seeds))
    return np.asarray(model.predict(asked.reshape(-1, width)), float).reshape(len(asked), seeds)
