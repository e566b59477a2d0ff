"""Replays on recorded tables: what is counted, what is found, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from nas.errors import DataError
from nas.proxy_fidelity.simulate import POLICIES, Simulation, recorded, simulate, synthetic

EPOCHS = (4, 12, 36, 108)


def rows(count: int = 200, slope: float = 0.0, noise: float = 0.5, seed: int = 0) -> pd.DataFrame:
    """Architectures whose score after full training changes by `slope` deviations per e-fold of their parameters."""
    generator = np.random.default_rng(seed)
    params = np.round(np.exp(generator.uniform(11, 17, count)))
    truth = generator.standard_normal(count) + slope * np.log(params)
    table = []
    for height, epochs in enumerate(EPOCHS):
        scores = truth + noise * (len(EPOCHS) - 1 - height) * generator.standard_normal(count)
        table.append(
            pd.DataFrame(
                {
                    "architecture": [f"network {number}" for number in range(count)],
                    "params": params,
                    "epochs": epochs,
                    "cost": epochs / EPOCHS[-1],
                    "score": scores,
                }
            )
        )
    return pd.concat(table, ignore_index=True)


def by_policy(table: pd.DataFrame, **wanted: Any) -> dict[str, dict[str, Any]]:
    simulation = Simulation(**{"budget": 6.0, "repeats": 40, **wanted})
    return {one.policy: asdict(one) for one in simulate(recorded.table(table), simulation, processes=1)}


def test_json_has_the_default_policy_first_and_nothing_else_is_printed(tmp_path: Path, nas: Callable[..., Any]) -> None:
    rows().to_csv(tmp_path / "table.csv.gz", index=False)
    done = nas("simulate", "--table", "table.csv.gz", "--repeats", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert all(list(one) == ["policy", "p_top1", "p_top05", "regret", "cost"] for one in found)
    assert [one["policy"] for one in found] == list(POLICIES)
    assert found[0]["policy"] == "ladder"
    assert all(0 <= one["p_top05"] <= one["p_top1"] <= 1 for one in found)
    assert all(one["regret"] >= 0 and 0 < one["cost"] <= 6.000001 for one in found)


def test_the_table_is_drawn(tmp_path: Path, nas: Callable[..., Any]) -> None:
    rows().to_csv(tmp_path / "table.csv", index=False)
    done = nas("simulate", "--table", "table.csv", "--repeats", "3", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0
    for word in (*POLICIES, "P(top 1 %)", "regret", "cost", "time", "200 architectures"):
        assert word in done.stdout


def test_random_search_finds_what_chance_gives() -> None:
    """20 of 200 fully trained, 2 of which are the top 1 %: 1 - (180 * 179) / (200 * 199)."""
    found = by_policy(rows(), budget=20.0, repeats=300)["random search"]
    assert found["p_top1"] == pytest.approx(0.190, abs=0.08)  # 3.5 deviations
    assert found["cost"] == pytest.approx(20)


def regret(policy: str, tables: list[pd.DataFrame]) -> float:
    """Mean regret over several tables: in a single one, luck decides."""
    return float(np.mean([by_policy(one, repeats=6)[policy]["regret"] for one in tables]))


def test_where_many_networks_share_a_few_sizes_the_ladder_is_not_far_behind_the_best_simple_rule() -> None:
    """28 sizes that lie far apart: to try them by turns leads to small ones, and finds a top network half as often."""
    results = []
    for seed in range(3):
        table = synthetic.table(synthetic.VARIANTS["operations on edges"], seed)
        assert len(np.unique(table.params)) <= 28
        assert 0.5 < kendalltau(table.scores[:, 0], table.truth).statistic < 0.7
        results.append(
            {result.policy: result.p_top1 for result in simulate(table, Simulation(6.0, 20, seed), processes=1)}
        )
    means = {policy: np.mean([result[policy] for result in results]) for policy in POLICIES}
    assert means["ladder"] > max(means.values()) - 0.15  # 60 repeats; results/reference/calibration has 300


@pytest.mark.parametrize("slope", [2.0, 0.5, 0.0])
def test_the_ladder_finds_better_ones_than_random_search(slope: float) -> None:
    tables = [rows(300, slope, noise=0.2, seed=seed) for seed in range(8)]
    assert regret("ladder", tables) < 0.8 * regret("random search", tables)


def test_a_numeric_column_known_before_training_is_made_use_of_and_text_is_not_looked_at() -> None:
    plain = [rows(300, noise=1.0, seed=seed) for seed in range(8)]
    hinted = []
    for table in plain:
        truth = table[table["epochs"] == 108].set_index("architecture")["score"]
        hinted.append(table.assign(hint=table["architecture"].map(truth), operations="conv, pool"))
    assert regret("ladder", hinted) < 0.8 * regret("ladder", plain)


def test_signals_read_during_training_are_made_use_of() -> None:
    """The score at 12 epochs is mere noise; another column says there what counts."""
    table = rows(300, noise=0.0)
    generator = np.random.default_rng(1)
    short = table["epochs"] < 108
    table["said"] = table["score"] + 0.01 * generator.standard_normal(len(table))
    table.loc[short, "score"] = generator.standard_normal(int(short.sum()))
    deaf = table.drop(columns="said")
    listening, not_listening = (by_policy(one, budget=30.0)["ladder"] for one in (table, deaf))
    assert listening["regret"] < not_listening["regret"]


def test_limits_on_parameters_are_inclusive(tmp_path: Path, nas: Callable[..., Any]) -> None:
    table = rows(60)
    sizes = np.sort(table["params"].unique())
    assert len(recorded.table(table, sizes[10], sizes[29]).params) == 20
    table.to_csv(tmp_path / "table.csv", index=False)
    words = ("simulate", "--table", "table.csv", "--repeats", "2", "--budget", "2")
    done = nas(*words, "--min-params", f"{sizes[10]:.0f}", "--max-params", f"{sizes[10]:.0f}", cwd=tmp_path)
    assert done.returncode == 0
    assert "1 architectures" in done.stdout


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 60),
    budget=st.floats(1.5, 9),
    workers=st.integers(1, 5),
    uneven=st.booleans(),
)
def test_every_training_counts(seed: int, count: int, budget: float, workers: int, uneven: bool) -> None:
    table = rows(count, seed=seed)
    if uneven:
        table["cost"] *= table["architecture"].map(
            dict(zip(table["architecture"].unique(), np.random.default_rng(seed).uniform(0.5, 1.5, count), strict=True))
        )
    for one in by_policy(table, budget=budget, repeats=2, workers=workers, seed=seed).values():
        assert 0 < one["cost"] <= budget + 1e-6
        assert one["cost"] / workers - 1e-6 <= one["makespan"] <= one["cost"] + 1e-6


def test_neither_processes_nor_the_order_of_rows_change_the_result() -> None:
    table = rows(80)
    setting = Simulation(budget=3.0, repeats=24, seed=5)
    once, twice = (simulate(recorded.table(table), setting, processes=n) for n in (1, 2))
    assert once == twice
    assert simulate(recorded.table(table.sample(frac=1, random_state=1)), setting, processes=1) == once
    assert simulate(recorded.table(table), Simulation(budget=3.0, repeats=24, seed=6), processes=1) != once


def test_the_rungs_are_those_that_cost_most_nearly_what_the_ladders_do() -> None:
    from nas.config import LadderConfig

    table = recorded.table(rows(10))
    assert Simulation(6.0).rungs(table) == [1, 3]
    assert Simulation(6.0, ladder=LadderConfig(rungs=4, factor=3)).rungs(table) == [0, 1, 2, 3]
    assert Simulation(6.0, ladder=LadderConfig(rungs=1)).rungs(table) == [3]
    single = rows(10)
    assert Simulation(6.0).rungs(recorded.table(single[single["epochs"] == 108])) == [0]


def test_architectures_without_a_score_at_some_rung_are_left_out() -> None:
    table = rows(20)
    table.loc[3, "score"] = np.nan
    assert len(recorded.table(table.drop(index=[4])).architectures) == 18


def test_what_one_rung_alone_shows_is_not_taken_as_known_before_training() -> None:
    table = rows(40)
    single = table[table["epochs"] == 108].assign(train_accuracy=lambda one: one["score"])
    assert recorded.table(single).free_names == ("params",)
    assert recorded.table(table.assign(flops=table["params"])).free_names == ("params", "flops")


def test_columns_may_have_missing_values_of_pandas_own(tmp_path: Path) -> None:
    table = rows(20)
    table.loc[3, "score"] = np.nan
    table = table.convert_dtypes().assign(flat=pd.array([True, None] * (len(table) // 2), dtype="boolean"))
    table.to_parquet(tmp_path / "table.parquet")
    found = recorded.table(recorded.read(tmp_path / "table.parquet"))
    assert len(found.architectures) == 19
    assert found.scores.dtype == np.float64
    truth = table["score"].where(table["architecture"] != "network 5")
    with pytest.raises(DataError, match="column truth of the table has empty cells"):
        recorded.table(table.assign(truth=truth))


def test_halving_spends_what_is_left_on_further_full_trainings() -> None:
    """Where networks cost differently, half a training and more would stay unspent otherwise."""
    table = rows(100)
    factors = dict(zip(table["architecture"].unique(), np.linspace(0.4, 1.6, 100), strict=True))
    table["cost"] *= table["architecture"].map(factors)
    assert by_policy(table)["successive halving"]["cost"] > 5.6


def broken(table: pd.DataFrame, how: str) -> pd.DataFrame:
    if how == "text":
        return table.assign(score="good")
    if how == "twice":
        return pd.concat([table, table[:1]])
    if how == "no column":
        return table.drop(columns="cost")
    if how == "free of charge":
        return table.assign(cost=0.0)
    if how == "two sizes":
        return table.assign(params=np.arange(len(table)) + 1)
    if how == "incomplete":
        return table.assign(score=np.where(table["epochs"] == 4, np.nan, table["score"]))
    assert how == "empty"
    return table[:0]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("text", "score"),
        ("twice", "network 0 stands in the table twice"),
        ("no column", "cost"),
        ("free of charge", "more than 0"),
        ("two sizes", "several sizes"),
        ("incomplete", "at every one of its epochs: 4, 12, 36, 108"),
        ("empty", "no rows"),
    ],
)
def test_a_bad_table_is_one_line(how: str, said: str, tmp_path: Path, nas: Callable[..., Any]) -> None:
    broken(rows(20), how).to_csv(tmp_path / "table.csv", index=False)
    done = nas("simulate", "--table", "table.csv", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "0.5"), "full training"),
        (("--budget", "nan"), "full training"),
        (("--budget", "inf"), "full trainings"),
        (("--min-params", "9", "--max-params", "8"), "more than"),
        (("--max-params", "8"), "within the limits"),
        (("--towers", "none"), "truth table"),
        (("--table", "nowhere.csv"), "nowhere.csv"),
        (("--table", "text.csv"), "text.csv"),
        (("--table", "half.csv.gz"), "half.csv.gz"),
        (("--table", "damaged.csv.gz"), "damaged.csv.gz"),
        (("--table", "none.csv.zip"), "none.csv.zip"),
    ],
)
def test_bad_options_are_one_line(words: tuple[str, ...], said: str, tmp_path: Path, nas: Callable[..., Any]) -> None:
    rows(20).to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "text.csv").write_bytes(b"\x00\xff\xfe no table")
    rows(20).to_csv(tmp_path / "whole.csv.gz", index=False)
    whole = (tmp_path / "whole.csv.gz").read_bytes()
    (tmp_path / "half.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged.csv.gz").write_bytes(whole[:60] + b"\xff" * 60 + whole[120:])
    (tmp_path / "none.csv.zip").write_bytes(b"no archive")
    done = nas("simulate", "--table", "table.csv", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_nas_bench_101(real_data: Path) -> None:
    """In short; results/reference/calibration has 1,000 repeats, over all sizes and in each tenth."""
    read = recorded.read(real_data / "nasbench101-dev.csv.gz")
    everything = by_policy(read, repeats=60)
    assert everything["ladder"]["p_top1"] >= 0.9  # .942 in 1,000 repeats
    assert everything["ladder"]["p_top1"] > everything["size-first halving"]["p_top1"] - 0.05
    params = read.drop_duplicates("architecture")["params"]
    low, high = params.quantile(0.2), params.quantile(0.3)
    tenth = {
        one.policy: one for one in simulate(recorded.table(read, low, high), Simulation(6.0, repeats=60), processes=1)
    }
    assert tenth["ladder"].p_top1 >= 0.35
    assert tenth["ladder"].p_top1 > 2 * tenth["successive halving"].p_top1
