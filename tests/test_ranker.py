"""The ranker learns from outcomes at all rungs, presumes little, and never reads a candidate's own future."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from nas.ladder import Observations, Pool, Ranker
from nas.ladder.ranker import CHOICE, FEW, Prior

COSTS = (1 / 27, 1 / 9, 1 / 3, 1.0)


def outcomes(rows: list[tuple[int, int, float]], signals: np.ndarray | None = None) -> Observations:
    candidate, rung, score = (np.array(column) for column in zip(*rows, strict=True))
    return Observations(candidate, rung, score.astype(float), np.zeros((len(rows), 0)) if signals is None else signals)


def sizes(count: int, low: float = 1e6, high: float = 2e7) -> np.ndarray:
    return np.geomspace(low, high, count)


def pool(params: np.ndarray) -> Pool:
    return Pool.of(params[:, None], ["params"])


def test_while_nothing_is_known_bigger_is_presumed_better_as_far_as_sizes_differ() -> None:
    ranker = Ranker(COSTS)
    nothing = Observations(*(np.zeros(0, dtype=np.int64),) * 2, np.zeros(0), np.zeros((0, 0)))
    mean, deviation = ranker.predict(pool(sizes(10)), nothing)
    assert (np.diff(mean) > 0).all()
    assert (deviation > 0.5).all()
    narrow, _ = ranker.predict(pool(sizes(10, 1e6, 1.05e6)), nothing)
    assert np.ptp(narrow) < 0.05 < 1 < np.ptp(mean)


@pytest.mark.parametrize("sign", [1, -1])
def test_whether_size_helps_is_learned(sign: int) -> None:
    params = sizes(30)
    full = [(i, 3, sign * float(np.log(params[i]))) for i in range(0, 30, 3)]
    mean, _ = Ranker(COSTS).predict(pool(params), outcomes(full))
    rest = [i for i in range(30) if i % 3]
    assert sign * kendalltau(mean[rest], params[rest]).statistic > 0.9


def test_where_size_helps_is_learned() -> None:
    """Not monotone: the families in the middle are the best. Each has several members; two of each are trained."""
    params = np.repeat(sizes(9), 6)
    best = -np.abs(np.arange(9) - 4.0)
    generator = np.random.default_rng(0)
    seen = [(6 * f + i, 2, best[f] + 0.1 * generator.standard_normal()) for f in range(9) for i in range(2)]
    mean, deviation = Ranker(COSTS).predict(pool(params), outcomes(seen))
    untrained = mean.reshape(9, 6)[:, 3]
    assert untrained.argmax() == 4
    assert untrained[4] > max(untrained[0], untrained[8]) + 0.3
    assert (deviation.reshape(9, 6)[:, 0] < deviation.reshape(9, 6)[:, 5]).all()  # what was trained is surer


def test_with_few_outcomes_the_rungs_own_score_ranks() -> None:
    params = np.full(6, 1e6)
    scores = [0.3, 0.1, 0.9, 0.5, 0.7, 0.2]
    mean, _ = Ranker(COSTS).predict(pool(params), outcomes([(i, 0, s) for i, s in enumerate(scores)]))
    assert np.argsort(mean).tolist() == np.argsort(scores).tolist()


def test_what_is_said_of_others_is_what_is_said_of_the_pools_own_untrained() -> None:
    generator = np.random.default_rng(0)
    names = ["params", "flops", CHOICE + "width", CHOICE + "kind=max"]
    features = np.column_stack([generator.lognormal(13, 1, (30, 2)), generator.standard_normal((30, 2))])
    features[3, 1] = features[20, 0] = np.nan
    seen = outcomes([(i, 0, float(generator.random())) for i in range(12)] + [(2, 3, 0.3), (5, 3, 0.7)])
    fit = Ranker(COSTS).fit(Pool.of(features, names), seen)
    assert fit.of_others(features[12:]) == pytest.approx(fit.mean[12:])


def test_choices_tell_the_untrained_apart() -> None:
    """Ten choices, of which three matter: after 24 short trainings the order of others is roughly known."""
    generator = np.random.default_rng(1)
    choices = generator.standard_normal((100, 10))
    good = choices[:, :3] @ [1.0, -0.7, 0.5]
    names = ["params", *(f"{CHOICE}{number}" for number in range(10))]
    features = np.column_stack([np.full(100, 1e6) * generator.uniform(0.9, 1.1, 100), choices])
    seen = outcomes([(i, 0, float(good[i] + 0.5 * generator.standard_normal())) for i in range(24)])
    mean, _ = Ranker(COSTS).predict(Pool.of(features, names), seen)
    assert kendalltau(mean[24:], good[24:]).statistic > 0.5
    blind, _ = Ranker(COSTS).predict(Pool.of(features[:, :1], names[:1]), seen)
    assert abs(kendalltau(blind[24:], good[24:]).statistic) < 0.3


def test_a_column_that_says_nothing_leaves_families_together() -> None:
    """Such as a running number: by it no two networks are alike, by their sizes many are."""
    params = np.repeat(sizes(9), 6)
    numbers = np.random.default_rng(0).permutation(54).astype(float)
    found = Pool.of(np.column_stack([params, numbers]), ["params", "number"])
    assert len(np.unique(found.family)) == 9
    seen = outcomes([(6 * f + 1, 2, -abs(f - 4.0)) for f in range(9)])
    mean, _ = Ranker(COSTS).predict(found, seen)
    assert mean.reshape(9, 6)[4].min() > mean.reshape(9, 6)[[0, 8]].max()


def test_a_size_that_many_share_says_less_of_each() -> None:
    """One of each of two sizes was trained; what that says of others of its size depends on how many there are."""

    def difference(members: int) -> float:
        params = np.repeat([1e6, 1.03e6], members)
        seen = outcomes([(0, 3, 1.0), (members, 3, 0.0)])
        mean, _ = Ranker(COSTS).predict(pool(params), seen)
        return float(mean[1] - mean[-1])

    assert difference(2) > 1.3 * difference(500) > 0


def test_a_longer_training_says_more() -> None:
    params = sizes(4, 1e6, 1.001e6)
    short = [(0, 0, 0.9), (1, 0, 0.1), (2, 0, 0.5), (3, 0, 0.5)]
    long = [(0, 2, 0.1), (1, 2, 0.9)]
    assert np.diff(Ranker(COSTS).predict(pool(params), outcomes(short))[0][:2]) < 0
    assert np.diff(Ranker(COSTS).predict(pool(params), outcomes(short + long))[0][:2]) > 0


def test_scores_of_different_rungs_are_never_compared() -> None:
    """A rung whose scores all lie higher says the same as one whose scores lie lower."""
    rows = [(0, 0, 0.1), (1, 0, 0.2), (2, 0, 0.3), (1, 1, 0.5), (2, 1, 0.6)]
    lifted = [(c, r, s + (100 if r == 1 else 0)) for c, r, s in rows]
    params = sizes(5)
    one, other = (Ranker(COSTS).predict(pool(params), outcomes(each))[0] for each in (rows, lifted))
    np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_features_that_are_missing_constant_or_of_any_magnitude(scale: float) -> None:
    generator = np.random.default_rng(0)
    useful = generator.standard_normal(40)
    holes = np.where(generator.random(40) < 0.3, np.nan, generator.standard_normal(40))
    columns = [np.full(40, 7.0), np.full(40, np.nan), holes, scale * useful, np.where(useful > 9, 1, np.inf)]
    features = Pool.of(np.stack(columns, axis=1), ["constant", "never", "holes", "useful", "endless"])
    assert features.values.shape[1] == 2
    assert np.isfinite(features.values).all()
    mean, deviation = Ranker(COSTS).predict(features, outcomes([(i, 3, useful[i]) for i in range(20)]))
    assert kendalltau(mean[20:], useful[20:]).statistic > 0.7
    assert np.isfinite(deviation).all()


def test_signals_of_a_rung_speak_once_enough_candidates_went_on() -> None:
    """The score is noise and the first signal tells all; the second is missing half the time."""
    generator = np.random.default_rng(0)
    truth = generator.standard_normal(40)
    holes = np.where(generator.random(40) < 0.4, np.nan, 1.0)
    noise = generator.standard_normal(40)
    rows = [(i, 0, noise[i]) for i in range(40)]
    told = np.column_stack([-1000 * truth, holes])
    ranker, same = Ranker(COSTS), pool(np.full(40, 1e6))

    def tau(went: int) -> float:
        above = [(i, 3, truth[i]) for i in range(went)]
        signals = np.concatenate([told, np.full((went, 2), np.nan)])
        mean, _ = ranker.predict(same, outcomes(rows + above, signals))
        return float(kendalltau(mean[20:], truth[20:]).statistic)

    assert tau(20) > 0.7
    assert abs(tau(FEW - 1)) < 0.4


def test_beliefs_can_be_overruled_by_the_caller() -> None:
    prior = Prior(size_slope=-1.0)
    nothing = Observations(*(np.zeros(0, dtype=np.int64),) * 2, np.zeros(0), np.zeros((0, 0)))
    mean, _ = Ranker(COSTS, prior).predict(Pool.of(sizes(5)[:, None], ["params"], prior), nothing)
    assert (np.diff(mean) < 0).all()
