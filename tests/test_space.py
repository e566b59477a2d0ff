"""The contract of a search space: architectures are values, random trials come from a seed alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError
from torch import nn

from nas.errors import SpaceError
from nas.space import Architecture, RandomTrial, SearchSpace, Trial


class Layer(Architecture):
    width: int = Field(ge=1)
    kind: str = "conv"


class Stack(Architecture):
    layers: tuple[Layer, ...]
    dropout: float = 0.0


class Stacks(SearchSpace):
    """Stacks of layers."""

    architecture_type = Stack

    def suggest(self, trial: Trial) -> Stack:
        widths = [trial.suggest_int(f"width{i}", 8, 64, step=8) for i in range(trial.suggest_int("depth", 1, 3))]
        kind = trial.suggest_categorical("kind", ("conv", "pool"))
        return Stack(
            layers=tuple(Layer(width=width, kind=kind) for width in widths),
            dropout=trial.suggest_float("dropout", 0.0, 0.5),
        )

    def build(self, architecture: Stack, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        raise NotImplementedError


# ------------------------------------------------------------------------------------------- architectures


def test_an_architecture_is_a_frozen_hashable_value() -> None:
    one, same = (Stack(layers=(Layer(width=8), Layer(width=16))) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one.key == same.key
    assert one != Stack(layers=(Layer(width=16), Layer(width=8)))
    with pytest.raises(ValidationError):
        one.dropout = 0.5  # type: ignore[misc]


def test_the_key_never_changes() -> None:
    """Keys lie in the databases of experiments: another way of making them would lose every measurement."""
    one = Stack(layers=(Layer(width=8), Layer(width=16, kind="pool")), dropout=0.25)
    assert one.to_json() == (
        '{"dropout":0.25,"layers":[{"kind":"conv","width":8},{"kind":"pool","width":16}]}'  # sorted, no spaces
    )
    assert one.key == "282f9c3e7193"


layers = st.builds(Layer, width=st.integers(1, 10**6), kind=st.text(max_size=4))
stacks = st.builds(
    Stack, layers=st.lists(layers, max_size=3).map(tuple), dropout=st.floats(allow_nan=False, allow_infinity=False)
)


@settings(deadline=None, derandomize=True)
@given(one=stacks, other=stacks)
def test_json_brings_back_an_equal_architecture_and_keys_tell_apart(one: Stack, other: Stack) -> None:
    again = Stack.from_json(one.to_json())
    assert again == one
    assert again.key == one.key
    assert (one == other) == (one.to_json() == other.to_json()) or one.dropout == other.dropout == 0.0  # 0.0 and -0.0
    assert (one.key == other.key) == (one.to_json() == other.to_json())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"layers": 3}', '{"layers": [], "depth": 3}', '{"layers": [{"width": 0}]}', "{}"]
)
def test_what_is_no_architecture_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SpaceError, match="not an architecture of type Stack") as caught:
        Stack.from_json(text)
    assert "\n" not in str(caught.value)


def test_the_refusal_names_the_place() -> None:
    with pytest.raises(SpaceError, match=r"layers\.1\.width: .* got 0"):
        Stack.from_json(json.dumps({"layers": [{"width": 8}, {"width": 0}]}))
    with pytest.raises(SpaceError, match=r"unknown key 'layers\.0\.wdth'"):
        Stack.from_json(json.dumps({"layers": [{"width": 8, "wdth": 3}]}))


# ------------------------------------------------------------------------------------------- random trials


def draws(seed: int) -> dict[str, Any]:
    trial = RandomTrial(seed)
    trial.suggest_int("width", 8, 65, step=8)
    trial.suggest_int("depth", -1, 1)
    trial.suggest_float("rate", 0.5, 1.5)
    trial.suggest_float("share", 0.1, 0.55, step=0.2)
    trial.suggest_categorical("kind", ("a", "b", None))
    return trial.params


@settings(deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**63))
def test_a_random_trial_stays_in_its_ranges_and_comes_from_its_seed_alone(seed: int) -> None:
    drawn = draws(seed)
    assert drawn == draws(seed)
    assert drawn["width"] in range(8, 65, 8)
    assert drawn["depth"] in (-1, 0, 1)
    assert 0.5 <= drawn["rate"] <= 1.5
    assert any(abs(drawn["share"] - value) < 1e-9 for value in (0.1, 0.3, 0.5))
    assert drawn["kind"] in ("a", "b", None)


def test_a_random_trial_reaches_every_value() -> None:
    many = [draws(seed) for seed in range(300)]
    assert {one["width"] for one in many} == set(range(8, 65, 8))
    assert {one["depth"] for one in many} == {-1, 0, 1}
    assert {round(one["share"], 6) for one in many} == {0.1, 0.3, 0.5}
    assert {one["kind"] for one in many} == {"a", "b", None}


def test_a_name_asked_for_twice_keeps_its_value() -> None:
    trial = RandomTrial(0)
    assert len({trial.suggest_int("width", 0, 10**9) for _ in range(3)}) == 1
    assert list(trial.params) == ["width"]


# -------------------------------------------------------------------------------------------------- spaces


def test_a_random_architecture_comes_from_the_seed_alone() -> None:
    space = Stacks()
    assert space.random(1) == Stacks().random(1)
    assert len({space.random(seed) for seed in range(20)}) > 10


def test_a_point_is_what_suggest_makes_of_the_values() -> None:
    values = {"depth": 2, "width0": 8, "width1": 24, "kind": "pool", "dropout": 0.5}
    expected = Stack(layers=(Layer(width=8, kind="pool"), Layer(width=24, kind="pool")), dropout=0.5)
    assert Stacks().point(values) == expected
    with pytest.raises(SpaceError, match="no value given for 'width1'"):
        Stacks().point({key: value for key, value in values.items() if key != "width1"})


def test_a_space_need_not_know_its_size_nor_name_points_nor_describe_itself() -> None:
    space = Stacks()
    assert space.size() is None
    assert dict(space.named()) == {}
    assert list(space.describe(space.random(0))) == []
