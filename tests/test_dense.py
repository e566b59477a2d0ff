"""Dense prediction from a folder of masks to verified files, and what of it shows on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from shapes import write

import nas
from nas import auxiliary
from nas import config as configuration
from nas.data import load

TOWER = {"towers.kind": "fcn", "towers.placement": [0]} if "fcn" in auxiliary.KINDS else {"towers.placement": "none"}

SMALL: dict[str, Any] = {
    "executor.kind": "in-process",
    "space.name": "resnet",
    "space.stem": [16, 16],
    "space.blocks": [[1, 1], [1, 1]],
    "space.widths": [[8, 8], [8, 8]],
    "space.step": 8,
    "space.resolution": 32,
    "space.output_stride": 2,
    "space.pyramid": [1, 2, 3, 6],
    "space.dropout": 0.0,
    "proxy.epochs": 2,
    "proxy.batch_size": 16,
    "retrain.epochs": 12,
    "retrain.batch_size": 16,
    "retrain.seeds": 2,
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


def test_a_run_learns_shapes_far_beyond_the_answer_that_all_is_background(finished: nas.Experiment) -> None:
    data = load(finished.config.data)
    assert data.test is not None
    masks = data.test.labels
    background = float((masks == 0).mean()) / 3  # the mIoU of that answer
    [row, *_] = finished.leaderboard()
    print(row)
    assert background < 0.31
    assert row.test_miou is not None
    assert row.test_miou > background + 0.25
    # Recomputed by hand from the exported model
    found = predictions(finished, data.test.pixels).argmax(1)
    ious = [((found == c) & (masks == c)).sum() / ((found == c) | (masks == c)).sum() for c in range(3)]
    card = json.loads((finished.folder / "export" / "model_card.json").read_text())
    assert card["miou"]["by seed"]["0"] == pytest.approx(np.mean(ious), abs=1e-3)
    assert card["accuracy"]["by seed"]["0"] == pytest.approx((found == masks).mean(), abs=1e-3)
