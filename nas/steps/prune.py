"""Pruning: removes channels of a trained network. The result is an architecture of the space, with weights.

The space says which channels matter (`nas.space.SearchSpace.prune_path`). How many go is decided here, by what the
network then costs. Fine-tuning is a rung like any other; it starts from what is left of the weights.
"""

from __future__ import annotations

import bisect
from dataclasses import replace

import torch
from torch import nn

from nas.config import PruneConfig
from nas.errors import InputError, JobError
from nas.evaluation import complexity
from nas.evaluation.weights import Weights, pack
from nas.ladder import Rung
from nas.space import Architecture, SearchSpace, Shape

FINE_TUNING_RATE = 1 / 2
"""The highest learning rate of fine-tuning, as a share of full training's, where the config leaves it open."""


def check_share(share: float) -> None:
    """Raises InputError where it is no share that could be removed."""
    if not 0 < share < 1:
        raise InputError(f"--prune takes the share of the multiply-adds to remove, above 0 and below 1; got {share:g}")


def smaller(
    space: SearchSpace,
    architecture: Architecture,
    network: nn.Module,
    share: float,
    step: int,
    input_shape: Shape,
    classes: int,
) -> Architecture:
    """The largest architecture with `share` of the multiply-adds less, as channels go from this trained network.

    Raises SpaceError where the space cannot be pruned, InputError where so much cannot be removed.
    """
    check_share(share)

    def flops(one: Architecture) -> int:
        return complexity.complexity(space, one, input_shape, classes).flops

    path = space.prune_path(architecture, network, step)
    whole = flops(architecture)
    allowed = (1 - share) * whole
    least = flops(path[-1]) if path else whole
    if least > allowed:
        raise InputError(
            f"--prune {share:g} is more than can be removed: the narrowest network, in steps of {step} channels "
            f"(prune.step), has {1 - least / whole:.1%} of the multiply-adds less"
        )
    return path[bisect.bisect_left(path, -allowed, key=lambda one: -flops(one))]


def weights_left(
    space: SearchSpace,
    architecture: Architecture,
    network: nn.Module,
    to: Architecture,
    input_shape: Shape,
    classes: int,
) -> Weights:
    """What is left of the network's weights in the narrower architecture `to`, to start a training from."""
    with torch.random.fork_rng(devices=[]):
        built = space.build(to, input_shape, classes)
    try:
        built.load_state_dict(dict(space.pruned_weights(architecture, network, to)))
    except RuntimeError as error:  # a mistake in a third-party space
        reason = " ".join(str(error).split())
        raise JobError(
            f"pruned_weights() of {type(space).__name__} gives no weights of the architecture: {reason}"
        ) from None
    # Without metadata, which safetensors writes in any order: the bytes name the training that starts from them.
    return Weights(pack(built), f"{architecture.key}, pruned")


def fine_tuning(full: Rung, config: PruneConfig, init: str) -> Rung:
    """The rung of fine-tuning beside that of full training: from these weights, calmer and without towers."""
    highest = full.recipe.learning_rate
    assert highest is not None, "a rung's recipe is resolved"
    recipe = full.recipe.model_copy(
        update={
            "epochs": config.epochs or full.epochs,
            "steps": None if config.epochs else full.recipe.steps,
            "learning_rate": config.learning_rate or FINE_TUNING_RATE * highest,
            "resizing": (),
        }
    )
    towers = full.towers.model_copy(update={"placement": "none"})
    return replace(full, name="pruned", recipe=recipe, towers=towers, init=init)


def from_scratch(full: Rung) -> Rung:
    """The rung of the same architecture trained fully from fresh weights; its own, so that no board takes it for a
    candidate."""
    return replace(full, name="scratch", init=None)
