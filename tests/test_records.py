"""Measurements are written once, durably; studies in one database do not mix."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sql

from nas.errors import ConfigError
from nas.records import Entry, Measurement, Records, existing_records, open_database, tune

ONE = Measurement(
    architecture='{"width":8}',
    key="a1b2c3d4e5f6",
    rung="proxy-01234567",
    seed=2**62,
    status="done",
    signals={"val_loss": 0.1 + 0.2, "params": 1234567.0, "val_accuracy": 1.0},
    cost={"seconds": 1.5, "images": 12_000},
    towers=(2, 5),
)
FAILED = replace(ONE, key="f" * 12, status="failed", signals={}, cost={}, towers=(), cause="loss is nan at step 3")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def records(url: str) -> Records:
    return Records(open_database(url), "demo")


def test_a_measurement_comes_back_as_it_was_written(records: Records, url: str) -> None:
    assert records.add(ONE, trial=3)
    assert records.add(FAILED, trial=4)
    for read in (records, Records(open_database(url), "demo")):
        assert read.all() == [Entry(ONE, 3), Entry(FAILED, 4)]
        assert read.get(ONE.key, ONE.rung, ONE.seed) == ONE


def test_adding_again_changes_nothing(records: Records) -> None:
    assert records.add(ONE, trial=3)
    assert not records.add(replace(ONE, signals={"val_loss": 9.0}, status="failed", cause="again"), trial=7)
    assert not records.add(ONE)
    assert records.all() == [Entry(ONE, 3)]


def test_key_rung_and_seed_each_make_another_measurement(records: Records) -> None:
    others = [replace(ONE, key="0" * 12), replace(ONE, rung="retrain-01234567"), replace(ONE, seed=1)]
    assert all(records.add(one, trial=number) for number, one in enumerate([ONE, *others]))
    assert [entry.measurement for entry in records.all()] == [ONE, *others]
    for one in [ONE, *others]:
        assert records.get(one.key, one.rung, one.seed) == one
    assert records.get(ONE.key, ONE.rung, 2) is None


def test_a_reference_that_a_trial_asks_for_becomes_its_candidate(records: Records) -> None:
    assert records.add(ONE)
    assert records.add(FAILED)
    assert records.all()[0].trial is None
    assert not records.add(replace(ONE, signals={"val_loss": 9.0}), trial=5)
    assert records.all() == [Entry(ONE, 5), Entry(FAILED, None)]  # that one alone, and what was measured stays
    assert not records.add(ONE, trial=6)
    assert records.all()[0] == Entry(ONE, 5)  # the first trial keeps it


def test_measurements_come_in_the_order_of_their_trials_and_references_last(records: Records) -> None:
    for trial in (10, None, 2, 0, 1):
        records.add(replace(ONE, key=f"{trial}"), trial=trial)
    assert [entry.trial for entry in records.all()] == [0, 1, 2, 10, None]


def test_signals_that_are_not_finite_come_back(records: Records) -> None:
    records.add(replace(ONE, signals={"score": math.inf, "other": math.nan}))
    signals = records.all()[0].measurement.signals
    assert signals["score"] == math.inf
    assert math.isnan(signals["other"])


def test_facts_are_json_and_replaced(records: Records, url: str) -> None:
    assert records.fact("image") is None
    assert records.fact("image", [1]) == [1]
    for value in ([1, 28, 28, 10], {"googlenet": ["a", "b"]}, None, 0.1, "größe"):
        records.set_fact("image", value)
        assert Records(open_database(url), "demo").fact("image", "default") == value
    records.set_fact("other", 1)
    assert records.fact("image") == "größe"


def test_two_studies_in_one_database_do_not_mix(url: str) -> None:
    engine = open_database(url)
    one, other, third = (Records(engine, study) for study in ("one", "other", "third"))
    assert third.add(ONE)
    assert one.add(ONE)
    assert other.add(replace(ONE, status="failed", cause="elsewhere"), trial=1)
    one.set_fact("proxy_rung", "a")
    other.set_fact("proxy_rung", "b")
    assert not one.add(ONE, trial=7)  # claims its own row, not another's
    assert one.all() == [Entry(ONE, 7)]
    assert [entry.trial for entry in other.all()] == [1]
    assert third.all() == [Entry(ONE, None)]
    assert other.get(ONE.key, ONE.rung, ONE.seed).cause == "elsewhere"  # type: ignore[union-attr]
    assert (one.fact("proxy_rung"), other.fact("proxy_rung")) == ("a", "b")


def test_reading_an_experiment_that_has_not_begun_writes_nothing(tmp_path: Path, url: str) -> None:
    assert existing_records(url, "demo") is None
    assert list(tmp_path.iterdir()) == []
    Records(open_database(url), "demo").add(ONE)
    found = existing_records(url, "demo")
    assert found is not None
    assert found.all() == [Entry(ONE, None)]


def test_reading_from_a_database_of_something_else_adds_no_tables_to_it(url: str) -> None:
    engine = open_database(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE other (name TEXT)")
    assert existing_records(url, "demo") is None
    assert sql.inspect(engine).get_table_names() == ["other"]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////no/such/folder/study.db",
        "no url at all",
        "nosuchsql://me:secret@host/db",
        "postgresql+nodriver://me:secret@host/db",
        "mysql://me:secret@host:port/db",
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_in_one_line_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="storage") as caught:
        open_database(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["no url at all", "", "mysql://me:secret@host:port/db"])
def test_what_is_no_url_has_no_records(url: str) -> None:
    with pytest.raises(ConfigError, match="is no SQL URL") as caught:
        existing_records(url, "demo")
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- durability


def pragmas(engine: sql.Engine) -> tuple[str, int]:
    with engine.connect() as connection:
        return (
            str(connection.exec_driver_sql("PRAGMA journal_mode").scalar()),
            int(connection.exec_driver_sql("PRAGMA synchronous").scalar() or 0),
        )


WAL_AND_NORMAL = ("wal", 1)


def test_sqlite_is_in_wal_mode_with_synchronous_normal(url: str) -> None:
    engine = open_database(url)
    assert pragmas(engine) == WAL_AND_NORMAL
    engine.dispose()
    assert pragmas(engine) == WAL_AND_NORMAL  # on every connection, not only on the first


def test_an_engine_that_was_in_use_already_is_tuned_too(url: str) -> None:
    engine = sql.create_engine(url)
    assert pragmas(engine) != WAL_AND_NORMAL
    tune(engine)
    assert pragmas(engine) == WAL_AND_NORMAL


DRIVER = """
import os, signal, sys
from nas.records import Measurement, Records, open_database
records = Records(open_database(sys.argv[1]), "demo")
for number in range(3):
    one = Measurement("{}", f"key{number}", "proxy", 0, "done", {"val_loss": 0.5})
    assert records.add(one, trial=number)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_added_survives_sigkill(url: str) -> None:
    killed = subprocess.run([sys.executable, "-c", DRIVER, url], cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL
    records = Records(open_database(url), "demo")
    assert [(entry.measurement.key, entry.trial) for entry in records.all()] == [("key0", 0), ("key1", 1), ("key2", 2)]
    assert not records.add(replace(ONE, key="key0", rung="proxy", seed=0))
    assert records.add(ONE)  # the dead process holds no lock


def test_readers_are_not_held_up_by_a_writer(url: str) -> None:
    records = Records(open_database(url), "demo")
    records.add(ONE)
    writing = open_database(url)
    with writing.begin() as connection:
        connection.exec_driver_sql("UPDATE nas_measurements SET trial = 9")
        reader = existing_records(url, "demo")
        assert reader is not None
        assert reader.all() == [Entry(ONE, None)]
    assert os.path.exists(sql.make_url(url).database or "")
    assert reader.all() == [Entry(ONE, 9)]
