"""Rungs: what exactly a training was, so that scores of different trainings never meet in one ranking."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nas.config import Config, Recipe, TowersConfig


@dataclass(frozen=True)
class Rung:
    """One fidelity: how far and on what a candidate is trained.

    `name` is what people read ("proxy", "retrain"). `final` rungs train on training and validation images
    together and are scored on the test split; all others are scored on the validation split. `init` names the
    weights that training starts from (None: fresh ones).
    """

    name: str
    recipe: Recipe
    towers: TowersConfig
    final: bool = False
    init: str | None = None

    @property
    def epochs(self) -> int:
        """Passes over the images; a rung's recipe is always resolved."""
        assert self.recipe.epochs is not None
        return self.recipe.epochs

    @property
    def key(self) -> str:
        """Names this rung and all that a score at it depends on."""
        text = f"{self.recipe.model_dump_json()}{self.towers.model_dump_json()}{self.final}{self.init or ''}"
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def proxy_rung(config: Config, train_images: int) -> Rung:
    """The rung at which candidates are judged. `train_images` is the size of the training split.

    With no epochs given, small sets are passed often enough for a proxy to see about 8,000 images.
    """
    recipe = Recipe(**config.proxy.model_dump(include=set(Recipe.model_fields)))
    images = min(train_images, recipe.images or train_images)
    epochs = recipe.epochs or max(1, round(8_000 / images))
    return Rung("proxy", recipe.model_copy(update={"epochs": epochs}), config.towers)


def retrain_rung(config: Config, train_images: int, epochs: int | None = None) -> Rung:
    """The rung of full training; `epochs` overrides the recipe's when time is short.

    With no epochs given: 25, or 12 on more than 20,000 images.
    """
    recipe = Recipe(**config.retrain.model_dump(include=set(Recipe.model_fields)))
    images = min(train_images, recipe.images or train_images)
    chosen = epochs or recipe.epochs or (25 if images <= 20_000 else 12)
    towers = config.towers if config.retrain.towers else config.towers.model_copy(update={"placement": "none"})
    return Rung("retrain", recipe.model_copy(update={"epochs": chosen}), towers, final=True)
