"""Pruning of Inception-ResNet networks: the order of channels, and the weights that are left.

Channels that are added to each other leave together. A *stream* is what the stem or a cell gives, together with what
later cells add to it through shortcuts without a projection. The borders between the branches of these cells cut the
stream into *groups*: the channels of a group lie in one branch of every cell. The layers inside of a branch are groups
too. A group that shrinks makes the widths smaller that it is a part of, so what is left is an architecture again.

Every group keeps a channel, so that no branch goes. A shortcut with a projection keeps it: widths that would make it an
identity are skipped. In a large stem (see `inception_resnet`) each layer keeps its own most important channels; where a
shortcut without a projection follows it, its stream is left as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_spaces.inception_resnet import (
    Branch,
    Cell,
    CellNetwork,
    ConvUnit,
    InceptionResNetArchitecture,
    InceptionResNetNetwork,
    Layer,
    Stage,
)

Width = tuple[int, int, int]
"""A width of the architecture: cell by depth, branch of the cell (as in `Cell.branches`), layer of the branch."""

STEM: Width = (-1, 0, 0)


@dataclass(frozen=True)
class Segment:
    """Channels of a stream that one layer writes, from `start` up to `stop`; a projection has no width."""

    unit: ConvUnit
    start: int
    stop: int
    width: Width | None = None


@dataclass(frozen=True)
class Stream:
    """Channels that are added to each other. Each writer is a list of segments that covers all of them."""

    writers: list[list[Segment]]

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Where each group begins and ends."""
        ends = {segment.stop for writer in self.writers for segment in writer}
        return list(itertools.pairwise(sorted({0, *ends})))

    def scores(self, start: int, stop: int) -> Tensor:
        """How much the channels of a group matter."""
        parts = [
            importance(segment.unit)[start - segment.start : stop - segment.start]
            for segment in self._covering(start, stop)
        ]
        return torch.stack(parts).mean(0)

    def widths(self, start: int, stop: int) -> tuple[Width, ...]:
        """The widths that a group is a part of."""
        return tuple(segment.width for segment in self._covering(start, stop) if segment.width is not None)

    def kept(self, widths: Mapping[Width, int]) -> Tensor:
        """The channels that are left in an architecture of these widths."""
        moved = {0: 0}
        for writer in self.writers:
            place = 0
            for segment in writer:
                if segment.width is not None:
                    place += widths[segment.width]
                    moved[segment.stop] = place
        return torch.cat(
            [
                start + most_important(self.scores(start, stop), moved[stop] - moved[start])
                for start, stop in self.groups
            ]
        )

    def _covering(self, start: int, stop: int) -> list[Segment]:
        segments = itertools.chain.from_iterable(self.writers)
        return [segment for segment in segments if segment.start <= start and stop <= segment.stop]


@dataclass(frozen=True)
class Group:
    """Channels of which the least important leave first: how much each matters, and the widths they are a part of."""

    scores: Tensor
    widths: tuple[Width, ...]


def prune_path(
    architecture: InceptionResNetArchitecture, network: InceptionResNetNetwork, step: int
) -> list[InceptionResNetArchitecture]:
    """Ever narrower architectures, each without the channels that matter least to the one before.

    What leaves at once brings a group down to the next multiple of `step`. It matters as much as its channels do on the
    average (see `importance`), and the more, the less would be left of the group: so widths shrink alike.
    """
    groups = list(_groups(network))
    queue = [
        (matters, number, left)
        for number, group in enumerate(groups)
        for matters, left in _departures(group.scores, step)
    ]
    queue.sort(key=lambda departure: departure[0])  # stable: those of one group leave in their order
    sizes = [len(group.scores) for group in groups]
    architectures: list[InceptionResNetArchitecture] = []
    for _, number, left in queue:
        before, sizes[number] = sizes[number], left
        smaller = _resized(architecture, groups, sizes)
        if _keeps_projections(network, smaller):
            architectures.append(smaller)
        else:
            sizes[number] = before
    return architectures


