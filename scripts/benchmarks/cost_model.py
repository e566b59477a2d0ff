"""How well seconds are predicted: the cost model on networks that it was not fitted to, beside a line over FLOPs.

    python scripts/benchmarks/cost_model.py                30 random points of `inception`, one thread, batches of 128
    python scripts/benchmarks/cost_model.py --space NAME --threads 2 --to cost-model.json
    python scripts/benchmarks/cost_model.py --small        a few networks and small batches, to try the script

Random points of the space are spread over octaves of FLOPs. Some are measured for at most --seconds and the model is
fitted to them; others are measured and compared with the prediction: the median and the 90th percentile of
|predicted / measured - 1|. The same samples are fitted by a line in FLOPs for comparison, and "scaled prior" is the
shipped model times one factor for the machine. Networks to predict are measured in random order, so that a drift of
the machine's speed does not look like an effect of size. "corrected" is the model times one factor from the first five
of them, and is judged on the rest: it takes such a drift out. `--clock cpu` counts the CPU seconds of the thread and
not the wall clock's: for a busy machine, one thread only.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

import search_spaces
from nas.evaluation import evaluator as proxy
from nas.evaluation.complexity import complexity
from nas.evaluation.cost_model import (
    Conditions,
    CostModel,
    Sample,
    Work,
    corrected,
    measure,
    processor,
    spread_over_cost,
)
from nas.space import Architecture, SearchSpace, Shape

CLASSES = 10
OBSERVED = 5
"""Networks whose measured steps correct the model for the others, in "step, corrected"."""

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}


@dataclass(frozen=True)
class Point:
    """An architecture and its FLOPs."""

    architecture: Architecture
    flops: int


def points(space: SearchSpace, input_shape: Shape, drawn: int, seed: int) -> list[Point]:
    """Different random points."""
    architectures = {a.key: a for a in (space.random(1_000_000 * seed + number) for number in range(drawn))}
    return [Point(a, complexity(space, a, input_shape, CLASSES).flops) for a in architectures.values()]


def chosen(candidates: Sequence[Point], count: int) -> list[Point]:
    """Spread over octaves of FLOPs."""
    return [candidates[index] for index in spread_over_cost([point.flops for point in candidates], count)]


def errors(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Median, 90th percentile and largest relative error, and the median of predicted over measured."""
    ratios = np.array(predicted) / np.array(measured)
    away = np.abs(ratios - 1)
    return {
        "median": float(np.median(away)),
        "p90": float(np.quantile(away, 0.9)),
        "largest": float(away.max()),
        "bias": float(np.median(ratios)),
    }


def line(flops: Sequence[float], seconds: Sequence[float]) -> Callable[[float], float]:
    """Seconds as a line over FLOPs, slope and level not below 0, with the least relative error."""
    each = np.array(seconds)
    slope, level = nnls(np.column_stack([flops, np.ones(len(each))]) / each[:, None], np.ones(len(each)))[0]
    return lambda value: float(slope * value + level)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="inception")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--input", type=int, nargs=3, default=(1, 28, 28), metavar=("C", "H", "W"))
    parser.add_argument("--networks", type=int, default=30, help="to predict")
    parser.add_argument("--fitted", type=int, default=14, help="at most, to fit to")
    parser.add_argument("--seconds", type=float, default=15.0, help="limit on measuring what is fitted to")
    parser.add_argument("--seconds-each", type=float, default=3.0, help="for each network to predict")
    parser.add_argument("--drawn", type=int, default=150, help="random points to choose from, for either set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--to", type=Path, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help="four networks, batches of 8")
    given = parser.parse_args()
    if given.clock == "cpu" and given.threads > 1:
        parser.error("--clock cpu counts one thread only: use --threads 1")
    if given.small:
        given.networks, given.fitted, given.drawn, given.batch, given.seconds_each = 4, 3, 10, 8, 0.2
    return given


