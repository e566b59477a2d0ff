"""The truth table: reads and checks it, and separates the truth from the rankings."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nas import metrics
from nas.errors import InputError
from nas.proxy_fidelity.calibration.agreement import Array, filled

TEXT = ("architecture", "rung", "status", "towers", "equal_to")

NEEDED = (*TEXT, "seed", "epochs", "full", "seconds", "multiply_adds", "params", "truth_accuracy")

SETTING = ("epochs", "images", "size", "width", "learning_rate", "batch_size")
"""What two arms share that differ by their towers only; a table may lack all but the first."""

NO_SIGNALS = {*NEEDED, *SETTING, "cells", "tower_share", "truth_loss"} - {"params"}
"""Columns with numbers that rank nothing."""

BASELINES = ("params", "flops")

MINIMUM = 8
"""With fewer architectures nothing is said of a ranking."""

READING = re.compile(r"(\w+)_epoch(\d+)")
"""A signal read on the way through a longer training."""


def less_is_better(signal: str) -> bool:
    """Whether architectures are ranked by less of it: of a size, as of all that is not declared, more is better."""
    metric = metrics.of_signal(signal)
    return metric is not None and metric.known == "after training" and metric.direction == "minimise"


def is_free(signal: str) -> bool:
    """Whether the untrained network shows it."""
    metric = metrics.of_signal(signal)
    return metric is not None and metric.known == "before training"


def read(path: Path) -> pd.DataFrame:
    """A truth table from .parquet or .csv. Raises InputError where it cannot be read or used."""
    if path.suffix not in (".parquet", ".csv"):
        raise InputError(f"a truth table is a .parquet or a .csv file, got {str(path)!r}")
    if not path.is_file():
        raise InputError(f"there is no truth table {str(path)!r}")
    try:
        text = dict.fromkeys(TEXT, "str")
        table = pd.read_csv(path, dtype=text) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"{str(path)!r} is no truth table: {str(error).splitlines()[0]}") from None
    return checked(table)


def checked(table: pd.DataFrame) -> pd.DataFrame:
    """The table with empty texts for missing ones. Raises InputError where it cannot be used."""
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise InputError(f"the truth table lacks the columns {', '.join(missing)}")
    table = table.assign(**{name: table[name].fillna("").astype(str) for name in TEXT})
    if table["full"].dtype != bool:
        raise InputError(f"column full must be true or false everywhere, got values such as {table['full'].iloc[0]!r}")
    numbers = [name for name in NEEDED if name not in (*TEXT, "full")]
    wrong = [name for name in numbers if not pd.api.types.is_numeric_dtype(table[name])]
    if wrong:
        raise InputError(f"the truth table has something else than numbers in {', '.join(wrong)}")
    done = table[table["status"] == "done"]
    twice = done[done.duplicated(["architecture", "rung", "seed"])]
    if len(twice):
        one = twice.iloc[0]
        raise InputError(f"measured twice: architecture {one['architecture']}, rung {one['rung']}, seed {one['seed']}")
    full = done[done["full"] & done["truth_accuracy"].notna()]
    if full.empty:
        raise InputError("the truth table has no full training: no row with full and a truth_accuracy")
    count = full["architecture"].nunique()
    if count < MINIMUM:
        raise InputError(f"at least {MINIMUM} architectures must be trained fully, the truth table has {count}")
    if full["params"].isna().any():
        raise InputError("every architecture that is trained fully needs its params in the truth table")
    return table


@dataclass(frozen=True)
class Truth:
    """What full training says: accuracies (n, S), NaN where a seed is missing, sizes (n,), and where it was read."""

    rung: str
    architectures: pd.Index[str]
    seeds: tuple[int, ...]
    accuracies: Array
    params: Array

    def apart_from(self, owners: Array) -> Array:
        """(P, n, S): the accuracies without those of the seed (n, P) that a score comes from."""
        own = owners.T[:, :, None] == np.array(self.seeds)[None, None]
        return np.where(own, np.nan, self.accuracies[None])


@dataclass(frozen=True)
class Series:
    """One signal at one rung. `scores` (n, P), more is better; `owners` the seeds that they come from.

    `kind` is "baseline" (params, FLOPs), "free", "proxy", "reading" (on the way through a full training) or "full".
    `cost` and `time` are shares of full training, in multiply-adds and in seconds.
    """

    rung: str
    signal: str
    kind: str
    towers: str
    epochs: float
    cost: float
    time: float
    scores: Array
    owners: Array


def done(table: pd.DataFrame) -> pd.DataFrame:
    """The measurements that ended well; what is infinite in them counts as missing."""
    return table[table["status"] == "done"].replace([np.inf, -np.inf], np.nan)


def truth_of(rows: pd.DataFrame) -> Truth:
    """The rung of full training that most architectures have, of equals the first; other ones are never mixed in."""
    full = rows[rows["full"] & rows["truth_accuracy"].notna()]
    count = full.groupby("rung", sort=False)["architecture"].nunique()
    rung = str(count.idxmax())
    wide = full[full["rung"] == rung].pivot(index="architecture", columns="seed", values="truth_accuracy")
    order = pd.Index(full.loc[full["rung"] == rung, "architecture"].unique())
    wide = wide.reindex(order)
    params = rows.groupby("architecture")["params"].first().reindex(order).to_numpy(float)
    return Truth(rung, order, tuple(int(seed) for seed in wide.columns), wide.to_numpy(float), params)


def signals_of(rows: pd.DataFrame) -> list[str]:
    """Every column that ranks architectures."""
    return [str(name) for name in rows.select_dtypes("number").columns if name not in NO_SIGNALS]


def costs(rows: pd.DataFrame, truth: Truth) -> pd.DataFrame:
    """One row a rung: what it took, and its share of full training on the same architectures (ratio of sums)."""
    known = rows[rows["architecture"].isin(truth.architectures)]
    what = ["multiply_adds", "seconds"]
    full = known[known["rung"] == truth.rung].groupby("architecture")[what].mean()
    found = []
    for rung, group in known.groupby("rung", sort=False):
        means = group.groupby("architecture")[what].mean()
        shares = means.sum() / full.loc[means.index].sum()
        first = group.iloc[0]
        found.append(
            {
                "rung": rung,
                "towers": first["towers"],
                "equal_to": first["equal_to"],
                "epochs": first["epochs"],
                "full": first["full"],
                "architectures": len(means),
                "seeds": group["seed"].nunique(),
                "multiply_adds": means["multiply_adds"].mean(),
                "seconds": means["seconds"].mean(),
                "cost": shares["multiply_adds"],
                "time": shares["seconds"],
            }
        )
    return pd.DataFrame(found)


def series_of(rows: pd.DataFrame, truth: Truth, costs: pd.DataFrame) -> list[Series]:
    """Every signal at every rung that enough architectures have. What the untrained network shows is one rung, free."""
    names = signals_of(rows)
    found = [_free(rows, name, truth) for name in names if is_free(name)]
    for cost in costs[costs["epochs"] > 0].to_dict("records"):
        group = rows[rows["rung"] == cost["rung"]]
        trained = [name for name in names if not is_free(name)]
        for name in [*trained, "truth_accuracy"] if cost["full"] else trained:
            wide = group.pivot(index="architecture", columns="seed", values=name)
            found.append(_trained(wide, name, cost, truth))
    return [one for one in found if one is not None]


def _free(rows: pd.DataFrame, name: str, truth: Truth) -> Series | None:
    """Sizes are the same from every seed; other scores of the untrained network are from the proxies' seeds."""
    known = rows[rows[name].notna()]
    if name in BASELINES or known["full"].all():
        known = known.drop_duplicates("architecture").assign(seed=-1)
    else:
        known = known[~known["full"]].drop_duplicates(["architecture", "seed"])
    scores = _scores(known.pivot(index="architecture", columns="seed", values=name), name, truth)
    return scores and Series("free", name, "baseline" if name in BASELINES else "free", "none", 0, 0, 0, *scores)


def _trained(wide: pd.DataFrame, name: str, cost: dict[Hashable, Any], truth: Truth) -> Series | None:
    scores = _scores(wide, name, truth)
    if scores is None:
        return None
    rung, epochs, kind, share = cost["rung"], cost["epochs"], "full" if cost["full"] else "proxy", 1.0
    if reading := READING.fullmatch(name):
        name, epoch = reading[1], float(reading[2])
        rung, epochs, kind, share = f"{rung} to epoch {epoch:g}", epoch, "reading", epoch / epochs
    return Series(rung, name, kind, cost["towers"], epochs, share * cost["cost"], share * cost["time"], *scores)


def _scores(wide: pd.DataFrame, name: str, truth: Truth) -> tuple[Array, Array] | None:
    """Scores and whose they are, (n, P) each; None where too few architectures have one, or all have the same."""
    values = wide.reindex(truth.architectures).to_numpy(float)
    owners = np.where(np.isnan(values), np.nan, wide.columns.to_numpy(float))
    if (~np.isnan(values).all(1)).sum() < MINIMUM or np.nanmin(values) == np.nanmax(values):
        return None
    return filled(-values if less_is_better(name) else values), filled(owners)
