"""Auxiliary towers: placement, kinds, weights and gradient reach. No other package knows them.

A tower is a small classifier on an intermediate cell, trained with the same labels, its loss added to the main
one (Szegedy et al. 2014, section 5: weight 0.3), thrown away afterwards. It never enters the network: `DeepSupervision`
holds network and towers side by side and taps the cells' outputs with hooks that live only during its own forward,
so the network copies, pickles and exports as if nobody had touched it, and removing the towers means to hand it over.

On any network, with nothing else of this project::

    from nas import auxiliary

    model = auxiliary.attach(network, towers=["layer2", "layer3"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (images, labels) in enumerate(batches):
        losses = model.losses(model(images), labels, progress=step / steps)
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
    network  # trained, and as bare as before
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas.auxiliary.checkpoints import strip
from nas.auxiliary.labels import groups
from nas.auxiliary.placement import place
from nas.auxiliary.supervision import DeepSupervision, Losses, Teaching, Tower, course
from nas.auxiliary.taps import Tap, dry_run, listening, logits_of
from nas.auxiliary.towers import KINDS
from nas.config import TowersConfig
from nas.errors import ConfigError, SpaceError
from nas.space import Shape

__all__ = [
    "KINDS",
    "DeepSupervision",
    "Losses",
    "Tap",
    "Tower",
    "attach",
    "cell_names",
    "course",
    "dry_run",
    "listening",
    "logits_of",
    "place",
    "strip",
    "supervise",
]

Settings = Tower | Mapping[str, Any] | str


def attach(
    model: nn.Module,
    towers: Sequence[str | int] | Mapping[str, Settings] | Mapping[int, Settings],
    example: Tensor | Shape | None = None,
    num_classes: int | None = None,
    *,
    schedule: str = "constant",
    reach: str = "full",
    main_reach: int | None = None,
    share: float = 0.1,
    cells: Sequence[str] | None = None,
    seed: int = 0,
) -> DeepSupervision:
    """Attach auxiliary towers to any network. The network and all random states stay unchanged.

    Args:
        model: Any network.
        towers: The modules that get a tower, by name (as in ``named_modules``) or by number among the ``cell_names`` of
            the network. A mapping gives each module a `Tower`, its keys (``{"kind": "linear", "weight": 0.4}``) or its
            kind. The modules must return maps ``(N, C, H, W)``.
        example: A batch of images ``(N, C, H, W)``, or the shape of one image. Without it, the first forward builds the
            towers; their parameters are lazy until then.
        num_classes: Number of classes; None: taken from the logits of the network.
        schedule: Weight schedule: ``constant``, ``linear``, ``cosine`` or ``off:f``.
        reach: Gradient scope: ``full``, ``relay:k`` or ``detached`` (see `nas.auxiliary.reach`).
        main_reach: With ``relay:k``: number of cells below the head that the main loss reaches; None: all.
        share: Largest share of the network's FLOPs for all light and linear towers together.
        cells: With ``relay:k``: names of the cells in order of depth, if the network has no ``cell_names``; None: the
            modules with a tower.
        seed: Seed of the initial weights of the towers.

    Returns:
        A wrapper that holds the network and the towers.

    Raises:
        SpaceError: A module does not exist, or returns no map.
        ConfigError: A setting is not valid.
    """
    named = dict(towers) if isinstance(towers, Mapping) else {where: Tower() for where in towers}
    order = tuple(cells or cast("Sequence[str]", getattr(model, "cell_names", ())))
    settings = [(_module(model, where, order), _tower(given)) for where, given in named.items()]
    if cells is not None and (strange := [name for name, _ in settings if name not in order]):
        raise ConfigError(f"a tower stands on {strange[0]!r}, which is not among the cells given")
    modules = list(dict(model.named_modules()))
    order = order if all(name in order for name, _ in settings) else ()
    order = order or tuple(sorted((name for name, _ in settings), key=modules.index))
    settings.sort(key=lambda pair: order.index(pair[0]))
    teaching = Teaching(schedule, reach, main_reach, share)
    lazy = example is None
    supervised = DeepSupervision(model, settings, teaching, order, num_classes=num_classes, seed=seed, lazy=lazy)
    if example is not None:
        supervised.build(example if isinstance(example, Tensor) else torch.zeros(2, *example))
    return supervised


def supervise(
    network: nn.Module,
    config: TowersConfig,
    input_shape: Shape,
    num_classes: int,
    seed: int = 0,
    coarse: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> DeepSupervision:
    """Towers as the config wants them, on a network that names its cells. The network is not changed.

    `coarse` is the data set's own coarse label of each class, `classes` its class names: for towers with coarse
    labels. Raises SpaceError when the network does not name its cells, ConfigError for what does not fit it.
    """
    order = cell_names(network)
    found = dry_run(network, order, torch.zeros(2, *input_shape))
    cells = place(config, found.sides)
    weights = _each(config.weight, len(cells), "weight")
    labels = _each(config.labels, len(cells), "labels")
    settings = [
        (order[cell], Tower(config.kind, weight, groups(given, classes, coarse)))
        for cell, weight, given in zip(cells, weights, labels, strict=True)
    ]
    teaching = Teaching(config.schedule, config.reach, config.main_reach, config.share)
    supervised = DeepSupervision(network, settings, teaching, order, cells, num_classes, seed)
    supervised.build_from(found)
    return supervised


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


def _module(model: nn.Module, where: str | int, order: Sequence[str]) -> str:
    """The name of the module that carries a tower, given by name or as a cell's number."""
    if isinstance(where, int):
        if not order:
            raise SpaceError(f"network {type(model).__name__} names no cells: it needs an attribute cell_names")
        if not 0 <= where < len(order):
            raise ConfigError(f"towers names cell {where}, but this network has cells 0 to {len(order) - 1}")
        return order[where]
    if where not in dict(model.named_modules()):
        raise SpaceError(f"network {type(model).__name__} has no module {where!r}")
    return where


def _tower(given: Settings) -> Tower:
    if isinstance(given, Tower):
        return given
    if isinstance(given, str):
        return Tower(given)
    valid = Tower.__dataclass_fields__
    if unknown := [key for key in given if key not in valid]:
        raise ConfigError(f"unknown key {unknown[0]!r} of a tower (valid: {', '.join(valid)})")
    return Tower(**given)


def _each(given: Any, count: int, key: str) -> Sequence[Any]:
    """One value a tower, from one for all or a tuple of them."""
    if not isinstance(given, tuple) or (key == "labels" and _is_pairs(given)):
        return [given] * count
    if count and len(given) != count:
        raise ConfigError(f"towers.{key} lists {len(given)} values, but this network has {count} towers")
    return given[:count]


def _is_pairs(given: tuple[Any, ...]) -> bool:
    return all(isinstance(one, tuple) and len(one) == 2 and all(isinstance(s, str) for s in one) for one in given)
