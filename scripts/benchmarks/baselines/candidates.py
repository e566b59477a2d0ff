"""The candidates of scripts/benchmarks/search.py, as a space that names them: searches begin with them, in order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.space import RandomTrial
from search_spaces.inception import InceptionSpace

COUNT = 16
SEED = 4_000


class Candidates(InceptionSpace):
    """The Inception space, and random networks of it by name."""

    def named(self) -> Mapping[str, Mapping[str, Any]]:
        found = {}
        for number in range(COUNT):
            trial = RandomTrial(SEED + number)
            self.suggest(trial)
            found[f"candidate{number}"] = trial.params
        return found
