"""Whole searches of five minutes without training, on a surrogate made after what was measured.

    python scripts/studies/simulate_searches.py                  the engine and others, 32 times each
    python scripts/studies/simulate_searches.py --ways engine "all at random, 16" --repeats 8

The search is run as it is, on a clock of its own, by one worker who has the time of two. In the place of training
stand two Gaussian processes (in the manner of Zela et al. 2022, Surrogate NAS Benchmarks) over the networks of the
truth table's space: one of accuracies after one epoch, one of those after nine epochs and full training, with a level
for each kind. They are fitted to the truth table and to what the paired searches trained (runs 4 to 9 of
`compare_searches.py`); no test image has a part in them. A network's own part, which nothing foretells, and the
noise of a seed are drawn anew for each repeat. Beforehand it prints how well each process foretells trainings of
searches, and networks of the table, that it was not fitted to. What a search finds is the surrogate's full accuracy of
what it chose.

Where networks are unlike all that was trained, the surrogate takes them to be average: it cannot say what lies there.
As nine epochs and full training are one process, long trainings rank a little too well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, t
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import nas.search.scheduler
import search_spaces
from nas.config import Recipe, SearchConfig, TowersConfig
from nas.evaluation.complexity import complexity
from nas.evaluation.evaluator import Job, Outcome, Setup
from nas.executor import Executor
from nas.ladder import Rung
from nas.progress import Budget
from nas.search.candidates import Candidates
from nas.search.loop import Search
from nas.search.scheduler import POLICY
from nas.store import Store, open_database

REFERENCE = Path("results/reference")
SPACE = search_spaces.load(
    "inception", {"cells": [1, 4], "stem": [4, 16], "widths": [8, 16, 24], "step": 4, "resolution": 8}
)
"""As in scripts/studies/calibrate_reference.py."""

INPUT, CLASSES = (1, 14, 14), 10
RUNS = range(4, 10)
"""Of the paired searches: the surrogate is not made of what it led to."""

OWN, NOISE = 0.0025, 0.003
OWN_SHORT, NOISE_SHORT = 0.004, 0.011
"""Deviations of accuracies: a network's own part and a seed's noise, after full training and after one epoch. Set so
that together they are about what the processes do not foretell, as printed."""

DRAWING = 0.035
"""Seconds that a proposal takes to draw and to count (0.01 and 0.025, measured beside idle workers)."""

RUNGS = tuple(
    Rung(name, Recipe(epochs=epochs, augment=()), TowersConfig(placement="none"))
    for name, epochs in (("proxy", 1), ("x9", 9))
)
KINDS = ("5x5", "3x3+3x3", "1x7+7x1")


def features(definition: str) -> list[float]:
    """Widths, kinds and numbers of cells of each stage, and the logarithms of parameters and FLOPs."""
    network = json.loads(definition)
    found: list[float] = [network["stem"], sum(map(len, network["stages"]))]
    for cells in network["stages"]:
        cell = cells[0]
        widths = [cell[name] for name in ("one", "three", "five", "pool")]
        kinds = [cell["five"] > 0 and cell["five_kind"] == kind for kind in KINDS]
        average = cell["pool"] > 0 and cell["pool_kind"] == "avg"
        found += [len(cells), *widths, sum(widths), cell["three_reduce"], cell["five_reduce"], *kinds, average]
    size = complexity(SPACE, SPACE.architecture_type.from_json(definition), INPUT, CLASSES)
    return [*map(float, found), float(np.log(size.params)), float(np.log(size.flops))]


def measured(most: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(one epoch, longer): definition, accuracy, kind of training (so many of each), and of which search or network."""
    searches = pd.read_parquet(REFERENCE / "comparison/calibrated/candidates.parquet")
    searches = searches[searches["run"].isin(RUNS)].assign(group=lambda rows: "run " + rows["run"].astype(str))
    table = pd.read_parquet(REFERENCE / "calibration/truth.parquet")
    table["group"] = table["architecture"]
    one: list[pd.DataFrame] = []
    longer: list[pd.DataFrame] = []
    for (method, times), part in searches.groupby(["method", "times"]):
        part = part if len(part) <= most else part.sample(most, random_state=0)
        (one if times == 1 else longer).append(part.assign(kind=f"{method} {times:g}"))
    for towers in ("middle 1", "none"):
        part = table[(table["epochs"] == 1) & ~table["full"] & (table["towers"] == towers)]
        mean = part.groupby("group").agg(definition=("definition", "first"), accuracy=("val_accuracy", "mean"))
        one.append(mean.reset_index().assign(kind=f"table {towers}"))
    full = table[table["rung"] == "full"].groupby("group")
    mean = full.agg(definition=("definition", "first"), accuracy=("truth_accuracy", "mean"))
    longer.append(mean.reset_index().assign(kind="full"))
    return pd.concat(one), pd.concat(longer)


