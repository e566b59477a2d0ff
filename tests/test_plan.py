"""What a search will cost: the arithmetic by hand, and real predictions that write nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nas import ladder
from nas.config import Config, make
from nas.data import Data, load
from nas.evaluation.cost_model import PRIOR, Work
from nas.evaluation.evaluator import SpaceSpec, variant_of, variant_share
from nas.experiment import Experiment
from nas.progress import Event
from nas.search.candidates import Prices, work_of
from nas.search.scheduler import POLICY
from nas.search.time_plan import FACTOR, TimePlan, time_plan
from nas.space import Architecture
from nas.steps import driver as driving
from nas.steps import pipeline, retrain
from nas.steps.driver import Driver
from nas.steps.plan import Forecast, Plan, Probes
from nas.store import Measurement
from nas.training import loop as training

SMALL: dict[str, Any] = {
    "space": {"name": "inception", "widths": [8, 16], "stem": [8, 8], "cells": [1, 2]},
    "search": {"warm_start": []},
    "executor": {"kind": "in-process"},
}

OVERHEAD = 0.25
START = 5.0


@pytest.fixture(scope="module")
def data() -> Data:
    return load(Config().data)


def opened(data: Data, workers: int = 2, retrainings: int | None = None, **keys: Any) -> Driver:
    """A driver without records and with an executor that only says how many jobs run at once."""
    given = make({**SMALL, **keys})
    config = ladder.decided(given, data.augmentations, "float32", len(data.train))
    spec = SpaceSpec.of(config.space.name, config.space.settings)
    space, wanted = spec.load(), config.search
    timed = wanted.time is not None and config.proxy.epochs is None and not wanted.calibrate
    plan = time_plan(wanted.time or 0.0, workers, wanted.share, config.ladder.rungs) if timed else None
    rungs = driving.rungs_of(config, space, data, plan=plan)
    executor = cast(Any, SimpleNamespace(workers=workers, retrainings=retrainings or workers))
    nothing = cast(Any, None)
    return Driver(
        *(config, spec, space, data, nothing, executor, rungs, nothing, nothing, nothing),
        plan=plan,
        given=given,
    )


def prices(driver: Driver) -> Prices | None:
    """Of a machine that is a worker's speed twice, with all its cores."""
    batch = ladder.batch_size(driver.config.proxy, len(driver.data.train))
    whole = PRIOR.model_copy(update={"factor": 0.5})
    return None if driver.config.search.time is None else Prices(PRIOR, whole, batch)


def drawn(driver: Driver) -> list[Architecture]:
    return [driver.space.random(seed) for seed in (1, 2)]


def predicted(driver: Driver) -> Plan:
    """Of two architectures, on workers as fast as `PRIOR` says."""
    probes = Probes([Measurement("{}", "k", "probe", 0, "done", {}, {"memory": 3e6})], [OVERHEAD], START)
    return Forecast(driver, driver.candidates(prices(driver)), drawn(driver), probes, PRIOR).plan()


def work(driver: Driver, architecture: Architecture) -> Work:
    return work_of(driver.space, architecture, driver.data.input_shape, len(driver.data.classes))


def scoring(works: Work, images: int) -> float:
    """Seconds, in batches of at most 128."""
    count = math.ceil(images / 128)
    return count * PRIOR.seconds_per_batch(works, round(images / count))


def seconds(driver: Driver, architecture: Architecture, epochs: int, images: int, scored: int) -> float:
    """Of a training on one worker, with all that comes with it."""
    steps, batch = training.steps_of(driver.config.proxy, images)
    works = work(driver, architecture)
    return OVERHEAD + epochs * steps * PRIOR.seconds_per_step(works, batch) + scoring(works, scored)


def a_candidate(driver: Driver, epochs: int) -> list[float]:
    """Seconds of each of those drawn at a rung of so many epochs."""
    train, validation = len(driver.data.train), len(driver.data.validation)
    return [seconds(driver, one, epochs, train, validation) for one in drawn(driver)]


