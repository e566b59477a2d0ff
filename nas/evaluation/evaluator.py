"""The evaluator: measures one job (architecture, rung, seed), and the values that cross to a worker and back.

A worker makes a `Evaluator` once (space, data on the device) and measures any number of jobs on it. It holds no
state that matters: the same job gives the same signals on any worker with the same kind of device and thread count.
"""

from __future__ import annotations

import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

import search_spaces
from nas import auxiliary
from nas.config import SearchConfig
from nas.data import Data, Images, shrunk
from nas.errors import CandidateError, NasError
from nas.evaluation import complexity, weights
from nas.evaluation import signals as reading
from nas.ladder import Rung
from nas.space import Architecture, SearchSpace, Shape
from nas.store import MAX_TRACEBACK, Measurement, Status, thinned
from nas.training import loop as training
from nas.training.averaging import RECOMPUTED
from nas.training.parallel import ALONE, Shard
from nas.training.task import TASKS

SCORED_AT_ONCE = 128
"""Images that are scored at once, at least."""

DRAWN = 8
"""Random architectures that say what low-fidelity variants cost."""


@dataclass(frozen=True)
class SpaceSpec:
    """How a worker finds the space: its name, its settings, and the text of the file it is in, if any."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any]) -> SpaceSpec:
        """Reads the file of ``file.py:Name``, so that it need not be where the worker is."""
        return cls(name, dict(settings), search_spaces.read_source(name))

    def load(self) -> SearchSpace:
        """The space."""
        return search_spaces.load(self.name, dict(self.settings), self.source)


@dataclass(frozen=True)
class Setup:
    """What all jobs of an executor share; put once where workers are."""

    space: SpaceSpec
    data: Data
    limits: SearchConfig
    inits: tuple[weights.Weights, ...] = ()
    """What rungs that name them start from."""


@dataclass(frozen=True)
class Job:
    """One measurement to make: (architecture, rung, seed), the architecture as JSON.

    At a rung of seconds, `steps` says how many steps these are for this architecture. `seconds` is the longest that
    training may take: see `nas.training.loop.fit`.
    """

    architecture: str
    key: str
    rung: Rung
    seed: int
    trial: int | None = None
    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        rung: Rung,
        seed: int,
        trial: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
    ) -> Job:
        return cls(architecture.to_json(), architecture.key, rung, seed, trial, steps, seconds)

    @property
    def unit(self) -> tuple[str, str, int]:
        """What names the measurement."""
        return self.key, self.rung.key, self.seed

    def failed(
        self,
        cause: str,
        status: Status = "failed",
        signals: Mapping[str, float] | None = None,
        traceback: str | None = None,
    ) -> Outcome:
        """The outcome when there are no signals to rank by, with its one-line cause and where it was raised."""
        cause = " ".join(cause.split())
        kept = None if traceback is None else traceback[-MAX_TRACEBACK:]
        return Outcome(self, replace(self.measurement(status, signals or {}, {}, (), cause), traceback=kept), None)

    def measurement(
        self,
        status: Status,
        signals: Mapping[str, float],
        cost: Mapping[str, float],
        towers: tuple[int, ...],
        cause: str | None = None,
    ) -> Measurement:
        """This job's measurement with these contents."""
        return Measurement(self.architecture, self.key, self.rung.key, self.seed, status, signals, cost, towers, cause)


@dataclass(frozen=True)
class Outcome:
    """What comes back: the measurement and, at final rungs, the bare network's weights as safetensors bytes.

    The towers' weights, where there are any, are apart from the network's. `out_of_memory` says that the candidate
    failed for want of the device's memory, of which it may find more when nothing runs beside it.
    """

    job: Job
    measurement: Measurement
    weights: bytes | None
    towers: bytes | None = None
    out_of_memory: bool = False


