"""Gradient reach: how far the gradient of a tower goes into the network.

``full``: through all earlier layers (GoogLeNet, PSPNet). ``detached``: not at all, the tower measures and does not
teach. ``relay:k``: only the k cells below its tap (Shen et al. 2015, Relay Backpropagation, arXiv 1512.05830).
Segments may overlap, which one `detach` cannot express: each loss is sent backward to its own parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nas.errors import ConfigError, JobError


def relay_length(reach: str) -> int | None:
    """k of ``relay:k``; None for the other reaches. Raises ConfigError for what is no reach."""
    if reach in ("full", "detached"):
        return None
    name, _, k = reach.partition(":")
    if name != "relay" or not k.isdigit() or int(k) < 1:
        raise ConfigError(f"reach must be full, relay:k (such as relay:2) or detached, got {reach!r}")
    return int(k)


def segments(
    positions: Mapping[str, int], taps: Sequence[int], k: int, main: int | None, names: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """The names of the network's parameters that each loss reaches: the main loss first, then each tower's.

    `positions` says where each parameter is used (-1: the stem; ``len(names)``: the head), `taps` which cell each
    tower stands on. A tower on cell c reaches cells c-k+1 to c with what lies between them; the stem counts as the
    cell below the first. The main loss reaches the head and the `main` cells below it (None: everything). Raises
    ConfigError naming a part that has parameters and that no loss reaches.
    """
    cells = len(names)
    ranges = [(-1 if main is None else cells - main, cells), *((cell - k + 1, cell) for cell in taps)]
    for position in sorted(set(positions.values())):
        if not any(low <= position <= high for low, high in ranges):
            part = "the stem" if position < 0 else f"cell {position} ({names[position]})"
            raise ConfigError(f"no loss reaches {part}: widen relay:k or main_reach, or add a tower")
    return tuple(tuple(name for name, position in positions.items() if low <= position <= high) for low, high in ranges)


def backward(losses: Sequence[Tensor], parameters: Sequence[Sequence[nn.Parameter]], model: nn.Module | None) -> None:
    """Send each loss backward to its own parameters alone; gradients of overlapping segments add up.

    Over several processes the gradients are averaged in one all-reduce afterwards; `model` is then the
    DistributedDataParallel module, whose forward must have run under its ``no_sync()`` (its own hooks expect one
    backward through everything). Raises JobError otherwise.
    """
    shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if shared and not (isinstance(model, DistributedDataParallel) and not model.require_backward_grad_sync):
        raise JobError("relay over several processes: run forward and backward(model) under model.no_sync()")
    for number, (loss, inputs) in enumerate(zip(losses, parameters, strict=True), 1):
        torch.autograd.backward(loss, inputs=list(inputs), retain_graph=number < len(losses))
    if shared:
        _average(cast(nn.Module, model))


def _average(model: nn.Module) -> None:
    """Replace each gradient by its mean over all processes, in one all-reduce."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
