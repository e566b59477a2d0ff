"""Dense prediction from a folder of masks to verified files, and what of it shows on the way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from shapes import SIDE, write

import nas
import search_spaces
from nas import auxiliary
from nas import config as configuration
from nas.cli import drawing
from nas.config import DataConfig, ExportConfig, TowersConfig
from nas.data import load
from nas.errors import SpaceError
from nas.export import Facts, export, verification
from nas.leaderboard import Record
from nas.training.loop import Resident
from nas.training.task import TASKS

TOWER = {"towers.kind": "fcn", "towers.placement": [0], "towers.weight": 0.4}

SMALL: dict[str, Any] = {
    "executor.kind": "in-process",
    "space.name": "resnet",
    "space.stem": [16, 16],
    "space.blocks": [[1, 1], [1, 1]],
    "space.widths": [[8, 8], [8, 8]],
    "space.resolution": 32,
    "space.output_stride": 1,
    "space.pyramid": [1, 2, 3, 6],
    "space.dropout": 0.0,
    "proxy.epochs": 1,
    "proxy.batch_size": 16,
    "retrain.epochs": 14,
    "retrain.label_smoothing": 0.0,
    "retrain.batch_size": 8,
    "retrain.learning_rate": 0.1,
    "retrain.seeds": 1,
    "retrain.all_images": False,
    "retrain.references": False,
    "search.trials": 1,
} | TOWER


def small(folder: Path, results: Path, **keys: Any) -> nas.Experiment:
    table = SMALL | {"data.name": str(folder), "results": str(results)} | keys
    return nas.Experiment("shapes", config=configuration.read(None, (), **table))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shapes"), 200, names="background\ncircle\nsquare\n")


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> nas.Experiment:
    experiment = small(folder, tmp_path_factory.mktemp("results"))
    experiment.run()
    return experiment


def predictions(experiment: nas.Experiment, pixels: np.ndarray) -> np.ndarray:
    """Logits (N, classes, H, W) of the exported ONNX model."""
    session = onnxruntime.InferenceSession(experiment.folder / "export" / "model.onnx")
    return np.asarray(session.run(["logits"], {"pixels": pixels})[0])


def miou(found: np.ndarray, masks: np.ndarray) -> float:
    """Of three classes, class by class."""
    hits = [(found == c, masks == c) for c in range(3)]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in hits]))


def test_a_run_learns_shapes_far_beyond_the_answer_that_all_is_background(finished: nas.Experiment) -> None:
    data = load(finished.config.data)
    assert data.test is not None
    background = miou(np.zeros_like(data.test.labels), data.test.labels)
    assert 0.25 < background < 0.31
    [row] = finished.leaderboard()
    assert row.test_miou is not None
    assert row.test_miou > 2 * background
    assert row.test_accuracy is not None
    assert row.test_accuracy > 0.95


def test_the_exported_model_has_the_scores_of_its_card(finished: nas.Experiment) -> None:
    data = load(finished.config.data)
    assert data.test is not None
    logits = predictions(finished, data.test.pixels)
    assert logits.shape == (len(data.test), 3, SIDE, SIDE)
    found = logits.argmax(1)
    card = json.loads((finished.folder / "export" / "model_card.json").read_text())
    assert card["miou"]["by seed"]["0"] == pytest.approx(miou(found, data.test.labels), abs=1e-4)
    assert card["accuracy"]["by seed"]["0"] == pytest.approx((found == data.test.labels).mean(), abs=1e-4)
    assert card["output"] == "logits: float32 (N, classes, H, W)"
    assert card["classes"] == ["background", "circle", "square"]
    checks = card["verification"]["checks"]
    assert [check["file"] for check in checks] == ["model.safetensors", "model.pt2", "model.onnx"]
    assert all(check["agreement"] > 0.999 and check["images"] == len(data.test) for check in checks)
    text = (finished.folder / "export" / "MODEL_CARD.md").read_text()
    assert f"| 0 | {card['miou']['by seed']['0']:.2%} |" in text
    assert "test mIoU" in text


def test_the_program_takes_any_number_of_images(finished: nas.Experiment) -> None:
    program = torch.export.load(finished.folder / "export" / "model.pt2").module()
    for count in (1, 3):
        assert program(torch.zeros(count, 1, SIDE, SIDE, dtype=torch.uint8)).shape == (count, 3, SIDE, SIDE)


def test_snippets_of_the_card_run(finished: nas.Experiment) -> None:
    for snippet in json.loads((finished.folder / "export" / "model_card.json").read_text())["load"].values():
        where = finished.folder / "export"
        done = subprocess.run([sys.executable, "-c", snippet], cwd=where, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("['background', 'circle', 'square']")


def test_the_board_shows_the_miou(finished: nas.Experiment, nas: Callable[..., Any], tmp_path: Path) -> None:
    results = finished.folder.parent
    [row] = finished.leaderboard()
    for format, shown in (("md", f"{100 * row.test_miou:.2f} %"), ("csv", f"{row.miou}"), ("json", f"{row.miou}")):
        done = nas("leaderboard", "shapes", "--results", results, "--format", format, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "miou" in done.stdout
        assert shown in done.stdout
    table = nas("leaderboard", "shapes", "--results", results, "--sort", "test_miou", cwd=tmp_path)
    assert "test miou" in table.stdout
    done = nas("retrain", "shapes", "--results", results, cwd=tmp_path)  # trains nothing: all is there
    assert f"test accuracy {100 * row.test_accuracy:.2f} % (1), mIoU {100 * row.test_miou:.2f} %" in done.stdout


def test_boards_of_classification_have_no_miou() -> None:
    values = {"loss": 0.5, "accuracy": 0.9}
    row = Record(rank=1, name="trial 0", kind="candidate", key="a", status="done", rung="proxy", values=values)
    assert not any("miou" in column for column in drawing.columns_of([row]))
    assert "miou" not in drawing.as_markdown([row])


def test_signals_of_a_measurement(finished: nas.Experiment) -> None:
    records = finished._records()
    assert records is not None
    proxy, *retrained = (entry.measurement for entry in records.all())
    towers = {f"tower0_{name}" for name in ("loss", "accuracy", "miou", "gap")}
    towers |= {"tower_share", "tower_loss", "tower_accuracy", "tower_gap"}
    common = {"params", "flops", "train_loss", "train_accuracy", "tse", "tse_e", "tse_ema"} | towers
    assert set(proxy.signals) == common | {"val_loss", "val_accuracy", "val_miou"}
    assert [set(one.signals) for one in retrained] == [common | {"test_loss", "test_accuracy", "test_miou"}]


@pytest.mark.parametrize(
    ("pyramid", "masks", "complaint"),
    [
        ([], True, "logits (N, 3), but this data set has one label a pixel: (N, 3, 24, 24)"),
        ([1, 2], False, "logits (N, 10, 8, 8), but this data set has one label an image: (N, 10)"),
    ],
)
def test_space_and_data_of_different_tasks_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, pyramid: list[int], masks: bool, complaint: str
) -> None:
    data = folder if masks else Path("digits")
    with pytest.raises(SpaceError, match=re.escape(complaint)):
        small(data, tmp_path / "results", **{"space.pyramid": pyramid}).run()
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 47)])
def test_pyramids_export_at_any_size(shape: tuple[int, int, int], tmp_path: Path) -> None:
    ranges = {"blocks": [[1, 1]] * 2, "widths": [[8, 8]] * 2}
    space = search_spaces.load("resnet", {"pyramid": [1, 2, 3, 6], **ranges})
    architecture = space.random(0)
    network = space.build(architecture, shape, 4)
    facts = Facts(
        space="resnet",
        architecture=architecture.to_json(),
        data="noise",
        classes=tuple("abcd"),
        input_shape=shape,
        mean=(128.0,) * shape[0],
        std=(64.0,) * shape[0],
        params=1,
        flops=1,
        accuracies={0: 0.5},
        exported_seed=0,
        task="dense",
        mious={0: 0.25},
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    exported = export(network, facts, pixels, tmp_path / "export", ExportConfig())
    assert [check.images for check in exported.checks] == [3, 3, 3]
    assert "folded" in exported.card["batch norm"]
    assert "not folded" not in exported.card["batch norm"]


def test_no_more_logits_are_compared_than_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Facts("resnet", "{}", "noise", ("a", "b"), (1, 8, 8), (0.0,), (1.0,), 1, 1, {}, 0, task="dense")
    pixels = np.zeros((10, 1, 8, 8), np.uint8)
    assert len(verification.sample(pixels, facts)) == 10
    monkeypatch.setattr(verification, "MOST_LOGITS", 5 * 2 * 8 * 8)
    assert len(verification.sample(pixels, facts)) == 5
    monkeypatch.setattr(verification, "MOST_LOGITS", 1)
    assert len(verification.sample(pixels, facts)) == 2


def test_a_tower_s_loss_reaches_every_parameter_of_it_and_below_it(folder: Path) -> None:
    data = load(DataConfig(name=str(folder)))
    space = search_spaces.load(
        "resnet", {"pyramid": [1, 2, 3, 6], "output_stride": 2, "blocks": [[2, 2]] * 2, "widths": [[8, 8]] * 2}
    )
    network = space.build(space.random(0), data.input_shape, 3)
    towers = TowersConfig.model_validate({"kind": "fcn", "placement": [1], "weight": 0.4})
    model = auxiliary.supervise(network, towers, data.input_shape, 3)
    images = Resident(data.train, data.mean, data.std, torch.device("cpu"))
    _, [logits] = model(images.normalised(images.pixels[:8]))
    TASKS["dense"].loss(logits, images.labels[:8]).backward()
    reached = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    below = {name for name, _ in network.named_parameters() if name.startswith(("stem", "body.stage1"))}
    assert reached == below
    assert all(parameter.grad is not None for parameter in model.towers.parameters())


def test_pspnet_is_a_system_that_runs(folder: Path, tmp_path: Path) -> None:
    """The file as it is but for its size: one bottleneck a stage, and the tower on the third."""
    file = Path(search_spaces.__file__).parent / "systems" / "pspnet.toml"
    assignments = [
        *("space.blocks=[[1, 1], [1, 1], [1, 1], [1, 1]]", "space.widths=[[8, 8], [8, 8], [8, 8], [8, 8]]"),
        *("space.stem=[8, 8]", "towers.placement=[2]", "retrain.epochs=1", "executor.kind=in-process"),
    ]
    config = configuration.read(file, assignments, data__name=str(folder), results=str(tmp_path))
    experiment = nas.Experiment(config=config)
    exported = experiment.run()
    assert [check.agreement > 0.999 for check in exported.checks] == [True] * 3
    assert "fcn" in (experiment.folder / "config.toml").read_text()


def test_a_search_over_dense_networks_has_more_than_one_candidate(folder: Path, tmp_path: Path) -> None:
    experiment = small(
        folder,
        tmp_path,
        **{"space.blocks": [[1, 2], [1, 1]], "search.trials": 2, "proxy.epochs": 1, "proxy.images": 32},
    )
    experiment.search()
    rows = experiment.leaderboard()
    assert [row.rank for row in rows] == [1, 2]
    assert all(row.status == "done" and row.miou is not None for row in rows)
