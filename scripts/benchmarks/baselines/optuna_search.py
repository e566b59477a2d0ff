"""A search as Optuna's documentation shows it, without this engine's loop, workers, towers or ladder.

    python scripts/benchmarks/baselines/optuna_search.py hyperband --data-dir DIR --seconds 300 --seed 0 --to FILE
    python scripts/benchmarks/baselines/optuna_search.py tpe --data-dir DIR --seconds 300 --seed 0 --to FILE

`hyperband`: TPE with HyperbandPruner, `trial.report` and `should_prune` after each epoch of at most nine, as in
"Efficient Optimization Algorithms". `tpe`: TPE on the score after one epoch. Two processes share a journal file, as in
"Easy Parallelization". Space, images, optimizer and schedule are those of the engine's search beside it, whose
channels-last layout, resident data and one-thread processes are used here too: what differs is the search alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch.nn import functional as F

import search_spaces
from nas.config import DataConfig
from nas.data import Data, load
from nas.training.loop import Resident

MAX_EPOCHS = 9
BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("hyperband", "tpe"))
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--space", default="{}", help="settings of the Inception space, as JSON")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--to", type=Path, required=True, help="the chosen architecture and the trials, as JSON")
    given = parser.parse_args()
    given.to.parent.mkdir(parents=True, exist_ok=True)
    given.journal = given.to.with_suffix(".journal")
    given.journal.unlink(missing_ok=True)
    study = make_study(given, 0)
    processes = [multiprocessing.Process(target=work, args=(given, number)) for number in range(given.workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    states = [trial.state.name for trial in study.trials]
    found = {
        "method": given.method,
        "architecture": study.best_trial.user_attrs["architecture"],
        "accuracy": study.best_value,
        "seconds": given.seconds,
        "trials": {state: states.count(state) for state in sorted(set(states))},
    }
    given.to.write_text(json.dumps(found, indent=1))


def make_study(given: argparse.Namespace, worker: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = (
        optuna.pruners.HyperbandPruner(min_resource=1, max_resource=MAX_EPOCHS, reduction_factor=3)
        if given.method == "hyperband"
        else optuna.pruners.NopPruner()
    )
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(given.journal))),
        study_name="baseline",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=1000 * given.seed + worker),
        pruner=pruner,
        load_if_exists=True,
    )


def work(given: argparse.Namespace, worker: int) -> None:
    """One process: trials until the time is over."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(1000 * given.seed + worker)
    data = load(DataConfig(name=given.data, dir=given.data_dir, shrink=given.shrink))
    epochs = MAX_EPOCHS if given.method == "hyperband" else 1
    space = search_spaces.load("inception", json.loads(given.space))
    splits = [Resident(one, data.mean, data.std, torch.device("cpu")) for one in (data.train, data.validation)]

    def objective(trial: optuna.Trial) -> float:
        architecture = space.suggest(trial)
        trial.set_user_attr("architecture", architecture.to_json())
        network = space.build(architecture, data.input_shape, len(data.classes))
        return train(trial, network, splits[0], splits[1], data, min(given.images, len(splits[0])), epochs)

    make_study(given, worker).optimize(objective, timeout=given.seconds)


def train(
    trial: optuna.Trial,
    network: torch.nn.Module,
    images: Resident,
    validation: Resident,
    data: Data,
    count: int,
    epochs: int,
) -> float:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = count // BATCH * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=steps, pct_start=0.25, anneal_strategy="linear", cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(trial.number)
    accuracy = 0.0
    for epoch in range(epochs):
        network.train()
        order = torch.randperm(count, generator=generator)
        for rows in order.split(BATCH)[: count // BATCH]:  # type: ignore[no-untyped-call]
            pixels, labels = images.batch(rows, data.augmentations, generator)
            optimizer.zero_grad()
            F.cross_entropy(network(images.normalised(pixels)), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        accuracy = score(network, validation)
        trial.report(accuracy, epoch)
        if epochs > 1 and trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


@torch.inference_mode()
def score(network: torch.nn.Module, images: Resident) -> float:
    network.eval()
    right = 0
    for start in range(0, len(images), 256):
        logits = network(images.normalised(images.pixels[start : start + 256]))
        right += int((logits.argmax(1) == images.labels[start : start + 256]).sum())
    return right / len(images)


if __name__ == "__main__":
    main()
