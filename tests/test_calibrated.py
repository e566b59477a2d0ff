"""A calibrated search: what some full trainings say of all candidates, and the board that follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas
from nas import config as configuration
from nas import leaderboard
from nas.config import make
from nas.errors import ConfigError, ExperimentError
from nas.proxy_fidelity.calibrated import Calibrated, calibrated
from nas.store import Entry, Measurement

LADDER = ["proxy-0", "x3-0"]
FULL = "full-0"
EPOCHS = (1, 3, 20)


def entries(count: int = 60, trained: int = 12, noise: float = 0.3, size: float = 0.0, seed: int = 0) -> list[Entry]:
    """Candidates whose accuracy is a quality plus `size` times their size; the proxy's loss shows the quality."""
    chance = np.random.default_rng(seed)
    quality, sizes = chance.standard_normal(count), chance.uniform(8, 12, count)
    losses = 1 - 0.1 * (quality + noise * chance.standard_normal(count))
    truths = 0.9 + 0.01 * (quality + size * (sizes - 10))
    found = []
    for i in range(count):
        signals = {
            "params": float(np.exp(sizes[i])),
            "flops": 1e6,
            "val_loss": losses[i],
            "val_accuracy": 1 - losses[i],
        }
        found.append(Entry(Measurement("{}", f"k{i:02}", "proxy-0", 0, "done", signals, {"seconds": 1.0}), i))
    for i in np.argsort(losses)[np.linspace(0, count - 1, trained).round().astype(int)]:
        signals = {"val_loss": 0.3, "truth_accuracy": truths[i], "params": float(np.exp(sizes[i])), "flops": 1e6}
        found.append(Entry(Measurement("{}", f"k{i:02}", FULL, 0, "done", signals, {"seconds": 20.0}), None))
    return found


def found_in(given: list[Entry]) -> Calibrated:
    found = calibrated(given, LADDER, FULL, "loss", EPOCHS)
    assert found is not None
    return found


def test_a_proxy_that_shows_the_quality_is_trusted_and_one_of_noise_is_not() -> None:
    good, bad = found_in(entries(noise=0.2, trained=20)), found_in(entries(noise=30, trained=20))
    assert good.tau > 0.6
    assert good.low > 0.2
    assert good.sentence.startswith("Among 20 candidates trained fully, the proxy orders ")
    short = replace(good, epochs=3)
    assert short.sentence.startswith("Among 20 candidates trained for 3 epochs (limited by time), the proxy orders ")
    assert bad.low < 0 < bad.high
    assert bad.sentence.endswith("This may be chance; train more candidates fully (search.calibrate).")
    assert len(good.predictions) == 60


@pytest.mark.parametrize("size", [0.0, 1.0, -1.0])
def test_predictions_hold_what_they_promise_and_learn_whether_size_helps(size: float) -> None:
    inside, errors, plain = [], [], []
    for seed in range(6):
        given = entries(80, 24, noise=0.3, size=size, seed=seed)
        chance = np.random.default_rng(seed)
        quality, sizes = chance.standard_normal(80), chance.uniform(8, 12, 80)
        truths = {f"k{i:02}": 0.9 + 0.01 * (quality[i] + size * (sizes[i] - 10)) for i in range(80)}
        predictions = found_in(given).predictions
        inside += [low <= truths[key] <= high for key, (_, low, high) in predictions.items()]
        errors += [predictions[key][0] - truths[key] for key in truths]
        plain += [np.mean(list(truths.values())) - truth for truth in truths.values()]
    assert np.mean(inside) > 0.85
    assert np.std(errors) < 0.75 * np.std(plain)


def test_too_few_full_trainings_say_nothing() -> None:
    assert calibrated(entries(trained=2), LADDER, FULL, "loss", EPOCHS) is None


def test_it_is_remembered_as_json() -> None:
    found = found_in(entries())
    again = Calibrated.of_fact(json.loads(json.dumps(found.as_fact())))
    assert again is not None
    assert again.sentence == found.sentence == found.as_fact()["sentence"]
    assert list(again.predictions["k00"]) == list(found.predictions["k00"])
    assert Calibrated.of_fact(None) is None


