"""Tables and plots of `scripts/studies/ablate_auxiliary.py`, from one row a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

plt.switch_backend("svg")
plt.rcParams["svg.hashsalt"] = "ablation"  # the same plot, the same file

ARM = ["cells", "batch_norm", "head", "arm", "epochs"]
COLOURS = {"none": "#888888", "towers": "#c0392b"}


def difference(with_towers: pd.Series, without: pd.Series) -> tuple[float, float]:
    """Mean paired difference over the seeds that both have, and half its 95 % interval (Student's t)."""
    both = with_towers.index.intersection(without.index)
    found = (with_towers.loc[both] - without.loc[both]).to_numpy()
    if len(found) < 2:
        return float(found.mean()) if len(found) else float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return float(found.mean()), float(half)


def summary(trainings: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row an arm: mean and deviation over seeds, and the paired difference to the arm named `baseline`."""
    rows = []
    for key, group in trainings.groupby(ARM, sort=False):
        row = dict(zip(ARM, key, strict=True))
        same = [one for one in ARM if one != "arm"]
        reference = trainings[(trainings["arm"] == _reference(row, baseline))]
        for one in same:
            reference = reference[reference[one] == row[one]]
        by_seed, by_seed_without = (table.set_index("seed") for table in (group, reference))
        gain, half = difference(by_seed["val_accuracy"], by_seed_without["val_accuracy"])
        loss, loss_half = difference(by_seed["val_loss"], by_seed_without["val_loss"])
        rows.append(
            row
            | {
                "learning_rate": group["learning_rate"].iloc[0],
                "seeds": len(group),
                "accuracy": group["val_accuracy"].mean(),
                "accuracy_std": group["val_accuracy"].std(ddof=1),
                "accuracy_gain": gain,
                "accuracy_gain_95": half,
                "loss": group["val_loss"].mean(),
                "loss_gain": loss,
                "loss_gain_95": loss_half,
                "gap": (group["train_accuracy"] - group["val_accuracy"]).mean(),
                "gap_std": (group["train_accuracy"] - group["val_accuracy"]).std(ddof=1),
                "tower_share": group["tower_share"].mean(),
            }
        )
    return pd.DataFrame(rows)


def _reference(row: dict[str, object], baseline: str) -> str:
    return f"fully connected head, {baseline}" if row["head"] != "average" else baseline


def gradients(trainings: pd.DataFrame) -> pd.DataFrame:
    """Geometric mean over seeds of each cell's gradient norm: one row (cells, batch norm, arm, step, cell)."""
    columns = [name for name in trainings.columns if name.startswith("gradient_norm_")]
    long = trainings[trainings["epochs"] > 1].melt(["cells", "batch_norm", "arm", "seed"], columns, value_name="norm")
    long = long.dropna()
    where = long["variable"].str.extract(r"cell(\d+)_step(\d+)").astype(int)
    long["cell"], long["step"] = where[0], where[1]
    means = long.groupby(["cells", "batch_norm", "arm", "step", "cell"])["norm"]
    return means.agg(lambda norms: float(stats.gmean(norms.clip(lower=1e-30)))).reset_index()


def first_to_last(norms: pd.DataFrame) -> pd.DataFrame:
    """How much smaller the gradient is on the first cell than on the last: their ratio."""
    rows = []
    for key, group in norms.groupby(["cells", "batch_norm", "arm", "step"], sort=False):
        by_cell = group.set_index("cell")["norm"]
        ratio = by_cell.loc[by_cell.index.min()] / by_cell.loc[by_cell.index.max()]
        rows.append(dict(zip(["cells", "batch_norm", "arm", "step"], key, strict=True)) | {"first_to_last": ratio})
    return pd.DataFrame(rows)


def draw_gradients(norms: pd.DataFrame, file: Path) -> None:
    """Gradient norm along the depth, a panel a depth, at the first and the last step looked at."""
    depths = sorted(norms["cells"].unique())
    steps = sorted(norms["step"].unique())
    figure, axes = plt.subplots(2, len(depths), figsize=(3 * len(depths), 5), squeeze=False)
    for row, batch_norm in enumerate((True, False)):
        for column, cells in enumerate(depths):
            panel = axes[row][column]
            chosen = norms[(norms["cells"] == cells) & (norms["batch_norm"] == batch_norm)]
            for (arm, step), group in chosen.groupby(["arm", "step"]):
                if step in (steps[0], steps[-1]):
                    style = "--" if step == steps[0] else "-"
                    panel.plot(group["cell"], group["norm"], style, color=COLOURS[arm], label=f"{arm}, step {step}")
            panel.set_yscale("log")
            panel.set_title(f"{cells} cells, {'batch norm' if batch_norm else 'no batch norm'}", fontsize=9)
            panel.set_xlabel("cell", fontsize=8)
    axes[0][0].set_ylabel("gradient norm", fontsize=8)
    axes[0][0].legend(fontsize=7)
    _save(figure, file)


def draw_early(table: pd.DataFrame, file: Path) -> None:
    """Validation accuracy against depth, with and without towers, a panel for each number of epochs."""
    epochs = sorted(table["epochs"].unique())
    figure, axes = plt.subplots(1, len(epochs), figsize=(4.5 * len(epochs), 3.5), squeeze=False)
    for panel, count in zip(axes[0], epochs, strict=True):
        for (arm, batch_norm), group in table[table["epochs"] == count].groupby(["arm", "batch_norm"]):
            panel.errorbar(
                group["cells"] + (0.15 if arm == "towers" else -0.15),
                100 * group["accuracy"],
                100 * group["accuracy_std"],
                fmt="o-" if batch_norm else "s--",
                color=COLOURS[arm],
                capsize=2,
                label=f"{arm}, {'batch norm' if batch_norm else 'no batch norm'}",
            )
        panel.set_title(f"{count} epoch{'s' if count > 1 else ''}", fontsize=9)
        panel.set_xlabel("cells", fontsize=8)
    axes[0][0].set_ylabel("validation accuracy, %", fontsize=8)
    axes[0][0].legend(fontsize=7)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def markdown(table: pd.DataFrame, columns: Sequence[str], formats: Sequence[str]) -> str:
    """A table for a page."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for _, row in table.iterrows():
        cells = [form.format(row[name]) for name, form in zip(columns, formats, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