class Benchmark:
    """Points of a space to fit to and to predict, measured under one set of conditions."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.space = search_spaces.load(given.space, {})
        channels, height, width = given.input
        self.input_shape: Shape = (channels, height, width)
        self.conditions = Conditions(given.batch, given.threads, given.precision)
        self.clock = CLOCKS[given.clock]
        self.fitted = chosen(points(self.space, self.input_shape, given.drawn, 2 * given.seed), given.fitted)
        keys = {point.architecture.key for point in self.fitted}
        others = points(self.space, self.input_shape, given.drawn, 2 * given.seed + 1)
        self.tested = chosen([point for point in others if point.architecture.key not in keys], given.networks)

    def fit_samples(self, seconds: float) -> tuple[list[Sample], list[int]]:
        """Samples to fit to, and the FLOPs of each."""
        networks = [self._network(point) for point in self.fitted]
        works = [Work.of(network, self.input_shape) for network in networks]
        flops = {work: point.flops for work, point in zip(works, self.fitted, strict=True)}
        samples = measure(networks, self.input_shape, self.conditions, seconds, self.clock)
        return samples, [flops[sample.work] for sample in samples]

    def test_samples(self, seconds_each: float) -> tuple[list[Sample], list[int]]:
        """Samples to predict, each measured by itself, and the FLOPs of each; in random order."""
        order = random.Random(0).sample(self.tested, len(self.tested))
        samples = [
            measure([self._network(point)], self.input_shape, self.conditions, seconds_each, self.clock)[0]
            for point in order
        ]
        return samples, [point.flops for point in order]

    def _network(self, point: Point) -> torch.nn.Module:
        return self.space.build(point.architecture, self.input_shape, CLASSES)


def compared(
    model: CostModel, fitted: tuple[list[Sample], list[int]], tested: tuple[list[Sample], list[int]]
) -> dict[str, dict[str, float]]:
    """Errors of the model, of the prior times the machine's factor and of a line in FLOPs, on the samples to test."""
    (samples, flops), (others, other_flops) = fitted, tested
    scaled = CostModel.fit(samples, ridge=1e9)
    steps = [sample.seconds_per_step for sample in others]
    batches = [sample.seconds_per_batch or 0.0 for sample in others]
    step_line = line(flops, [sample.seconds_per_step for sample in samples])
    batch_line = line(flops, [sample.seconds_per_batch or 0.0 for sample in samples])
    observed = [(model.seconds_per_step(s.work, s.batch), s.seconds_per_step) for s in others[:OBSERVED]]
    later = corrected(model, observed)
    rest = others[OBSERVED:] or others
    return {
        "step": errors([model.seconds_per_step(s.work, s.batch) for s in others], steps),
        "step, corrected": errors(
            [later.seconds_per_step(s.work, s.batch) for s in rest], [s.seconds_per_step for s in rest]
        ),
        "step, scaled prior": errors([scaled.seconds_per_step(s.work, s.batch) for s in others], steps),
        "step, line in FLOPs": errors([step_line(value) for value in other_flops], steps),
        "inference": errors([model.seconds_per_batch(s.work, s.batch) for s in others], batches),
        "inference, scaled prior": errors([scaled.seconds_per_batch(s.work, s.batch) for s in others], batches),
        "inference, line in FLOPs": errors([batch_line(value) for value in other_flops], batches),
    }


def main() -> None:
    given = arguments()
    proxy.tune_process(given.threads)
    torch.manual_seed(given.seed)
    benchmark = Benchmark(given)
    begin, cpu = time.perf_counter(), benchmark.clock()
    fitted = benchmark.fit_samples(given.seconds)
    model = CostModel.fit(fitted[0])
    spent = {"wall": time.perf_counter() - begin, given.clock: benchmark.clock() - cpu}
    print(
        f"fitted to {len(fitted[0])} of {len(benchmark.fitted)} networks in {spent[given.clock]:.1f} s"
        f" ({given.clock} clock)",
        flush=True,
    )
    tested = benchmark.test_samples(given.seconds_each)
    steps, mflops = [1e3 * sample.seconds_per_step for sample in tested[0]], [each / 1e6 for each in tested[1]]
    print(
        f"{len(steps)} networks of {min(mflops):.1f} to {max(mflops):.1f} MFLOPs, {min(steps):.0f} to"
        f" {max(steps):.0f} ms a step; fitted to {min(fitted[1]) / 1e6:.1f} to {max(fitted[1]) / 1e6:.1f} MFLOPs"
    )
    figures = compared(model, fitted, tested)
    for name, values in figures.items():
        shares = "  ".join(f"{key} {100 * values[key]:5.1f} %" for key in ("median", "p90", "largest"))
        print(f"{name:26}{shares}  predicted/measured {values['bias']:.2f}")
    if given.to is not None:
        content = {
            "arguments": {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()},
            "processor": processor(),
            "torch": torch.__version__,
            "fitting_seconds": spent,
            "fitted": rows(*fitted),
            "tested": [
                row | {"predicted": model.seconds_per_step(s.work, s.batch)}
                for row, s in zip(rows(*tested), tested[0], strict=True)
            ],
            "errors": figures,
            "model": model.model_dump(),
        }
        given.to.parent.mkdir(parents=True, exist_ok=True)
        given.to.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def rows(samples: Sequence[Sample], flops: Sequence[int]) -> list[dict[str, Any]]:
    """For the JSON file."""
    return [asdict(sample) | {"flops": each} for sample, each in zip(samples, flops, strict=True)]


if __name__ == "__main__":
    main()
