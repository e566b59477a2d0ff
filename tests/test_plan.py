"""What a search will cost: the arithmetic by hand, and a real prediction that writes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas import ladder, pipeline
from nas.candidates import Candidates
from nas.config import Config, make
from nas.data import Data, load
from nas.experiment import Experiment
from nas.plan import Forecast, Plan, Probes, Speed
from nas.proxy import SpaceSpec, stand_ins_share
from nas.records import Measurement

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


def predicted(data: Data, slots: int = 2, retrainings: int | None = None, **keys: Any) -> tuple[Plan, Config]:
    """Candidates of 1 and 3 MFLOPs in turn, 1e-9 s a FLOP and image in training, a third of it in scoring."""
    table = {**SMALL, **keys}
    config = ladder.decided(make(table), data.augmentations, on_gpu=False)
    space = SpaceSpec.of(config.space.name, config.space.settings).load()
    candidates = Candidates(space, data.input_shape, len(data.classes), config.search)
    given = probes([1e6, 2e6, 3e6], 1e-9, 1e-9 / 3, data)
    return Forecast(config, data, candidates, [1e6, 3e6], given, slots, retrainings or slots).plan(), config


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


def test_stand_ins_are_cheap_and_promotions_dear(data: Data) -> None:
    """The probes were stand-ins too: an image of full size takes so much longer than one of theirs."""
    keys: dict[str, Any] = {"proxy": {"epochs": 1, "shrink": 2}, "retrain": {"epochs": 9, "references": False}}
    plan, config = predicted(data, slots=1, search={"trials": 90, "warm_start": []}, **keys)
    space = SpaceSpec.of(config.space.name, config.space.settings).load()
    share = stand_ins_share(space, ladder.proxy_rung(config, len(data.train)), data.input_shape, 10, config.seed)
    assert 0.1 < share < 0.9
    low = [0.25 + 1e-9 * f * (share * len(data.train) + len(data.validation) / 3) for f in (1e6, 3e6)]
    full = 0.25 + 1e-9 * 2e6 * (9 * len(data.train) + len(data.validation) / 3 / share)
    assert plan.promotions == ladder.budget_for(90, [share, 9])[1] > 1
    assert plan.search_seconds == pytest.approx(45 * sum(low) + plan.promotions * full)


def test_each_rung_below_the_highest_costs_as_much(data: Data) -> None:
    keys: dict[str, Any] = {"proxy": {"epochs": 1}, "retrain": {"epochs": 9, "references": False}}
    search = {"trials": 45, "warm_start": []}
    plan, _ = predicted(data, slots=1, search=search, ladder={"rungs": 3, "factor": 3}, **keys)
    seconds = [0.25 + 1e-9 * 2e6 * (e * len(data.train) + len(data.validation) / 3) for e in (1, 3, 9)]
    assert plan.promotions == ladder.budget_for(45, [1, 3, 9])[1] == 8
    assert plan.search_seconds == pytest.approx(np.dot([45, 15, 8], seconds), rel=0.02)


def test_time_alone_ends_with_rounds_of_promotions(data: Data) -> None:
    keys: dict[str, Any] = {"proxy": {"epochs": 1}, "retrain": {"epochs": 9}}
    search = {"max_flops": 10**9, "warm_start": []}
    newcomer, full = (0.25 + 1e-9 * 2e6 * (e * len(data.train) + len(data.validation) / 3) for e in (1, 9))
    for time, rounds in ((1.5, 0), (2.5, 1), (4.0, 2), (10.0, 5)):
        plan, config = predicted(data, search={"time": time * full / 0.4, **search}, **keys)
        assert config.search.share == 0.4
        assert plan.promotions == 2 * rounds
        assert plan.candidates == pytest.approx(2 * (time * full - rounds * full) / newcomer, abs=1)


@pytest.mark.parametrize("retrainings", [1, 4])
def test_retrainings_may_come_one_after_the_other(data: Data, retrainings: int) -> None:
    keys: dict[str, Any] = {"retrain": {"epochs": 2, "seeds": 4, "references": False}}
    plan, _ = predicted(data, slots=4, retrainings=retrainings, search={"trials": 4, "warm_start": []}, **keys)
    assert data.test is not None
    one = 0.25 + 1e-9 * 3e6 * (2 * (len(data.train) + len(data.validation)) + len(data.test) / 3)
    assert plan.retrained == 4
    assert plan.retrain_seconds == pytest.approx(one * 4 / retrainings)


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


def test_a_real_plan_writes_nothing_and_counts_as_the_search_does(tmp_path: Path) -> None:
    config = make({**SMALL, "results": str(tmp_path / "results"), "search": {"trials": 3}, "proxy": {"epochs": 1}})
    events = []
    plan = Experiment(config=config, listen=events.append).plan()
    assert not (tmp_path / "results").exists()
    assert sum(event.measurement is not None for event in events) == plan.workers + 4
    assert plan.candidates == 3
    assert plan.memory > 2**20
    assert all(math.isfinite(one) and one > 0 for one in (plan.search_seconds, plan.retrain_seconds))
    assert Experiment(config=config).search().done == plan.candidates


FLAKY = """
from torch import nn
from nas.space import Architecture, SearchSpace

class Width(Architecture):
    width: int

class Odd(SearchSpace):
    architecture_type = Width

    def suggest(self, trial):
        return Width(width=trial.suggest_int("width", 1, 40))

    def build(self, architecture, input_shape, num_classes):
        if architecture.width % 2 == 0:
            raise ArithmeticError("not an even one")
        pool = nn.Sequential(nn.Conv2d(input_shape[0], architecture.width, 1), nn.AdaptiveAvgPool2d(1))
        network = nn.Sequential(pool, nn.Flatten(), nn.Linear(architecture.width, num_classes))
        network.cell_names = ("0",)
        return network
"""


def test_a_space_some_of_whose_networks_cannot_be_built_is_planned_with_the_others(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(FLAKY)
    config = make({**SMALL, "space": {"name": f"{tmp_path / 'odd.py'}:Odd"}, "towers": {"placement": "none"}})
    assert Experiment(config=config).plan().search_seconds > 0


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
