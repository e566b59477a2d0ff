"""`nas calibrate`: measures how well short trainings rank networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from nas import config as configuration
from nas.cli.options import (
    ConfigFile,
    DataDir,
    DataSet,
    NewName,
    NewResults,
    Seed,
    Set,
    Space,
    Verbose,
    Workers,
    keys_of,
    out,
    watching,
)

if TYPE_CHECKING:
    import pandas as pd

    from nas.proxy_fidelity.calibration import Recommendation, Report

app = typer.Typer(
    help="Measure how well proxies rank architectures, compared with full training.", no_args_is_help=True
)

SHOWN = 4
"""So many of the best signals of a rung are printed, and the chosen one; the files hold all."""


@app.callback()
def calibrate() -> None:
    """Measure how well proxies rank architectures, compared with full training."""


@app.command()
def collect(
    config: ConfigFile = None,
    architectures: Annotated[int, typer.Option(help="Number of architectures.")] = 32,
    epochs: Annotated[list[int] | None, typer.Option(help="Epochs of a proxy. Can be repeated.")] = None,
    full_epochs: Annotated[
        int | None, typer.Option(help="Epochs of full training; unset: as many as in retraining.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds of each proxy.")] = 2,
    full_seeds: Annotated[int, typer.Option(help="Number of seeds of full training.")] = 2,
    train: Annotated[int | None, typer.Option(help="Number of training images; unset: two fifths of all.")] = None,
    validation: Annotated[
        int | None, typer.Option(help="Number of images on which proxies are scored; unset: a fifth of all.")
    ] = None,
    spread: Annotated[
        bool, typer.Option("--spread", help="Choose architectures across the scores that the experiment has measured.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option(help="Output folder; unset: calibration/ in the folder of the experiment.")
    ] = None,
    name: NewName = None,
    space: Space = None,
    data: DataSet = None,
    data_dir: DataDir = None,
    seed: Seed = None,
    workers: Workers = None,
    results: NewResults = None,
    set_: Set = None,
    verbose: Verbose = False,
) -> None:
    """Collect a truth table: train architectures with proxies and with full training.

    The proxies follow the section [proxy], once with towers and once without towers at equal cost. Full training
    follows the section [retrain]. The ground truth is the accuracy on images that neither a training nor a proxy
    score uses. The test split stays unused. After an interruption, the same command continues.
    """
    from nas.experiment import Experiment
    from nas.proxy_fidelity.calibration.table import MINIMUM

    keys = keys_of(name, space, data, data_dir, None, None, seed, workers, None, results)
    experiment = Experiment(config=configuration.resume(config, set_ or (), **keys))
    with watching(experiment, verbose):
        file = experiment.collect(
            to,
            architectures=architectures,
            epochs=tuple(epochs or (1, 3)),
            full_epochs=full_epochs,
            seeds=seeds,
            full_seeds=full_seeds,
            train=train,
            validation=validation,
            spread=spread,
        )
    out.print(f"Wrote {file}", highlight=False, markup=False, soft_wrap=True)
    if architectures < MINIMUM:
        out.print(f"A report needs at least {MINIMUM} architectures: the same with more goes on from here")


@app.command()
def report(
    table: Annotated[Path, typer.Argument(help="A truth table, .parquet or .csv.", show_default=False)],
    to: Annotated[Path | None, typer.Option(help="Output folder for the tables (CSV) and the plots (SVG).")] = None,
    signal: Annotated[
        str, typer.Option(help="Signal by which proxies with and without towers are compared.")
    ] = "val_loss",
    tau: Annotated[
        float | None,
        typer.Option(help="Recommend the cheapest proxy that reaches this rank correlation (Kendall's tau)."),
    ] = None,
    of_ceiling: Annotated[
        float | None, typer.Option(help="Recommend the cheapest proxy that reaches this share of the noise ceiling.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Number of bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all tables as JSON.")] = False,
) -> None:
    """Report the rank correlation of every signal at every rung, with intervals and the noise ceiling."""
    from nas.proxy_fidelity import calibration
    from nas.store import check_place

    if to is not None:
        check_place(to)
    found = calibration.calibrate(calibration.read(table), signal=signal, resamples=resamples, seed=seed)
    advice = calibration.recommend(found, tau=tau, of_ceiling=of_ceiling)
    if as_json:
        typer.echo(_json(found, advice))
    else:
        _print(found, advice)
    if to is not None:
        files = _write(found, advice, to)
        if not as_json:
            out.print(f"Wrote {len(files)} files into {to}", highlight=False, markup=False, soft_wrap=True)


def _json(found: Report, advice: Recommendation) -> str:
    """One object: notes, the recommendation, and each table as a list of rows; null for what cannot be said."""
    tables = {name: json.loads(frame.to_json(orient="records")) for name, frame in found.frames().items()}
    said: dict[str, Any] = {"notes": found.notes, "recommendation": advice.sentence, "wanted": advice.wanted}
    return json.dumps(said | tables, indent=1)


def _write(found: Report, advice: Recommendation, folder: Path) -> list[Path]:
    from nas.proxy_fidelity.calibration.plots import draw

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, frame in found.frames().items():
        files.append(folder / f"{name}.csv")
        frame.to_csv(files[-1], index=False, float_format="%.6g")
    files.append(folder / "recommendation.txt")
    files[-1].write_text("\n".join([advice.sentence, *found.notes]) + "\n", encoding="utf-8")
    return files + draw(found, folder)


def _print(found: Report, advice: Recommendation) -> None:
    out.print(_ceiling(found))
    free = found.signals["kind"].isin(["baseline", "free"])
    late = found.signals["kind"].isin(["full", "reading"])
    out.print(_signals("What costs nothing", found.signals[free], "signal"))
    out.print(_signals("Signals of short trainings, the best", _best(found, ~free & ~late), "signal"))
    if late.any():
        out.print(_signals("Full trainings, against a truth without their own seed", _best(found, late), "signal"))
    rankers = found.rankers.assign(ranker=found.rankers["ranker"] + " on " + found.rankers["features"])
    out.print(_signals("Rankers, fitted on other architectures", rankers, "ranker"))
    if len(found.towers):
        out.print(_towers(found.towers))
    if len(found.truths):
        out.print(_truths(found.truths))
    for note in found.notes:
        out.print(f"* {note}", highlight=False, markup=False, style="dim")
    out.print(advice.sentence, highlight=False, markup=False, soft_wrap=True, style="bold")


def _best(found: Report, chosen: pd.Series[bool]) -> pd.DataFrame:
    """The best signals of each rung among those that nearly all architectures have, and the one asked for."""
    from nas.proxy_fidelity.calibration import general

    rows = found.signals[chosen & (general(found.signals) | (found.signals["signal"] == found.signal))]
    place = rows.groupby("rung")["tau"].rank(ascending=False, method="first")
    order = rows["rung"].map({rung: number for number, rung in enumerate(rows["rung"].unique())})
    rows = rows.assign(order=order)[(place <= SHOWN) | (rows["signal"] == found.signal)]
    return rows.sort_values(["order", "tau"], ascending=[True, False], kind="stable")


def _truths(truths: pd.DataFrame) -> Table:
    table = _table("Other full trainings against this truth", ("rung", "n", "tau", "accuracy"))
    for row in truths.to_dict("records"):
        higher = f"{100 * row['higher']:+.2f} points"
        table.add_row(str(row["rung"]), str(row["architectures"]), _interval(row, "tau", "tau_low", "tau_high"), higher)
    return table


def _ceiling(found: Report) -> Table:
    table = _table("The ceiling: tau against this truth", ("what", "all", "size bins", "top tenth"))
    for what, rows in found.ceiling.groupby("what", sort=False):
        by_group = {str(row["group"]): row for row in rows.to_dict("records")}
        cells = [_interval(by_group[one], "tau", "low", "high") for one in ("all", "size bins", "top tenth")]
        table.add_row(Text(str(what)), *cells)
    return table


def _signals(title: str, rows: pd.DataFrame, name: str) -> Table:
    heads = ("rung", "cost", name, "n", "tau", "rho", "of ceiling", "size bins", "top tenth", "over params")
    table = _table(title, heads)
    last = None
    for row in rows.to_dict("records"):
        again = row["rung"] == last
        last = row["rung"]
        table.add_row(
            "" if again else Text(str(row["rung"])),
            "" if again else f"{row['cost']:.1%}",
            Text(str(row[name])),
            str(row["n"]),
            _interval(row, "tau", "tau_low", "tau_high"),
            _number(row["rho"]),
            "" if row["of_ceiling"] != row["of_ceiling"] else f"{row['of_ceiling']:.0%}",
            _interval(row, "bins_tau", "bins_tau_low", "bins_tau_high"),
            _number(row["top_tau"]),
            _interval(row, "gain", "gain_low", "gain_high"),
        )
    return table


def _towers(rows: pd.DataFrame) -> Table:
    title = "Towers against none, paired" + ("" if rows["equal_cost"].all() else " (! where costs are not equal)")
    table = _table(title, ("with", "without", "by", "n", "cost", "cost without", "tau", "tau without", "difference"))
    for row in rows.to_dict("records"):
        table.add_row(
            Text(row["rung"]),
            Text(row["none"]),
            row["of"],
            str(row["n"]),
            f"{row['cost']:.1%}",
            f"{row['cost_none']:.1%}{'' if row['equal_cost'] else ' !'}",
            _number(row["tau"]),
            _number(row["tau_none"]),
            _interval(row, "difference", "difference_low", "difference_high", signed=True),
        )
    return table


def _table(title: str, heads: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for head in heads:
        left = head in ("what", "rung", "signal", "ranker", "with", "without", "by")
        table.add_column(head, justify="left" if left else "right", overflow="fold")
    return table


def _number(value: float, signed: bool = False) -> str:
    """``.53``, ``-.02``; nothing where nothing can be said."""
    return "" if value != value else f"{value:{'+' if signed else ''}.2f}".replace("0.", ".", 1)


def _interval(row: dict[Any, Any], value: str, low: str, high: str, signed: bool = False) -> Text:
    """``.53 [.41, .64]``"""
    found = _number(row[value], signed)
    known = found and row[low] == row[low]
    return Text(f"{found} [{_number(row[low])}, {_number(row[high])}]" if known else found)
