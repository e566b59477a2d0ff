"""Candidates on one GPU: what each way to train is worth, how near it comes to the roofline, and how many share one.

    python scripts/benchmarks/gpu.py            candidates of about 1, 10 and 100 M multiply-adds; says so without a GPU
    python scripts/benchmarks/gpu.py --small    a tiny candidate on the CPU, to try the script

Writes gpu.csv to results/reference/performance: a row a candidate and way, with candidate-epochs an hour (an epoch:
50,000 made-up images, training alone), the share of the roofline max(FLOPs / measured peak, bytes / measured
bandwidth) and the memory held at most (not of packed ones). Ways build on one another, from `stock` (DataLoader,
float32, default layout) to `+ graph` (the whole step as one CUDA graph); `engine` is `nas.training.loop.fit`, with and
without towers. `packed` rows train so many candidates at once, each in a process of its own. Bytes are those that the
operations of a step read and write.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

import search_spaces
from nas import auxiliary
from nas.config import Recipe, TowersConfig
from nas.data import Images
from nas.evaluation import complexity
from nas.evaluation import evaluator as proxy
from nas.training import loop as training
from nas.training.task import TASKS

SHAPE, CLASSES, EPOCH = (3, 32, 32), 10, 50_000
WIDTHS = {1e6: (8, 16, 16), 10e6: (24, 32, 48), 100e6: (96, 128, 192)}
"""Widths of stages among which networks of so many multiply-adds are looked for."""


@dataclass(frozen=True)
class Way:
    """How to train."""

    name: str
    resident: bool = True
    bfloat16: bool = True
    channels_last: bool = True
    fused: bool = True
    graph: bool = True


WAYS = (
    Way("stock", resident=False, bfloat16=False, channels_last=False, fused=False, graph=False),
    Way("resident", bfloat16=False, channels_last=False, fused=False, graph=False),
    Way("+ bfloat16", channels_last=False, fused=False, graph=False),
    Way("+ channels-last", fused=False, graph=False),
    Way("+ fused optimizer", graph=False),
    Way("+ graph"),
)


FREE = ("view", "_unsafe_view", "detach", "expand", "split", "split_with_sizes", "slice", "transpose", "t", "permute")
"""Operations that move nothing."""


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if str(func).split(".")[1] not in FREE:
            tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
            self.bytes += sum(one.numel() * one.element_size() for one in tensors)
        return result


def candidate(space: Any, target: float) -> Any:
    """The random architecture nearest to so many multiply-adds."""
    drawn = [space.random(seed) for seed in range(60)]
    return min(drawn, key=lambda one: abs(complexity.complexity(space, one, SHAPE, CLASSES).flops / 2 - target))


def images(device: torch.device, count: int) -> training.Resident:
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return training.Resident(Images(pixels, chance.integers(0, CLASSES, count)), [128.0] * 3, [64.0] * 3, device)


def batches(way: Way, data: training.Resident, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels on the device, for ever."""
    device = data.device
    if not way.resident:
        host = TensorDataset(data.normalised(data.pixels).cpu().contiguous(), data.labels.cpu())
        while True:
            for pixels, labels in DataLoader(host, size, shuffle=True, drop_last=True):
                yield pixels.to(device), labels.to(device)
    while True:
        rows = torch.randint(len(data), (size,), device=device)
        pixels = data.normalised(data.pixels[rows])
        yield pixels if way.channels_last else pixels.contiguous(), data.labels[rows]


