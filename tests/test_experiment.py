"""The pipeline as a library: one experiment from `suggest` to `export`, and what must hold of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import nas
import search_spaces
from nas import config as configuration
from nas import executor
from nas.data import load
from nas.errors import ConfigError, DataError, ExperimentError, InputError, SearchError, SpaceError
from nas.evaluation.cost_model import PRIOR
from nas.progress import Event
from nas.search.candidates import Prices, work_of
from nas.steps.driver import executor_of
from nas.store import existing_store

SMALL: dict[str, Any] = {
    "executor.kind": "in-process",
    "space.name": "inception",
    "space.widths": [8, 8],
    "space.stem": [8, 8],
    "space.cells": [1, 2],
    "proxy.epochs": 1,
    "retrain.epochs": 1,
    "retrain.seeds": 2,
    "search.trials": 3,
}


def small(results: Path, name: str = "small", **keys: Any) -> nas.Experiment:
    return nas.Experiment(name, config=configuration.read(None, (), **SMALL, results=str(results)), **keys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[nas.Experiment, list[Event]]:
    """A whole run on digits, and what it told its listener."""
    events: list[Event] = []
    experiment = small(tmp_path_factory.mktemp("finished"), listen=events.append)
    experiment.run()
    return experiment, events


def test_a_run_ends_with_a_board_and_verified_files(finished: tuple[nas.Experiment, list[Event]]) -> None:
    experiment, events = finished
    rows = experiment.leaderboard()
    assert sum(row.kind == "candidate" for row in rows) == 3
    assert [row.rank for row in rows if row.kind == "candidate"] == [1, 2, 3]
    winner = next(row for row in rows if row.rank == 1)
    assert winner.test_seeds == 2
    assert winner.test_std is not None
    references = {row.name: row for row in rows if row.kind == "reference"}
    assert set(references) == {"googlenet-small", "random (mean of 3)"}
    assert all(row.test_accuracy is not None for row in references.values())
    names = {path.name for path in (experiment.folder / "export").iterdir()}
    assert {"model.pt2", "model.onnx", "model.safetensors", "architecture.json", "MODEL_CARD.md"} <= names
    assert {event.progress.stage for event in events if event.measurement} == {"search", "references", "retrain"}


def test_another_number_of_epochs_to_retrain_for_moves_no_rung_of_the_search(tmp_path: Path) -> None:
    experiment = small(tmp_path, ladder__factor=2, retrain__epochs=2, retrain__references=False)
    experiment.search(trials=4)
    before = [(row.name, row.rung) for row in experiment.leaderboard()]
    assert "x2" in dict(before).values(), "somebody was promoted"
    again = nas.Experiment.open("small", tmp_path, ["retrain.epochs=1"])
    again.retrain(seeds=1)
    after = [(row.name, "retrain" if row.test_seeds else row.rung) for row in again.leaderboard()]
    assert after == [(before[0][0], "retrain"), *before[1:]]


LOADER = """
import sys, json
import numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("nas", "search_spaces"):
            raise ImportError(f"{name} is unknown here")
sys.meta_path.insert(0, Refuse())
try:
    import nas
    raise SystemExit("nas could be imported")
except ImportError:
    pass
