"""The record of an experiment: proposals, measurements and decisions, in one SQL schema. Only this module knows it.

A proposal is a point of the search space that a search considered. A measurement is named by (architecture, rung, seed)
and is written once: adding it again changes nothing. A decision is a small JSON value under a name. Every write is
durable when the method returns. `nas.search.state` computes the state of a search from the record.

Only the driver writes. `nas.lease` says who the driver is.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sql

from nas.errors import ConfigError, ExperimentError, InputError

FORMAT = 2
"""Version of the schema. Experiments of another format are refused."""

MAX_CURVE_POINTS = 64
"""Points of a learning curve at most."""

MAX_TRACEBACK = 16_000
"""Characters of a traceback at most; its end is kept."""

Status = Literal["done", "failed", "infeasible"]

ProposalStatus = Literal["candidate", "infeasible", "failed"]
"""A candidate is measured. Infeasible: over a limit that is known before training. Failed: no architecture."""

Origin = Literal["named", "sampler", "random"]
"""Where a proposal comes from: a named point of the space, the sampler, or a random draw."""

Curve = tuple[tuple[float, float], ...]
"""Points (step, mean training loss since the point before)."""


@dataclass(frozen=True)
class Measurement:
    """The signals and the cost of (architecture, rung, seed).

    Attributes:
        architecture: Canonical JSON.
        key: Names the architecture.
        rung: Key of the rung, see `nas.ladder.Rung`.
        seed: Seed of the training.
        status: Whether there are signals to rank by.
        signals: Numbers that were measured on the network, such as loss, accuracy, parameters and FLOPs.
        cost: What they took: seconds of training, images seen (counted as images of full size and width).
        towers: The cells that carried a tower.
        cause: Why the measurement failed or is infeasible, in one line.
        curve: The learning curve, at most `MAX_CURVE_POINTS` points.
        traceback: Of a failure, where there is one.
        created: Seconds since 1970.
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
    curve: Curve = ()
    traceback: str | None = None
    created: float = field(default_factory=time.time, compare=False)

    @property
    def unit(self) -> tuple[str, str, int]:
        """What names the measurement: (key, rung, seed)."""
        return self.key, self.rung, self.seed


@dataclass(frozen=True)
class Proposal:
    """A point of the search space that a search considered: a trial.

    Attributes:
        number: The trial's number, counted from 0.
        draw: How many points had been drawn before this one, discarded ones included. It seeds the sampler.
        draws: How many had been drawn when this one was recorded.
        architecture: Canonical JSON; empty where the space made none of the parameters.
        key: Names the architecture; empty as above.
        parameters: What the space chose, by name.
        distributions: What it chose from, by name, in Optuna's JSON.
        origin: Where the proposal comes from.
        status: Whether it is a candidate.
        excess: By how much each limit known before training is exceeded; 0 or less: kept.
        cause: Why it is no candidate, in one line.
        attributes: What the sampler noted of it.
        created: Seconds since 1970.
    """

    number: int
    draw: int
    draws: int
    architecture: str
    key: str
    parameters: Mapping[str, Any]
    distributions: Mapping[str, str]
    origin: Origin
    status: ProposalStatus = "candidate"
    excess: Mapping[str, float] = field(default_factory=dict)
    cause: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time, compare=False)


Event = Proposal | Measurement


@dataclass(frozen=True)
class Entry:
    """A measurement, and the trial whose candidate it is of (None: of a reference)."""

    measurement: Measurement
    trial: int | None


