"""What a search will cost: the arithmetic by hand, and a real prediction that writes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas import ladder, pipeline
from nas.config import Config, make
from nas.data import Data, load
from nas.experiment import Experiment
from nas.plan import Forecast, Plan, Probes, Speed
from nas.proxy import SpaceSpec
from nas.records import Measurement
from nas.search import Candidates

SMALL: dict[str, Any] = {
    "space": {"name": "inception", "widths": [8, 16], "stem": [8, 8], "cells": [1, 2]},
    "search": {"warm_start": []},
    "executor": {"kind": "in-process"},
}


@pytest.fixture(scope="module")
def data() -> Data:
    return load(Config().data)


def probes(flops: list[float], training: float, scoring: float, data: Data, started: float = 5.0) -> Probes:
    """Of a machine that trains an image in so many seconds a FLOP and scores one in so many."""
    measured = []
    for one in flops:
        cost = {
            "seconds": training * one * 1000,
            "images": 1000.0,
            "scoring_seconds": scoring * one * len(data.validation),
            "memory": one,
        }
        measured.append(Measurement("{}", "k", "probe", 0, "done", {"flops": one}, cost))
    return Probes(measured, [0.25] * len(measured), started)


def predicted(data: Data, slots: int = 2, **keys: Any) -> tuple[Plan, Config]:
    """Candidates of 1 and 3 MFLOPs in turn, 1e-9 s a FLOP and image in training, a third of it in scoring."""
    table = {**SMALL, **keys}
    config = ladder.decided(make(table), data.augmentations, on_gpu=False)
    space = SpaceSpec.of(config.space.name, config.space.settings).load()
    candidates = Candidates(space, data.input_shape, len(data.classes), config.search)
    given = probes([1e6, 2e6, 3e6], 1e-9, 1e-9 / 3, data)
    return Forecast(config, data, candidates, [1e6, 3e6], given, slots).plan(), config


def test_speed_is_read_off_probes(data: Data) -> None:
    speed = probes([1e6, 2e6, 4e6], 2e-9, 5e-10, data).speed(len(data.validation))
    assert speed.training == pytest.approx((2e-9, 0), abs=1e-12)
    assert speed.seconds(3e6, 100, 10) == pytest.approx(0.25 + 2e-9 * 3e6 * 100 + 5e-10 * 3e6 * 10)
    assert Speed((0.0, 1.0), (0.0, 2.0), 3.0).seconds(1e9, 4, 5) == 3 + 4 + 10


def test_a_search_without_promotions_by_hand(data: Data) -> None:
    search = {"trials": 10, "warm_start": []}
    plan, config = predicted(
        data, slots=1, search=search, ladder={"rungs": 1}, retrain={"epochs": 2, "seeds": 2, "references": False}
    )
    epochs = ladder.proxy_rung(config, len(data.train)).epochs
    each = [0.25 + 1e-9 * f * (epochs * len(data.train) + len(data.validation) / 3) for f in (1e6, 3e6)]
    assert plan.search_seconds == pytest.approx(5 * sum(each))
    images = len(data.train) + len(data.validation)
    assert data.test is not None
    assert plan.retrain_seconds == pytest.approx(2 * (0.25 + 1e-9 * 3e6 * (2 * images + len(data.test) / 3)))
    assert (plan.candidates, plan.promotions, plan.calibrated, plan.workers) == (10, 0, 0, 1)
    assert plan.candidates_an_hour == pytest.approx(36_000 / plan.search_seconds)
    assert plan.seconds == pytest.approx(5 + plan.search_seconds + plan.retrain_seconds)
    assert plan.memory == 3e6


def test_promotions_are_the_ladders_and_are_paid(data: Data) -> None:
    keys = {"proxy": {"epochs": 1}, "retrain": {"epochs": 9}}
    plan, _ = predicted(data, search={"trials": 45, "warm_start": []}, **keys)
    alone, _ = predicted(data, search={"trials": 45, "warm_start": []}, ladder={"rungs": 1}, **keys)
    rungs, promoted, _ = ladder.budget_for(45, [1, 9])
    assert rungs == 2
    assert plan.promotions == promoted == 10
    longer = 0.25 + 1e-9 * 2e6 * (9 * len(data.train) + len(data.validation) / 3)
    assert plan.search_seconds - alone.search_seconds == pytest.approx(5 * longer, rel=0.2)  # on two workers


def test_a_time_budget_is_kept_to(data: Data) -> None:
    for time in (200, 500, 2000):
        plan, config = predicted(data, search={"time": time, "warm_start": []})
        assert plan.seconds <= time
        assert plan.search_seconds <= config.search.share * time * 1.05
        assert plan.search_seconds >= config.search.share * time * 0.8
        assert plan.epochs <= ladder.retrain_epochs(config.retrain, 10**4)


def test_calibration_is_of_full_trainings_within_the_budget(data: Data) -> None:
    held = data.holding_truth()
    plan, _ = predicted(held, search={"trials": 8, "calibrate": 6, "warm_start": []}, retrain={"epochs": 4})
    full = 0.25 + 1e-9 * 2e6 * (4 * len(held.train) + (len(held.validation) + len(held.truth or ())) / 3)
    assert plan.calibration_seconds == pytest.approx(3 * full)
    assert predicted(held, search={"time": 300, "calibrate": 6, "warm_start": []})[0].seconds <= 300


def test_a_real_plan_says_what_the_search_then_does(tmp_path: Path) -> None:
    config = make({**SMALL, "results": str(tmp_path / "results"), "search": {"trials": 3}, "proxy": {"epochs": 1}})
    events = []
    plan = Experiment(config=config, listen=events.append).plan()
    assert not (tmp_path / "results").exists()
    assert sum(event.measurement is not None for event in events) == plan.workers + 4
    assert plan.candidates == 3
    assert plan.memory > 2**20
    assert all(math.isfinite(one) and one > 0 for one in (plan.search_seconds, plan.retrain_seconds))
    assert Experiment(config=config).search().done == plan.candidates


def test_pipelines_defaults_are_the_plans(data: Data) -> None:
    assert predicted(data)[0].candidates == pipeline.DEFAULT_TRIALS


def test_the_command(nas: Callable[..., Any], tmp_path: Path) -> None:
    words = [
        "plan",
        "--data",
        "digits",
        "--trials",
        "2",
        "--set",
        "executor.kind=in-process",
        "--set",
        "proxy.epochs=1",
    ]
    words += ["--set", "space.widths=[8]", "--set", "space.stem=[8,8]", "--set", "retrain.epochs=1"]
    done = nas(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 candidates" in done.stdout
    assert "candidates an hour" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--data", "nowhere"], ["--set", "search.max_params=1"], ["--workers", "0"]])
def test_what_cannot_be_planned_is_one_line(nas: Callable[..., Any], tmp_path: Path, words: list[str]) -> None:
    done = nas("plan", "--set", "executor.kind=in-process", *words, cwd=tmp_path)
    assert done.returncode == (1 if "max_params" in words[-1] else 2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
