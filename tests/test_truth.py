"""Truth tables: what is collected, that it goes on where it stopped, and what stands in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import nas
import nas.data
from nas.config import Config, DataConfig, Recipe, TowersConfig, make
from nas.data import load_for_truth
from nas.errors import DataError, ExperimentError, InputError
from nas.evaluation.evaluator import SpaceSpec
from nas.progress import Event
from nas.steps import truth
from nas.store import Measurement, Store, open_database
from search_spaces.inception import InceptionArchitecture, InceptionSettings, InceptionSpace

KEYS = {
    "space": {"name": "inception", "widths": [8, 8], "stem": [8, 8], "cells": [1, 2]},
    "executor": {"kind": "in-process"},
    "proxy": {"learning_rate": 0.05, "augment": []},
}
WANTED: dict[str, Any] = {
    "architectures": 3,
    "epochs": (1,),
    "full_epochs": 2,
    "seeds": 2,
    "full_seeds": 2,
    "train": 300,
    "validation": 200,
}


def experiment(folder: Path, **keys: object) -> nas.Experiment:
    return nas.Experiment(config=make({**KEYS, "results": str(folder), **keys}))


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("truth")
    file = experiment(folder).collect(**WANTED)
    return file, pd.read_parquet(file)


def test_a_row_a_measurement_every_arm_and_seed(collected: tuple[Path, pd.DataFrame]) -> None:
    _, frame = collected
    rows = frame.groupby("rung").size().to_dict()
    assert rows == {"free": 6, "1-auto 0.3": 6, "1-none": 6, "full": 6}
    assert frame["architecture"].nunique() == 3
    assert set(frame["status"]) == {"done"}
    proxies, full = frame[~frame["full"]], frame[frame["full"]]
    assert not set(proxies["seed"]) & set(full["seed"])  # no proxy shares its initial weights with the truth
    assert set(full["epochs"]) == {2.0}
    assert full["truth_accuracy"].notna().all()
    assert proxies["truth_accuracy"].isna().all()
    assert full["averaged_val_loss_epoch1"].notna().all()
    for name, group in frame.groupby("architecture"):
        definition = InceptionArchitecture.from_json(group["definition"].iloc[0])
        assert definition.key == name
        assert sum(map(len, definition.stages)) == group["cells"].iloc[0]


def test_arms_with_and_without_towers_cost_the_same(collected: tuple[Path, pd.DataFrame]) -> None:
    _, frame = collected
    by_rung = frame.groupby("rung")["multiply_adds"].mean()
    none, towers = frame[frame["rung"] == "1-none"], frame[frame["rung"] == "1-auto 0.3"]
    assert set(none["equal_to"]) == set(towers["towers"]) == {"auto 0.3"}
    assert (towers["tower_share"] > 0).all()
    a_step = 3 * 128 * frame["flops"].max() / 2
    assert abs(by_rung["1-none"] - by_rung["1-auto 0.3"]) < a_step
    assert by_rung["free"] < by_rung["1-none"] < by_rung["full"]


def test_what_an_untrained_network_shows_stands_in_its_proxies_rows(collected: tuple[Path, pd.DataFrame]) -> None:
    _, frame = collected
    proxies = frame[~frame["full"]]
    for name in ("naswot", "synflow", "az_nas"):
        assert (proxies.groupby(["architecture", "seed"])[name].nunique() == 1).all()
    assert (frame["az_nas"].dropna() < 0).all()


def test_the_same_command_measures_nothing_twice_and_goes_on_with_more(tmp_path: Path) -> None:
    seen: list[str] = []

    def collect(**more: Any) -> pd.DataFrame:
        seen.clear()
        one = experiment(tmp_path)
        one.listen = lambda event: seen.append(event.name or "") if event.measurement is not None else None
        return pd.read_parquet(one.collect(**{**WANTED, "architectures": 1, "seeds": 1, "full_seeds": 1, **more}))

    first = collect()
    assert len(seen) == len(first) == 4
    again = collect()
    assert seen == []
    pd.testing.assert_frame_equal(first, again)
    more = collect(architectures=2)
    assert len(seen) == 4
    assert more["architecture"].iloc[0] == first["architecture"].iloc[0]
    with pytest.raises(ExperimentError, match=r"truth\.parquet' has 4 measurements that this would leave out"):
        collect()
    with pytest.raises(ExperimentError, match="began with another images"):
        collect(train=310)


def test_an_interrupted_collection_leaves_what_it_measured(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.measurement is not None and event.progress.done == 2:
            raise KeyboardInterrupt

    one = experiment(tmp_path)
    one.listen = stop
    with pytest.raises(KeyboardInterrupt):
        one.collect(**WANTED)
    assert len(pd.read_parquet(tmp_path / "inception-digits" / "calibration" / "truth.parquet")) == 2


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"architectures": 0}, "architectures must be at least 1, got 0"),
        ({"epochs": (1, 1)}, "epochs must be different numbers from 1, got 1, 1"),
        ({"epochs": (3,)}, r"a proxy of 3 epochs is longer than full training \(2\)"),
        ({"train": 1400}, "leave none for the truth"),
        ({"spread": True}, "has no measured candidates to spread over"),
    ],
)
def test_what_cannot_be_collected_is_refused_and_nothing_written(
    tmp_path: Path, wanted: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        experiment(tmp_path).collect(**{**WANTED, **wanted})
    assert not any(tmp_path.rglob("*.parquet"))
    assert not any(tmp_path.rglob("*.db"))


def test_architectures_may_be_spread_over_an_experiments_scores(tmp_path: Path) -> None:
    one = experiment(
        tmp_path, proxy={"epochs": 1, "images": 128, "augment": []}, search={"trials": 5, "warm_start": []}
    )
    one.search()
    board = [row.key for row in one.leaderboard()]
    keys = {**WANTED, "architectures": 3, "seeds": 1, "full_seeds": 1, "full_epochs": 1, "spread": True}
    frame = pd.read_parquet(one.collect(**keys))
    assert list(frame["architecture"].unique()) == [board[0], board[2], board[4]]
    with pytest.raises(InputError, match="6 architectures were asked for, but only 5 have been measured"):
        one.collect(**{**keys, "architectures": 6})


def test_arms_of_stand_ins_say_so() -> None:
    towers, recipe = TowersConfig(), Recipe(epochs=4)
    proxies = [one.rung for one in truth.arms({"auto": (towers, recipe)}, recipe, recipe, (1,), shrink=2, width=0.5)]
    assert [one.name for one in proxies] == [
        "free",
        "1-auto, shrink 2, width 0.5",
        "1-none, shrink 2, width 0.5",
        "full",
    ]
    assert [(one.shrink, one.width) for one in proxies] == [(1, 1.0), (2, 0.5), (2, 0.5), (1, 1.0)]


def test_a_space_with_too_few_architectures_is_refused() -> None:
    few = {
        "stem": (8, 8),
        "widths": (8,),
        "cells": (1, 1),
        "reduce": (0.5,),
        "five_kinds": ("5x5",),
        "pool_kinds": ("max",),
    }
    space = InceptionSpace(InceptionSettings.model_validate(few))
    with pytest.raises(InputError, match="the space has only 15 different architectures"):
        truth.random_architectures(space, 16, 0)


def test_architectures_that_cannot_be_drawn_are_passed_over() -> None:
    class Picky(InceptionSpace):
        def random(self, seed: int) -> Any:  # type: ignore[misc]  # final elsewhere
            if seed % 3 == 0:
                raise ValueError("not today")
            return super().random(seed)

    assert len(truth.random_architectures(Picky(InceptionSettings()), 6, 0)) == 6


def test_fewer_architectures_are_the_first_of_many() -> None:
    space = InceptionSpace()
    assert truth.random_architectures(space, 5, 1) == truth.random_architectures(space, 9, 1)[:5]
    assert set(truth.random_architectures(space, 9, 1)).isdisjoint(truth.random_architectures(space, 9, 2))


def test_rank_sums_by_hand() -> None:
    frame = pd.DataFrame({"architecture": list("abab"), "seed": [0, 0, 0, 0], "x": [1.0, 2.0] * 2, "y": [5.0, 3.0] * 2})
    found = truth.rank_sum(frame, ["x", "y"])
    assert list(found) == pytest.approx([np.log(0.5) + 0, 0 + np.log(0.5)] * 2)


@pytest.mark.parametrize(
    ("towers", "label"),
    [
        (TowersConfig(placement="none"), "none"),
        (TowersConfig(placement="middle", weight=1.0), "middle 1"),
        (TowersConfig(placement=(1, 3), weight=(0.3, 0.4), kind="linear"), "1,3 0.3/0.4 kind linear"),
    ],
)
def test_labels_say_where_and_how_heavy(towers: TowersConfig, label: str) -> None:
    assert truth.label(towers) == label


def test_only_the_first_architectures_may_have_an_arm(tmp_path: Path) -> None:
    data = load_for_truth(DataConfig(), 300, 200)
    spec = SpaceSpec.of("inception", {})
    arms = (truth.full_arm(Recipe(epochs=1), (), 1), truth.Arm(truth.full_arm(Recipe(epochs=2), (), 1).rung, (0,), 1))
    plan = truth.Plan(spec, data, truth.random_architectures(spec.load(), 3, 0), arms)
    assert [job.rung.epochs for job in plan.jobs()] == [1, 1, 1, 2]
    records = Store(open_database(f"sqlite:///{tmp_path / 'x.db'}"), "truth")
    assert truth.table(plan, records).empty
    job = next(iter(plan.jobs()))
    records.add(Measurement(job.architecture, job.key, job.rung.key, 0, "failed", cause="no room"))
    (row,) = truth.table(plan, records).to_dict("records")
    assert (row["status"], row["full"]) == ("failed", True)


# ------------------------------------------------------------------------------------------------ images


def test_known_sets_with_a_test_split_are_cut_in_their_own_order(real_data: Path) -> None:
    config = DataConfig(name="fashion-mnist", dir=real_data, shrink=2)
    data = load_for_truth(config, 10_000, 10_000)
    assert data.truth is not None
    assert data.test is None
    assert [len(one) for one in (data.train, data.truth, data.validation)] == [10_000, 40_000, 10_000]
    from nas.data.idx import locate, read
    from nas.data.sets import SETS

    official, _ = read(locate("fashion-mnist", SETS["fashion-mnist"], real_data))
    found = [data.train.labels, data.truth.labels, data.validation.labels]
    assert np.array_equal(np.concatenate(found), official.labels)
    square = official.pixels[0, 0, 10:12, 14:16].astype(int).sum()
    assert data.train.pixels[0, 0, 5, 7] == (square + 2) // 4
    assert data.input_shape == (1, 14, 14)


def test_other_sets_are_cut_by_class_and_keep_their_test_split_out() -> None:
    data = load_for_truth(DataConfig(), 700, 300)
    assert data.truth is not None
    whole = nas.data.load(DataConfig())
    assert whole.test is not None
    assert len(data.train) + len(data.validation) + len(data.truth) == len(whole.train) + len(whole.validation)
    assert [len(data.train), len(data.validation)] == [700, 300]
    test = {image.tobytes() for image in whole.test.pixels}
    for part in (data.train, data.validation, data.truth):
        assert not test & {image.tobytes() for image in part.pixels}
        assert np.bincount(part.labels, minlength=10).min() > len(part) / 14
    with pytest.raises(DataError, match="1438 images beside the test split: 1000 to train on and 438 for proxies"):
        load_for_truth(DataConfig(), 1000, 438)


def test_shrinking_averages_squares_and_cuts_off_what_does_not_fill_one() -> None:
    config = Config().data
    whole, small = nas.data.load(config), nas.data.load(config.model_copy(update={"shrink": 2}))
    assert small.input_shape == (1, 4, 4)
    expected = np.floor(whole.train.pixels.reshape(-1, 1, 4, 2, 4, 2).mean((3, 5)) + 0.5)
    assert np.array_equal(small.train.pixels, expected)
    assert small.fingerprint != whole.fingerprint
    with pytest.raises(DataError, match="at least 4x4"):
        nas.data.load(config.model_copy(update={"shrink": 3}))
