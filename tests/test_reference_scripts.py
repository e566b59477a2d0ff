"""The scripts behind results/reference: calibration, comparison and performance, in small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from truths import synthetic

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *words: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.slow
def test_the_reference_table_in_small(tmp_path: Path) -> None:
    words = ["collect", "--small", "--architectures", "1", "--executor", "in-process"]
    words += ["--folder", str(tmp_path), "--to", str(tmp_path)]
    assert "architecture 1/1" in run("studies/calibrate_reference.py", *words)
    table = pd.read_parquet(tmp_path / "truth.parquet")
    assert set(table["status"]) == {"done"}
    proxies = {f"{epochs}-{arm}" for epochs in (1, 3) for arm in ("middle-1.0", "thirds-0.3", "none")}
    assert set(table["rung"]) == {"free", "full", "full-towers", "full-longer"} | proxies
    assert table.loc[table["full"], "truth_accuracy"].notna().all()
    assert "architecture" not in run("studies/calibrate_reference.py", *words)  # nothing is trained twice


@pytest.mark.slow
def test_thinner_networks_in_the_place_of_the_tables_own_in_small(tmp_path: Path) -> None:
    words = ["thinner", "--small", "--architectures", "3", "--executor", "in-process"]
    run("studies/calibrate_reference.py", *words, "--folder", str(tmp_path), "--to", str(tmp_path))
    found = pd.read_csv(tmp_path / "thinner.csv").set_index(["epochs", "width"])
    assert list(found.index) == [(1, 0.5), (1, 1), (3, 0.5), (3, 1)]
    assert found.loc[(3, 0.5), "cost"] < 0.6 * found.loc[(3, 1), "cost"]
    behind = found.loc[(3, 0.5), "tau"] - found.loc[(3, 1), "tau"]
    assert found.loc[(3, 0.5), "difference"] == pytest.approx(behind, abs=1e-4)


@pytest.mark.slow
def test_loss_and_accuracy_at_the_highest_rung_in_small(tmp_path: Path) -> None:
    words = ["nine", "--small", "--architectures", "4", "--executor", "in-process"]
    words += ["--folder", str(tmp_path), "--to", str(tmp_path)]
    run("studies/calibrate_reference.py", *words)
    own = pd.read_parquet(tmp_path / "nine.parquet")["architecture"].unique()
    table = synthetic(4)
    table["architecture"] = table["architecture"].map(dict(zip(table["architecture"].unique(), own, strict=True)))
    table.to_parquet(tmp_path / "truth.parquet")
    run("studies/calibrate_reference.py", *words)
    found = pd.read_csv(tmp_path / "nine.csv").set_index(["epochs", "signal"])
    assert list(found.index) == [(epochs, one) for epochs in (1, 3, 4) for one in ("val_loss", "val_accuracy")]
    for epochs in (1, 3, 4):
        ahead = found.loc[(epochs, "val_accuracy"), "tau"] - found.loc[(epochs, "val_loss"), "tau"]
        assert found.loc[(epochs, "val_accuracy"), "difference"] == pytest.approx(ahead, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hyperband", "tpe"])
def test_the_baselines_find_something(tmp_path: Path, method: str) -> None:
    file = tmp_path / "found.json"
    words = [method, "--data", "digits", "--seconds", "1", "--workers", "1", "--to", str(file)]
    words += ["--space", '{"widths": [8, 8], "stem": [8, 8], "cells": [1, 1]}']
    run("benchmarks/baselines/optuna_search.py", *words)
    found = json.loads(file.read_text())
    assert found["trials"]["COMPLETE"] >= 1
    assert 0 < found["accuracy"] <= 1
    assert "stem" in found["architecture"]


@pytest.mark.slow
def test_searches_are_compared(tmp_path: Path) -> None:
    words = ["--small", "--folder", str(tmp_path / "work"), "--to", str(tmp_path / "report")]
    said = run("studies/compare_searches.py", *words)
    assert re.search(r"^([34])/\1 ", said, re.M)  # all were retrained; two searches may have chosen the same network
    networks = pd.read_csv(tmp_path / "report" / "networks.csv")
    assert list(networks["method"]) == ["engine", "hyperband", "tpe", "random"]
    assert networks["test_accuracy"].between(0, 1).all()
    searches = pd.read_csv(tmp_path / "report" / "searches.csv").set_index("method")
    ahead = searches.loc["engine", "accuracy"] - searches.loc["tpe", "accuracy"]
    assert searches.loc["tpe", "engine_ahead"] == pytest.approx(ahead)
    again = run("studies/compare_searches.py", *words)
    assert not re.search(r"^(run 0,|\d/\d )", again, re.M)  # nothing is done twice
    for file in (tmp_path / "work").glob("0-*.json"):  # a run that chose the same, on a machine that has no other
        file.rename(file.with_name(file.name.replace("0", "1", 1)))
    run("studies/compare_searches.py", *words, "--first", "1")
    later = pd.read_csv(tmp_path / "report" / "networks.csv").groupby(["method", "run"])["test_accuracy"].mean()
    earlier = networks.set_index(["method", "run"])["test_accuracy"]
    assert later[earlier.index].equals(earlier)
    assert list(later["tpe"].index) == [0, 1]
    trained = pd.read_parquet(tmp_path / "report" / "candidates.parquet")
    assert set(trained["method"]) == {"engine", "hyperband", "tpe"}
    assert (trained["times"].ge(1) & trained["accuracy"].between(0, 1) & trained["seconds"].gt(0)).all()
    parts = pd.read_csv(tmp_path / "report" / "searches.csv").set_index(["part", "method"])["runs"]
    assert (parts["before run 1", "tpe"], parts["from run 1 on", "tpe"], parts["from run 1 on", "random"]) == (1, 1, 1)


@pytest.mark.slow
def test_the_reference_simulations_in_small(tmp_path: Path) -> None:
    synthetic(40).to_parquet(tmp_path / "truth.parquet")
    words = ["truth", "--table", str(tmp_path / "truth.parquet"), "--repeats", "10", "--to", str(tmp_path)]
    assert "random search" in run("studies/simulate_reference.py", *words)
    rows = pd.read_csv(tmp_path / "simulations-truth.csv")
    assert rows.groupby(["towers", "policy"])["seed"].nunique().eq(10).all()
    assert rows["cost"].le(6.001).all()


@pytest.mark.slow
def test_late_promotions_in_small(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"architecture": np.repeat(np.arange(200), 3), "epochs": [4, 12, 36] * 200})
    table["params"], table["cost"] = 1000 + table["architecture"], table["epochs"] / 36
    table["score"] = generator.normal(size=200)[table["architecture"]] + generator.normal(size=600) / table["epochs"]
    table.to_csv(tmp_path / "table.csv", index=False)
    run("studies/simulate_deadline.py", "--table", str(tmp_path / "table.csv"), "--repeats", "5", "--to", str(tmp_path))
    rows = pd.read_csv(tmp_path / "simulations-deadline.csv").set_index(["time", "promotions"])
    spent = rows["newcomers"] / 9 + rows["promoted"]
    assert (spent / 2 / rows.index.get_level_values("time")).between(0.7, 1.1).all()
    assert rows["better"].between(0, 0.5).all()
    assert rows.loc[(20.0, "late"), "promoted"] > 10


@pytest.mark.slow
def test_proposals_are_tried_on_the_published_table_in_small(tmp_path: Path) -> None:
    run("studies/simulate_proposals.py", "--splits", "5", "--to", str(tmp_path))
    taus = pd.read_csv(tmp_path / "proposals-untrained.csv").set_index(["by", "seen"])["tau"]
    assert taus["sizes and choices", 40] > taus["sizes", 40]


@pytest.mark.slow
def test_searches_are_simulated_on_a_surrogate_in_small(tmp_path: Path) -> None:
    ways = ["engine", "one epoch alone, TPE"]
    words = ["--repeats", "2", "--seconds", "60", "--most", "40", "--to", str(tmp_path)]
    assert "4/4 searches" in run("studies/simulate_searches.py", "--ways", *ways, *words)
    rows = pd.read_csv(tmp_path / "simulated.csv").set_index("way")
    assert list(rows.index) == ways
    assert rows.loc["engine", "behind"] == 0
    assert 1 <= rows.loc["engine", "promoted"] < rows.loc["engine", "candidates"] < rows.loc[ways[1], "candidates"]
    assert rows["found"].between(0.8, 0.9).all()


@pytest.mark.slow
def test_the_step_under_the_glass_in_small(tmp_path: Path) -> None:
    run("benchmarks/step.py", "--small", "--to", str(tmp_path))
    [row] = pd.read_csv(tmp_path / "step.csv").to_dict("records")
    assert 0 < row["share_of_peak"] < 1
    assert sum(value for name, value in row.items() if name.startswith("share: ")) == pytest.approx(1)
    assert row["share: convolution"] > row["share: optimizer"]


@pytest.mark.slow
def test_the_driver_is_measured_in_small(tmp_path: Path) -> None:
    run("benchmarks/driver.py", "--small", "--parts", "cluster", "board", "--to", str(tmp_path))
    rows = pd.read_csv(tmp_path / "driver.csv").set_index("what")["value"]
    assert 0.5 < rows["share of 20 workers busy"] <= 1
    assert rows["seconds of 200 records"] > 0


@pytest.mark.slow
def test_searches_head_to_head_in_small(tmp_path: Path) -> None:
    run("benchmarks/search.py", "--small", "--folder", str(tmp_path))
    rows = pd.read_csv(tmp_path / "search.csv").set_index("way")
    assert set(rows.index) == {"plain", "ray-tune", "engine", "limit"}
    assert rows.loc["engine", "accuracy"] == rows.loc["limit", "accuracy"]  # the same trainings, to the last bit
    ratio = rows.loc["plain", "seconds"] / rows.loc["engine", "seconds"]
    assert rows.loc["plain", "seconds_to_engine"] == pytest.approx(ratio)
    assert "repeat 0" not in run("benchmarks/search.py", "--small", "--folder", str(tmp_path))  # nothing is done twice


@pytest.mark.slow
def test_ways_to_train_in_small_and_no_gpu_is_no_fault(tmp_path: Path) -> None:
    run("benchmarks/gpu.py", "--small", "--to", str(tmp_path))
    rows = pd.read_csv(tmp_path / "gpu.csv").set_index("way")
    assert {"stock", "+ graph", "engine", "engine, towers"} <= set(rows.index)
    assert (rows["candidate_epochs_an_hour"] > 0).all()


@pytest.mark.slow
def test_pruning_is_measured_in_small(tmp_path: Path) -> None:
    words = ["--small", "--folder", str(tmp_path / "work"), "--to", str(tmp_path / "report")]
    said = run("benchmarks/prune.py", *words)
    table = pd.read_csv(tmp_path / "report" / "prune.csv")
    names = list(dict.fromkeys(table["network"]))
    assert names[:3] == ["original", "pruned, fine-tuned", "the same, from scratch"]
    assert list(table["seed"]) == [0, 1] * len(names)
    assert table["test_accuracy"].between(0, 1).all()
    own = table[table["network"] == names[1]]
    original = table[table["network"] == names[0]]
    assert own["multiply_adds"].max() <= original["multiply_adds"].min() / 2
    assert (table[["eager_ms", "pt2_ms", "onnx_ms"]] > 0).all().all()
    assert said.count("winner, seed 0: ") == said.count("pruned, fine-tuned, seed 0: ") == 1
    again = run("benchmarks/prune.py", *words)
    assert "seed 0: " not in again  # nothing is trained twice
    assert list(pd.read_csv(tmp_path / "report" / "prune.csv")["test_accuracy"]) == list(table["test_accuracy"])


@pytest.mark.slow
def test_exported_forms_are_clocked_in_small(tmp_path: Path) -> None:
    run("benchmarks/export.py", "--networks", "1", "--images", "1", "--to", str(tmp_path))
    rows = pd.read_csv(tmp_path / "export.csv").set_index("form")
    assert set(rows.index) == {"eager", "model.pt2", "model.onnx"}
    assert rows.loc["model.onnx", "faster"] == pytest.approx(rows.loc["eager", "ms"] / rows.loc["model.onnx", "ms"])
