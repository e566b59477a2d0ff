"""One driver writes: a second one is refused while the first lives, and gets the study when it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql

from nas import lease
from nas.errors import ExperimentError, LeaseLost, StoreLost
from nas.lease import Lease, owning
from nas.store import Store, open_database

HOLDER = """
import sys, time
from nas.lease import Lease
from nas.store import open_database
with Lease(open_database(sys.argv[1]), "demo"):
    print("held", flush=True)
    if sys.argv[2] == "dies":
        raise SystemExit(3)
    time.sleep(60)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def engine(url: str) -> sql.Engine:
    return open_database(url)


@pytest.fixture
def another_process(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another driver, that holds the lease."""
    with start(url, "stays") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def start(url: str, course: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, url, course]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)


def rows(engine: sql.Engine) -> list[tuple[str, int]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql("SELECT study, pid FROM nas_leases")]


def change(engine: sql.Engine, **values: object) -> None:
    """What another machine could have written."""
    with engine.begin() as connection:
        for column, value in values.items():
            connection.exec_driver_sql(f"UPDATE nas_leases SET {column} = ?", (value,))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_lost(held: Lease) -> bool:
    try:
        held.check()
    except LeaseLost:
        return True
    return False


def test_a_second_driver_of_this_process_is_refused(url: str, engine: sql.Engine) -> None:
    with Lease(engine, "demo") as held:
        for other in (engine, open_database(url)):
            with pytest.raises(ExperimentError, match="written by another driver") as caught, Lease(other, "demo"):
                pass
            assert "\n" not in str(caught.value)
        held.check()  # the refused one took nothing
        with Lease(engine, "another"):  # another study of the same database is free
            assert {study for study, _ in rows(engine)} == {"demo", "another"}
    assert rows(engine) == []


def test_a_driver_of_another_process_is_named_and_taken_over_at_once_when_it_was_killed(
    engine: sql.Engine, another_process: subprocess.Popen[str]
) -> None:
    with pytest.raises(ExperimentError, match=rf"process {another_process.pid} on "), Lease(engine, "demo"):
        pass
    assert rows(engine) == [("demo", another_process.pid)]
    another_process.kill()
    another_process.wait()
    assert rows(engine) == [("demo", another_process.pid)]  # it could not tidy up
    with Lease(engine, "demo") as held:
        held.check()
        assert rows(engine) != [("demo", another_process.pid)]
    assert rows(engine) == []


def test_a_driver_that_ends_gives_the_lease_back(url: str, engine: sql.Engine) -> None:
    with start(url, "dies") as process:
        assert process.wait() == 3
    assert rows(engine) == []


def test_a_failing_body_gives_the_lease_back(engine: sql.Engine) -> None:
    with pytest.raises(KeyboardInterrupt), Lease(engine, "demo"):
        raise KeyboardInterrupt
    assert rows(engine) == []
    with Lease(engine, "demo") as held:
        held.check()


def test_a_living_process_of_this_machine_loses_the_lease_when_its_beat_is_old(
    engine: sql.Engine, another_process: subprocess.Popen[str]
) -> None:
    change(engine, beat=time.time() - lease.LIFE + 5)
    with pytest.raises(ExperimentError), Lease(engine, "demo"):
        pass
    change(engine, beat=time.time() - lease.LIFE - 1)
    with Lease(engine, "demo") as held:
        held.check()


def test_a_driver_of_another_machine_holds_the_lease_for_as_long_as_it_beats(
    engine: sql.Engine, another_process: subprocess.Popen[str]
) -> None:
    another_process.kill()
    another_process.wait()
    change(engine, host="elsewhere")  # whether that process lives cannot be seen from here
    with pytest.raises(ExperimentError, match="on elsewhere"), Lease(engine, "demo"):
        pass
    change(engine, beat=time.time() - lease.LIFE - 1)
    with Lease(engine, "demo") as held:
        held.check()


def test_a_driver_that_died_with_this_ones_number_is_taken_over_when_it_does_not_beat(
    engine: sql.Engine, another_process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that was started again, where every driver has the number 1."""
    monkeypatch.setattr(lease, "BEAT", 0.2)
    another_process.kill()
    another_process.wait()
    change(engine, pid=os.getpid())
    with Lease(engine, "demo") as held:
        held.check()


def test_a_living_driver_with_this_ones_number_keeps_the_lease(
    engine: sql.Engine, another_process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers that share a host name."""
    monkeypatch.setattr(lease, "BEAT", 2.0)
    change(engine, pid=os.getpid())
    beating = threading.Timer(0.5, lambda: change(engine, beat=time.time() + 1))
    beating.start()
    with pytest.raises(ExperimentError, match="written by another driver"), Lease(engine, "demo"):
        pass
    beating.join()


def test_the_heart_beats(engine: sql.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.02)

    def beat() -> float:
        with engine.connect() as connection:
            return float(connection.exec_driver_sql("SELECT beat FROM nas_leases").scalar() or 0)

    with Lease(engine, "demo") as held:
        change(engine, beat=1.0)
        eventually(lambda: beat() > time.time() - 5)
        held.check()


def test_a_lost_lease_is_noticed_and_left_to_its_new_holder(
    engine: sql.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.02)
    with Lease(engine, "demo") as held:
        held.check()
        change(engine, holder="somebody else", pid=1, beat=1.0)
        eventually(lambda: is_lost(held))
        assert is_lost(held)  # for good
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT holder, beat FROM nas_leases").all()
    assert [tuple(row) for row in found] == [("somebody else", 1.0)]


def test_a_driver_that_slept_sees_at_once_that_another_took_over(
    engine: sql.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next beat: in between it would write beside the new holder."""
    with Lease(engine, "demo") as held:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + lease.LIFE + 1)
        held.check()  # it slept, but nobody came
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT beat FROM nas_leases").scalar() == now + lease.LIFE + 1
        change(engine, holder="somebody else")
        monkeypatch.setattr(time, "time", lambda: now + 2 * lease.LIFE + 3)
        with pytest.raises(LeaseLost, match="took this experiment over"):
            held.check()


# ------------------------------------------------------------------------------------------- within a transaction


def test_a_stale_driver_writes_nothing(engine: sql.Engine) -> None:
    """Suspended, overtaken, continued: it has not looked at its lease since, and the transaction does."""
    with Lease(engine, "demo") as held:
        stale = Store(engine, "demo", held.guard)
        stale.set_fact("image", 1)
        change(engine, holder="another", beat=time.time())
        with pytest.raises(LeaseLost):
            stale.set_fact("image", 2)
    assert Store(engine, "demo").fact("image") == 1


# ------------------------------------------------------------------------------------------------ on a local file


LOCAL = """
import sys, time
from nas.lease import owning
from nas.store import open_database
with owning(open_database(sys.argv[1]), "demo"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_until_the_first_is_dead(url: str, engine: sql.Engine) -> None:
    command = [sys.executable, "-c", LOCAL, url]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        refused = pytest.raises(ExperimentError, match=rf"another driver \(process {first.pid} on ")
        with refused, owning(engine, "demo"):
            pass
        with owning(engine, "other"):  # another experiment of the same database
            pass
        os.kill(first.pid, signal.SIGKILL)
        time.sleep(0.2)  # it is dead, and nobody has waited for it
        with owning(engine, "demo"):
            pass


def test_a_second_driver_of_the_same_process_is_refused(engine: sql.Engine) -> None:
    refused = pytest.raises(ExperimentError, match=f"process {os.getpid()}")
    with owning(engine, "demo"), refused, owning(engine, "demo"):
        pass
    with owning(engine, "demo"):
        pass


@pytest.mark.parametrize("replaced", [False, True])
def test_a_store_that_vanishes_is_noticed_before_anything_is_written(
    engine: sql.Engine, tmp_path: Path, replaced: bool
) -> None:
    file = tmp_path / "study.db"
    with owning(engine, "demo") as owned:
        store = Store(engine, "demo", owned.guard)
        store.set_fact("image", 1)
        owned.check()
        file.unlink()
        if replaced:
            file.write_bytes(b"")
        for write in (owned.check, lambda: store.set_fact("image", 2)):
            with pytest.raises(StoreLost, match="was deleted or replaced") as caught:
                write()
            assert "\n" not in str(caught.value)
