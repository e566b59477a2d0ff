"""Makes a table for `nas simulate` from a truth table."""

from __future__ import annotations

import pandas as pd

from nas.errors import InputError
from nas.proxy_fidelity.calibration.table import checked, done, is_free, signals_of, truth_of


def is_truth_table(rows: pd.DataFrame) -> bool:
    """Whether these are measurements of a truth table rather than a recorded one."""
    return {"truth_accuracy", "rung", "full"} <= set(rows.columns)


def as_recorded(rows: pd.DataFrame, towers: str | None = None) -> pd.DataFrame:
    """Columns architecture, params, epochs, cost (in full trainings), score, truth, and the signals of each row.

    Proxies with `towers` (None: the first setting with any, else none) from their first seed; the full training of the
    first seed, whose score is on the images that score proxies too (its own truth where it has none); `truth` is the
    mean over all full trainings. Raises InputError where there is no such setting.
    """
    rows = done(checked(rows))
    truth = truth_of(rows)
    proxies = rows[~rows["full"] & (rows["epochs"] > 0)]
    settings = list(dict.fromkeys(proxies["towers"]))
    if "val_accuracy" not in rows:
        raise InputError("the truth table has no val_accuracy, by which its architectures would be chosen")
    chosen = towers if towers is not None else next((one for one in settings if one != "none"), "none")
    if chosen not in settings:
        raise InputError(f"no proxy has towers {chosen!r}; there are: {', '.join(settings)}")
    full = rows[rows["rung"] == truth.rung]
    kept = pd.concat([_first_seed(proxies[proxies["towers"] == chosen]), _first_seed(full)])
    means = full.groupby("architecture")["truth_accuracy"].mean()
    signals = [name for name in signals_of(rows) if name != "params" and not name.startswith("truth")]
    free = rows[~rows["full"]].groupby("architecture")[[name for name in signals if is_free(name)]].first()
    found = kept[["architecture", "params", "epochs", *signals]].drop(columns=list(free.columns))
    found = found.join(free, on="architecture")
    return found.assign(
        cost=kept["multiply_adds"] / full["multiply_adds"].mean(),
        score=kept["val_accuracy"].fillna(kept["truth_accuracy"]),
        truth=kept["architecture"].map(means),
    ).reset_index(drop=True)


def _first_seed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("seed", kind="stable").drop_duplicates(["architecture", "epochs"])