class Process:
    """One Gaussian process over networks, with a level for each kind of training."""

    def __init__(self, name: str, rows: pd.DataFrame) -> None:
        self._kinds = sorted(rows["kind"].unique())
        kernel = (
            ConstantKernel() * Matern(10, (1, 300), nu=1.5)
            + ConstantKernel(1, (1e-8, 1e5)) * DotProduct(1)
            + WhiteKernel(0.3)
        )
        self._model = make_pipeline(
            StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        )
        inputs = np.array(
            [self._row(features(one), kind) for one, kind in zip(rows["definition"], rows["kind"], strict=True)]
        )
        said = cross_val_predict(self._model, inputs, rows["accuracy"], groups=rows["group"], cv=GroupKFold(6))
        for kind in self._kinds:
            own = (rows["kind"] == kind).to_numpy()
            tau = kendalltau(said[own], rows["accuracy"][own]).statistic
            off = np.std(said[own] - rows["accuracy"][own])
            print(f"{name:8} {kind:16} {own.sum():5} networks: tau {tau:.2f}, off by {100 * off:.2f} points")
        self._model.fit(inputs, rows["accuracy"])

    def _row(self, network: list[float], kind: str) -> list[float]:
        return [*network, *(float(kind == one) for one in self._kinds)]

    def say(self, network: list[float], kind: str) -> float:
        """Its accuracy in a training of this kind."""
        return float(self._model.predict(np.array([self._row(network, kind)]))[0])


class Surrogate:
    """Accuracies and seconds of trainings, of networks of this space."""

    def __init__(self, most: int) -> None:
        one, longer = measured(most)
        self._one, self._longer = Process("1 epoch", one), Process("longer", longer)
        self._known: dict[tuple[str, bool], tuple[float, float, float]] = {}

    def scores(self, architecture: Any, towers: bool, seed: int) -> tuple[float, float, float]:
        """Full accuracy, and those after nine epochs and one."""
        key = architecture.key, towers
        if key not in self._known:
            network = features(architecture.to_json())
            short = self._one.say(network, "engine 1" if towers else "tpe 1")
            self._known[key] = self._longer.say(network, "full"), self._longer.say(network, "engine 9"), short
        full, nine, short = self._known[key]
        number = int(hashlib.sha256(f"{architecture.key}/{seed}".encode()).hexdigest()[:12], 16)
        own, own_short, *noise = np.random.default_rng(number).standard_normal(5)
        own_short = (own + 3**0.5 * own_short) / 2
        short += OWN_SHORT * own_short + NOISE_SHORT * noise[1 + towers]
        return full + OWN * own, nine + 0.8 * OWN * own + NOISE * noise[0], short

    @staticmethod
    def seconds(flops: float, epochs: int, towers: bool) -> float:
        """As runs 4 to 9 took, by least squares on FLOPs; an epoch of nine takes nine tenths of one alone."""
        one = 2.27 + 0.47e-6 * flops if towers else 1.42 + 1.06e-6 * flops
        return one * (1 if epochs == 1 else 0.9 * epochs)


class Clock(Budget):
    """Time that passes when a network is trained."""

    def __init__(self, records: Store, seconds: float) -> None:
        super().__init__(records, seconds)
        self._whole = seconds
        self.now = 0.0

    def left_to_search(self, share: float) -> float:
        return max(0.0, self._whole - self.now)

    @property
    def searched(self) -> float:
        return self.now


class Worker(Executor):
    """One worker, who has the surrogate's answer at once and lets the clock go on."""

    workers, on_gpu, concurrent = 1, False, False

    def __init__(
        self, surrogate: Surrogate, clock: Clock, networks: Mapping[str, Any], towers: bool, seed: int
    ) -> None:
        self._surrogate, self._clock, self._networks = surrogate, clock, networks
        self._towers, self._seed = towers, seed
        self._queue: deque[Job] = deque()

    @property
    def running(self) -> int:
        return len(self._queue)

    def use(self, setting: Setup) -> None:
        raise NotImplementedError

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        if timeout == 0 or not self._queue:
            return []
        job = self._queue.popleft()
        network = self._networks[job.key]
        _, nine, one = self._surrogate.scores(network, self._towers, self._seed)
        score = one if job.rung.epochs == 1 else nine
        size = complexity(SPACE, network, INPUT, CLASSES)
        seconds = self._surrogate.seconds(size.flops, job.rung.epochs, self._towers)
        self._clock.now += seconds
        signals = {"params": float(size.params), "flops": float(size.flops), "val_loss": -score, "val_accuracy": score}
        return [Outcome(job, job.measurement("done", signals, {"seconds": seconds, "images": 1.0}, ()), None)]

    def close(self) -> None:
        self._queue.clear()


