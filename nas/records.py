"""Measurements and their durable table.

The table lies in the same database as the study's trials. A measurement is named by (architecture, rung, seed) and is
written once: adding it again changes nothing. Only the driver writes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sql

from nas.errors import ConfigError, InputError

Status = Literal["done", "failed", "infeasible"]


@dataclass(frozen=True)
class Measurement:
    """The signals and the cost of (architecture, rung, seed).

    `signals` are numbers read from the network (loss, accuracy, params, flops, ...), `cost` what they took (seconds of
    training, images seen, counted as images of full size and width). `cause` says in one line why a measurement failed
    or was infeasible. `towers` are the cells that carried one.
    """

    architecture: str
    key: str
    rung: str
    seed: int
    status: Status
    signals: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    towers: tuple[int, ...] = ()
    cause: str | None = None


@dataclass(frozen=True)
class Entry:
    """A measurement as it stands in the table, with the first trial that asked for it (None: a reference)."""

    measurement: Measurement
    trial: int | None


_metadata = sql.MetaData()
_measurements = sql.Table(
    "nas_measurements",
    _metadata,
    sql.Column("study", sql.String(128), primary_key=True),
    sql.Column("key", sql.String(16), primary_key=True),
    sql.Column("rung", sql.String(64), primary_key=True),
    sql.Column("seed", sql.BigInteger, primary_key=True),
    sql.Column("trial", sql.Integer),
    sql.Column("architecture", sql.Text, nullable=False),
    sql.Column("status", sql.String(16), nullable=False),
    sql.Column("signals", sql.Text, nullable=False),
    sql.Column("cost", sql.Text, nullable=False),
    sql.Column("towers", sql.Text, nullable=False),
    sql.Column("cause", sql.Text),
)
_facts = sql.Table(
    "nas_facts",
    _metadata,
    sql.Column("study", sql.String(128), primary_key=True),
    sql.Column("name", sql.String(64), primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
)


def check_place(folder: Path) -> None:
    """Raises InputError where a folder can neither be made nor written to. Makes nothing."""
    place = folder.absolute()
    there = next(one for one in (place, *place.parents) if os.path.exists(one))  # Path's raises without permission
    if not there.is_dir():
        raise InputError(f"cannot write to {str(folder)!r}: {str(there)!r} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {str(folder)!r}: no permission for {str(there)!r}")


def open_database(url: str) -> sql.Engine:
    """An engine on `url`; SQLite is brought to write-ahead logging, one writer beside any readers.

    Raises ConfigError where there is no such database.
    """
    try:
        engine = sql.create_engine(url)
        tune(engine)
        engine.connect().close()
    except (sql.exc.SQLAlchemyError, ImportError, ValueError) as error:
        raise ConfigError(f"storage {_shown(url)!r} cannot be opened: {str(error).partition(chr(10))[0]}") from None
    return engine


def _shown(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(://[^:@/]*):.*@", r"\1:***@", url)


def existing_records(url: str, study: str) -> Records | None:
    """The records of a study, to be read; None, and nothing written, where its database holds none yet."""
    try:
        address = sql.make_url(url)
    except (sql.exc.ArgumentError, ValueError):
        raise ConfigError(f"storage {_shown(url)!r} is no SQL URL") from None
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
        return None
    engine = open_database(url)
    return Records(engine, study) if sql.inspect(engine).has_table(_measurements.name) else None


def tune(engine: sql.Engine) -> None:
    """Durability where it counts, for SQLite: WAL with synchronous=NORMAL survives the death of the process."""
    if engine.dialect.name != "sqlite":
        return

    @sql.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=NORMAL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    engine.dispose()  # connections made before know nothing of the pragmas


class Records:
    """The measurements and the facts (small JSON values) of one study."""

    def __init__(self, engine: sql.Engine, study: str) -> None:
        self._engine = engine
        self._study = study
        _metadata.create_all(engine)

    def add(self, measurement: Measurement, trial: int | None = None) -> bool:
        """Write a measurement down, durable on return. False when it stood there already.

        What stood there stays, but a reference (trial None) that a trial asks for becomes that trial's candidate.
        """
        row = {
            "study": self._study,
            "key": measurement.key,
            "rung": measurement.rung,
            "seed": measurement.seed,
            "trial": trial,
            "architecture": measurement.architecture,
            "status": measurement.status,
            "signals": json.dumps(dict(measurement.signals)),
            "cost": json.dumps(dict(measurement.cost)),
            "towers": json.dumps(measurement.towers),
            "cause": measurement.cause,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(_measurements.insert().values(row))
        except sql.exc.IntegrityError:
            if trial is not None:
                self._claim(measurement, trial)
            return False
        return True

    def _claim(self, measurement: Measurement, trial: int) -> None:
        columns = _measurements.c
        where = (
            (columns.study == self._study)
            & (columns.key == measurement.key)
            & (columns.rung == measurement.rung)
            & (columns.seed == measurement.seed)
            & columns.trial.is_(None)
        )
        with self._engine.begin() as connection:
            connection.execute(_measurements.update().where(where).values(trial=trial))

    def get(self, key: str, rung: str, seed: int) -> Measurement | None:
        """The measurement of (architecture, rung, seed), if there is one."""
        found = self._select(_measurements.c.key == key, _measurements.c.rung == rung, _measurements.c.seed == seed)
        return found[0].measurement if found else None

    def all(self) -> list[Entry]:
        """Every measurement of the study, in the order of its trials; references come last."""
        entries = self._select()
        return sorted(entries, key=lambda entry: (entry.trial is None, entry.trial or 0))

    def set_fact(self, name: str, value: Any) -> None:
        """Remember a JSON value under a name, in place of what was there."""
        with self._engine.begin() as connection:
            where = (_facts.c.study == self._study) & (_facts.c.name == name)
            connection.execute(_facts.delete().where(where))
            connection.execute(_facts.insert().values(study=self._study, name=name, value=json.dumps(value)))

    def fact(self, name: str, default: Any = None) -> Any:
        """What was remembered under a name."""
        with self._engine.connect() as connection:
            where = (_facts.c.study == self._study) & (_facts.c.name == name)
            text = connection.execute(sql.select(_facts.c.value).where(where)).scalar()
        return default if text is None else json.loads(text)

    def _select(self, *conditions: sql.ColumnElement[bool]) -> list[Entry]:
        query = sql.select(_measurements).where(_measurements.c.study == self._study, *conditions)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            Entry(
                Measurement(
                    architecture=row["architecture"],
                    key=row["key"],
                    rung=row["rung"],
                    seed=row["seed"],
                    status=row["status"],
                    signals=json.loads(row["signals"]),
                    cost=json.loads(row["cost"]),
                    towers=tuple(json.loads(row["towers"])),
                    cause=row["cause"],
                ),
                row["trial"],
            )
            for row in rows
        ]
