"""Head to head: the same candidates, epochs, batch size and images, four ways, one after the other.

    python scripts/benchmarks/search.py --data-dir DIR      Fashion-MNIST, 10,000 images, 14x14 and 28x28, three repeats
    python scripts/benchmarks/search.py --report            report on what there is
    python scripts/benchmarks/search.py --small             digits, to try the script

plain      Optuna's loop, eager PyTorch, DataLoader, default threads and layout (baselines/plain.py)
ray-tune   Ray Tune with OptunaSearch, two workers (baselines/ray_tune.py)
engine     `nas search`, two workers
limit      the engine's training steps and validation passes on two processes, nothing else (baselines/limit.py)

Each way is a command of its own, timed from start to end (`seconds`) and from its first candidate to its last result
(`searching`). Ratios are to the engine's time in the same repeat. No towers, one rung and no augmentation, so that all
compute the same; the accuracies say that they do. A way that is done is not done again: stop and start at will.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import pandas as pd

from nas.store import existing_store

BASELINES = Path(__file__).resolve().parent / "baselines"
BATCH, WEIGHT_DECAY = 128, 5e-4
"""Images a step, in all ways; see baselines/plain.py."""

WAYS = {"plain": "plain.py", "ray-tune": "ray_tune.py", "engine": None, "limit": "limit.py"}


def timed(way: str, shrink: int, repeat: int, given: argparse.Namespace) -> None:
    """One way, once; what it took is written to its file."""
    file = given.folder / f"{given.epochs}-{shrink}-{repeat}-{way}.json"
    if file.exists() or given.report:
        return
    print(f"{way}, shrink {shrink}, repeat {repeat}: ", end="", flush=True)
    begin = time.time()
    found = engine(shrink, given) if WAYS[way] is None else baseline(way, shrink, given)
    found |= {"way": way, "epochs": given.epochs, "shrink": shrink, "repeat": repeat, "seconds": time.time() - begin}
    print(f"{found['seconds']:.1f} s", flush=True)
    file.write_text(json.dumps(found, indent=1))


def baseline(way: str, shrink: int, given: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "found.json")
        words = [str(BASELINES / str(WAYS[way])), "--data", given.data, "--shrink", str(shrink), "--to", str(file)]
        words += ["--images", str(given.images), "--epochs", str(given.epochs)]
        words += ["--workers", str(given.workers), "--candidates", str(given.candidates)]
        if given.data_dir:
            words += ["--data-dir", str(given.data_dir)]
        run(words)
        return dict(json.loads(file.read_text()))


def engine(shrink: int, given: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "nas", "search", "--space", f"{BASELINES / 'candidates.py'}:Candidates", "--name", "benchmark"]
        words += ["--data", given.data, "--trials", str(given.candidates), "--workers", str(given.workers)]
        words += ["--results", folder]
        if given.data_dir:
            words += ["--data-dir", str(given.data_dir)]
        sets = {"data.shrink": shrink, "proxy.images": given.images, "proxy.epochs": given.epochs}
        sets |= {
            "proxy.batch_size": BATCH,
            "proxy.weight_decay": WEIGHT_DECAY,
            "proxy.augment": [],
            "towers.placement": "none",
            "ladder.rungs": 1,
        }
        run([*words, *(f"--set={key}={json.dumps(value)}" for key, value in sets.items())])
        url = f"sqlite:///{Path(folder, 'benchmark', 'study.db')}"
        records = existing_store(url, "benchmark")
        assert records is not None
        measurements = records.measurements()
        accuracies = {one.key: one.signals["val_accuracy"] for one in measurements}
        began = min(one.created for one in records.proposals())
        return {"accuracies": accuracies, "began": began, "ended": max(one.created for one in measurements)}


def run(words: list[str]) -> None:
    """With the threads that libraries choose for themselves: nothing is said to them from outside."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment)


def report(given: argparse.Namespace) -> pd.DataFrame:
    """Medians and ranges of the times, and of their ratio to the engine's, by epochs, size and way."""
    rows = []
    for file in sorted(given.folder.glob("*-*-*-*.json")):
        one = json.loads(file.read_text())
        accuracy = fmean(one["accuracies"].values())
        one |= {"accuracy": accuracy, "candidates": len(one["accuracies"]), "searching": one["ended"] - one["began"]}
        rows.append({key: one[key] for key in given.columns})
    runs = pd.DataFrame(rows, columns=given.columns)
    runs.to_csv(given.to / "search-runs.csv", index=False)
    found = []
    for (epochs, shrink, way), own in runs.groupby(["epochs", "shrink", "way"], sort=False):
        alike = (runs["epochs"] == epochs) & (runs["shrink"] == shrink)
        beside = runs[alike & (runs["way"] == "engine")].set_index("repeat")
        own = own.set_index("repeat")
        row = {"epochs": epochs, "shrink": shrink, "way": way, "repeats": len(own), "accuracy": own["accuracy"].mean()}
        for column in ("seconds", "searching"):
            ratio = (own[column] / beside[column]).dropna()
            row |= {column: own[column].median(), f"{column}_least": own[column].min()}
            row |= {f"{column}_most": own[column].max(), f"{column}_to_engine": ratio.median()}
            row |= {f"{column}_to_engine_least": ratio.min(), f"{column}_to_engine_most": ratio.max()}
        row["candidates_an_hour"] = 3600 * own["candidates"].iloc[0] / own["searching"].median()
        found.append(row)
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where fashion-mnist lies; left out: it is downloaded")
    parser.add_argument("--folder", type=Path, help="of the runs; left out: results/benchmark-search, or -small")
    parser.add_argument("--to", type=Path, help="the report; left out: results/reference/performance; small: --folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of each candidate")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of the four; left out: all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 1], help="pixels a side averaged into one")
    parser.add_argument("--small", action="store_true", help="digits, two candidates, once")
    parser.add_argument("--report", action="store_true", help="train nothing")
    given = parser.parse_args()
    given.data, given.images, given.candidates, given.workers = "fashion-mnist", 10_000, 16, 2
    given.columns = ["epochs", "shrink", "repeat", "way", "seconds", "searching", "candidates", "accuracy"]
    given.folder = given.folder or Path("results/benchmark-search-small" if given.small else "results/benchmark-search")
    given.to = given.to or (given.folder if given.small else Path("results/reference/performance"))
    if given.small:
        given.data, given.repeats, given.sizes, given.candidates, given.images = "digits", 1, [1], 2, 500
        given.epochs = 1
    for folder in (given.folder, given.to):
        folder.mkdir(parents=True, exist_ok=True)
    for shrink in given.sizes:
        for repeat in range(given.repeats):
            for turn in range(len(given.ways)):
                timed(given.ways[(repeat + turn) % len(given.ways)], shrink, repeat, given)
    summary = report(given)
    summary.to_csv(given.to / "search.csv", index=False)
    print(summary.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
