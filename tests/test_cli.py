"""The command line: what is printed, what it returns, what it refuses."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = [
    *(
        "--set",
        "executor.kind=in-process",
        "--set",
        "space.name=inception",
        "--set",
        "space.widths=[8,8]",
        "--set",
        "space.stem=[8,8]",
    ),
    *("--set", "proxy.epochs=1", "--set", "retrain.epochs=1", "--set", "retrain.seeds=1", "--trials", "3"),
]


Command = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(nas: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `nas run --name first` has ended well."""
    cwd = tmp_path_factory.mktemp("cli")
    done = nas("run", "--name", "first", *SMALL, cwd=cwd)
    assert done.returncode == 0, done.stderr
    for line in ("the best of 3 candidates", "winner (trial", "random (mean of 3)", "model.onnx", "Exported to"):
        assert line in done.stdout
    assert "trial 1 " not in done.stdout.partition("the best of")[0], "no line a candidate where no terminal is"
    return cwd


def test_the_board_in_every_format(nas: Command, folder: Path) -> None:
    table = nas("leaderboard", cwd=folder)
    assert table.returncode == 0
    assert "googlenet-small" in table.stdout
    rows = json.loads(nas("leaderboard", "first", "--format", "json", cwd=folder).stdout)
    assert [row["rank"] for row in rows if row["kind"] == "candidate"] == [1, 2, 3]
    assert rows == sorted(rows, key=lambda row: row["loss"])
    read = list(csv.DictReader(io.StringIO(nas("leaderboard", "--format", "csv", cwd=folder).stdout)))
    assert [row["key"] for row in read] == [row["key"] for row in rows]
    lines = nas("leaderboard", "--format", "md", cwd=folder).stdout.splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


def test_sorted_and_pareto(nas: Command, folder: Path) -> None:
    rows = json.loads(nas("leaderboard", "--format", "json", "--sort", "params", cwd=folder).stdout)
    assert [row["params"] for row in rows] == sorted(row["params"] for row in rows)
    front = json.loads(nas("leaderboard", "--format", "json", "--pareto", cwd=folder).stdout)
    assert {row["key"] for row in front} == {row["key"] for row in rows if row["pareto"]}
    top = json.loads(nas("leaderboard", "--format", "json", "--sort", "params", "--top", "1", cwd=folder).stdout)
    assert [row["key"] for row in top] == [
        row["key"] for place, row in enumerate(rows) if place < 1 or row["kind"] == "reference"
    ]
    wrong = nas("leaderboard", "--sort", "beauty", cwd=folder)
    assert wrong.returncode == 2
    assert "beauty" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_one_step_after_the_other_on_what_is_there(nas: Command, folder: Path) -> None:
    assert nas("show", "0", cwd=folder).stdout.count("body.cell") >= 2
    retrained = nas("retrain", "first", "--seeds", "2", cwd=folder)
    assert retrained.returncode == 0, retrained.stderr
    assert "(2)" in retrained.stdout
    exported = nas("export", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    assert "| 1 | " in (folder / "results/first/export/MODEL_CARD.md").read_text(), "the second seed's accuracy"


def test_the_printed_config_is_a_config(nas: Command, folder: Path) -> None:
    printed = nas("config", "--set", "proxy.epochs=3", cwd=folder).stdout
    assert "epochs = 3 " in printed
    assert "narrowest = 16 " in printed
    (folder / "printed.toml").write_text(printed)
    assert nas("config", "printed.toml", cwd=folder).stdout == printed


def test_lists(nas: Command, folder: Path) -> None:
    assert "inception" in nas("space", "list", cwd=folder).stdout
    assert "fashion-mnist" in nas("data", "list", cwd=folder).stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run", "--set", "proxy.epoch=3"], "proxy.epoch"),
        (["run", "--set", "proxy.epochs=zero"], "proxy.epochs"),
        (["run", "--time", "soon"], "search.time"),
        (["run", "--space", "incption"], "incption"),
        (["run", "--space", "missing.py:Space"], "missing.py"),
        (["run", "--set", "space.colour=1"], "colour"),
        (["run", "--data", "digitz"], "digitz"),
        (["run", "--data", "fashion-mnist", "--data-dir", "nowhere"], "nowhere"),
        (["run", "nowhere.toml"], "nowhere.toml"),
        (["leaderboard", "nobody"], "nobody"),
        (["run", "--set", "towers.placement=[40]"], "cell 40"),
        (["run", "--set", 'search.warm_start=["nobody"]'], "nobody"),
        (["run", "--set", "storage=nosuch://x"], "storage"),
        (["run", "--set", "export.opset=99"], "export.opset"),
        (["calibrate", "collect", "--to", __file__], "is a file"),
        (["calibrate", "report", "none.csv", "--to", f"{__file__}/x"], "is a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(nas: Command, words: list[str], named: str, tmp_path: Path) -> None:
    in_process = ["--name", "bad", "--set", "executor.kind=in-process"] if words[0] == "run" else []
    done = nas(*words, *in_process, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "results" / "bad").exists(), "bad input writes nothing"


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nas", "--help"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    for command in ("run", "search", "leaderboard", "retrain", "export", "show", "space", "data", "config"):
        assert command in done.stdout
