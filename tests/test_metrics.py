"""The registry of metrics: it is consistent, the rest reads it, and an added metric needs no other declaration."""

from __future__ import annotations

import csv
import io
import json
import re
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import Field

from nas import metrics
from nas.cli import drawing
from nas.config import Config, SearchConfig, make
from nas.errors import ConfigError, InputError
from nas.evaluation.complexity import cause, in_force, read_by, violations
from nas.ladder import FREE, SIGNALS
from nas.leaderboard import Record, board, columns, sort
from nas.metrics import METRICS, Metric, named, of_signal
from nas.proxy_fidelity.calibration.table import BASELINES, is_free, less_is_better
from nas.search import study
from nas.steps.driver import MEANING
from nas.steps.truth import AZ_NAS
from nas.store import Entry, Measurement

RUNG = "proxy-0000"


def entry(trial: int, loss: float, **signals: float) -> Entry:
    signals = {"val_loss": loss, "val_accuracy": 1 - loss, "params": 1000.0, "flops": 10.0, **signals}
    return Entry(Measurement("{}", f"k{trial}", RUNG, 0, "done", signals, {"seconds": 2.0}), trial)


def shown(entries: Sequence[Entry], objective: str = "loss", others: Sequence[str] = ()) -> list[Record]:
    return board(entries, [RUNG], None, objective, {}, others)


# --------------------------------------------------------------------------------------------- consistency


def test_names_signals_and_limits_are_unique() -> None:
    for values in (
        [metric.name for metric in METRICS],
        [metric.signal for metric in METRICS if metric.signal],
        [metric.limit for metric in METRICS if metric.limit],
    ):
        assert len(values) == len(set(values))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_says_all_that_its_uses_need(metric: Metric) -> None:
    assert metric.title
    assert metric.description
    assert not metric.description.endswith(".")
    assert metric.source.startswith("nas.")
    if metric.objective or metric.board or metric.limit:
        assert metric.signal
        assert metric.direction is not None
    if metric.limit:
        assert metric.known in ("before training", "on the worker"), "limits are checked before training"
        assert metric.direction == "minimise"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_its_source_is_a_module_of_the_engine(metric: Metric) -> None:
    parts = metric.source.partition(",")[0].split(".")
    root = Path(__file__).parents[1]
    assert any(
        (root.joinpath(*parts[:depth]).with_suffix(".py")).is_file() or root.joinpath(*parts[:depth]).is_dir()
        for depth in range(2, len(parts) + 1)
    )


def test_each_limit_has_a_typed_key_that_is_explained_by_it() -> None:
    keys = {key for key in SearchConfig.model_fields if key.startswith("max_")}
    assert keys == set(metrics.limits())
    for key, metric in metrics.limits().items():
        assert (SearchConfig.model_fields[key].description or "").startswith(f"Limit on {metric.description}")


def test_every_number_of_the_board_is_declared_and_none_twice() -> None:
    types = typing.get_type_hints(Record)
    numbers = [one.name for one in fields(Record) if types[one.name] in (int, float, int | None, float | None)]
    assert "test_accuracy" in numbers
    assert {name for name in numbers if metrics.find(name) is None} == {"rank"}
    assert len(columns()) == len(set(columns()))


def test_what_rankers_and_reports_read_is_declared() -> None:
    for signal in (*FREE, *SIGNALS, *BASELINES, *AZ_NAS):
        assert of_signal(signal) is not None
    assert all(map(is_free, FREE))
    assert not any(map(is_free, SIGNALS))


# ------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("name", "signals"),
    [
        ("loss", ["val_loss", "train_loss", "test_loss", "truth_loss", "tower_loss", "tower3_loss"]),
        ("loss", ["averaged_val_loss", "averaged_val_loss_epoch4", "val_loss_epoch3"]),
        ("accuracy", ["val_accuracy", "train_accuracy", "truth_accuracy", "tower12_accuracy"]),
        ("miou", ["val_miou", "averaged_val_miou_epoch1"]),
        ("gap", ["tower_gap", "tower3_gap"]),
        ("test_accuracy", ["test_accuracy"]),
        ("gradient_norm", ["gradient_norm_cell3_step10"]),
        ("latency", ["latency_ms"]),
        ("memory", ["activation_bytes"]),
        (
            None,
            ["never heard of", "cells", "loss_of_hair", "ema", "scoring_seconds", "multiply_adds", "other_params", ""],
        ),
    ],
)
def test_the_metric_of_a_signal(name: str | None, signals: list[str]) -> None:
    assert [of_signal(signal) for signal in signals] == [name and named(name)] * len(signals)


def test_as_predictors_sizes_are_better_when_more_although_they_are_minimised() -> None:
    assert {named(name).direction for name in BASELINES} == {"minimise"}
    assert not any(map(less_is_better, BASELINES))


def test_a_score_is_better_when_higher() -> None:
    assert (named("loss").score(0.25), named("accuracy").score(0.25)) == (-0.25, 0.25)


