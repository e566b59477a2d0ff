"""The default search against Optuna's Hyperband and TPE on a one-epoch proxy: the same time, cores, images and space.

    python scripts/studies/compare_searches.py --data-dir DIR        three paired runs, then all chosen retrained
    python scripts/studies/compare_searches.py --report              report on what there is
    python scripts/studies/compare_searches.py --first 3 --runs 6    runs 3 to 5, reported with those in the CSVs
    python scripts/studies/compare_searches.py --settings JSON --images N --retrain-images N
    python scripts/studies/compare_searches.py --small               half a minute on digits, to try the script

In each run the searches follow each other on an otherwise idle machine, in an order that rotates. What they choose,
and random networks, is retrained alike (training and validation images, two seeds) and scored on the test split.
A search that is done is not done again; nor is a retraining: stop and start at will. The report holds every training
that a search carried through (`candidates.parquet`, the input of `simulate_searches.py`) and, in two CSVs, every
choice, the paired differences with Student's 95 % interval over the runs, and the relative improvement over the
average random network, 100 (accuracy - random) / random (Yang, Esperança and Carlucci 2020, NAS Evaluation is
Frustratingly Hard, eq. 1).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nas import executor, ladder, leaderboard
from nas.config import Config, DataConfig, ExecutorConfig, ProxyConfig, RetrainConfig, SearchConfig, SpaceConfig
from nas.data import load
from nas.evaluation.evaluator import Job, Setup, SpaceSpec
from nas.progress import Budget, Event
from nas.steps import retrain, truth
from nas.store import Store, existing_store, open_database

BASELINES = ("hyperband", "tpe")
METHODS = ("engine", *BASELINES)
RANDOM_SEED = 7
RETRAIN_SEEDS = 100
"""Seeds of retraining begin here: no search has seen a network start from the same weights."""
OPTUNA_SEARCH = Path(__file__).resolve().parents[1] / "benchmarks" / "baselines" / "optuna_search.py"


def search(method: str, run: int, given: argparse.Namespace) -> None:
    """One search from one seed; what it chose is written to its file."""
    file = chosen_file(method, run, given)
    asked = {"seconds": given.seconds, "images": given.images, "settings": given.settings}
    if file.exists():
        found = json.loads(file.read_text())
        if was := {name: found.get(name) for name, value in asked.items() if found.get(name) != value}:
            sys.exit(f"{file} is of a search with {was}, not {asked}: give another --folder")
        return
    print(f"run {run}, {method}: {given.seconds} s", flush=True)
    if method in BASELINES:
        words = [str(OPTUNA_SEARCH), method, "--shrink", str(given.data.shrink)]
        words += ["--data", given.data.name, "--seconds", str(given.seconds), "--seed", str(run), "--to", str(file)]
        words += ["--workers", str(given.workers), "--images", str(given.images), "--space", json.dumps(given.settings)]
        if given.data.dir:
            words += ["--data-dir", str(given.data.dir)]
        subprocess.run([sys.executable, *words], check=True)
        file.write_text(json.dumps(json.loads(file.read_text()) | asked, indent=1))
        return
    config = Config(
        name=f"run-{run}",
        results=given.folder / "searches",
        seed=run,
        space=SpaceConfig(**{"name": "inception", **given.settings}),
        data=given.data,
        proxy=ProxyConfig(images=given.images, epochs=1),  # of epochs, as those that it is compared with
        search=SearchConfig(time=given.seconds),
        executor=given.executor,
    )
    words = [f"--set={key}={json.dumps(value)}" for key, value in flat(config.model_dump(mode="json"))]
    subprocess.run([sys.executable, "-m", "nas", "search", *words], check=True, stdout=subprocess.DEVNULL)
    records = existing_store(config.database, config.experiment)
    assert records is not None
    best = leaderboard.standing(records, config.search.objectives[0])[0]
    rungs = [entry.measurement.rung.partition("-")[0] for entry in records.all()]
    found = {
        "method": method,
        "architecture": best.architecture,
        "accuracy": best.signals["val_accuracy"],
        **asked,
        "trials": {rung: rungs.count(rung) for rung in sorted(set(rungs))},
    }
    file.write_text(json.dumps(found, indent=1))


def flat(table: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """The keys of a config as `section.key`, those that are not the default."""
    default = Config().model_dump(mode="json")
    found: list[tuple[str, object]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            section = default[key]
            found += [(f"{key}.{inner}", one) for inner, one in value.items() if one != section.get(inner)]
        elif value != default[key]:
            found.append((key, value))
    return found


def chosen_file(method: str, run: int, given: argparse.Namespace) -> Path:
    return Path(given.folder / f"{run}-{method}.json")


def retrained(given: argparse.Namespace) -> pd.DataFrame:
    """Everything that was chosen, and random networks, with the test accuracy of each retraining."""
    spec = SpaceSpec.of("inception", given.settings)
    space = spec.load()
    rows = []
    for run in range(given.first, given.runs):
        for method in METHODS:
            if chosen_file(method, run, given).exists():
                found = json.loads(chosen_file(method, run, given).read_text())
                trials = ", ".join(f"{count} {state}" for state, count in found["trials"].items())
                rows.append({"method": method, "run": run, "definition": found["architecture"], "trials": trials})
    ordinary = truth.random_architectures(space, given.random, RANDOM_SEED) if given.random else ()
    for number, one in enumerate(ordinary):
        rows.append({"method": "random", "run": number, "definition": one.to_json(), "trials": ""})
    data = load(given.data)
    records = Store(open_database(f"sqlite:///{(given.folder / 'measurements.db').resolve()}"), "compare")
    config = Config(data=given.data, retrain=RetrainConfig(epochs=given.epochs, images=given.retrain_images))
    jobs: dict[Job, str] = {}
    frame = []
    with executor.start(ExecutorConfig(kind="in-process") if given.report else given.executor) as workers:
        precision = "bfloat16" if workers.on_gpu else "float32"
        decided = ladder.decided(config, data.augmentations, precision, len(data.train))
        rung = ladder.retrain_rung(decided, len(data.train))
        for row in rows:
            for seed in range(RETRAIN_SEEDS, RETRAIN_SEEDS + given.seeds):
                job = Job.of(space.architecture_type.from_json(row["definition"]), rung, seed)
                jobs[job] = f"{row['method']} {row['run']}, seed {seed}"
                frame.append({**row, "seed": seed, "key": job.key})
        workers.use(Setup(spec, data, SearchConfig()))
        if not given.report:
            retrain.measure(jobs, workers, records, Budget(records, None), tell, "retrain")
    known = {(m.key, m.seed): m for m in (e.measurement for e in records.all()) if m.rung == rung.key}
    for row in frame:
        found = known.get((row["key"], row["seed"]))
        row["test_accuracy"] = found.signals["test_accuracy"] if found and found.status == "done" else np.nan
        row |= {name: found.signals[name] if found else np.nan for name in ("params", "flops")}
    table = pd.DataFrame(frame)
    table = table[["method", "run", "seed", "test_accuracy", "params", "flops", "trials", "key", "definition"]]
    return table.dropna(subset="test_accuracy")


def candidates(given: argparse.Namespace) -> pd.DataFrame:
    """A row a training that a search carried through: `times` the epochs of the shortest, accuracy, seconds."""
    rows: list[dict[str, object]] = []
    for run, method in itertools.product(range(given.first, given.runs), METHODS):
        if not chosen_file(method, run, given).exists():
            continue
        about = {"method": method, "run": run}
        if method == "engine":
            database = (given.folder / "searches" / f"run-{run}" / "study.db").resolve()
            records = existing_store(f"sqlite:///{database}", f"run-{run}")
            for one in [entry.measurement for entry in records.all()] if records else ():
                if one.status == "done":
                    name = one.rung.partition("-")[0]  # proxy, x9
                    times = 1.0 if name == "proxy" else float(name[1:])
                    found = {"accuracy": one.signals["val_accuracy"], "seconds": one.cost["seconds"]}
                    rows.append(about | {"times": times} | found | {"definition": one.architecture})
        else:
            journal = chosen_file(method, run, given).with_suffix(".journal")
            if not journal.is_file():
                continue
            storage = JournalStorage(JournalFileBackend(str(journal)))
            for trial in optuna.load_study(study_name="baseline", storage=storage).trials:
                if trial.value is not None and trial.duration is not None and trial.state.name == "COMPLETE":
                    times = float(1 + max(trial.intermediate_values))
                    found = {"accuracy": trial.value, "seconds": trial.duration.total_seconds()}
                    rows.append(about | {"times": times} | found | {"definition": trial.user_attrs["architecture"]})
    return pd.DataFrame(rows)


def continued(published: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Published rows of other runs than those measured now, and these."""
    if table.empty:
        return published
    now = set(zip(table["method"], table["run"], strict=True))
    earlier = [row not in now for row in zip(published["method"], published["run"], strict=True)]
    return pd.concat([published[earlier], table])


