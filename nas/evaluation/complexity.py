"""Static cost of a network: parameters, FLOPs, memory, latency; and the limits on them."""

from __future__ import annotations

import copy
import statistics
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nas import metrics
from nas.config import SearchConfig
from nas.errors import NasError
from nas.space import SearchSpace, Shape

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Complexity:
    """Of the bare network. `flops` are for one image, 2 a multiply-add, convolutions and matrix products.

    `memory` is `activation_bytes`, where it was asked for.
    """

    params: int
    flops: int
    memory: int | None = None


def complexity(
    space: SearchSpace, architecture: object, input_shape: Shape, num_classes: int, memory: bool = False
) -> Complexity:
    """Counted without computing: on the meta device, or on the CPU for networks that cannot live there."""
    try:
        with torch.device("meta"):
            network = space.build(architecture, input_shape, num_classes)
            return count(network, input_shape, memory)
    except NasError:
        raise
    except Exception:  # a third-party network may raise anything on the meta device
        with torch.random.fork_rng(devices=[]):
            return count(space.build(architecture, input_shape, num_classes), input_shape, memory)


def count(network: nn.Module, input_shape: Shape, memory: bool = False) -> Complexity:
    """Parameters and FLOPs of a network, on whatever device it is. Its mode and state are left as they were."""
    params = sum(p.numel() for p in network.parameters())
    flops = sum(_counted(network, input_shape).values())
    return Complexity(params, flops, activation_bytes(network, input_shape) if memory else None)


def flops_by_module(network: nn.Module, input_shape: Shape) -> Mapping[str, int]:
    """FLOPs of each submodule, children included, by its name in ``named_modules``."""
    modules = dict.fromkeys(name for name, _ in network.named_modules())
    root = type(network).__name__
    counted = _counted(network, input_shape, by_module=True)
    return {name: counted.get(f"{root}.{name}" if name else root, 0) for name in modules}


def _counted(network: nn.Module, input_shape: Shape, by_module: bool = False) -> Mapping[str, int]:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with (
        at_inference(network),
        _without_batch_norms(network),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        network(torch.zeros(1, *input_shape, device=device))
    if by_module:
        return {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return {"": counter.get_total_flops()}


def logits_shape(network: nn.Module, input_shape: Shape) -> tuple[int, ...] | None:
    """Shape of the logits of one image, found without computing; None where the network cannot say so."""
    try:
        with torch.no_grad():
            logits = copy.deepcopy(network).to("meta").eval()(torch.zeros(2, *input_shape, device="meta"))
            return tuple(logits.shape[1:])
    except Exception:  # a third-party network may raise anything on the meta device
        return None


def latency(network: nn.Module, input_shape: Shape, repeats: int = 20) -> float:
    """Median milliseconds of one image through the network, as it stands on its device, after a warm-up."""
    device = next(network.parameters()).device
    image = torch.zeros(1, *input_shape, device=device)
    times = []
    with at_inference(network), torch.inference_mode():
        for repeat in range(5 + repeats):
            start = time.perf_counter()
            network(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat >= 5:
                times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def activation_bytes(network: nn.Module, input_shape: Shape) -> int:
    """Peak bytes that one image and what is computed from it hold at once, at inference, in the network's own type.

    Weights are not in it, nor is what a convolution takes for itself while it runs. It is counted from the tensors
    that live in an eager forward, which frees each as soon as nothing needs it any more.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with at_inference(network), torch.no_grad(), _Living([*network.parameters(), *network.buffers()]) as living:
        network(torch.zeros(1, *input_shape, device=device))
    return int(living.peak)


class _Living(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it that live at once; views and writes in place add none."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: Any = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        self._now = 0
        self.peak: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self._now -= size


@contextmanager
def at_inference(network: nn.Module) -> Iterator[None]:
    """In eval mode; each module's own mode is put back afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _without_batch_norms(network: nn.Module) -> Iterator[None]:
    """They have no FLOPs as counted here, and took a third of the time on the meta device."""
    norms = [one for one in network.modules() if type(one) in BATCH_NORMS and "forward" not in vars(one)]
    for one in norms:
        vars(one)["forward"] = partial(_checked, int(vars(one)["num_features"]))
    try:
        yield
    finally:
        for one in norms:
            del vars(one)["forward"]


def _checked(channels: int, input: Tensor) -> Tensor:
    if input.shape[1] != channels:
        raise ValueError(f"batch norm of {channels} channels got {input.shape[1]}")
    return input


def in_force(limits: SearchConfig, max_step_seconds: float | None = None) -> dict[str, float]:
    """The limits that are set, by signal; a time budget sets `max_step_seconds`."""
    allowed = {metric.signal: getattr(limits, key) for key, metric in metrics.limits().items()}
    allowed["step_seconds"] = max_step_seconds
    return {signal: float(limit) for signal, limit in allowed.items() if limit is not None}


def read_by(limits: SearchConfig) -> set[str]:
    """The signals that a limit or an objective reads: those that cost something are measured only then."""
    return {*in_force(limits), *(metrics.named(name).signal for name in limits.objectives)}


def violations(
    limits: SearchConfig, found: Mapping[str, float], max_step_seconds: float | None = None
) -> dict[str, float]:
    """By how much each set limit is exceeded, as a share of it (feasible at 0 or less).

    `found` holds sizes by signal; limits on what it does not hold are not judged.
    """
    limited = in_force(limits, max_step_seconds)
    return {name: found[name] / limit - 1 for name, limit in limited.items() if name in found}


def cause(excess: Mapping[str, float], found: Mapping[str, float]) -> str | None:
    """One line naming the limits that are exceeded; None where none is."""
    over = [
        f"{name} {_number(found[name])} is {_number(100 * share)} % over the limit"
        for name, share in excess.items()
        if share > 0
    ]
    return "; ".join(over) or None


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
