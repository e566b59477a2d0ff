"""Data-parallel training: each process takes a share of every batch, and gradients are averaged.

Order, augmentation, batch size and schedule are those of one process, and batch norm takes its statistics over all of
them. What comes out is therefore what one process gives, but for rounding, and for dropout, whose masks each process
draws for itself. The process group is torch's, made by whoever starts the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from nas.auxiliary import DeepSupervision

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From logits and labels to a mean loss, a scalar."""


@dataclass(frozen=True)
class Shard:
    """The part of one process in a training: `rank` among `world` processes."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_this_process(cls) -> Shard:
        """Its place in torch's process group."""
        return cls(dist.get_rank(), dist.get_world_size())

    def part(self, batch: Tensor) -> Tensor:
        """Its rows of a batch ``(N, ...)``; the parts of two processes differ by one row at most."""
        return batch if self.world == 1 else torch.tensor_split(batch, self.world)[self.rank]

    def weighted(self, criterion: Criterion, count: Callable[[Tensor], int | Tensor], whole: Tensor) -> Criterion:
        """The criterion such that its mean over the processes is the mean over the batch whose labels are `whole`.

        `count` says over how many labels the criterion takes its mean: parts may have more or fewer of them.
        """
        if self.world == 1:
            return criterion
        share = self.world * count(self.part(whole)) / torch.as_tensor(count(whole)).clamp(min=1)
        return lambda logits, labels: share.to(logits.device) * criterion(logits, labels)

    def mean(self, one: Tensor) -> Tensor:
        """Mean over the processes."""
        return one if self.world == 1 else self.sum(one) / self.world

    def sum(self, one: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.world > 1:
            one = one.clone()
            dist.all_reduce(one)
        return one

    @contextmanager
    def over(self, model: DeepSupervision) -> Iterator[nn.Module]:
        """What runs forward in the model's place, and averages gradients in backward; alone, the model itself.

        Networks may have parameters that they do not use. The model is left as it was, but trained.
        """
        if self.world == 1:
            yield model
            return
        with _synchronised(model, self):
            parallel = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
            relayed = model.reached() is not None  # then backward averages by itself: see nas.auxiliary.reach
            with parallel.no_sync() if relayed else nullcontext():
                yield parallel


ALONE = Shard()
"""One process, which has all of it."""


@contextmanager
def _synchronised(model: nn.Module, shard: Shard) -> Iterator[None]:
    """Batch norm normalises by statistics over all processes. On any device, where torch's own needs a GPU."""
    norms: list[Any] = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_normalised, norm, shard)  # on the object, so that the class shines through afterwards
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalised(norm: _BatchNorm, shard: Shard, x: Tensor) -> Tensor:
    """Batch norm of ``(N, C, ...)``, in float32 inside; in training over the images of all processes."""
    if not norm.training and norm.running_mean is not None:
        return type(norm).forward(norm, x)
    wide = x.float()
    mean, var, count = _statistics(wide, shard)
    if norm.training and norm.running_mean is not None:
        _remember(norm, mean.detach(), var.detach() * count / (count - 1))
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shape = (1, -1, *[1] * (x.dim() - 2))
    normal = (wide - mean.view(shape)) * scale.view(shape)
    if norm.bias is not None:
        normal = normal + norm.bias.view(shape)
    return normal.to(x.dtype)


def _statistics(x: Tensor, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance ``(C,)`` of each channel over all processes, and over how many values.

    Joined from each process's own (Chan et al. 1979), for sums of squares lose digits.
    """
    var, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    rows = torch.zeros(shard.world, 2 * len(mean) + 1, device=x.device)
    rows[shard.rank] = torch.cat([mean, var, mean.new_tensor([x.numel() / len(mean)])])
    means, variances, counts = _Sum.apply(rows).split([len(mean), len(mean), 1], 1)  # type: ignore[no-untyped-call]
    count = counts.detach().sum()
    share = counts.detach() / count
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), count


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Moves the running statistics towards these; without a momentum they are means over all batches."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    factor = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, factor)
    norm.running_var.lerp_(var, factor)


class _Sum(torch.autograd.Function):
    """Sum over the processes, through which the gradient of every process's loss flows back."""

    @staticmethod
    def forward(ctx: Any, one: Tensor) -> Tensor:
        total = one.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