def step_of(way: Way, network: nn.Module, data: training.Resident, size: int) -> Callable[[], None]:
    """One training step."""
    device = data.device
    network.to(device, memory_format=torch.channels_last if way.channels_last else torch.contiguous_format)  # type: ignore[call-overload]
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=way.fused)
    source = batches(way, data, size)

    def compute(pixels: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=not way.graph)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=way.bfloat16):
            loss = F.cross_entropy(network(pixels), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    if not way.graph or device.type != "cuda":
        return lambda: compute(*next(source))
    pixels, labels = (one.clone() for one in next(source))
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            compute(pixels, labels)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    begin = time.perf_counter()
    with torch.cuda.graph(graph):
        compute(pixels, labels)
    print(f"  captured in {time.perf_counter() - begin:.2f} s", flush=True)

    def replay() -> None:
        for static, new in zip((pixels, labels), next(source), strict=True):
            static.copy_(new)
        graph.replay()

    return replay


def clocked(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds a step, the median of five parts, after a warm-up."""
    found = []
    for part in range(6):
        begin = time.perf_counter()
        for _ in range(max(1, steps // 5)):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if part:
            found.append((time.perf_counter() - begin) / max(1, steps // 5))
    return statistics.median(found)


def roofline(device: torch.device, bfloat16: bool) -> tuple[float, float]:
    """Measured FLOP/s of a matrix product and bytes/s of a copy."""
    side = 8192 if device.type == "cuda" else 512
    one = torch.randn(side, side, device=device, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    product = clocked(lambda: torch.mm(one, one), 20, device)
    large = torch.empty(2**28 if device.type == "cuda" else 2**22, dtype=torch.uint8, device=device)
    copy = clocked(lambda: large.clone(), 20, device)
    return 2 * side**3 / product, 2 * large.numel() / copy


def engine(space: Any, architecture: Any, data: training.Resident, size: int, steps: int, placement: str) -> float:
    """Seconds a step of the engine's own training."""
    network = space.build(architecture, SHAPE, CLASSES)
    model = auxiliary.supervise(network, TowersConfig(placement=placement), SHAPE, CLASSES, 0)
    recipe = Recipe(epochs=1, images=steps * size, batch_size=size, augment=())
    training.fit(model, TASKS["classification"], data, recipe.model_copy(update={"images": 2 * size}), 0)
    return training.fit(model, TASKS["classification"], data, recipe, 0).seconds / steps


def packed_one(widths: Any, architecture: str, size: int, steps: int, ready: Any, found: Any) -> None:
    """One of several processes on the GPU: seconds a step, all having begun together."""
    proxy.tune_process(threads=1)
    space = search_spaces.load("inception", {"widths": widths})
    data = images(torch.device("cuda"), steps * size)
    ready.wait()
    found.put(engine(space, space.architecture_type.from_json(architecture), data, size, steps, "none"))


def packed(widths: Any, architecture: Any, size: int, steps: int, count: int) -> float:
    """Steps a second of so many processes together."""
    context = multiprocessing.get_context("spawn")
    ready, found = context.Barrier(count), context.SimpleQueue()
    given = (widths, architecture.to_json(), size, steps, ready, found)
    processes = [context.Process(target=packed_one, args=given) for _ in range(count)]
    for process in processes:
        process.start()
    speeds: list[float] = [1 / found.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("results/reference/performance"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--small", action="store_true", help="on the CPU, a few steps")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not given.small:
        print("no GPU: nothing to measure here")
        return
    device = torch.device("cpu" if given.small else "cuda")
    targets = dict(list(WIDTHS.items())[:1]) if given.small else WIDTHS
    given.steps, given.batch = (5, 16) if given.small else (given.steps, given.batch)
    proxy.tune_process(threads=1)
    rows: list[dict[str, Any]] = []
    for target, widths in targets.items():
        space = search_spaces.load("inception", {"widths": widths})
        architecture = candidate(space, target)
        rows += measured(space, widths, architecture, device, given)
        given.to.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(given.to / "gpu.csv", index=False)


def measured(space: Any, widths: Any, architecture: Any, device: torch.device, given: Any) -> list[dict[str, Any]]:
    """The rows of one candidate."""
    flops = complexity.complexity(space, architecture, SHAPE, CLASSES).flops
    data = images(device, given.steps * given.batch)
    rows = []

    roofs = {bfloat16: roofline(device, bfloat16) for bfloat16 in (False, True)}

    def row(way: str, seconds: float, bfloat16: bool, traffic: float, shared: bool = False) -> None:
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" and not shared else math.nan
        peak, bandwidth = roofs[bfloat16]
        limit = max(3 * flops * given.batch / peak, traffic / bandwidth)
        found = {"multiply_adds": flops / 2, "way": way, "batch": given.batch, "milliseconds": 1e3 * seconds}
        found |= {
            "candidate_epochs_an_hour": 3600 * given.batch / seconds / EPOCH,
            "share_of_roofline": limit / seconds,
        }
        rows.append({**found, "memory": memory, "architecture": architecture.key})
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)

    traffic = 0.0
    for way in WAYS:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with Traffic() as seen:
            step_of(replace(way, graph=False), space.build(architecture, SHAPE, CLASSES), data, given.batch)()
        traffic = float(seen.bytes)
        step = step_of(way, space.build(architecture, SHAPE, CLASSES), data, given.batch)
        row(way.name, clocked(step, given.steps, device), way.bfloat16, traffic)
    for name, placement in (("engine", "none"), ("engine, towers", "auto")):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row(name, engine(space, architecture, data, given.batch, given.steps, placement), True, traffic)
    for count in (1, 2, 4, 8) if device.type == "cuda" else ():
        row(
            f"packed {count}",
            1 / packed(widths, architecture, given.batch, given.steps, count),
            True,
            traffic,
            shared=True,
        )
    return rows


if __name__ == "__main__":
    main()
