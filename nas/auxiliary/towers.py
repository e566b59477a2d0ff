"""The kinds of towers. The light and the linear tower have sizes; the published ones are fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.auxiliary.taps import Tap
from nas.errors import ConfigError

MOST_PARAMETERS = 8
"""No kind has more parameter tensors than this."""


def light(tap: Tap, classes: int, width: int) -> nn.Module:
    """The default: adaptive pooling to 2x2, 1x1 convolution, batch norm, ReLU, one hidden layer, dropout, linear."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(tap.channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * width, 2 * width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(2 * width, classes),
    )


def light_dense(tap: Tap, classes: int, width: int) -> nn.Module:
    """The light tower for dense prediction: 1x1 convolution, batch norm, ReLU, 1x1 convolution."""
    return nn.Sequential(
        nn.Conv2d(tap.channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, classes, 1),
    )


def linear(tap: Tap, classes: int, side: int) -> nn.Module:
    """A linear probe of the map, averaged to `side` x `side` pixels (Alain and Bengio 2016)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(tap.channels * side * side, classes))


def linear_dense(tap: Tap, classes: int, side: int) -> nn.Module:
    """A linear probe of each pixel."""
    return nn.Conv2d(tap.channels, classes, 1)


def googlenet(tap: Tap, classes: int, size: int) -> nn.Module:
    """Exactly the tower of Szegedy et al. 2014 (section 5): 4x4 pooling, 1x1x128, FC 1024, 70 % dropout, linear.

    The pooling is 5x5 with stride 3 on 14x14 maps, and adaptive on any other.
    """
    exact = (tap.height, tap.width) == (14, 14)
    return nn.Sequential(
        nn.AvgPool2d(5, 3) if exact else nn.AdaptiveAvgPool2d(4),
        nn.Conv2d(tap.channels, 128, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128 * 16, 1024),
        nn.ReLU(),
        nn.Dropout(0.7),
        nn.Linear(1024, classes),
    )


def darts(tap: Tap, classes: int, size: int) -> nn.Module:
    """The auxiliary head of NASNet and DARTS on CIFAR (Liu et al. 2018): 476,426 parameters for 576 channels.

    5x5 pooling with stride 3 on 8x8 maps, adaptive pooling to 2x2 on any other. Theirs begins with an in-place
    ReLU that alters the trunk; this one is not in place.
    """
    exact = (tap.height, tap.width) == (8, 8)
    return nn.Sequential(
        nn.ReLU(),
        nn.AvgPool2d(5, 3, count_include_pad=False) if exact else nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(tap.channels, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 768, 2, bias=False),
        nn.BatchNorm2d(768),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, classes),
    )


def fcn(tap: Tap, classes: int, size: int) -> nn.Module:
    """PSPNet's (Zhao et al. 2017): 3x3 to a quarter of the channels, batch norm, ReLU, dropout 0.1, 1x1; a map out."""
    width = max(1, tap.channels // 4)
    return nn.Sequential(
        nn.Conv2d(tap.channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(width, classes, 1),
    )


Maker = Callable[[Tap, int, int], nn.Module]

CLASSIFIERS: dict[str, Maker] = {"light": light, "linear": linear, "googlenet": googlenet, "darts": darts}
"""Kinds for one label an image: ``(N, classes)`` out."""

DENSE: dict[str, Maker] = {"light": light_dense, "linear": linear_dense, "fcn": fcn}
"""Kinds for one label a pixel: ``(N, classes, h, w)`` out, on the tapped map."""

KINDS = tuple(dict.fromkeys([*CLASSIFIERS, *DENSE]))

SIZES: dict[str, Sequence[int]] = {"light": (64, 32, 16, 8), "linear": (2, 1)}
"""From the size wanted to the smallest: widths of the light tower, pooled sides of the linear one."""


def make(kind: str, tap: Tap, classes: int, dense: bool, budget: float) -> tuple[nn.Module, int] | None:
    """A freshly initialised tower and its FLOPs an image; the largest of its sizes within `budget` FLOPs.

    None where even the smallest is over it; kinds of one size know no budget. Raises ConfigError where the kind
    does not fit the task.
    """
    kinds = DENSE if dense else CLASSIFIERS
    if kind not in kinds:
        answers = "one label a pixel" if dense else "one label an image"
        raise ConfigError(f"towers.kind {kind!r} does not fit {answers}: use {', '.join(kinds)}")
    for size in SIZES.get(kind, (0,)):
        with torch.device("meta"):
            flops = _flops(kinds[kind](tap, classes, size), tap)
        if flops <= budget or kind not in SIZES:
            return kinds[kind](tap, classes, size), flops
    return None


def _flops(tower: nn.Module, tap: Tap) -> int:
    """FLOPs of a tower on the meta device, for one image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        tower.eval()(torch.empty(1, tap.channels, tap.height, tap.width, device="meta"))
    return int(counter.get_total_flops())
