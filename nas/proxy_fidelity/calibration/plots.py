"""Plots of the report: tau against cost below its ceiling, and proxies against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nas.proxy_fidelity.calibration.agreement import Array
from nas.proxy_fidelity.calibration.analysis import RUN, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#888888", "#c0392b", "#2471a3", "#1e8449", "#b7950b", "#7d3c98")
MARKERS = {"ridge": "o", "boosting": "^"}


def draw(report: Report, folder: Path) -> list[Path]:
    """Two SVG files, the same bytes from the same report."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "calibration", "font.size": 8}):
        return [
            _save(_tau_against_cost(report), folder / "tau-cost.svg"),
            _save(_proxy_against_truth(report), folder / "proxy-truth.svg"),
        ]


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file


def _tau_against_cost(report: Report) -> Figure:
    """The signal and both rankers at each rung, a colour a setting of towers; lines join the rungs of one setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    panel = figure.subplots()
    _limits(report, panel)
    signals = report.signals[(report.signals["signal"] == report.signal) & (report.signals["kind"] == "proxy")]
    shown = {report.signal: signals}
    shown |= {str(name): rows for name, rows in report.rankers[report.rankers["features"] == "all"].groupby("ranker")}
    settings = sorted(set(report.rankers["towers"]), key=lambda name: (name != "none", name))
    apart = 1.2 * shown["ridge"]["cost"].max()  # so that intervals stand beside each other
    for place, (name, rows) in enumerate(shown.items()):
        for number, towers in enumerate(settings):
            chosen = rows[rows["towers"] == towers].sort_values("cost")
            if len(chosen):
                panel.errorbar(
                    100 * chosen["cost"] + apart * (place + number / len(settings)),
                    chosen["tau"],
                    _reach(chosen),
                    fmt=f"{MARKERS.get(name, 's')}{'-' if name == report.signal else ':'}",
                    color=COLOURS[number % len(COLOURS)],
                    capsize=2,
                    markersize=4,
                    linewidth=1,
                    label=f"{name}, {'no towers' if towers == 'none' else f'towers {towers}'}",
                )
    panel.set_xlabel("cost, % of full training's multiply-adds")
    panel.set_ylabel("Kendall tau against full training")
    panel.set_xlim(left=0)
    panel.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _reach(rows: pd.DataFrame) -> Array:
    """How far the interval reaches below and above, (2, n)."""
    reach = np.stack([rows["tau"] - rows["tau_low"], rows["tau_high"] - rows["tau"]])
    return np.asarray(np.nan_to_num(np.maximum(reach, 0)))


def _limits(report: Report, panel: Axes) -> None:
    """The ceiling as a band, params and the ranker that trains nothing as lines."""
    [ceiling] = report.ceiling[(report.ceiling["what"] == RUN) & (report.ceiling["group"] == "all")].to_dict("records")
    if not np.isnan(ceiling["tau"]):
        panel.axhspan(ceiling["low"], ceiling["high"], color="#f5e6c8", linewidth=0)
        panel.axhline(ceiling["tau"], color="#b9770e", linewidth=1, label=f"ceiling: {RUN}")
    baselines = {
        "params alone": report.signals.loc[report.signals["signal"] == "params", "tau"],
        "ridge on untrained": report.rankers.loc[
            (report.rankers["features"] == "untrained") & (report.rankers["ranker"] == "ridge"), "tau"
        ],
    }
    for style, (name, values) in zip(("--", "-."), baselines.items(), strict=True):
        if len(values):
            panel.axhline(float(values.iloc[0]), color="#333333", linestyle=style, linewidth=1, label=name)


def _proxy_against_truth(report: Report) -> Figure:
    """A panel a rung, a point an architecture, coloured by its size."""
    from matplotlib.figure import Figure

    points = report.points
    rungs = list(dict.fromkeys(points["rung"]))
    columns = min(3, len(rungs))
    rows = -(-len(rungs) // columns)
    figure = Figure(figsize=(2.7 * columns + 1, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    size = np.log10(points["params"])
    for panel, rung in zip(panels.flat, rungs, strict=False):
        chosen = points["rung"] == rung
        dots = panel.scatter(
            points.loc[chosen, "score"],
            100 * points.loc[chosen, "truth"],
            9,
            size[chosen],
            vmin=size.min(),
            vmax=size.max(),
        )
        found = report.signals[(report.signals["rung"] == rung) & (report.signals["signal"] == report.signal)]
        panel.set_title(f"{rung}: tau {float(found['tau'].iloc[0]):.2f}", fontsize=8)
    for panel in panels.flat[len(rungs) :]:
        panel.set_axis_off()
    figure.supxlabel(f"{report.signal}, more is better" + (" (negated)" if points["score"].max() <= 0 else ""))
    figure.supylabel("accuracy after full training, %")
    figure.colorbar(dots, ax=panels, label="log10 of params")
    return figure
