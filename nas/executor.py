"""Runs measurements: in this process, or on long-lived Ray actors. The only module that knows Ray.

Executors share one contract: `submit` jobs (up to `free` at a time without waiting), `wait` for outcomes. An
outcome always comes back for a submitted job; where a worker died twice on it, a failed one.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch

from nas.config import ExecutorConfig
from nas.errors import ConfigError, JobError
from nas.proxy import Bench, Job, Outcome, Setting, tune_process

ATTEMPTS = 2
"""How often a job is tried when workers die on it, and Ray when it does not start."""

STILLBORN = 3
"""So many workers in a row may die as they start; one more, and none is expected to live."""

START = 120.0
"""Seconds in which a worker must have started where none is running."""

ANSWER = 5.0
"""Seconds in which a cluster must answer."""


class Executor(ABC):
    """A pool of slots on which jobs are measured. A context manager."""

    slots: int
    """How many jobs run at once."""

    on_gpu: bool
    """Whether jobs run on GPUs."""

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
        self._device = _device(config.device == "auto")
        self.on_gpu = self._device.type == "cuda"
        self._put_back = tune_process(config.threads)
        self._bench: Bench | None = None
        self._queue: deque[Job] = deque()

    @property
    def running(self) -> int:
        return len(self._queue)

    def use(self, setting: Setting) -> None:
        self._bench = Bench(setting, self._device)

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
        self._put_back()  # the process is not this executor's alone


class Slot:
    """What lives in a Ray actor, for as long as the executor: a device, and the bench of the setting in use."""

    def __init__(self, gpus: float, threads: int) -> None:
        import ray

        ids = ray.get_gpu_ids()
        # Ray may leave GPUs visible to a worker that was given none: the assigned ids decide
        self._device = _device(bool(ids))
        if self._device.type == "cuda" and 0 < gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)
        tune_process(threads)
        self._gpu_ids = [int(one) for one in ids]
        self._bench: Bench | None = None
        self._fault = "no setting was given"

    def use(self, setting: Setting) -> None:
        self._bench = None
        try:
            self._bench = Bench(setting, self._device)
        except Exception as error:  # told with the first job: a call that nobody waits for has nobody to tell
            self._fault = f"{type(error).__name__}: {error}"

    def measure(self, job: Job) -> Outcome:
        if self._bench is None:
            raise JobError(f"a worker could not be set up: {self._fault}")
        try:
            return self._bench.measure(job)
        except torch.AcceleratorError:
            os._exit(1)  # the device's context is lost for this process: a new worker gets a new one

    def ready(self) -> None:
        """Returns when the worker runs: one for which a cluster has no room yet does not."""

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
            self.on_gpu = self._gpus > 0
        except BaseException:
            self.close()
            raise
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._idle: deque[Any] = deque()
        self._queue: deque[tuple[Job, int]] = deque()
        self._flying: dict[Any, tuple[Job, int, Any]] = {}
        self._setting: Any = None
        self._sign_of_life = time.monotonic()
        self._stillborn = 0
        for _ in range(self.slots):  # they import torch while the driver loads the data
            self._add_actor()

    @property
    def running(self) -> int:
        return len(self._queue) + len(self._flying)

    def use(self, setting: Setting) -> None:
        assert not self.running, "use() comes between jobs"
        self._setting = self._ray.put(setting)
        for actor in self._actors:
            actor.use.remote(self._setting)

    def submit(self, job: Job) -> None:
        self._queue.append((job, 1))
        self._dispatch()

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while self.running and not outcomes:
            pending = [*self._flying, *self._starting]
            none_runs = not self._flying and not self._idle
            patience = 1.0 if timeout is None and none_runs else timeout
            ready, _ = self._ray.wait(pending, num_returns=1, timeout=patience)
            if not ready and none_runs and time.monotonic() - self._sign_of_life > START:
                raise JobError(f"no worker has started in {START:.0f} s: has the cluster room for one?")
            if not ready and timeout is not None:
                break
            if ready:
                self._sign_of_life = time.monotonic()
            more, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
            for reference in {*ready, *more}:
                if reference in self._starting:
                    self._started(reference)
                elif (outcome := self._collect(reference)) is not None:
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
        """Number of slots and GPUs for each, from the config and what the cluster's machines have."""
        config = self._config
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus = max(int(machine.get("CPU", 0)) for machine in machines)
        gpus = 0 if config.device == "cpu" else max(int(machine.get("GPU", 0)) for machine in machines)
        if config.threads > cpus:
            raise ConfigError(f"executor.threads asks for {config.threads} CPUs a worker, but Ray has {cpus} a machine")
        if config.gpus > min(gpus, 1):
            most = "one GPU is all that a worker uses" if gpus else "Ray has none to use"
            raise ConfigError(f"executor.gpus asks for {config.gpus:g} GPUs a worker, but {most}")
        share = config.gpus or min(gpus, 1)
        room = sum(_room(machine, config.threads, share) for machine in machines)
        if config.workers is not None and config.workers > room:
            raise ConfigError(f"executor.workers asks for {config.workers} workers, but Ray has room for {room}")
        return config.workers or room, share

    def _add_actor(self) -> None:
        remote = self._ray.remote(Slot).options(num_cpus=self._config.threads, num_gpus=self._gpus)
        actor = remote.remote(self._gpus, self._config.threads)
        if self._setting is not None:
            actor.use.remote(self._setting)  # an actor's calls run in order: before any job
        self._actors.append(actor)
        self._starting[actor.ready.remote()] = actor

    def _started(self, reference: Any) -> None:
        """A worker that runs is free for jobs; one that died before is replaced, as long as others do start."""
        actor = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._stillborn += 1
            if self._stillborn > STILLBORN:
                raise JobError(f"{self._stillborn} workers in a row died as they started: see Ray's logs") from error
            self._replace(actor, error)
        else:
            self._stillborn = 0
            self._idle.append(actor)

    def _replace(self, actor: Any, error: Exception) -> None:
        if getattr(error, "_actor_init_failed", False):  # no job's fault, and another one would fare no better
            raise JobError(f"a worker could not start: {str(error).strip().rpartition(chr(10))[2]}") from error
        self._actors.remove(actor)
        self._ray.kill(actor)
        self._add_actor()

    def _end_actors(self) -> None:
        for actor in getattr(self, "_actors", []):
            self._ray.kill(actor)

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
            if isinstance(error.cause, JobError):  # no fault of the job's, and no job would fare better
                raise error.cause from None
            self._idle.append(actor)
            return job.failed(f"worker error: {str(error.cause).partition(chr(10))[0]}")
        except self._ray.exceptions.RayError as error:
            self._replace(actor, error)
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
    if config.address is not None:
        _must_answer(config.address)
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _init(ray, config)
    except Exception as error:  # Ray raises bare ones too, for instance where its parts start too slowly
        where = f"at {config.address!r}" if config.address else "on this machine"
        raise JobError(f"Ray could not be reached {where}: {str(error).partition(chr(10))[0]}") from error
    finally:
        if in_main:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _init(ray: Any, config: ExecutorConfig) -> None:
    """``ray.init``, twice if need be: on a busy machine a Ray of our own may not find its own parts in time."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(
                address=config.address or "local",
                include_dashboard=False if config.address is None else None,
                log_to_driver=False,
                logging_level="ERROR",
            )
            return
        except Exception:
            ray.shutdown()
            if config.address is not None or attempt == ATTEMPTS:
                raise


def _must_answer(address: str) -> None:
    """Raises JobError when nobody listens at ``host:port``; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like, which Ray resolves at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except OSError as error:
        raise JobError(f"Ray could not be reached at {address!r}: {error.strerror or error}") from error


def _room(machine: Mapping[str, float], threads: int, share: float) -> int:
    """How many workers fit on a machine; what is left of two GPUs makes no whole one."""
    by_cpu = int(machine.get("CPU", 0)) // threads
    return min(by_cpu, int(1 / share + 1e-9) * int(machine.get("GPU", 0))) if share else by_cpu


def _device(gpu: bool) -> Any:
    return torch.device("cuda", 0) if gpu and torch.cuda.is_available() else torch.device("cpu")
