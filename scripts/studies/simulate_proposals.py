"""How well networks are ranked that were never trained; on the published truth table.

The ladder's ranker sees short trainings of some networks of the table and ranks others, by their sizes, or also by the
choices that made them or by zero-cost signals: Kendall's tau against full training, over random splits. What that is
worth within a search: `scripts/studies/simulate_searches.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kendalltau

import search_spaces
from nas.ladder import FREE, Choices, Observations, Pool, Ranker
from nas.space import RandomTrial

Floats = NDArray[np.float64]

REFERENCE = Path("results/reference/calibration")
SPACE = search_spaces.load(
    "inception", {"cells": [1, 4], "stem": [4, 16], "widths": [8, 16, 24], "step": 4, "resolution": 8}
)
TABLE_SEED = 2
"""Both as in scripts/studies/calibrate_reference.py."""

CHOICES = Choices.of(SPACE)
ZERO_COST = ("naswot", "synflow", "az_expressivity", "az_progressivity", "az_trainability")
SEEN = (8, 16, 24, 40)

TOWERS = "middle 1"


@dataclass(frozen=True)
class Networks:
    """A row a network: choices, sizes (logarithms), truth, scores after one epoch from each seed (higher is better).

    `signals`: what else is read before training, if anything.
    """

    choices: Floats
    sizes: Floats
    truth: Floats
    scores: Floats
    signals: Floats | None = None


def table(file: Path) -> Networks:
    """The published ones."""
    rows = pd.read_parquet(file)
    full = rows[rows["rung"] == "full"].groupby("architecture")["truth_accuracy"].mean()
    short = rows[(rows["epochs"] == 1) & ~rows["full"] & (rows["towers"] == TOWERS)]
    losses = short.pivot_table(index="architecture", columns="seed", values="val_loss").loc[full.index]
    free = rows[rows["rung"] == "free"].groupby("architecture")[[*FREE, *ZERO_COST]].mean().loc[full.index]
    points: dict[str, Mapping[str, Any]] = {}
    for attempt in range(100 * len(full)):  # they are random architectures of this space, from this seed
        trial = RandomTrial(1_000_003 * TABLE_SEED + attempt)
        points.setdefault(SPACE.suggest(trial).key, trial.params)
    choices = np.array([CHOICES.read(points[key]) for key in full.index])
    sizes, signals = np.log(free[list(FREE)].to_numpy()), free[list(ZERO_COST)].to_numpy()
    return Networks(choices, sizes, full.to_numpy(), -losses.to_numpy(), signals)


def untrained(networks: Networks, splits: int) -> pd.DataFrame:
    """A row a number of short trainings seen and what networks are ranked by: tau of others, and of those `trained`."""
    generator = np.random.default_rng(0)
    names = {"sizes": FREE, "sizes and choices": (*FREE, *CHOICES.names)}
    sizes = np.exp(networks.sizes)
    features = {"sizes": sizes, "sizes and choices": np.hstack([sizes, networks.choices])}
    if networks.signals is not None:
        names |= {"sizes and zero-cost": (*FREE, *ZERO_COST), "all": (*FREE, *CHOICES.names, *ZERO_COST)}
        features["sizes and zero-cost"] = np.hstack([sizes, networks.signals])
        features["all"] = np.hstack([sizes, networks.choices, networks.signals])
    ranker = Ranker([1 / 9, 1.0])
    found: list[dict[str, Any]] = []
    for _ in range(splits):
        order, seed = generator.permutation(len(networks.truth)), generator.integers(networks.scores.shape[1])
        others = order[max(SEEN) :]
        for seen in SEEN:
            known = order[:seen]
            outcomes = Observations(known, np.zeros(seen, np.int64), networks.scores[known, seed], np.zeros((seen, 0)))
            for by, values in features.items():
                mean, _ = ranker.predict(Pool.of(values, names[by]), outcomes)
                tau, trained = (kendalltau(mean[some], networks.truth[some]).statistic for some in (others, known))
                found.append({"by": by, "seen": seen, "tau": tau, "trained": trained})
        tau = kendalltau(networks.scores[others, seed], networks.truth[others]).statistic
        found.append({"by": "an epoch of their own", "seen": 0, "tau": tau})
    grouped = pd.DataFrame(found).groupby(["by", "seen"])
    return grouped.agg(
        tau=("tau", "mean"), deviation=("tau", "std"), trained=("trained", "mean"), splits=("tau", "size")
    ).reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=REFERENCE / "truth.parquet")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--to", type=Path, default=REFERENCE)
    given = parser.parse_args()
    found = untrained(table(given.table), given.splits)
    print(found.round(3).to_string(index=False))
    given.to.mkdir(parents=True, exist_ok=True)
    found.to_csv(given.to / "proposals-untrained.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
