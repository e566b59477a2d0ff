"""Weights to start a training from: reads them, checks them against a network, and loads them.

A file is safetensors and holds a network's plain state dict: what retraining writes, or an export's
``model.safetensors``. Where the label set differs, the last layer stays as freshly initialised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nas.errors import InputError, SpaceError
from nas.space import Architecture, SearchSpace, Shape

BESIDE = "architecture.json"
"""What lies beside an exported file and names its architecture."""


@dataclass(frozen=True)
class Weights:
    """A safetensors file: its bytes, which cross to workers, and its name for messages."""

    content: bytes
    name: str = "weights"
    beside: str | None = None

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that name these bytes."""
        return hashlib.sha256(self.content).hexdigest()[:16]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return safetensors.torch.load(self.content)

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        length = int.from_bytes(self.content[:8], "little")
        return dict(json.loads(self.content[8 : 8 + length]).get("__metadata__") or {})

    @property
    def classes(self) -> list[str] | None:
        """The labels that the network was trained on, where the file says them."""
        text = self.metadata.get("classes")
        return None if text is None else list(json.loads(text))

    def __reduce__(self) -> tuple[Any, ...]:
        return Weights, (self.content, self.name, self.beside)  # without what is cached

    def architecture(self, kind: type[Architecture]) -> Architecture | None:
        """The architecture that the file, or the ``architecture.json`` beside it, names; None where neither does."""
        text = self.metadata.get("architecture")
        if text is None and self.beside is not None:
            try:
                table = json.loads(self.beside)
            except ValueError:
                raise InputError(f"the {BESIDE} beside {self.name!r} is not JSON") from None
            text = json.dumps(table.get("architecture", table) if isinstance(table, dict) else table)
        return None if text is None else kind.from_json(text)


def read(path: Path) -> Weights:
    """The weights in a file; raises InputError where it is no safetensors file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read weights {str(path)!r}: {error.strerror}") from None
    beside = path.with_name(BESIDE)
    text = beside.read_text(encoding="utf-8") if beside.is_file() else None
    weights = Weights(content, path.name, text)
    try:
        _ = weights.tensors
    except safetensors.SafetensorError:
        raise InputError(f"weights {str(path)!r} are not a safetensors file") from None
    return weights


def pack(module: nn.Module, **metadata: Any) -> bytes:
    """A module's state dict as safetensors bytes; what is not text in the metadata is written as JSON."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    said = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return safetensors.torch.save(state, metadata=said or None)


def start_from(
    weights: Weights,
    network: nn.Module,
    space: SearchSpace,
    architecture: Architecture,
    input_shape: Shape,
    classes: tuple[str, ...],
) -> tuple[str, ...]:
    """Put the weights into a network of the space, in place; returns the names of the tensors that stay as they are.

    These are the last layer's, and only where the labels are not the same. Raises InputError naming the first tensor
    that does not fit; the network is then as it was.
    """
    own, found = network.state_dict(), weights.tensors
    last = _last_layer(space, architecture, input_shape, len(classes))
    for name, tensor in own.items():
        if name not in found:
            folded = weights.metadata.get("batch norm", "").startswith("folded")
            hint = " (its batch norm is folded: take the plain weights)" if folded else ""
            raise InputError(f"weights {weights.name!r} do not fit: they have no {name!r}{hint}")
        here, there = tuple(tensor.shape), tuple(found[name].shape)
        fixed = last.get(name, range(len(here)))
        if len(here) != len(there) or any(here[i] != there[i] for i in fixed):
            raise InputError(f"weights {weights.name!r} do not fit: {name!r} is {there} there, but {here} here")
    for name in found:
        if name not in own:
            raise InputError(f"weights {weights.name!r} do not fit: this network has no {name!r}")
    other_number = any(own[name].shape != found[name].shape for name in last)
    other_names = weights.classes is not None and tuple(weights.classes) != classes
    new = set(last) if other_number or other_names else set()
    with torch.no_grad():
        for name, tensor in own.items():
            if name not in new:
                tensor.copy_(found[name])
    return tuple(name for name in own if name in new)


def _last_layer(
    space: SearchSpace, architecture: Architecture, input_shape: Shape, classes: int
) -> dict[str, list[int]]:
    """The tensors whose shape follows the number of classes, each with the dimensions that do not."""
    with torch.random.fork_rng(devices=[]):
        one, more = (_shapes(space, architecture, input_shape, classes + extra) for extra in (0, 1))
    return {
        name: [i for i, size in enumerate(shape) if size == more[name][i]]
        for name, shape in one.items()
        if shape != more[name]
    }


def _shapes(space: SearchSpace, architecture: Any, input_shape: Shape, classes: int) -> dict[str, tuple[int, ...]]:
    try:
        with torch.device("meta"):
            network = space.build(architecture, input_shape, classes)
    except SpaceError:
        raise
    except Exception:  # a third-party network may not live on the meta device
        network = space.build(architecture, input_shape, classes)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
