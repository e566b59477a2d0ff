"""Collects truth tables: proxy scores and full trainings of the same architectures.

An arm is one way to train (a rung) from so many seeds; a plan is the architectures and all arms. Everything is
measured by the engine's own executor and is in its table of measurements when it is done, so that collecting goes on
where it was stopped. `table` brings it into one tidy frame, a row a measurement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nas import ladder, leaderboard
from nas.config import Config, Recipe, SearchConfig, TowersConfig
from nas.data import Data, load, load_for_truth
from nas.errors import ExperimentError, InputError
from nas.evaluation.evaluator import Job, Setup, SpaceSpec
from nas.executor import Executor, start
from nas.ladder import Rung
from nas.lease import owning
from nas.progress import Budget, Listener, counted
from nas.proxy_fidelity.calibrated import spread
from nas.space import Architecture, SearchSpace
from nas.steps import retrain
from nas.steps.driver import check_usable
from nas.store import Measurement, Store, check_place, existing_store, open_database

PROXY_SEEDS = 1000
"""Seeds of proxies begin here: no proxy shares its initial weights with a full training."""

NONE = TowersConfig(placement="none")

AZ_NAS = ("az_expressivity", "az_progressivity", "az_trainability", "flops")
"""What AZ-NAS ranks by (Lee and Ham 2024, eq. 9)."""


@dataclass(frozen=True)
class Arm:
    """One way to train every architecture, from these seeds; with `first`, so many architectures only."""

    rung: Rung
    seeds: tuple[int, ...]
    first: int | None = None


@dataclass(frozen=True)
class Plan:
    """A truth table to be collected."""

    space: SpaceSpec
    data: Data
    architectures: tuple[Architecture, ...]
    arms: tuple[Arm, ...]

    def jobs(self) -> dict[Job, str]:
        """Every measurement, architecture by architecture, so that what is there is complete at any time.

        Arms that only the first architectures have come last.
        """
        found = {}
        usual = [arm for arm in self.arms if arm.first is None]
        for arms in (usual, [arm for arm in self.arms if arm not in usual]):
            for number, architecture in enumerate(self.architectures, 1):
                for arm in arms:
                    for seed in arm.seeds if number <= (arm.first or number) else ():
                        job = Job.of(architecture, arm.rung, seed)
                        found[job] = f"architecture {number}/{len(self.architectures)}, {arm.rung.name}, seed {seed}"
        return found


@dataclass(frozen=True)
class Wanted:
    """What a person asks for: how many architectures, at which epochs, from how many seeds, on how many images.

    None: chosen by the data. `full_epochs` None: those of the retraining recipe. With `spread`, architectures are
    spread over what the experiment has measured; else they are random.
    """

    architectures: int = 32
    epochs: tuple[int, ...] = (1, 3)
    full_epochs: int | None = None
    seeds: int = 2
    full_seeds: int = 2
    train: int | None = None
    validation: int | None = None
    spread: bool = False

    def __post_init__(self) -> None:
        for name in ("architectures", "seeds", "full_seeds", "train", "validation", "full_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name.replace('_', '-')} must be at least 1, got {value}")
        if not self.epochs or min(self.epochs) < 1 or len(set(self.epochs)) < len(self.epochs):
            raise InputError(f"epochs must be different numbers from 1, got {', '.join(map(str, self.epochs))}")


def gather(config: Config, wanted: Wanted, folder: Path, listen: Listener) -> Path:
    """Collect a truth table of the config's space, data, towers and recipes into `folder`; its file.

    Proxies follow [proxy] with the towers of [towers] and without any at equal cost, full trainings follow [retrain]
    without towers. Goes on where it was stopped; refuses, with an ExperimentError, to mix what was asked for before
    with another space or other images, or to leave out of the table what it has.
    """
    check_place(folder)
    spec = SpaceSpec.of(config.space.name, config.space.settings)
    space = spec.load()
    measured = _measured(config) if wanted.spread else []
    data = _data(config, wanted)
    check_usable(config, space, data)
    chosen = (
        spread(measured, space.architecture_type, wanted.architectures)
        if wanted.spread
        else random_architectures(space, wanted.architectures, config.seed)
    )
    with start(config.executor) as executor:
        decided = ladder.decided(
            config, data.augmentations, "bfloat16" if executor.on_gpu else "float32", len(data.train)
        )
        fields = set(Recipe.model_fields)
        recipe, full = (Recipe(**one.model_dump(include=fields)) for one in (decided.proxy, decided.retrain))
        full = full.model_copy(update={"epochs": wanted.full_epochs or ladder.retrain_epochs(full, len(data.train))})
        towers = {} if config.towers.placement == "none" else {label(config.towers): (config.towers, recipe)}
        if any(count > (full.epochs or 0) for count in wanted.epochs):
            raise InputError(f"a proxy of {max(wanted.epochs)} epochs is longer than full training ({full.epochs})")
        seeds, small = (wanted.seeds, wanted.full_seeds), (config.proxy.shrink, config.proxy.width)
        plan = Plan(spec, data, chosen, arms(towers, recipe, full, wanted.epochs, *seeds, *small))
        file = folder / "truth.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        engine = open_database(f"sqlite:///{(folder / 'measurements.db').resolve()}")
        with owning(engine, "truth") as lease:
            records = Store(engine, "truth", lease.guard)
            _refuse_changes(records, spec, data)
            _refuse_losses(plan, file)
            try:
                collect(plan, executor, records, listen, lease.check)
            finally:
                if len(found := table(plan, records)):
                    write(found, file)
    return file


def _measured(config: Config) -> list[Measurement]:
    """The experiment's candidates by proxy score, best first."""
    records = existing_store(config.database, config.experiment)
    if records is None:
        raise ExperimentError(f"experiment {config.experiment!r} has no measured candidates to spread over")
    return leaderboard.standing(records, config.search.objectives[0])


