"""Pruning of Inception networks: the order of channels, and the weights that are left.

A width of the architecture is the number of output channels of one layer, or of several that must agree: both layers of
a factorised 5x5 branch; in a large stem the 7x7 and the 1x1 convolution, and the 3x3 with three times as many. Of these
each layer keeps its own most important channels. A branch may go altogether, and takes its reduce along; a cell keeps
one branch, and the stem and the reduces of branches that are there keep a channel.

The channels of a cell's output are followed through the concatenation: what reads it (the next cell's siblings and
pooling branch, or the last linear layer) loses the same ones. Poolings between cells change no channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.inception import Cell, CellArchitecture, ConvUnit, InceptionArchitecture, InceptionNetwork

Width = tuple[int, str]
"""A width of the architecture: the number of the cell by depth (`STEM` for the stem) and the field."""

STEM = -1
BRANCHES = ("one", "three", "five", "pool")
"""In the order in which a cell concatenates them."""

SIBLINGS = ("one", "three_reduce", "five_reduce")
"""In the order in which they stand in the one convolution that they are."""


def prune_path(
    architecture: InceptionArchitecture, network: InceptionNetwork, step: int
) -> list[InceptionArchitecture]:
    """Ever narrower architectures, each without the group of channels that matters least to the one before.

    A group is what brings one width down to the next multiple of `step`. It matters as much as its channels do on the
    average (see `importance`), compared with the layer's average, and the more, the less would be left of the layer: so
    widths shrink alike, and branches go last.
    """
    queue = [
        (matters, width, left)
        for width, layers in _layers(network, architecture).items()
        for matters, left in _groups(layers, _channels(architecture, width), step, width[1] in BRANCHES)
    ]
    queue.sort(key=lambda group: group[0])  # stable: the groups of one width leave in their order
    found = [architecture]
    for _, width, left in queue:
        smaller = _without(found[-1], width, left)
        if smaller is not None:
            found.append(smaller)
    return found[1:]


def importance(unit: ConvUnit) -> Tensor:
    """How much each output channel matters, ``(channels,)``.

    The length of its batch norm's (scale, shift), of which the scale alone is Network Slimming's measure (Liu et al.
    2017, arXiv:1708.06519); without batch norm the L1 norm of its filter (Li et al. 2016, arXiv:1608.08710) and its
    bias. With shift or bias in it, a channel that matters nothing is 0 everywhere.
    """
    if isinstance(norm := getattr(unit, "norm", None), nn.BatchNorm2d):
        return torch.hypot(norm.weight.detach(), norm.bias.detach())
    assert unit.conv.bias is not None
    return unit.conv.weight.detach().abs().sum((1, 2, 3)) + unit.conv.bias.detach().abs()


def pruned_weights(
    architecture: InceptionArchitecture, network: InceptionNetwork, smaller: InceptionArchitecture
) -> dict[str, Tensor]:
    """The state dict of `smaller`: of each layer of `network`, the most important channels."""
    layers = _layers(network, architecture)

    def kept(number: int, field: str) -> list[Tensor]:
        width = (number, field)
        if not _channels(smaller, width):
            return []
        return [_kept(one, _channels(smaller, width), _channels(architecture, width)) for one in layers[width]]

    state, channels = _stem_state(network.stem, kept(STEM, "stem"))
    for number, name in enumerate(network.cell_names):
        cell = network.get_submodule(name)
        assert isinstance(cell, Cell)
        fields = {field: kept(number, field) for field in {*BRANCHES, *SIBLINGS}}
        own, channels = _cell_state(cell, _cells(architecture)[number], fields, channels)
        state |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    pixels = network.linear.in_features // _cells(architecture)[-1].width
    columns = (channels[:, None] * pixels + torch.arange(pixels, device=channels.device)).flatten()
    state["linear.weight"] = network.linear.weight.detach()[:, columns].clone()
    state["linear.bias"] = network.linear.bias.detach().clone()
    return state


def _layers(network: InceptionNetwork, architecture: InceptionArchitecture) -> dict[Width, list[Tensor]]:
    """The importance of the channels of each layer that makes up a width."""
    found = {(STEM, "stem"): [importance(unit) for unit in network.stem if isinstance(unit, ConvUnit)]}
    for number, name in enumerate(network.cell_names):
        cell = network.get_submodule(name)
        assert isinstance(cell, Cell)
        own: dict[str, list[Tensor]] = {}
        if sum(cell.shares):
            parts = torch.split(importance(cell.siblings), list(cell.shares))
            own |= {field: [part] for field, part in zip(SIBLINGS, parts, strict=True)}
        if cell.shares[1]:
            own["three"] = [importance(cell.three)]
        if cell.shares[2]:
            own["five"] = [importance(unit) for unit in _units(cell.five)]
        if cell.pools:
            own["pool"] = [importance(unit) for unit in _units(cell.pool)]
        found |= {(number, field): layers for field, layers in own.items() if _channels(architecture, (number, field))}
    return found


def _groups(layers: Sequence[Tensor], width: int, step: int, may_go: bool) -> Iterator[tuple[float, int]]:
    """(importance, channels left) of each group of a width that may leave, those that matter least first."""
    each = [(one / one.mean().clamp(min=1e-30)).sort().values.view(width, -1).mean(1) for one in layers]
    channels = torch.stack(each).mean(0)
    before = width
    for left in range((width - 1) // step * step, -1 if may_go else 0, -step):
        yield float(channels[width - before : width - left].mean()) * width / max(left, 0.5), left
        before = left


def _without(architecture: InceptionArchitecture, width: Width, left: int) -> InceptionArchitecture | None:
    """With so many channels left of a width; None where that cannot be, or they went with their branch already."""
    number, field = width
    if number == STEM:
        return architecture.model_copy(update={"stem": left})
    cells = _cells(architecture)
    values = cells[number].model_dump()
    if not values[field]:
        return None
    values[field] = left
    if not any(values[branch] for branch in BRANCHES):
        return None
    cells[number] = CellArchitecture(**values)
    rest = iter(cells)
    stages = tuple(tuple(next(rest) for _ in stage) for stage in architecture.stages)
    return InceptionArchitecture(stem=architecture.stem, stages=stages)


def _kept(layer: Tensor, channels: int, of: int) -> Tensor:
    """The numbers of a layer's most important channels, ascending: a share of them, `channels` of a width of `of`."""
    count = len(layer) // of * channels
    return layer.sort(stable=True).indices[len(layer) - count :].sort().values


