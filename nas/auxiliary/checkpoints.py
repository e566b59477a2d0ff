"""Checkpoints of other projects, which may hold the network and its towers in one state dict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel, DistributedDataParallel and torch.compile put before every key."""

TOWER = re.compile(r"aux\d*|aux[-_]\w+|auxlogits|auxil+i?ary\w*", re.IGNORECASE)
"""What towers are called: aux1, AuxLogits and aux_classifier in torchvision, auxiliary_head in DARTS and NNI."""


def strip(state_dict: Mapping[str, Value], towers: Iterable[str] | None = None) -> dict[str, Value]:
    """The bare network's part of a state dict, under the network's own names.

    Takes the state dict of a `DeepSupervision`, or one in which towers stand among the network's own modules. There,
    towers are known by their usual names, or are the modules named in `towers`. Wrappers' prefixes are taken off.
    """
    state = dict(state_dict)
    while state and (prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), "")):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    if towers is not None:
        named = tuple(f"{name}." for name in towers)
        return {key: value for key, value in state.items() if not key.startswith(named)}
    if state and all(key.startswith(("network.", "towers.")) for key in state):
        return {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    return {
        key: value for key, value in state.items() if not any(TOWER.fullmatch(part) for part in key.split(".")[:-1])
    }
