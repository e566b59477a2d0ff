"""The script that a user would write: Optuna's loop, eager PyTorch, a DataLoader, default threads and memory layout.

    python scripts/benchmarks/baselines/plain.py --data-dir DIR --shrink 2 --epochs 2 --images 10000 --to FILE

As "A Simple Example" of Optuna's documentation for PyTorch. The candidates are enqueued, so that all ways train the
same ones; `train` is also what scripts/benchmarks/baselines/ray_tune.py trains with.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import optuna
import torch
from candidates import COUNT, Candidates
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nas.config import DataConfig
from nas.data import Data, load
from search_spaces.inception import InceptionArchitecture

BATCH = 128


def arguments(description: str | None) -> argparse.Namespace:
    """What all baselines of this benchmark are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=COUNT)
    parser.add_argument("--to", type=Path, required=True, help="validation accuracies and times, as JSON")
    return parser.parse_args()


def read(given: argparse.Namespace) -> Data:
    """The data set, as the engine reads it."""
    return load(DataConfig(name=given.data, dir=given.data_dir, shrink=given.shrink))


def datasets(data: Data, images: int) -> tuple[TensorDataset, TensorDataset]:
    """Training and validation images as float tensors, normalised, with their labels."""
    mean = torch.tensor(data.mean).view(1, -1, 1, 1)
    std = torch.tensor(data.std).view(1, -1, 1, 1)
    pairs = []
    for split in (data.train, data.validation):
        pixels = (torch.tensor(split.pixels).float() - mean) / std
        pairs.append(TensorDataset(pixels, torch.tensor(split.labels).long()))
    train, validation = pairs
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:images]
    return TensorDataset(*train[chosen]), validation


def build(space: Candidates, architecture: InceptionArchitecture, data: Data) -> nn.Module:
    """The candidate's network, from the same seed for all."""
    torch.manual_seed(0)
    return space.build(architecture, data.input_shape, len(data.classes))


def train(network: nn.Module, images: TensorDataset, validation: TensorDataset, epochs: int) -> float:
    """Validation accuracy, 0 to 1, after so many epochs."""
    loader = DataLoader(images, batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        0.1,
        total_steps=max(1, epochs * len(loader)),
        pct_start=0.25,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=20,
    )
    for _ in range(epochs):
        network.train()
        for pixels, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(pixels), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()
    right = 0
    with torch.no_grad():
        for pixels, labels in DataLoader(validation, batch_size=BATCH):
            right += int((network(pixels).argmax(1) == labels).sum())
    return right / len(validation)


def main() -> None:
    given = arguments(__doc__)
    data = read(given)
    images, validation = datasets(data, given.images)
    space = Candidates()
    accuracies = {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for values in list(space.named().values())[: given.candidates]:
        study.enqueue_trial(dict(values))

    def objective(trial: optuna.Trial) -> float:
        architecture = space.suggest(trial)
        accuracies[architecture.key] = train(build(space, architecture, data), images, validation, given.epochs)
        return accuracies[architecture.key]

    began = time.time()
    study.optimize(objective, n_trials=given.candidates)
    given.to.write_text(json.dumps({"accuracies": accuracies, "began": began, "ended": time.time()}))


if __name__ == "__main__":
    main()
