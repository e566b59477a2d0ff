"""The driver: an open experiment with its data, store, workers and budget.

Everything a person gave is checked before anything is written; then the lease is taken, and only its holder writes.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from threading import Thread
from typing import Any

import torch

from nas import auxiliary, executor, ladder, metrics
from nas import config as configuration
from nas.config import Config, ExecutorConfig, Recipe
from nas.data import Data, load
from nas.data.sets import SETS
from nas.errors import ConfigError, ExperimentError, InputError, SpaceError
from nas.evaluation import complexity, precision
from nas.evaluation.evaluator import Job, Setup, SpaceSpec, variant_of, variant_share
from nas.evaluation.weights import Weights
from nas.executor import Executor
from nas.ladder import Rung
from nas.lease import owning
from nas.progress import Budget, Event, Listener, Progress
from nas.search.candidates import Candidates, Prices
from nas.search.time_plan import TimePlan, time_plan
from nas.space import SearchSpace
from nas.steps import retrain as retraining
from nas.store import Measurement, Store, existing_store, open_database
from nas.training import task

MEANING = (
    "seed",
    "space",
    "data",
    "towers",
    "proxy",
    "ladder",
    "search.objectives",
    *(f"search.{key}" for key in metrics.limits()),
)
"""Keys that say what a score means and what a candidate is: an experiment that has begun refuses a change to them."""

HARMLESS = ("data.dir",)
"""Keys below those that say only where things are."""

RESIZING: ladder.Resizing = ((0.5, 0.6), (0.7, 0.85))
"""Trainings under a time budget see small images first: a step costs a quarter, then half, of one at full size."""

FEW_IMAGES = 5000
"""With fewer images of the user's own, the exported network is trained on all of them. With fewer of any, trainings
under a time budget begin with smaller images."""

LEAST_RESIZED_SIDE = 24
"""Images of fewer pixels a side are not made smaller."""

TRIED = 20
"""Random networks, at least one of which must have the cells that towers.placement names."""


@dataclass
class Driver:
    """The open experiment: its space, data, study, measurements and workers."""

    config: Config
    spec: SpaceSpec
    space: SearchSpace
    data: Data
    records: Store
    executor: Executor
    rungs: tuple[Rung, ...]
    budget: Budget
    listen: Listener
    check: Callable[[], None]
    plan: TimePlan | None = None
    """How the time budget is spent, where candidates train for seconds."""
    given: Config = field(default_factory=Config)
    """The config as the user gave it, with what it leaves open."""
    started_in: float = 0.0
    """Seconds from the beginning of the run until the driver was open."""
    _workers_have: str = field(default="", init=False)

    def candidates(self, prices: Prices | None = None, max_step_seconds: float | None = None) -> Candidates:
        """What a candidate is here; a time budget limits the seconds of its training step."""
        classes, limits = len(self.data.classes), self.config.search
        return Candidates(self.space, self.data.input_shape, classes, limits, prices, max_step_seconds)

    @property
    def steps_an_epoch(self) -> int:
        """Steps in which retraining sees all its images once."""
        return max(1, self.retrain_images // ladder.batch_size(self.config.retrain, len(self.data.train)))

    @property
    def proxy(self) -> Rung:
        """The lowest trained rung, at which every candidate is judged first."""
        return self.rungs[0]

    def say(self, text: str) -> None:
        """Tell the listener a line."""
        self.listen(Event(Progress("", seconds_left=self.budget.left()), text=text))

    @property
    def retrain_images(self) -> int:
        """Images that retraining trains on in an epoch."""
        held = 0 if self.data.truth is None else len(self.data.truth)
        images = len(self.data.train) + len(self.data.validation) + held
        return min(images, self.config.retrain.images or images)

    @property
    def exports_all_images(self) -> bool:
        """Whether the exported network is trained on all images, after a training without the test images."""
        wanted, data = self.config.retrain.all_images, self.data
        if wanted is not None or data.test is None:
            return bool(wanted)
        few = len(data.all_images()) < FEW_IMAGES
        return few and self.config.data.name not in SETS and not data.official_test

    def retrain_rung(self, epochs: int | None = None, init: str | None = None) -> Rung:
        """The rung of full training; `epochs` overrides the recipe's, `init` names the weights it starts from."""
        return replace(ladder.retrain_rung(self.config, self.retrain_images, epochs), init=init)

    def timed_rung(self, steps: int) -> Rung:
        """The rung of full training of so many steps, by all cores of a machine."""
        rung = self.retrain_rung(epochs=math.ceil(steps / self.steps_an_epoch))
        return replace(rung, recipe=rung.recipe.model_copy(update={"steps": steps}), whole=True)

    def all_images_rung(self, rung: Rung) -> Rung:
        """The same training on the test images too."""
        return replace(rung, name="all-images", all_images=True)

    def full_rung(self, epochs: int | None = None) -> Rung:
        """Full training on the training images alone, scored on those kept for the truth."""
        rung = ladder.retrain_rung(self.config, len(self.data.train), epochs)
        return replace(rung, name="full", final=False, truth=True)

    def use_augmentation(self, names: Sequence[str]) -> None:
        """Train with these augmentations from now on, where the user does not say which."""
        self.config = with_augmentation(self.config, self.given, names)
        self.rungs = tuple(
            replace(rung, recipe=rung.recipe.model_copy(update={"augment": self.config.proxy.augment}))
            for rung in self.rungs
        )
        self.records.set_fact("rungs", [rung.key for rung in self.rungs])

    def give_proxies(self) -> None:
        """Workers get the data without the test split: no proxy can touch it."""
        self._give("proxies", self.data.without_test())

    def give_everything(self, *inits: Weights) -> None:
        """Workers get the test split too, and the weights that trainings start from."""
        self._give(" ".join(["everything", *(init.digest for init in inits)]), self.data, inits)

    def measure(self, jobs: Mapping[Job, str], stage: str) -> list[Measurement]:
        """Measure all jobs (each with a name to show) that are not measured yet; returns all their measurements."""
        folder = self.config.weights
        return retraining.measure(
            jobs, self.executor, self.records, self.budget, self.listen, stage, folder, self.check
        )

    def known(self, jobs: Iterable[Job]) -> int:
        """How many of these are measured already."""
        return retraining.known(jobs, self.records, self.config.weights)

    def _give(self, what: str, data: Data, inits: tuple[Weights, ...] = ()) -> None:
        if what != self._workers_have:
            self.executor.use(Setup(self.spec, data, self.config.search, inits))
            self._workers_have = what


