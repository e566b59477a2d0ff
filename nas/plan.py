"""What a search will cost, before it starts: a few candidates are trained for seconds, the rest is arithmetic.

The speed of an image, in training and in scoring, is taken as linear in the network's FLOPs; it is measured with all
workers busy. Nothing is written down.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np

from nas import ladder, pipeline, retrain
from nas.candidates import Candidates
from nas.config import Config, SearchConfig
from nas.data import Data, load
from nas.driver import check_usable, executor_of, rungs_of
from nas.errors import JobError
from nas.executor import Executor, start
from nas.ladder import Rung
from nas.pace import UNSURE
from nas.progress import Event, Listener, Progress
from nas.proxy import Job, Setting, SpaceSpec
from nas.records import Measurement
from nas.search import POLICY
from nas.space import Architecture

DRAWN = 30
"""Random architectures that stand for the space."""

STEPS = 20
"""Steps of a probe's training."""

PROBES = 3
"""Probes a worker, after one that warms it up; at least four in all."""


@dataclass(frozen=True)
class Plan:
    """What is expected: counts, seconds of each part, bytes that a worker holds at the lowest rung.

    `candidates_an_hour` counts newcomers, with the time that promotions take; `retrained` counts the trainings of the
    winner and the references, `epochs` are theirs.
    """

    workers: int
    candidates: int
    promotions: int
    calibrated: int
    retrained: int
    candidates_an_hour: float
    epochs: int
    start_seconds: float
    search_seconds: float
    calibration_seconds: float
    retrain_seconds: float
    memory: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.start_seconds + self.search_seconds + self.calibration_seconds + self.retrain_seconds


@dataclass(frozen=True)
class Speed:
    """Seconds of a training: so much for each candidate, each image trained on and each image scored."""

    training: tuple[float, float]
    scoring: tuple[float, float]
    overhead: float

    def seconds(self, flops: float, trained: float, scored: float) -> float:
        """Of one candidate of so many FLOPs."""
        each = [slope * flops + level for slope, level in (self.training, self.scoring)]
        return self.overhead + each[0] * trained + each[1] * scored


def plan(config: Config, listen: Listener = lambda event: None) -> Plan:
    """What `nas run` with this config will take. Raises an InputError where it could not run either."""
    spec = SpaceSpec.of(config.space.name, config.space.settings)
    space = spec.load()
    begin = time.perf_counter()
    with start(executor_of(config)) as executor:
        data = load(config.data)
        if config.search.calibrate:
            data = data.holding_truth()
        check_usable(config, space, data)
        executor.use(Setting(spec, data.without_test(), SearchConfig()))
        suited = ladder.decided(config, data.augmentations, executor.on_gpu)
        candidates = Candidates(space, data.input_shape, len(data.classes), config.search)
        drawn = _drawn(candidates, config.seed)
        probes = _probe(
            executor, list(drawn), ladder.proxy_rung(suited, len(data.train)), len(data.train), listen, begin
        )
        slots = executor.slots, executor.retrainings
        return Forecast(suited, data, candidates, list(drawn.values()), probes, *slots).plan()


@dataclass(frozen=True)
class Probes:
    """Short trainings with all workers busy: what each measured and took beside it, and when the first began."""

    measured: Sequence[Measurement]
    overheads: Sequence[float]
    started: float

    def speed(self, scored: float) -> Speed:
        """What they say of others; `scored` validation images (of full size and width) were scored in each."""
        flops = [one.signals["flops"] for one in self.measured]
        trained = [one.cost["seconds"] / one.cost["images"] for one in self.measured]
        read = [one.cost["scoring_seconds"] / scored for one in self.measured]
        return Speed(_line(flops, trained), _line(flops, read), median(self.overheads))


