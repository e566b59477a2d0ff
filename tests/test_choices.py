"""What a space's choices were, as numbers: on one scale, whatever was chosen, and whatever the space does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import search_spaces
from nas.ladder import Choices
from nas.ladder.ranker import CHOICE
from nas.space import Architecture, RandomTrial, SearchSpace


class Point(Architecture):
    depth: int
    rate: float
    kind: str
    extra: int


class Mixed(SearchSpace):
    """A bit of everything; one name is asked for half of the time, one value makes nothing, one choice is none."""

    architecture_type = Point

    def suggest(self, trial: Any) -> Point:
        depth = trial.suggest_int("depth", 1, 9)
        kind = trial.suggest_categorical("kind", ["max", "avg", None])
        trial.suggest_categorical("only", ["this"])
        extra = trial.suggest_int("extra", 0, 3) if depth > 4 else 0
        if depth == 9:
            raise ValueError("nothing is nine deep")
        return Point(depth=depth, rate=trial.suggest_float("rate", 0.0, 1.0), kind=str(kind), extra=extra)

    def build(self, architecture: Any, input_shape: Any, num_classes: int) -> Any:
        raise NotImplementedError


MIXED = Choices.of(Mixed())


def test_numbers_stand_for_themselves_and_other_values_have_a_column_each() -> None:
    names = {name.removeprefix(CHOICE) for name in MIXED.names}
    assert names == {"depth", "extra", "rate", "kind=max", "kind=avg", "kind=None"}
    assert all(name.startswith(CHOICE) for name in MIXED.names)


def test_over_random_points_each_has_about_mean_0_and_deviation_1() -> None:
    rows = []
    for seed in range(1000, 1500):
        trial = RandomTrial(seed)
        try:
            Mixed().suggest(trial)
        except ValueError:
            continue
        rows.append(MIXED.read(trial.params))
    assert np.abs(np.mean(rows, axis=0)).max() < 0.3
    assert np.allclose(np.std(rows, axis=0), 1, atol=0.4)  # that of 64 points, and 0 where it was not asked for


def test_what_was_not_asked_for_or_is_unheard_of_says_nothing() -> None:
    assert MIXED.read({}) == pytest.approx(np.zeros(len(MIXED.names)))
    assert MIXED.read({"stranger": 3, "depth": "deep"}) == pytest.approx(np.zeros(len(MIXED.names)))
    row = dict(zip(MIXED.names, MIXED.read({"kind": "median"}), strict=True))
    assert all(row[f"{CHOICE}kind={one}"] < 0 for one in ("max", "avg", "None"))


@given(depth=st.integers(1, 8), more=st.integers(1, 8))
def test_order_is_kept(depth: int, more: int) -> None:
    place = MIXED.names.index(CHOICE + "depth")
    low, high = (MIXED.read({"depth": one})[place] for one in (depth, depth + more))
    assert low < high


def test_a_space_that_makes_nothing_at_all_has_no_choices() -> None:
    class Nothing(Mixed):
        def suggest(self, trial: Any) -> Point:
            raise ValueError("nothing")

    assert Choices.of(Nothing()).names == ()
    assert Choices.of(Nothing()).read({"depth": 3}).shape == (0,)


@pytest.mark.parametrize("name", ["inception", "resnet"])
def test_the_spaces_at_hand_have_choices_and_they_are_finite(name: str) -> None:
    space = search_spaces.load(name, {})
    choices = Choices.of(space)
    assert choices.names
    trial = RandomTrial(5)
    space.suggest(trial)
    assert np.isfinite(choices.read(trial.params)).all()
