"""The executor that runs jobs on Ray workers."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from nas.config import ExecutorConfig
from nas.errors import ConfigError, JobError
from nas.evaluation.evaluator import Job, Outcome, Setup
from nas.executor import cluster
from nas.executor.contract import ATTEMPTS, Executor
from nas.executor.data_parallel import ENVIRONMENT, DataParallelTrainer
from nas.executor.worker import Worker

MAX_WORKER_START_FAILURES = 3
"""So many workers in a row may die as they start; one more, and none is expected to live."""

START = 120.0
"""Seconds in which a worker must have started where none is running."""


@dataclass(frozen=True)
class Try:
    """A job, the how manieth time it is tried, and whether nothing may run beside it."""

    job: Job
    attempt: int = 1
    alone: bool = False


class RayExecutor(Executor):
    """Long-lived actors, one a worker, on a local Ray or an existing cluster.

    A worker that dies is replaced and its job tried once more: the unit of work is idempotent. A job for which there
    was too little memory on a GPU that several workers share is tried once more when nothing else runs.

    Where several processes train a network together, jobs of final rungs wait until nothing else runs. Then a
    data-parallel trainer takes the place of the workers, and does them one after the other, until there are other jobs.
    """

    processes: int
    """How many processes train a network together at final rungs."""

    def __init__(self, config: ExecutorConfig) -> None:
        self._config = config
        self._ray = cluster.import_ray()
        self._started_ray = not self._ray.is_initialized()
        if self._started_ray:
            cluster.start_ray(self._ray, config)
        try:
            self.workers, self._gpus = self._plan()
            self.on_gpu = self._gpus > 0
            self.processes = self._plan_together()
        except BaseException:
            self.close()
            raise
        self._actors: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._idle: deque[Any] = deque()
        self._queue: deque[Try] = deque()
        self._flying: dict[Any, tuple[Try, Any]] = {}
        self._setting: Any = None
        self._sign_of_life = time.monotonic()
        self._start_failures = 0
        self._form(together=False)  # they import torch while the driver loads the data

    @property
    def running(self) -> int:
        return len(self._queue) + len(self._flying)

    @property
    def retrainings(self) -> int:
        return self.workers if self.processes == 1 else 1

    def use(self, setting: Setup) -> None:
        assert not self.running, "use() comes between jobs"
        self._setting = self._ray.put(setting)
        for actor in self._actors:
            actor.use.remote([self._setting])

    def submit(self, job: Job) -> None:
        self._queue.append(Try(job, alone=job.rung.whole))
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
        """Number of workers and GPUs for each, from the config and what the cluster's machines have."""
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
        room = sum(cluster.room(machine, config.threads, share) for machine in machines)
        if config.workers is not None and config.workers > room:
            raise ConfigError(f"executor.workers asks for {config.workers} workers, but Ray has room for {room}")
        workers = config.workers or room
        self._cores = min(cpus, workers * config.threads)
        return workers, share

    def _plan_together(self) -> int:
        """Number of processes that retrain one network together: as many as the workers have GPUs, unless told."""
        wanted, threads = self._config.retrain_workers, self._config.threads
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = sum(cluster.room(machine, threads, 1 if self.on_gpu else 0) for machine in machines)
        if wanted is None:
            return max(1, min(room, math.ceil(self.workers * self._gpus - 1e-9)))
        if wanted > max(1, room):
            raise ConfigError(f"executor.retrain_workers asks for {wanted} processes, but Ray has room for {room}")
        return wanted

    def _form(self, together: bool) -> None:
        """End all workers and start others: one a worker, or the data-parallel trainer that does each job together."""
        self._end_actors()
        for gone in (self._actors, self._idle, self._starting):
            gone.clear()
        self._together = together
        self._sign_of_life = time.monotonic()
        for _ in range(1 if together else self.workers):
            self._add_actor()

    def _add_actor(self) -> None:
        threads = self._config.threads
        if self._together:
            remote = self._ray.remote(DataParallelTrainer).options(num_cpus=0, runtime_env={"env_vars": ENVIRONMENT})
            actor = remote.remote(self.processes, self.on_gpu, threads)
        else:
            remote = self._ray.remote(Worker).options(num_cpus=threads, num_gpus=self._gpus)
            actor = remote.remote(self._gpus, threads, self._cores)
        if self._setting is not None:
            actor.use.remote([self._setting])  # an actor's calls run in order: before any job
        self._actors.append(actor)
        self._starting[actor.ready.remote()] = actor

    def _started(self, reference: Any) -> None:
        """A worker that runs is free for jobs; one that died before is replaced, as long as others do start."""
        actor = self._starting.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._start_failures += 1
            if self._start_failures > MAX_WORKER_START_FAILURES:
                raise JobError(
                    f"{self._start_failures} workers in a row died as they started: see Ray's logs"
                ) from error
            self._replace(actor, error)
        else:
            self._start_failures = 0
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
        while self._queue and not any(one.alone for one, _ in self._flying.values()):
            first = self._queue[0]
            together = first.job.rung.final and self.processes > 1
            if self._flying and (first.alone or together != self._together):
                return  # what runs has what the next one needs
            if together != self._together:
                self._form(together)
            if not self._idle:
                return
            self._queue.popleft()
            actor = self._idle.popleft()
            self._flying[actor.measure.remote(first.job, first.alone)] = first, actor

    def _collect(self, reference: Any) -> Outcome | None:
        """The outcome of a finished call; None when the job was queued again, for its worker died or lacked memory."""
        one, actor = self._flying.pop(reference)
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, JobError):  # no fault of the job's, and no job would fare better
                raise error.cause from None
            self._idle.append(actor)
            return one.job.failed(f"worker error: {str(error.cause).partition(chr(10))[0]}")
        except self._ray.exceptions.RayError as error:
            self._replace(actor, error)
            if one.attempt < ATTEMPTS:
                self._queue.appendleft(replace(one, attempt=one.attempt + 1))
                return None
            return one.job.failed(f"its worker died {one.attempt} times ({type(error).__name__})")
        self._idle.append(actor)
        if outcome.out_of_memory and 0 < self._gpus < 1 and not one.alone:
            self._queue.appendleft(replace(one, alone=True))
            return None
        return outcome
