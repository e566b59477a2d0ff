"""Candidates of a search: architectures for these images, within the limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nas.config import SearchConfig
from nas.evaluation import complexity
from nas.evaluation.cost_model import PER_STEP, TERMS, CostModel, Work
from nas.space import SearchSpace, Shape


@dataclass(frozen=True)
class Prices:
    """What a training step costs here: on one `worker` while all are busy, and with the `whole` machine.

    `area` is the mean share of an image's pixels over the course of a training (see `Recipe.resizing`).
    """

    worker: CostModel
    whole: CostModel
    batch: int
    area: float = 1.0

    def of_worker(self, work: Work) -> float:
        """Seconds of a step on one worker, in the mean over a training."""
        return self.worker.seconds_per_step(scaled(work, self.area), self.batch)

    def of_whole(self, work: Work) -> float:
        """The same with all cores of a machine."""
        return self.whole.seconds_per_step(scaled(work, self.area), self.batch)


def scaled(work: Work, area: float) -> Work:
    """The work for an image of this share of the pixels."""
    return Work(**{t: getattr(work, t) if t in PER_STEP else round(area * getattr(work, t)) for t in TERMS})


def work_of(space: SearchSpace, architecture: object, input_shape: Shape, classes: int) -> Work:
    """What a network of the space does for one image."""
    try:
        with torch.device("meta"):
            network = space.build(architecture, input_shape, classes)
    except Exception:  # a third-party network may raise anything on the meta device
        with torch.random.fork_rng(devices=[]):
            network = space.build(architecture, input_shape, classes)
    return Work.of(network, input_shape)


@dataclass(frozen=True)
class Candidates:
    """What a candidate is in this search: drawn from a space, for these images, within these limits."""

    space: SearchSpace
    input_shape: Shape
    classes: int
    limits: SearchConfig
    prices: Prices | None = None
    max_step_seconds: float | None = None

    def excess(self, architecture: object) -> tuple[dict[str, float], str | None]:
        """By how much the limits known before training are exceeded, and the cause in words (None: feasible)."""
        return self.beyond(self.sizes(architecture))

    def sizes(self, architecture: object) -> dict[str, float]:
        """What is known of a network before training."""
        memory = "activation_bytes" in complexity.read_by(self.limits)
        found = complexity.complexity(self.space, architecture, self.input_shape, self.classes, memory)
        sizes = {"params": float(found.params), "flops": float(found.flops)}
        if self.prices is not None:
            sizes["step_seconds"] = self.prices.of_whole(self.work(architecture))
        return sizes if found.memory is None else sizes | {"activation_bytes": float(found.memory)}

    def work(self, architecture: object) -> Work:
        """What its network does for one image."""
        return work_of(self.space, architecture, self.input_shape, self.classes)

    @property
    def limited_by(self) -> tuple[str, ...]:
        """The names of the limits that are set."""
        return tuple(complexity.in_force(self.limits, self.max_step_seconds))

    def constraints(self, signals: Mapping[str, float]) -> dict[str, float]:
        """By how much a measured candidate exceeds the limits."""
        excess = self.beyond(signals)[0]
        if self.max_step_seconds is not None:
            excess.setdefault("step_seconds", 0.0)  # what was measured was within it
        return excess

    def beyond(self, sizes: Mapping[str, float]) -> tuple[dict[str, float], str | None]:
        """By how much these sizes exceed the limits, and the cause in words."""
        excess = complexity.violations(self.limits, sizes, self.max_step_seconds)
        return excess, complexity.cause(excess, sizes)
