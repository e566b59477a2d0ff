"""What `nas export --prune` gives and costs, on Fashion-MNIST at 28x28 pixels, all training images, three seeds.

    python scripts/benchmarks/prune.py --data-dir DIR    search, retrain, prune and fine-tune, train the rivals, measure
    python scripts/benchmarks/prune.py --small           a minute on digits, to try the script

The winner of a search is retrained, half of its multiply-adds are removed, and what is left is fine-tuned; beside it
stand the same small architecture trained from scratch and the leaderboard's best of at most equal cost, both by the
full recipe. What is measured is not measured again: stop and start at will. Latencies are one image's on one CPU
thread, the networks taking turns; they are measured anew each time, so nothing else should run then.

The table (prune.csv) has a row a network and seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nas.config import Config, DataConfig, ExecutorConfig, ProxyConfig, PruneConfig, RetrainConfig, SearchConfig
from nas.experiment import Experiment
from nas.progress import Event

FORMS = ("eager", "pt2", "onnx")


def experiment(given: argparse.Namespace) -> Experiment:
    """The experiment; the same arguments give the same one."""
    config = Config(
        name="prune",
        results=given.folder,
        data=given.data,
        proxy=given.proxy,
        search=SearchConfig(trials=given.trials, max_flops=given.max_flops),
        retrain=RetrainConfig(epochs=given.epochs, seeds=given.seeds, references=False),
        prune=PruneConfig(epochs=given.fine_tuning),
        executor=given.executor,
    )
    return Experiment(config=config, listen=tell)


def tell(event: Event) -> None:
    if event.text is not None:
        print(event.text, flush=True)
    one = event.measurement
    if one is not None and one.status == "done" and "test_accuracy" in one.signals:
        print(f"{event.name}: {one.signals['test_accuracy']:.2%}, {one.cost['seconds']:.0f} s", flush=True)


def rows(compared: list[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a network and seed, of the comparison that the card of the export holds."""
    return pd.DataFrame(
        {
            "network": one["name"],
            "seed": int(seed),
            "test_accuracy": accuracy,
            "params": one["params"],
            "multiply_adds": one["flops"] // 2,
            "share": one["share of flops"],
            "eager_ms": one["latency ms"]["eager"],
            "pt2_ms": one["latency ms"]["model.pt2"],
            "onnx_ms": one["latency ms"]["model.onnx"],
            "key": one["key"],
            "definition": json.dumps(one["architecture"], sort_keys=True),
        }
        for one in compared
        for seed, accuracy in one["accuracy"]["by seed"].items()
    )


def against_the_original(table: pd.DataFrame) -> pd.DataFrame:
    """A row a network: mean accuracy, points lost (paired by seed), multiply-adds removed, times faster."""
    by_name = dict(tuple(table.groupby("network", sort=False)))
    original = next(iter(by_name.values())).set_index("seed")
    found = []
    for name, own in by_name.items():
        lost = 100 * (original["test_accuracy"] - own.set_index("seed")["test_accuracy"])
        row = {"network": name, "seeds": len(own), "accuracy": own["test_accuracy"].mean()}
        row |= {"deviation": own["test_accuracy"].std(), "points_lost": lost.mean(), "points_deviation": lost.std()}
        row["removed"] = 1 - own["share"].iloc[0]
        row |= {f"{form}_faster": original[f"{form}_ms"].iloc[0] / own[f"{form}_ms"].iloc[0] for form in FORMS}
        found.append(row)
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where fashion-mnist lies; left out: it is downloaded")
    parser.add_argument("--folder", type=Path, help="of the experiment; left out: results/pruning, or -small")
    parser.add_argument("--to", type=Path, help="the table; left out: results/reference/performance; small: the folder")
    parser.add_argument("--share", type=float, default=0.5, help="of the multiply-adds to remove")
    parser.add_argument("--trials", type=int, default=30, help="candidates of the search")
    parser.add_argument("--max-flops", type=int, default=12_000_000, help="of a candidate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of each full training; left out: 12")
    parser.add_argument("--fine-tuning", type=int, help="epochs of it; left out: as many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="digits, two candidates, an epoch, two seeds")
    given = parser.parse_args()
    given.folder = given.folder or Path("results/pruning-small" if given.small else "results/pruning")
    given.to = given.to or (given.folder if given.small else Path("results/reference/performance"))
    given.data = DataConfig(name="fashion-mnist", dir=given.data_dir)
    given.proxy, given.executor = ProxyConfig(), ExecutorConfig(workers=given.workers)
    if given.small:
        given.data, given.proxy = DataConfig(), ProxyConfig(epochs=1, images=300)
        given.executor = ExecutorConfig(kind="in-process")
        given.trials, given.epochs, given.seeds = 2, 1, 2
    one = experiment(given)
    one.search()
    one.retrain()
    exported = one.export(prune=given.share)
    table = rows(exported.card["compared"])
    given.to.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.to / "prune.csv", index=False)
    print(against_the_original(table).to_string(index=False, float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    main()
