"""Averaged weights: an estimate of the network after its learning rate is annealed.

An exponential moving average over the steps, as in Izmailov et al., *Averaging Weights Leads to Wider Optima* (2018),
who also say that batch-norm statistics have to be recomputed before averaged weights are scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

HORIZON = 0.5
"""Epochs over which weights are averaged: the average's time constant."""

RECOMPUTED = 1024
"""Training images from which batch-norm statistics are recomputed."""


class Averaged:
    """The moving average of a model's parameters. Training itself never sees it."""

    def __init__(self, model: nn.Module, steps_an_epoch: int) -> None:
        self._model = model
        self._parameters = list(model.parameters())
        self._averages = [p.detach().clone() for p in self._parameters]
        self._steps = 0
        self._horizon = max(1.0, HORIZON * steps_an_epoch)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after a step. While there are few steps, all of them count alike."""
        self._steps += 1
        weight = 1 / min(self._steps, self._horizon)
        torch._foreach_lerp_(self._averages, [p.detach() for p in self._parameters], weight)

    @contextmanager
    def applied(self, batches: Iterator[Tensor]) -> Iterator[None]:
        """The model has the averages inside, and statistics of these batches ``(N, C, H, W)``; its own afterwards."""
        modes = {module: module.training for module in self._model.modules()}
        own = [p.detach().clone() for p in self._parameters]
        buffers = {name: one.clone() for name, one in self._model.named_buffers()}
        try:
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in self._parameters], self._averages)
                recompute_statistics(self._model, batches)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.detach() for p in self._parameters], own)
                for name, one in self._model.named_buffers():
                    one.copy_(buffers[name])
            for module, mode in modes.items():
                module.training = mode


def recompute_statistics(model: nn.Module, batches: Iterator[Tensor]) -> None:
    """Batch-norm statistics as the mean over these batches; everything else in eval mode, and left so."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    model.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: all batches count alike
        norm.train()
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