def pruned_weights(network: InceptionResNetNetwork, smaller: InceptionResNetArchitecture) -> dict[str, Tensor]:
    """The state dict of `smaller`, one of `prune_path`: of each layer of `network`, the most important channels."""
    widths = _widths(smaller)
    names = {module: name for name, module in network.named_modules()}
    state: dict[str, Tensor] = {}

    def put(unit: ConvUnit, outputs: Tensor, inputs: Tensor) -> None:
        state.update(_sliced(unit, f"{names[unit]}.", outputs, inputs))

    stem, *others = _streams(network)
    streams = iter(others)
    units = _units(network.stem)
    channels = torch.arange(units[0].conv.in_channels, device=units[0].conv.weight.device)
    for unit in units:
        alone = unit.conv.out_channels // units[0].conv.out_channels * widths[STEM]
        outputs = stem.kept(widths) if len(units) == 1 else most_important(importance(unit), alone)
        put(unit, outputs, channels)
        channels = outputs
    for place, cell in enumerate(_cells(network)):
        outputs = channels if _is_identity(cell) else next(streams).kept(widths)
        ends: dict[ConvUnit, Tensor] = {}
        for branch, units in enumerate(_branches(cell)):
            inputs = channels
            for layer, unit in enumerate(units[:-1]):
                inner = most_important(importance(unit), widths[place, branch, layer])
                put(unit, inner, inputs)
                inputs = inner
            ends[units[-1]] = inputs
        for segment in itertools.chain.from_iterable(_writers(place, cell)):
            own = outputs[(outputs >= segment.start) & (outputs < segment.stop)] - segment.start
            put(segment.unit, own, ends.get(segment.unit, channels))
        channels = outputs
    state["linear.weight"] = network.linear.weight.detach()[:, channels].clone()
    state["linear.bias"] = network.linear.bias.detach().clone()
    return state


def importance(unit: ConvUnit) -> Tensor:
    """How much each output channel matters, ``(channels,)``; 1 is the average of the layer.

    The length of its batch norm's (scale, shift), of which the scale alone is Network Slimming's measure (Liu et al.
    2017, arXiv:1708.06519). With the shift in it, a channel that matters nothing is 0 everywhere.
    """
    length = torch.hypot(unit.norm.weight.detach(), unit.norm.bias.detach())
    return length / length.mean().clamp(min=1e-30)


def most_important(scores: Tensor, count: int) -> Tensor:
    """The numbers of so many channels, ascending."""
    return scores.sort(stable=True).indices[len(scores) - count :].sort().values


# ------------------------------------------------------------------------------------------------- channels


def _groups(network: InceptionResNetNetwork) -> Iterator[Group]:
    """All groups that may shrink."""
    stem, *streams = _streams(network)
    units = _units(network.stem)
    if len(units) == 1:
        streams.append(stem)
    elif len(stem.writers) == 1:
        width = units[0].conv.out_channels
        each = [importance(unit).sort().values.view(width, -1).mean(1) for unit in units]
        yield Group(torch.stack(each).mean(0), (STEM,))
    for stream in streams:
        for start, stop in stream.groups:
            yield Group(stream.scores(start, stop), stream.widths(start, stop))
    for place, cell in enumerate(_cells(network)):
        for branch, layers in enumerate(_branches(cell)):
            for layer, unit in enumerate(layers[:-1]):
                yield Group(importance(unit), ((place, branch, layer),))


def _streams(network: InceptionResNetNetwork) -> list[Stream]:
    """What the stem gives, and what each cell gives that has no shortcut or one with a projection."""
    last = _units(network.stem)[-1]
    streams = [Stream([[Segment(last, 0, last.conv.out_channels, STEM)]])]
    for place, cell in enumerate(_cells(network)):
        if not _is_identity(cell):
            streams.append(Stream([]))
        streams[-1].writers.extend(_writers(place, cell))
    return streams