@contextmanager
def driving(
    config: Config,
    listen: Listener,
    workers: bool = True,
    usable: Callable[[SearchSpace, Data], None] | None = None,
    began: float | None = None,
) -> Iterator[Driver]:
    """A driver of the experiment that `config` describes, for as long as the context is open.

    The time budget is spent from `began` on, as `time.monotonic` tells; None: from when the driver is open.

    Without `workers` nothing is started that could train: for steps that only read and write. `usable` raises an
    InputError where what the step is given does not go with space and data.

    Raises an InputError before anything is written when something given cannot be used, when the experiment began
    with scores of another meaning, or when another driver holds it.
    """
    spec = SpaceSpec.of(config.space.name, config.space.settings)
    space = spec.load()
    existing = existing_store(config.database, config.experiment)
    full = None if existing is None else existing.fact("full_epochs_at_start")  # another [retrain] moves no rung
    if not workers or config.executor.kind == "in-process":
        importlib.import_module("torch._dynamo")  # two threads must not import it at once
    loading = _in_background(lambda: _prepared(config))  # Ray takes seconds to start
    if wait([loading], timeout=0.2).done:
        loading.result()  # a wrong name shows at once
    with executor.start(executor_of(config) if workers else ExecutorConfig(kind="in-process")) as pool:
        data = loading.result()
        if config.search.calibrate:
            data = data.holding_truth()
        check_usable(config, space, data)
        on_gpu = pool.on_gpu if workers else _began_on_gpu(config, pool.on_gpu)
        plan = _time_plan(config, existing, pool.workers)
        resizing = () if plan is None else usable_resizing(config, space, data)
        cpu_precision: precision.Precision | None = None if existing is None else existing.fact("cpu_precision")
        if cpu_precision is None and not on_gpu:
            cpu_precision = precision.of_cpu(config, space, data)
        automatic = "bfloat16" if on_gpu or cpu_precision is None else cpu_precision
        suited = ladder.decided(config, data.augmentations, automatic, len(data.train), resizing)
        now = meaning(suited, space, data, spec.source)
        refuse_changes(config, now)
        if usable is not None:
            usable(space, data)
        if existing is not None and (augmentation := existing.fact("augmentation")) is not None:
            suited = with_augmentation(suited, config, augmentation)
        full = full or ladder.retrain_epochs(suited.retrain, len(data.train))
        rungs = rungs_of(suited, space, data, full, plan)
        _refuse_lost_store(config, existing)
        _make_folder(config)
        engine = open_database(config.database)
        with owning(engine, config.experiment) as lease:
            records = Store(engine, config.experiment, lease.guard)
            refuse_changes(config, now)  # again: nobody else can begin it now
            _write_config(config, space)
            records.set_fact("meaning", now)
            records.set_fact("full_epochs_at_start", full)
            records.set_fact("rungs", [rung.key for rung in rungs])
            records.set_fact("image", [*data.input_shape, len(data.classes)])
            records.set_fact("validation_images", len(data.validation))
            records.set_fact("test_images", 0 if data.test is None else len(data.test))
            if cpu_precision is not None:
                records.set_fact("cpu_precision", cpu_precision)
            if plan is not None:
                records.set_fact("time_plan", asdict(plan))
            budget = Budget(records, config.search.time, began)
            try:
                check = lease.check
                driver = Driver(suited, spec, space, data, records, pool, rungs, budget, listen, check, plan, config)
                driver.started_in = 0.0 if began is None else time.monotonic() - began
                yield driver
            finally:
                lease.check()
                budget.save()