def tell(event: Event) -> None:
    if event.measurement is not None:
        said = event.measurement.cause or f"{event.measurement.signals['test_accuracy']:.2%}"
        print(f"{event.progress.done}/{event.progress.total}  {event.name}: {said}", flush=True)


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """A row a method: mean accuracy, the engine's paired difference to it, improvement over random ones.

    What the engine chose counts from no seed that its search had: earlier reports have some such.
    """
    from scipy.stats import t

    table = table[(table["method"] != "engine") | (table["seed"] != table["run"])]
    means = table.groupby(["method", "run"])["test_accuracy"].mean()
    ordinary = means["random"].mean()
    rows = []
    for method in (*METHODS, "random"):
        own = means[method].dropna()
        row = {"method": method, "runs": len(own), "accuracy": own.mean(), "deviation": own.std()}
        row["improvement"] = 100 * (own.mean() - ordinary) / ordinary
        if method in BASELINES:
            apart = (means["engine"] - own).dropna()
            half = t.ppf(0.975, len(apart) - 1) * apart.std() / np.sqrt(len(apart)) if len(apart) > 1 else np.nan
            row |= {"engine_ahead": apart.mean(), "low": apart.mean() - half, "high": apart.mean() + half}
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where fashion-mnist lies; left out: it is downloaded")
    parser.add_argument("--folder", type=Path, help="of searches; left out: results/comparison, or -small")
    parser.add_argument("--to", type=Path, help="the report; left out: results/reference/comparison; small: the folder")
    parser.add_argument("--runs", type=int, default=3, help="how many, those before the first included")
    parser.add_argument("--first", type=int, default=0, help="run; what the report has of earlier ones is kept")
    parser.add_argument("--seconds", type=int, default=300, help="of each search")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12, help="of each retraining")
    parser.add_argument("--seeds", type=int, default=2, help="of each retraining")
    parser.add_argument("--random", type=int, help="random networks; left out: 6, or those of the report")
    parser.add_argument("--images", type=int, default=20_000, help="that an epoch of a search has")
    parser.add_argument("--retrain-images", type=int, help="that an epoch of retraining has; left out: all")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the Inception space, as JSON")
    parser.add_argument("--small", action="store_true", help="digits, one run of a few seconds")
    parser.add_argument("--report", action="store_true", help="train nothing")
    given = parser.parse_args()
    given.folder = given.folder or Path("results/comparison-small" if given.small else "results/comparison")
    given.to = given.to or (given.folder if given.small else Path("results/reference/comparison"))
    given.data = DataConfig(name="fashion-mnist", dir=given.data_dir, shrink=2)
    given.executor = ExecutorConfig(workers=given.workers)
    if given.small:
        given.data, given.executor = DataConfig(), ExecutorConfig(kind="in-process")
        given.runs, given.seconds, given.workers = given.first + 1, 4, 1
        given.epochs, given.seeds, given.random = 1, 1, 0 if given.first else 1
    if given.first and not (given.to / "networks.csv").is_file():
        sys.exit(f"--first {given.first} goes on with {given.to / 'networks.csv'}, which is not there")
    given.random = given.random if given.random is not None else 0 if given.first else 6
    given.folder.mkdir(parents=True, exist_ok=True)
    given.to.mkdir(parents=True, exist_ok=True)
    for run in range(given.first, given.runs):
        for turn in range(len(METHODS)):
            if not given.report:
                search(METHODS[(run + turn) % len(METHODS)], run, given)
    table = retrained(given)
    if table.empty:
        sys.exit("nothing has been retrained yet")
    if given.first:
        table = continued(pd.read_csv(given.to / "networks.csv"), table)
    table.to_csv(given.to / "networks.csv", index=False)
    trained, file = candidates(given), given.to / "candidates.parquet"
    if given.first and file.is_file():
        trained = continued(pd.read_parquet(file), trained)
    trained.to_parquet(file, index=False)
    summary = compared(table)
    if given.first:  # never pooled: the engine may be another
        is_random, is_later = table["method"] == "random", table["run"] >= given.first
        parts = {f"before run {given.first}": is_random | ~is_later, f"from run {given.first} on": is_random | is_later}
        summaries = {part: compared(table[rows]) for part, rows in parts.items()}
        summary = pd.concat(summaries, names=["part"]).reset_index("part")
    summary.to_csv(given.to / "searches.csv", index=False)
    print(summary.to_string(index=False, float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    main()
