"""`nas simulate`: replays the ladder and its rivals on a recorded table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Drawn

if TYPE_CHECKING:
    from nas.proxy_fidelity.simulate import Result


def simulate(
    table: Annotated[
        Path,
        typer.Option(
            help="A truth table, or CSV or Parquet with the columns architecture, params, epochs, cost (in full "
            "trainings) and score (higher is better). The surrogate may use all other numeric columns. A column truth, "
            "if present, decides how good the chosen network is."
        ),
    ],
    budget: Annotated[float, typer.Option(help="Budget, in full trainings.")] = 6.0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Number of repeats. Each uses a random half of the table.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random halves and of the policies.")] = 0,
    min_params: Annotated[float | None, typer.Option(help="Leave out architectures with fewer parameters.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Leave out architectures with more parameters.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of simulated workers.")] = 1,
    towers: Annotated[
        str | None, typer.Option(help="For a truth table: the towers of the proxies, such as 'middle 1' or none.")
    ] = None,
    rungs: Annotated[int | None, typer.Option(min=1, help="Number of rungs. [default: ladder.rungs]")] = None,
    factor: Annotated[
        int | None,
        typer.Option(min=2, help="Epochs of a rung divided by those of the rung below. [default: ladder.factor]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Replay the promotion policy and its baselines on a recorded table, without training."""
    from nas.config import LadderConfig
    from nas.errors import ConfigError
    from nas.proxy_fidelity import simulate as simulation
    from nas.proxy_fidelity.calibration import replay
    from nas.proxy_fidelity.simulate import recorded

    rows = recorded.read(table)
    if replay.is_truth_table(rows):
        rows = replay.as_recorded(rows, towers)
    elif towers is not None:
        raise ConfigError(f"--towers chooses among the proxies of a truth table, and {str(table)!r} is none")
    recording = recorded.table(rows, min_params, max_params)
    if budget == math.inf:
        raise ConfigError("budget must be a number of full trainings, got inf")
    if not budget >= recording.dearest:
        raise ConfigError(
            f"budget {budget:g} does not pay for the dearest full training, which costs {recording.dearest:g} "
            "(column cost is in full trainings)"
        )
    chosen = {name: value for name, value in (("rungs", rungs), ("factor", factor)) if value is not None}
    setting = simulation.Simulation(budget, repeats, seed, workers, LadderConfig(**chosen))
    with _bar(repeats) as listen:
        results = simulation.simulate(recording, setting, listen=listen)
    if as_json:
        typer.echo(json.dumps([_row(result, workers) for result in results], indent=2))
    else:
        title = f"{len(recording.params):,} architectures, budget {budget:g} full trainings, {repeats:,} repeats"
        Console(width=None if sys.stdout.isatty() else 140).print(_drawn(results, title, repeats, workers))


def _row(result: Result, workers: int) -> dict[str, Any]:
    row = asdict(result)
    if workers == 1:  # one worker takes as long as the trainings cost
        del row["makespan"]
    return row


@contextmanager
def _bar(repeats: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, on stderr and only where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("repeats", total=repeats)
        yield lambda done: progress.update(task, completed=done)


def _drawn(results: Sequence[Result], title: str, repeats: int, workers: int) -> Drawn:
    drawn = Drawn(title=title)
    drawn.add_column("policy")
    for column in ("P(top 1 %)", "P(top 0.5 %)", "regret", "cost", *(["time"] if workers > 1 else [])):
        drawn.add_column(column, justify="right")
    for one in results:
        probabilities = [_with_interval(p, repeats) for p in (one.p_top1, one.p_top05)]
        time = [f"{one.makespan:.2f}"] if workers > 1 else []
        drawn.add_row(one.policy, *probabilities, f"{one.regret:.4g}", f"{one.cost:.2f}", *time)
    return drawn


def _with_interval(probability: float, repeats: int) -> str:
    """The share with Wilson's 95 % interval."""
    from scipy.stats import binomtest

    interval = binomtest(round(probability * repeats), repeats).proportion_ci(method="wilson")
    return f"{probability:.3f} ({interval.low:.3f}-{interval.high:.3f})"