def with_augmentation(config: Config, given: Config, names: Sequence[str]) -> Config:
    """A decided config with these augmentations where the one that was `given` leaves them open."""

    def recipe(decided: Recipe, open_: Recipe) -> Recipe:
        return decided if open_.augment is not None else decided.model_copy(update={"augment": tuple(names)})

    sections = {"proxy": recipe(config.proxy, given.proxy), "retrain": recipe(config.retrain, given.retrain)}
    return config.model_copy(update=sections)


def usable_resizing(config: Config, space: SearchSpace, data: Data) -> ladder.Resizing:
    """Image sizes that trainings begin with under a time budget: none where images are small or networks refuse.

    Nor where images are many, which a budget passes over a few times only: there a step on a small image taught less
    than its time was worth (Fashion-MNIST, 200 seconds: 90.65 % with it, 91.89 % without).
    """
    shape, classes = data.input_shape, len(data.classes)
    if data.task != "classification" or min(shape[1:]) < LEAST_RESIZED_SIDE or len(data.train) >= FEW_IMAGES:
        return ()
    channels, height, width = shape
    for share, _ in RESIZING:
        small = (channels, round(share * height), round(share * width))
        try:
            network = space.build(space.random(config.seed), shape, classes)
            supervised = auxiliary.supervise(network, config.towers, shape, classes, 0, data.coarse, data.classes)
            with torch.no_grad():
                supervised(torch.zeros(2, *small))
        except Exception:  # a third-party network may raise anything for images of another size
            return ()
    return RESIZING


def _time_plan(config: Config, existing: Store | None, workers: int) -> TimePlan | None:
    """How candidates train for seconds: under a time budget, unless the length of their training is given.

    An experiment that has begun keeps its rungs, whatever budget it has now, and its epochs if it began with these.
    """
    known = None if existing is None else existing.fact("time_plan")
    begun = existing is not None and existing.fact("meaning") is not None
    proxy, seconds = config.proxy, config.search.time
    given = proxy.epochs is not None or proxy.steps is not None or proxy.shrink != 1 or proxy.width != 1
    if (begun and known is None) or given or config.search.calibrate:
        return None
    if seconds is None:
        return None if known is None else TimePlan(**known)
    plan = time_plan(seconds, workers, config.search.share, config.ladder.rungs)
    return plan if known is None else replace(plan, proxy=known["proxy"], rungs=known["rungs"])


def rungs_of(
    config: Config, space: SearchSpace, data: Data, most: int | None = None, plan: TimePlan | None = None
) -> tuple[Rung, ...]:
    """The rungs of the ladder (see `nas.ladder.rungs`) or of a time plan."""
    if plan is not None:
        return ladder.timed_rungs(config, len(data.train), plan.rung_seconds())
    lowest = ladder.proxy_rung(config, len(data.train))
    share = variant_share(space, lowest, data.input_shape, len(data.classes), config.seed)
    return ladder.rungs(config, len(data.train), most, share)


def executor_of(config: Config) -> ExecutorConfig:
    """Where to train. A plan for time counts on trainings as fast as the proxies', which one process makes."""
    given = config.executor
    if config.search.time is None or given.retrain_workers is not None:
        return given
    return given.model_copy(update={"retrain_workers": 1})


def _prepared(config: Config) -> Data:
    """The data; and torch's compiler imported, for a second, which counting on the meta device wants."""
    data = load(config.data, progress=sys.stderr.isatty())
    importlib.import_module("torch._dynamo")
    return data