# ------------------------------------------------------------------------------- what must not change by itself


def test_the_fingerprint_of_an_experiment_has_the_keys_that_it_always_had() -> None:
    limits = ("search.max_params", "search.max_flops", "search.max_latency", "search.max_memory")
    sections = ("seed", "space", "data", "towers", "proxy", "ladder")
    assert (*sections, "search.objectives", *limits) == MEANING
    assert Config().model_dump(mode="json")["search"]["objectives"] == ["loss"]


def test_the_limits_of_old_experiments_have_the_names_and_the_order_that_samplers_know() -> None:
    limits = SearchConfig(max_memory=4, max_latency=3, max_flops=2, max_params=1)
    stored = ["params", "flops", "latency_ms", "activation_bytes", "step_seconds"]
    assert list(in_force(limits, max_step_seconds=5.0).items()) == list(zip(stored, [1, 2, 3, 4, 5], strict=True))


def test_the_columns_of_files() -> None:
    metric_columns = ["loss", "accuracy", "miou", "params", "flops", "latency"]
    tests = ["test_accuracy", "test_std", "test_low", "test_high", "test_images", "test_miou", "test_seeds"]
    rest = ["predicted", "predicted_low", "predicted_high", "seconds", "towers", "pareto", "tied", "cause"]
    expected = ["rank", "name", "kind", "key", "status", "rung", *metric_columns, *tests, *rest]
    rows = shown([entry(0, 0.25, latency_ms=1.5)])
    assert list(rows[0].as_dict()) == expected
    assert drawing.as_csv(rows).splitlines() == [
        ",".join(expected),
        "1,trial 0,candidate,k0,done,proxy,0.25,0.75,,1000.0,10.0,1.5,,,,,,,0,,,,2.0,,True,False,",
    ]
    assert list(json.loads(drawing.as_json(rows))[0]) == expected


def test_the_columns_of_the_table() -> None:
    plain = ["rank", "name", "rung", "loss", "accuracy", "test", "params", "flops", "seconds", "towers", "key"]
    assert list(drawing.columns_of([])) == plain
    rows = shown([entry(0, 0.25, latency_ms=1.5)])
    assert list(drawing.columns_of(rows)) == plain
    assert drawing.cells(rows[0], plain) == [
        "1",
        "trial 0 *",
        "proxy",
        "0.2500",
        "75.00 %",
        "",
        "1k",
        "10",
        "2.0",
        "",
        "k0",
    ]
    dense = [*plain[:5], "miou", "test", "test miou", *plain[6:]]
    assert list(drawing.columns_of(shown([entry(0, 0.25, val_miou=0.5)]))) == dense
    predicted = board([entry(0, 0.25)], [RUNG], None, "loss", {}, (), {"k0": (0.9, 0.8, 1.0)})
    assert list(drawing.columns_of(predicted)) == [*plain[:5], "predicted", *plain[5:]]
    stopped = [Entry(Measurement("{}", "x", RUNG, 0, "failed", cause="nan"), 1)]
    assert list(drawing.columns_of(shown(stopped))) == [*plain[:8], "status", *plain[8:]]


def test_the_line_of_a_candidate() -> None:
    def line(signals: dict[str, float], towers: tuple[int, ...] = ()) -> str:
        return drawing.candidate_line(
            "trial 3", Measurement("{}", "k", RUNG, 0, "done", signals, {"seconds": 2}, towers)
        )

    sizes = {"params": 1_234_000.0, "flops": 5.6e6, "latency_ms": 3.0}
    val = {"val_loss": 0.25, "val_accuracy": 0.5, "averaged_val_loss": 9.0, "train_loss": 9.0}
    assert line(sizes | val, (1, 2)) == (
        "trial 3            loss 0.2500  accuracy 50.00 %  1.23M params  5.6M FLOPs  2.0 s  tower on 1, 2"
    )
    test = {"test_loss": 0.5, "test_accuracy": 0.75, "test_miou": 0.5}
    assert line(sizes | test) == (
        "trial 3            loss 0.5000  accuracy 75.00 %  mIoU 50.00 % (test)  "
        "1.23M params  5.6M FLOPs  2.0 s  no tower"
    )
    assert line(sizes | {"naswot": 3.0}) == "trial 3            untrained, 2.00 s"


def test_an_unknown_objective_is_refused_in_one_line_that_names_the_known_ones() -> None:
    message = "search.objectives.0: must be loss, accuracy, params, flops or latency, got 'speed'"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make({"search": {"objectives": ["speed"]}})
    for wrong in (3, None, ["loss"], "test_accuracy", "memory", "seconds"):
        with pytest.raises(ConfigError, match="must be loss, accuracy, params, flops or latency, got"):
            make({"search": {"objectives": ["loss", wrong]}})
    with pytest.raises(ConfigError, match="must begin with loss or accuracy, got params"):
        make({"search": {"objectives": ["params", "loss"]}})