import onnxruntime, torch
folder, pixels = sys.argv[1], np.load(sys.argv[2])
pt2 = torch.export.load(f"{folder}/model.pt2").module()
logits = [pt2(torch.from_numpy(pixels)).detach().numpy(), pt2(torch.from_numpy(pixels[:1])).detach().numpy()]
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
logits.append(session.run(None, {"pixels": pixels})[0])
np.savez(sys.argv[3], *logits)
"""


def test_exported_files_predict_what_the_trained_network_does_where_nas_is_unknown(
    finished: tuple[nas.Experiment, list[Event]], tmp_path: Path
) -> None:
    experiment, _ = finished
    data = load(experiment.config.data)
    assert data.test is not None
    np.save(tmp_path / "pixels.npy", data.test.pixels)
    command = [sys.executable, "-I", "-c", LOADER, str(experiment.folder / "export")]
    subprocess.run([*command, str(tmp_path / "pixels.npy"), str(tmp_path / "logits.npz")], check=True, cwd=tmp_path)

    card = json.loads((experiment.folder / "export" / "architecture.json").read_text())
    weights = next((experiment.folder / "weights").glob(f"{_winner_key(experiment)}-*-0.safetensors"))

    space = search_spaces.load("inception", experiment.config.space.settings)
    architecture = space.architecture_type.model_validate(card["architecture"])
    network = space.build(architecture, data.input_shape, 10)
    network.load_state_dict(safetensors.torch.load_file(weights))  # strict: not one tower key
    mean = torch.tensor(data.mean).view(1, -1, 1, 1)
    std = torch.tensor(data.std).view(1, -1, 1, 1)
    with torch.no_grad():
        expected = network.eval()((torch.from_numpy(data.test.pixels).float() - mean) / std).numpy()
    pt2, one, onnx = np.load(tmp_path / "logits.npz").values()
    assert np.abs(pt2 - expected).max() < 1e-3
    assert np.abs(onnx - expected).max() < 1e-3
    assert np.abs(one - expected[:1]).max() < 1e-3
    assert (pt2.argmax(1) == expected.argmax(1)).all()
    assert (onnx.argmax(1) == expected.argmax(1)).all()


def _winner_key(experiment: nas.Experiment) -> str:
    return next(row.key for row in experiment.leaderboard() if row.rank == 1)


def test_no_tower_is_in_any_exported_file(finished: tuple[nas.Experiment, list[Event]]) -> None:
    import onnx

    experiment, _ = finished
    assert any(row.towers for row in experiment.leaderboard()), "no candidate carried a tower: nothing is shown here"
    folder = experiment.folder / "export"
    params = next(row.params for row in experiment.leaderboard() if row.rank == 1)
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "tower" in key]  # noqa: SIM118 - not a dictionary
    program = torch.export.load(folder / "model.pt2")
    held = sum(p.numel() for p in program.state_dict.values() if p.dim() > 0)
    assert held <= params + 2  # mean and deviation of one channel; batch norm is folded into what was there
    graph = onnx.load(folder / "model.onnx").graph
    assert not [node.name for node in graph.node if "tower" in node.name]
    assert [output.name for output in graph.output] == ["logits"]
    assert sum(node.op_type in ("Gemm", "MatMul") for node in graph.node) == 1  # the head; a tower would add two


def test_the_same_run_again_measures_nothing_and_exports_the_same(
    finished: tuple[nas.Experiment, list[Event]],
) -> None:
    experiment, _ = finished
    before = experiment.leaderboard()
    events: list[Event] = []
    again = nas.Experiment.open(experiment.config.experiment, experiment.config.results)
    again.listen = events.append
    exported = again.run()
    assert not [event for event in events if event.measurement]
    assert again.leaderboard() == before
    assert all(check.agreement == 1.0 for check in exported.checks)


def test_proxies_never_see_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nas import executor

    seen: list[tuple[str, bool]] = []
    use = executor.InProcess.use

    def spy(self: executor.InProcess, setting: Any) -> None:
        seen.append(("use", setting.data.test is not None))
        use(self, setting)

    monkeypatch.setattr(executor.InProcess, "use", spy)
    experiment = small(tmp_path, retrain__references=False, retrain__seeds=1)
    experiment.search()
    assert seen == [("use", False)]
    experiment.retrain()
    assert seen[-1] == ("use", True)


def test_more_trials_go_on_and_another_meaning_is_refused(tmp_path: Path) -> None:
    experiment = small(tmp_path, search__trials=2)
    experiment.search()
    keys = [row.key for row in experiment.leaderboard()]
    assert experiment.search(trials=4).done == 4
    assert set(keys) < {row.key for row in experiment.leaderboard()}
    with pytest.raises(ExperimentError, match=r"proxy\.learning_rate"):
        small(tmp_path, proxy__learning_rate=0.2).search()
    with pytest.raises(ExperimentError, match="seed"):
        small(tmp_path, seed=1).search()
    with pytest.raises(ExperimentError, match=r"towers\.weight"):
        small(tmp_path, towers__weight=1.0).search()


def test_where_time_is_short_steps_are_cut_and_candidates_remain(tmp_path: Path) -> None:
    keys = {"search__trials": 1, "retrain__epochs": 10_000, "retrain__seeds": 1}
    experiment = small(tmp_path, search__time=20.0, **keys)
    experiment.run()
    before = experiment.leaderboard()
    assert before[0].test_accuracy is not None

    records = existing_store(experiment.config.database, "small")
    assert records is not None
    decided = records.fact("retrain_steps")
    assert decided["steps"] > 1

    # a little more time leaves next to none: what was trained for longer stays
    small(tmp_path, search__time=20.2, **keys).run()
    assert experiment.leaderboard() == before

    records.set_fact("retrain_steps", decided | {"steps": 900_000})  # decided, not yet trained
    events: list[Event] = []
    small(tmp_path, search__time=20.4, **keys, listen=events.append).run()
    assert records.fact("retrain_steps")["steps"] < 900_000
    assert any("Little is left of search.time" in (event.text or "") for event in events)


def test_a_limit_that_a_time_budget_set_stays_where_no_time_is_given(tmp_path: Path) -> None:
    experiment = small(tmp_path, search__trials=2, retrain__references=False, retrain__seeds=1)
    experiment.search()
    before = {row.key for row in experiment.leaderboard()}
    records = existing_store(experiment.config.database, "small")
    assert records is not None
    space = search_spaces.load("inception", experiment.config.space.settings)
    prices = Prices(PRIOR, PRIOR, 32)
    steps = sorted(prices.of_whole(work_of(space, space.random(seed), (1, 8, 8), 10)) for seed in range(21))
    limit = steps[10]
    model = PRIOR.model_dump(mode="json")
    records.set_fact("cost_model", {"worker": model, "whole": model, "batch": 32, "area": 1.0, "fastest": 0.0})
    records.set_fact("slowest_step", limit)  # as `nas run --time` leaves them
    small(tmp_path, search__trials=6, retrain__references=False, retrain__seeds=1).run()
    later = [e.measurement for e in records.all() if e.trial is not None and e.measurement.key not in before]
    assert len(later) == 4
    for one in later:
        work = work_of(space, space.architecture_type.from_json(one.architecture), (1, 8, 8), 10)
        assert prices.of_whole(work) <= limit


def test_an_export_that_has_no_place_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    experiment = small(tmp_path, search__trials=1, retrain__references=False, retrain__seeds=1)
    with pytest.raises(ExperimentError, match="not retrained yet"):
        experiment.export()
    experiment.search()
    experiment.retrain()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    records = existing_store(experiment.config.database, "small")
    assert records is not None
    before = len(records.all())
    for folder, wrong in (
        ("photos", "holds 'cat.png'"),
        ("photos/cat.png", "is a file"),
        ("photos/cat.png/x", "a file"),
    ):
        with pytest.raises(InputError, match=wrong):
            experiment.export(tmp_path / folder, prune=0.5)
    with pytest.raises(ConfigError, match=r"export\.opset = 99"):
        small(tmp_path, export__opset=99).run()
    assert len(records.all()) == before


def test_where_data_lie_can_be_told_when_retraining(tmp_path: Path) -> None:
    own = nas.Experiment("mine", data="photos/", results=str(tmp_path))
    own.folder.mkdir()
    (own.folder / "config.toml").write_text(configuration.explained(own.config))
    moved = nas.Experiment.to_retrain("mine", tmp_path, data="photos", data_dir=tmp_path / "disk")
    assert moved.config.experiment == "mine"
    assert moved.config.data.dir == tmp_path / "disk"


def test_a_retraining_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    experiment = small(tmp_path, search__trials=1, retrain__references=False, retrain__seeds=1)
    experiment.search()
    experiment.retrain()
    before = experiment.leaderboard()
    assert before[0].test_accuracy is not None
    with pytest.raises(SearchError, match="the winner could not be retrained"):
        small(tmp_path, search__trials=1, retrain__references=False, retrain__learning_rate=1e30).retrain()
    assert experiment.leaderboard() == before
    assert experiment.export().checks


def test_the_same_images_by_another_path_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits = load(configuration.DataConfig())
    for name, images in (("one.npz", digits.train), ("other.npz", digits.validation)):
        np.savez(tmp_path / name, images=images.pixels, labels=images.labels)
    small(tmp_path / "results", data="one.npz", search__trials=1).search()
    assert small(tmp_path / "results", data=str(tmp_path / "one.npz"), search__trials=2).search().done == 2
    with pytest.raises(ExperimentError, match=r"data\.name .*the images"):
        small(tmp_path / "results", data="other.npz").search()


def test_a_search_whose_time_is_spent_says_so(tmp_path: Path) -> None:
    small(tmp_path, search__trials=1).search()
    events: list[Event] = []
    assert small(tmp_path, search__trials=2, search__time=0.001, listen=events.append).search().done == 1
    assert any("search.time" in (event.text or "") for event in events)


def test_a_plan_for_time_counts_on_retrainings_of_one_process_unless_told() -> None:
    timed = configuration.SearchConfig(time=60)
    four = configuration.ExecutorConfig(retrain_workers=4, threads=2)
    assert executor_of(configuration.Config()).retrain_workers is None
    assert executor_of(configuration.Config(search=timed)).retrain_workers == 1
    assert executor_of(configuration.Config(search=timed, executor=four)) == four


def test_an_export_may_happen_on_another_machine_than_the_search(
    finished: tuple[nas.Experiment, list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = executor.start

    def with_a_gpu(config: configuration.ExecutorConfig) -> executor.Executor:
        pool = start(config)
        pool.on_gpu = True
        return pool

    monkeypatch.setattr(executor, "start", with_a_gpu)
    assert finished[0].export(tmp_path / "export").checks


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="no search space 'incption'"):
        small(tmp_path, space="incption").search()
    with pytest.raises(ConfigError):
        small(tmp_path, search__trials=-1)
    with pytest.raises(DataError, match="digitz"):
        small(tmp_path, data="digitz").search()
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_yet_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no experiment"):
        nas.Experiment.open(None, tmp_path)
    experiment = small(tmp_path, search__trials=1)
    assert experiment.leaderboard() == []
    experiment.search()
    with pytest.raises(ExperimentError, match="not retrained yet"):
        experiment.export()
    with pytest.raises(ExperimentError, match="nothing to show for '99'"):
        experiment.show("99")


def test_show_draws_what_the_board_counts(finished: tuple[nas.Experiment, list[Event]]) -> None:
    experiment, _ = finished
    row = next(row for row in experiment.leaderboard() if row.rank == 1)
    for what in (row.key, row.name.removeprefix("trial ")):
        shown = experiment.show(what)
        assert (shown.architecture.key, shown.params, shown.flops) == (row.key, row.params, row.flops)
        assert sum(params for _, _, params, _ in shown.cells) < shown.params


OWN_SPACE = '''
import torch
from torch import nn

from nas.space import Architecture, SearchSpace


class Stack(Architecture):
    widths: tuple[int, ...]
    kernel: int


class Block(nn.Module):
    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(self.conv(x))


class Network(nn.Module):
    def __init__(self, architecture, channels, classes):
        super().__init__()
        self.blocks = nn.ModuleList()
        for width in architecture.widths:
            self.blocks.append(Block(channels, width, architecture.kernel))
            channels = width
        self.cell_names = [f"blocks.{i}" for i in range(len(self.blocks))]
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).relu_()  # in place, after the tap
        return self.head(x.mean((2, 3)))


class Stacks(SearchSpace):
    """Stacks of convolutions of one kernel."""

    architecture_type = Stack

    def suggest(self, trial):
        widths = tuple(trial.suggest_int(f"width{i}", 4, 12, step=4) for i in range(3))
        return Stack(widths=widths, kernel=trial.suggest_categorical("kernel", [1, 3]))

    def build(self, architecture, input_shape, num_classes):
        return Network(architecture, input_shape[0], num_classes)
'''


@pytest.mark.slow
def test_a_space_of_ones_own_searches_trains_with_towers_retrains_and_exports(tmp_path: Path) -> None:
    """Over Ray, from a file that only the driver can read by its path."""
    file = tmp_path / "mine.py"
    file.write_text(OWN_SPACE)
    experiment = nas.Experiment(
        space=f"{file}:Stacks",
        results=str(tmp_path / "results"),
        proxy__epochs=1,
        retrain__epochs=1,
        retrain__seeds=1,
        search__trials=4,
    )
    exported = experiment.run()
    rows = experiment.leaderboard()
    assert experiment.config.experiment == "Stacks-digits"
    assert all(row.towers == (1,) for row in rows if row.kind == "candidate")
    assert {check.file for check in exported.checks} == {"model.safetensors", "model.pt2", "model.onnx"}


def test_the_study_is_optunas_and_there_is_none_before_the_beginning(tmp_path: Path) -> None:
    small = {
        "space.name": "inception",
        "space.widths": [8],
        "space.stem": [8, 8],
        "executor.kind": "in-process",
        "proxy.epochs": 1,
    }
    keys = {key.replace(".", "__"): value for key, value in small.items()}
    experiment = nas.Experiment("s", results=str(tmp_path / "results"), ladder__rungs=1, **keys)
    with pytest.raises(ExperimentError, match="has not begun"):
        experiment.study()
    assert not list(tmp_path.iterdir())
    experiment.search(trials=2)
    shared = nas.Experiment("other", storage=experiment.config.database, executor__kind="in-process")
    with pytest.raises(ExperimentError, match="'other' has not begun"):
        shared.study()
    done = [trial.value for trial in experiment.study().trials]
    assert None not in done
    assert sorted(done, key=float) == sorted((row.loss for row in experiment.leaderboard()), key=float)


@pytest.mark.parametrize("store", ["missing", "empty"])
@pytest.mark.parametrize("left", ["weights", "export"])
def test_a_folder_whose_store_is_gone_is_never_taken_for_a_new_experiment(
    tmp_path: Path, store: str, left: str
) -> None:
    folder = tmp_path / "lost"
    (folder / left).mkdir(parents=True)
    if store == "empty":
        (folder / "study.db").touch()
    experiment = nas.Experiment("lost", results=str(tmp_path), executor__kind="in-process")
    with pytest.raises(ExperimentError, match=f"holds {left}/ of an experiment, but its store study.db is missing"):
        experiment.search(trials=1)
    assert (folder / left).is_dir()
    assert not (folder / "config.toml").exists()
