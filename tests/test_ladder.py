"""A rung names all that a score at it depends on, so that scores of different trainings never meet (invariant 7)."""

from __future__ import annotations

from typing import Any

import pytest

from nas.config import Config, Recipe, TowersConfig, make
from nas.ladder import (
    LEAST_STEPS,
    Rung,
    batch_size,
    learning_rate,
    proxy_rung,
    retrain_rung,
    rungs,
    timed_rungs,
    weight_decay,
)

OTHER_RECIPES: dict[str, Any] = {
    "epochs": 2,
    "steps": 5,
    "images": 100,
    "batch_size": 64,
    "optimizer": "adamw",
    "learning_rate": 0.2,
    "momentum": 0.8,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "warmup": 0.1,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "clip": 1.0,
    "resizing": ((0.5, 0.5),),
    "gradient_norms": (1,),
    "readings": (1,),
    "augment": ("flip",),
    "precision": "bfloat16",
}
OTHER_TOWERS: dict[str, Any] = {
    "placement": "none",
    "kind": "googlenet",
    "share": 0.2,
    "weight": 0.2,
    "schedule": "linear",
    "reach": "relay:2",
    "main_reach": 2,
    "labels": "coarse",
}


def test_every_key_of_recipe_and_towers_makes_another_rung() -> None:
    recipe, towers = Recipe(epochs=1), TowersConfig()
    assert set(OTHER_RECIPES) == set(Recipe.model_fields)
    assert set(OTHER_TOWERS) == set(TowersConfig.model_fields)
    rungs = [Rung("proxy", recipe, towers), Rung("retrain", recipe, towers), Rung("proxy", recipe, towers, final=True)]
    rungs += [Rung("proxy", recipe.model_copy(update={key: value}), towers) for key, value in OTHER_RECIPES.items()]
    rungs += [Rung("proxy", recipe, towers.model_copy(update={key: value})) for key, value in OTHER_TOWERS.items()]
    rungs += [Rung("proxy", recipe, towers, truth=True), Rung("proxy", recipe, towers, free=True)]
    rungs += [Rung("proxy", recipe, towers, seconds=1.0), Rung("proxy", recipe, towers, seconds=2.0)]
    rungs += [Rung("proxy", recipe, towers, whole=True), Rung("proxy", recipe, towers, timing=True)]
    rungs += [Rung("proxy", recipe, towers, shrink=2), Rung("proxy", recipe, towers, width=0.5)]
    rungs += [Rung("proxy", recipe, towers, as_costly_as=other) for other in (towers, TowersConfig(kind="linear"))]
    assert len({rung.key for rung in rungs}) == len(rungs)
    assert Rung("proxy", Recipe(epochs=1), TowersConfig()).key == rungs[0].key


def test_a_key_begins_with_the_name_that_people_read_and_fits_its_column() -> None:
    key = proxy_rung(Config(), 1000).key
    assert key.partition("-")[0] == "proxy"
    assert len(key) <= 64


def test_only_the_lowest_rung_trains_stand_ins_and_costs_as_little_as_they() -> None:
    config = make({"proxy": {"epochs": 1, "shrink": 2, "width": 0.5}, "retrain": {"epochs": 20}})
    lowest, higher = rungs(config, 1000, share=0.3)
    assert (lowest.shrink, lowest.width, lowest.effort) == (2, 0.5, 0.3)
    assert lowest.key == proxy_rung(config, 1000).key
    assert (higher.shrink, higher.width, higher.effort) == (1, 1.0, 9)
    assert lowest.key != proxy_rung(make({"proxy": {"epochs": 1}}), 1000).key
    full = retrain_rung(config, 1000)
    assert (full.shrink, full.width) == (1, 1.0)


def test_what_does_not_change_the_training_does_not_change_the_rung() -> None:
    one = make({"data": {"name": "digits"}, "search": {"trials": 5}, "retrain": {"epochs": 9}})
    assert proxy_rung(one, 1000) == proxy_rung(Config(), 1000)
    another = make({"proxy": {"epochs": 9, "learning_rate": 0.5}, "retrain": {"seeds": 9, "references": False}})
    assert retrain_rung(another, 1000).key == retrain_rung(Config(), 1000).key


def test_the_proxy_is_judged_on_validation_and_retraining_on_test() -> None:
    assert not proxy_rung(Config(), 1000).final
    assert retrain_rung(Config(), 1000).final