class Forecast:
    """From the speed of probes to the cost of all that `nas run` does.

    `drawn`: FLOPs of random candidates. `retrainings` run at once; each is as fast as one process trains.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        candidates: Candidates,
        drawn: Sequence[float],
        probes: Probes,
        slots: int,
        retrainings: int,
    ) -> None:
        self._config, self._data, self._candidates, self._slots = config, data, candidates, slots
        self._retrainings = retrainings
        self._rungs = rungs_of(config, candidates.space, data)
        self._speed, self._probes = probes.speed(len(data.validation) * self._rungs[0].share), probes
        self._everything = len(data.train_and_validation())
        self._final = ladder.retrain_rung(config, self._everything)
        named = _flops_of(candidates, candidates.space.named())
        self._references = [*named, *drawn[: retrain.RANDOM_REFERENCES]] if config.retrain.references else []
        self._reference = [*named, *drawn][0]
        limit = self._affordable()
        self._drawn = [one for one in drawn if limit is None or one <= limit] or [min(drawn)]
        chosen = config.search.warm_start
        warm = named if chosen is None else _flops_of(candidates, chosen)
        self._warm = [one for one in warm if limit is None or one <= limit]

    def plan(self) -> Plan:
        """All of it."""
        wanted = self._config.search
        trials, promoted, search = self._search()
        calibration = _makespan([self._fully(fmean(self._drawn))] * wanted.calibrate, self._slots)
        if wanted.time is not None:
            calibration = min(calibration, (1 - pipeline.SEARCHED) * wanted.share * wanted.time)
        epochs, retraining = self._retraining(search + calibration)
        return Plan(
            workers=self._slots,
            candidates=trials,
            promotions=promoted,
            calibrated=wanted.calibrate,
            retrained=self._config.retrain.seeds + len(self._references),
            candidates_an_hour=3600 * trials / search,
            epochs=epochs,
            start_seconds=self._probes.started,
            search_seconds=search,
            calibration_seconds=calibration,
            retrain_seconds=retraining,
            memory=int(max(one.cost.get("memory", 0.0) for one in self._probes.measured)),
        )

    def _affordable(self) -> int | None:
        """The limit on FLOPs that a time budget sets, as the search will set it."""
        wanted, recipe = self._config.search, self._config.retrain
        if wanted.time is None or wanted.max_flops is not None:
            return None
        images = self._final.epochs * min(self._everything, recipe.images or self._everything)
        left = (1 - wanted.share) * wanted.time
        probe = self._probes.measured[0]
        many = recipe.seeds, len(self._references), images, self._retrainings
        return max(retrain.affordable_flops(left, probe, *many), int(self._reference))

    def _search(self) -> tuple[int, int, float]:
        """Candidates, those of them that are promoted to the highest rung, and seconds of it all."""
        wanted = self._config.search
        if wanted.time is None:
            trials = wanted.trials or pipeline.DEFAULT_TRIALS
            return trials, *self._of(trials)
        seconds = wanted.share * wanted.time * (pipeline.SEARCHED if wanted.calibrate else 1.0)
        if wanted.trials is not None:
            candidate = self._of(wanted.trials)[1] / wanted.trials
            trials = max(1, min(wanted.trials, int(seconds / candidate)))
            return trials, *self._of(trials)
        each = [self._measured(fmean(self._drawn), rung) for rung in self._rungs]
        share = POLICY.share([rung.effort for rung in self._rungs])
        promoted = self._slots * ladder.last_rounds(seconds, UNSURE * each[-1], share) if len(each) > 1 else 0
        rest = (self._slots * seconds - promoted * each[-1]) / max(1, len(each) - 1)  # each rung below has as much
        return max(1, int(rest / each[0])), promoted, seconds

    def _of(self, trials: int) -> tuple[int, float]:
        """Of so many candidates - the named ones, then random ones - how many are promoted, and seconds of it all."""
        flops = [
            *self._warm[:trials],
            *itertools.islice(itertools.cycle(self._drawn), max(0, trials - len(self._warm))),
        ]
        rungs, promoted, _ = ladder.budget_for(trials, [rung.effort for rung in self._rungs])
        seconds = [self._measured(one, self._rungs[0]) for one in flops]
        for rung in self._rungs[1:rungs]:
            count = promoted if rung is self._rungs[rungs - 1] else round(trials * self._rungs[0].effort / rung.effort)
            seconds += [self._measured(fmean(self._drawn), rung)] * count
        return promoted, _makespan(seconds, self._slots)

    def _measured(self, flops: float, rung: Rung) -> float:
        """Seconds of a candidate at a rung of the ladder."""
        return self._seconds(flops, rung, len(self._data.train), len(self._data.validation))

    def _fully(self, flops: float) -> float:
        """Seconds of a full training for the calibration."""
        data = self._data
        rung = ladder.retrain_rung(self._config, len(data.train))
        scored = len(data.validation) + (0 if data.truth is None else len(data.truth))
        return self._seconds(flops, rung, len(data.train), scored)

    def _retraining(self, before: float) -> tuple[int, float]:
        """Epochs and seconds; the winner is thought of as the mean of the larger half of candidates."""
        wanted, test = self._config.search, self._data.test
        winner = fmean(sorted(self._drawn)[len(self._drawn) // 2 :])
        flops = [winner] * self._config.retrain.seeds + self._references
        scored = 0 if test is None else len(test)
        each = [self._seconds(one, self._final, self._everything, scored) for one in flops]
        seconds = _makespan(each, self._retrainings)
        if wanted.time is None:
            return self._final.epochs, seconds
        left = retrain.SAFETY * max(0.0, wanted.time - self._probes.started - before)
        epochs = max(1, min(self._final.epochs, int(left / seconds * self._final.epochs)))
        return epochs, seconds * epochs / self._final.epochs

    def _seconds(self, flops: float, rung: Rung, images: int, scored: int) -> float:
        trained = rung.effort * min(images, rung.recipe.images or images)
        return self._speed.seconds(flops, trained, scored * rung.share)


def _drawn(candidates: Candidates, seed: int) -> dict[Architecture, float]:
    """Random architectures within the limits, with their FLOPs."""
    found: dict[Architecture, float] = {}
    for number in range(10 * DRAWN):
        try:
            architecture = candidates.space.random(1_000 * seed + number)
            sizes = candidates.sizes(architecture)
        except Exception:  # a third-party space may raise anything, and its other points may be sound
            continue
        if all(over <= 0 for over in candidates.beyond(sizes)[0].values()):
            found[architecture] = sizes["flops"]
        if len(found) in (DRAWN, candidates.space.size()):
            break
    if not found:
        raise JobError(f"none of {10 * DRAWN} random architectures is within the limits of [search]")
    return found


def _probe(
    executor: Executor, drawn: Sequence[Architecture], rung: Rung, images: int, listen: Listener, begin: float
) -> Probes:
    """Train some on all workers for a few steps. The first on each worker warm it up and tell nothing."""
    few = min(images, rung.recipe.images or images, STEPS * rung.recipe.batch_size)
    short = replace(rung, name="probe", recipe=rung.recipe.model_copy(update={"epochs": 1, "images": few}))
    count = executor.slots + max(4, PROBES * executor.slots)
    waiting = [Job.of(one, short, seed) for seed, one in enumerate(itertools.islice(itertools.cycle(drawn), count))]
    submitted: dict[Job, float] = {}
    found: list[tuple[Measurement, float]] = []
    started = 0.0
    while len(found) < count:
        while executor.free and len(submitted) < count:
            job = waiting[len(submitted)]
            submitted[job] = time.perf_counter()
            executor.submit(job)
        for outcome in executor.wait():
            now, one = time.perf_counter(), outcome.measurement
            spent = one.cost.get("seconds", 0.0) + one.cost.get("scoring_seconds", 0.0)
            started = started or now - begin - spent
            found.append((one, now - submitted[outcome.job] - spent))
            progress = Progress("plan", done=len(found), running=executor.running, total=count)
            listen(Event(progress, f"probe {len(found)}", one))
    told = [pair for pair in found[executor.slots :] if pair[0].status == "done"]
    if not told:
        raise JobError(f"no candidate could be trained: {found[-1][0].cause}")
    return Probes([one for one, _ in told], [over for _, over in told], started)


def _flops_of(candidates: Candidates, names: Iterable[str]) -> list[float]:
    """FLOPs of named points."""
    named = candidates.space.named()
    return [candidates.sizes(candidates.space.point(named[name]))["flops"] for name in names]


def _makespan(seconds: Iterable[float], slots: int) -> float:
    """Seconds until all are done, each begun on the worker that is free first."""
    loads = [0.0] * slots
    for one in seconds:
        heapq.heapreplace(loads, loads[0] + one)
    return max(loads)


def _line(flops: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Slope and level, neither below 0, with the least relative error."""
    from scipy.optimize import nnls

    each = np.asarray(seconds)
    slope, level = nnls(np.column_stack([flops, np.ones(len(each))]) / each[:, None], np.ones(len(each)))[0]
    return float(slope), float(level)
