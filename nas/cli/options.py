"""What several commands share: options, the terminal, and the display of progress."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from nas.cli import drawing

if TYPE_CHECKING:
    from nas.experiment import Experiment

out = Console(width=None if sys.stdout.isatty() else 140)
complaints = Console(stderr=True, soft_wrap=True)

ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        help="A TOML file (see `nas config`), or the name of a system (`nas system list`).", show_default=False
    ),
]
Name = Annotated[str | None, typer.Argument(help="Name of the experiment; unset: the latest one.", show_default=False)]
ToRetrain = Annotated[
    str | None,
    typer.Argument(help="An experiment, a TOML file or a system; unset: the latest experiment.", show_default=False),
]
Results = Annotated[Path, typer.Option(help="Folder that holds the experiments.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Set any key of the config: section.key=value. Can be repeated.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print one line per candidate, even if the output is not a terminal.")
]

NewName = Annotated[str | None, typer.Option("--name", help="Name of the experiment.")]
Space = Annotated[str | None, typer.Option(help="Name of a search space, or file.py:Name.")]
DataSet = Annotated[str | None, typer.Option("--data", help="A known data set, a .npz file or an image folder.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder that holds the known data sets.")]
Trials = Annotated[int | None, typer.Option(help="Number of candidates to measure.")]
Time = Annotated[str | None, typer.Option(help="Time budget, such as 30m.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything except the split.")]
Workers = Annotated[int | None, typer.Option(help="Number of workers.")]
Calibrate = Annotated[
    int | None, typer.Option(help="Number of candidates that also get a full training, to measure the ranking.")
]
Seeds = Annotated[int | None, typer.Option(help="Number of seeds from which the winner is trained.")]
References = Annotated[
    bool | None,
    typer.Option(
        "--references/--no-references", help="Also train textbook networks and random networks, for comparison."
    ),
]
NewResults = Annotated[Path | None, typer.Option("--results", help="Folder that holds the experiments.")]


def keys_of(
    name: str | None,
    space: str | None,
    data: str | None,
    data_dir: Path | None,
    trials: int | None,
    time: str | None,
    seed: int | None,
    workers: int | None,
    calibrate: int | None,
    results: Path | None,
) -> dict[str, Any]:
    """The options that stand for keys of the file, by those keys."""
    return {
        "name": name,
        "space.name": space,
        "data.name": data,
        "data.dir": data_dir and str(data_dir),
        "search.trials": trials,
        "search.time": time,
        "seed": seed,
        "executor.workers": workers,
        "search.calibrate": calibrate,
        "results": results and str(results),
    }


@contextmanager
def watching(experiment: Experiment, verbose: bool = False) -> Iterator[None]:
    """Shows the work; ends it cleanly at Ctrl-C. What was measured is saved as it comes."""
    try:
        with drawing.Screen(out, verbose) as screen:
            experiment.listen = screen
            yield
    except KeyboardInterrupt:
        command = shlex.join(["nas", *sys.argv[1:]])
        complaints.print(f"Stopped; what was measured is saved. To go on: {command}", highlight=False, markup=False)
        raise typer.Exit(130) from None
