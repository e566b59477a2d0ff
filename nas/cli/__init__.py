"""The command line: it parses, calls and prints. No other module knows the terminal.

Exit codes: 0, 1 for a job that failed, 2 for bad input, 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas import config as configuration
from nas import leaderboard as ranking
from nas.cli import calibrate, drawing, planning, simulating
from nas.cli.options import (
    Calibrate,
    ConfigFile,
    DataDir,
    DataSet,
    Name,
    NewName,
    NewResults,
    References,
    Results,
    Seed,
    Seeds,
    Set,
    Space,
    Time,
    ToRetrain,
    Trials,
    Verbose,
    Workers,
    complaints,
    keys_of,
    out,
    watching,
)
from nas.errors import InputError, NasError

if TYPE_CHECKING:
    from nas.experiment import Experiment
    from nas.export import Exported

app = typer.Typer(
    help="Find an Inception-style network for your images: search, retrain, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
space_app = typer.Typer(help="Search spaces.", no_args_is_help=True)
system_app = typer.Typer(help="Published systems, ready to run.", no_args_is_help=True)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
app.add_typer(space_app, name="space")
app.add_typer(system_app, name="system")
app.add_typer(data_app, name="data")
app.add_typer(calibrate.app, name="calibrate")
app.command()(simulating.simulate)
app.command()(planning.plan)


SHOWN = 100
"""Rows of a leaderboard on the terminal."""


class Format(StrEnum):
    """How the leaderboard is printed."""

    table = "table"
    csv = "csv"
    json = "json"
    md = "md"


@app.command()
def run(
    config: ConfigFile = None,
    name: NewName = None,
    space: Space = None,
    data: DataSet = None,
    data_dir: DataDir = None,
    trials: Trials = None,
    time: Time = None,
    seed: Seed = None,
    workers: Workers = None,
    calibrate: Calibrate = None,
    seeds: Seeds = None,
    references: References = None,
    results: NewResults = None,
    set_: Set = None,
    verbose: Verbose = False,
) -> None:
    """Search, retrain the winner and export it. After an interruption, the same command continues."""
    from nas.experiment import Experiment

    keys = keys_of(name, space, data, data_dir, trials, time, seed, workers, calibrate, results)
    keys |= {"retrain.seeds": seeds, "retrain.references": references}
    experiment = Experiment(config=configuration.resume(config, set_ or (), **keys))
    with watching(experiment, verbose):
        exported = experiment.run()
    _print_best(experiment)
    _print_winner(experiment)
    _print_export(exported)


@app.command()
def search(
    config: ConfigFile = None,
    name: NewName = None,
    space: Space = None,
    data: DataSet = None,
    data_dir: DataDir = None,
    trials: Trials = None,
    time: Time = None,
    seed: Seed = None,
    workers: Workers = None,
    calibrate: Calibrate = None,
    results: NewResults = None,
    set_: Set = None,
    verbose: Verbose = False,
) -> None:
    """Search only: measure candidates. After an interruption, the same command continues."""
    from nas.experiment import Experiment

    keys = keys_of(name, space, data, data_dir, trials, time, seed, workers, calibrate, results)
    experiment = Experiment(config=configuration.resume(config, set_ or (), **keys))
    with watching(experiment, verbose):
        experiment.search()
    _print_best(experiment)


@app.command()
def leaderboard(
    experiment: Name = None,
    format: Annotated[Format, typer.Option(help="Output format.")] = Format.table,
    sort: Annotated[
        str | None, typer.Option(help="Column to sort by; unset: the first objective of the search.")
    ] = None,
    pareto: Annotated[bool, typer.Option(help="Show only the Pareto front.")] = False,
    top: Annotated[
        int | None,
        typer.Option(min=1, help=f"Number of candidates to show; unset: {SHOWN} in a table, all in other formats."),
    ] = None,
    results: Results = Path("results"),
) -> None:
    """Show every measured candidate, best first, and the references.

    A * marks the Pareto front: of the objectives, or of score and FLOPs if there is one objective.
    """
    from nas.experiment import Experiment

    opened = Experiment.open(experiment, results)
    rows = opened.leaderboard()
    if sort is not None:
        rows = ranking.sort(rows, sort)
    if pareto:
        rows = [row for row in rows if row.pareto]
    count = len(rows)
    top = SHOWN if top is None and format is Format.table else top
    rows = [row for place, row in enumerate(rows) if top is None or place < top or row.kind == "reference"]
    if format is Format.table:
        out.print(drawing.board(rows, opened.config.experiment, out.width))
        if not count:
            out.print("no candidate was measured")
        if count > len(rows):
            out.print(f"and {count - len(rows):,} more: --top {count}", highlight=False)
        if (said := opened.trust()) is not None:
            out.print(said, highlight=False, markup=False)
    else:
        write = {Format.csv: drawing.as_csv, Format.json: drawing.as_json, Format.md: drawing.as_markdown}[format]
        typer.echo(write(rows))


@app.command()
def retrain(
    experiment: ToRetrain = None,
    seeds: Seeds = None,
    top: Annotated[int, typer.Option(help="Number of best candidates to retrain, each from all seeds.")] = 1,
    init: Annotated[
        Path | None,
        typer.Option(help="Weights to start from (.safetensors). The last layer is new if the labels differ."),
    ] = None,
    data: DataSet = None,
    data_dir: DataDir = None,
    name: NewName = None,
    results: Results = Path("results"),
    set_: Set = None,
    verbose: Verbose = False,
) -> None:
    """Train the winner and the references on the full recipe. A system is trained without a search."""
    from nas.experiment import Experiment

    opened = Experiment.to_retrain(experiment, results, set_ or (), data, data_dir, name)
    with watching(opened, verbose):
        opened.retrain(seeds, top, init)
    _print_winner(opened)


@app.command()
def export(
    experiment: Name = None,
    to: Annotated[
        Path | None, typer.Option(help="Output folder; unset: export/ in the folder of the experiment.")
    ] = None,
    ensemble: Annotated[
        int | None, typer.Option(help="Number of retrained networks to average into one model.")
    ] = None,
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="Also export the logits of the towers, for inference that stops early.")
    ] = False,
    prune: Annotated[
        float | None,
        typer.Option(
            help="Share of the multiply-adds to remove. Whole channels are removed; then the network is fine-tuned."
        ),
    ] = None,
    results: Results = Path("results"),
    set_: Set = None,
    verbose: Verbose = False,
) -> None:
    """Write the retrained winner as safetensors, torch.export and ONNX. Each file is verified on test images."""
    from nas.experiment import Experiment

    opened = Experiment.open(experiment, results, assignments=set_ or ())
    with watching(opened, verbose):
        exported = opened.export(to, ensemble, early_exit, prune)
    _print_export(exported)


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(help="Number of a trial, key of an architecture, JSON file, or named point of the space.")
    ],
    experiment: Name = None,
    space: Space = None,
    data: DataSet = None,
    data_dir: DataDir = None,
    results: Results = Path("results"),
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Print where the training of this trial failed, too.")
    ] = False,
) -> None:
    """Show an architecture, with the parameters and FLOPs of each cell."""
    from nas.experiment import Experiment

    chosen = {"space.name": space, "data.name": data, "data.dir": data_dir and str(data_dir), "results": str(results)}
    if space is not None or data is not None or (experiment is None and not any(results.glob("*/config.toml"))):
        opened = Experiment(config=configuration.read(None, (), **chosen))
    else:
        opened = Experiment.open(experiment, results)
    shown = opened.show(what)
    out.print(drawing.network(shown))
    out.print(shown.architecture.to_json(), soft_wrap=True, highlight=False, markup=False)
    if traceback:
        text = opened.traceback(shown.architecture.key) or "No training of this architecture left a traceback."
        out.print(text, soft_wrap=True, highlight=False, markup=False)


@space_app.command("list")
def list_spaces() -> None:
    """List the search spaces."""
    import search_spaces

    for name, description in search_spaces.available().items():
        space = search_spaces.load(name)
        size = space.size()
        held = (
            "size unknown"
            if size is None
            else "one architecture"
            if size == 1
            else f"{size:,} architectures"
            if size < 1e6
            else f"{size:.2g} architectures"
        )
        out.print(f"{name:<12} {description} ({held}; names {', '.join(space.named()) or 'none'})", soft_wrap=True)


@system_app.command("list")
def list_systems() -> None:
    """List the published systems that `nas run` accepts instead of a config file."""
    from search_spaces import systems

    for name, description in systems.available().items():
        out.print(f"{name:<14} {description}", highlight=False, markup=False, soft_wrap=True)


@data_app.command("list")
def list_data() -> None:
    """List the known data sets."""
    from nas.data import known

    for name, description in known().items():
        out.print(f"{name:<14} {description}", highlight=False, markup=False, soft_wrap=True)
    out.print("Or a .npz file, or a folder with class/image.png, or with images/ and masks/.", highlight=False)


@app.command()
def config(file: ConfigFile = None, set_: Set = None) -> None:
    """Print the whole config with an explanation of every key. Save it as a file to start from."""
    import search_spaces

    resolved = configuration.read(file, set_ or ())
    space = search_spaces.load(resolved.space.name, resolved.space.settings)
    typer.echo(configuration.explained(resolved, space.settings), nl=False)


def main() -> None:
    """Entry point of ``nas``."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end is an interrupt
    try:
        app(standalone_mode=True)
    except NasError as error:
        complaints.print(f"error: {error}", style="red", highlight=False, markup=False)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_best(experiment: Experiment) -> None:
    rows = experiment.leaderboard()
    best = [row for row in rows if row.kind == "reference" or (row.rank or 6) <= 5]
    candidates = sum(row.kind == "candidate" for row in rows)
    title = f"{experiment.config.experiment}: the best of {candidates} candidates"
    out.print(drawing.board(best, title, out.width))


