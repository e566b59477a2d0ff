"""What is exported of several retrainings: an ensemble in one model, and a model that may stop early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import search_spaces
from nas import auxiliary
from nas.auxiliary import Tap
from nas.config import DataConfig, ExportConfig, TowersConfig
from nas.data import load
from nas.export import EarlyExits, Ensemble, Facts, export, fold
from nas.store import Measurement, existing_store

SPACE = search_spaces.load("inception", {"widths": [8, 8], "stem": [8, 8], "cells": [2, 2]})
Command = Callable[..., Any]

KEYS = [
    *(
        "executor.kind=in-process",
        "space.name=inception",
        "space.widths=[8,8]",
        "space.stem=[8,8]",
        "space.cells=[2,2]",
        "proxy.images=256",
    ),
    *("proxy.epochs=1", "retrain.epochs=1", "retrain.images=512", "retrain.references=false"),
]
SMALL = [word for key in KEYS for word in ("--set", key)]


@pytest.fixture(scope="module")
def folder(nas: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three candidates are searched, and the best two retrained from two seeds each."""
    cwd = tmp_path_factory.mktemp("retrained")
    assert nas("search", "--name", "e", *SMALL, "--trials", "3", cwd=cwd).returncode == 0
    done = nas("retrain", "e", "--top", "2", "--seeds", "2", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "Retraining: 4 trainings of 1 epoch" in done.stdout
    return cwd


def retrained(cwd: Path) -> list[Measurement]:
    records = existing_store(f"sqlite:///{cwd}/results/e/study.db", "e")
    assert records is not None
    found = [entry.measurement for entry in records.all() if entry.measurement.rung.startswith("retrain")]
    assert len(found) == 4
    return found


def members(cwd: Path, card: dict[str, Any]) -> list[nn.Module]:
    """The networks that the card names, from the retrained weights, in the test's own words."""
    found = []
    for name in card["members"]:
        key, _, seed = name.partition(", seed ")
        [one] = [m for m in retrained(cwd) if (m.key, m.seed) == (key, int(seed))]
        network = SPACE.build(SPACE.architecture_type.from_json(one.architecture), (1, 8, 8), 10)
        [file] = (cwd / "results/e/weights").glob(f"{key}-*-{seed}.safetensors")
        network.load_state_dict(safetensors.torch.load_file(file))
        found.append(network.eval())
    return found


def answers(export_folder: Path, pixels: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The outputs of the .pt2 and of the ONNX file, by name."""
    with torch.no_grad():
        program = torch.export.load(export_folder / "model.pt2").module()(torch.from_numpy(pixels))
    one = program if isinstance(program, dict) else {"logits": program}
    session = onnxruntime.InferenceSession(export_folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    other = dict(zip(names, session.run(names, {"pixels": pixels}), strict=True))
    return [{name: np.asarray(value) for name, value in one.items()}, other]


def read_card(cwd: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((cwd / "results/e/export/model_card.json").read_text())
    return card


def test_an_ensemble_gives_the_mean_of_its_members_probabilities(nas: Command, folder: Path) -> None:
    done = nas("export", "e", "--ensemble", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    card, data = read_card(folder), load(DataConfig())
    assert data.test is not None
    networks = members(folder, card)
    assert len(networks) == 2
    board = json.loads(nas("leaderboard", "e", "--format", "json", cwd=folder).stdout)
    assert [name.partition(",")[0] for name in card["members"]] == [row["key"] for row in board[:2]], "the best two"
    mean = torch.tensor(data.mean).view(1, -1, 1, 1)
    std = torch.tensor(data.std).view(1, -1, 1, 1)
    images = (torch.from_numpy(data.test.pixels).float() - mean) / std
    with torch.no_grad():
        each = [network(images).softmax(1).double() for network in networks]
    expected = torch.stack(each).mean(0)
    assert float((each[0] - each[1]).abs().max()) > 0.01, "members too alike to tell anything"
    for found in answers(folder / "results/e/export", data.test.pixels):
        assert list(found) == ["logits"]
        given = torch.from_numpy(found["logits"]).double()
        torch.testing.assert_close(given.exp(), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(given.softmax(1), expected, atol=1e-5, rtol=0)
    right = (expected.argmax(1).numpy() == data.test.labels).mean()
    assert card["exported accuracy"] == {"logits": pytest.approx(right)}
    by_name = {f"{m.key}, seed {m.seed}": m.signals["test_accuracy"] for m in retrained(folder)}
    assert card["members"] == {name: by_name[name] for name in card["members"]}
    assert "the log of the mean probability of 2 networks: softmax gives the mean" in card["output"]
    text = (folder / "results/e/export/MODEL_CARD.md").read_text()
    assert f"| the ensemble | {right:.2%} |" in text
    assert f"the ensemble             test accuracy {100 * right:.2f} %" in done.stdout
    assert card["params"] == sum(p.numel() for network in networks for p in network.parameters())
    assert [check["agreement"] for check in card["verification"]["checks"]] == [1.0] * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ensemble", "3"], "--ensemble 3 asks for more than there are: 2 architectures are retrained"),
        (["--ensemble", "1"], "an ensemble has at least 2 members, got --ensemble 1"),
        (["--ensemble", "2", "--early-exit"], "--ensemble and --early-exit do not go together"),
    ],
)
def test_what_cannot_be_is_one_line(nas: Command, folder: Path, words: list[str], said: str) -> None:
    done = nas("export", "e", *words, cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_more_of_the_best_than_were_measured_is_one_line(nas: Command, folder: Path) -> None:
    done = nas("retrain", "e", "--top", "4", cwd=folder)
    assert (done.returncode, done.stderr.strip()) == (2, "error: --top 4 asks for more than the 3 measured by now")
    assert nas("retrain", "e", "--top", "0", cwd=folder).returncode == 2


def test_seeds_of_one_architecture_make_an_ensemble_too(nas: Command, tmp_path: Path) -> None:
    cwd = tmp_path
    assert nas("search", "--name", "e", *SMALL, "--trials", "1", cwd=cwd).returncode == 0
    assert nas("retrain", "e", "--seeds", "2", cwd=cwd).returncode == 0
    done = nas("export", "e", "--ensemble", "2", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert [name.partition(", ")[2] for name in read_card(cwd)["members"]] == ["seed 0", "seed 1"]
    done = nas("export", "e", "--ensemble", "3", cwd=cwd)
    assert done.returncode == 2
    assert "2 seeds of one architecture are retrained; `nas retrain --seeds 3`" in done.stderr


def test_early_exits_are_the_towers_as_they_were_trained(nas: Command, folder: Path) -> None:
    done = nas("export", "e", "--early-exit", cwd=folder)
    assert done.returncode == 0, done.stderr
    card, data = read_card(folder), load(DataConfig())
    assert data.test is not None
    exported = folder / "results/e/export"
    best = [m for m in retrained(folder) if m.key == SPACE.architecture_type.model_validate(card["architecture"]).key]
    first = min(best, key=lambda one: one.seed)
    [cell] = first.towers
    name = f"exit_body_cell{1 + cell // 2}{'ab'[cell % 2]}"
    heads = card["exported accuracy"]
    assert list(heads) == ["logits", name]
    assert heads["logits"] == pytest.approx(first.signals["test_accuracy"])
    assert heads[name] == pytest.approx(first.signals[f"tower{cell}_accuracy"])
    found = answers(exported, data.test.pixels)
    for outputs in found:
        assert list(outputs) == ["logits", name]
        for head, logits in outputs.items():
            assert (logits.argmax(1) == data.test.labels).mean() == pytest.approx(heads[head], abs=0.004)
    np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-4)
    assert f"| {name} | {heads[name]:.2%} |" in (exported / "MODEL_CARD.md").read_text()
    assert card["output"].startswith(f"logits, {name}: ")
    with safetensors.safe_open(exported / "model.safetensors", "pt") as file:
        network = SPACE.build(SPACE.architecture_type.model_validate(card["architecture"]), (1, 8, 8), 10)
        assert set(file.keys()) == set(network.state_dict()), "the network's file holds no tower, here neither"
    assert safetensors.torch.load_file(exported / "towers.safetensors")
    kinds = [node.op_type for node in onnx.load(exported / "model.onnx").graph.node]
    assert "BatchNormalization" not in kinds, "folded in the towers too"


def test_the_next_export_without_the_option_holds_no_tower(nas: Command, folder: Path) -> None:
    assert nas("export", "e", "--early-exit", cwd=folder).returncode == 0
    assert nas("export", "e", cwd=folder).returncode == 0
    exported = folder / "results/e/export"
    assert "towers.safetensors" not in {file.name for file in exported.iterdir()}
    assert [output.name for output in onnx.load(exported / "model.onnx").graph.output] == ["logits"]
    for file in exported.iterdir():
        assert b"towers." not in file.read_bytes() or file.suffix in (".json", ".md"), file.name


def test_the_network_s_weights_hold_no_tower_and_the_towers_have_a_file_of_their_own(folder: Path) -> None:
    files = sorted((folder / "results/e/weights").iterdir())
    assert len(files) == 8
    for file in files:
        keys = set(safetensors.torch.load_file(file))
        of_towers = file.stem.endswith("-towers")
        assert not any("tower" in key for key in keys)
        assert all(key[0].isdigit() for key in keys) == of_towers, "a ModuleList counts its towers"


def test_lost_tower_weights_are_said_and_trained_again(nas: Command, folder: Path) -> None:
    lost = sorted((folder / "results/e/weights").glob("*-0-towers.safetensors"))
    kept = {file: file.read_bytes() for file in lost}
    for file in lost:
        file.unlink()
    done = nas("export", "e", "--early-exit", cwd=folder)
    assert done.returncode == 2
    assert "`nas retrain` trains them again" in done.stderr
    assert nas("retrain", "e", "--top", "2", "--seeds", "2", cwd=folder).returncode == 0
    assert {file: file.read_bytes() for file in lost} == kept, "the same seed, the same weights"


# --------------------------------------------------------------------------------------------------- the parts


class InPlace(nn.Module):
    """A trunk that changes its first cell's output in place afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.rest, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.cell_names = ("cell", "rest")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rest(self.cell(x).relu_()).mean((2, 3)))  # type: ignore[no-any-return]


class Probe(nn.Module):
    """Reads negative values, which a rectified map has none of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(max=0).mean((2, 3))[:, :3]


FACTS = Facts("mine", "{}", "none", ("a", "b", "c"), (1, 8, 8), (0.0,), (64.0,), 1, 1, {0: 0.5}, 0)


def test_an_exit_reads_what_the_cell_gave_and_not_what_came_of_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EarlyExits(InPlace(), [Tap("cell", 4, 6, 6, False)], [Probe()]).eval()
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        found, cell = model(images), model.network.cell(images)  # type: ignore[operator]
    torch.testing.assert_close(found["exit_cell"], Probe()(cell))
    assert float(found["exit_cell"].min()) < 0
    assert not any(module._forward_hooks for module in model.modules())
    pixels = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    exported = export(model, FACTS, pixels, tmp_path / "export", ExportConfig())
    assert [check.agreement for check in exported.checks] == [1.0] * 3
    with torch.no_grad():
        wanted = model(torch.from_numpy(pixels).float() / 64)
    for outputs in answers(tmp_path / "export", pixels):
        for name, logits in outputs.items():
            np.testing.assert_allclose(logits, wanted[name].numpy(), atol=1e-4, err_msg=name)
    assert not any(module._forward_hooks for module in model.modules())


def test_early_exits_and_ensembles_fold_and_keep_what_they_compute() -> None:
    torch.manual_seed(0)
    networks = [SPACE.build(SPACE.random(seed), (1, 8, 8), 10).train() for seed in (1, 2)]
    images = torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        for network in networks:
            network(images)  # statistics far from 0 and 1
    supervised = auxiliary.supervise(networks[0], TowersConfig(placement=(0, 2), share=0.9), (1, 8, 8), 10).eval()
    exits = EarlyExits(networks[0], supervised.taps, list(supervised.towers)).eval()
    with torch.no_grad():
        logits, aside = supervised(images)
        assert [torch.equal(a, b) for a, b in zip(exits(images).values(), [logits, *aside], strict=True)] == [True] * 3
        folded, done = fold(exits)
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in exits.modules())
        assert done == f"folded: {norms} of {norms}"
        for name, value in folded(images).items():
            torch.testing.assert_close(value, exits(images)[name], atol=1e-4, rtol=0)
        both = Ensemble(networks).eval()
        mean = sum(network(images).softmax(1) for network in networks) / 2
        torch.testing.assert_close(both(images).exp(), mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(fold(both)[0](images).exp(), mean, atol=1e-5, rtol=0)
