"""With few images the exported network is trained on all of them, after a training that says how good it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from nas.config import Config, DataConfig, Recipe, RetrainConfig, TowersConfig
from nas.data import Data, load
from nas.errors import InputError
from nas.evaluation.evaluator import Evaluator, Job, Setup, SpaceSpec
from nas.experiment import Experiment
from nas.ladder import Rung
from nas.steps.driver import FEW_IMAGES, Driver, driving
from nas.store import Entry, Store, existing_store

SMALL: dict[str, Any] = {
    "space__name": "inception",
    "space__stem": [16, 16],
    "space__widths": [16, 16],
    "space__cells": [2, 2],
    "executor__kind": "in-process",
}
SHORT = {
    **SMALL,
    "proxy__images": 256,
    "proxy__epochs": 1,
    "retrain__epochs": 1,
    "retrain__seeds": 2,
    "retrain__references": False,
}


def experiment(folder: Path, **keys: Any) -> Experiment:
    return Experiment("all", data="digits", results=str(folder), retrain__all_images=True, **keys)


def records(folder: Path) -> Store:
    found = existing_store(f"sqlite:///{(folder / 'all' / 'study.db').resolve()}", "all")
    assert found is not None
    return found


def at(folder: Path, rung: str) -> list[Entry]:
    return [one for one in records(folder).all() if one.measurement.rung.startswith(f"{rung}-")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a finished run, and the card of its export."""
    folder = tmp_path_factory.mktemp("all")
    exported = experiment(folder, **SHORT, search__trials=2).run()
    return folder, exported.card