def variant_of(space: SearchSpace, architecture: Architecture, rung: Rung, shape: Shape) -> tuple[Architecture, Shape]:
    """What is trained at a rung in the architecture's place, and the shape of its input; the two themselves at most.

    Raises SpaceError where the space makes no thinner networks.
    """
    channels, height, width = shape
    thin = architecture if rung.width == 1 else space.with_width(architecture, rung.width)
    return thin, (channels, height // rung.shrink, width // rung.shrink)


def variant_share(space: SearchSpace, rung: Rung, shape: Shape, classes: int, seed: int) -> float:
    """FLOPs of what is trained at a rung, as a share of the candidate's own: the mean over some random ones."""
    shares: list[float] = []
    for number in range(10 * DRAWN if rung.is_variant else 0):
        try:
            architecture = space.random(1_000 * seed + number)
            thin, small = variant_of(space, architecture, rung, shape)
            trained, own = (
                complexity.complexity(space, *one, classes).flops for one in ((thin, small), (architecture, shape))
            )
        except Exception:  # a third-party space may raise anything, and its other points may be sound
            continue
        shares.append(trained / own)
        if len(shares) == DRAWN:
            break
    return sum(shares) / len(shares) if shares else 1.0


def tune_process(threads: int) -> Callable[[], None]:
    """Threads, denormals and determinism of this process, as measurements need them; returns what puts them back."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # nothing here reads memory before it is written
    torch.backends.cudnn.deterministic = True

    def put_back() -> None:
        torch.set_num_threads(before[0])
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = filled
        torch.backends.cudnn.deterministic = before[2]

    return put_back


class Evaluator:
    """A worker's place to measure: the space, and the data on the device.

    Jobs of `whole` rungs compute with `cores` threads, which nothing else uses meanwhile.
    """

    def __init__(self, setting: Setup, device: torch.device, cores: int = 1) -> None:
        self.space = setting.space.load()
        self.setting = setting
        self.device = device
        self._cores = cores
        self._resident: dict[str, training.Resident] = {}

    def measure(self, job: Job, shard: Shard = ALONE) -> Outcome:
        """Build, train and score one candidate. Whatever goes wrong with it is its failure, not the worker's.

        With a `shard`, together with the other processes of torch's group; the first one scores. What a lost process
        does to the others looks like any error, so that all but those of this project are raised then.
        """
        threads = torch.get_num_threads()
        try:
            if job.rung.whole:
                torch.set_num_threads(max(threads, self._cores))
            return self._measure(job, shard)
        except NasError as error:
            return job.failed(str(error))
        except torch.OutOfMemoryError as error:
            return replace(job.failed(f"out of memory on {self.device}: {error}"), out_of_memory=True)
        except torch.AcceleratorError:
            raise  # the device's context is lost for this whole process: the worker must end
        except Exception as error:  # a third-party network may raise anything; the search must go on
            if shard.world > 1:
                raise
            return job.failed(f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        finally:
            torch.set_num_threads(threads)

    def _measure(self, job: Job, shard: Shard) -> Outcome:
        data, rung = self.setting.data, job.rung
        classes = len(data.classes)
        architecture = self.space.architecture_type.from_json(job.architecture)
        trained, shape = variant_of(self.space, architecture, rung, data.input_shape)
        network = self._built(trained, shape, job.seed)
        limits = self.setting.limits
        needed = complexity.read_by(limits)
        memory = "activation_bytes" in needed
        bare = own = complexity.count(network, shape, memory)
        if rung.is_variant:
            own = complexity.complexity(self.space, architecture, data.input_shape, classes, memory)
        signals = {"params": float(own.params), "flops": float(own.flops)}
        if own.memory is not None:
            signals["activation_bytes"] = float(own.memory)
        if rung.init is not None:
            init = next((one for one in self.setting.inits if one.digest == rung.init), None)
            assert init is not None, "a rung that starts from weights comes with them"
            weights.start_from(init, network, self.space, architecture, data.input_shape, data.classes)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        network.to(self.device)
        if rung.free:
            return self._free(job, network, signals)
        if not rung.final and "latency_ms" in needed:
            itself = self._built(architecture, data.input_shape, job.seed) if rung.is_variant else network
            signals["latency_ms"] = complexity.latency(itself.to(self.device), data.input_shape)
        over = complexity.cause(complexity.violations(limits, signals), signals)
        if over and job.trial is not None:  # limits are for candidates, not for references
            return job.failed(over, "infeasible", signals)

        model = auxiliary.supervise(
            network,
            rung.towers,
            shape,
            classes,
            training.stream(job.seed, "towers"),
            data.coarse,
            data.classes,
        )
        signals["tower_share"] = model.share
        task = TASKS[data.task]
        train, recipe = self._images(rung), rung.recipe
        if job.steps is not None:
            epochs = math.ceil(job.steps / training.steps_of(recipe, len(train))[0])
            recipe = recipe.model_copy(update={"steps": job.steps, "epochs": epochs})
        if rung.timing:
            start = time.perf_counter()
            each = training.seconds_a_step(model, task, train, recipe, job.seed)
            cost = {"step_seconds": each, "seconds": time.perf_counter() - start}
            return Outcome(job, job.measurement("done", signals, cost, model.cells), None)
        scored = self._scored(rung)
        count = 0 if scored is None else len(scored)
        batch = max(SCORED_AT_ONCE, training.steps_of(recipe, len(train))[1])

        def read() -> Mapping[str, float]:
            return {} if scored is None else training.evaluate(model, task, scored, batch, towers=False)

        extra = self._extra_steps(rung, network, shape, signals["tower_share"], len(train), count)
        fit = training.fit(model, task, train, recipe, job.seed, extra, read, shard, job.seconds)
        if shard.rank:
            return Outcome(job, job.measurement("done", signals, {}, model.cells), None)
        signals |= reading.training_speed(fit.step_losses, fit.steps_an_epoch)
        signals |= {"train_loss": signals["tse_e"], "train_accuracy": fit.train_accuracy}
        for step, norms in fit.gradient_norms.items():
            signals |= {f"gradient_norm_cell{cell}_step{step}": norm for cell, norm in enumerate(norms)}
        for epoch, scores in fit.readings.items():
            at = "" if epoch == recipe.epochs else f"_epoch{epoch}"
            signals |= {f"averaged_val_{name}{at}": value for name, value in scores.items()}
        split = "test" if rung.final else "val"
        start = time.perf_counter()
        scores = {} if scored is None else training.evaluate(model, task, scored, batch)
        seconds = time.perf_counter() - start
        signals |= {name if name.startswith("tower") else f"{split}_{name}": v for name, v in scores.items()}
        signals |= reading.of_towers(scores, model.names) if scores else {}
        if rung.truth:
            held = training.evaluate(model, task, self._truth(), batch, towers=False)
            signals |= {f"truth_{name}": value for name, value in held.items()}
        if wrong := [name for name, value in signals.items() if not math.isfinite(value)]:
            raise CandidateError(f"{wrong[0]} was not finite after training")
        read_images = len(fit.readings) * (count + min(RECOMPUTED, len(train)))
        cost = {
            "seconds": fit.seconds,
            "steps": float(len(fit.step_losses)),
            "images": fit.images * bare.flops / own.flops,
            "scoring_seconds": seconds,
            "memory": float(_held(self.device)),
            "multiply_adds": reading.multiply_adds(bare.flops, model.share, fit.images, count, read_images),
        }
        curve = thinned(list(enumerate(fit.step_losses, 1)))
        measurement = replace(job.measurement("done", signals, cost, model.cells), curve=curve)
        if not rung.final:
            return Outcome(job, measurement, None)
        said = {"architecture": job.architecture, "classes": list(data.classes)}
        towers = weights.pack(model.towers) if model.cells else None
        return Outcome(job, measurement, weights.pack(network, **said), towers)

    def _free(self, job: Job, network: nn.Module, signals: dict[str, float]) -> Outcome:
        """The outcome at a free rung: nothing is trained."""
        start = time.perf_counter()
        train = self._images(job.rung)
        images = train.normalised(train.pixels[: reading.NASWOT_IMAGES])
        signals |= reading.zero_cost(network, images, training.stream(job.seed, "zero-cost"))
        adds = reading.multiply_adds(signals["flops"], 0, 0, 0, zero_cost=True)
        cost = {"seconds": time.perf_counter() - start, "images": 0.0, "scoring_seconds": 0.0, "multiply_adds": adds}
        return Outcome(job, job.measurement("done", signals, cost, ()), None)

    def _extra_steps(self, rung: Rung, network: nn.Module, shape: Shape, share: float, train: int, scored: int) -> int:
        """Steps beyond the epochs that cost as much as other towers would, in training and in scoring."""
        if rung.as_costly_as is None:
            return 0
        data = self.setting.data
        other = auxiliary.supervise(network, rung.as_costly_as, shape, len(data.classes), 0, data.coarse, data.classes)
        steps, batch = training.steps_of(rung.recipe, train)
        images = (other.share - share) * (rung.epochs * steps * batch + scored / 3)
        return max(0, round(images / batch))

    def _built(self, architecture: Architecture, shape: Shape, seed: int) -> nn.Module:
        """A fresh network, its weights from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(training.stream(seed, "init"))
            return self.space.build(architecture, shape, len(self.setting.data.classes))

    def _truth(self) -> training.Resident:
        data = self.setting.data
        assert data.truth is not None, "a rung of truth needs the truth's images"
        return self._on_device("truth", data.truth)

    def _images(self, rung: Rung) -> training.Resident:
        data = self.setting.data
        if rung.all_images:
            return self._on_device("all", data.all_images())
        if rung.final:
            return self._on_device("train and validation", data.train_and_validation())
        return self._on_device("train", data.train, rung.shrink)

    def _scored(self, rung: Rung) -> training.Resident | None:
        data = self.setting.data
        if rung.all_images:
            return None
        if not rung.final:
            return self._on_device("validation", data.validation, rung.shrink)
        assert data.test is not None, "a proxy's data hold no test split, and only retraining asks for it"
        return self._on_device("test", data.test)

    def _on_device(self, name: str, images: Images, shrink: int = 1) -> training.Resident:
        name = f"{name}/{shrink}"
        if name not in self._resident:
            data = self.setting.data
            self._resident[name] = training.Resident(shrunk(images, shrink), data.mean, data.std, self.device)
        return self._resident[name]


def _held(device: torch.device) -> int:
    """Bytes held at most: on a GPU by this candidate, else by this process since it began (0 where none can tell)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
