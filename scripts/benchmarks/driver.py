"""What the driver costs beside the trainings: candidates that do nothing, a large cluster, boards, and starting up.

    python scripts/benchmarks/driver.py            all parts; driver.csv and driver-course.csv
    python scripts/benchmarks/driver.py --small    a fiftieth of it, to try the script

search     1,000 candidates of 20 numbers and a tiny network, over Ray with durable storage and the default ladder;
           the sampler's own time is taken out and shown apart
cluster    the same loop with 1,000 workers of virtual time: trainings last a minute in the mean (log-normal), the
           clock also runs while the driver thinks; the share of their time that workers are busy
board      `nas leaderboard` of 30, 1,000 and 10,000 records
start      from `nas search` to the first training step, and `nas --help`; the median of five
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

import nas
from nas.config import Config, ExecutorConfig
from nas.evaluation.evaluator import Job, Outcome, Setup
from nas.executor import Executor
from nas.progress import Event
from nas.search import proposer as proposers
from nas.search import study as studies
from nas.search.loop import Search
from nas.steps.driver import driving
from nas.store import Measurement, Proposal, Store, open_database

SPACE = f"{Path(__file__).resolve().parent / 'baselines' / 'nothing.py'}:Nothing"
TRAINING = 60.0
"""Seconds of a virtual training at the lowest rung, in the mean."""

SPREAD = 0.5
"""Deviation of the logarithm of a training's seconds."""


class Timed(optuna.samplers.BaseSampler):
    """A sampler, and the seconds spent in it."""

    seconds = 0.0

    def __init__(self, sampler: optuna.samplers.BaseSampler) -> None:
        self._sampler = sampler

    @property
    def _search_space(self) -> Any:
        """Samplers in a row share what they found in the trials."""
        return self._sampler._search_space  # type: ignore[attr-defined]

    @_search_space.setter
    def _search_space(self, found: Any) -> None:
        self._sampler._search_space = found  # type: ignore[attr-defined]

    def infer_relative_search_space(self, *given: Any) -> Any:
        return self._timed(self._sampler.infer_relative_search_space, *given)

    def sample_relative(self, *given: Any) -> Any:
        return self._timed(self._sampler.sample_relative, *given)

    def sample_independent(self, *given: Any) -> Any:
        return self._timed(self._sampler.sample_independent, *given)

    def before_trial(self, *given: Any) -> None:
        self._timed(self._sampler.before_trial, *given)

    def after_trial(self, *given: Any) -> None:
        self._timed(self._sampler.after_trial, *given)

    @staticmethod
    def _timed(call: Callable[..., Any], *given: Any) -> Any:
        begin = time.perf_counter()
        try:
            return call(*given)
        finally:
            Timed.seconds += time.perf_counter() - begin


@contextmanager
def sampler_timed() -> Iterator[None]:
    """Every sampler of the engine's is timed inside."""
    make = studies.make_sampler
    vars(proposers)["make_sampler"] = lambda name, seed: Timed(make(name, seed))
    try:
        yield
    finally:
        vars(proposers)["make_sampler"] = make


class Course:
    """Seconds since the start, without and in the sampler, after each new candidate."""

    def __init__(self) -> None:
        self._begin, Timed.seconds = time.perf_counter(), 0.0
        self.rows: list[dict[str, float]] = []

    def __call__(self, event: Event) -> None:
        if event.measurement is not None:
            now = time.perf_counter() - self._begin
            new_candidate = bool(event.name and event.name.count(" ") == 1)
            self.rows.append({"seconds": now - Timed.seconds, "sampler": Timed.seconds, "new_candidate": new_candidate})


def config(folder: Path, **search: Any) -> Config:
    """Two rungs, 1 and 9 epochs, of one step each."""
    return Config.model_validate(
        {
            "name": "driver",
            "results": str(folder),
            "space": {"name": SPACE},
            "search": {"calibrate": 0, **search},
            "proxy": {"epochs": 1, "images": 128, "augment": []},
            "retrain": {"epochs": 81},
            "executor": {"workers": 2},
        }
    )


