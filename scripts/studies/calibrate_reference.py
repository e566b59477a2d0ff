"""The published truth table: random Inception architectures on Fashion-MNIST at 14x14 pixels.

    python scripts/studies/calibrate_reference.py pilot --data-dir DIR    32 other architectures, to choose the arms by
    python scripts/studies/calibrate_reference.py collect --data-dir DIR  the table itself, 160 architectures
    python scripts/studies/calibrate_reference.py thinner --data-dir DIR  networks of half the width
    python scripts/studies/calibrate_reference.py nine --data-dir DIR     nine epochs: choose by loss or accuracy?
    python scripts/studies/calibrate_reference.py collect --small         a run of a minute on digits, to try the script

Trained on images 0-9,999, proxies scored on 50,000-59,999, truth on 10,000-49,999; the test split is not touched.
Architectures have 3 to 12 cells with batch norm; a stem of stride 2 makes 160 of them affordable on two cores. All is
trained by the engine's own executor and is in its table when it is done: stop and start at will. The table is
written anew after every 20 measurements, so that there is always one to look at.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nas import executor
from nas.config import DataConfig, ExecutorConfig, Recipe, TowersConfig
from nas.data import Data, load_for_truth
from nas.evaluation.evaluator import SpaceSpec
from nas.ladder import Rung
from nas.progress import Event
from nas.proxy_fidelity.calibration.agreement import bootstrap, estimate
from nas.steps import truth
from nas.store import Store, open_database

SPACE = {"cells": [1, 4], "stem": [4, 16], "widths": [8, 16, 24], "step": 4, "resolution": 8}
FULL = Recipe(epochs=20, augment=(), learning_rate=0.1)
PILOT_SEED, TABLE_SEED = 1, 2
MIDDLE, HEAVY = TowersConfig(placement="middle", weight=0.3), TowersConfig(placement="middle", weight=1.0)
THIRDS = TowersConfig(placement="thirds", weight=0.3)

PROXY = Recipe(augment=(), learning_rate=0.1)
NARROW = Recipe(augment=(), learning_rate=0.1, batch_size=64)
ARMS = {"middle-1.0": (HEAVY, PROXY), "thirds-0.3": (THIRDS, NARROW)}
"""Each arm's learning rate and batch size, by tau of the validation loss on the pilot; without towers `NARROW`."""


def pilot() -> tuple[truth.Arm, ...]:
    """Which towers, learning rate and batch size: one proxy seed, one full seed."""
    seeds = (truth.PROXY_SEEDS,)
    settings = {"none": truth.NONE, "middle-0.3": MIDDLE, "middle-1.0": HEAVY, "thirds-0.3": THIRDS}
    wanted = [(1, name, rate, 128) for name in settings for rate in (0.03, 0.1, 0.3)]
    wanted += [(1, name, 0.1, 64) for name in settings]
    wanted += [(3, name, rate, 128) for name in ("none", "middle-1.0") for rate in (0.03, 0.1, 0.3)]
    found = [truth.free_arm(PROXY, seeds)]
    for epochs, name, rate, batch in wanted:
        recipe = Recipe(epochs=epochs, augment=(), learning_rate=rate, batch_size=batch, readings=(epochs,))
        paid = HEAVY if name == "none" else None
        rung = Rung(f"{epochs}-{name}-lr{rate}-b{batch}", recipe, settings[name], as_costly_as=paid)
        found.append(truth.Arm(rung, seeds))
    return (*found, truth.full_arm(FULL, (1, 3, 9), 1))


def main_arms() -> tuple[truth.Arm, ...]:
    """The table's arms: chosen on the pilot, then left alone."""
    usual = truth.arms(ARMS, NARROW, FULL, (1, 3), 2, 2)
    full = truth.full_arm(FULL, (1, 3, 9), 2)
    third = replace(full, seeds=(2,), first=16)
    towered = Rung("full-towers", FULL, HEAVY, truth=True)
    longer = Rung("full-longer", FULL.model_copy(update={"epochs": 60}), truth.NONE, truth=True)
    return (*usual[:-1], full, third, truth.Arm(towered, (0,), first=24), truth.Arm(longer, (0,), first=24))


def half_width() -> tuple[truth.Arm, ...]:
    """Proxies without towers, of the network itself and of one of half its width; the truth is the table's."""
    own = [arm for arm in main_arms() if arm.rung.towers == truth.NONE and arm.first is None]
    thin = [arm for arm in truth.arms({}, NARROW, FULL, (1, 3), 2, 2, width=0.5) if arm.rung.is_variant]
    return (*own, *thin)


def nine() -> tuple[truth.Arm, ...]:
    """Nine epochs, as at a search's higher rung, with the table's first towers; the truth is the table's."""
    return (truth.Arm(Rung("9-middle-1.0", PROXY.model_copy(update={"epochs": 9}), HEAVY), (truth.PROXY_SEEDS,)),)


def against_truth(table: pd.DataFrame, scores: Mapping[Any, pd.DataFrame], one: Any, other: Any) -> dict[Any, Any]:
    """For each ranking (a row an architecture, a column a seed) tau with its interval; how far ahead `one` is."""
    truths = table[table["full"]].pivot_table(index="architecture", columns="seed", values="truth_accuracy")
    count, groups = len(truths), np.ones((1, len(truths)), bool)
    values = [score.loc[truths.index].to_numpy() for score in scores.values()]
    found = bootstrap(values, truths.to_numpy()[None], groups, 1000, 0)
    rows: dict[Any, Any] = {}
    for place, name in enumerate(scores):
        tau = estimate(found.tau[0, place], found.taus[:, 0, place], count)
        rows[name] = {"tau": tau.value, "low": tau.low, "high": tau.high, "architectures": count}
    ahead, behind = list(scores).index(one), list(scores).index(other)
    difference = found.tau[0, ahead] - found.tau[0, behind]
    apart = estimate(difference, found.taus[:, 0, ahead] - found.taus[:, 0, behind], count)
    rows[one] |= {"difference": apart.value, "difference_low": apart.low, "difference_high": apart.high}
    return rows


