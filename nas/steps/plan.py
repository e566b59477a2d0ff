"""Predicts the cost of `nas run`: a few networks are trained for seconds, the rest is arithmetic.

The seconds of training and of scoring follow from a cost model (see `nas.evaluation.cost_model`), fitted to short
trainings with all workers busy. The experiment that is opened for them lies in a temporary folder, which is deleted.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

from nas import ladder
from nas.config import Config
from nas.data.sets import SETS
from nas.errors import JobError
from nas.evaluation.cost_model import CostModel, Sample, Work
from nas.evaluation.evaluator import SCORED_AT_ONCE, Job, variant_of
from nas.ladder import Rung
from nas.progress import Event, Listener, Progress
from nas.search.candidates import Candidates, scaled, work_of
from nas.search.pace import UNSURE
from nas.search.scheduler import POLICY
from nas.search.time_plan import MARGIN, SAVED_FOR_WRITING, WRITING_OF_STARTING, TimePlan, search_share
from nas.space import Architecture, Shape
from nas.steps import pipeline, retrain, speed
from nas.steps.driver import Driver, driving
from nas.store import Measurement
from nas.training import loop as training

DRAWN = 12
"""Random architectures that stand for the space."""

DRAWS = 100
"""Draws among which they are looked for."""

STEPS = 20
"""Steps of a probe's training."""

PROBES = 3
"""Probes a worker, after one that warms it up; at least four in all."""


@dataclass(frozen=True)
class Plan:
    """What is expected: counts, seconds of each part, bytes that a worker holds at the lowest rung.

    `candidates_an_hour` includes the time that promotions take. The winner is trained `trainings` times, each with
    `steps` in `training_seconds`; the references are trained alike, once each.
    """

    workers: int
    candidates: int
    promotions: int
    calibrated: int
    trainings: int
    references: int
    candidates_an_hour: float
    steps: int
    start_seconds: float
    search_seconds: float
    calibration_seconds: float
    training_seconds: float
    retrain_seconds: float
    writing_seconds: float
    memory: int

    @property
    def seconds(self) -> float:
        """All of it."""
        searching = self.start_seconds + self.search_seconds + self.calibration_seconds
        return searching + self.retrain_seconds + self.writing_seconds


def plan(config: Config, listen: Listener = lambda event: None) -> Plan:
    """What `nas run` with this config will take. Raises an InputError where it could not run either."""
    began = time.perf_counter()
    with TemporaryDirectory(prefix="nas-plan-", ignore_cleanup_errors=True) as folder:
        elsewhere = config.model_copy(update={"results": Path(folder), "storage": None})
        with driving(elsewhere, listen) as driver:
            driver.give_proxies()
            candidates = driver.candidates(*speed.measured(driver, within_run=True))
            before = time.perf_counter()
            drawn = _drawn(candidates, config.seed)
            began += time.perf_counter() - before  # `nas run` draws none
            probes = _probe(driver, drawn, began)
            return Forecast(driver, candidates, drawn, probes, probes.model(driver)).plan()


@dataclass(frozen=True)
class Probes:
    """Short trainings with all workers busy: what each measured and took beside it, and when the first began."""

    measured: Sequence[Measurement]
    overheads: Sequence[float]
    started: float

    def model(self, driver: Driver) -> CostModel:
        """The cost model of a worker that they give, for training and for scoring."""
        space, rung, data = driver.space, driver.proxy, driver.data
        batch = training.steps_of(rung.recipe, len(data.train))[1]
        count, size = _scored(len(data.validation), batch)
        trained, scored = [], []
        for one in self.measured:
            architecture = space.architecture_type.from_json(one.architecture)
            network, shape = variant_of(space, architecture, rung, data.input_shape)
            work = work_of(space, network, shape, len(data.classes))
            step = one.cost["seconds"] / one.cost["steps"]
            trained.append(Sample(scaled(work, _area(rung)), batch, step))
            scored.append(Sample(work, size, step, one.cost["scoring_seconds"] / count))
        return CostModel(training=CostModel.fit(trained).training, inference=CostModel.fit(scored).inference)


