"""The calibration report: its statistics against other implementations, closed forms and planted truths."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from truths import COST, synthetic

from nas.errors import InputError
from nas.proxy_fidelity.calibration import Report, calibrate, proxy_tau, rankers, read, recommend, tau
from nas.proxy_fidelity.calibration.agreement import agreement, bootstrap, estimate, filled
from nas.proxy_fidelity.calibration.analysis import groups_of
from nas.proxy_fidelity.calibration.arms import pairs
from nas.proxy_fidelity.calibration.ceiling import Parts, ceilings, decompose, expected, expected_on_top
from nas.proxy_fidelity.calibration.rankers import FOLDS, cross_fitted, features, folds
from nas.proxy_fidelity.calibration.table import costs, done, is_free, less_is_better, series_of, truth_of

FEW = 60


@pytest.fixture(scope="module", autouse=True)
def quick_rankers() -> Iterator[None]:
    """One repetition and small trees: what is tested is what is made of rankers, not how good they are."""

    def small() -> Any:
        return rankers._boosting().set_params(max_iter=3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rankers, "MODELS", {"ridge": (rankers._ridge, 1, 0), "boosting": (small, 1, 30)})
        yield


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic(60)


@pytest.fixture(scope="module")
def report(table: pd.DataFrame) -> Report:
    return calibrate(table, resamples=FEW)


def row(frame: pd.DataFrame, **wanted: Any) -> dict[str, Any]:
    """The only row with these values."""
    chosen = frame
    for name, value in wanted.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1, (wanted, len(chosen))
    return {str(name): value for name, value in chosen.iloc[0].items()}


# ----------------------------------------------------------------------------------------------- tau and rho


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=25))
@settings(max_examples=150, deadline=None)
def test_tau_and_rho_are_scipys_also_with_ties(points: list[tuple[int, int]]) -> None:
    x, y = np.array(points, float).T
    found, rho = agreement(x[None], y, np.ones(len(x)))
    np.testing.assert_allclose(found[0], stats.kendalltau(x, y).statistic, atol=1e-6)
    if np.ptp(x) and np.ptp(y):
        np.testing.assert_allclose(rho[0], stats.spearmanr(x, y).statistic, atol=1e-6)
    else:
        assert np.isnan(rho[0])


def test_a_missing_score_is_as_if_the_architecture_were_not_there() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 9, (2, 30)).astype(float)
    holed = np.where(np.arange(30) % 4 == 0, np.nan, x)
    there = ~np.isnan(holed)
    found, rho = agreement(np.stack([x, holed]), y, np.ones(30))
    np.testing.assert_allclose(found, [tau(x, y), tau(x[there], y[there])], atol=1e-6)
    np.testing.assert_allclose(rho[1], stats.spearmanr(x[there], y[there]).statistic, atol=1e-6)
    assert tau(x, np.where(there, y, np.nan)) == pytest.approx(tau(x[there], y[there]), abs=1e-6)


def test_pairs_of_copies_do_not_count() -> None:
    """By hand: a, b, c with scores 1, 2, 3 and truths 1, 3, 2; a is drawn twice, b once, c three times."""
    concordant = 2 * 1 + 2 * 3  # a-b, a-c
    discordant = 1 * 3  # b-c
    found = tau([1, 2, 3], [1, 3, 2], [2, 1, 3])
    assert found == pytest.approx((concordant - discordant) / (concordant + discordant))
    copies = stats.kendalltau([1, 1, 2, 3, 3, 3], [1, 1, 3, 2, 2, 2], variant="b").statistic
    assert found == pytest.approx(copies), "tau-b takes copies as ties in both, which do not count either"


def test_rho_takes_copies_as_ties() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.standard_normal((2, 20))
    times = generator.integers(0, 4, 20)
    rho = agreement(x[None], y, times.astype(float))[1][0]
    assert rho == pytest.approx(stats.spearmanr(np.repeat(x, times), np.repeat(y, times)).statistic, abs=1e-5)


def test_an_architecture_with_fewer_seeds_gives_one_again() -> None:
    nan = np.nan
    found = filled(np.array([[1, nan, 3], [nan, nan, 5], [nan, nan, nan]]))
    np.testing.assert_array_equal(found, [[1, 3], [5, 5], [nan, nan]])


# ------------------------------------------------------------------------------------------------- bootstrap


def population_tau(spread: float, proxy: float, truth: float) -> float:
    """Of two normal variables that share a latent one (Greiner)."""
    return 2 / np.pi * np.arcsin(spread**2 / np.sqrt((spread**2 + proxy**2) * (spread**2 + truth**2)))


def test_the_interval_covers_the_tau_of_the_population() -> None:
    generator = np.random.default_rng(2)
    covered, widths, trials = 0, [], 80
    true = population_tau(1, 0.8, 0.4 / np.sqrt(2))
    for trial in range(trials):
        latent = generator.standard_normal((50, 1))
        scores = latent + 0.8 * generator.standard_normal((50, 2))
        found = proxy_tau(scores, latent + 0.4 * generator.standard_normal((50, 2)), resamples=100, seed=trial)
        covered += found.low <= true <= found.high
        widths.append(found.high - found.low)
    assert covered / trials >= 0.9
    assert np.mean(widths) < 0.35, "and is of use"


def test_the_interval_is_centred_on_the_estimate() -> None:
    """Resamples lie lower than the estimate where seeds are noisy: only their spread counts."""
    found = estimate(0.7, np.linspace(0.4, 0.6, 1001), 9)
    assert (found.low, found.high) == pytest.approx((0.605, 0.795))
    assert estimate(0.95, np.linspace(0.4, 0.6, 1001), 9).high == 1


def test_noise_of_seeds_is_in_the_interval() -> None:
    """Seeds that differ make it wider than the same mean without them."""
    generator = np.random.default_rng(3)
    latent = generator.standard_normal(40)
    noise = 0.8 * generator.standard_normal(40)
    noisy, calm = (np.stack([latent + x * noise, latent - x * noise], axis=1) for x in (1, 0))
    score = latent + 0.5 * generator.standard_normal(40)
    wide, narrow = (proxy_tau(score, truths, resamples=300) for truths in (noisy, calm))
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 1.15 * (narrow.high - narrow.low)
    assert narrow.n == 40


def test_a_perfect_and_an_absent_proxy() -> None:
    assert proxy_tau([1, 2, 3, 4], [1, 2, 3, 4], resamples=20).value == 1
    assert np.isnan(proxy_tau([1, np.nan, np.nan], [1, 2, 3], resamples=20).value)


def test_rankings_are_resampled_together() -> None:
    generator = np.random.default_rng(4)
    scores, truths = generator.standard_normal((30, 2)), generator.standard_normal((1, 30, 2))
    everyone = np.ones((1, 30), bool)
    both = bootstrap([scores, 2 * scores + 1, -scores], truths, everyone, 20, 0)
    np.testing.assert_allclose(both.taus[:, 0, 0], both.taus[:, 0, 1])
    np.testing.assert_allclose(both.taus[:, 0, 0], -both.taus[:, 0, 2], atol=1e-6)
    alone = bootstrap([scores], truths, everyone, 20, 0)
    np.testing.assert_array_equal(alone.taus[:, 0, 0], both.taus[:, 0, 0])
    assert np.ptp(alone.taus) > 0


# --------------------------------------------------------------------------------------------------- ceiling


def test_the_ceiling_is_the_closed_form_for_normal_latents() -> None:
    latent = stats.norm.ppf((np.arange(400) + 0.5) / 400)
    parts = Parts(latent, np.full(400, 2), 0.5)
    everyone = np.ones(400)
    assert expected(parts, everyone, False) == pytest.approx(population_tau(1, 0.5, 0.5 / np.sqrt(2)), abs=0.004)
    assert expected(parts, everyone, True) == pytest.approx(population_tau(1, 0, 0.5 / np.sqrt(2)), abs=0.004)
    assert expected_on_top(parts, 1.0, False, 0) == pytest.approx(expected(parts, everyone, False), abs=0.01)
    assert expected(replace(parts, noise=0.0), everyone, False) == pytest.approx(1)


def test_a_prototype_of_our_own_had_these_ceilings() -> None:
    """Noise .27 points, spread of single trainings .81: .74 for one training, .84 for a perfect predictor."""
    latent = np.sqrt(0.81**2 - 0.27**2) * stats.norm.ppf((np.arange(100) + 0.5) / 100)
    parts = Parts(latent, np.full(100, 2), 0.27)
    assert expected(parts, np.ones(100), False) == pytest.approx(0.74, abs=0.015)
    assert expected(parts, np.ones(100), True) == pytest.approx(0.84, abs=0.015)


def test_noise_and_spread_are_told_apart() -> None:
    generator = np.random.default_rng(5)
    truths = 2 * generator.standard_normal((3000, 1)) + 1.5 * generator.standard_normal((3000, 3))
    truths[1000:, 2] = np.nan
    parts = decompose(truths)
    assert parts is not None
    assert parts.noise == pytest.approx(1.5, rel=0.03)
    assert parts.spread == pytest.approx(2, rel=0.04)
    assert decompose(truths[:, :1]) is None
    one, *_ = ceilings(truths[:100], np.ones((2, 100), bool), False, 100, 0)
    assert one.low < population_tau(2, 1.5, 1.5 / np.sqrt(3)) < one.high


def test_a_training_is_held_against_the_other_seeds_only() -> None:
    """Pure noise: against a truth that it is part of, each training would rank well."""
    table = synthetic(80)
    full = table["full"]
    table.loc[full, "truth_accuracy"] = np.random.default_rng(6).random(full.sum())
    rows = done(table)
    truth = truth_of(rows)
    [full] = [one for one in series_of(rows, truth, costs(rows, truth)) if one.signal == "truth_accuracy"]
    truths = truth.apart_from(full.owners)
    assert np.isnan(truths).sum() == 160, "one of two"
    held = bootstrap([full.scores], truths, np.ones((1, 80), bool), 5, 0)
    assert abs(held.tau[0, 0]) < 0.2
    assert np.abs(held.taus).max() < 0.4
    assert tau(full.scores[:, 0], truth.accuracies.mean(1)) > 0.4, "which it would be with its own seed"
    [ceiling, _] = ceilings(truth.accuracies, np.ones((1, 80), bool), False, 2, 0)
    assert ceiling.value < 0.25


# --------------------------------------------------------------------------------------------------- rankers


def test_no_fold_shares_an_architecture_and_all_are_judged() -> None:
    for n in (8, 61):
        assert sorted(np.bincount(folds(n, 0)))[0] >= n // FOLDS
    assert (folds(40, 0) != folds(40, 1)).any()


def test_a_ranker_never_sees_the_architecture_it_judges(table: pd.DataFrame) -> None:
    """A feature that names the architecture, and a target of pure chance: only memory could rank."""
    rows = done(table)
    truth = truth_of(rows)
    chance = np.random.default_rng(7).random(truth.accuracies.shape)
    names = np.repeat(np.eye(60)[:, None, :], 2, axis=1)
    for predicted in cross_fitted(names, replace(truth, accuracies=chance), "ridge"):
        assert not tau(predicted[:, 0], chance.mean(1)) > 0.2  # NaN where all are predicted alike
    given = features(series_of(rows, truth, costs(rows, truth)), "3-none")
    assert tau(cross_fitted(given, truth, "ridge")[0][:, 0], truth.accuracies.mean(1)) > 0.35, "but it learns"


def test_a_ranker_beats_its_parts(report: Report) -> None:
    both = row(report.rankers, rung="1-none", ranker="ridge")
    assert both["tau"] > row(report.signals, rung="1-none", signal="val_loss")["tau"]
    assert both["tau"] > row(report.rankers, features="untrained", ranker="ridge")["tau"]
    assert both["gain"] == pytest.approx(both["tau"] - row(report.signals, signal="params")["tau"], abs=1e-6)


# ------------------------------------------------------------------------------------------------------ arms


def test_arms_are_paired_at_equal_cost(table: pd.DataFrame) -> None:
    rows = done(table)
    plain = rows[rows["rung"] == "1-none"].assign(rung="1-plain", equal_to="")
    other = rows[rows["rung"] == "1-none"].assign(rung="1-other", equal_to="thirds 0.3", images=500)
    both = pd.concat([plain.assign(multiply_adds=plain["multiply_adds"] * 0.95), other, rows])

    def partner(rows: pd.DataFrame) -> Any:
        return next(one for one in pairs(rows, costs(rows, truth_of(rows))) if one.rung == "1-middle-1.0")

    assert (partner(both).none, partner(both).equal_cost) == ("1-none", True)
    without = both[both["rung"] != "1-none"]
    assert (partner(without).none, partner(without).equal_cost) == ("1-plain", False)
    alone = without[without["rung"] != "1-plain"]
    assert [one.rung for one in pairs(alone, costs(alone, truth_of(alone)))] == ["3-middle-1.0"]


def test_a_planted_difference_is_found_and_none_is_not() -> None:
    errors = {"1-none": 2.5, "1-middle-1.0": 0.6, "3-none": 0.8, "3-middle-1.0": 0.8}
    found = calibrate(synthetic(80, errors=errors), resamples=FEW).towers
    planted, null = (row(found, rung=rung, of="val_loss") for rung in ("1-middle-1.0", "3-middle-1.0"))
    assert planted["difference_low"] > 0.1
    assert planted["difference"] == pytest.approx(planted["tau"] - planted["tau_none"])
    assert null["difference_low"] < 0 < null["difference_high"]
    assert set(found["of"]) == {"val_loss", "ridge", "boosting"}
    assert found["equal_cost"].all()


def test_arms_are_compared_on_the_architectures_that_both_have(table: pd.DataFrame) -> None:
    """Those that only one arm has do not enter, however well it ranks them."""
    early = table["architecture"] < f"{20:012x}"
    found = row(
        calibrate(table[~(early & (table["rung"] == "1-none"))], resamples=2).towers, none="1-none", of="val_loss"
    )
    rows = table[~early & (table["rung"] == "1-middle-1.0")]
    truth = table[table["full"]].groupby("architecture")["truth_accuracy"].mean()
    taus = [tau(-one["val_loss"], truth.loc[one["architecture"]]) for _, one in rows.groupby("seed")]
    assert found["n"] == 40
    assert found["tau"] == pytest.approx(np.mean(taus), abs=1e-6)


# ---------------------------------------------------------------------------------------------------- report


def test_taus_of_the_report_are_means_over_the_proxys_seeds(table: pd.DataFrame, report: Report) -> None:
    truth = table[table["full"]].groupby("architecture")["truth_accuracy"].mean()
    for rung, signal, sign in (("1-none", "val_loss", -1), ("3-middle-1.0", "val_accuracy", 1)):
        taus, rhos = [], []
        for seed in (1000, 1001):
            rows = table[(table["rung"] == rung) & (table["seed"] == seed)].set_index("architecture")
            taus.append(stats.kendalltau(sign * rows[signal], truth.loc[rows.index]).statistic)
            rhos.append(stats.spearmanr(sign * rows[signal], truth.loc[rows.index]).statistic)
        found = row(report.signals, rung=rung, signal=signal)
        assert found["tau"] == pytest.approx(np.mean(taus), abs=1e-6)
        assert found["rho"] == pytest.approx(np.mean(rhos), abs=1e-6)
        assert found["tau_low"] < found["tau"] < found["tau_high"]
        assert found["cost"] == pytest.approx(COST[rung])
    bins = report.bins[(report.bins["rung"] == "1-none") & (report.bins["signal"] == "val_loss")]
    assert bins["tau"].mean() == pytest.approx(row(report.signals, rung="1-none", signal="val_loss")["bins_tau"])
    assert bins["n"].tolist() == [12] * 5
    assert (bins["params_low"].to_numpy()[1:] >= bins["params_high"].to_numpy()[:-1]).all()


def test_within_bins_size_says_little_and_the_ceiling_is_above_all(report: Report) -> None:
    params = row(report.signals, signal="params")
    assert params["bins_tau"] < params["tau"] - 0.1
    assert (params["cost"], params["kind"], params["gain"]) == (0, "baseline", 0)
    limit = row(report.ceiling, what="one further training", group="all")
    assert limit["tau"] < row(report.ceiling, what="a perfect predictor", group="all")["tau"]
    cheap = report.signals[report.signals["kind"] == "proxy"]
    assert (cheap["tau"] < limit["tau"]).all()
    assert cheap["of_ceiling"].to_numpy() == pytest.approx(cheap["tau"].to_numpy() / limit["tau"])
    reading = row(report.signals, kind="reading")
    assert (reading["rung"], reading["signal"], reading["cost"]) == ("full to epoch 3", "val_loss", 0.15)


def test_the_top_tenth_is_the_best_by_truth() -> None:
    truth = truth_of(done(synthetic(60)))
    top = groups_of(truth)[-1]
    assert top.sum() == 6
    assert truth.accuracies.mean(1)[top].min() > truth.accuracies.mean(1)[~top].max()
    small = calibrate(synthetic(30), resamples=2)
    assert small.signals["top_tau"].isna().all()
    assert any("top tenth" in note for note in small.notes)


def test_other_full_trainings_are_not_mixed_into_the_truth(table: pd.DataFrame) -> None:
    longer = table[table["full"] & (table["seed"] == 0)].head(20).assign(rung="full-longer", truth_accuracy=0.5)
    longer["truth_accuracy"] += np.arange(20) / 100
    rows = pd.concat([longer, table])
    truth, plain = truth_of(rows), truth_of(table)
    assert truth.rung == "full"
    np.testing.assert_array_equal(truth.accuracies, plain.accuracies)
    found = calibrate(rows, resamples=2)
    assert row(found.signals, rung="full-longer", signal="truth_accuracy")["n"] == 20
    assert any("full-longer" in note for note in found.notes)


def test_failures_are_left_out_and_counted(table: pd.DataFrame) -> None:
    table = table.copy()
    table.loc[table.index[1], ["status", "val_loss"]] = ["failed", 1e9]
    assert any(note.startswith("1 of ") for note in calibrate(table, resamples=2).notes)


def test_without_a_second_seed_there_is_no_ceiling() -> None:
    found = calibrate(synthetic(30, full_seeds=1), resamples=5)
    assert found.ceiling["tau"].isna().all()
    assert found.signals["of_ceiling"].isna().all()
    assert recommend(found).wanted == 0.6
    with pytest.raises(InputError, match="two seeds"):
        recommend(found, of_ceiling=0.85)


def test_which_signals_are_better_when_less() -> None:
    less = ["val_loss", "averaged_val_loss_epoch3", "tse", "tse_ema", "tower_gap", "tower3_val_loss", "train_loss"]
    assert all(map(less_is_better, less))
    more = ["val_accuracy", "params", "flops", "naswot", "synflow", "az_nas", "never heard of"]
    assert not any(map(less_is_better, more))
    assert [name for name in [*less, *more] if is_free(name)] == ["params", "flops", "naswot", "synflow", "az_nas"]


# -------------------------------------------------------------------------------------------- recommendation


def test_the_cheapest_that_reaches_is_recommended(report: Report) -> None:
    signals = report.signals.iloc[:0]
    columns = ["rung", "signal", "kind", "cost", "tau", "tau_low", "tau_high", "n"]
    signals = pd.DataFrame(
        [
            ("free", "params", "baseline", 0.0, 0.4, 0.3, 0.5, 40),
            ("a", "x", "proxy", 0.05, 0.62, 0.5, 0.7, 40),
            ("a", "y", "proxy", 0.05, 0.63, 0.5, 0.7, 39),
            ("a", "only some have it", "proxy", 0.05, 0.9, 0.8, 0.95, 20),
            ("b", "x", "proxy", 0.15, 0.7, 0.61, 0.8, 40),
            ("full", "x", "full", 0.01, 0.9, 0.9, 0.9, 40),
        ],
        columns=columns,
    )
    made = replace(report, signals=signals, rankers=report.rankers.iloc[:0])
    found = recommend(made, tau=0.6)
    assert found.reached is not None
    assert found.surely is not None
    assert (found.reached["rung"], found.reached["signal"], found.surely["rung"]) == ("a", "y", "b")
    assert "y at a (5.0% of full training), tau 0.63 [0.50, 0.70]" in found.sentence
    assert "hardly told from 0" not in found.sentence
    unsure = replace(made, ceiling=made.ceiling.assign(low=-0.1))
    assert "The ceiling itself is hardly told from 0 [-0.10, " in recommend(unsure, tau=0.6).sentence
    free = recommend(made, tau=0.3).reached
    assert free is not None
    assert free["signal"] == "params"
    nothing = recommend(made, tau=0.8)
    assert nothing.reached is None
    assert nothing.sentence.startswith("Nothing reaches tau 0.80; the best is x at b")
    limit = row(report.ceiling, what="one further training", group="all")["tau"]
    assert recommend(made).wanted == pytest.approx(0.85 * limit)
    with pytest.raises(InputError, match="not both"):
        recommend(made, tau=0.5, of_ceiling=0.5)
    with pytest.raises(InputError, match=r"got 1\.5"):
        recommend(made, tau=1.5)


# ------------------------------------------------------------------------------------------------- the command

Command = Callable[..., Any]


def test_the_command_prints_and_writes_the_same_each_time(table: pd.DataFrame, nas: Command, tmp_path: Path) -> None:
    table.to_parquet(tmp_path / "truth.parquet")
    table.to_csv(tmp_path / "truth.csv", index=False)
    words = ("calibrate", "report", "--resamples", "5", "--tau", "0.5")
    first = nas(*words, "truth.parquet", "--to", "one", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    for said in ("The ceiling", "params", "1-middle-1.0", "Towers against none", "ridge on all", "Cheapest to reach"):
        assert said in first.stdout
    second = nas(*words, "truth.csv", "--to", "two", "--json", cwd=tmp_path)
    shown = json.loads(second.stdout)
    assert len(shown["signals"]) == len(pd.read_csv(tmp_path / "one" / "signals.csv"))
    assert shown["recommendation"] in first.stdout.replace("\n", " ")
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert [name for name in names if name.endswith(".svg")] == ["proxy-truth.svg", "tau-cost.svg"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda t: t.drop(columns=["truth_accuracy", "towers"]), "lacks the columns towers, truth_accuracy"),
        (lambda t: t[~t["full"]], "no full training"),
        (lambda t: t[t["architecture"] < f"{5:012x}"], "at least 8 architectures must be trained fully"),
        (lambda t: pd.concat([t, t.tail(1)]), "measured twice: architecture 00000000003b, rung full, seed 1"),
        (lambda t: t.assign(params=np.nan), "needs its params"),
        (lambda t: t.assign(seconds="long"), "something else than numbers in seconds"),
        (lambda t: t.assign(full="perhaps"), "column full must be true or false"),
        (lambda t: t[t["full"]], "no proxy has the signal 'val_loss'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(
    spoil: Callable[[pd.DataFrame], pd.DataFrame], complaint: str, table: pd.DataFrame, nas: Command, tmp_path: Path
) -> None:
    spoil(table).to_parquet(tmp_path / "truth.parquet")
    refused = nas("calibrate", "report", "truth.parquet", "--to", "out", cwd=tmp_path)
    assert refused.returncode == 2
    assert complaint in refused.stderr
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere.parquet", "there is no truth table"),
        ("broken.parquet", "no truth table"),
        ("table.xlsx", r"a \.csv file"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"nonsense")
    (tmp_path / "table.xlsx").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=complaint):
        read(tmp_path / name)


def test_options_that_cannot_be_are_refused(table: pd.DataFrame, nas: Command, tmp_path: Path) -> None:
    table.to_parquet(tmp_path / "truth.parquet")
    (tmp_path / "file").touch()
    for words, complaint in (
        (("--signal", "beauty"), "no proxy has the signal 'beauty'; there are: val_accuracy, val_loss"),
        (("--resamples", "0"), "resamples must be at least 2"),
        (("--to", "file"), "cannot write to 'file'"),
    ):
        refused = nas("calibrate", "report", "truth.parquet", *words, cwd=tmp_path)
        assert refused.returncode == 2
        assert complaint in refused.stderr


def test_few_that_agree_prove_little() -> None:
    found = proxy_tau([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert found.value == 1
    assert found.low < 0 < found.high == 1
    opposite = proxy_tau([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert (opposite.low, opposite.high) == (-1, -found.low)


def test_other_full_trainings_are_compared_with_the_truth() -> None:
    made = synthetic(40)
    full = made[(made["rung"] == "full") & (made["seed"] == made.loc[made["rung"] == "full", "seed"].min())]
    better = full.assign(rung="full-longer", truth_accuracy=full["truth_accuracy"] + 0.01)[:20]
    reverse = full.assign(rung="full-reversed", truth_accuracy=-full["truth_accuracy"])
    again = full.assign(rung="full-again")
    truths = calibrate(pd.concat([made, better, reverse, again]), resamples=50).truths.set_index("rung")
    assert truths.loc["full-longer", "architectures"] == 20
    assert truths.loc["full-longer", "tau"] > 0.6
    assert truths.loc["full-reversed", "tau"] < -0.6
    assert truths.loc["full-longer", "tau_low"] < truths.loc["full-longer", "tau"]
    assert truths.loc["full-longer", "higher"] == pytest.approx(0.01, abs=0.005)
    # against the truth without its own seed: with it, it would agree with itself
    everything = made[made["rung"] == "full"].pivot(index="architecture", columns="seed", values="truth_accuracy")
    own, *others = (everything[seed].to_numpy() for seed in everything)
    assert truths.loc["full-again", "tau"] == pytest.approx(tau(own, np.mean(others, axis=0)))
