"""A truth table is replayed as any other recorded one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from truths import synthetic

from nas.proxy_fidelity.calibration import replay
from nas.proxy_fidelity.simulate import recorded


def test_a_truth_table_is_replayed_too(tmp_path: Path, nas: Callable[..., Any]) -> None:
    file = tmp_path / "truth.parquet"
    made = synthetic(40)
    made.to_parquet(file)
    found = recorded.table(replay.as_recorded(made))
    assert found.epochs == (1.0, 3.0, 20.0)
    full = made[made["rung"] == "full"].groupby("architecture")["truth_accuracy"].mean()
    assert dict(zip(found.architectures, found.truth, strict=True)) == pytest.approx(full.to_dict())
    assert found.costs[:, -1].mean() == pytest.approx(1)
    assert {"params", "naswot"} <= set(found.free_names)
    assert "val_loss" in found.signal_names
    assert not any("truth" in name for name in (*found.free_names, *found.signal_names))
    done = nas("simulate", "--table", file, "--repeats", "2", "--budget", "4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["cost"] <= 4


def test_towers_are_chosen_among_those_of_a_truth_table(tmp_path: Path, nas: Callable[..., Any]) -> None:
    made = synthetic(20)
    none, some = (replay.as_recorded(made, towers) for towers in ("none", None))
    assert not none["score"].equals(some["score"])
    assert none["truth"].equals(some["truth"])
    made.to_parquet(tmp_path / "truth.parquet")
    none.to_csv(tmp_path / "recorded.csv")
    for table, towers in (("truth.parquet", "nowhere 9"), ("recorded.csv", "none")):
        done = nas("simulate", "--table", table, "--towers", towers, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
