"""Ownership of an experiment: one driver writes, and a second one is refused while the first lives.

On SQLite a lock on a file beside the database says who the driver is. The operating system frees it the moment that the
driver dies. A database on a server has a lease instead: a row that a heartbeat renews, and that every writing
transaction looks at. The lease of a driver that died on the same machine is taken over at once (where it had this
process's own number, when a heartbeat and a half has passed without one); that of one elsewhere when its heartbeat is
`LIFE` seconds old.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import sqlalchemy as sql
from filelock import FileLock, Timeout

from nas.errors import ExperimentError, LeaseLost, StoreLost

LIFE = 60.0
"""Seconds without a heartbeat after which a lease is over."""

BEAT = 10.0
"""Seconds between heartbeats."""

_held: set[str] = set()
"""Holders of this process."""

_metadata = sql.MetaData()
_leases = sql.Table(
    "nas_leases",
    _metadata,
    sql.Column("study", sql.String(128), primary_key=True),
    sql.Column("holder", sql.String(64), nullable=False),
    sql.Column("host", sql.String(255), nullable=False),
    sql.Column("pid", sql.Integer, nullable=False),
    sql.Column("beat", sql.Float, nullable=False),
)


class Ownership(Protocol):
    """The right to write an experiment."""

    def check(self) -> None:
        """Raises LeaseLost or StoreLost where this driver may not write any more."""

    def guard(self, connection: sql.Connection) -> None:
        """The same within a writing transaction, so that nothing is written after it."""


@contextmanager
def owning(engine: sql.Engine, experiment: str) -> Iterator[Ownership]:
    """The right to write an experiment; raises ExperimentError where another driver has it."""
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    ownership = Lease(engine, experiment) if file in (None, "", ":memory:") else LocalLock(Path(str(file)), experiment)
    with ownership as owned:
        yield owned


class LocalLock:
    """A lock on a file beside an SQLite database, for as long as the context is open."""

    def __init__(self, database: Path, experiment: str) -> None:
        self._database = database
        self._lock = FileLock(database.with_name(f".{experiment}.lock"), timeout=0)
        self._note = database.with_name(f".{experiment}.driver")
        self._inode = 0

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout:
            raise ExperimentError(f"this experiment is being written by another driver ({self._holder()})") from None
        self._note.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        self._inode = self._database.stat().st_ino
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._note.unlink(missing_ok=True)
        self._lock.release()

    def _holder(self) -> str:
        try:
            return self._note.read_text(encoding="utf-8")
        except OSError:
            return "it has just started"

    def check(self) -> None:
        """Raises StoreLost where the database was deleted or replaced: what is written to it would be lost."""
        try:
            there = self._database.stat().st_ino == self._inode
        except FileNotFoundError:
            there = False
        if not there:
            raise StoreLost(
                f"the experiment's store {str(self._database)!r} was deleted or replaced while this driver was writing "
                "it; put it back, or begin anew with another --name"
            )

    def guard(self, connection: sql.Connection) -> None:
        """As `check`: only the death of this process frees the lock."""
        self.check()


class Lease:
    """The right to write a study. A context manager; raises ExperimentError where another driver holds it."""

    def __init__(self, engine: sql.Engine, study: str) -> None:
        self._engine = engine
        self._study = study
        self._holder = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = False
        self._beaten = 0.0
        self._thread = threading.Thread(target=self._renew_until_stopped, name="lease", daemon=True)

    def __enter__(self) -> Self:
        _metadata.create_all(self._engine)
        _held.add(self._holder)
        try:
            self._take()
        except BaseException:
            _held.discard(self._holder)
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        _held.discard(self._holder)
        with self._engine.begin() as connection:
            connection.execute(_leases.delete().where(self._mine()))

    def check(self) -> None:
        """Raise LeaseLost when another driver has taken over, for instance while this machine slept."""
        if not self._lost and time.time() - self._beaten > LIFE:
            self._renew()  # nobody has beaten for so long that somebody may have taken over a moment ago
        if self._lost:
            raise LeaseLost("another driver took this experiment over; what was measured so far is kept")

    def guard(self, connection: sql.Connection) -> None:
        """Raises LeaseLost, within a writing transaction, when another driver has taken over."""
        query = sql.select(_leases.c.holder).where(_leases.c.study == self._study).with_for_update()
        if connection.execute(query).scalar() != self._holder:
            self._lost = True
            self.check()

    def _take(self) -> None:
        gone = self._abandoned()
        self._beaten = time.time()
        row = {"holder": self._holder, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._beaten}
        where = _leases.c.study == self._study
        try:
            with self._engine.begin() as connection:
                held = connection.execute(sql.select(_leases).where(where)).mappings().first()
                if held is None:
                    connection.execute(_leases.insert().values(study=self._study, **row))
                    return
                if held["holder"] != gone and not _is_over(held["host"], held["pid"], held["beat"]):
                    raise _refusal(held["pid"], held["host"])
                # compare and swap: of two drivers that see the same dead lease, one gets it
                swap = _leases.update().where(where, _leases.c.holder == held["holder"]).values(**row)
                if connection.execute(swap).rowcount != 1:
                    raise _refusal(held["pid"], held["host"])
        except sql.exc.IntegrityError:
            raise ExperimentError("another driver has just started on this experiment") from None

    def _abandoned(self) -> str | None:
        """The holder of a lease with this process's own number that is not of this process, and does not beat any more.

        A container that is started again gives its driver the number of the one that died; two containers that share
        a host name may have living drivers of one number.
        """
        query = sql.select(_leases).where(_leases.c.study == self._study)
        until = time.monotonic() + 1.5 * BEAT
        first = None
        while True:
            with self._engine.connect() as connection:
                held = connection.execute(query).mappings().first()
            if held is None or (held["host"], held["pid"]) != (socket.gethostname(), os.getpid()):
                return None
            first = first or held
            if held["holder"] in _held or held["beat"] != first["beat"]:
                return None
            if time.monotonic() > until:
                return str(held["holder"])
            time.sleep(BEAT / 20)

    def _renew_until_stopped(self) -> None:
        while not self._lost and not self._stop.wait(BEAT):
            try:
                self._renew()
            except sql.exc.OperationalError:
                continue  # a busy database: the next beat will do

    def _renew(self) -> None:
        now = time.time()
        with self._engine.begin() as connection:
            if connection.execute(_leases.update().where(self._mine()).values(beat=now)).rowcount != 1:
                self._lost = True
        self._beaten = now

    def _mine(self) -> sql.ColumnElement[bool]:
        return (_leases.c.study == self._study) & (_leases.c.holder == self._holder)


def _refusal(pid: int, host: str) -> ExperimentError:
    return ExperimentError(f"this experiment is being written by another driver (process {pid} on {host})")


def _is_over(host: str, pid: int, beat: float) -> bool:
    if time.time() - beat > LIFE:
        return True
    return host == socket.gethostname() and not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
