"""The only training loop. Proxies, full trainings and benchmarks all call `fit`.

Everything random has a generator of its own, derived from one seed (`streams`), so that with and without towers
a network sees the same initial weights, batches and augmentations.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nas import auxiliary
from nas.auxiliary import DeepSupervision
from nas.config import Recipe
from nas.data import Images
from nas.data.augment import augment, augment_both
from nas.errors import CandidateError
from nas.ladder import WEIGHT_DECAY
from nas.ladder import batch_size as batch_size_of
from nas.ladder import learning_rate as learning_rate_of
from nas.training.averaging import RECOMPUTED, Averaged
from nas.training.parallel import ALONE, Shard
from nas.training.task import Task

TIMED_STEPS = 5
"""Steps by which the speed of a training is measured, at each image size."""

CLOCK_SLACK = 0.02
"""Share of a training by which the clock may be ahead of the steps before it decides: until then a seed decides all."""

CHECK_EVERY = 20
"""Steps between looks at whether the loss is finite (a look waits for a GPU)."""


class Resident:
    """A split that lives on the device: pixels as uint8 ``(N, C, H, W)`` channels-last, labels, normalisation.

    Labels are int64 ``(N,)``, or masks, which stay uint8 ``(N, H, W)``.
    """

    def __init__(self, images: Images, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        pixels = torch.from_numpy(np.array(images.pixels)).to(device)  # a copy: shared arrays are read-only
        self.pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(np.array(images.labels)).to(device)
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.inverse_std = 1 / torch.tensor(std, device=device).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def batch(self, rows: Tensor, names: Collection[str], chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented pixels and labels of these rows; a mask moves with its image."""
        pixels, labels = self.pixels[rows], self.labels[rows]
        if labels.dim() == 1:
            return augment(pixels, names, chance), labels
        return augment_both(pixels, labels, names, chance)

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 pixels to float, mean 0 and deviation 1 over the training images."""
        return (pixels.float() - self.mean) * self.inverse_std


@dataclass(frozen=True)
class Fit:
    """What training left to read: the main head's training loss of each step, seconds, images seen.

    `readings` holds, for each epoch asked for, what `read` gave. `train_accuracy` is the main head's over the last
    epoch, as it trained. `gradient_norms` holds, for each step asked for, the norm of the gradient on each cell's
    parameters, by depth. `moments` are the times at which steps ended (a GPU may still have been computing).
    """

    step_losses: tuple[float, ...]
    steps_an_epoch: int
    train_accuracy: float
    gradient_norms: Mapping[int, tuple[float, ...]]
    readings: Mapping[int, Mapping[str, float]]
    seconds: float
    images: int
    moments: tuple[float, ...]


def stream(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose ("init", "towers", "order", "augment", "dropout"), from one seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:6], "big")


def steps_of(recipe: Recipe, images: int) -> tuple[int, int]:
    """(steps an epoch, images a step) of a training on a split of so many images."""
    count = min(images, recipe.images or images)
    batch = batch_size_of(recipe, images)
    return max(1, count // batch), min(count, batch)


def fit(
    model: DeepSupervision,
    task: Task,
    images: Resident,
    recipe: Recipe,
    seed: int,
    extra_steps: int = 0,
    read: Callable[[], Mapping[str, float]] | None = None,
    shard: Shard = ALONE,
    seconds: float | None = None,
) -> Fit:
    """Train network and towers together, in place. `recipe.epochs` must be set; `recipe.steps` replaces them.

    The schedule anneals to zero within the steps, and within as many `extra_steps` after them. Where they would take
    more than `seconds` (of one process: clocks of several differ), it follows the clock and ends in time. With
    `recipe.ema` the averaged weights are what is left in the model. `read` is called after the epochs in
    `recipe.readings` and finds averaged weights in the model; training goes on as if it had not been. With a `shard`,
    the processes of torch's group train together, and each has the same result in the end. Raises CandidateError when
    the loss is not finite.
    """
    assert recipe.epochs is not None
    start = time.perf_counter()
    device = images.device
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    count = min(len(images), recipe.images or len(images))
    steps_an_epoch, batch_size = steps_of(recipe, len(images))
    if batch_size < shard.world:
        raise CandidateError(f"{shard.world} processes cannot share a batch of {batch_size} images")
    steps = (recipe.steps or steps_an_epoch * recipe.epochs) + extra_steps
    highest = learning_rate_of(recipe, batch_size)
    side = min(images.pixels.shape[-2:]) if images.labels.dim() == 1 else None  # masks are not resized
    optimizer = make_optimizer(model, recipe)
    averaged = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)  # type: ignore[no-untyped-call]
        if recipe.ema
        else None
    )
    order = torch.Generator().manual_seed(stream(seed, "order"))
    chance = torch.Generator().manual_seed(stream(seed, "augment"))
    chosen = torch.randperm(len(images), generator=order)[:count].to(device)
    criterion = partial(task.loss, label_smoothing=recipe.label_smoothing)
    reader = Averaged(model, steps_an_epoch) if recipe.readings and read is not None else None
    step_losses: list[Tensor] = []
    moments: list[float] = []
    seen: deque[Tensor] = deque(maxlen=steps_an_epoch)
    gradient_norms: dict[int, tuple[float, ...]] = {}
    readings: dict[int, Mapping[str, float]] = {}
    dropout = stream(seed, f"dropout{shard.rank or ''}")  # the same masks on all shares would be no chance
    with _dropout_seeded(dropout, device), shard.over(model) as forward:
        model.train()
        for step, batch in enumerate(_batches(chosen, batch_size, order, steps), 1):
            progress = (step - 1) / steps
            if seconds is not None:
                clock = (time.perf_counter() - start) / seconds
                if clock > progress + CLOCK_SLACK:
                    progress = clock
                if progress >= 1:
                    break
            for group in optimizer.param_groups:
                group["lr"] = highest * learning_rate_share(recipe, progress)
            pixels, whole = images.batch(batch, recipe.augment or (), chance)
            labels = shard.part(whole)
            weighted = shard.weighted(criterion, task.count, whole)
            with _autocast(recipe, device):
                outputs = forward(resized(images.normalised(shard.part(pixels)), side, recipe, progress))
                losses = model.losses(outputs, labels, progress, weighted)
            optimizer.zero_grad(set_to_none=True)
            losses.backward(forward)
            if step in recipe.gradient_norms:
                gradient_norms[step] = cell_gradient_norms(model)
            if recipe.clip:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            if averaged is not None:
                averaged.update_parameters(model)
            step_losses.append(losses.main.detach().float())
            moments.append(time.perf_counter())
            seen.append(task.statistics(auxiliary.logits_of(outputs[0]).detach(), labels))
            if step % CHECK_EVERY == 0:
                latest = torch.stack(step_losses[-CHECK_EVERY:]).sum() + losses.total.detach()
                _must_be_finite(shard.mean(latest), step)
            if reader is not None:
                reader.update()
                if (epoch := _read_after(step, steps, steps_an_epoch, recipe)) is not None and read is not None:
                    rows = torch.split(chosen[:RECOMPUTED], batch_size)
                    some = (images.normalised(images.pixels[one]) for one in rows)
                    with reader.applied(some):
                        readings[epoch] = read()
    _must_be_finite(shard.mean(torch.stack(step_losses).sum()), len(step_losses))
    if averaged is not None:
        counters = {name: one for name, one in model.state_dict().items() if not one.is_floating_point()}
        model.load_state_dict(averaged.module.state_dict() | counters)  # an averaged count would be no count
    return Fit(
        step_losses=tuple(shard.mean(torch.stack(step_losses)).tolist()),
        steps_an_epoch=steps_an_epoch,
        train_accuracy=task.metrics(shard.sum(torch.stack(tuple(seen)).sum(0)).cpu())["accuracy"],
        gradient_norms=gradient_norms,
        readings=readings,
        seconds=time.perf_counter() - start,
        images=len(step_losses) * batch_size,
        moments=tuple(moments),
    )


def seconds_a_step(model: DeepSupervision, task: Task, images: Resident, recipe: Recipe, seed: int) -> float:
    """Seconds that a step of this training takes in the mean over its course, from a few steps at each image size.

    The model is trained by them. The first quartile counts: what else the machine did for a moment is not the step's.
    A training that turns out slower follows the clock; one that turns out faster would leave time unused.
    """
    sizes = [*(recipe.resizing or ()), (1.0, 1.0)]
    starts = [0.0, *(until for _, until in sizes[:-1])]
    total = 0.0
    for start, (share, until) in zip(starts, sizes, strict=True):
        resizing = () if share == 1.0 else ((share, 0.999999),)
        short = recipe.model_copy(update={"steps": TIMED_STEPS, "resizing": resizing, "readings": ()})
        moments = fit(model, task, images, short, seed).moments
        durations = sorted(after - before for before, after in pairwise(moments))
        total += (until - start) * durations[len(durations) // 4]
    return total


def cell_gradient_norms(model: DeepSupervision) -> tuple[float, ...]:
    """The L2 norm of the gradient on each cell's parameters, by depth; 0 where there is none."""
    return tuple(
        math.sqrt(sum(float(p.grad.square().sum()) for p in cell.parameters() if p.grad is not None))
        for cell in (model.network.get_submodule(name) for name in auxiliary.cell_names(model.network))
    )


