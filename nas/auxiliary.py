"""Auxiliary towers: where they go, what they are, how they weigh. All of it is here and nowhere else.

A tower is a small classifier on an intermediate cell, trained with the same labels, its loss added to the main
one (Szegedy et al. 2014, section 5: weight 0.3), thrown away afterwards. It never enters the network: `DeepSupervision`
holds network and towers side by side and taps the cells' outputs with hooks that live only during its own forward,
so the network copies, pickles and exports as if nobody had touched it, and removing the towers means to hand it over.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.config import TowersConfig
from nas.errors import ConfigError, SpaceError
from nas.space import Shape


@dataclass(frozen=True)
class Tap:
    """A place where a tower can stand: the output ``(N, channels, height, width)`` of a module.

    `changed_later` says that the trunk changes this very tensor in place further on; a tower must then read a clone.
    """

    module: str
    channels: int
    height: int
    width: int
    changed_later: bool


# ---------------------------------------------------------------------------------------------- placement


def auto(cells: int) -> tuple[int, ...]:
    """One tower on the middle cell, none on networks of fewer than three cells.

    Evidence so far: in a first look at 30 random networks on Fashion-MNIST (14x14, one epoch), one middle tower
    ranked candidates better than none, and better than two or one on every cell.
    """
    return middle(cells) if cells >= 3 else ()


def middle(cells: int) -> tuple[int, ...]:
    """The cell at half depth; never the last one, which the main head reads."""
    return ((cells - 1) // 2,) if cells >= 2 else ()


def thirds(cells: int) -> tuple[int, ...]:
    """Two towers, after one and two thirds of the cells, as GoogLeNet has them on its third and sixth of nine."""
    return tuple(sorted({cells // 3 - 1, 2 * cells // 3 - 1})) if cells >= 3 else ()


PLACEMENTS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "auto": auto,
    "middle": middle,
    "thirds": thirds,
    "none": lambda cells: (),
}


def place(config: TowersConfig, cells: int) -> tuple[int, ...]:
    """The cells (from 0) that carry a tower in a network of so many cells.

    A rule may choose none. Cells named explicitly must be there: ConfigError otherwise.
    """
    if isinstance(config.placement, str):
        return PLACEMENTS[config.placement](cells)
    missing = [cell for cell in config.placement if not 0 <= cell < cells]
    if missing:
        raise ConfigError(f"towers.placement names cell {missing[0]}, but this network has cells 0 to {cells - 1}")
    return tuple(sorted(set(config.placement)))


# -------------------------------------------------------------------------------------------------- kinds


class LightTower(nn.Sequential):
    """The default: adaptive pooling to 2x2, 1x1 convolution, batch norm, ReLU, one hidden layer, dropout, linear."""

    def __init__(self, tap: Tap, num_classes: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(2),
            nn.Conv2d(tap.channels, 64, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(128, num_classes),
        )


class GoogLeNetTower(nn.Sequential):
    """Exactly the tower of the paper (section 5): 4x4 pooling, 1x1x128, FC 1024, 70 % dropout, linear.

    The pooling is 5x5 with stride 3 on 14x14 maps, and adaptive on any other.
    """

    def __init__(self, tap: Tap, num_classes: int) -> None:
        exact = (tap.height, tap.width) == (14, 14)
        super().__init__(
            nn.AvgPool2d(5, 3) if exact else nn.AdaptiveAvgPool2d(4),
            nn.Conv2d(tap.channels, 128, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128 * 16, 1024),
            nn.ReLU(),
            nn.Dropout(0.7),
            nn.Linear(1024, num_classes),
        )


KINDS: dict[str, Callable[[Tap, int], nn.Module]] = {"light": LightTower, "googlenet": GoogLeNetTower}


# ------------------------------------------------------------------------------------------------ weights


def weight(config: TowersConfig, progress: float) -> float:
    """Weight of each tower's loss after a share `progress` (0 to 1) of the steps."""
    course = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }[config.schedule]
    return config.weight * course


# ------------------------------------------------------------------------------------------------ wrapper


class DeepSupervision(nn.Module):
    """A network and its towers, side by side.

    ``forward((N, C, H, W))`` gives the network's logits and a list with the logits of each tower. `network` is
    the bare network, unchanged; `cells` are the numbers of the cells that carry a tower.
    """

    def __init__(
        self, network: nn.Module, taps: Sequence[Tap], towers: Sequence[nn.Module], cells: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.network = network
        self.towers = nn.ModuleList(towers)
        self.taps = tuple(taps)
        self.cells = cells

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not self.towers:
            return self.network(x), []
        with listening(self.network, self.taps) as heard:
            logits = self.network(x)
        return logits, [tower(heard[tap.module]) for tower, tap in zip(self.towers, self.taps, strict=True)]


@contextmanager
def listening(network: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[str, Tensor]]:
    """While open, a forward of `network` leaves the tapped outputs in the dictionary, by module name."""
    heard: dict[str, Tensor] = {}

    def hook_for(tap: Tap) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            heard[tap.module] = output.clone() if tap.changed_later else output

        return hook

    handles = [network.get_submodule(tap.module).register_forward_hook(hook_for(tap)) for tap in taps]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def attach(
    network: nn.Module, config: TowersConfig, input_shape: Shape, num_classes: int, seed: int = 0
) -> DeepSupervision:
    """Put towers beside any network that names its cells. The network is not changed, nor is any random state.

    Raises SpaceError when the network does not name its cells, ConfigError for an explicit cell that is not there.
    """
    names = cell_names(network)
    cells = place(config, len(names))
    taps = find_taps(network, [names[cell] for cell in cells], input_shape)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        towers = [KINDS[config.kind](tap, num_classes) for tap in taps]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return DeepSupervision(network, taps, towers, cells).to(device)


def cell_names(network: nn.Module) -> tuple[str, ...]:
    """The network's own names of its cells, by depth; raises SpaceError when they are missing or wrong."""
    names = getattr(network, "cell_names", None)
    if not names:
        raise SpaceError(f"network {type(network).__name__} names no cells: it needs an attribute cell_names")
    modules = dict(network.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise SpaceError(f"network {type(network).__name__} has no module {unknown[0]!r} named in cell_names")
    return tuple(names)


def find_taps(network: nn.Module, names: Sequence[str], input_shape: Shape) -> list[Tap]:
    """Shapes of the named modules' outputs, by a dry run that changes neither state, mode nor random state.

    It runs a copy, in training mode, because some modules (dropout) change a tensor in place only then.
    """
    if not names:
        return []
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    rehearsal = copy.deepcopy(network).train()
    heard: dict[str, tuple[Any, int]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            heard[name] = output, getattr(output, "_version", 0)

        return hook

    for name in names:
        rehearsal.get_submodule(name).register_forward_hook(note(name))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        rehearsal(torch.zeros(2, *input_shape, device=device))  # two images: batch norm wants more than one value
    taps = []
    for name in names:
        if name not in heard:
            raise SpaceError(f"cell {name!r} takes no part in the network's forward")
        output, version = heard[name]
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise SpaceError(f"cell {name!r} must give a tensor (N, C, H, W) to carry a tower")
        _, channels, height, width = output.shape
        taps.append(Tap(name, channels, height, width, output._version != version))
    return taps
