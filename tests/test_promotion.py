"""Promotion keeps to the budget and to the ladder, whatever comes back and from however many workers."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.ladder import Policy, Promotion, budget_for

COSTS = (1 / 27, 1 / 9, 1 / 3, 1.0)


@dataclass
class Run:
    """One ladder climbed in virtual time: what was started in which order, and by how many workers at once."""

    started: list[tuple[int, int]] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    paid: float = 0.0
    idle: float = 0.0  # worker-time without work although budget was left
    known: list[dict[int, int]] = field(default_factory=list)  # highest rung done, at each start


def climb(promotion: Promotion[int], scores: np.ndarray, costs: np.ndarray, workers: int, stream: int = 0) -> Run:
    """`scores` (candidates, rungs), NaN: the training fails. `stream` candidates are offered at a time; 0: all."""
    generator = np.random.default_rng(0)
    features = generator.lognormal(size=(len(scores), 1))
    run, now, offered = Run(), 0.0, 0
    running: list[tuple[float, int, int, int]] = []
    highest: dict[int, int] = {}
    while True:
        while len(running) < workers:
            training = promotion.next()
            if training is None and offered < len(scores):
                upto = offered + (stream or len(scores))
                keys = list(range(len(scores)))[offered:upto]
                promotion.offer(keys, features[offered:upto], costs[offered:upto])
                offered = upto
                continue
            if offered >= len(scores):
                promotion.close()
                training = training or promotion.next()
            if training is None:
                break
            key, rung = training
            run.started.append(training)
            run.known.append(dict(highest))
            heapq.heappush(running, (now + costs[key, rung], len(run.started), key, rung))
        if not running:
            run.paid = promotion.spent
            return run
        before = now
        now, _, key, rung = heapq.heappop(running)
        run.idle += (now - before) * (workers - 1 - len(running))
        if np.isnan(scores[key, rung]):
            run.failed.add(key)
            promotion.tell(key, rung, None)
        else:
            highest[key] = rung
            promotion.tell(key, rung, float(scores[key, rung]))


def table(seed: int, count: int, rungs: int, failing: float, uneven: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    scores = generator.random((count, rungs))
    scores[generator.random(scores.shape) < failing] = np.nan
    costs = np.tile(COSTS[-rungs:], (count, 1))
    return scores, costs * (generator.uniform(0.5, 1.5, (count, 1)) if uneven else 1.0)


def test_nobody_goes_on_before_the_ranker_knows_their_own_score() -> None:
    """After many outcomes the ranker looks less often; who came in since then waits, however good the kind looked."""
    generator = np.random.default_rng(0)
    promotion: Promotion[int] = Promotion([1 / 9, 1.0], 1000, ["params"], policy=Policy(refit=0.1))
    params = np.exp(generator.uniform(12, 14, 100))
    costs = np.array([1 / 9, 1.0])
    for key in range(100):
        promotion.enter(key, params[[key]], costs)
    for key in range(1, 100):
        promotion.tell(key, 0, float(np.log(params[key])))
    promotion.enter(100, np.array([1e9]), costs)  # the kind that looks best
    promotion.predicted_scores()
    promotion.tell(100, 0, -1e9)
    promotion.hold(False)
    assert promotion.next() not in (None, (100, 1))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 40),
    rungs=st.integers(1, 4),
    budget=st.floats(0.1, 8),
    workers=st.integers(1, 5),
    failing=st.sampled_from([0.0, 0.3]),
    uneven=st.booleans(),
    stream=st.sampled_from([0, 3]),
)
def test_whatever_comes(
    seed: int,
    count: int,
    rungs: int,
    budget: float,
    workers: int,
    failing: float,
    uneven: bool,
    stream: int,
) -> None:
    scores, costs = table(seed, count, rungs, failing, uneven)

    def once() -> Run:
        return climb(Promotion(costs.mean(axis=0), budget, ["params"], seed=seed), scores, costs, workers, stream)

    run = once()
    assert run.started == once().started, "the same seed decides the same"
    total = sum(float(costs[key, rung]) for key, rung in run.started)
    assert total <= budget + 1e-6
    assert run.paid == pytest.approx(total)
    assert len(set(run.started)) == len(run.started), "nothing is trained twice at a rung"
    for number, (key, rung) in enumerate(run.started):
        earlier = [r for k, r in run.started[:number] if k == key]
        assert all(r < rung for r in earlier)
        from_below = run.known[number].get(key) == rung - 1
        from_free = not earlier
        with_the_rest = rung == rungs - 1 and (not earlier or run.known[number].get(key) == max(earlier))
        assert from_below or (from_free and rung == 0) or with_the_rest
        if key in run.failed:
            assert np.isfinite([scores[key, r] for r in earlier]).all(), "what failed drops out"


def first_untrained(params: np.ndarray, count: int) -> np.ndarray:
    """Sizes of the first candidates that are tried, while nothing comes back."""
    costs = np.tile([0.01, 1.0], (len(params), 1))
    promotion: Promotion[int] = Promotion([0.01, 1.0], 6.0, ["params"])
    promotion.offer(range(len(params)), params[:, None], costs)
    started = [promotion.next() for _ in range(count)]
    return np.array([params[training[0]] for training in started if training is not None])


def test_near_sizes_take_turns_and_far_ones_are_tried_by_the_trend() -> None:
    near = first_untrained(np.repeat(np.geomspace(1e6, 1.1e6, 10), 50), 20)
    assert set(np.unique(near, return_counts=True)[1]) == {2}
    far = first_untrained(np.repeat(np.geomspace(1e5, 1e7, 10), 50), 20)
    assert len(np.unique(far)) < 5
    assert far.min() > 1e6


def test_where_all_candidates_are_known_full_training_waits_for_half_of_the_short_ones() -> None:
    params = np.full(200, 1e6)
    promotion: Promotion[int] = Promotion([0.05, 1.0], 6.0, ["params"])
    promotion.offer(range(200), params[:, None], np.tile([0.05, 1.0], (200, 1)))
    promotion.close()
    low, before = 0, []
    while (training := promotion.next()) is not None:
        low += training[1] == 0
        before += [low] if training[1] == 1 else []
        promotion.tell(*training, float(training[0]))
    assert len(before) == 3
    assert before[0] >= 0.5 * low
    assert before[-1] == low


def test_where_all_candidates_are_known_cheap_short_trainings_get_more_of_the_budget() -> None:
    shares = [Policy().divided([1 / ratio, 1.0]) for ratio in (9, 17, 27, 81)]
    assert shares[0] == pytest.approx(2 / 3)
    assert shares == sorted(shares, reverse=True)
    assert {Policy().share([1 / ratio, 1.0]) for ratio in (9, 17, 27, 81)} == {2 / 3}, "a search's stays"


def test_workers_stay_busy_until_the_end() -> None:
    scores, costs = table(0, 200, 4, 0.0, uneven=True)
    for workers in (1, 2, 4):
        run = climb(Promotion(costs.mean(axis=0), 12.0, ["params"]), scores, costs, workers)
        assert run.paid > 11.0
        assert run.idle <= 1.5 * workers, "only the last full trainings are waited for"


def test_one_full_training_is_always_kept_for_the_end() -> None:
    scores, costs = table(1, 50, 4, 0.0, uneven=False)
    for budget in (1.0, 1.5, 2.0, 6.0):
        promotion: Promotion[int] = Promotion(COSTS, budget, ["params"])
        run = climb(promotion, scores, costs, workers=1)
        assert any(rung == 3 for _, rung in run.started)
        assert promotion.found() == max((k for k, r in run.started if r == 3), key=lambda k: scores[k, 3])


def test_a_budget_that_outlasts_the_candidates_trains_all_of_them() -> None:
    scores, costs = table(2, 6, 4, 0.0, uneven=False)
    promotion: Promotion[int] = Promotion(COSTS, 20.0, ["params"])
    climb(promotion, scores, costs, workers=2)
    assert promotion.found() == scores[:, 3].argmax()


def test_the_good_are_found_by_what_short_trainings_say() -> None:
    generator = np.random.default_rng(0)
    found = []
    for seed in range(20):
        truth = generator.standard_normal(60)
        scores = truth[:, None] + generator.standard_normal((60, 4)) * [0.3, 0.2, 0.1, 0.0]
        promotion: Promotion[int] = Promotion(COSTS, 6.0, ["params"], seed=seed)
        climb(promotion, scores, np.tile(COSTS, (60, 1)), workers=1)
        found.append(int((truth > truth[promotion.found()]).sum()))  # type: ignore[call-overload]
    assert np.mean(np.array(found) == 0) > 0.3  # by chance: a thirtieth
    assert np.mean(found) < 2


def test_every_kind_gets_a_hearing_before_a_common_one_gets_many() -> None:
    """300 candidates of one size, one each of 20 others nearby."""
    params = np.concatenate([np.full(300, 1e6), 1e6 * (1 + 0.01 * np.arange(1, 21))])
    promotion: Promotion[int] = Promotion(COSTS, 6.0, ["params"])
    promotion.offer(range(320), params[:, None], np.tile(COSTS, (320, 1)))
    tried = set()
    generator = np.random.default_rng(0)
    while (training := promotion.next()) is not None:
        tried.add(training[0])
        promotion.tell(*training, float(generator.random()))
    assert len([key for key in tried if key >= 300]) > 15


def test_it_waits_for_offers_and_outcomes() -> None:
    promotion: Promotion[str] = Promotion(COSTS, 6.0, ["params"])
    assert promotion.next() is None
    promotion.offer(["a"], np.array([[1e6]]), np.array([COSTS]))
    assert promotion.next() == ("a", 0)
    assert promotion.next() is None
    promotion.tell("a", 0, 0.5)
    assert promotion.next() == ("a", 1)
    assert promotion.found() is None


def test_real_costs_replace_expected_ones() -> None:
    promotion: Promotion[str] = Promotion(COSTS, 6.0, ["params"])
    promotion.offer(["a"], np.array([[1e6]]), np.array([COSTS]))
    promotion.next()
    promotion.tell("a", 0, 0.5, cost=0.5)
    assert promotion.spent == pytest.approx(0.5)
    with pytest.raises(AssertionError, match="not in training"):
        promotion.tell("a", 0, 0.5)


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_a_search_of_so_many_newcomers_promotes_as_many_as_planned_whatever_the_rounding(workers: int) -> None:
    """New candidates that come one by one, as a search proposes them; two in nine go on."""
    generator = np.random.default_rng(0)
    for new_candidates in range(1, 31):
        rungs, _, budget = budget_for(new_candidates, [1, 9])
        wanted = round(2 * new_candidates / 9)
        assert (rungs > 1) == (wanted >= 1)
        if rungs == 1:
            continue
        costs = [1 / 9, 1.0]
        promotion: Promotion[int] = Promotion(costs, budget, ["params"])
        running: list[tuple[int, int]] = []
        entered, promoted = 0, []
        while True:
            while len(running) < workers:
                if entered < new_candidates and promotion.wants_candidate:
                    promotion.enter(entered, np.array([generator.lognormal()]), np.array(costs))
                    running.append((entered, 0))
                    entered += 1
                elif (chosen := promotion.next()) is not None:
                    running.append(chosen)
                    promoted.append(entered)
                elif entered < new_candidates:
                    promotion.enter(entered, np.array([generator.lognormal()]), np.array(costs))
                    running.append((entered, 0))
                    entered += 1
                else:
                    break
            if not running:
                break
            promotion.tell(*running.pop(0), float(generator.random()))
        assert len(promoted) == wanted, new_candidates
        assert promoted[-1] == new_candidates, "the last is chosen among all"