def test_the_board_ranks_by_predictions_and_who_has_none_comes_after() -> None:
    given = entries(3, 0)
    predictions = {"k00": (0.8, 0.7, 0.9), "k01": (0.9, 0.8, 1.0)}
    rows = leaderboard.board(given, LADDER, None, "loss", {}, predictions=predictions)
    assert [row.key for row in rows] == ["k01", "k00", "k02"]
    assert [row.rank for row in rows] == [1, 2, 3]
    assert (rows[0].predicted, rows[0].predicted_low, rows[0].predicted_high) == (0.9, 0.8, 1.0)
    assert rows[2].predicted is None
    assert leaderboard.in_order(given, LADDER, "loss", predictions)[0].key == "k01"


SMALL: dict[str, Any] = {
    "executor.kind": "in-process",
    "space.name": "inception",
    "space.widths": [8, 8],
    "space.stem": [8, 8],
    "space.cells": [1, 2],
    "proxy.epochs": 1,
    "proxy.images": 400,
    "retrain.epochs": 2,
    "search.trials": 6,
    "ladder.rungs": 1,
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> nas.Experiment:
    results = tmp_path_factory.mktemp("calibrated")
    experiment = nas.Experiment("small", config=configuration.read(None, (), **SMALL, results=str(results)))
    experiment.search(calibrate=5)
    return experiment


def test_a_calibrated_search_trains_spread_candidates_fully_and_says_how_far_to_trust_it(
    searched: nas.Experiment,
) -> None:
    records = searched._records()
    assert records is not None
    full = [e.measurement for e in records.all() if e.measurement.rung.startswith("full")]
    assert len(full) == 5
    assert all({"truth_accuracy", "val_loss"} <= set(one.signals) for one in full)
    proxies = [one for one in records.measurements() if one.rung.startswith("proxy")]
    assert {one.seed for one in full}.isdisjoint(one.seed for one in proxies)
    found = searched.calibration()
    assert found is not None
    assert found.trained == 5
    assert searched.trust() == found.sentence
    rows = searched.leaderboard()
    predicted = [row.predicted for row in rows if row.kind == "candidate"]
    assert len(predicted) == 6
    assert predicted == sorted(predicted, key=lambda one: -(one or 0))


def test_where_time_is_short_full_trainings_are_cut_and_the_sentence_says_so(tmp_path: Path) -> None:
    keys = {**SMALL, "search.trials": 5, "search.time": 15.0, "retrain.epochs": 100_000}
    experiment = nas.Experiment("hasty", config=configuration.read(None, (), **keys, results=str(tmp_path)))
    experiment.search(calibrate=5)
    found = experiment.calibration()
    assert found is not None
    assert found.epochs is not None
    assert 1 <= found.epochs < 100_000
    assert f"trained for {found.epochs} epochs (limited by time)" in found.sentence


def test_the_same_command_again_calibrates_with_the_same_candidates(searched: nas.Experiment) -> None:
    records = searched._records()
    assert records is not None
    before = len(records.all())
    searched.search(calibrate=5)
    assert len(records.all()) == before


def test_the_winner_is_the_boards_first_and_is_trained_on_all_but_test(searched: nas.Experiment) -> None:
    searched.retrain(seeds=1)
    first = searched.leaderboard()[0]
    assert first.test_accuracy is not None
    records = searched._records()
    assert records is not None
    (cost,) = [
        e.measurement.cost["images"]
        for e in records.all()
        if e.measurement.rung.startswith("retrain") and e.measurement.key == first.key
    ]
    assert cost == 2 * (1438 // 128 * 128)


def test_the_command_line_shows_the_sentence(searched: nas.Experiment, nas: Callable[..., Any]) -> None:
    done = nas("leaderboard", "small", "--results", searched.config.results, cwd=Path.cwd())
    assert "candidates trained fully, the proxy orders" in " ".join(done.stdout.split())
    assert "predicted" in done.stdout
    assert " ± " in done.stdout


def test_an_experiment_cannot_become_calibrated_on_images_that_its_proxies_have_seen(tmp_path: Path) -> None:
    config = configuration.read(None, (), **{**SMALL, "search.trials": 1}, results=str(tmp_path))
    nas.Experiment("plain", config=config).search()
    with pytest.raises(ExperimentError, match=r"search\.calibrate, which halves the validation images"):
        nas.Experiment("plain", config=config).search(calibrate=5)


def test_fewer_than_five_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"search.calibrate.*at least 5"):
        make({"search": {"calibrate": 4}})
