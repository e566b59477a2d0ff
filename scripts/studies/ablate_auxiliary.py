"""What auxiliary towers are worth: four claims of the papers, measured on Fashion-MNIST at 14x14 pixels.

    python scripts/studies/ablate_auxiliary.py --data-dir DIR          train what is not trained yet, then report
    python scripts/studies/ablate_auxiliary.py --report                report on what there is
    python scripts/studies/ablate_auxiliary.py --small                 a run of a minute on digits, to try the script

10,000 training images, 5,000 validation images, SGD, one cycle. Everything is trained by the engine's own executor
and is in its table when it is done, so the script may be stopped and started again. The arms are listed here, in
`ARMS`, before anything runs. The report (tables as CSV, a plot) goes to results/reference/auxiliary.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ablation_report as report
import numpy as np
import pandas as pd
import torch

from nas import auxiliary, executor
from nas.config import DataConfig, ExecutorConfig, Recipe, SearchConfig, TowersConfig
from nas.data import Data, Images, load
from nas.data.split import statistics as channel_statistics
from nas.evaluation.evaluator import Job, Setup, SpaceSpec
from nas.ladder import Rung
from nas.progress import Budget, Event
from nas.steps import retrain
from nas.store import Measurement, Store, open_database
from nas.training import loop as training
from search_spaces.inception import CellArchitecture, InceptionArchitecture, InceptionSettings, InceptionSpace

CELL = CellArchitecture(one=16, three_reduce=12, three=16, five_reduce=4, five=8, pool=8)
GRADIENT_STEPS = (1, 10, 100)
RATES = {True: (0.03, 0.1, 0.3, 1.0), False: (0.003, 0.01, 0.03, 0.1)}
"""Learning rates to choose from, with batch norm and without."""

RATE_SEED = 1000
"""Learning rates are chosen on a seed that no result uses."""

NONE = TowersConfig(placement="none")
AUTO = TowersConfig()


@dataclass(frozen=True)
class Arm:
    """One way to train one network. `rate` None: its own best of `RATES`, after one epoch."""

    claim: str
    name: str
    cells: int
    towers: TowersConfig
    epochs: tuple[int, ...]
    seeds: int
    batch_norm: bool = True
    head: str = "average"
    rate: float | None = None

    @property
    def architecture(self) -> InceptionArchitecture:
        return InceptionArchitecture(stem=16, stages=((CELL,) * (self.cells // 3),) * 3)

    @property
    def space(self) -> dict[str, Any]:
        return {"batch_norm": self.batch_norm, "head": self.head}


def grid(seeds: int = 3, depths: Sequence[int] = (3, 6, 12, 18)) -> Iterator[Arm]:
    """Claims 1 and 2: gradients and early accuracy by depth, batch norm and towers."""
    for cells in depths:
        for batch_norm in (True, False):
            for name, towers in (("none", NONE), ("towers", AUTO)):
                yield Arm("early", name, cells, towers, (1, 4), seeds, batch_norm)


def overfitting(seeds: int = 3) -> Iterator[Arm]:
    """Claim 3: the gap between training and validation after 20 epochs."""
    for batch_norm, rate in ((True, 0.1), (False, 0.03)):
        for name, towers in (
            ("none", NONE),
            ("one tower", AUTO),
            ("two towers", AUTO.model_copy(update={"placement": "thirds"})),
        ):
            yield Arm("gap", name, 6, towers, (20,), seeds, batch_norm, rate=rate)


def variations(seeds: int = 4) -> Iterator[Arm]:
    """Claim 4: how many towers, how heavy, on what course, how far they reach; average pooling or not."""
    changes: dict[str, dict[str, Any]] = {
        "none": {"placement": "none"},
        "one, 0.1": {"weight": 0.1},
        "one, 0.3": {},
        "one, 0.6": {"weight": 0.6},
        "one, 1.0": {"weight": 1.0},
        "one at two thirds, 0.4": {"placement": "two-thirds", "weight": 0.4},
        "two at thirds, 0.3": {"placement": "thirds"},
        "one at each stage, 0.3": {"placement": "stages"},
        "one, linear decay": {"schedule": "linear"},
        "one, off after half": {"schedule": "off:0.5"},
        "one, relay:3": {"reach": "relay:3"},
        "two, relay:4, main 4": {"placement": "thirds", "reach": "relay:4", "main_reach": 4},
        "one, detached": {"reach": "detached"},
        "one, linear probe": {"kind": "linear"},
        "one, GoogLeNet's": {"kind": "googlenet"},
    }
    for name, change in changes.items():
        yield Arm("variations", name, 9, TowersConfig.model_validate(change), (3,), seeds, rate=0.1)
    for name, towers in (("fully connected head, none", NONE), ("fully connected head, one, 0.3", AUTO)):
        yield Arm("variations", name, 9, towers, (3,), seeds, head="fully-connected", rate=0.1)


ARMS = (*grid(), *variations(), *overfitting())
SMALL = tuple(
    replace(arm, epochs=arm.epochs[:1], seeds=1) for arm in (*grid(1, (3,)), *itertools.islice(variations(1), 3))
)


@dataclass(frozen=True)
class Training:
    """One training of one arm."""

    arm: Arm
    rate: float
    epochs: int
    seed: int

    @property
    def rung(self) -> Rung:
        norms = GRADIENT_STEPS if self.arm.claim == "early" and self.epochs > 1 else ()
        recipe = Recipe(epochs=self.epochs, learning_rate=self.rate, augment=(), gradient_norms=norms)
        return Rung("ablation", recipe, self.arm.towers)

    @property
    def job(self) -> Job:
        return Job.of(self.arm.architecture, self.rung, self.seed)


class Laboratory:
    """Trains what is asked for and not in the table yet."""

    def __init__(self, data: Data, folder: Path, kind: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._data = data.without_test()
        self._engine = open_database(f"sqlite:///{(folder / 'measurements.db').resolve()}")
        self._kind = kind

    def found(self, trainings: Sequence[Training]) -> dict[Training, Measurement]:
        """What the table holds of these."""
        looked = ((one, self._records(one.arm).get(*one.job.unit)) for one in trainings)
        return {one: measurement for one, measurement in looked if measurement is not None}

    def train(self, trainings: Sequence[Training]) -> dict[Training, Measurement]:
        """Measurements of all of these, seed by seed, so that what is there is balanced at any time."""
        groups: dict[str, list[Training]] = defaultdict(list)
        missing = [one for one in trainings if one not in self.found(trainings)]
        for one in sorted(missing, key=lambda one: (one.seed, one.epochs)):
            groups[str(one.arm.space)].append(one)
        if missing:
            with executor.start(ExecutorConfig(kind=self._kind)) as workers:
                for group in groups.values():
                    spec = SpaceSpec.of("inception", group[0].arm.space)
                    workers.use(Setup(spec, self._data, SearchConfig()))
                    records = self._records(group[0].arm)
                    jobs = {one.job: f"{one.arm.cells} cells, {one.arm.name}, {one.epochs} epochs" for one in group}
                    retrain.measure(jobs, workers, records, Budget(records, None), tell, "ablation")
        return self.found(trainings)

    def _records(self, arm: Arm) -> Store:
        return Store(self._engine, "-".join(f"{key}={value}" for key, value in arm.space.items()))


def tell(event: Event) -> None:
    if event.measurement is not None:
        signals = event.measurement.signals
        result = event.measurement.cause or f"validation accuracy {signals['val_accuracy']:.2%}"
        print(f"{event.progress.done}/{event.progress.total}  {event.name}: {result}", flush=True)


def halved(images: Images, count: int) -> Images:
    """The first `count` images, averaged over 2x2 pixels."""
    pixels = images.pixels[:count].astype(np.uint16)
    mean = (pixels[..., ::2, ::2] + pixels[..., 1::2, ::2] + pixels[..., ::2, 1::2] + pixels[..., 1::2, 1::2] + 2) // 4
    return Images(mean.astype(np.uint8), images.labels[:count])


def fashion_mnist(directory: Path | None) -> Data:
    """10,000 training and 5,000 validation images of 14x14 pixels."""
    data = load(DataConfig(name="fashion-mnist", dir=directory))
    train, validation = halved(data.train, 10_000), halved(data.validation, 5_000)
    mean, std = channel_statistics(train.pixels)
    return replace(data, train=train, validation=validation, test=None, mean=mean, std=std)


def all_trainings(laboratory: Laboratory, arms: Sequence[Arm], train: bool) -> dict[Training, Measurement]:
    """Rates first, then every arm at its own best one."""
    act = laboratory.train if train else laboratory.found
    asked = [Training(arm, rate, 1, RATE_SEED) for arm in arms if arm.rate is None for rate in RATES[arm.batch_norm]]
    tried = act(asked)
    best: dict[Arm, float] = {}
    for arm in arms:
        losses = {one.rate: m.signals.get("val_loss", float("inf")) for one, m in tried.items() if one.arm == arm}
        if arm.rate is not None or losses:
            best[arm] = min(losses, key=losses.__getitem__) if arm.rate is None else arm.rate
    wanted = [
        Training(arm, rate, epochs, seed)
        for arm, rate in best.items()
        for epochs in arm.epochs
        for seed in range(arm.seeds)
    ]
    return act(wanted)


def table(measured: Mapping[Training, Measurement]) -> pd.DataFrame:
    """One row a training."""
    rows = []
    for one, m in measured.items():
        arm = one.arm
        rows.append(
            {
                "claim": arm.claim,
                "arm": arm.name,
                "cells": arm.cells,
                "batch_norm": arm.batch_norm,
                "head": arm.head,
                "learning_rate": one.rate,
                "epochs": one.epochs,
                "seed": one.seed,
                "status": m.status,
                "towers": " ".join(map(str, m.towers)),
                **{name: value for name, value in m.signals.items() if name not in ("params",)},
            }
        )
    return pd.DataFrame(rows)


def step_seconds(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Median milliseconds of a training step of 128 images for each arm, the arms taking turns."""
    steps = [
        Step(InceptionSpace(InceptionSettings.model_validate(arm.space)), arm.architecture, (1, 14, 14), arm.towers)
        for arm in arms
    ]
    return [
        {
            "cells": arm.cells,
            "batch_norm": arm.batch_norm,
            "head": arm.head,
            "arm": arm.name,
            "milliseconds": 1000 * one,
        }
        for arm, one in zip(arms, side_by_side(steps), strict=True)
    ]