def test_the_exported_network_was_trained_on_all_and_tested_on_none(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    [final] = at(folder, "all-images")
    tested = at(folder, "retrain")
    assert len(tested) == 2  # the seeds
    assert {one.measurement.key for one in tested} == {final.measurement.key}
    assert not [name for name in final.measurement.signals if name.startswith("test")]
    assert all("test_accuracy" in one.measurement.signals for one in tested)
    every = len(load(DataConfig()).all_images())
    assert every == 1797
    assert final.measurement.cost["steps"] == every // 32 > tested[0].measurement.cost["steps"]  # batches of 32


def test_the_card_gives_no_accuracy_on_images_that_were_trained_on(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, card = finished
    measured = {str(one.measurement.seed): one.measurement.signals["test_accuracy"] for one in at(folder, "retrain")}
    assert card["accuracy"]["by seed"] == measured
    assert card["exported accuracy"] == {}
    assert "trained on all 1,797 images" in card["accuracy note"]
    assert "without the test images" in card["accuracy note"]
    assert card["accuracy note"] in (folder / "all" / "export" / "MODEL_CARD.md").read_text()


def test_the_exported_file_holds_these_weights(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    [final] = at(folder, "all-images")
    one = final.measurement
    own = safetensors.torch.load_file(folder / "all" / "weights" / f"{one.key}-{one.rung}-{one.seed}.safetensors")
    exported = safetensors.torch.load_file(folder / "all" / "export" / "model.safetensors")
    assert own.keys() == exported.keys()
    assert all(torch.equal(own[name], exported[name]) for name in own)


def test_the_board_shows_the_tested_trainings(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, card = finished
    first = experiment(folder, **SHORT).leaderboard()[0]
    assert first.test_seeds == 2
    assert first.test_accuracy == pytest.approx(card["accuracy"]["mean"])


def test_nothing_is_trained_twice(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    before = [one.measurement for one in records(folder).all()]
    experiment(folder, **SHORT, search__trials=2).run()
    assert [one.measurement for one in records(folder).all()] == before


@pytest.mark.slow
def test_pruning_keeps_what_all_images_taught_and_compares_tested_networks(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    exported = experiment(folder, **SHORT).export(folder=folder / "pruned", prune=0.3)
    card = exported.card
    rows = {row["name"]: row for row in card["compared"]}
    assert all(row["accuracy"]["by seed"] for row in rows.values())
    assert card["exported accuracy"] == {}
    assert "trained on all 1,797 images" in card["accuracy note"]
    pruned = at(folder, "pruned")
    tested = [one.measurement for one in pruned if "test_accuracy" in one.measurement.signals]
    [final] = [one.measurement for one in pruned if "test_accuracy" not in one.measurement.signals]
    assert {one.key for one in tested} == {final.key}
    assert card["notes"]["retraining"] == final.rung


def test_an_ensemble_is_of_tested_networks(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    card = experiment(folder, **SHORT).export(folder=folder / "ensemble", ensemble=2).card
    assert "accuracy note" not in card
    assert card["exported accuracy"]["logits"] > 0


@pytest.mark.slow
def test_a_time_budget_tests_shortly_and_trains_the_rest_of_the_time_on_all(tmp_path: Path) -> None:
    exported = experiment(tmp_path, **SMALL, search__time="30s").run()
    [tested], [final] = at(tmp_path, "retrain"), at(tmp_path, "all-images")
    lengths = records(tmp_path).fact("retrain_steps")
    assert final.measurement.cost["steps"] <= lengths["all_steps"]
    assert tested.measurement.cost["steps"] <= lengths["steps"] < lengths["all_steps"] / 3
    assert f"for {round(final.measurement.cost['steps']):,} steps" in exported.card["accuracy note"]
    before = [one.measurement for one in records(tmp_path).all()]
    experiment(tmp_path, **SMALL, search__time="30s").run()
    assert [one.measurement for one in records(tmp_path).all()] == before


# ----------------------------------------------------------------------------------------------- where it is done


def of_folder(folder: Path, tested: bool) -> str:
    """A folder of a few images of two classes, with test images of its own or without."""
    rng = np.random.default_rng(0)
    parts = ("train", "test") if tested else ("",)
    for part in parts:
        for name in ("dark", "light"):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(20):
                pixels = rng.integers(0, 100, (8, 8), dtype=np.uint8) + (100 if name == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return str(folder)


def driver_of(results: Path, **keys: Any) -> Driver:
    config = Experiment("rule", results=str(results), **SMALL, **keys).config
    with driving(config, lambda event: None, workers=False) as driver:
        return driver


def test_the_users_few_images_are_all_trained_on(tmp_path: Path) -> None:
    assert driver_of(tmp_path / "r", data=of_folder(tmp_path / "images", tested=False)).exports_all_images


def test_given_test_images_are_never_trained_on_unasked(tmp_path: Path) -> None:
    data = of_folder(tmp_path / "images", tested=True)
    assert not driver_of(tmp_path / "r", data=data).exports_all_images
    assert driver_of(tmp_path / "asked", data=data, retrain__all_images=True).exports_all_images


def test_known_sets_and_many_images_keep_their_test_split(tmp_path: Path) -> None:
    driver = driver_of(tmp_path / "r", data="digits")
    assert not driver.exports_all_images
    own = driver_of(tmp_path / "own", data=of_folder(tmp_path / "images", tested=False))
    many = np.resize(np.arange(len(own.data.train)), FEW_IMAGES)
    assert not replace(own, data=replace(own.data, train=own.data.train[many])).exports_all_images


def test_false_keeps_the_test_images_out(tmp_path: Path) -> None:
    data = of_folder(tmp_path / "images", tested=False)
    assert not driver_of(tmp_path / "r", data=data, retrain__all_images=False).exports_all_images


# ------------------------------------------------------------------------------------------------------ the training


def setting(data: Data) -> Setup:
    settings = {name.removeprefix("space__"): value for name, value in SMALL.items() if name.startswith("space__")}
    settings.pop("name")
    return Setup(SpaceSpec.of("inception", settings), data, Config().search)


def test_the_test_images_change_the_weights() -> None:
    data = load(DataConfig())
    assert data.test is not None
    recipe = Recipe(epochs=1, images=256, batch_size=128, augment=(), precision="float32")
    rung = Rung("all-images", recipe, TowersConfig(placement="none"), final=True, all_images=True)
    other = replace(data, test=replace(data.test, pixels=255 - data.test.pixels))
    space = setting(data).space.load()
    job = Job.of(space.random(0), rung, 0)
    first, again, changed = (Evaluator(setting(one), torch.device("cpu")).measure(job) for one in (data, data, other))
    assert first.measurement.status == "done", first.measurement.cause
    weights = [safetensors.torch.load(one.weights or b"") for one in (first, again, changed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_the_rung_has_a_key_of_its_own() -> None:
    rung = Rung("retrain", Recipe(epochs=1), TowersConfig(), final=True)
    assert replace(rung, all_images=True).key != rung.key
    assert json.loads(RetrainConfig().model_dump_json())["all_images"] is None


def test_early_exits_take_the_towers_of_the_exported_network(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    [final] = at(folder, "all-images")
    if not final.measurement.towers:
        with pytest.raises(InputError, match="--early-exit needs towers"):
            experiment(folder, **SHORT).export(folder=folder / "exits", early_exit=True)
        return
    card = experiment(folder, **SHORT).export(folder=folder / "exits", early_exit=True).card
    assert card["exported accuracy"] == {}
