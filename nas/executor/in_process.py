"""The executor that runs jobs in this process, one at a time."""

from __future__ import annotations

import os
from collections import deque

import torch

from nas.config import ExecutorConfig
from nas.evaluation.evaluator import Evaluator, Job, Outcome, Setup, tune_process
from nas.executor.contract import Executor


class InProcess(Executor):
    """One worker, in this process: for debugging, and where there is no Ray."""

    workers = 1
    concurrent = False

    def __init__(self, config: ExecutorConfig) -> None:
        self._config = config
        on_gpu = config.device == "auto" and torch.cuda.is_available()
        self._device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        self.on_gpu = self._device.type == "cuda"
        self._put_back = tune_process(config.threads)
        self._evaluator: Evaluator | None = None
        self._queue: deque[Job] = deque()

    @property
    def running(self) -> int:
        return len(self._queue)

    def use(self, setting: Setup) -> None:
        self._evaluator = Evaluator(setting, self._device, usable_cores())

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        if not self._queue:
            return []
        assert self._evaluator is not None, "use() comes before wait()"
        outcome = self._evaluator.measure(self._queue[0])
        self._queue.popleft()
        return [outcome]

    def close(self) -> None:
        self._queue.clear()
        self._put_back()  # the process is not this executor's alone


def usable_cores() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