class NeverAtRandom(Search):
    """All proposals are the sampler's."""

    draws_at_random = False


WAYS: dict[str, dict[str, Any]] = {
    "engine": {},
    "engine, a half promoted": {"full": 1 / 2},
    "engine, a third promoted": {"full": 1 / 3},
    "engine, 4 proposals": {"proposals": 4},
    "engine, 8 proposals": {"proposals": 8},
    "none at random, 4": {"proposals": 4, "kind": NeverAtRandom},
    "none at random, 16": {"kind": NeverAtRandom},
    "none at random, 1": {"proposals": 1},
    "all at random, 16": {"sampler": "random"},
    "one epoch alone, TPE": {"proposals": 1, "rungs": 1, "towers": False, "warm": False},
}


def searched(
    surrogate: Surrogate,
    seconds: float,
    seed: int,
    sampler: str = "tpe",
    proposals: int | None = None,
    full: float | None = None,
    rungs: int = 2,
    towers: bool = True,
    warm: bool = True,
    kind: type[Search] = Search,
) -> dict[str, Any]:
    """One search: what it found, who was promoted, and how many."""
    networks: dict[str, Any] = {}

    class Remembering(type(SPACE)):  # type: ignore[misc]
        def suggest(self, trial: Any) -> Any:
            architecture = super().suggest(trial)
            networks[architecture.key] = architecture
            return architecture

    class Drawn(Candidates):
        def sizes(self, architecture: Any) -> dict[str, float]:
            clock.now += DRAWING
            return super().sizes(architecture)

    asked = {} if proposals is None else {"proposals": proposals}
    limits = SearchConfig(time=seconds, sampler=sampler, **asked, **({} if warm else {"warm_start": ()}))
    nas.search.scheduler.POLICY = POLICY if full is None else replace(POLICY, full=full)
    with tempfile.TemporaryDirectory() as folder:
        engine = open_database(f"sqlite:///{folder}/study.db")
        records = Store(engine, "surrogate")
        candidates, clock = Drawn(Remembering(SPACE.settings), INPUT, CLASSES, limits), Clock(records, seconds)
        worker = Worker(surrogate, clock, networks, towers, seed)
        kind(candidates, RUNGS[:rungs], seed, records, worker, clock, lambda event: None).run(None)
        done = [entry.measurement for entry in records.all()]
        engine.dispose()
    longest = [one for one in done if one.rung == RUNGS[rungs - 1].key] or done
    best = min(longest, key=lambda one: one.signals["val_loss"])
    truths = {one.key: surrogate.scores(networks[one.key], towers, seed)[0] for one in done}
    promoted = [truths[one.key] for one in longest]
    return {
        "found": truths[best.key],
        "candidates": len(truths),
        "candidates_accuracy": float(np.mean(list(truths.values()))),
        "promoted": len(longest),
        "promoted_accuracy": float(np.mean(promoted)),
        "promoted_deviation": float(np.std(promoted)),
        "params": best.signals["params"],
    }


made = cache(Surrogate)


def one_search(most: int, seconds: float, asked: tuple[int, str]) -> dict[str, Any]:
    seed, way = asked
    with threadpool_limits(1):
        return {"way": way, "seed": seed} | searched(made(most), seconds, seed, **WAYS[way])


def report(searches: pd.DataFrame) -> pd.DataFrame:
    """A row a way: means, and how far what it finds is behind what the first finds, paired by seed."""
    found = searches.pivot(index="seed", columns="way", values="found")
    rows = []
    for way, own in searches.groupby("way", sort=False):
        behind = found[searches["way"].iloc[0]] - found[way]
        half = t.ppf(0.975, len(behind) - 1) * behind.std() / np.sqrt(len(behind)) if len(behind) > 1 else np.nan
        about = {"way": way, "searches": len(own), "deviation": own["found"].std()}
        means = own.drop(columns=["way", "seed"]).mean().to_dict()
        mean = behind.mean()
        rows.append(about | means | {"behind": mean, "low": mean - half, "high": mean + half})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS), help="the first is the measure")
    parser.add_argument("--repeats", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2 * 300.0, help="of one core, that a search has")
    parser.add_argument("--most", type=int, default=600, help="trainings of a kind that are fitted to")
    parser.add_argument("--to", type=Path, default=REFERENCE / "comparison")
    given = parser.parse_args()
    made(given.most)  # before there are processes: they have it then
    asked = list(product(range(given.repeats), given.ways))
    found = []
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        for number, one in enumerate(pool.map(partial(one_search, given.most, given.seconds), asked), 1):
            found.append(one)
            print(f"{number}/{len(asked)} searches", flush=True)
    table = report(pd.DataFrame(found))
    print(table.round(4).to_string(index=False))
    given.to.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.to / "simulated.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