# ---------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize("column", [name for name in columns() if metrics.find(name) is not None])
def test_the_board_sorts_a_metric_in_its_direction(column: str) -> None:
    metric = named(column)
    plain = {"rank": 1, "name": "n", "kind": "candidate", "key": "k", "status": "done", "rung": "proxy"}
    rows = [
        Record(**plain, **({"values": {column: value}} if metric.board else {column: value}))  # type: ignore[arg-type]
        for value in (0.5, 0.25, 1.0)
    ]
    expected = [1.0, 0.5, 0.25] if metric.direction == "maximise" else [0.25, 0.5, 1.0]
    assert [getattr(row, column) for row in sort(rows, column)] == expected


@pytest.mark.parametrize("objective", [metric.name for metric in metrics.objectives()])
def test_sampler_and_board_agree_on_what_is_better(objective: str, tmp_path: Path) -> None:
    metric = named(objective)
    [direction] = study.directions([objective])
    better = max if direction.name == "MAXIMIZE" else min
    entries = [entry(trial, 0.5, **{metric.signal: value}) for trial, value in enumerate((0.5, 0.25, 1.0))]
    first = shown(entries, objective)[0]
    assert first.rank == 1
    assert getattr(first, objective) == better(0.5, 0.25, 1.0)


# --------------------------------------------------------------------------------------------- an added metric

DEPTH = Metric(
    "depth",
    "depth",
    "layers from input to output",
    known="before training",
    source="nas.evaluation.complexity",
    direction="minimise",
    unit="count",
    signal="layers",
    objective=True,
    limit="max_depth",
    board="where measured",
)
CONFIDENCE = Metric(
    "confidence",
    "confidence",
    "mean probability of the predicted class",
    known="after training",
    source="nas.training.loop.evaluate",
    direction="maximise",
    unit="share",
    signal="val_confidence",
    objective=True,
    board="always",
)


class DepthLimited(SearchConfig):
    """The only other line that a limit takes: its typed key."""

    max_depth: int | None = Field(None, gt=0)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, DEPTH, CONFIDENCE))


@pytest.mark.usefixtures("added")
def test_an_added_metric_is_an_objective(tmp_path: Path) -> None:
    assert make({"search": {"objectives": ["confidence", "depth"]}}).search.objectives == ("confidence", "depth")
    with pytest.raises(ConfigError, match="must begin with loss or accuracy or confidence, got depth"):
        make({"search": {"objectives": ["depth"]}})
    with pytest.raises(ConfigError, match="flops, latency, depth or confidence, got 'speed'"):
        make({"search": {"objectives": ["speed"]}})
    assert [direction.name for direction in study.directions(["confidence", "depth"])] == ["MAXIMIZE", "MINIMIZE"]
    assert "layers" in read_by(DepthLimited(objectives=("loss", "depth")))


@pytest.mark.usefixtures("added")
def test_an_added_metric_is_a_limit() -> None:
    limits = DepthLimited(max_depth=20, max_params=1000)
    found = {"params": 500.0, "layers": 30.0}
    excess = violations(limits, found)
    assert excess == {"params": -0.5, "layers": 0.5}
    assert cause(excess, found) == "layers 30 is 50 % over the limit"
    assert {"params", "layers", "val_loss"} == read_by(limits)


@pytest.mark.usefixtures("added")
def test_an_added_metric_is_on_the_board() -> None:
    entries = [entry(0, 0.5, layers=30, val_confidence=0.5), entry(1, 0.4, layers=20, val_confidence=0.75)]
    rows = shown(entries, "confidence", ["depth"])
    assert [(row.name, row.depth, row.confidence, row.pareto) for row in rows] == [
        ("trial 1", 20, 0.75, True),
        ("trial 0", 30, 0.5, False),
    ]
    names = list(drawing.columns_of(rows))
    assert names == [
        *("rank", "name", "rung", "loss", "accuracy", "confidence"),
        *("test", "params", "flops", "depth", "seconds", "towers", "key"),
    ]
    assert drawing.cells(rows[0], ["confidence", "depth"]) == ["75.00 %", "20"]
    assert "depth" not in drawing.columns_of(shown([entry(0, 0.5)]))
    [first, _] = csv.DictReader(io.StringIO(drawing.as_csv(rows)))
    assert (first["depth"], first["confidence"]) == ("20.0", "0.75")
    assert [row["depth"] for row in json.loads(drawing.as_json(rows))] == [20, 30]
    assert [row.name for row in sort(rows, "depth")] == ["trial 1", "trial 0"]
    assert "confidence 50.00 %" in drawing.candidate_line("trial 0", entries[0].measurement)
    assert less_is_better("val_confidence") is False


def test_a_row_has_no_other_attributes() -> None:
    [row] = shown([entry(0, 0.5)])
    assert row.latency is None
    with pytest.raises(AttributeError, match="a row of the board has no 'depth'; it has: rank, name"):
        _ = row.depth
    with pytest.raises(InputError, match="no column 'depth'"):
        sort([row], "depth")
