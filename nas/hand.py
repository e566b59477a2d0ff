"""Proposals in hand: drawn for the next candidate; the most promising is taken, the others are forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.study import Asked, Study

Option = tuple[Asked, Mapping[str, float]]
"""A proposal that may be measured, and its sizes."""


class Hand:
    """Different proposals by their architecture, and how many were drawn since one was taken: `drawn`."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._options: dict[str, Option] = {}
        self.drawn = 0

    def __len__(self) -> int:
        return len(self._options)

    def __contains__(self, key: str) -> bool:
        return key in self._options

    def add(self, asked: Asked, sizes: Mapping[str, float]) -> None:
        """A proposal that is not in hand yet."""
        self._options[asked.architecture.key] = asked, sizes

    def take(self, promise: Callable[[Sequence[Option]], NDArray[np.float64]]) -> Option:
        """The one of most `promise`, which is asked where there are several; what a person asked for comes first.

        The others are forgotten, but for those that a person asked for.
        """
        options, self._options, self.drawn = self._options, {}, 0
        given = [key for key, (asked, _) in options.items() if asked.given]
        if given:
            best = given[0]
            self._options = {key: options.pop(key) for key in given[1:]}
        elif len(options) == 1:
            best = next(iter(options))
        else:
            best = list(options)[int(np.argmax(promise(list(options.values()))))]
        chosen = options.pop(best)
        self._forget(options)
        return chosen

    def put_down(self) -> None:
        """Nothing more will be measured."""
        self._forget(self._options)
        self._options = {}

    def _forget(self, options: Mapping[str, Option]) -> None:
        for asked, _ in options.values():
            self._study.forget(asked.number)
