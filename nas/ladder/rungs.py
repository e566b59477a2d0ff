"""Rungs: what exactly a training was, so that scores of different trainings never meet in one ranking."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from nas.config import Config, Recipe, TowersConfig


@dataclass(frozen=True)
class Rung:
    """One fidelity: how far and on what a candidate is trained.

    `name` is what people read ("proxy", "retrain"). `final` rungs train on training and validation images
    together and are scored on the test split; all others are scored on the validation split. `init` names the
    weights that training starts from (None: fresh ones). `truth` rungs train on training images alone and are
    scored on the truth's images too. Where `as_costly_as` names towers, training has as many more steps as these
    would have cost. `free` rungs train nothing: they read what an untrained network shows.

    With `shrink` or `width` not 1 a stand-in is trained in the candidate's place: on images with so many pixels a side
    averaged into one, with this share of its channels. Parameters, FLOPs, memory and latency are the candidate's.
    `share` is what an image costs then, of what it costs the candidate itself, in the mean over the space.
    """

    name: str
    recipe: Recipe
    towers: TowersConfig
    final: bool = False
    init: str | None = None
    truth: bool = False
    as_costly_as: TowersConfig | None = None
    free: bool = False
    shrink: int = 1
    width: float = 1.0
    share: float = field(default=1.0, compare=False)

    @property
    def epochs(self) -> int:
        """Passes over the images; a rung's recipe is always resolved."""
        assert self.recipe.epochs is not None
        return self.recipe.epochs

    @property
    def stands_in(self) -> bool:
        """Whether something smaller is trained in the candidate's place."""
        return self.shrink != 1 or self.width != 1

    @property
    def effort(self) -> float:
        """What training costs beside that at other rungs: passes over the images, by the candidate itself."""
        return self.epochs * self.share

    @property
    def key(self) -> str:
        """Names this rung and all that a score at it depends on."""
        text = f"{self.recipe.model_dump_json()}{self.towers.model_dump_json()}{self.final}{self.init or ''}"
        text += f"{'truth' if self.truth else ''}{'free' if self.free else ''}"
        text += f"{self.shrink}/{self.width}" if self.stands_in else ""
        text += "" if self.as_costly_as is None else self.as_costly_as.model_dump_json()
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def proxy_rung(config: Config, train_images: int, share: float = 1.0) -> Rung:
    """The rung at which candidates are judged. `train_images` is the size of the training split, `share` as in `Rung`.

    With no epochs given, small sets are passed often enough for a proxy to see about 8,000 images.
    """
    recipe = Recipe(**config.proxy.model_dump(include=set(Recipe.model_fields)))
    images = min(train_images, recipe.images or train_images)
    epochs = recipe.epochs or max(1, round(8_000 / images))
    recipe, small = recipe.model_copy(update={"epochs": epochs}), config.proxy
    return Rung("proxy", recipe, config.towers, shrink=small.shrink, width=small.width, share=share)


def rungs(config: Config, train_images: int, most: int | None = None, share: float = 1.0) -> tuple[Rung, ...]:
    """The trained rungs, lowest first: the proxy, then `ladder.factor` times the epochs each, full training at most.

    `most` is that limit in epochs; None: as [retrain] has it. A rung that it brings closer than half the factor to the
    one below is left out: it would tell little more. Only the lowest trains stand-ins, at this `share` of the cost.
    """
    lowest = proxy_rung(config, train_images, share)
    full = most or retrain_epochs(config.retrain, train_images)
    found = [lowest]
    for height in range(1, config.ladder.rungs):
        times = config.ladder.factor**height
        epochs = min(lowest.epochs * times, max(full, lowest.epochs))
        if epochs >= max(config.ladder.factor / 2, 1.5) * found[-1].epochs:
            recipe = lowest.recipe.model_copy(update={"epochs": epochs})
            found.append(Rung(f"x{epochs / lowest.epochs:.3g}", recipe, lowest.towers))
    return tuple(found)


def retrain_rung(config: Config, train_images: int, epochs: int | None = None) -> Rung:
    """The rung of full training; `epochs` overrides the recipe's when time is short."""
    recipe = Recipe(**config.retrain.model_dump(include=set(Recipe.model_fields)))
    chosen = epochs or retrain_epochs(recipe, train_images)
    towers = config.towers if config.retrain.towers else config.towers.model_copy(update={"placement": "none"})
    return Rung("retrain", recipe.model_copy(update={"epochs": chosen}), towers, final=True)


def retrain_epochs(recipe: Recipe, train_images: int) -> int:
    """Epochs of full training on so many images. With none given: 25, or 12 on more than 20,000 images."""
    return recipe.epochs or (25 if min(train_images, recipe.images or train_images) <= 20_000 else 12)


def decided(config: Config, augmentations: tuple[str, ...], on_gpu: bool) -> Config:
    """The config with what is left open decided: augmentations by the data, precision by the device."""

    def resolved(recipe: Recipe) -> Recipe:
        augment = augmentations if recipe.augment is None else recipe.augment
        automatic = "bfloat16" if on_gpu else "float32"
        precision = automatic if recipe.precision == "auto" else recipe.precision
        return recipe.model_copy(update={"augment": augment, "precision": precision})

    return config.model_copy(update={"proxy": resolved(config.proxy), "retrain": resolved(config.retrain)})
