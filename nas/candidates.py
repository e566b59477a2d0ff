"""What a candidate of a search is: a space's architecture for these images, within the limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nas import complexity
from nas.config import SearchConfig
from nas.space import SearchSpace, Shape


@dataclass(frozen=True)
class Candidates:
    """What a candidate is in this search: drawn from a space, for these images, within these limits."""

    space: SearchSpace
    input_shape: Shape
    classes: int
    limits: SearchConfig
    max_flops: int | None = None

    def excess(self, architecture: object) -> tuple[dict[str, float], str | None]:
        """By how much the limits known before training are exceeded, and the cause in words (None: feasible)."""
        return self.beyond(self.sizes(architecture))

    def sizes(self, architecture: object) -> dict[str, float]:
        """What is known of a network before training."""
        limited = self.limits.max_memory is not None
        found = complexity.complexity(self.space, architecture, self.input_shape, self.classes, memory=limited)
        sizes = {"params": float(found.params), "flops": float(found.flops)}
        return sizes if found.memory is None else sizes | {"activation_bytes": float(found.memory)}

    @property
    def limited_by(self) -> tuple[str, ...]:
        """The names of the limits that are set."""
        return tuple(complexity.in_force(self.limits, self.max_flops))

    def beyond(self, sizes: Mapping[str, float]) -> tuple[dict[str, float], str | None]:
        """By how much these sizes exceed the limits, and the cause in words."""
        excess = complexity.violations(self.limits, sizes, self.max_flops)
        return excess, complexity.cause(excess, sizes)
