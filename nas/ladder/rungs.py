"""Rungs: everything that a score depends on, so that scores of different trainings are never compared."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nas.config import Config, Recipe, TowersConfig

Resizing = tuple[tuple[float, float], ...]
"""Pairs (share of the side, share of the steps until which it lasts), as in `Recipe.resizing`."""

LEAST_STEPS = 1000
"""Steps of a full training at least: epochs alone starve small sets."""

LEAST_PROXY_STEPS = 100
"""Steps of a proxy at least."""

REFERENCE_BATCH = 128
"""Images a step for which `RATES` are meant."""

WEIGHT_DECAY = 5e-4
"""Weight decay of trainings on `MANY_IMAGES` or more, where none is given."""

MANY_IMAGES = 50_000

MAX_DECAY_FACTOR = 10
"""Small sets are passed over so often that only decay keeps a network from learning them by heart: 1,200 images gain 2
points (photographs) and 30 points (drawn shapes) by ten times the decay, in a minute of training."""

RATES = {"sgd": 0.1, "adamw": 0.002}
"""Highest learning rates where none is given."""


@dataclass(frozen=True)
class Rung:
    """One fidelity: how far and on what a candidate is trained.

    `name` is what people read ("proxy", "retrain"). `final` rungs train on training and validation images
    together and are scored on the test split; all others are scored on the validation split. `init` names the
    weights that training starts from (None: fresh ones). `truth` rungs train on training images alone and are
    scored on the truth's images too. `all_images` rungs train on the test images too, and are scored on none. Where
    `as_costly_as` names towers, training has as many more steps as these would have cost. `free` rungs train nothing:
    they read what an untrained network shows.

    With `shrink` or `width` not 1, a low-fidelity variant is trained in the candidate's place: on images with so many
    pixels a side averaged into one, with this share of its channels. Parameters, FLOPs, memory and latency are those of
    the candidate.
    `share` is what an image costs then, of what it costs the candidate itself, in the mean over the space.

    A rung of `seconds` trains every candidate for that long on one worker: its jobs say how many steps that is for
    each, decided before they start. A `whole` job has all cores of its machine. A `timing` rung trains a few steps to
    measure their seconds, and scores nothing.
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
    seconds: float | None = None
    whole: bool = False
    timing: bool = False
    all_images: bool = False

    @property
    def epochs(self) -> int:
        """Passes over the images; a rung's recipe is always resolved."""
        assert self.recipe.epochs is not None
        return self.recipe.epochs

    @property
    def is_variant(self) -> bool:
        """Whether something smaller is trained in the candidate's place."""
        return self.shrink != 1 or self.width != 1

    @property
    def effort(self) -> float:
        """What training costs beside that at other rungs: seconds, or passes over the images by the candidate."""
        return self.epochs * self.share if self.seconds is None else self.seconds

    @property
    def key(self) -> str:
        """Names this rung and all that a score at it depends on."""
        text = f"{self.recipe.model_dump_json()}{self.towers.model_dump_json()}{self.final}{self.init or ''}"
        text += f"{'truth' if self.truth else ''}{'free' if self.free else ''}"
        text += f"{self.shrink}/{self.width}" if self.is_variant else ""
        text += "" if self.as_costly_as is None else self.as_costly_as.model_dump_json()
        text += "" if self.seconds is None else f"{self.seconds:g} s"
        text += f"{'whole' if self.whole else ''}{'timing' if self.timing else ''}"
        text += "all images" if self.all_images else ""
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def proxy_rung(config: Config, train_images: int, share: float = 1.0) -> Rung:
    """The rung at which candidates are judged. `train_images` is the size of the training split, `share` as in `Rung`.

    With no epochs given, small sets are passed often enough for a proxy to see about 8,000 images, in at least
    `LEAST_PROXY_STEPS` steps.
    """
    recipe = Recipe(**config.proxy.model_dump(include=set(Recipe.model_fields)))
    images = min(train_images, recipe.images or train_images)
    enough = math.ceil(LEAST_PROXY_STEPS / max(1, images // batch_size(recipe, train_images)))
    epochs = recipe.epochs or max(1, round(8_000 / images), enough)
    recipe, small = recipe.model_copy(update={"epochs": epochs}), config.proxy
    return Rung("proxy", recipe, config.towers, shrink=small.shrink, width=small.width, share=share)


def rungs(config: Config, train_images: int, most: int | None = None, share: float = 1.0) -> tuple[Rung, ...]:
    """The trained rungs, lowest first: the proxy, then `ladder.factor` times the epochs each, full training at most.

    `most` is that limit in epochs; None: as [retrain] has it. A rung that it brings closer than half the factor to the
    one below is left out: it would tell little more. Only the lowest trains low-fidelity variants, at this `share` of
    the cost.
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


def timed_rungs(config: Config, train_images: int, seconds: Sequence[float]) -> tuple[Rung, ...]:
    """The rungs under a time budget, lowest first: each trains a candidate for so many seconds of one worker."""
    lowest = proxy_rung(config, train_images)
    recipe = lowest.recipe.model_copy(update={"epochs": None, "images": None})
    names = ["proxy", *(f"x{one / seconds[0]:.3g}" for one in seconds[1:])]
    return tuple(
        replace(lowest, name=name, recipe=recipe, seconds=one) for name, one in zip(names, seconds, strict=True)
    )


def timing_rung(config: Config, train_images: int, whole: bool) -> Rung:
    """The rung at which the speed of a training is measured, on one worker or with a whole machine."""
    lowest = proxy_rung(config, train_images)
    recipe = lowest.recipe.model_copy(update={"images": None, "resizing": config.retrain.resizing})
    return replace(lowest, name="timing", recipe=recipe, whole=whole, timing=True)


def retrain_rung(config: Config, train_images: int, epochs: int | None = None) -> Rung:
    """The rung of full training; `epochs` overrides the recipe's when time is short."""
    recipe = Recipe(**config.retrain.model_dump(include=set(Recipe.model_fields)))
    chosen = epochs or retrain_epochs(recipe, train_images)
    towers = config.towers if config.retrain.towers else config.towers.model_copy(update={"placement": "none"})
    return Rung("retrain", recipe.model_copy(update={"epochs": chosen}), towers, final=True)


def retrain_epochs(recipe: Recipe, train_images: int) -> int:
    """Epochs of full training on so many images.

    With none given: 25, or 12 on more than 20,000 images, and more where these have less than `LEAST_STEPS` steps.
    """
    if recipe.epochs is not None:
        return recipe.epochs
    images = min(train_images, recipe.images or train_images)
    enough = math.ceil(LEAST_STEPS / max(1, images // batch_size(recipe, train_images)))
    return max(25 if images <= 20_000 else 12, enough)


def batch_size(recipe: Recipe, train_images: int) -> int:
    """Images a step: those given, or a power of two near a thirtieth of the images, from 16 to 128."""
    if recipe.batch_size is not None:
        return recipe.batch_size
    images = min(train_images, recipe.images or train_images)
    return int(min(128, max(16, 2 ** round(math.log2(max(1, images / 30))))))


def weight_decay(recipe: Recipe, train_images: int) -> float:
    """The weight decay: the one given, or `WEIGHT_DECAY`, more in inverse proportion to fewer images."""
    if recipe.weight_decay is not None:
        return recipe.weight_decay
    images = min(train_images, recipe.images or train_images)
    return WEIGHT_DECAY * min(MAX_DECAY_FACTOR, max(1.0, MANY_IMAGES / max(1, images)))


def learning_rate(recipe: Recipe, batch: int) -> float:
    """The highest learning rate: the one given, or that of `RATES` for `REFERENCE_BATCH`, by the square root."""
    return recipe.learning_rate or RATES[recipe.optimizer] * math.sqrt(batch / REFERENCE_BATCH)


def decided(
    config: Config, augmentations: tuple[str, ...], precision: str, train_images: int, resizing: Resizing = ()
) -> Config:
    """The config with what is left open decided: batch size, learning rate and weight decay by the number of images.

    `augmentations`, `precision` and `resizing` are those of recipes that do not say.
    """

    def resolved(recipe: Recipe) -> Recipe:
        batch = batch_size(recipe, train_images)
        update = {
            "augment": augmentations if recipe.augment is None else recipe.augment,
            "precision": precision if recipe.precision == "auto" else recipe.precision,
            "batch_size": batch,
            "learning_rate": learning_rate(recipe, batch),
            "weight_decay": weight_decay(recipe, train_images),
            "resizing": resizing if recipe.resizing is None else recipe.resizing,
        }
        return recipe.model_copy(update=update)

    return config.model_copy(update={"proxy": resolved(config.proxy), "retrain": resolved(config.retrain)})