def _in_background(call: Callable[[], Data]) -> Future[Data]:
    """The call's result in time; in a daemon thread, so that Ctrl-C does not wait for a download."""
    future: Future[Data] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _refuse_lost_store(config: Config, existing: Store | None) -> None:
    """Raises ExperimentError where the folder holds results of an experiment whose store is gone or empty."""
    if config.storage is not None or (existing is not None and existing.fact("meaning") is not None):
        return
    left = [name for name in ("weights", "export") if (config.folder / name).exists()]
    if left:
        raise ExperimentError(
            f"folder {str(config.folder)!r} holds {left[0]}/ of an experiment, but its store study.db is missing or "
            "empty; put it back, or give the new experiment another --name"
        )


def _make_folder(config: Config) -> None:
    try:
        config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"cannot write to {str(config.folder)!r}: {error.strerror}") from None


def _write_config(config: Config, space: SearchSpace) -> None:
    """The resolved config, into the experiment's folder; whole or not at all."""
    file = config.folder / "config.toml"
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(configuration.explained(config, space.settings), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise ExperimentError(f"cannot write to {str(config.folder)!r}: {error.strerror}") from None


def check_usable(config: Config, space: SearchSpace, data: Data) -> None:
    """Raises an InputError where config, space and data are each fine but do not go together."""
    named = space.named()
    for name in config.search.warm_start or ():
        if name not in named:
            raise ConfigError(f"search.warm_start names {name!r}, but the space has: {', '.join(named) or 'none'}")
    rung = ladder.proxy_rung(config, len(data.train))
    if rung.shrink > min(data.input_shape[1:]):
        size = "x".join(map(str, data.input_shape[1:]))
        raise ConfigError(f"proxy.shrink = {rung.shrink} leaves nothing of images of {size} pixels")
    problem: InputError | None = None
    for attempt in range(1, TRIED + 1):
        try:
            architecture = space.random(config.seed + attempt)
            itself, small = (architecture, data.input_shape), variant_of(space, architecture, rung, data.input_shape)
            for one, shape in dict.fromkeys([itself, small]):
                network = space.build(one, shape, len(data.classes))
                if (logits := complexity.logits_shape(network, shape)) is not None:
                    task.check(data.task, config.space.name, logits, shape, len(data.classes))
                auxiliary.supervise(network, config.towers, shape, len(data.classes), 0, data.coarse, data.classes)
            return
        except InputError as error:
            problem = error
        except Exception as error:  # a third-party network may raise anything
            wrong = f"space {config.space.name!r} builds no network: {type(error).__name__}: {error}"
            problem = problem or SpaceError(wrong)
    assert problem is not None
    raise problem


def meaning(config: Config, space: SearchSpace, data: Data, source: str | None) -> dict[str, Any]:
    """Everything that a score depends on, by dotted key."""
    flat = _keys(config)
    flat |= {f"space.{key}": value for key, value in space.settings.model_dump(mode="json").items()}
    flat["the images"] = data.fingerprint.partition("/")[0]
    flat["search.calibrate, which halves the validation images"] = bool(config.search.calibrate)
    if source is not None:
        flat["the file of the space"] = hashlib.sha256(source.encode()).hexdigest()[:12]
    return {key: value for key, value in flat.items() if key not in HARMLESS}


def _keys(config: Config) -> dict[str, Any]:
    """What the config says of `MEANING`, by dotted key."""
    table = config.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for key in MEANING:
        value: Any = table
        for part in key.split("."):
            value = value[part]
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def refuse_changes(config: Config, now: dict[str, Any]) -> None:
    """Raises ExperimentError where the experiment began with scores of another meaning."""
    records = existing_store(config.database, config.experiment)
    began = records.fact("meaning") if records is not None else None
    if began is None:
        return
    began = _keys(Config()) | began  # what was not to be chosen then was as it is by default now
    changed = [key for key in now | began if now.get(key) != began.get(key)]
    if "the images" not in changed:  # the same ones by another path, such as photos for photos/
        changed = [key for key in changed if key != "data.name"]
    if changed:
        raise ExperimentError(
            f"experiment {config.experiment!r} began with another "
            f"{', '.join(f'{key} ({began.get(key)!r}, now {now.get(key)!r})' for key in changed)}; "
            "give the new one another --name"
        )


def _began_on_gpu(config: Config, here: bool) -> bool:
    """Whether the experiment began on GPUs, as automatic precision tells; `here` where it has not begun yet."""
    records = existing_store(config.database, config.experiment)
    began = records.fact("meaning") if records is not None else None
    if records is not None and records.fact("cpu_precision") is not None:
        return False
    return here if began is None else bool(began["proxy.precision"] == "bfloat16")
