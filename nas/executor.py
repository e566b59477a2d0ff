"""Runs measurements: in this process, or on long-lived Ray actors. The only module that knows Ray.

Executors share one contract: `submit` jobs (up to `free` at a time without waiting), `wait` for outcomes. An
outcome always comes back for a submitted job; where a worker died twice on it, a failed one.
"""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from types import TracebackType
from typing import Any, Self

from nas.config import ExecutorConfig
from nas.errors import ConfigError, JobError
from nas.proxy import Bench, Job, Outcome, Setting

ATTEMPTS = 2
"""How often a job is tried when workers die on it."""


class Executor(ABC):
    """A pool of slots on which jobs are measured. A context manager."""

    slots: int
    """How many jobs run at once."""

    @property
    @abstractmethod
    def running(self) -> int:
        """Jobs submitted whose outcomes have not been fetched."""

    @property
    def free(self) -> int:
        """Slots with nothing to do."""
        return self.slots - self.running

    @abstractmethod
    def use(self, setting: Setting) -> None:
        """Give all workers a setting (space and data) for the jobs to come. Nothing may be running."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Measure a job as soon as there is a free slot."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """Outcomes that are there, waiting up to `timeout` seconds (None: as long as it takes) for the first."""

    @abstractmethod
    def close(self) -> None:
        """End the workers; what runs is lost."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start(config: ExecutorConfig) -> Executor:
    """The executor that the config asks for."""
    return InProcess(config) if config.kind == "in-process" else OverRay(config)


class InProcess(Executor):
    """One slot, in this process: for debugging, and where there is no Ray."""

    slots = 1

    def __init__(self, config: ExecutorConfig) -> None:
        self._config = config
        self._bench: Bench | None = None
        self._queue: deque[Job] = deque()

    @property
    def running(self) -> int:
        return len(self._queue)

    def use(self, setting: Setting) -> None:
        self._bench = Bench(setting, _device(self._config.device == "auto"))

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        if not self._queue:
            return []
        assert self._bench is not None, "use() comes before wait()"
        outcome = self._bench.measure(self._queue[0])
        self._queue.popleft()
        return [outcome]

    def close(self) -> None:
        self._queue.clear()


class Slot:
    """What lives in a Ray actor: one bench, for as long as the executor."""

    def __init__(self, setting: Setting, gpus: float) -> None:
        import ray
        import torch

        ids = ray.get_gpu_ids()
        # Ray may leave GPUs visible to a worker that was given none: the assigned ids decide
        device = _device(bool(ids) and not setting.cpu_only)
        if device.type == "cuda" and 0 < gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)
        self._gpu_ids = [int(one) for one in ids]
        self._bench = Bench(setting, device)

    def measure(self, job: Job) -> Outcome:
        return self._bench.measure(job)

    def gpu_ids(self) -> list[int]:
        """The GPUs that Ray assigned."""
        return self._gpu_ids