@torch.inference_mode()
def evaluate(
    model: DeepSupervision, task: Task, images: Resident, batch_size: int = 128, towers: bool = True
) -> Mapping[str, float]:
    """``loss`` and the task's metrics (``accuracy``) of the main head, and ``tower<cell>_loss`` and so on apart.

    A tower with coarse labels is scored by these. Without `towers` the main head alone is computed.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    heads = ["", *(f"{name}_" for name in model.names if towers)]
    losses = torch.zeros(len(heads), device=images.device)
    statistics: dict[str, Tensor] = {}
    total = torch.zeros((), dtype=torch.int64, device=images.device)
    for start in range(0, len(images), batch_size):
        pixels = images.normalised(images.pixels[start : start + batch_size])
        labels = images.labels[start : start + batch_size]
        count = task.count(labels)
        total += count
        logits, tower_logits = model(pixels) if towers else (model.network(pixels), [])
        for number, (head, one) in enumerate(zip(heads, [auxiliary.logits_of(logits), *tower_logits], strict=True)):
            target = labels if number == 0 else model.labels(number - 1, labels)
            losses[number] += task.loss(one, target) * count
            statistics[head] = statistics.get(head, 0) + task.statistics(one, target)
    for module, mode in modes.items():
        module.training = mode
    signals = {}
    for head, loss in zip(heads, losses.tolist(), strict=True):
        signals[f"{head}loss"] = loss / int(total)
        signals |= {f"{head}{name}": value for name, value in task.metrics(statistics[head].cpu()).items()}
    return signals


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; biases and normalisation are not decayed."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY if recipe.weight_decay is None else recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(recipe.momentum, 0.999))  # `fit` sets the rate at each step
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def learning_rate_share(recipe: Recipe, progress: float) -> float:
    """Learning rate as a share of the highest, after a share `progress` of the steps; 0 at the end.

    one-cycle rises linearly during the warm-up and falls linearly after it (Smith and Topin 2017).
    """
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if progress < recipe.warmup:
        return 0.05 + 0.95 * progress / recipe.warmup
    return (1 - progress) / (1 - recipe.warmup)


def resized(pixels: Tensor, side: int | None, recipe: Recipe, progress: float) -> Tensor:
    """A batch ``(N, C, H, W)`` at the share of its size that `recipe.resizing` has for this share of the steps.

    `side` is the shorter side at full size; None: never resized. Small images first is Howard's progressive resizing
    (fast.ai's entry to DAWNBench, 2018); each pixel is the mean of the area that it covers.
    """
    share = next((share for share, until in recipe.resizing or () if progress < until), 1.0)
    if share == 1.0 or side is None:
        return pixels
    size = [max(1, round(share * length)) for length in pixels.shape[-2:]]
    return F.interpolate(pixels, size=size, mode="area").contiguous(memory_format=torch.channels_last)


def _batches(chosen: Tensor, batch_size: int, order: torch.Generator, steps: int) -> Iterator[Tensor]:
    """So many index batches ``(batch_size,)``, in a new order each epoch; what does not fill one waits for another."""
    size = min(batch_size, len(chosen))
    while steps:
        shuffled = chosen[torch.randperm(len(chosen), generator=order).to(chosen.device)]
        for start in range(0, len(shuffled) - size + 1, size)[:steps]:
            yield shuffled[start : start + size]
            steps -= 1


def _read_after(step: int, steps: int, steps_an_epoch: int, recipe: Recipe) -> int | None:
    """The epoch after which averaged weights are read at this step; extra steps belong to the last epoch."""
    epoch, within = divmod(step, steps_an_epoch)
    if step == steps:
        epoch, within = recipe.epochs or epoch, 0
    elif epoch == recipe.epochs:
        return None
    return epoch if not within and epoch in recipe.readings else None


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    bfloat16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)


@contextmanager
def _dropout_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from the global generator: seeded inside, put back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _must_be_finite(total: Tensor, step: int) -> None:
    if not math.isfinite(float(total)):
        raise CandidateError(f"the training loss was not finite by step {step}")