@dataclass(frozen=True)
class Forecast:
    """From the speed of probes to the cost of all that `nas run` does.

    `drawn` are random architectures within the limits; `model` gives the seconds of one worker while all are busy.
    """

    driver: Driver
    candidates: Candidates
    drawn: Sequence[Architecture]
    probes: Probes
    model: CostModel
    _works: dict[tuple[Architecture, Shape], Work] = field(default_factory=dict, init=False)

    def plan(self) -> Plan:
        """All of it."""
        wanted, start = self.driver.config.search, self.probes.started + self._pilot()
        count, promoted, search = self._search()
        calibration = _makespan([fmean(map(self._fully, self.drawn))] * wanted.calibrate, self.driver.executor.workers)
        if wanted.time is not None:
            calibration = min(calibration, (1 - pipeline.SEARCHED) * self._share * wanted.time)
        references = self._references
        steps, each, retraining = self._retraining(references, start + search + calibration)
        return Plan(
            workers=self.driver.executor.workers,
            candidates=count,
            promotions=promoted,
            calibrated=wanted.calibrate,
            trainings=self._trainings,
            references=len(references),
            candidates_an_hour=3600 * count / search,
            steps=steps,
            start_seconds=start,
            search_seconds=search,
            calibration_seconds=calibration,
            training_seconds=each,
            retrain_seconds=retraining,
            writing_seconds=self._writing,
            memory=int(max(one.cost.get("memory", 0.0) for one in self.probes.measured)),
        )

    @property
    def _share(self) -> float:
        """The search's share of a time budget."""
        wanted = self.driver.config.search
        return wanted.share or search_share(wanted.time or 0.0)

    @property
    def _trainings(self) -> int:
        """Trainings of the winner."""
        timed = self.driver.config.search.time is not None
        return self.driver.config.retrain.seeds or (1 if timed else pipeline.DEFAULT_SEEDS)

    @property
    def _references(self) -> list[Architecture]:
        config = self.driver.config
        wanted = config.search.time is None if config.retrain.references is None else config.retrain.references
        rows = retrain.references(self.candidates, config.seed) if wanted else {}
        return list(itertools.chain.from_iterable(rows.values()))

    def _pilot(self) -> float:
        """Seconds of the trainings that choose the augmentation, see `nas.steps.pipeline.choose_augmentation`."""
        driver, given = self.driver, self.driver.given
        decided = given.proxy.augment is not None and given.retrain.augment is not None
        known = driver.config.data.name in SETS or driver.data.task != "classification"
        if driver.plan is None or decided or known:
            return 0.0
        return _makespan([self._mean(driver.proxy)] * len(pipeline.AUGMENTATIONS), driver.executor.workers)

    def _search(self) -> tuple[int, int, float]:
        """Candidates, those of them that are promoted to the highest rung, and seconds of it all."""
        wanted, workers, rungs = self.driver.config.search, self.driver.executor.workers, self.driver.rungs
        if wanted.time is None:
            trials = wanted.trials or pipeline.DEFAULT_TRIALS
            return trials, *self._of(trials)
        seconds = self._share * wanted.time * (pipeline.SEARCHED if wanted.calibrate else 1.0)
        if self.driver.plan is not None:
            return self._in_time(seconds)
        if wanted.trials is not None:
            candidate = self._of(wanted.trials)[1] / wanted.trials
            trials = max(1, min(wanted.trials, int(seconds / candidate)))
            return trials, *self._of(trials)
        each = [self._mean(rung) for rung in rungs]
        share = POLICY.share([rung.effort for rung in rungs])
        promoted = workers * ladder.last_rounds(seconds, UNSURE * each[-1], share) if len(each) > 1 else 0
        rest = (workers * seconds - promoted * each[-1]) / max(1, len(each) - 1)  # each rung below has as much
        return max(1, int(rest / each[0])), promoted, seconds

    def _in_time(self, seconds: float) -> tuple[int, int, float]:
        """The same at rungs of seconds, each of which has as much of the time as the others."""
        rungs, workers = self.driver.rungs, self.driver.executor.workers
        each = [self._mean(rung) for rung in rungs]
        a_candidate = sum(one * rungs[0].effort / rung.effort for one, rung in zip(each, rungs, strict=True))
        fit = max(1, int(workers * seconds / a_candidate))
        count = min(fit, self.driver.config.search.trials or fit)
        left = max(0.0, workers * seconds - count * each[0])
        promoted = min(count, int(left / each[-1])) if len(each) > 1 else 0
        trained = [each[0]] * count + [each[-1]] * promoted
        return count, promoted, seconds if count == fit else min(seconds, _makespan(trained, workers))

    def _of(self, trials: int) -> tuple[int, float]:
        """Of so many candidates - the named ones, then random ones - how many are promoted, and seconds of it all."""
        rungs, chosen = self.driver.rungs, self.driver.config.search.warm_start
        warm = _named(self.candidates, self.driver.space.named() if chosen is None else chosen)
        each = [self._measured(one, rungs[0]) for one in self.drawn]
        seconds = [self._measured(one, rungs[0]) for one in warm[:trials]]
        seconds += itertools.islice(itertools.cycle(each), trials - len(seconds))
        used, promoted, _ = ladder.budget_for(trials, [rung.effort for rung in rungs])
        for rung in rungs[1:used]:
            count = promoted if rung is rungs[used - 1] else round(trials * rungs[0].effort / rung.effort)
            seconds += [self._mean(rung)] * count
        return promoted, _makespan(seconds, self.driver.executor.workers)

    def _retraining(self, references: Sequence[Architecture], before: float) -> tuple[int, float, float]:
        """Steps and seconds of a training of the winner, and seconds of all trainings.

        The winner is thought of as the mean of the larger half of candidates. A time budget gives it what is left
        `before` seconds after the start, with the whole machine (see `nas.steps.speed.final_trainings`).
        """
        driver, prices = self.driver, self.candidates.prices
        total, data = driver.config.search.time, driver.data
        if total is not None and prices is not None:
            step = _larger([prices.of_whole(self._work(one, data.input_shape)) for one in self.drawn])
            count = self._trainings + len(references)
            left = MARGIN * max(0.0, total - before - self._writing) / count
            an_epoch = driver.steps_an_epoch
            steps = max(an_epoch, TimePlan(total, before, left, 0.0, 1).steps(step, an_epoch))
            return steps, steps * step, count * steps * step  # one on all images takes its part of the same time
        rung, images = driver.retrain_rung(), len(data.train_and_validation())
        scored = 0 if data.test is None else len(data.test)
        each = _larger([self._seconds(one, rung, images, scored) for one in self.drawn])
        others = [self._seconds(one, rung, images, scored) for one in references]
        seconds = _makespan([each] * self._trainings + others, driver.executor.retrainings)
        if driver.exports_all_images:
            seconds += each * (1 + scored / images)
        return _steps(rung, images), each, seconds

    @property
    def _writing(self) -> float:
        """Seconds for the export and for the end of the process."""
        return SAVED_FOR_WRITING + WRITING_OF_STARTING * self.probes.started

    def _mean(self, rung: Rung) -> float:
        """Seconds of a candidate at a rung of the search, in the mean over those drawn."""
        return fmean(self._measured(one, rung) for one in self.drawn)

    def _measured(self, architecture: Architecture, rung: Rung) -> float:
        """Seconds of a candidate at a rung of the search."""
        return self._seconds(architecture, rung, len(self.driver.data.train), len(self.driver.data.validation))

    def _fully(self, architecture: Architecture) -> float:
        """Seconds of a full training for the calibration."""
        data = self.driver.data
        scored = len(data.validation) + (0 if data.truth is None else len(data.truth))
        return self._seconds(architecture, self.driver.full_rung(), len(data.train), scored)

    def _seconds(self, architecture: Architecture, rung: Rung, images: int, scored: int) -> float:
        """Seconds of one worker for a training on so many images, and for scoring so many."""
        network, shape = variant_of(self.driver.space, architecture, rung, self.driver.data.input_shape)
        work = self._work(network, shape)
        batch = training.steps_of(rung.recipe, images)[1]
        trained = rung.seconds
        if trained is None:
            trained = _steps(rung, images) * self.model.seconds_per_step(scaled(work, _area(rung)), batch)
        count, size = _scored(scored, batch)
        return median(self.probes.overheads) + trained + count * self.model.seconds_per_batch(work, size)

    def _work(self, architecture: Architecture, shape: Shape) -> Work:
        key = architecture, shape
        if key not in self._works:
            self._works[key] = work_of(self.driver.space, architecture, shape, len(self.driver.data.classes))
        return self._works[key]


