"""Coarse labels: a tower can learn groups of classes instead of the classes."""

from __future__ import annotations

from collections.abc import Sequence

from nas.errors import ConfigError

Pairs = tuple[tuple[str, str], ...]
"""Each class and its group, by name."""


def groups(given: str | Pairs, classes: Sequence[str], coarse: Sequence[int] | None) -> tuple[int, ...] | None:
    """The coarse label of each class, from 0; None for the network's own labels.

    `given` is ``own``, ``coarse`` (the data set's own super-classes, such as CIFAR-100's 20, in `coarse`), or pairs of
    class and group. Raises ConfigError where the set has none, or the pairs leave out a class or name a strange one.
    """
    if given == "own":
        return None
    if given == "coarse":
        if coarse is None:
            raise ConfigError("towers.labels is coarse, but this data set has no coarse labels: name a file of groups")
        return tuple(coarse)
    assert not isinstance(given, str)
    table = dict(given)
    if without := [name for name in classes if name not in table]:
        raise ConfigError(f"towers.labels gives no group for class {without[0]!r}")
    if strange := sorted(set(table) - set(classes)):
        raise ConfigError(f"towers.labels names class {strange[0]!r}, which the data set does not have")
    names = list(dict.fromkeys(table[name] for name in classes))
    return tuple(names.index(table[name]) for name in classes)