def tower_costs(networks: int = 20) -> pd.DataFrame:
    """What light towers in their default placement take of a step: random architectures of the default space, 28x28."""
    space = InceptionSpace()
    rows = []
    for seed in range(networks):
        pair = [Step(space, space.random(seed), (1, 28, 28), towers) for towers in (AUTO, NONE)]
        with_towers, without = side_by_side(pair)
        model = pair[0].model
        rows.append(
            {
                "seed": seed,
                "cells": len(auxiliary.cell_names(model.network)),
                "towers": len(model.towers),
                "flops_share": model.share,
                "milliseconds": 1000 * with_towers,
                "milliseconds_without": 1000 * without,
                "share_of_step": 1 - without / with_towers,
            }
        )
    return pd.DataFrame(rows)


class Step:
    """One training step of 128 images, again and again."""

    def __init__(
        self, space: InceptionSpace, architecture: Any, shape: tuple[int, int, int], towers: TowersConfig
    ) -> None:
        network = space.build(architecture, shape, 10)
        self.model = auxiliary.supervise(network, towers, shape, 10).to(memory_format=torch.channels_last)  # type: ignore
        self.optimizer = training.make_optimizer(self.model, Recipe())
        self.images = torch.randn(128, *shape).contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (128,))

    def seconds(self) -> float:
        start = time.perf_counter()
        losses = self.model.losses(self.model(self.images), self.labels)
        self.optimizer.zero_grad()
        losses.backward()
        self.optimizer.step()
        return time.perf_counter() - start


