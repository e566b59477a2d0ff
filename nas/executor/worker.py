"""A worker: a Ray actor that measures jobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from nas.errors import JobError
from nas.evaluation.evaluator import Evaluator, Job, Outcome, tune_process


class Worker:
    """A device, for as long as the executor has this formation, and the evaluator of the setting in use."""

    def __init__(self, gpus: float, threads: int, cores: int) -> None:
        import ray

        ids = ray.get_gpu_ids()
        # Ray may leave GPUs visible to a worker that was given none: the assigned ids decide
        on_gpu = bool(ids) and torch.cuda.is_available()
        self._device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        self._share = gpus if on_gpu and 0 < gpus < 1 else None
        tune_process(threads)
        self._cores = cores
        self._gpu_ids = [int(one) for one in ids]
        self._evaluator: Evaluator | None = None
        self._fault = "no setting was given"

    def use(self, setting: Sequence[Any]) -> None:
        """Takes a setting, given as a reference."""
        import ray

        self._evaluator = None
        try:
            self._evaluator = Evaluator(ray.get(setting[0]), self._device, self._cores)
        except Exception as error:  # told with the first job: a call that nobody waits for has nobody to tell
            self._fault = f"{type(error).__name__}: {error}"

    def measure(self, job: Job, alone: bool = False) -> Outcome:
        """The job's outcome. `alone`, it may have the whole GPU, of which the others give back what they can."""
        if self._evaluator is None:
            raise JobError(f"a worker could not be set up: {self._fault}")
        if self._share is not None:
            torch.cuda.set_per_process_memory_fraction(1.0 if alone else self._share)
        try:
            return self._evaluator.measure(job)
        except torch.AcceleratorError:
            os._exit(1)  # the device's context is lost for this process: a new worker gets a new one
        finally:
            if self._share is not None:
                torch.cuda.empty_cache()

    def ready(self) -> None:
        """Returns when the worker runs: one for which a cluster has no room yet does not."""

    def gpu_ids(self) -> list[int]:
        """The GPUs that Ray assigned."""
        return self._gpu_ids
