"""How a time budget is spent."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.search.time_plan import FACTOR, LEAST_STEPS, MOST_EPOCHS, TimePlan, search_share, time_plan

budgets = st.floats(20, 1e6)
workers = st.integers(1, 64)


def test_most_of_a_short_budget_is_the_winners() -> None:
    ten_minutes = time_plan(600, workers=2)
    assert ten_minutes.final > 0.75 * 600
    assert ten_minutes.search == pytest.approx(600 * search_share(600))


@given(budgets, budgets)
def test_the_search_has_a_larger_share_of_a_longer_budget(one: float, other: float) -> None:
    shorter, longer = sorted((one, other))
    assert 0 < search_share(shorter) <= search_share(longer) < 0.5


@given(budgets, workers, st.one_of(st.none(), st.floats(0.01, 0.99)))
def test_the_parts_of_a_budget_are_within_it(seconds: float, count: int, share: float | None) -> None:
    plan = time_plan(seconds, count, share)
    assert plan.search + plan.final <= seconds
    assert min(plan.search, plan.final, plan.proxy) > 0


@given(budgets, workers)
def test_a_rung_takes_three_times_the_seconds_of_the_one_below(seconds: float, count: int) -> None:
    each = time_plan(seconds, count).rung_seconds()
    assert [after / before for before, after in itertools.pairwise(each)] == [pytest.approx(FACTOR)] * (len(each) - 1)


@given(workers)
def test_the_user_may_allow_one_rung_only(count: int) -> None:
    assert time_plan(36_000, count).rungs == 2
    assert time_plan(36_000, count, rungs=1).rungs == 1


@given(budgets, st.integers(1, 10_000))
def test_the_slowest_step_just_gives_enough_steps(seconds: float, an_epoch: int) -> None:
    plan = time_plan(seconds, 2)
    steps = plan.steps(plan.slowest_step(an_epoch), an_epoch)
    assert steps >= min(LEAST_STEPS, int(plan.final / plan.slowest_step(an_epoch)))
    assert plan.steps(plan.slowest_step(an_epoch) * 2, an_epoch) <= max(1, steps // 2 + 1)


def test_a_small_set_is_not_seen_endlessly() -> None:
    plan = TimePlan(total=3600, search=600, final=3000, proxy=10, rungs=1)
    assert plan.steps(0.001, steps_an_epoch=30) == 30 * MOST_EPOCHS
    assert plan.steps(0.001, steps_an_epoch=1) == LEAST_STEPS
