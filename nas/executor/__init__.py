"""Executors: run jobs in this process or on Ray workers. No other package knows Ray.

Executors share one contract: `submit` jobs (up to `free` at a time without waiting), `wait` for outcomes. An
outcome always comes back for a submitted job; where a worker died twice on it, a failed one.
"""

from __future__ import annotations

from nas.config import ExecutorConfig
from nas.executor.contract import ATTEMPTS, Executor
from nas.executor.in_process import InProcess
from nas.executor.ray_executor import RayExecutor

__all__ = ["ATTEMPTS", "Executor", "InProcess", "RayExecutor", "start"]


def start(config: ExecutorConfig) -> Executor:
    """The executor that the config asks for."""
    return InProcess(config) if config.kind == "in-process" else RayExecutor(config)
