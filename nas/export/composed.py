"""Exports that are more than one network: an ensemble, and a network with early exits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nas.auxiliary import Tap, listening


class Ensemble(nn.Module):
    """Images to the log of the members' mean probability, (N, classes): softmax of it is the mean."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        each = torch.stack([member(images).log_softmax(1) for member in self.members])
        return each.logsumexp(0) - math.log(len(self.members))


class EarlyExits(nn.Module):
    """Images to the network's logits and, by name, each tower's.

    As in training, the network carries hooks only during the forward: torch.export and torch.fx run it once and keep
    what the hooks pass on.
    """

    def __init__(self, network: nn.Module, taps: Sequence[Tap], towers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.towers = nn.ModuleList(towers)
        self.taps = tuple(replace(tap, changed_later=True) for tap in taps)  # folding may bring changes in place

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs beside ``logits``, by depth."""
        return tuple(f"exit_{tap.module.replace('.', '_')}" for tap in self.taps)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with listening(self.network, self.taps) as heard:
            logits = self.network(images)
        exits = (tower(heard[tap.module]) for tap, tower in zip(self.taps, self.towers, strict=True))
        return {"logits": logits, **dict(zip(self.names, exits, strict=True))}