def by_seed(proxies: pd.DataFrame, signal: str) -> pd.DataFrame:
    return proxies.pivot_table(index="architecture", columns="seed", values=signal)


def loss_or_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """A row a number of epochs and signal: tau, cost, and how far accuracy is ahead of the loss.

    `table` has the proxies of one arm at several epochs, and full trainings.
    """
    full, found = table[table["full"]]["multiply_adds"].mean(), []
    for epochs, own in table[~table["full"]].groupby("epochs"):
        scores = {"val_loss": -by_seed(own, "val_loss"), "val_accuracy": by_seed(own, "val_accuracy")}
        about = {"cost": own["multiply_adds"].mean() / full, "seeds": own["seed"].nunique()}
        for signal, row in against_truth(table, scores, "val_accuracy", "val_loss").items():
            found.append({"epochs": epochs, "signal": signal} | row | about)
    return pd.DataFrame(found)


def in_its_place(table: pd.DataFrame) -> pd.DataFrame:
    """A row a number of epochs and width: tau of the validation loss, cost, and how far behind the whole network."""
    full, found = table[table["full"]]["multiply_adds"].mean(), []
    for epochs, own in table[~table["full"] & (table["epochs"] > 0)].groupby("epochs"):
        scores = {width: -by_seed(part, "val_loss") for width, part in own.groupby("width")}
        for width, row in against_truth(table, scores, min(scores), 1.0).items():
            cost = own[own["width"] == width]["multiply_adds"].mean() / full
            found.append({"epochs": epochs, "width": width} | row | {"cost": cost})
    return pd.DataFrame(found)


def small(arms: tuple[truth.Arm, ...]) -> tuple[truth.Arm, ...]:
    """The same arms on few images and seeds."""

    def shorter(arm: truth.Arm) -> truth.Arm:
        epochs = min(4, arm.rung.epochs)
        recipe = arm.rung.recipe.model_copy(update={"epochs": epochs, "readings": (epochs,)})
        return replace(arm, rung=replace(arm.rung, recipe=recipe), seeds=arm.seeds[:1])

    return tuple(shorter(arm) for arm in arms)


def plan(which: str, data: Data, architectures: int, is_small: bool) -> truth.Plan:
    """What is collected."""
    spec = SpaceSpec.of("inception", SPACE)
    seed = PILOT_SEED if which == "pilot" else TABLE_SEED
    chosen = truth.random_architectures(spec.load(), architectures, seed)
    arms = {"pilot": pilot, "collect": main_arms, "thinner": half_width, "nine": nine}[which]()
    return truth.Plan(spec, data, chosen, small(arms) if is_small else arms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("pilot", "collect", "thinner", "nine"))
    parser.add_argument("--data-dir", type=Path, help="where fashion-mnist lies; left out: it is downloaded")
    parser.add_argument("--architectures", type=int, help="how many; left out: 32 for the pilot, 160 for the table")
    parser.add_argument("--folder", type=Path, help="measurements; left out: results/calibration, or -small")
    parser.add_argument("--to", type=Path, help="the table; left out: results/reference/calibration; small: the folder")
    parser.add_argument("--executor", choices=("ray", "in-process"), default="ray")
    parser.add_argument("--small", action="store_true", help="digits, four architectures, at most four epochs")
    given = parser.parse_args()
    given.folder = given.folder or Path("results/calibration-small" if given.small else "results/calibration")
    given.to = given.to or (given.folder if given.small else Path("results/reference/calibration"))
    if given.small:
        data = load_for_truth(DataConfig(), 600, 300)
    else:
        data = load_for_truth(DataConfig(name="fashion-mnist", dir=given.data_dir, shrink=2), 10_000, 10_000)
    count = given.architectures or (4 if given.small else 32 if given.which == "pilot" else 160)
    wanted = plan(given.which, data, count, given.small)
    given.folder.mkdir(parents=True, exist_ok=True)
    study = "pilot" if given.which == "pilot" else "collect"
    records = Store(open_database(f"sqlite:///{(given.folder / 'measurements.db').resolve()}"), study)
    name = "truth" if given.which == "collect" else given.which
    file = given.to / f"{name}.parquet"
    counter = itertools.count(1)

    def tell(event: Event) -> None:
        if event.measurement is not None:
            one = event.measurement
            shown = one.cause or f"{one.signals.get('truth_accuracy', one.signals.get('val_accuracy', 0)):.2%}"
            print(f"{event.progress.done}/{event.progress.total}  {event.name}: {shown}", flush=True)
            if next(counter) % 20 == 0:
                truth.write(truth.table(wanted, records), file)

    with executor.start(ExecutorConfig(kind=given.executor)) as workers:
        truth.collect(wanted, workers, records, tell)
    truth.write(table := truth.table(wanted, records), file)
    found = None
    if given.which == "thinner":
        found = in_its_place(table)
    elif given.which == "nine" and (given.to / "truth.parquet").is_file():
        known = pd.read_parquet(given.to / "truth.parquet")
        known = known[known["architecture"].isin(table["architecture"])]
        usual = known[(known["rung"] == "full") | known["rung"].isin(["1-middle-1.0", "3-middle-1.0"])]
        found = loss_or_accuracy(pd.concat([usual, table]))
    if found is not None:
        found.to_csv(file.with_suffix(".csv"), index=False, float_format="%.6g")
        print(found.to_string(index=False))


if __name__ == "__main__":
    main()
