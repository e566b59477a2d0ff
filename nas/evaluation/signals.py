"""Signals before, during and after a proxy training. Each one names its paper and its cost.

Signals of the main head only, unless their name begins with ``tower``. `nas.metrics` says which way each is better.

before training (a few images, no labels; counted for one candidate, F multiply-adds a forward pass of one image):

==================  =============================================================================  =========
``params, flops``   size of the bare network                                                        0
``naswot``          how differently images activate the ReLUs: Mellor et al. 2021, eq. 2            64 F
``synflow``         log of sum |w dR/dw| for an all-ones image: Tanaka et al. 2020, eq. 1; read     3 F
                    before training by Abdelfattah et al. 2021
``az_expressivity`` entropy of the cells' principal components: Lee and Ham 2024 (AZ-NAS), eq. 2-4  96 F for
``az_progressivity`` smallest rise of that entropy from cell to cell: eq. 5                         the three
``az_trainability`` how far each cell's Jacobian keeps the scale of gradients: eq. 6-8
==================  =============================================================================  =========

during training (free): ``tse``, ``tse_e``, ``tse_ema``, ``train_loss``: Ru et al. 2021, section 3; ``train_accuracy``.

after it: ``val_loss``, ``val_accuracy`` (F an image), ``averaged_val_loss``, ``averaged_val_accuracy`` (F an image,
and F for 1,024 images whose batch-norm statistics are recomputed; Izmailov et al. 2018, section 3.2), and of the
towers (Szegedy et al. 2015, section 5; F times their share an image) ``tower_loss``, ``tower_accuracy`` and
``tower_gap`` (their loss above the main head's): means, beside each tower's own, such as ``tower3_gap``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nas import auxiliary
from nas.auxiliary.taps import logits_of

TSE_DECAY = 0.9
"""Of TSE-EMA, an epoch."""

NASWOT_IMAGES = 64
AZ_IMAGES = 32
ZERO_COST_PASSES = NASWOT_IMAGES + 3 + 3 * AZ_IMAGES
"""Forward passes of one image that `zero_cost` is worth; a backward pass counts as two."""


def training_speed(losses: Sequence[float], steps_an_epoch: int) -> dict[str, float]:
    """TSE, TSE-E (of the last epoch) and TSE-EMA from the main head's training loss of each step.

    Epochs are counted back from the last step: where there is a part of one, it is the first.
    """
    epochs = [losses[max(0, end - steps_an_epoch) : end] for end in range(len(losses), 0, -steps_an_epoch)]
    sums = [sum(one) / steps_an_epoch for one in epochs]
    return {
        "tse": sum(sums),
        "tse_e": sums[0],
        "tse_ema": sum(TSE_DECAY**age * one for age, one in enumerate(sums)),
    }


def of_towers(scores: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """How far each tower's loss lies above the main head's, and means over the towers: loss, accuracy, and that gap."""
    if not names:
        return {}
    gaps = {f"{name}_gap": scores[f"{name}_loss"] - scores["loss"] for name in names}
    loss = fmean(scores[f"{name}_loss"] for name in names)
    accuracy = fmean(scores[f"{name}_accuracy"] for name in names)
    return gaps | {"tower_loss": loss, "tower_accuracy": accuracy, "tower_gap": loss - scores["loss"]}


def zero_cost(network: nn.Module, images: Tensor, seed: int) -> dict[str, float]:
    """All signals of an untrained network; it and the random state are left as they were.

    `images` ``(N, C, H, W)``, normalised, at least `NASWOT_IMAGES` of them where there are so many. A network without
    ReLU modules has no ``naswot``, one without cells no ``az_`` signals.
    """
    signals = {"naswot": naswot(network, images[:NASWOT_IMAGES]), "synflow": synflow(network, images.shape[1:])}
    signals |= az_nas(network, images.shape[1:], images.device, seed)
    return {name: value for name, value in signals.items() if math.isfinite(value)}


def naswot(network: nn.Module, images: Tensor) -> float:
    """log |K| with K[i, j] the number of ReLUs that images i and j both activate or both do not; -inf if singular."""
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)

    def compare(_: nn.Module, __: object, output: Tensor) -> None:
        active = (output.detach() > 0).flatten(1).float()
        kernel.add_((active @ active.T + (1 - active) @ (1 - active).T).double())

    network = copy.deepcopy(network).train()  # batch statistics: an untrained network has no others
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(compare)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        network(images)
    return float(torch.linalg.slogdet(kernel)[1])


def synflow(network: nn.Module, shape: Sequence[int]) -> float:
    """log of the summed saliency |w dR/dw|, R the summed logits of an image of ones, all weights made positive.

    In double precision and without batch norm, without which the product of all layers would neither fit nor flow.
    """
    network = copy.deepcopy(network).eval().double()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, nn.Identity())
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.data.abs_()
    device = next(iter(parameters)).device
    total = logits_of(network(torch.ones(1, *shape, dtype=torch.float64, device=device))).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    saliency = sum(
        float((p.detach() * g).abs().sum()) for p, g in zip(parameters, gradients, strict=True) if g is not None
    )
    return math.log(saliency) if saliency > 0 else -math.inf


def az_nas(network: nn.Module, shape: Sequence[int], device: torch.device, seed: int) -> dict[str, float]:
    """Expressivity, progressivity and trainability of the cells for Gaussian noise; NaN where there are too few."""
    network = copy.deepcopy(network).train()
    outputs: list[Tensor] = []
    for name in auxiliary.cell_names(network):
        network.get_submodule(name).register_forward_hook(lambda _m, _i, output: outputs.append(output))
    chance = torch.Generator().manual_seed(seed)
    noise = torch.randn(AZ_IMAGES, *shape, generator=chance).to(device)
    with torch.random.fork_rng(devices=[]):
        network(noise)
    outputs = [one for one in outputs if one.dim() == 4]
    if not outputs:
        return {}
    entropies = [_component_entropy(one.detach()) for one in outputs]
    rises = [after - before for before, after in pairwise(entropies)]
    gains = [_gain(before, after, chance) for before, after in pairwise(outputs)]
    return {
        "az_expressivity": sum(entropies),
        "az_progressivity": min(rises, default=math.nan),
        "az_trainability": fmean(2 - gain - 1 / gain for gain in gains) if gains and min(gains) > 0 else math.nan,
    }


def _component_entropy(output: Tensor) -> float:
    """Entropy of the shares of variance of the principal components over channels of ``(N, C, H, W)``."""
    rows = output.movedim(1, -1).flatten(0, 2).double()
    variances = torch.linalg.eigvalsh(torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1])).clamp(min=0)
    shares = variances / variances.sum().clamp(min=1e-12)
    return float(-(shares * shares.clamp(min=1e-12).log()).sum())


def _gain(before: Tensor, after: Tensor, chance: torch.Generator) -> float:
    """Largest singular value of a cell's mean Jacobian over places, from how it carries random signs backwards."""
    signs = (torch.randint(2, after.shape, generator=chance) * 2 - 1).to(after)
    (carried,) = torch.autograd.grad(after, before, signs, retain_graph=True)
    if carried.shape[-2:] != signs.shape[-2:]:  # a reduction lies between: sum over what one place came from
        area = carried[0, 0].numel() / signs[0, 0].numel()
        carried = F.adaptive_avg_pool2d(carried, (signs.shape[-2], signs.shape[-1])) * area
    rows_before, rows_after = (one.movedim(1, -1).flatten(0, 2).double() for one in (carried, signs))
    return float(torch.linalg.matrix_norm(rows_before.T @ rows_after / len(rows_after), 2))


def multiply_adds(
    flops: float,
    tower_share: float,
    trained: float,
    scored: float,
    scored_bare: float = 0.0,
    zero_cost: bool = False,
) -> float:
    """What a measurement computes: `flops` are of one image through the bare network, 2 a multiply-add.

    `trained` images go forward and backward with towers (a backward pass counts as two forward ones), `scored` ones
    forward with towers, `scored_bare` ones without.
    """
    passes = (3 * trained + scored) * (1 + tower_share) + scored_bare + (ZERO_COST_PASSES if zero_cost else 0)
    return flops / 2 * passes