def probed(driver: Driver, factor: float) -> Probes:
    """On workers that take `factor` times what `PRIOR` says, trained for 20 steps."""
    measured = []
    batch = ladder.batch_size(driver.config.proxy, len(driver.data.train))
    for architecture in map(driver.space.random, range(4)):
        network, shape = variant_of(driver.space, architecture, driver.proxy, driver.data.input_shape)
        works = work_of(driver.space, network, shape, len(driver.data.classes))
        cost = {
            "seconds": 20 * factor * PRIOR.seconds_per_step(works, batch),
            "steps": 20.0,
            "scoring_seconds": 2 * factor * scoring(works, len(driver.data.validation)),
        }
        measured.append(Measurement(architecture.to_json(), architecture.key, "probe", 0, "done", {}, cost))
    return Probes(measured, [OVERHEAD], START)


@pytest.mark.parametrize("shrink", [1, 2])
def test_the_cost_model_follows_from_probes(data: Data, shrink: int) -> None:
    """Training and scoring each have their own speed, of the network that was trained."""
    driver = opened(data, proxy={"shrink": shrink})
    model = probed(driver, 3.0).model(driver)
    works = work(driver, driver.space.random(7))
    assert model.seconds_per_step(works, 64) == pytest.approx(3 * PRIOR.seconds_per_step(works, 64), rel=1e-6)
    assert model.seconds_per_batch(works, 128) == pytest.approx(6 * PRIOR.seconds_per_batch(works, 128), rel=1e-6)


def test_a_search_without_promotions_by_hand(data: Data) -> None:
    search = {"trials": 10, "warm_start": []}
    recipe = {"epochs": 2, "seeds": 2, "references": False}
    driver = opened(data, workers=1, search=search, ladder={"rungs": 1}, retrain=recipe)
    plan = predicted(driver)
    assert plan.search_seconds == pytest.approx(5 * sum(a_candidate(driver, driver.proxy.epochs)))
    images = len(data.train) + len(data.validation)
    assert data.test is not None
    larger = max(seconds(driver, one, 2, images, len(data.test)) for one in drawn(driver))
    assert plan.training_seconds == pytest.approx(larger)
    assert plan.retrain_seconds == pytest.approx(2 * larger)
    assert plan.steps == 2 * training.steps_of(driver.config.retrain, images)[0]
    assert (plan.candidates, plan.promotions, plan.calibrated, plan.workers) == (10, 0, 0, 1)
    assert (plan.trainings, plan.references) == (2, 0)
    assert plan.candidates_an_hour == pytest.approx(36_000 / plan.search_seconds)
    assert plan.seconds == pytest.approx(START + plan.search_seconds + plan.retrain_seconds + plan.writing_seconds)
    assert plan.memory == 3e6


def test_steps_take_the_place_of_epochs(data: Data) -> None:
    keys: dict[str, Any] = {"proxy": {"steps": 7}, "retrain": {"steps": 50, "references": False}}
    driver = opened(data, workers=1, search={"trials": 2, "warm_start": []}, ladder={"rungs": 1}, **keys)
    plan = predicted(driver)
    batch = training.steps_of(driver.config.proxy, len(data.train))[1]
    works = [work(driver, one) for one in drawn(driver)]
    by_hand = [OVERHEAD + 7 * PRIOR.seconds_per_step(w, batch) + scoring(w, len(data.validation)) for w in works]
    assert plan.search_seconds == pytest.approx(sum(by_hand))
    assert plan.steps == 50


def test_named_points_within_the_limits_come_first(data: Data) -> None:
    driver = opened(data, workers=1, search={"trials": 1}, ladder={"rungs": 1}, retrain={"references": False})
    [values] = driver.space.named().values()
    named = driver.space.point(values)
    train, validation = len(data.train), len(data.validation)
    [alone] = [seconds(driver, named, driver.proxy.epochs, train, validation)]
    assert predicted(driver).search_seconds == pytest.approx(alone)
    limits = {"trials": 1, "max_params": 1}
    limited = opened(data, workers=1, search=limits, ladder={"rungs": 1}, retrain={"references": False})
    assert predicted(limited).search_seconds == pytest.approx(a_candidate(limited, limited.proxy.epochs)[0])