def _data(config: Config, wanted: Wanted) -> Data:
    """By default two fifths of the images (at most what proxies train on) are trained on, a fifth judges proxies."""
    whole = load(config.data)
    images = len(whole.train) + len(whole.validation)
    train = wanted.train or min(config.proxy.images, 2 * images // 5)
    return load_for_truth(config.data, train, wanted.validation or min(config.data.max_validation, images // 5))


def _refuse_changes(records: Store, spec: SpaceSpec, data: Data) -> None:
    now = {"space": spec.name, "settings": spec.settings, "source": spec.source, "images": data.fingerprint}
    now = json.loads(json.dumps(now))
    began = records.fact("meaning", now)
    changed = [key for key in now if now[key] != began.get(key)]
    if changed:
        raise ExperimentError(f"this truth table began with another {', '.join(changed)}; collect into another folder")
    records.set_fact("meaning", now)


def _refuse_losses(plan: Plan, file: Path) -> None:
    """Raises ExperimentError where the table has measurements that the plan does not."""
    if not file.is_file():
        return
    rows = pd.read_parquet(file, columns=["architecture", "rung_key", "seed"])
    left_out = set(rows.itertuples(index=False, name=None)) - {job.unit for job in plan.jobs()}
    if left_out:
        rungs = ", ".join(sorted({key.rpartition("-")[0] for _, key, _ in left_out}))
        raise ExperimentError(
            f"{str(file)!r} has {counted(len(left_out), 'measurement')} that this would leave out (rungs {rungs}): "
            "collect into another folder with --to, or move the table away, which forgets nothing measured"
        )


def arms(
    towers: Mapping[str, tuple[TowersConfig, Recipe]],
    bare: Recipe,
    full: Recipe,
    epochs: Iterable[int] = (1, 3),
    seeds: int = 2,
    full_seeds: int = 2,
    shrink: int = 1,
    width: float = 1.0,
) -> tuple[Arm, ...]:
    """The usual arms: untrained; each setting of towers, and none at the cost of the first, at so many epochs; full.

    Each setting has a recipe, proxies without towers `bare`, full trainings, without towers, `full`; its epochs are
    full training's. Proxies train low-fidelity variants of this `shrink` and `width`. Averaged weights are read during
    full training: in a schedule that ends they rank no better than the weights themselves, and reading them costs a
    second scoring.
    """
    proxy_seeds = tuple(range(PROXY_SEEDS, PROXY_SEEDS + seeds))
    small = "".join([f", shrink {shrink}" * (shrink != 1), f", width {width:g}" * (width != 1)])
    paid = next((setting for setting, _ in towers.values()), None)
    found = [free_arm(bare, proxy_seeds)]
    for count in epochs:
        for name, (setting, recipe) in towers.items():
            short = recipe.model_copy(update={"epochs": count})
            found.append(Arm(Rung(f"{count}-{name}{small}", short, setting, shrink=shrink, width=width), proxy_seeds))
        short = bare.model_copy(update={"epochs": count})
        bare_rung = Rung(f"{count}-none{small}", short, NONE, as_costly_as=paid, shrink=shrink, width=width)
        found.append(Arm(bare_rung, proxy_seeds))
    return (*found, full_arm(full, tuple(epochs), full_seeds))


def free_arm(recipe: Recipe, seeds: tuple[int, ...]) -> Arm:
    """The untrained network."""
    return Arm(Rung("free", recipe.model_copy(update={"epochs": 1}), NONE, free=True), seeds)


def full_arm(recipe: Recipe, readings: Sequence[int], seeds: int) -> Arm:
    """Full training without towers, averaged weights read on the way."""
    assert recipe.epochs is not None
    epochs = tuple(sorted({epoch for epoch in (*readings, recipe.epochs) if epoch <= recipe.epochs}))
    return Arm(Rung("full", recipe.model_copy(update={"readings": epochs}), NONE, truth=True), tuple(range(seeds)))


def random_architectures(space: SearchSpace, count: int, seed: int) -> tuple[Architecture, ...]:
    """Different random architectures; the first of many are the same as few. Raises InputError where there are not."""
    found: dict[str, Architecture] = {}
    problem: Exception | None = None
    for attempt in range(100 * count):
        try:
            architecture = space.random(1_000_003 * seed + attempt)
        except Exception as error:  # a third-party space may raise anything, and its other points may be sound
            problem = problem or error
            continue
        found.setdefault(architecture.key, architecture)
        if len(found) == count:
            return tuple(found.values())
    why = "" if problem is None else f"; the first that it could not make: {type(problem).__name__}: {problem}"
    raise InputError(f"the space has only {len(found)} different architectures among {100 * count} random ones{why}")


def collect(
    plan: Plan, executor: Executor, records: Store, listen: Listener, check: Callable[[], None] = lambda: None
) -> list[Measurement]:
    """Measure everything that is not measured yet; returns all measurements. `check` may raise before each."""
    executor.use(Setup(plan.space, plan.data, SearchConfig()))
    budget = Budget(records, None)
    return retrain.measure(plan.jobs(), executor, records, budget, listen, "calibrate", check=check)


def table(plan: Plan, records: Store) -> pd.DataFrame:
    """One row a measurement of the plan that is there by now: architecture, rung, seed, signals and cost.

    What an untrained network showed stands in every proxy row of the same architecture and seed. `towers` is a label
    such as ``middle 0.3``, `equal_to` that of the towers whose cost was spent on further steps instead. `seconds` and
    `multiply_adds` hold all that the row's signals took but reading the untrained network.
    """
    entries = (entry.measurement for entry in records.all())
    known = {(one.key, one.rung, one.seed): one for one in entries}
    space = plan.space.load()
    side = plan.data.input_shape[1]
    free: dict[tuple[str, int], Mapping[str, float]] = {}
    rows = []
    for job in plan.jobs():
        measurement = known.get(job.unit)
        if measurement is None:
            continue
        if job.rung.free:
            free[job.key, job.seed] = measurement.signals
        rows.append(_row(job, measurement, space, side, len(plan.data.train)))
    for row in rows:
        row |= dict(free.get((row["architecture"], row["seed"]), {}))
    frame = pd.DataFrame(rows)
    if set(AZ_NAS) <= set(frame.columns):
        frame["az_nas"] = rank_sum(frame, AZ_NAS)
    return frame


def rank_sum(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series[float]:
    """Sum over columns of log(rank / count) among the architectures of the same seed: AZ-NAS, eq. 9."""
    first = frame.drop_duplicates(["architecture", "seed"]).dropna(subset=list(columns))
    ranks = first.groupby("seed")[list(columns)].rank()
    ranks = ranks.div(first.groupby("seed")["seed"].transform("size"), axis=0)
    total = ranks.map(math.log).sum(axis=1)
    scores = {(one.architecture, one.seed): value for one, value in zip(first.itertuples(), total, strict=True)}
    return pd.Series(
        [scores.get(pair, math.nan) for pair in zip(frame["architecture"], frame["seed"], strict=True)], frame.index
    )


def write(frame: pd.DataFrame, file: Path) -> None:
    """As Parquet, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    frame.to_parquet(partial, index=False)
    partial.replace(file)


def label(towers: TowersConfig) -> str:
    """Where and how heavy, and what else is not the default: ``middle 0.3``, ``none``."""
    if towers.placement == "none":
        return "none"
    place = towers.placement if isinstance(towers.placement, str) else ",".join(map(str, towers.placement))
    weights = towers.weight if isinstance(towers.weight, tuple) else (towers.weight,)
    default = TowersConfig()
    others = [
        f"{key} {getattr(towers, key)}"
        for key in TowersConfig.model_fields
        if key not in ("placement", "weight") and getattr(towers, key) != getattr(default, key)
    ]
    return " ".join([place, "/".join(f"{weight:g}" for weight in weights), *others])


def _row(job: Job, measurement: Measurement, space: SearchSpace, side: int, images: int) -> dict[str, Any]:
    rung, recipe, cost = job.rung, job.rung.recipe, measurement.cost
    return {
        "architecture": job.key,
        "cells": len(space.describe(space.architecture_type.from_json(job.architecture))),
        "rung": rung.name,
        "seed": job.seed,
        "status": measurement.status,
        "full": rung.truth,
        "rung_key": measurement.rung,
        "definition": measurement.architecture,
        "epochs": 0.0 if rung.free else float(rung.epochs),
        "images": min(images, recipe.images or images),
        "size": side // rung.shrink,
        "width": rung.width,
        "towers": label(rung.towers),
        "equal_to": "" if rung.as_costly_as is None else label(rung.as_costly_as),
        "learning_rate": recipe.learning_rate,
        "batch_size": recipe.batch_size,
        "seconds": cost.get("seconds", math.nan) + cost.get("scoring_seconds", 0.0),
        "multiply_adds": cost.get("multiply_adds", math.nan),
        **measurement.signals,
    }
