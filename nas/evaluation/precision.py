"""The precision of trainings on this machine: bfloat16 on GPUs, and on CPUs that gain from it.

Scores are always computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Literal

import torch

from nas import auxiliary
from nas.config import Config, Recipe
from nas.data import Data, Images
from nas.space import SearchSpace
from nas.training import loop as training
from nas.training.task import TASKS

Precision = Literal["float32", "bfloat16"]

NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Abilities of a CPU, as torch names them, with which it multiplies bfloat16 numbers."""

GAIN = 0.15
"""bfloat16 is used where it saves this share of a training step."""

REPEATS = 3
"""How often each precision is timed, one after the other."""


def native_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself; where torch cannot tell, it does not."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) is True for name in NATIVE)


def of_cpu(
    config: Config, space: SearchSpace, data: Data, is_native: Callable[[], bool] = native_bfloat16
) -> Precision:
    """The precision that ``auto`` stands for on this CPU, timed where it has bfloat16 at all."""
    automatic = "auto" in (config.proxy.precision, config.retrain.precision)
    if not automatic or not is_native():
        return "float32"
    return "bfloat16" if gain(config, space, data) >= GAIN else "float32"


def gain(config: Config, space: SearchSpace, data: Data) -> float:
    """Share of a training step that bfloat16 saves, for a named point of the space of middle place, or a random one."""
    named = [space.point(values) for values in space.named().values()]
    architecture = named[len(named) // 2] if named else space.random(config.seed)
    recipe = Recipe(**config.proxy.model_dump(include=set(Recipe.model_fields))).model_copy(
        update={"epochs": 1, "augment": (), "resizing": ()}
    )
    few = data.train.pixels[: 2 * 128], data.train.labels[: 2 * 128]
    images = training.Resident(Images(*few), data.mean, data.std, torch.device("cpu"))
    threads = torch.get_num_threads()
    seconds: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    try:
        torch.set_num_threads(config.executor.threads)
        with torch.random.fork_rng(devices=[]):
            network = space.build(architecture, data.input_shape, len(data.classes))
        model = auxiliary.supervise(
            network, config.towers, data.input_shape, len(data.classes), 0, data.coarse, data.classes
        )
        for _ in range(REPEATS):
            for precision, times in seconds.items():
                own = recipe.model_copy(update={"precision": precision})
                times.append(training.seconds_a_step(model, TASKS[data.task], images, own, config.seed))
    except Exception:  # a third-party network may raise anything in another precision
        return 0.0
    finally:
        torch.set_num_threads(threads)
    return 1 - median(seconds["bfloat16"]) / median(seconds["float32"])