def test_rungs_are_resolved_and_chosen_epochs_are_kept() -> None:
    config = make({"proxy": {"epochs": 7}, "retrain": {"epochs": 30}})
    assert proxy_rung(config, 10).epochs == 7
    assert retrain_rung(config, 10).epochs == 30
    assert retrain_rung(config, 10, epochs=4).epochs == 4  # time is short
    assert retrain_rung(Config(), 10, epochs=4).epochs == 4


def test_unset_epochs_give_small_sets_more_passes() -> None:
    for rung in (proxy_rung, retrain_rung):
        epochs = [rung(Config(), images).epochs for images in (1, 100, 1000, 10_000, 60_000, 10**7)]
        assert epochs == sorted(epochs, reverse=True)
        assert epochs[-1] >= 1
        assert epochs[0] > epochs[-1]
    fewer = make({"proxy": {"images": 500}})
    assert proxy_rung(fewer, 60_000).epochs == proxy_rung(Config(), 500).epochs  # what is trained on counts
    assert proxy_rung(fewer, 60_000).recipe.images == 500


@pytest.mark.parametrize("towers", [True, False])
def test_retraining_keeps_the_towers_or_drops_all_of_them(towers: bool) -> None:
    config = make({"towers": {"placement": [1], "weight": 0.5}, "retrain": {"towers": towers}})
    assert proxy_rung(config, 100).towers == config.towers
    assert retrain_rung(config, 100).towers.placement == ((1,) if towers else "none")


@pytest.mark.parametrize(
    ("images", "settings", "epochs"),
    [
        (50_000, {}, [1, 9]),
        (1_078, {}, [7]),  # full training's 25 epochs are too near
        (50_000, {"ladder": {"rungs": 3, "factor": 3}}, [1, 3, 9]),
        (50_000, {"ladder": {"rungs": 4, "factor": 3}, "retrain": {"epochs": 10}}, [1, 3, 9]),
        (50_000, {"ladder": {"rungs": 4, "factor": 3}, "retrain": {"epochs": 20}}, [1, 3, 9, 20]),
        (50_000, {"ladder": {"rungs": 1}}, [1]),
    ],
)
def test_rungs_are_apart_and_end_at_full_training(
    images: int, settings: dict[str, dict[str, int]], epochs: list[int]
) -> None:
    assert [rung.epochs for rung in rungs(Config.model_validate(settings), images)] == epochs


@pytest.mark.parametrize(
    ("images", "batch"), [(50, 16), (300, 16), (768, 32), (1_200, 32), (2_000, 64), (5_000, 128), (60_000, 128)]
)
def test_the_batch_suits_the_number_of_images(images: int, batch: int) -> None:
    assert batch_size(Recipe(), images) == batch
    assert batch_size(Recipe(images=768), 60_000) == 32
    assert batch_size(Recipe(batch_size=7), images) == 7


def test_small_sets_have_more_weight_decay() -> None:
    assert weight_decay(Recipe(), 60_000) == weight_decay(Recipe(), 50_000) == 5e-4
    assert weight_decay(Recipe(), 25_000) == pytest.approx(1e-3)
    assert weight_decay(Recipe(), 5000) == weight_decay(Recipe(), 100) == pytest.approx(5e-3)
    assert weight_decay(Recipe(images=25_000), 60_000) == pytest.approx(1e-3)
    assert weight_decay(Recipe(weight_decay=0.0), 100) == 0


def test_smaller_batches_have_smaller_learning_rates() -> None:
    assert learning_rate(Recipe(), 128) == 0.1
    assert learning_rate(Recipe(), 32) == pytest.approx(0.05)
    assert learning_rate(Recipe(optimizer="adamw"), 128) == 0.002
    assert learning_rate(Recipe(learning_rate=0.3), 32) == 0.3


@pytest.mark.parametrize("images", [40, 300, 1_200, 8_000, 60_000])
def test_small_sets_are_trained_for_enough_steps(images: int) -> None:
    full = retrain_rung(Config(), images)
    assert full.epochs * max(1, images // batch_size(full.recipe, images)) >= LEAST_STEPS
    assert retrain_rung(make({"retrain": {"epochs": 2}}), images).epochs == 2


def test_timed_rungs_train_for_seconds_on_all_images() -> None:
    lowest, highest = timed_rungs(Config(), 60_000, [10.0, 30.0])
    assert [(one.name, one.seconds, one.effort) for one in (lowest, highest)] == [("proxy", 10, 10), ("x3", 30, 30)]
    assert lowest.recipe.images is None
