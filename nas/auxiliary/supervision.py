"""The wrapper around a network and its towers, and the losses that it gives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedParameter

from nas.auxiliary import reach as reaching
from nas.auxiliary import towers as kinds
from nas.auxiliary.taps import DryRun, Tap, device_of, dry_run, listening, logits_of
from nas.errors import ConfigError

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From logits and labels to a mean loss, a scalar."""


@dataclass(frozen=True)
class Tower:
    """The settings of one tower.

    Attributes:
        kind: Kind of tower: ``light``, ``linear``, ``googlenet``, ``darts`` or ``fcn``.
        weight: Weight of its loss.
        labels: For each class its group, from 0: ``(0, 0, 1)`` for three classes in two groups. None: the network's
            own labels.
    """

    kind: str = "light"
    weight: float = 0.3
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in kinds.KINDS:
            raise ConfigError(f"a tower's kind must be one of {', '.join(kinds.KINDS)}, got {self.kind!r}")
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ConfigError(f"a tower's weight must be 0 or more, got {self.weight!r}")
        if self.labels is not None and not (self.labels and set(self.labels) == set(range(max(self.labels) + 1))):
            raise ConfigError(f"a tower's labels must map classes onto 0, 1, 2 ..., got {list(self.labels)}")


@dataclass(frozen=True)
class Teaching:
    """How all towers of a network teach: the course of their weights, and how far their gradients reach."""

    schedule: str = "constant"
    reach: str = "full"
    main_reach: int | None = None
    share: float = 0.1

    def __post_init__(self) -> None:
        course(self.schedule, 0.0)
        if reaching.relay_length(self.reach) is None and self.main_reach is not None:
            raise ConfigError("main_reach goes with relay:k only")


def course(schedule: str, progress: float) -> float:
    """Factor on the towers' weights after a share `progress` (0 to 1) of the steps.

    constant; linear: 1 - t/T; cosine; ``off:f``: 1 until the share f, then 0.
    """
    if schedule.startswith("off:"):
        return float(progress < float(schedule.removeprefix("off:")))
    courses = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    if schedule not in courses:
        raise ConfigError(f"a schedule must be constant, linear, cosine or off:f, got {schedule!r}")
    return courses[schedule]


@dataclass(frozen=True)
class Losses:
    """The main loss, the loss of each tower, and the weights of these in the total."""

    main: Tensor
    towers: tuple[Tensor, ...]
    weights: tuple[float, ...]
    model: DeepSupervision = field(repr=False)

    @property
    def total(self) -> Tensor:
        """The loss to minimise. It includes towers of weight 0: DDP fails for parameters without a gradient."""
        total = self.main
        for weight, loss in zip(self.weights, self.towers, strict=True):
            total = total + weight * loss
        return total

    def backward(self, parallel: nn.Module | None = None) -> None:
        """Compute the gradients, within the gradient scope of each loss.

        Args:
            parallel: With ``relay:k`` and DistributedDataParallel: that module. Call this under its ``no_sync()``.
        """
        parameters = self.model.reached()
        if parameters is None:
            self.total.backward()  # type: ignore[no-untyped-call]
            return
        weighted = [weight * loss for weight, loss in zip(self.weights, self.towers, strict=True)]
        reaching.backward([self.main, *weighted], parameters, parallel)


