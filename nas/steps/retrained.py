"""The retrained networks, and the model that is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from nas import auxiliary, leaderboard
from nas.config import Config, Recipe, TowersConfig
from nas.data import Data
from nas.errors import ExperimentError, InputError
from nas.export import EarlyExits
from nas.ladder import Rung
from nas.space import SearchSpace
from nas.steps import retrain as retraining
from nas.steps.driver import Driver
from nas.store import Measurement, Store

Trained = Mapping[str, Sequence[Measurement]]
"""Finished retrainings by architecture, the best of the board first; each from its first seed on."""


def ranked(driver: Driver) -> list[Measurement]:
    """The measured candidates, best first."""
    return leaderboard.standing(driver.records, driver.config.search.objectives[0])


def winner(driver: Driver) -> Measurement:
    """The best candidate of the board; raises ExperimentError where none is measured."""
    found = ranked(driver)
    if not found:
        raise ExperimentError(f"experiment {driver.config.experiment!r} has no measured candidate yet")
    return found[0]


def trained(config: Config, records: Store | None) -> Trained:
    """What the latest retraining left; raises ExperimentError where the winner is not among it."""
    if records is None:
        raise ExperimentError(f"experiment {config.experiment!r} is not retrained yet: run `nas retrain`")
    fact = records.fact("retrained", {})
    done: dict[str, list[Measurement]] = {}
    for entry in records.all():
        if entry.measurement.rung == fact.get("rung") and entry.measurement.status == "done":
            done.setdefault(entry.measurement.key, []).append(entry.measurement)
    best = leaderboard.standing(records, config.search.objectives[0])
    board, keys = [one.key for one in best], fact.get("keys", [])
    order = [*board[:1], *(key for key in board[1:] if key in keys), *(key for key in keys if key not in board)]
    if not order or order[0] not in done:
        raise ExperimentError(f"experiment {config.experiment!r} is not retrained yet: run `nas retrain`")
    return {key: sorted(done[key], key=lambda one: one.seed) for key in order if key in done}


def on_all_images(records: Store, winner: Measurement) -> Measurement | None:
    """The winner as trained on all images, where it was: this one is exported, and it has no test accuracy."""
    fact = records.fact("retrained", {}).get("all_images")
    if fact is None:
        return None
    found = records.get(winner.key, fact["rung"], winner.seed)
    return found if found is not None and found.status == "done" else None


def members(found: Trained, number: int) -> list[Measurement]:
    """The networks of an ensemble: the best `number`, or so many seeds of the only one that was retrained."""
    if number < 2:
        raise InputError(f"an ensemble has at least 2 members, got --ensemble {number}")
    several = len(found) > 1
    there = [seeds[0] for seeds in found.values()] if several else list(next(iter(found.values())))
    if number > len(there):
        more = f"--top {number}" if several else f"--seeds {number}"
        what = "architectures are retrained" if several else "seeds of one architecture are retrained"
        raise ExperimentError(
            f"--ensemble {number} asks for more than there are: {len(there)} {what}; `nas retrain {more}`"
        )
    return there[:number]


def network(config: Config, space: SearchSpace, data: Data, one: Measurement) -> nn.Module:
    """A retrained network with its weights."""
    architecture = space.architecture_type.from_json(one.architecture)
    built = space.build(architecture, data.input_shape, len(data.classes))
    built.load_state_dict(_load(retraining.weights_file(config.weights, one)))
    return built


def in_words(recipe: Recipe) -> str:
    """What is set of a recipe, in one line."""
    return ", ".join(f"{key} {value}" for key, value in recipe.model_dump(mode="json", exclude_none=True).items())


def rung(driver: Driver) -> Rung:
    """The rung of the latest retraining, had it begun from fresh weights."""
    fact, now = driver.records.fact("retrained", {}), driver.retrain_rung()
    towers = fact.get("towers", now.towers)  # what was retrained by an earlier version does not say
    return Rung(now.name, Recipe.model_validate(fact["recipe"]), TowersConfig.model_validate(towers), final=True)


def all_images_rung(driver: Driver) -> Rung:
    """The rung of the training on all images that followed it, likewise."""
    recipe = Recipe.model_validate(driver.records.fact("retrained")["all_images"]["recipe"])
    return replace(driver.all_images_rung(rung(driver)), recipe=recipe)


def check_exits(one: Measurement) -> None:
    """Raises InputError where there are no towers to exit from."""
    if not one.towers:
        raise InputError("--early-exit needs towers, and the network was retrained without any")


def with_exits(driver: Driver, bare: nn.Module, one: Measurement) -> EarlyExits:
    """The network with the towers it was retrained with; raises InputError where one can be no exit."""
    check_exits(one)
    data = driver.data
    supervised = auxiliary.supervise(
        bare, driver.config.towers, data.input_shape, len(data.classes), 0, data.coarse, data.classes
    )
    supervised.towers.load_state_dict(_load(retraining.towers_file(driver.config.weights, one)))
    model = EarlyExits(bare, supervised.taps, list(supervised.towers)).eval()
    with torch.no_grad():
        shapes = {name: tuple(out.shape) for name, out in model(torch.zeros(1, *data.input_shape)).items()}
    for name, shape in shapes.items():
        if shape != shapes["logits"]:
            raise InputError(f"--early-exit: {name} gives {shape}, where the network gives {shapes['logits']}")
    return model


def _load(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise ExperimentError(f"the weights {str(file)!r} are gone: `nas retrain` trains them again")
    return dict(safetensors.torch.load_file(file))