_metadata = sql.MetaData()
_NAME = sql.String(128)
_experiments = sql.Table(
    "nas_experiments",
    _metadata,
    sql.Column("experiment", _NAME, primary_key=True),
    sql.Column("format", sql.Integer, nullable=False),
)
_proposals = sql.Table(
    "nas_proposals",
    _metadata,
    sql.Column("experiment", _NAME, primary_key=True),
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("sequence", sql.Integer, nullable=False),
    sql.Column("draw", sql.Integer, nullable=False),
    sql.Column("draws", sql.Integer, nullable=False),
    sql.Column("architecture", sql.Text, nullable=False),
    sql.Column("key", sql.String(16), nullable=False),
    sql.Column("parameters", sql.Text, nullable=False),
    sql.Column("distributions", sql.Text, nullable=False),
    sql.Column("origin", sql.String(16), nullable=False),
    sql.Column("status", sql.String(16), nullable=False),
    sql.Column("excess", sql.Text, nullable=False),
    sql.Column("cause", sql.Text),
    sql.Column("attributes", sql.Text, nullable=False),
    sql.Column("created", sql.Float, nullable=False),
)
_measurements = sql.Table(
    "nas_evaluations",
    _metadata,
    sql.Column("experiment", _NAME, primary_key=True),
    sql.Column("key", sql.String(16), primary_key=True),
    sql.Column("rung", sql.String(64), primary_key=True),
    sql.Column("seed", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("sequence", sql.Integer, nullable=False),
    sql.Column("architecture", sql.Text, nullable=False),
    sql.Column("status", sql.String(16), nullable=False),
    sql.Column("signals", sql.Text, nullable=False),
    sql.Column("cost", sql.Text, nullable=False),
    sql.Column("towers", sql.Text, nullable=False),
    sql.Column("cause", sql.Text),
    sql.Column("curve", sql.Text, nullable=False),
    sql.Column("traceback", sql.Text),
    sql.Column("created", sql.Float, nullable=False),
)
_decisions = sql.Table(
    "nas_decisions",
    _metadata,
    sql.Column("experiment", _NAME, primary_key=True),
    sql.Column("name", sql.String(64), primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
)

_OLD = sql.Table("nas_measurements", sql.MetaData(), sql.Column("study", _NAME))
"""Where format 1 kept its measurements."""


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


def existing_store(url: str, experiment: str) -> Store | None:
    """The store of an experiment, to be read; None, and nothing written, where its database holds none yet.

    Raises ExperimentError where the experiment is of another format.
    """
    try:
        address = sql.make_url(url)
    except (sql.exc.ArgumentError, ValueError):
        raise ConfigError(f"storage {_shown(url)!r} is no SQL URL") from None
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
        return None
    engine = open_database(url)
    _refuse_old(engine, experiment)
    return Store(engine, experiment) if sql.inspect(engine).has_table(_measurements.name) else None


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


def _refuse_old(engine: sql.Engine, experiment: str) -> None:
    """Raises ExperimentError where the experiment is of a format that this version does not read."""
    inspector = sql.inspect(engine)
    found: int | None = None
    if inspector.has_table(_experiments.name):
        query = sql.select(_experiments.c.format).where(_experiments.c.experiment == experiment)
        with engine.connect() as connection:
            found = connection.execute(query).scalar()
    elif inspector.has_table(_OLD.name):
        with engine.connect() as connection:
            old = connection.execute(sql.select(_OLD.c.study).where(_OLD.c.study == experiment).limit(1)).scalar()
        found = None if old is None else 1
    if found not in (None, FORMAT):
        raise ExperimentError(
            f"experiment {experiment!r} has format {found}, and this version reads format {FORMAT}; finish it with the "
            "version that began it, or give the new one another --name"
        )


class Store:
    """The record of one experiment."""

    def __init__(
        self, engine: sql.Engine, experiment: str, guard: Callable[[sql.Connection], None] = lambda connection: None
    ) -> None:
        """Makes the tables where they are missing; raises ExperimentError where the experiment is of another format.

        `guard` is called in each writing transaction, before it writes, and raises where this process may not write.
        """
        self._engine = engine
        self._experiment = experiment
        _refuse_old(engine, experiment)
        _metadata.create_all(engine)
        self._guard = guard
        self._begun = False
        self._sequence: int | None = None

    def events(self) -> list[Event]:
        """Every proposal and measurement, in the order in which they were written."""
        events: list[tuple[int, Event]] = [*self._proposals_in_order(), *self._measurements_in_order()]
        return [event for _, event in sorted(events, key=lambda pair: pair[0])]

    # ------------------------------------------------------------------------------------------------ proposals

    def add_proposal(self, proposal: Proposal) -> None:
        """Write a proposal down. Its number must be new."""
        self._begin()
        row = {
            "experiment": self._experiment,
            "number": proposal.number,
            "sequence": self._next_sequence(),
            "draw": proposal.draw,
            "draws": proposal.draws,
            "architecture": proposal.architecture,
            "key": proposal.key,
            "parameters": json.dumps(dict(proposal.parameters)),
            "distributions": json.dumps(dict(proposal.distributions)),
            "origin": proposal.origin,
            "status": proposal.status,
            "excess": json.dumps(dict(proposal.excess)),
            "cause": proposal.cause,
            "attributes": json.dumps(dict(proposal.attributes)),
            "created": proposal.created,
        }
        with self._writing() as connection:
            connection.execute(_proposals.insert().values(row))

    def proposals(self) -> list[Proposal]:
        """Every proposal, by its number."""
        return sorted((one for _, one in self._proposals_in_order()), key=lambda one: one.number)

    def _proposals_in_order(self) -> list[tuple[int, Proposal]]:
        query = sql.select(_proposals).where(_proposals.c.experiment == self._experiment)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            (
                row["sequence"],
                Proposal(
                    number=row["number"],
                    draw=row["draw"],
                    draws=row["draws"],
                    architecture=row["architecture"],
                    key=row["key"],
                    parameters=json.loads(row["parameters"]),
                    distributions=json.loads(row["distributions"]),
                    origin=row["origin"],
                    status=row["status"],
                    excess=json.loads(row["excess"]),
                    cause=row["cause"],
                    attributes=json.loads(row["attributes"]),
                    created=row["created"],
                ),
            )
            for row in rows
        ]

    def trials(self) -> dict[str, int]:
        """The number of the trial that made each architecture a candidate, by key."""
        columns = _proposals.c
        query = sql.select(columns.key, columns.number).where(
            columns.experiment == self._experiment, columns.status == "candidate"
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(columns.number.desc())).all()
        return {row.key: row.number for row in rows}

    # --------------------------------------------------------------------------------------------- measurements

    def add(self, measurement: Measurement) -> bool:
        """Write a measurement down. False, and nothing changed, when it stood there already."""
        self._begin()
        row = {
            "experiment": self._experiment,
            "key": measurement.key,
            "rung": measurement.rung,
            "seed": measurement.seed,
            "sequence": self._next_sequence(),
            "architecture": measurement.architecture,
            "status": measurement.status,
            "signals": json.dumps(dict(measurement.signals)),
            "cost": json.dumps(dict(measurement.cost)),
            "towers": json.dumps(measurement.towers),
            "cause": measurement.cause,
            "curve": json.dumps(measurement.curve),
            "traceback": measurement.traceback,
            "created": measurement.created,
        }
        try:
            with self._writing() as connection:
                connection.execute(_measurements.insert().values(row))
        except sql.exc.IntegrityError:
            return False
        return True

    def get(self, key: str, rung: str, seed: int) -> Measurement | None:
        """The measurement of (architecture, rung, seed), if there is one."""
        columns = _measurements.c
        found = self._measurements_in_order(columns.key == key, columns.rung == rung, columns.seed == seed)
        return found[0][1] if found else None

    def measurements(self) -> list[Measurement]:
        """Every measurement, in the order in which they were written."""
        return [one for _, one in self._measurements_in_order()]

    def all(self) -> list[Entry]:
        """Every measurement with its candidate's trial, in the order of the trials; references come last."""
        trials = self.trials()
        entries = [Entry(one, trials.get(one.key)) for one in self.measurements()]
        return sorted(entries, key=lambda entry: (entry.trial is None, entry.trial or 0))

    def _measurements_in_order(self, *conditions: sql.ColumnElement[bool]) -> list[tuple[int, Measurement]]:
        columns = _measurements.c
        query = sql.select(_measurements).where(columns.experiment == self._experiment, *conditions)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(columns.sequence)).mappings().all()
        return [
            (
                row["sequence"],
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
                    curve=tuple((step, loss) for step, loss in json.loads(row["curve"])),
                    traceback=row["traceback"],
                    created=row["created"],
                ),
            )
            for row in rows
        ]

    # ------------------------------------------------------------------------------------------------ decisions

    def set_fact(self, name: str, value: Any) -> None:
        """Remember a JSON value under a name, in place of what was there."""
        self._begin()
        with self._writing() as connection:
            where = (_decisions.c.experiment == self._experiment) & (_decisions.c.name == name)
            connection.execute(_decisions.delete().where(where))
            row = {"experiment": self._experiment, "name": name, "value": json.dumps(value)}
            connection.execute(_decisions.insert().values(row))

    def fact(self, name: str, default: Any = None) -> Any:
        """What was remembered under a name."""
        with self._engine.connect() as connection:
            where = (_decisions.c.experiment == self._experiment) & (_decisions.c.name == name)
            text = connection.execute(sql.select(_decisions.c.value).where(where)).scalar()
        return default if text is None else json.loads(text)

    # ---------------------------------------------------------------------------------------------------- format

    @contextmanager
    def _writing(self) -> Iterator[sql.Connection]:
        """A transaction in which this process may write."""
        with self._engine.begin() as connection:
            self._guard(connection)
            yield connection

    def _next_sequence(self) -> int:
        """The place of the next event; only one driver writes."""
        if self._sequence is None:
            tables = (_proposals, _measurements)
            queries = [sql.select(sql.func.max(t.c.sequence)).where(t.c.experiment == self._experiment) for t in tables]
            with self._engine.connect() as connection:
                places = [connection.execute(query).scalar() for query in queries]
            self._sequence = max((place for place in places if place is not None), default=-1)
        self._sequence += 1
        return self._sequence

    def _begin(self) -> None:
        """Note the format of the experiment with its first write."""
        if self._begun:
            return
        where = _experiments.c.experiment == self._experiment
        with self._writing() as connection:
            if connection.execute(sql.select(_experiments.c.format).where(where)).scalar() is None:
                connection.execute(_experiments.insert().values(experiment=self._experiment, format=FORMAT))
        self._begun = True


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_CURVE_POINTS) -> Curve:
    """A curve of at most `most` points: each is the mean of those that it replaces, at the place of the last one."""
    size = -(-len(points) // most) if points else 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((part[-1][0], sum(value for _, value in part) / len(part)) for part in parts)
