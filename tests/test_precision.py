"""bfloat16 on CPUs: only where the CPU has it, and where it is timed to be faster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from nas.auxiliary import DeepSupervision
from nas.config import Config, DataConfig, make
from nas.data import Data, load
from nas.evaluation import precision
from nas.space import SearchSpace
from nas.training import loop as training
from search_spaces import load as load_space


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig())


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return load_space("inception_resnet", {})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that a step takes in each precision."""
    seconds = {"float32": 1.0, "bfloat16": 0.7}

    def timed(model: DeepSupervision, task: Any, images: Any, recipe: Any, seed: int) -> float:
        return seconds[recipe.precision]

    monkeypatch.setattr(training, "seconds_a_step", timed)
    return seconds


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.7, "bfloat16"), (0.84, "bfloat16"), (0.9, "float32")])
def test_a_cpu_that_has_it_uses_it_where_it_saves_enough(
    bfloat16: float, chosen: str, clock: dict[str, float], data: Data, space: SearchSpace
) -> None:
    clock["bfloat16"] = bfloat16
    assert precision.of_cpu(Config(), space, data, is_native=lambda: True) == chosen


def test_a_cpu_without_it_is_not_timed(data: Data, space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "gain", lambda *_: pytest.fail("timed"))
    assert precision.of_cpu(Config(), space, data, is_native=lambda: False) == "float32"
    both = make({"proxy": {"precision": "float32"}, "retrain": {"precision": "bfloat16"}})
    assert precision.of_cpu(both, space, data, is_native=lambda: True) == "float32"  # nothing is left open


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True, "avx2": True}, True), ({}, False)],
)
def test_what_torch_says_of_the_cpu_decides(
    capabilities: Mapping[str, bool], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision.native_bfloat16() is has


def test_the_probe_times_real_steps_and_leaves_the_threads(data: Data, space: SearchSpace) -> None:
    threads = torch.get_num_threads()
    found = precision.gain(Config(), space, data)
    assert found < 1
    assert torch.get_num_threads() == threads


def test_a_network_that_refuses_bfloat16_trains_in_float32(
    data: Data, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> float:
        raise RuntimeError("no kernel for BFloat16")

    monkeypatch.setattr(training, "seconds_a_step", fails)
    assert precision.of_cpu(Config(), space, data, is_native=lambda: True) == "float32"