def test_promotions_are_the_ladders_and_are_paid(data: Data) -> None:
    keys: dict[str, Any] = {"proxy": {"epochs": 1}, "retrain": {"epochs": 9, "references": False}}
    search = {"trials": 45, "warm_start": []}
    driver = opened(data, search=search, **keys)
    plan, alone = predicted(driver), predicted(opened(data, search=search, ladder={"rungs": 1}, **keys))
    rungs, promoted, _ = ladder.budget_for(45, [1, 9])
    assert rungs == 2
    assert plan.promotions == promoted == 10
    longer = fmean(a_candidate(driver, 9))
    assert plan.search_seconds - alone.search_seconds == pytest.approx(5 * longer, rel=0.2)  # on two workers


def test_stand_ins_are_cheap_and_promotions_dear(data: Data) -> None:
    keys: dict[str, Any] = {"proxy": {"epochs": 1, "shrink": 2}, "retrain": {"epochs": 9, "references": False}}
    driver = opened(data, workers=1, search={"trials": 90, "warm_start": []}, **keys)
    plan = predicted(driver)
    share = variant_share(driver.space, driver.proxy, data.input_shape, 10, driver.config.seed)
    assert 0.1 < share < 0.9
    small = (data.input_shape[0], data.input_shape[1] // 2, data.input_shape[2] // 2)
    steps, batch = training.steps_of(driver.config.proxy, len(data.train))
    low = []
    for architecture in drawn(driver):
        works = work_of(driver.space, architecture, small, len(data.classes))
        trained = steps * PRIOR.seconds_per_step(works, batch)
        low.append(OVERHEAD + trained + scoring(works, len(data.validation)))
    assert plan.promotions == ladder.budget_for(90, [share, 9])[1] > 1
    full = fmean(a_candidate(driver, 9))
    assert plan.search_seconds == pytest.approx(45 * sum(low) + plan.promotions * full)


def test_each_rung_below_the_highest_costs_as_much(data: Data) -> None:
    keys: dict[str, Any] = {"proxy": {"epochs": 1}, "retrain": {"epochs": 9, "references": False}}
    search = {"trials": 45, "warm_start": []}
    driver = opened(data, workers=1, search=search, ladder={"rungs": 3, "factor": 3}, **keys)
    plan = predicted(driver)
    each = [fmean(a_candidate(driver, epochs)) for epochs in (1, 3, 9)]
    assert plan.promotions == ladder.budget_for(45, [1, 3, 9])[1] == 8
    assert plan.search_seconds == pytest.approx(np.dot([45, 15, 8], each), rel=0.02)


def test_references_are_those_of_retraining(data: Data) -> None:
    driver = opened(data, workers=1, search={"trials": 2, "warm_start": []}, retrain={"epochs": 1})
    plan = predicted(driver)
    rows = retrain.references(driver.candidates(), driver.config.seed)
    assert (plan.trainings, plan.references) == (pipeline.DEFAULT_SEEDS, sum(map(len, rows.values())))
    assert plan.retrain_seconds > plan.trainings * plan.training_seconds


@pytest.mark.parametrize("retrainings", [1, 4])
def test_retrainings_may_come_one_after_the_other(data: Data, retrainings: int) -> None:
    keys: dict[str, Any] = {"retrain": {"epochs": 2, "seeds": 4, "references": False}}
    plan = predicted(opened(data, 4, retrainings, search={"trials": 4, "warm_start": []}, **keys))
    assert plan.trainings == 4
    assert plan.retrain_seconds == pytest.approx(plan.training_seconds * 4 / retrainings)


def test_a_time_budget_is_spent_as_its_plan_says(data: Data) -> None:
    driver = opened(data, search={"time": 600, "warm_start": []})
    plan, parts = predicted(driver), driver.plan
    assert isinstance(parts, TimePlan)
    assert parts.rungs == 1
    each = parts.proxy + OVERHEAD + fmean(scoring(work(driver, one), len(data.validation)) for one in drawn(driver))
    assert plan.candidates == int(2 * parts.search / each)
    assert plan.promotions == 0
    assert plan.search_seconds == parts.search
    assert (plan.trainings, plan.references) == (1, 0)
    batch = ladder.batch_size(driver.config.retrain, len(data.train))
    step = max(PRIOR.seconds_per_step(work(driver, one), batch) for one in drawn(driver)) / 2
    left = replace(parts, final=parts.final - 0.97 * START)  # the start takes its time too
    assert plan.steps == pytest.approx(left.steps(step, driver.steps_an_epoch), rel=0.01)
    assert plan.retrain_seconds == plan.training_seconds == pytest.approx(plan.steps * step)
    assert plan.seconds <= 600


def test_two_rungs_of_seconds_share_the_time_of_the_search(data: Data) -> None:
    driver = opened(data, search={"time": 7200, "warm_start": []})
    plan, parts = predicted(driver), driver.plan
    assert parts is not None
    assert parts.rungs == 2
    assert plan.candidates / plan.promotions == pytest.approx(FACTOR, rel=0.1)
    spent = plan.candidates * parts.proxy + plan.promotions * FACTOR * parts.proxy
    assert 0.8 * 2 * parts.search < spent <= 2 * parts.search
    one_rung = predicted(opened(data, search={"time": 7200, "warm_start": []}, ladder={"rungs": 1}))
    assert one_rung.promotions == 0
    assert one_rung.candidates > plan.candidates


def test_fewer_trials_than_the_time_allows_leave_it_to_the_winner(data: Data) -> None:
    whole, few = (
        predicted(opened(data, search={"time": 3600, "trials": trials, "warm_start": []})) for trials in (None, 2)
    )
    assert few.candidates == 2
    assert few.promotions <= 2
    assert few.search_seconds < whole.search_seconds
    assert few.steps >= whole.steps
    assert few.seconds <= 3600


def test_references_and_seeds_share_the_time_of_the_winner(data: Data) -> None:
    alone, beside = (
        predicted(opened(data, search={"time": 600, "warm_start": []}, retrain=recipe, space=WIDE))
        for recipe in ({}, {"references": True, "seeds": 2})
    )
    assert beside.trainings == 2
    assert beside.references > 0
    assert beside.steps == pytest.approx(alone.steps / (2 + beside.references), rel=0.1)
    assert beside.retrain_seconds == pytest.approx((2 + beside.references) * beside.training_seconds)


WIDE: dict[str, Any] = {"name": "inception", "widths": [64, 96, 128], "stem": [64, 64], "cells": [2, 3]}
"""Networks that no budget of these tests trains for as long as would be useful."""


def test_the_choice_of_an_augmentation_takes_time_before_the_search(data: Data) -> None:
    search = {"time": 600, "warm_start": []}
    driver = opened(data, search=search)
    own = replace(driver, config=driver.config.model_copy(update={"data": driver.config.data.model_copy()}))
    own.config.data.__dict__["name"] = "photos/"
    known, unknown = predicted(driver), predicted(own)
    assert known.start_seconds == START
    assert driver.plan is not None
    assert unknown.start_seconds > START + driver.plan.proxy  # two trainings on two workers
    given = replace(own, given=make({**SMALL, "proxy": {"augment": []}, "retrain": {"augment": []}}))
    assert predicted(given).start_seconds == START


def test_given_epochs_are_kept_within_a_time_budget(data: Data) -> None:
    """The search ends with rounds of promotions; retraining takes what is left."""
    keys: dict[str, Any] = {"proxy": {"epochs": 1}, "retrain": {"epochs": 9}, "space": WIDE}
    low, full = (fmean(a_candidate(opened(data, space=WIDE), epochs)) for epochs in (1, 9))
    assert POLICY.share([1, 9]) == pytest.approx(2 / 3)
    for time, rounds in ((1.5, 0), (2.5, 1), (4.0, 2), (10.0, 5)):
        driver = opened(data, search={"time": time * full / 0.4, "share": 0.4, "warm_start": []}, **keys)
        assert driver.plan is None
        plan = predicted(driver)
        assert plan.promotions == 2 * rounds
        assert plan.candidates == pytest.approx(2 * (time * full - rounds * full) / low, abs=1)
        assert plan.search_seconds == pytest.approx(time * full)
        assert (plan.trainings, plan.references) == (1, 0)


@pytest.mark.parametrize("time", [200, 500, 1300])
@pytest.mark.parametrize("proxy", [{}, {"epochs": 2}])
def test_a_time_budget_is_kept_to(data: Data, time: float, proxy: dict[str, Any]) -> None:
    plan = predicted(opened(data, search={"time": time, "warm_start": []}, proxy=proxy, space=WIDE))
    assert 0.9 * time < plan.seconds <= time


def test_calibration_is_of_full_trainings_within_the_budget(data: Data) -> None:
    held = data.holding_truth()
    driver = opened(held, search={"trials": 8, "calibrate": 6, "warm_start": []}, retrain={"epochs": 4})
    scored = len(held.validation) + len(held.truth or ())
    full = fmean(seconds(driver, one, 4, len(held.train), scored) for one in drawn(driver))
    assert predicted(driver).calibration_seconds == pytest.approx(3 * full, rel=0.01)
    assert predicted(opened(held, search={"time": 300, "calibrate": 6, "warm_start": []})).seconds <= 300


def test_a_real_plan_writes_nothing_and_counts_as_the_search_does(tmp_path: Path) -> None:
    config = make({**SMALL, "results": str(tmp_path / "results"), "search": {"trials": 3}, "proxy": {"epochs": 1}})
    events: list[Event] = []
    plan = Experiment(config=config, listen=events.append).plan()
    assert not (tmp_path / "results").exists()
    assert sum(event.measurement is not None for event in events) == plan.workers + 4
    assert plan.candidates == 3
    assert plan.memory > 2**20
    assert all(math.isfinite(one) and one > 0 for one in (plan.search_seconds, plan.retrain_seconds))
    assert Experiment(config=config).search().done == plan.candidates


def test_a_real_plan_of_a_time_budget(tmp_path: Path) -> None:
    config = make({**SMALL, "results": str(tmp_path / "results"), "search": {"time": 300}})
    plan = Experiment(config=config).plan()
    assert not (tmp_path / "results").exists()
    parts = time_plan(300, plan.workers)
    assert plan.search_seconds == parts.search
    assert 1 <= plan.candidates <= plan.workers * parts.search / parts.proxy
    assert (plan.trainings, plan.references) == (1, 0)
    assert plan.steps > 1


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


@pytest.mark.parametrize("search", [{}, {"time": 60}])
def test_a_space_some_of_whose_networks_cannot_be_built_is_planned_with_the_others(
    tmp_path: Path, search: dict[str, Any]
) -> None:
    (tmp_path / "odd.py").write_text(FLAKY)
    space, towers = {"name": f"{tmp_path / 'odd.py'}:Odd"}, {"placement": "none"}
    config = make({**SMALL, "space": space, "towers": towers, "search": search})
    assert Experiment(config=config).plan().search_seconds > 0


def test_pipelines_defaults_are_the_plans(data: Data) -> None:
    assert predicted(opened(data, retrain={"references": False})).candidates == pipeline.DEFAULT_TRIALS


@pytest.mark.parametrize("limit", [["--trials", "2", "--set", "proxy.epochs=1"], ["--time", "60"]])
def test_the_command(nas: Callable[..., Any], tmp_path: Path, limit: list[str]) -> None:
    words = ["plan", "--data", "digits", *limit, "--set", "executor.kind=in-process", "--set", "space.name=inception"]
    words += ["--set", "space.widths=[8]", "--set", "space.stem=[8,8]", "--set", "retrain.epochs=1"]
    done = nas(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "candidates an hour" in done.stdout
    timed = "--time" in limit
    assert ("winner: 1 training of" if timed else "winner: 3 trainings of") in done.stdout
    assert ("2 candidates" in done.stdout) or timed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--data", "nowhere"], ["--set", "search.max_params=1"], ["--workers", "0"]])
def test_what_cannot_be_planned_is_one_line(nas: Callable[..., Any], tmp_path: Path, words: list[str]) -> None:
    done = nas("plan", "--set", "executor.kind=in-process", *words, cwd=tmp_path)
    assert done.returncode == (1 if "max_params" in words[-1] else 2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
