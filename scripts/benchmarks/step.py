"""One training step under the glass: how fast, how near to the machine's peak, where the time goes. CPU, one thread.

    python scripts/benchmarks/step.py            random candidates, small to large, at 14x14 and 28x28; made-up images
    python scripts/benchmarks/step.py --small    one small candidate, to try the script

Writes step.csv to results/reference/performance: a row a candidate and size, with milliseconds a step (median of the
repeats, and their range), GFLOP/s (3 forward passes a step: forward, and backward to inputs and weights), their share
of the matrix-multiply peak measured beside it, the share of the time of each kind of operation (torch.profiler, own
time), what towers add (steps with and without, in turns) and what a validation image costs against a training image.
`--variant fused` compares the optimizer's fused form with the default one, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

import search_spaces
from nas import auxiliary
from nas.config import Recipe, TowersConfig
from nas.data import Images
from nas.evaluation import complexity
from nas.evaluation import evaluator as proxy
from nas.training import loop as training
from nas.training.task import TASKS

BATCH = 128
CLASSES = 10
KINDS = {
    "convolution": ("convolution", "addmm", "aten::mm", "mkldnn"),
    "batch norm": ("batch_norm",),
    "pooling": ("pool",),
    "zero fills": ("zero_", "fill_", "zeros"),
    "relu": ("relu", "threshold", "clamp"),
    "concatenation": ("cat", "split", "narrow", "slice"),
    "copies": ("copy_", "contiguous", "clone", "index", "::to"),
    "optimizer": ("_foreach", "Optimizer", "_fused_sgd"),
}
"""By what an operation's name holds; the first that fits. What fits nowhere is "other"."""


def peak(seconds: float = 0.5) -> float:
    """GFLOP/s of a matrix product of 1024 x 1024, the best of several."""
    one, other = torch.randn(2, 1024, 1024)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        one @ other
        best = max(best, 2 * 1024**3 / (time.perf_counter() - begin) / 1e9)
    return best


def images(size: int, count: int) -> training.Resident:
    """Made-up images of one channel."""
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    return training.Resident(Images(pixels, chance.integers(0, CLASSES, count)), [128.0], [64.0], torch.device("cpu"))


def chosen(count: int, size: int) -> list[Any]:
    """Random candidates from small to large: quantiles of the FLOPs of a hundred."""
    space = search_spaces.load("inception", {})
    drawn = [space.random(seed) for seed in range(30 if count == 1 else 100)]
    flops = {one.key: complexity.complexity(space, one, (1, size, size), CLASSES).flops for one in drawn}
    ordered = sorted(drawn, key=lambda one: flops[one.key])
    return [ordered[int(place * (len(ordered) - 1))] for place in np.linspace(0.1, 0.9, count)]


class Steps:
    """Steps of one candidate on images of one size."""

    def __init__(self, architecture: Any, size: int, steps: int) -> None:
        self.space = search_spaces.load("inception", {})
        self.architecture, self.shape, self.steps = architecture, (1, size, size), steps
        self.images = images(size, BATCH * steps)
        self.recipe = Recipe(epochs=1, batch_size=BATCH, augment=())

    def model(self, placement: str) -> auxiliary.DeepSupervision:
        network = self.space.build(self.architecture, self.shape, CLASSES)
        return auxiliary.supervise(network, TowersConfig(placement=placement), self.shape, CLASSES, 0)

    def train(self, placement: str = "none") -> float:
        """Milliseconds a step."""
        fit = training.fit(self.model(placement), TASKS["classification"], self.images, self.recipe, 0)
        return 1e3 * fit.seconds / self.steps

    def score(self) -> float:
        """Milliseconds a batch of validation images."""
        model = self.model("none").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        begin = time.perf_counter()
        training.evaluate(model, TASKS["classification"], self.images, BATCH)
        return 1e3 * (time.perf_counter() - begin) / self.steps

    def shares(self) -> dict[str, float]:
        """Share of the profiled time of each kind of operation."""
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            self.train()
        times = dict.fromkeys([*KINDS, "other"], 0.0)
        for event in seen.key_averages():
            kind = next((k for k, words in KINDS.items() if any(word in event.key for word in words)), "other")
            times[kind] += event.self_cpu_time_total
        whole = sum(times.values())
        return {f"share: {kind}": spent / whole for kind, spent in times.items()}


def in_turns(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Each way once, then each again, and so on."""
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(way())
    return found


def step(architecture: Any, size: int, steps: int, repeats: int) -> dict[str, Any]:
    """A row of the table."""
    one = Steps(architecture, size, steps)
    bare = complexity.complexity(one.space, architecture, one.shape, CLASSES)
    ways: dict[str, Callable[[], float]] = {"step": one.train, "towers": partial(one.train, "auto"), "score": one.score}
    found = in_turns(ways, repeats)
    milliseconds, top = statistics.median(found["step"]), peak()
    speed = 3 * bare.flops * BATCH / milliseconds / 1e6
    return {
        "architecture": architecture.key,
        "size": size,
        "params": bare.params,
        "mflops": bare.flops / 1e6,
        "milliseconds": milliseconds,
        "least": min(found["step"]),
        "most": max(found["step"]),
        "gflops_a_second": speed,
        "peak": top,
        "share_of_peak": speed / top,
        "towers_add": statistics.median(found["towers"]) / milliseconds - 1,
        "validation_image_to_training_image": statistics.median(found["score"]) / milliseconds,
        **one.shares(),
    }


def fused(architecture: Any, size: int, steps: int, repeats: int) -> dict[str, Any]:
    """The time of a step with the optimizer's fused form over that with the default one."""
    one, make = Steps(architecture, size, steps), training.make_optimizer

    def with_fused() -> float:
        def made(model: Any, recipe: Recipe) -> torch.optim.Optimizer:
            groups = make(model, recipe).param_groups
            kept = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
            return torch.optim.SGD(kept, momentum=0.9, nesterov=True, fused=True)

        training.make_optimizer = made
        try:
            return one.train()
        finally:
            training.make_optimizer = make

    found = in_turns({"default": one.train, "fused": with_fused}, repeats)
    ratios = [b / a for a, b in zip(found["default"], found["fused"], strict=True)]
    return {
        "architecture": architecture.key,
        "size": size,
        "fused_to_default": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("results/reference/performance"))
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    parser.add_argument("--variant", choices=("fused",))
    parser.add_argument("--small", action="store_true", help="one candidate, 14x14, 2 steps")
    given = parser.parse_args()
    sizes = [14, 28]
    if given.small:
        given.candidates, given.repeats, given.steps, sizes = 1, 1, 2, [14]
    proxy.tune_process(threads=1)
    rows = []
    for size in sizes:
        for architecture in chosen(given.candidates, size):
            look = fused if given.variant else step
            rows.append(look(architecture, size, given.steps, given.repeats))
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    given.to.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(given.to / f"step{f'-{given.variant}' if given.variant else ''}.csv", index=False)


if __name__ == "__main__":
    main()