def _print_winner(experiment: Experiment) -> None:
    """The winner's test accuracy beside the references'."""
    for row in sorted(experiment.leaderboard(), key=lambda row: row.kind):
        if row.test_accuracy is not None and (row.rank == 1 or row.kind == "reference"):
            name = f"winner ({row.name})" if row.rank == 1 else row.name
            miou = "" if row.test_miou is None else f", mIoU {100 * row.test_miou:.2f} %"
            out.print(f"{name:<24} test accuracy {drawing.test_accuracy(row)}{miou}", highlight=False, markup=False)


def _print_export(exported: Exported) -> None:
    members, heads = exported.card["members"], exported.card["exported accuracy"]
    shown = {**members, "the ensemble": heads["logits"]} if members else heads
    if len(shown) > 1:
        for name, value in shown.items():
            out.print(f"{name:<24} test accuracy {100 * value:.2f} %", highlight=False, markup=False)
    if "accuracy note" in exported.card:
        out.print(exported.card["accuracy note"], highlight=False, markup=False)
    if "compared" in exported.card:
        out.print(drawing.comparison(exported.card["compared"]))
    for check in exported.checks:
        out.print(
            f"{check.file:<18} verified on {check.images} test images: "
            f"predictions agree {100 * check.agreement:.2f} %, largest logit difference {check.max_difference:.1e}",
            highlight=False,
            markup=False,
        )
    out.print(f"Exported to {exported.folder}", highlight=False, markup=False, soft_wrap=True)