class DeepSupervision(nn.Module):
    """A network and its towers, side by side.

    ``forward((N, C, H, W))`` returns the output of the network (its logits) and a list with the logits of each tower.
    Towers that are attached without an example are built at the first forward. Until then their parameters are lazy;
    an optimizer may already hold them.

    Attributes:
        network: The bare network, unchanged.
        names: Names of the towers in the recorded metrics.
        cells: Numbers of the cells with a tower; empty if the towers were attached by module name.
        share: FLOPs of the towers divided by those of the bare network.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Sequence[tuple[str, Tower]],
        teaching: Teaching,
        order: Sequence[str],
        cells: tuple[int, ...] = (),
        num_classes: int | None = None,
        seed: int = 0,
        lazy: bool = False,
    ) -> None:
        """`settings` pairs a module's name with its tower; `order` names the cells by depth, tapped ones among them."""
        super().__init__()
        self.network = network
        self.settings = tuple(settings)
        self.teaching = teaching
        self.cells = cells
        self.names = tuple(f"tower{cell}" for cell in cells) or tuple(name for name, _ in settings)
        self.taps: tuple[Tap, ...] = ()
        self.share = 0.0
        self._order = tuple(order)
        self._num_classes = num_classes
        self._seed = seed
        self._segments: tuple[tuple[str, ...], ...] | None = None
        self.built = False
        self.towers = nn.ModuleList(_Unbuilt(device_of(network)) for _ in self.settings if lazy)

    def forward(self, x: Tensor) -> tuple[Any, list[Tensor]]:
        if not self.built:
            _uncompiled(self.build)(x)
        if not self.towers:
            return self.network(x), []
        with listening(self.network, self.taps) as heard:
            output = self.network(x)
        tapped = [heard[tap.module] for tap in self.taps]
        if self.teaching.reach == "detached":
            tapped = [one.detach() for one in tapped]
        return output, [tower(one) for tower, one in zip(self.towers, tapped, strict=True)]

    def losses(
        self,
        outputs: tuple[Any, Sequence[Tensor]],
        labels: Tensor,
        progress: float = 0.0,
        criterion: Criterion = F.cross_entropy,
    ) -> Losses:
        """The losses of a forward's outputs, after a share `progress` (0 to 1) of the steps."""
        output, answers = outputs
        factor = course(self.teaching.schedule, progress)
        towers = tuple(criterion(answer, self.labels(number, labels)) for number, answer in enumerate(answers))
        weights = tuple(factor * tower.weight for _, tower in self.settings)
        return Losses(criterion(logits_of(output), labels), towers, weights, self)

    def labels(self, number: int, labels: Tensor) -> Tensor:
        """What a tower is taught where the network is taught `labels`; values that are no class (ignored ones) stay."""
        groups = self.settings[number][1].labels
        if groups is None:
            return labels
        table = self.get_buffer(f"groups{number}")
        classes = labels.long()
        return torch.where(classes < len(groups), table[classes.clamp(max=len(groups) - 1)], classes)

    def reached(self) -> list[list[nn.Parameter]] | None:
        """The parameters that each loss reaches, the main loss first; None where one backward does it all."""
        if self._segments is None:
            return None
        own = dict(self.network.named_parameters())
        found = [[own[name] for name in names if own[name].requires_grad] for names in self._segments]
        for inputs, tower in zip(found[1:], self.towers, strict=True):
            inputs += tower.parameters()
        return found

    def build(self, example: Tensor) -> None:
        """Build the towers to fit a batch of images; neither network nor random state change."""
        images = example.detach()[:2]
        if len(images) < 2:  # batch norm wants more than one value
            images = torch.cat([images, images])
        self.build_from(dry_run(self.network, self._order, images))

    def build_from(self, found: DryRun) -> None:
        """Build the towers to fit what a dry run over all cells found.

        Where even the smallest size of a tower is over its share of the network's FLOPs, there is none, with a warning.
        """
        device = device_of(self.network)
        kept = []
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)  # torch.manual_seed would reseed the GPUs too
            for number, (name, tower) in enumerate(self.settings):
                tap = found.tap(name)
                made = kinds.make(tower.kind, tap, self._classes(tower, found), found.dense, self._budget(found))
                if made is not None:
                    module, flops = made
                    kept.append((number, tap, flops, module.to(device)))
        if len(kept) < len(self.settings):
            warnings.warn(
                f"{len(self.settings) - len(kept)} of {len(self.settings)} towers left out: "
                f"over {self.teaching.share:.0%} of the network's FLOPs even at their smallest",
                stacklevel=2,
            )
        if self.towers:
            kept = [(number, tap, flops, _adopted(one, self.towers[number])) for number, tap, flops, one in kept]
        self.settings = tuple(self.settings[number] for number, *_ in kept)
        self.names = tuple(self.names[number] for number, *_ in kept)
        self.cells = tuple(self.cells[number] for number, *_ in kept if self.cells)
        self.taps = tuple(tap for _, tap, _, _ in kept)
        self.share = sum(flops for *_, flops, _ in kept) / max(1, found.flops)
        self.towers = nn.ModuleList(module for *_, module in kept).train(self.training)
        for number, (_, tower) in enumerate(self.settings):
            if tower.labels is not None:  # on the device once: a step that copies them there cannot be captured
                table = torch.tensor(tower.labels, device=device)
                self.register_buffer(f"groups{number}", table, persistent=False)
        k = reaching.relay_length(self.teaching.reach)
        if k is not None:
            positions = [self._order.index(tap.module) for tap in self.taps]
            self._segments = reaching.segments(found.positions, positions, k, self.teaching.main_reach, self._order)
        self.built = True

    def _classes(self, tower: Tower, found: DryRun) -> int:
        classes = found.logits[0] if self._num_classes is None else self._num_classes
        if tower.labels is None:
            return classes
        if len(tower.labels) != classes:
            raise ConfigError(f"a tower's labels map {len(tower.labels)} classes, but the network has {classes}")
        return max(tower.labels) + 1

    def _budget(self, found: DryRun) -> float:
        """FLOPs that one tower may have."""
        return self.teaching.share * found.flops / len(self.settings)


class _Unbuilt(nn.Module):
    """Stands for a tower that is not built yet: lazy parameters, as many as any kind may need."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        for number in range(kinds.MOST_PARAMETERS):
            lazy = UninitializedParameter(device=device)  # type: ignore[call-arg]
            self.register_parameter(f"lazy{number}", lazy)  # type: ignore[arg-type]

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        """Nothing to save yet."""


def _adopted(tower: nn.Module, unbuilt: nn.Module) -> nn.Module:
    """The tower with the lazy parameters of what stood for it in place of its own, same values."""
    lazy = iter(unbuilt.parameters())
    for name, parameter in list(tower.named_parameters()):
        one = next(lazy)
        assert isinstance(one, UninitializedParameter)
        one.materialize(tuple(parameter.shape), device=parameter.device, dtype=parameter.dtype)
        one.data.copy_(parameter.data)
        parent, _, last = name.rpartition(".")
        setattr(tower.get_submodule(parent), last, one)
    return tower


def _uncompiled(call: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """The call, out of `torch.compile`'s sight; not a decorator, for which torch imports its compiler (a second)."""
    return torch.compiler.disable(call) if torch.compiler.is_compiling() else call  # type: ignore[no-untyped-call]