class OverRay(Executor):
    """Long-lived actors, one a slot, on a local Ray or an existing cluster.

    A worker that dies is replaced and its job tried once more: the unit of work is idempotent.
    """

    def __init__(self, config: ExecutorConfig) -> None:
        self._config = config
        self._ray = _import_ray()
        self._started_ray = not self._ray.is_initialized()
        if self._started_ray:
            _start_ray(self._ray, config)
        try:
            self.slots, self._gpus = self._plan()
        except BaseException:
            self.close()
            raise
        self._actors: list[Any] = []
        self._idle: deque[Any] = deque()
        self._queue: deque[tuple[Job, int]] = deque()
        self._flying: dict[Any, tuple[Job, int, Any]] = {}
        self._setting: Any = None

    @property
    def running(self) -> int:
        return len(self._queue) + len(self._flying)

    def use(self, setting: Setting) -> None:
        assert not self.running, "use() comes between jobs"
        self._end_actors()
        self._setting = self._ray.put(setting)
        for _ in range(self.slots):
            self._add_actor()

    def submit(self, job: Job) -> None:
        self._queue.append((job, 1))
        self._dispatch()

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while self._flying and not outcomes:
            ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=timeout)
            if not ready:
                break
            more, _ = self._ray.wait(list(self._flying), num_returns=len(self._flying), timeout=0)
            for reference in {*ready, *more}:
                outcome = self._collect(reference)
                if outcome is not None:
                    outcomes.append(outcome)
            self._dispatch()
        return outcomes

    def gpu_ids(self) -> list[int]:
        """The GPU that Ray assigned to each worker, sorted."""
        asked = [actor.gpu_ids.remote() for actor in self._actors]
        return sorted(one for ids in self._ray.get(asked) for one in ids)

    def close(self) -> None:
        if self._ray.is_initialized():
            self._end_actors()
            if self._started_ray:
                self._ray.shutdown()

    def _plan(self) -> tuple[int, float]:
        """Number of slots and GPUs for each, from the config and what the cluster has."""
        config, total = self._config, self._ray.cluster_resources()
        cpus, gpus = int(total.get("CPU", 0)), total.get("GPU", 0)
        if config.device == "cpu":
            gpus = 0
        if config.gpus > gpus:
            raise ConfigError(f"executor.gpus asks for {config.gpus:g} GPUs a worker, but Ray has {gpus:g}")
        share = config.gpus or (1.0 if gpus else 0.0)
        most = cpus // config.threads
        if most < 1:
            raise ConfigError(f"executor.threads asks for {config.threads} CPUs a worker, but Ray has {cpus}")
        if share:
            # a whole GPU cannot be made of the remains of two
            per_gpu = int(1 / share + 1e-9) * int(gpus) if share < 1 else int(gpus / share + 1e-9)
            most = min(most, per_gpu)
        if config.workers is not None and config.workers > most:
            raise ConfigError(f"executor.workers asks for {config.workers} workers, but Ray has room for {most}")
        return config.workers or most, share

    def _add_actor(self) -> None:
        remote = self._ray.remote(Slot).options(num_cpus=self._config.threads, num_gpus=self._gpus)
        actor = remote.remote(self._setting, self._gpus)
        self._actors.append(actor)
        self._idle.append(actor)

    def _end_actors(self) -> None:
        for actor in getattr(self, "_actors", []):
            self._ray.kill(actor)
        self._actors, self._idle = [], deque()

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            job, attempt = self._queue.popleft()
            actor = self._idle.popleft()
            self._flying[actor.measure.remote(job)] = (job, attempt, actor)

    def _collect(self, reference: Any) -> Outcome | None:
        """The outcome of a finished call; None when its worker died and the job was queued again."""
        job, attempt, actor = self._flying.pop(reference)
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            self._idle.append(actor)
            return job.failed(f"worker error: {str(error.cause).partition(chr(10))[0]}")
        except self._ray.exceptions.RayError as error:
            self._actors.remove(actor)
            self._ray.kill(actor)
            self._add_actor()
            if attempt < ATTEMPTS:
                self._queue.appendleft((job, attempt + 1))
                return None
            return job.failed(f"its worker died {attempt} times ({type(error).__name__})")
        self._idle.append(actor)
        return outcome


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("executor.kind is ray, but Ray is not installed; use in-process") from None
    return ray


def _start_ray(ray: Any, config: ExecutorConfig) -> None:
    """Connects to the given cluster or starts a local one, keeping this process's signal handlers."""
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(
            address=config.address or "local",
            include_dashboard=False if config.address is None else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {config.address!r}" if config.address else "on this machine"
        raise JobError(f"Ray could not be reached {where}: {str(error).partition(chr(10))[0]}") from error
    finally:
        if in_main:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _device(gpu: bool) -> Any:
    import torch

    return torch.device("cuda", 0) if gpu and torch.cuda.is_available() else torch.device("cpu")
