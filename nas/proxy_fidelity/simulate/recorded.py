"""A recorded table: architectures that were trained at every rung."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nas.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

NEEDED = ("architecture", "params", "epochs", "cost", "score")
TRUTH = "truth"
"""Where there is such a column, top and regret are by it. It is never a feature."""


@dataclass(frozen=True)
class Table:
    """Complete architectures (N) at all rungs (R, ascending epochs; the last is full training).

    `scores` and `costs` (in full trainings) are (N, R); `free` features (N, F) are the same at every rung, params
    first; `signals` (N, R, S) are read at a rung; `truth` (N,) is what the target is in.
    """

    architectures: tuple[str, ...]
    epochs: tuple[float, ...]
    params: Floats
    scores: Floats
    costs: Floats
    free: Floats
    free_names: tuple[str, ...]
    signals: Floats
    signal_names: tuple[str, ...]
    truth: Floats

    @property
    def rungs(self) -> int:
        """How many trainings of different length there are."""
        return len(self.epochs)

    @property
    def dearest(self) -> float:
        """What the most expensive full training costs."""
        return float(self.costs[:, -1].max())


def read(path: Path) -> pd.DataFrame:
    """The rows of a CSV (also compressed) or Parquet file. Raises DataError where it cannot be read."""
    import pandas as pd

    if not path.is_file():
        raise DataError(f"no table {str(path)!r}")
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as error:  # every kind of archive has its own
        reason = str(error).partition("\n")[0]
        raise DataError(f"table {str(path)!r} cannot be read as CSV or Parquet: {reason}") from None


def table(rows: pd.DataFrame, min_params: float | None = None, max_params: float | None = None) -> Table:
    """The table of these rows, within the limits on parameters (both inclusive). Raises DataError.

    Architectures without a score at some rung are left out. Numeric columns that are the same in all rows of each
    architecture are free features, others are signals (where there is one rung only, nothing tells, and all are);
    columns of text are ignored.
    """
    if min_params is not None and max_params is not None and min_params > max_params:
        raise DataError(f"min-params {min_params:g} is more than max-params {max_params:g}")
    rows = _checked(rows)
    numbers = rows.select_dtypes(["number", "bool", "boolean"])
    numeric = [name for name in numbers if name not in ("architecture", "epochs")]
    rows = rows.assign(**{name: rows[name].to_numpy(np.float64, na_value=np.nan) for name in numeric})
    wide = {name: rows.pivot(index="architecture", columns="epochs", values=name) for name in numeric}
    complete = np.isfinite(wide["score"].to_numpy()).all(axis=1) & np.isfinite(wide["cost"].to_numpy()).all(axis=1)
    if not complete.any():
        listed = ", ".join(f"{epochs:g}" for epochs in wide["score"].columns)
        raise DataError(f"the table has no architecture with a score at every one of its epochs: {listed}")
    params = wide["params"].max(axis=1).to_numpy(dtype=np.float64)
    chosen = complete & (params >= (min_params or 0)) & (params <= (np.inf if max_params is None else max_params))
    if not chosen.any():
        low, high = params[complete].min(), params[complete].max()
        raise DataError(f"no architecture of the table is within the limits; params go from {low:g} to {high:g}")
    arrays = {name: values.to_numpy(dtype=np.float64)[chosen] for name, values in wide.items()}
    others = [name for name in arrays if name not in (*NEEDED, TRUTH)]
    free = ["params", *(name for name in others if _is_free(arrays[name]))]
    signals = [name for name in others if name not in free]
    score = arrays["score"]
    return Table(
        architectures=tuple(str(name) for name in wide["score"].index[chosen]),
        epochs=tuple(float(epochs) for epochs in wide["score"].columns),
        params=params[chosen],
        scores=score,
        costs=arrays["cost"],
        free=np.stack([_last(arrays[name]) for name in free], axis=1),
        free_names=tuple(free),
        signals=np.stack([arrays[name] for name in signals], axis=2) if signals else np.zeros((*score.shape, 0)),
        signal_names=tuple(signals),
        truth=_last(arrays[TRUTH]) if TRUTH in arrays else score[:, -1],
    )


def _checked(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, if they are what a table consists of."""
    missing = [name for name in NEEDED if name not in rows]
    if missing:
        raise DataError(f"the table has no column {', '.join(missing)}; it needs {', '.join(NEEDED)}")
    if rows.empty:
        raise DataError("the table has no rows")
    for name in (*NEEDED[1:], *([TRUTH] if TRUTH in rows else [])):
        if rows[name].dtype.kind not in "iuf":
            first = next((value for value in rows[name] if not _is_number(value)), rows[name].iloc[0])
            raise DataError(f"column {name} of the table must be numbers, got {first!r}")
    for name in ("architecture", "params", "epochs"):
        if rows[name].isna().any():
            raise DataError(f"column {name} of the table has empty cells")
    if (rows["cost"] <= 0).any() or (rows["epochs"] <= 0).any():
        raise DataError("columns cost and epochs of the table must be more than 0")
    twice = rows.duplicated(["architecture", "epochs"])
    if twice.any():
        first = rows[twice].iloc[0]
        raise DataError(f"architecture {first['architecture']} stands in the table twice at {first['epochs']:g} epochs")
    sizes = rows.groupby("architecture")["params"].nunique()
    if (sizes > 1).any():
        raise DataError(f"architecture {sizes.index[sizes > 1][0]} has several sizes in the table")
    full = rows["epochs"] == rows["epochs"].max()
    if TRUTH in rows and not np.isfinite(rows.loc[full, TRUTH].to_numpy(np.float64, na_value=np.nan)).all():
        raise DataError("column truth of the table has empty cells at the largest number of epochs")
    return rows


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _is_free(values: Floats) -> bool:
    """Whether a column says the same of an architecture at every one of several rungs: it is known before training."""
    alike = (values == values[:, :1]) | np.isnan(values) & np.isnan(values[:, :1])
    return values.shape[1] > 1 and bool(alike.all())


def _last(values: Floats) -> Floats:
    return values[:, -1]
