"""Data-parallel full training: several processes train one network together, through Ray Train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nas.errors import CandidateError, JobError
from nas.evaluation.evaluator import Evaluator, Job, Outcome, tune_process
from nas.executor.contract import ATTEMPTS
from nas.training.parallel import Shard

ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # its minute is not enough on a machine with other work to do
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a space's settings may hold paths relative to where the command was given
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # where one process is lost the others may wait for it for ever
}
"""Of the data-parallel trainer, and of all that it starts."""


class DataParallelTrainer:
    """What lives in a Ray actor in place of all workers: has each job done by so many processes together.

    It does no work itself. Ray Train starts the processes for each job, and ends them with it.
    """

    def __init__(self, processes: int, gpu: bool, threads: int) -> None:
        self._processes = processes
        self._gpu = gpu
        self._threads = threads
        self._setting: Sequence[Any] = ()

    def use(self, setting: Sequence[Any]) -> None:
        """Takes a setting, given as a reference: only the processes need what it stands for."""
        self._setting = setting

    def ready(self) -> None:
        """Returns when the data-parallel trainer's actor runs."""

    def measure(self, job: Job, alone: bool = True) -> Outcome:
        """The job's outcome; it is tried again where a process is lost. Raises JobError where none can be started."""
        train = _ray_train()
        cause = ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                outcome: Outcome = self._trainer(job).fit().return_value
                return outcome
            except train.ControllerError as error:  # no fault of the job's
                if attempt == ATTEMPTS:
                    said = str(error.controller_failure).partition("\n")[0]
                    raise JobError(f"{self._processes} processes for a retraining could not start: {said}") from None
            except train.TrainingFailedError as error:
                failures = list(getattr(error, "worker_failures", {}).values()) or [error]
                if all(isinstance(one, CandidateError) for one in failures):
                    return job.failed(str(failures[0]))
                if faults := [one for one in failures if type(one) is JobError]:
                    raise faults[0] from None
                cause = self._cause(failures)
        return job.failed(f"{cause}, {ATTEMPTS} times")

    def _cause(self, failures: Sequence[Exception]) -> str:
        """What to tell of these: a process that died rather than what became of the others."""
        died = [one.health_check_failure for one in failures if hasattr(one, "health_check_failure")]
        if died:
            return f"one of its {self._processes} processes died ({type(died[0]).__name__})"
        return str(failures[0])

    def _trainer(self, job: Job) -> Any:
        from fsspec.implementations.memory import MemoryFileSystem
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        train = _ray_train()
        resources = {"CPU": self._threads, "GPU": 1} if self._gpu else {"CPU": self._threads}
        nccl = self._gpu and torch.distributed.is_nccl_available()
        return train.torch.TorchTrainer(
            train_together,
            train_loop_config={"setting": self._setting, "job": job, "threads": self._threads},
            torch_config=train.torch.TorchConfig(backend="nccl" if nccl else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=self._processes, use_gpu=self._gpu, resources_per_worker=resources
            ),
            run_config=train.RunConfig(
                name="retraining",
                storage_path="/nas",  # of a file system in memory: what Ray Train keeps there is of no use here
                storage_filesystem=PyFileSystem(FSSpecHandler(MemoryFileSystem())),
                failure_config=train.FailureConfig(
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=ATTEMPTS - 1
                ),
            ),
        )


def _ray_train() -> Any:
    """Ray Train, whose types say other things than its documentation."""
    import ray.train.torch

    return ray.train


def train_together(config: Mapping[str, Any]) -> Outcome | None:
    """What each process does; the first one returns the outcome. Raises CandidateError with a candidate's failure."""
    import ray
    from ray.train.torch import get_device

    tune_process(config["threads"])
    try:
        device = get_device() if torch.cuda.is_available() else torch.device("cpu")  # GPUs may be only declared
        evaluator = Evaluator(ray.get(config["setting"][0]), device)
    except Exception as error:
        raise JobError(f"a worker could not be set up: {type(error).__name__}: {error}") from error
    shard = Shard.of_this_process()
    try:
        outcome = evaluator.measure(config["job"], shard)
    except Exception as error:  # of any class, which none of Ray's processes need know
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
    if outcome.measurement.status != "done":
        raise CandidateError(str(outcome.measurement.cause))  # raised, it ends the processes that wait for this one
    return None if shard.rank else outcome