def _drawn(candidates: Candidates, seed: int) -> list[Architecture]:
    """Random architectures within the limits; where none was drawn, the named points within them."""
    found: dict[Architecture, None] = {}
    for number in range(DRAWS):
        try:
            architecture = candidates.space.random(1_000 * seed + number)
            if architecture not in found and _is_within(candidates, architecture):
                found[architecture] = None
        except Exception:  # a third-party space may raise anything, and its other points may be sound
            continue
        if len(found) in (DRAWN, candidates.space.size()):
            break
    drawn = list(found) or _named(candidates, candidates.space.named())
    if not drawn:
        raise JobError(f"none of {DRAWS} random architectures is within the limits of [search]")
    return drawn


def _named(candidates: Candidates, names: Iterable[str]) -> list[Architecture]:
    """Of these named points, those within the limits."""
    named = candidates.space.named()
    points = [candidates.space.point(named[name]) for name in names]
    return [point for point in points if _is_within(candidates, point)]


def _is_within(candidates: Candidates, architecture: Architecture) -> bool:
    return all(over <= 0 for over in candidates.excess(architecture)[0].values())


def _probe(driver: Driver, drawn: Sequence[Architecture], began: float) -> Probes:
    """Train some on all workers for a few steps. The first on each worker warm it up and are not counted."""
    executor, rung = driver.executor, replace(driver.proxy, name="probe")
    count = executor.workers + max(4, PROBES * executor.workers)
    chosen = itertools.islice(itertools.cycle(drawn), count)
    waiting = [Job.of(architecture, rung, seed, steps=STEPS) for seed, architecture in enumerate(chosen)]
    submitted: dict[Job, float] = {}
    measured: list[tuple[Measurement, float]] = []
    started = 0.0
    while len(measured) < count:
        while executor.free and len(submitted) < count:
            job = waiting[len(submitted)]
            submitted[job] = time.perf_counter()
            executor.submit(job)
        for outcome in executor.wait():
            now, measurement = time.perf_counter(), outcome.measurement
            spent = measurement.cost.get("seconds", 0.0) + measurement.cost.get("scoring_seconds", 0.0)
            started = started or now - began - spent
            measured.append((measurement, now - submitted[outcome.job] - spent))
            progress = Progress("plan", done=len(measured), running=executor.running, total=count)
            driver.listen(Event(progress, f"probe {len(measured)}", measurement))
    kept = [pair for pair in measured[executor.workers :] if pair[0].status == "done"]
    if not kept:
        raise JobError(f"no candidate could be trained: {measured[-1][0].cause}")
    return Probes([measurement for measurement, _ in kept], [overhead for _, overhead in kept], started)


def _steps(rung: Rung, images: int) -> int:
    """Steps of a training on a split of so many images."""
    return rung.recipe.steps or rung.epochs * training.steps_of(rung.recipe, images)[0]


def _scored(images: int, batch: int) -> tuple[int, int]:
    """Batches in which so many images are scored after a training in batches of `batch`, and images of each."""
    count = math.ceil(images / max(SCORED_AT_ONCE, batch))
    return count, round(images / max(1, count))


def _area(rung: Rung) -> float:
    """Share of an image's pixels, in the mean over a training at this rung."""
    return speed.mean_area(rung.recipe.resizing or ())


def _larger(seconds: Sequence[float]) -> float:
    """The mean of the larger half."""
    return fmean(sorted(seconds)[len(seconds) // 2 :])


def _makespan(seconds: Iterable[float], workers: int) -> float:
    """Seconds until all are done, each begun on the worker that is free first."""
    loads = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(loads, loads[0] + each)
    return max(loads)
