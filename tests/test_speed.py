"""Under a time budget: steps are timed once, candidates train for seconds, and the winner gets the rest."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import search_spaces
from nas.config import DataConfig
from nas.data import Images, load
from nas.evaluation.cost_model import PRIOR, Work
from nas.experiment import Experiment
from nas.search.candidates import Prices, scaled
from nas.search.time_plan import WRITING_OF_STARTING
from nas.steps import speed
from nas.steps.driver import FEW_IMAGES, RESIZING, usable_resizing
from nas.store import Entry, Store, existing_store

SMALL: dict[str, Any] = {
    "space__stem": [16],
    "space__widths": [[16], [16, 32], [32]],
    "space__cells": [1, 1],
    "executor__kind": "in-process",
}


def experiment(folder: Path, time: str, **keys: Any) -> tuple[Experiment, list[str]]:
    said: list[str] = []
    found = Experiment(
        "timed",
        data="digits",
        results=str(folder),
        search__time=time,
        listen=lambda event: said.append(event.text) if event.text else None,
        **SMALL,
        **keys,
    )
    return found, said


def records(folder: Path) -> Store:
    url = f"sqlite:///{(folder / 'timed' / 'study.db').resolve()}"
    found = existing_store(url, "timed")
    assert found is not None
    return found


def at(entries: list[Entry], rung: str) -> list[Entry]:
    return [entry for entry in entries if entry.measurement.rung.partition("-")[0] == rung]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A budget of seconds, spent."""
    folder = tmp_path_factory.mktemp("timed")
    run, said = experiment(folder, "20s")
    exported = run.run()
    assert exported.folder == folder / "timed" / "export"
    return folder, said


def test_one_winner_is_trained_once_and_nothing_else_fully(finished: tuple[Path, list[str]]) -> None:
    folder, said = finished
    entries = records(folder).all()
    assert len(at(entries, "retrain")) == 1
    assert not [entry for entry in at(entries, "proxy") if entry.trial is None]  # no references
    assert any(line.startswith("Budget of 20 s") for line in said)


def test_candidates_are_trained_for_the_steps_that_the_cost_model_gives(finished: tuple[Path, list[str]]) -> None:
    folder, _ = finished
    known, proxies = records(folder), at(records(folder).all(), "proxy")
    plan, models = known.fact("time_plan"), known.fact("cost_model")
    assert proxies
    for entry in proxies:
        one = entry.measurement
        assert one.cost["steps"] >= 1
        assert one.signals["val_loss"] > 0
    assert plan["rungs"] == 1
    assert models["area"] == 1.0  # 8x8 images are never made smaller


def test_the_winner_gets_the_steps_that_were_decided(finished: tuple[Path, list[str]]) -> None:
    folder, _ = finished
    known = records(folder)
    [final] = at(known.all(), "retrain")
    decided = known.fact("retrain_steps")
    assert decided["key"] == final.measurement.key == known.fact("chosen")
    assert final.measurement.cost["steps"] <= decided["steps"]
    assert decided["steps"] * decided["step_seconds"] <= 20


def test_the_same_command_again_measures_nothing(finished: tuple[Path, list[str]]) -> None:
    folder, _ = finished
    before = {(e.measurement.key, e.measurement.rung, e.measurement.seed): e.measurement for e in records(folder).all()}
    run, _ = experiment(folder, "20s")
    run.run()
    after = {(e.measurement.key, e.measurement.rung, e.measurement.seed): e.measurement for e in records(folder).all()}
    assert before == after


def test_the_winner_leads_the_board(finished: tuple[Path, list[str]]) -> None:
    folder, _ = finished
    run, _ = experiment(folder, "20s")
    first = run.leaderboard()[0]
    assert first.key == records(folder).fact("chosen")
    assert first.test_accuracy is not None
    assert first.test_low is not None
    assert first.test_low < first.test_accuracy


def test_half_the_pixels_halve_the_work_of_an_image_but_not_of_a_step() -> None:
    work = Work(layers=4, parameters=100, pointwise=10, regular=20, normalised=8)
    half = scaled(work, 0.5)
    assert (half.layers, half.parameters) == (4, 100)
    assert (half.pointwise, half.regular, half.normalised) == (5, 10, 4)


def test_smaller_images_make_a_step_cheaper() -> None:
    work = Work(layers=4, parameters=1000, regular=10**7, normalised=10**5)
    full, part = (Prices(PRIOR, PRIOR, 128, area) for area in (1.0, 0.4))
    assert part.of_worker(work) < full.of_worker(work)
    assert part.of_whole(work) < full.of_whole(work)


def test_the_area_is_the_mean_over_a_training() -> None:
    assert speed.mean_area(()) == 1
    assert speed.mean_area(((0.5, 0.6), (0.7, 0.85))) == pytest.approx(0.6 * 0.25 + 0.25 * 0.49 + 0.15)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4.2 s"), (45, "45 s"), (470, "7 min 50 s"), (600, "10 min"), (7500, "2 h 5 min")]
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert speed._duration(seconds) == text


def test_given_epochs_are_kept_under_a_time_budget(tmp_path: Path) -> None:
    run, _ = experiment(tmp_path, "20s", proxy__epochs=1)
    from nas.steps.driver import driving

    with driving(run.config, lambda event: None) as driver:
        assert driver.plan is None
        assert driver.proxy.seconds is None
        assert driver.proxy.epochs == 1


def test_the_time_that_a_start_takes_is_known_for_the_time_that_writing_will_take(tmp_path: Path) -> None:
    from nas.steps.driver import driving

    run, _ = experiment(tmp_path, "20s")
    with driving(run.config, lambda event: None, began=time.monotonic() - 5) as driver:
        assert driver.started_in >= 5
        before = speed._left(driver, 0.001)
        driver.started_in += 1
        assert speed._left(driver, 0.001) <= before - WRITING_OF_STARTING


@pytest.mark.parametrize(("images", "side", "resized"), [(1000, 28, True), (FEW_IMAGES, 28, False), (1000, 16, False)])
def test_only_small_sets_of_large_enough_images_begin_with_smaller_ones(images: int, side: int, resized: bool) -> None:
    data = load(DataConfig())
    split = Images(np.zeros((images, 1, side, side), np.uint8), np.zeros(images, np.int64))
    config = Experiment(**SMALL, search__time="1m").config
    space = search_spaces.load(config.space.name, config.space.settings)
    found = usable_resizing(config, space, replace(data, train=split))
    assert found == (RESIZING if resized else ())