def _stem_state(stem: nn.Sequential, kept: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """What is left of the stem, and the channels of its output that are."""
    units = {name: unit for name, unit in stem.named_children() if isinstance(unit, ConvUnit)}
    return _chain(units, "stem.", kept, torch.arange(units["first"].conv.in_channels, device=kept[0].device))


def _cell_state(
    cell: Cell, architecture: CellArchitecture, kept: Mapping[str, list[Tensor]], inputs: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """What is left of a cell that reads these channels, and the channels of its output that are."""
    state: dict[str, Tensor] = {}
    first = [one + start for field, start in zip(SIBLINGS, _starts(cell.shares), strict=True) for one in kept[field]]
    if first:
        state |= _sliced(cell.siblings, "siblings.", torch.cat(first), inputs)
    if kept["three"]:
        state |= _sliced(cell.three, "three.", kept["three"][0], kept["three_reduce"][0])
    if kept["five"]:
        own, _ = _chain(dict(cell.five.named_children()), "five.", kept["five"], kept["five_reduce"][0])
        state |= own
    if kept["pool"]:
        state |= _sliced(_units(cell.pool)[0], "pool.1.", kept["pool"][0], inputs)
    starts = _starts([getattr(architecture, branch) for branch in BRANCHES])
    outputs = [kept[branch][-1] + start for branch, start in zip(BRANCHES, starts, strict=True) if kept[branch]]
    return state, torch.cat(outputs)


def _chain(
    units: Mapping[str, Any], prefix: str, kept: Sequence[Tensor], inputs: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """What is left of layers each of which reads the one before, and the channels of the last that are."""
    state: dict[str, Tensor] = {}
    for (name, unit), outputs in zip(units.items(), kept, strict=True):
        state |= _sliced(unit, f"{prefix}{name}.", outputs, inputs)
        inputs = outputs
    return state, inputs


def _sliced(unit: ConvUnit, prefix: str, outputs: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    """A unit's state dict for these of its output and input channels."""
    state = {}
    for name, tensor in unit.state_dict().items():
        if tensor.dim():  # batch norm's counter of batches has no channels
            tensor = tensor[outputs]
        if tensor.dim() == 4:
            tensor = tensor[:, inputs]
        state[f"{prefix}{name}"] = tensor.clone()
    return state


def _units(branch: nn.Sequential) -> list[ConvUnit]:
    return [unit for unit in branch if isinstance(unit, ConvUnit)]


def _cells(architecture: InceptionArchitecture) -> list[CellArchitecture]:
    return [cell for stage in architecture.stages for cell in stage]


def _channels(architecture: InceptionArchitecture, width: Width) -> int:
    number, field = width
    return architecture.stem if number == STEM else int(getattr(_cells(architecture)[number], field))


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where parts of these lengths begin, one after the other."""
    return [0, *itertools.accumulate(lengths)][:-1]