def _writers(place: int, cell: CellNetwork) -> Iterator[list[Segment]]:
    """The last layers of the branches, and the projection where there is one."""
    segments, start = [], 0
    for branch, units in enumerate(_branches(cell)):
        stop = start + units[-1].conv.out_channels
        segments.append(Segment(units[-1], start, stop, (place, branch, len(units) - 1)))
        start = stop
    yield segments
    if (projection := _projection(cell)) is not None:
        yield [Segment(projection, 0, start)]


def _departures(scores: Tensor, step: int) -> Iterator[tuple[float, int]]:
    """(importance, channels left) of each part of a group that may leave, those that matter least first."""
    channels = scores.sort().values
    before = width = len(channels)
    for left in range((width - 1) // step * step, 0, -step):
        yield float(channels[width - before : width - left].mean()) * width / left, left
        before = left


def _keeps_projections(network: InceptionResNetNetwork, smaller: InceptionResNetArchitecture) -> bool:
    """Whether shortcuts that have a projection for their widths need it in the smaller network as well."""
    units = _units(network.stem)
    inputs = units[-1].conv.out_channels // units[0].conv.out_channels * smaller.stem
    for cell, own in zip(smaller.cells, _cells(network), strict=True):
        projection = _projection(own)
        if projection is not None and projection.conv.stride == (1, 1) and inputs == cell.width:
            return False
        inputs = cell.width
    return True


# ------------------------------------------------------------------------------------------------- networks


def _cells(network: InceptionResNetNetwork) -> list[CellNetwork]:
    cells = [network.get_submodule(name) for name in network.cell_names]
    return [cell for cell in cells if isinstance(cell, CellNetwork)]


def _branches(cell: CellNetwork) -> list[list[ConvUnit]]:
    """The layers of each branch, in the order of `Cell.branches`."""
    return [_units(branch) for branch in (cell.main, *cell.sides, *([cell.pool] if cell.has_pool else []))]


def _units(layers: nn.Module) -> list[ConvUnit]:
    return [unit for unit in layers.children() if isinstance(unit, ConvUnit)]


def _is_identity(cell: CellNetwork) -> bool:
    return cell.has_shortcut and _projection(cell) is None


def _projection(cell: CellNetwork) -> ConvUnit | None:
    shortcut = cell.shortcut if cell.has_shortcut else None
    return shortcut if isinstance(shortcut, ConvUnit) else None


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


# --------------------------------------------------------------------------------------------- architectures


def _widths(architecture: InceptionResNetArchitecture) -> dict[Width, int]:
    """Every width of an architecture."""
    widths = {STEM: architecture.stem}
    for place, cell in enumerate(architecture.cells):
        for branch, layers in enumerate(cell.branches):
            widths |= {(place, branch, number): layer.width for number, layer in enumerate(layers)}
    return widths


def _resized(
    architecture: InceptionResNetArchitecture, groups: Sequence[Group], sizes: Sequence[int]
) -> InceptionResNetArchitecture:
    """The architecture with groups of these sizes; widths that no group is a part of stay."""
    widths: dict[Width, int] = {}
    for group, size in zip(groups, sizes, strict=True):
        for width in group.widths:
            widths[width] = widths.get(width, 0) + size
    widths = _widths(architecture) | widths
    places = itertools.count()
    stages = tuple(
        Stage(reduction=stage.reduction, cells=tuple(_resized_cell(cell, next(places), widths) for cell in stage.cells))
        for stage in architecture.stages
    )
    return InceptionResNetArchitecture(**dict(architecture) | {"stem": widths[STEM], "stages": stages})


def _resized_cell(cell: Cell, place: int, widths: Mapping[Width, int]) -> Cell:
    branches: list[Branch] = [
        tuple(Layer(kind=layer.kind, width=widths[place, branch, number]) for number, layer in enumerate(layers))
        for branch, layers in enumerate(cell.branches)
    ]
    pool = branches.pop()[-1].width if cell.pool else 0
    return Cell(
        main=branches[0], sides=tuple(branches[1:]), pool=pool, pool_kind=cell.pool_kind, shortcut=cell.shortcut
    )
