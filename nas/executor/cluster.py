"""Starts or joins Ray, and counts what its machines have room for."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any

from nas.config import ExecutorConfig
from nas.errors import ConfigError, JobError
from nas.executor.contract import ATTEMPTS

ANSWER = 5.0
"""Seconds in which a cluster must answer."""


def import_ray() -> Any:
    """Ray. Raises ConfigError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise ConfigError("executor.kind is ray, but Ray is not installed; use in-process") from None
    return ray


def start_ray(ray: Any, config: ExecutorConfig) -> None:
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


def room(machine: Mapping[str, float], threads: int, share: float) -> int:
    """How many workers fit on a machine; what is left of two GPUs makes no whole one."""
    by_cpu = int(machine.get("CPU", 0)) // threads
    return min(by_cpu, int(1 / share + 1e-9) * int(machine.get("GPU", 0))) if share else by_cpu
