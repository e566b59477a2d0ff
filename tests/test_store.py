"""Measurements are written once, durably; studies in one database do not mix."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sql
from hypothesis import given
from hypothesis import strategies as st
from recorded import add_candidate, proposal

from nas.errors import ConfigError, ExperimentError
from nas.store import (
    MAX_CURVE_POINTS,
    Entry,
    Measurement,
    Proposal,
    Store,
    existing_store,
    open_database,
    thinned,
    tune,
)

ONE = Measurement(
    architecture='{"width":8}',
    key="a1b2c3d4e5f6",
    rung="proxy-01234567",
    seed=2**62,
    status="done",
    signals={"val_loss": 0.1 + 0.2, "params": 1234567.0, "val_accuracy": 1.0},
    cost={"seconds": 1.5, "images": 12_000},
    towers=(2, 5),
    curve=((10.0, 2.5), (20.0, 1.25)),
)
FAILED = replace(
    ONE,
    key="f" * 12,
    status="failed",
    signals={},
    cost={},
    towers=(),
    cause="loss is nan at step 3",
    traceback="Traceback ...",
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def records(url: str) -> Store:
    return Store(open_database(url), "demo")


def test_a_measurement_comes_back_as_it_was_written(records: Store, url: str) -> None:
    assert add_candidate(records, ONE, 3)
    assert add_candidate(records, FAILED, 4)
    for read in (records, Store(open_database(url), "demo")):
        assert read.all() == [Entry(ONE, 3), Entry(FAILED, 4)]
        assert read.get(ONE.key, ONE.rung, ONE.seed) == ONE


def test_adding_again_changes_nothing(records: Store) -> None:
    assert add_candidate(records, ONE, 3)
    assert not records.add(replace(ONE, signals={"val_loss": 9.0}, status="failed", cause="again"))
    assert not records.add(ONE)
    assert records.all() == [Entry(ONE, 3)]


def test_key_rung_and_seed_each_make_another_measurement(records: Store) -> None:
    others = [replace(ONE, key="0" * 12), replace(ONE, rung="retrain-01234567"), replace(ONE, seed=1)]
    assert all(add_candidate(records, one, number) for number, one in enumerate([ONE, *others]))
    assert records.measurements() == [ONE, *others]
    for one in [ONE, *others]:
        assert records.get(one.key, one.rung, one.seed) == one
    assert records.get(ONE.key, ONE.rung, 2) is None


def test_a_reference_that_a_trial_proposes_becomes_its_candidate(records: Store) -> None:
    assert records.add(ONE)
    assert records.add(FAILED)
    assert records.all()[0].trial is None
    records.add_proposal(proposal(ONE, 5))
    assert records.all() == [Entry(ONE, 5), Entry(FAILED, None)]  # that one alone, and what was measured stays
    records.add_proposal(proposal(ONE, 6))
    assert records.all()[0] == Entry(ONE, 5)  # the first trial keeps it
    records.add_proposal(replace(proposal(FAILED, 7), status="infeasible", cause="too slow"))
    assert records.all()[1] == Entry(FAILED, None)  # no candidate


def test_a_proposal_comes_back_as_it_was_written(records: Store, url: str) -> None:
    first = Proposal(
        number=0,
        draw=7,
        draws=9,
        architecture='{"width":8}',
        key="a1b2c3d4e5f6",
        parameters={"width": 8, "kind": "größe", "share": 0.1},
        distributions={"width": "{}"},
        origin="random",
        status="infeasible",
        excess={"params": 0.5},
        cause="too large",
        attributes={"nsga2:generation": 3},
        created=12.5,
    )
    second = replace(proposal(FAILED, 1), architecture="", key="", status="failed", cause="suggest failed")
    records.add_proposal(first)
    records.add_proposal(second)
    read = Store(open_database(url), "demo").proposals()
    assert read == [first, second]
    assert read[0].created == 12.5
    with pytest.raises(sql.exc.IntegrityError):
        records.add_proposal(first)


def test_events_come_in_the_order_in_which_they_were_written(records: Store, url: str) -> None:
    records.add(ONE)
    records.add_proposal(proposal(ONE, 0))
    records.add_proposal(proposal(FAILED, 1))
    again = Store(open_database(url), "demo")  # another driver goes on
    again.add(FAILED)
    assert again.events() == [ONE, proposal(ONE, 0), proposal(FAILED, 1), FAILED]


def test_an_experiment_of_an_earlier_format_is_refused_in_one_line(url: str) -> None:
    engine = open_database(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE nas_measurements (study TEXT)")
        connection.exec_driver_sql("INSERT INTO nas_measurements VALUES ('demo')")
    reads: list[Callable[[], object]] = [lambda: existing_store(url, "demo"), lambda: Store(engine, "demo")]
    for read in reads:
        with pytest.raises(ExperimentError, match="format 1, and this version reads format 2") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not sql.inspect(engine).has_table("nas_experiments"), "nothing is written"
    Store(engine, "another").add(ONE)  # beside it
    assert existing_store(url, "another") is not None


def test_an_experiment_of_a_later_format_is_refused(records: Store, url: str) -> None:
    records.add(ONE)
    with open_database(url).begin() as connection:
        connection.exec_driver_sql("UPDATE nas_experiments SET format = 3")
    with pytest.raises(ExperimentError, match="has format 3"):
        existing_store(url, "demo")


@given(st.lists(st.floats(-1e6, 1e6), max_size=1000))
def test_a_thinned_curve_keeps_its_mean_and_its_end(values: list[float]) -> None:
    points = [(float(step), value) for step, value in enumerate(values, 1)]
    thin = thinned(points)
    assert len(thin) <= MAX_CURVE_POINTS
    assert [step for step, _ in thin] == sorted(step for step, _ in thin)
    if points:
        assert thin[-1][0] == points[-1][0]
        assert min(values) - 1e-6 <= min(value for _, value in thin) <= max(values) + 1e-6
    if len(points) <= MAX_CURVE_POINTS:
        assert list(thin) == points


def test_measurements_come_in_the_order_of_their_trials_and_references_last(records: Store) -> None:
    for trial in (10, None, 2, 0, 1):
        add_candidate(records, replace(ONE, key=f"{trial}"), trial)
    assert [entry.trial for entry in records.all()] == [0, 1, 2, 10, None]


def test_signals_that_are_not_finite_come_back(records: Store) -> None:
    records.add(replace(ONE, signals={"score": math.inf, "other": math.nan}))
    signals = records.all()[0].measurement.signals
    assert signals["score"] == math.inf
    assert math.isnan(signals["other"])


def test_facts_are_json_and_replaced(records: Store, url: str) -> None:
    assert records.fact("image") is None
    assert records.fact("image", [1]) == [1]
    for value in ([1, 28, 28, 10], {"googlenet": ["a", "b"]}, None, 0.1, "größe"):
        records.set_fact("image", value)
        assert Store(open_database(url), "demo").fact("image", "default") == value
    records.set_fact("other", 1)
    assert records.fact("image") == "größe"


def test_two_studies_in_one_database_do_not_mix(url: str) -> None:
    engine = open_database(url)
    one, other, third = (Store(engine, study) for study in ("one", "other", "third"))
    assert third.add(ONE)
    assert one.add(ONE)
    assert add_candidate(other, replace(ONE, status="failed", cause="elsewhere"), 1)
    one.set_fact("proxy_rung", "a")
    other.set_fact("proxy_rung", "b")
    one.add_proposal(proposal(ONE, 7))
    assert one.all() == [Entry(ONE, 7)]
    assert [entry.trial for entry in other.all()] == [1]
    assert third.all() == [Entry(ONE, None)]
    assert other.get(ONE.key, ONE.rung, ONE.seed).cause == "elsewhere"  # type: ignore[union-attr]
    assert (one.fact("proxy_rung"), other.fact("proxy_rung")) == ("a", "b")


def test_reading_an_experiment_that_has_not_begun_writes_nothing(tmp_path: Path, url: str) -> None:
    assert existing_store(url, "demo") is None
    assert list(tmp_path.iterdir()) == []
    Store(open_database(url), "demo").add(ONE)
    found = existing_store(url, "demo")
    assert found is not None
    assert found.all() == [Entry(ONE, None)]


def test_reading_from_a_database_of_something_else_adds_no_tables_to_it(url: str) -> None:
    engine = open_database(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE other (name TEXT)")
    assert existing_store(url, "demo") is None
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
        existing_store(url, "demo")
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
from nas.store import Measurement, Store, open_database
records = Store(open_database(sys.argv[1]), "demo")
for number in range(3):
    one = Measurement("{}", f"key{number}", "proxy", 0, "done", {"val_loss": 0.5})
    assert records.add(one)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_added_survives_sigkill(url: str) -> None:
    killed = subprocess.run([sys.executable, "-c", DRIVER, url], cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL
    records = Store(open_database(url), "demo")
    assert [one.key for one in records.measurements()] == ["key0", "key1", "key2"]
    assert not records.add(replace(ONE, key="key0", rung="proxy", seed=0))
    assert records.add(ONE)  # the dead process holds no lock


def test_readers_are_not_held_up_by_a_writer(url: str) -> None:
    records = Store(open_database(url), "demo")
    records.add(ONE)
    writing = open_database(url)
    with writing.begin() as connection:
        connection.exec_driver_sql("UPDATE nas_evaluations SET cause = 'changed'")
        reader = existing_store(url, "demo")
        assert reader is not None
        assert reader.all() == [Entry(ONE, None)]
    assert os.path.exists(sql.make_url(url).database or "")
    assert reader.all() == [Entry(replace(ONE, cause="changed"), None)]
