"""A dry run of a network, and hooks that exist only during one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import SpaceError


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


@dataclass(frozen=True)
class DryRun:
    """What a dry run found: a tap at each named module, or why there is none; the logits' shape after N; FLOPs.

    `positions` maps each parameter that took part to where it was used: the number of a named module for those in it
    and those since the one before; -1 before the first (the stem), their count after the last (the head).
    """

    taps: Mapping[str, Tap | SpaceError]
    logits: tuple[int, ...]
    flops: int
    positions: Mapping[str, int]

    @property
    def dense(self) -> bool:
        """Whether the logits are a map, one answer a pixel."""
        return len(self.logits) == 3

    @property
    def sides(self) -> tuple[int, ...]:
        """The shorter side of each map in pixels, by depth; 0 where there is none."""
        return tuple(min(tap.height, tap.width) if isinstance(tap, Tap) else 0 for tap in self.taps.values())

    def tap(self, name: str) -> Tap:
        """The tap at a module; raises SpaceError where it takes no part or gives no map."""
        found = self.taps[name]
        if isinstance(found, SpaceError):
            raise found
        return found


def device_of(network: nn.Module) -> torch.device:
    """Where the network's parameters are."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def logits_of(output: Any) -> Tensor:
    """The main logits of whatever a network returns: a tensor, the first of several, or ``"out"`` of a mapping."""
    if isinstance(output, Mapping):
        output = output.get("out", output.get("logits"))
    elif isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor):
        raise SpaceError(f"towers need a network that gives logits, got {type(output).__name__}")
    return output


def dry_run(network: nn.Module, names: Sequence[str], images: Tensor) -> DryRun:
    """A dry run over the named modules, by depth, that changes neither state, mode nor random state.

    It runs a copy, in training mode, because some modules (dropout) change a tensor in place only then. Raises
    SpaceError for a module that is not there.
    """
    device = device_of(network)
    copied = copy.deepcopy(network).train()
    missing = [name for name in names if name not in dict(network.named_modules())]
    if missing:
        raise SpaceError(f"network {type(network).__name__} has no module {missing[0]!r}")
    heard: dict[str, tuple[Any, int]] = {}
    order = _Order(copied, names)

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            heard[name] = output, getattr(output, "_version", 0)

        return hook

    for name in names:
        copied.get_submodule(name).register_forward_hook(note(name))
    counter = FlopCounterMode(display=False)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad(), counter:
        output = logits_of(copied(images.to(device)))
    taps = {name: _tap(name, *heard.get(name, (None, 0))) for name in names}
    return DryRun(taps, tuple(output.shape[1:]), counter.get_total_flops() // len(images), order.positions)


def _tap(name: str, output: Any, version: int) -> Tap | SpaceError:
    if output is None:
        return SpaceError(f"cell {name!r} takes no part in the network's forward")
    if not isinstance(output, Tensor) or output.dim() != 4:
        return SpaceError(f"cell {name!r} must give a tensor (N, C, H, W) to carry a tower")
    _, channels, height, width = output.shape
    return Tap(name, channels, height, width, output._version != version)


class _Order:
    """Listens to a copy of the network, and notes where each parameter is used."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self.positions: dict[str, int] = {}
        self._reached = -1
        self._last = len(names)
        for name, module in network.named_modules():
            own = [f"{name}.{p}" if name else p for p, _ in module.named_parameters(recurse=False)]
            if own:
                module.register_forward_pre_hook(self._used(own))
        for number, name in enumerate(names):
            module = network.get_submodule(name)
            module.register_forward_pre_hook(self._begins(number), prepend=True)
            module.register_forward_hook(self._ends(number))

    def _used(self, own: Sequence[str]) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            for name in own:
                self.positions.setdefault(name, self._reached)

        return hook

    def _begins(self, number: int) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            for name, position in self.positions.items():
                if position == self._last:  # used since the cell before: this cell's, not the head's
                    self.positions[name] = number
            self._reached = number

        return hook

    def _ends(self, number: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._reached = self._last

        return hook


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
