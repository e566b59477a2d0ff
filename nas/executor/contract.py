"""The contract of an executor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from nas.evaluation.evaluator import Job, Outcome, Setup

ATTEMPTS = 2
"""How often a job is tried when workers die on it, and Ray when it does not start."""


class Executor(ABC):
    """A pool of workers on which jobs are measured. A context manager."""

    workers: int
    """How many jobs run at once."""

    on_gpu: bool
    """Whether jobs run on GPUs."""

    concurrent: bool = True
    """Whether jobs run while whoever submitted them does something else."""

    @property
    def retrainings(self) -> int:
        """How many jobs of final rungs run at once: fewer than workers where several processes share one."""
        return self.workers

    @property
    @abstractmethod
    def running(self) -> int:
        """Jobs submitted whose outcomes have not been fetched."""

    @property
    def free(self) -> int:
        """Slots with nothing to do."""
        return self.workers - self.running

    @abstractmethod
    def use(self, setting: Setup) -> None:
        """Give all workers a setting (space and data) for the jobs to come. Nothing may be running."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Measure a job as soon as there is a free worker."""

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
