"""What a network costs: parameters, FLOPs, latency; and the limits a person may set on them."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.config import SearchConfig
from nas.errors import NasError
from nas.space import SearchSpace, Shape


@dataclass(frozen=True)
class Complexity:
    """Of the bare network. `flops` are for one image, 2 a multiply-add, convolutions and matrix products."""

    params: int
    flops: int


def complexity(space: SearchSpace, architecture: object, input_shape: Shape, num_classes: int) -> Complexity:
    """Counted without computing: on the meta device, or on the CPU for networks that cannot live there."""
    try:
        with torch.device("meta"):
            network = space.build(architecture, input_shape, num_classes)
            return count(network, input_shape)
    except NasError:
        raise
    except Exception:  # a third-party network may raise anything on the meta device
        with torch.random.fork_rng(devices=[]):
            return count(space.build(architecture, input_shape, num_classes), input_shape)


def count(network: nn.Module, input_shape: Shape) -> Complexity:
    """Parameters and FLOPs of a network, on whatever device it is. Its mode and state are left as they were."""
    return Complexity(sum(p.numel() for p in network.parameters()), sum(_counted(network, input_shape).values()))


def flops_by_module(network: nn.Module, input_shape: Shape) -> Mapping[str, int]:
    """FLOPs of each submodule, children included, by its name in ``named_modules``."""
    modules = dict.fromkeys(name for name, _ in network.named_modules())
    root = type(network).__name__
    counted = _counted(network, input_shape, by_module=True)
    return {name: counted.get(f"{root}.{name}" if name else root, 0) for name in modules}


def _counted(network: nn.Module, input_shape: Shape, by_module: bool = False) -> Mapping[str, int]:
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *input_shape, device=device))
    finally:
        for module, training in modes.items():
            module.training = training
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
    modes = {module: module.training for module in network.modules()}
    network.eval()
    times = []
    try:
        with torch.inference_mode():
            for repeat in range(5 + repeats):
                start = time.perf_counter()
                network(image)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat >= 5:
                    times.append(time.perf_counter() - start)
    finally:
        for module, training in modes.items():
            module.training = training
    return 1000 * statistics.median(times)


def violations(limits: SearchConfig, found: Mapping[str, float], max_flops: int | None = None) -> dict[str, float]:
    """By how much each set limit is exceeded, as a share of it (feasible at 0 or less).

    `found` holds any of params, flops and latency_ms; limits on what it does not hold are not judged.
    `max_flops` stands in for the one that the person did not set.
    """
    allowed = {
        "params": limits.max_params,
        "flops": limits.max_flops or max_flops,
        "latency_ms": limits.max_latency,
    }
    return {name: found[name] / limit - 1 for name, limit in allowed.items() if limit is not None and name in found}


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
