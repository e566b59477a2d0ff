"""`nas plan`: predicts the time of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nas import config as configuration
from nas.cli.drawing import duration
from nas.cli.options import (
    Calibrate,
    ConfigFile,
    DataDir,
    DataSet,
    Seed,
    Set,
    Space,
    Time,
    Trials,
    Verbose,
    Workers,
    keys_of,
    out,
    watching,
)
from nas.progress import counted

if TYPE_CHECKING:
    from nas.steps.plan import Plan


def plan(
    config: ConfigFile = None,
    space: Space = None,
    data: DataSet = None,
    data_dir: DataDir = None,
    trials: Trials = None,
    time: Time = None,
    seed: Seed = None,
    workers: Workers = None,
    calibrate: Calibrate = None,
    set_: Set = None,
    verbose: Verbose = False,
) -> None:
    """Predict how long `nas run` takes with these options: train a few candidates for seconds, write nothing."""
    from nas.experiment import Experiment

    keys = keys_of(None, space, data, data_dir, trials, time, seed, workers, calibrate, None)
    experiment = Experiment(config=configuration.read(config, set_ or (), **keys))
    with watching(experiment, verbose):
        found = experiment.plan()
    out.print(drawn(found))


def drawn(found: Plan) -> Table:
    """A row a part."""
    table = Table(title="What `nas run` will take", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.add_column("part")
    table.add_column("time", justify="right")
    table.add_column("what", overflow="fold")
    went_on = f", {found.promotions} of them again for longer" if found.promotions else ""
    parts = [
        ("start", found.start_seconds, f"{counted(found.workers, 'worker')}, the data, the first network"),
        (
            "search",
            found.search_seconds,
            f"{counted(found.candidates, 'candidate')}{went_on}; {found.candidates_an_hour:,.0f} candidates an hour",
        ),
        ("calibration", found.calibration_seconds, counted(found.calibrated, "full training")),
        ("retraining", found.retrain_seconds, _retraining(found)),
        ("export", found.writing_seconds, "verified files and the model card"),
        ("all", found.seconds, f"{found.memory / 2**20:,.0f} MiB a worker"),
    ]
    for name, seconds, what in parts:
        if seconds:
            table.add_row(name, duration(seconds), what)
    return table


def _retraining(found: Plan) -> str:
    """``winner: 1 training of 8 min, about 5,100 steps``"""
    steps = int(float(f"{found.steps:.2g}"))
    references = f"; {counted(found.references, 'reference')} alike" if found.references else ""
    return (
        f"winner: {counted(found.trainings, 'training')} of {duration(found.training_seconds)}, "
        f"about {counted(steps, 'step')}{references}"
    )