def search(count: int) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """The search of candidates that do nothing, and its course."""
    with tempfile.TemporaryDirectory() as folder, sampler_timed():
        course = Course()
        nas.Experiment(config=config(Path(folder), trials=count), listen=course).search()
    table = pd.DataFrame(course.rows)
    table.insert(0, "candidate", table["new_candidate"].cumsum())
    table = table[table["new_candidate"] == 1].drop(columns="new_candidate").reset_index(drop=True)
    rows = []
    for at in (count // 10, count):
        window = table[(table["candidate"] > at - max(at // 5, 3)) & (table["candidate"] <= max(at, 3))]
        steps, sampler = (window[column].iloc[[0, -1]].diff().iloc[1] for column in ("seconds", "sampler"))
        rows.append(row("search", f"milliseconds a candidate, up to the {at}th", 1e3 * steps / (len(window) - 1)))
        rows.append(row("search", f"of the sampler, beside that, up to the {at}th", 1e3 * sampler / (len(window) - 1)))
    whole = table["seconds"].iloc[-1] - table["seconds"].iloc[0]
    rows.append(row("search", "candidates a second without the sampler", (len(table) - 1) / whole))
    rows.append(row("search", "the last against the tenth part's", rows[2]["value"] / rows[0]["value"]))
    return rows, table


class Virtual(Executor):
    """Workers that sleep in virtual time, which runs on while the driver thinks."""

    on_gpu = False

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._flying: list[tuple[float, int, Job]] = []
        self._skipped = 0.0
        self._chance = np.random.default_rng(0)
        self._begin = time.perf_counter()
        self.spans: list[tuple[float, float, Job]] = []

    @property
    def now(self) -> float:
        """Seconds of virtual time."""
        return time.perf_counter() - self._begin + self._skipped

    @property
    def running(self) -> int:
        return len(self._flying)

    def use(self, setting: Setup) -> None: ...

    def submit(self, job: Job) -> None:
        seconds = TRAINING * job.rung.epochs * math.exp(self._chance.normal(-(SPREAD**2) / 2, SPREAD))
        self.spans.append((self.now, self.now + seconds, job))
        heapq.heappush(self._flying, (self.now + seconds, len(self.spans), job))

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        if self._flying and self._flying[0][0] > self.now and timeout != 0.0:
            self._skipped += self._flying[0][0] - self.now
        outcomes = []
        while self._flying and self._flying[0][0] <= self.now:
            job = heapq.heappop(self._flying)[2]
            outcomes.append(
                Outcome(job, job.measurement("done", signals(self._chance), {"seconds": TRAINING}, ()), None)
            )
        return outcomes

    def close(self) -> None: ...


def signals(chance: np.random.Generator) -> dict[str, float]:
    """What a training would have given."""
    loss = float(chance.normal(0.5, 0.1))
    return {"val_loss": loss, "val_accuracy": 1 - loss, "params": 1e5, "flops": 1e7, "tse_ema": loss}


def cluster(workers: int, rounds: int) -> list[dict[str, Any]]:
    """How busy so many workers are, from when all have begun to the last time that a new candidate is sent to one."""
    with tempfile.TemporaryDirectory() as folder, sampler_timed():
        wanted = config(Path(folder), trials=workers * rounds).model_copy(
            update={"executor": ExecutorConfig(kind="in-process")}
        )
        with driving(wanted, lambda event: None) as driver:
            virtual = Virtual(workers)
            candidates = driver.candidates(None)
            given = (driver.records, virtual, driver.budget, lambda event: None)
            Timed.seconds = 0.0
            begin = time.perf_counter()
            Search(candidates, driver.rungs, 0, *given).run(workers * rounds)
            took = time.perf_counter() - begin
    first = virtual.spans[workers - 1][0]
    last = max(begun for begun, _, job in virtual.spans if job.rung == driver.rungs[0])
    busy = sum(max(0.0, min(end, last) - max(begun, first)) for begun, end, _ in virtual.spans)
    return [
        row("cluster", f"share of {workers} workers busy", busy / (workers * (last - first))),
        row("cluster", "virtual seconds", last - first),
        row("cluster", "seconds of the driver", took),
        row("cluster", "of which the sampler's", Timed.seconds),
    ]


def board(count: int) -> list[dict[str, Any]]:
    """Seconds of `nas leaderboard`, in a process of its own, of so many records."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = config(Path(folder), trials=1).model_copy(update={"executor": ExecutorConfig(kind="in-process")})
        nas.Experiment(config=wanted).search()
        records = Store(open_database(wanted.database), wanted.experiment)
        rung = records.fact("rungs")[0]
        chance = np.random.default_rng(0)
        for number in range(1, count):
            found = signals(chance) | {"flops": float(chance.integers(10**6, 10**8))}
            text = json.dumps({"numbers": [number]})
            key = f"{number:012x}"
            records.add_proposal(Proposal(number, number, number + 1, text, key, {}, {}, "sampler"))
            records.add(Measurement(text, key, rung, 0, "done", found, {"seconds": 1.0}))
        words = [sys.executable, "-m", "nas", "leaderboard", "driver", "--results", folder]
        return [row("board", f"seconds of {count} records", statistics.median(clocked(words) for _ in range(3)))]


def start(repeats: int) -> list[dict[str, Any]]:
    """Seconds from `nas search` to the first training step, and of `nas --help`."""
    found = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "started")
            begin = time.time()
            words = ["search", "--space", SPACE, "--trials", "2", "--workers", "2", "--results", folder]
            clocked([sys.executable, "-m", "nas", *words], NAS_BENCHMARK_STARTED=str(file))
            found.append(float(file.read_text()) - begin)
    helped = statistics.median(clocked([sys.executable, "-m", "nas", "--help"]) for _ in range(repeats))
    rows = [row("start", "seconds to the first training step", statistics.median(found))]
    rows += [row("start", "the longest of them", max(found)), row("start", "seconds of nas --help", helped)]
    return rows


def clocked(words: list[str], **environment: str) -> float:
    begin = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    return time.perf_counter() - begin


def row(part: str, what: str, value: float) -> dict[str, Any]:
    print(f"{part}: {what}: {value:.3g}", flush=True)
    return {"part": part, "what": what, "value": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("results/reference/performance"))
    parser.add_argument("--parts", nargs="+", default=["search", "cluster", "board", "start"])
    parser.add_argument("--small", action="store_true", help="a fiftieth of it")
    given = parser.parse_args()
    share = 50 if given.small else 1
    rows: list[dict[str, Any]] = []
    if "search" in given.parts:
        found, course = search(1000 // share)
        rows += found
    if "cluster" in given.parts:
        rows += cluster(1000 // share, 4)
    if "board" in given.parts:
        for count in (30, 1000 // share, 10_000 // share):
            rows += board(count)
    if "start" in given.parts:
        rows += start(1 if given.small else 5)
    given.to.mkdir(parents=True, exist_ok=True)
    found, file = pd.DataFrame(rows), given.to / "driver.csv"
    if file.exists():  # parts that were not run now stay as they were
        before = pd.read_csv(file)
        found = pd.concat([before[~before["part"].isin(given.parts)], found])
    found.to_csv(file, index=False)
    if "search" in given.parts:
        course.to_csv(given.to / "driver-course.csv", index=False)


if __name__ == "__main__":
    main()