def side_by_side(steps: Sequence[Step], repeats: int = 15) -> list[float]:
    """Median seconds of each step on one thread, all taking turns after two rounds to warm up."""
    torch.set_num_threads(1)
    rounds = [[one.seconds() for one in steps] for _ in range(repeats + 2)][2:]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where fashion-mnist lies; left out: it is downloaded")
    parser.add_argument("--folder", type=Path, default=Path("results/auxiliary"), help="the table of measurements")
    parser.add_argument("--to", type=Path, default=Path("results/reference/auxiliary"), help="the report")
    parser.add_argument("--executor", choices=("ray", "in-process"), default="ray")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--small", action="store_true", help="digits, few arms, one seed")
    given = parser.parse_args()
    data = load(DataConfig()) if given.small else fashion_mnist(given.data_dir)
    laboratory = Laboratory(data, given.folder, given.executor)
    measured = all_trainings(laboratory, SMALL if given.small else ARMS, not given.report)
    given.to.mkdir(parents=True, exist_ok=True)
    trainings = table(measured)
    trainings.to_csv(given.to / "trainings.csv", index=False, float_format="%.6g")
    done = trainings[trainings["status"] == "done"]
    if not given.small:
        seconds = pd.DataFrame(step_seconds([arm for arm in ARMS if arm.claim != "gap"]))
        seconds.to_csv(given.to / "step_seconds.csv", index=False, float_format="%.4g")
        costs = tower_costs()
        costs.to_csv(given.to / "tower_costs.csv", index=False, float_format="%.4g")
        print(
            f"light towers, default placement: {costs['share_of_step'].median():.1%} of a step (median of {len(costs)})"
        )
    for claim, group in done.groupby("claim", sort=False):
        found = report.summary(group, "none")
        found.to_csv(given.to / f"{claim}.csv", index=False, float_format="%.5g")
        print(f"\n{claim}\n{found.to_string(index=False, float_format='{:.4f}'.format)}")
        if claim == "early":
            report.draw_early(found, given.to / "early.svg")
            if not given.small:
                norms = report.gradients(group)
                norms.to_csv(given.to / "gradients.csv", index=False, float_format="%.4g")
                ratios = report.first_to_last(norms)
                ratios.to_csv(given.to / "first_to_last.csv", index=False, float_format="%.4g")
                print(f"\ngradient norm, first cell to last\n{ratios.to_string(index=False)}")
                report.draw_gradients(norms, given.to / "gradients.svg")


if __name__ == "__main__":
    main()
