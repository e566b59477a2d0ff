"""Training from given weights: what fits, what is new, what is refused; `nas retrain --init` by its commands."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import nas as library
import search_spaces
from nas import config as configuration
from nas.errors import ExperimentError, InputError
from nas.evaluation import weights
from nas.evaluation.weights import Weights, pack, read, start_from
from nas.ladder import Rung
from nas.store import existing_store

SPACE = search_spaces.load("inception", {"widths": [8, 8], "stem": [8, 8], "cells": [1, 2]})
SHAPE = (1, 8, 8)
LABELS = ("a", "b", "c", "d")
LAST = ("linear.weight", "linear.bias")

Command = Callable[..., Any]


def network(seed: int = 0, classes: int = 4, architecture: int = 5) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = SPACE.build(SPACE.random(architecture), SHAPE, classes)
        for tensor in made.buffers():
            tensor.add_(seed)
    return made


def start(given: Weights, made: torch.nn.Module, labels: tuple[str, ...] = LABELS) -> tuple[str, ...]:
    return start_from(given, made, SPACE, SPACE.random(5), SHAPE, labels)


def same(one: torch.nn.Module, other: torch.nn.Module) -> dict[str, bool]:
    there = other.state_dict()
    return {name: torch.equal(tensor, there[name]) for name, tensor in one.state_dict().items()}


def test_the_same_labels_take_every_tensor() -> None:
    given, made = network(1), network(2)
    assert start(Weights(pack(given, classes=list(LABELS))), made) == ()
    assert all(same(made, given).values())
    assert start(Weights(pack(given)), network(2)) == (), "a file that names no labels fits by their number"


@pytest.mark.parametrize("labels", [("w", "x", "y", "z"), ("a", "b"), tuple("abcdefg")], ids=len)
def test_other_labels_get_a_new_last_layer_and_nothing_else(labels: tuple[str, ...]) -> None:
    given, made, fresh = network(1), network(2, len(labels)), network(2, len(labels))
    new = start(Weights(pack(given, classes=list(LABELS))), made, labels)
    assert new == LAST
    assert {name for name, equal in same(made, fresh).items() if equal} >= set(LAST)
    taken = {name for name, equal in same(made, given).items() if equal} if len(labels) == 4 else set(LAST)
    assert len(labels) != 4 or taken == set(made.state_dict()) - set(LAST)
    held = given.state_dict()
    assert all(torch.equal(t, held[name]) for name, t in made.state_dict().items() if name not in LAST)


def test_the_first_tensor_that_does_not_fit_is_named_and_the_network_stays() -> None:
    made, before = network(2), network(2)
    tensors = dict(network(1).state_dict())
    first, *_ = [name for name in tensors if name.endswith("conv.weight")]
    wrong = dict(tensors) | {first: torch.zeros(3, 1, 3, 3)}
    with pytest.raises(InputError, match=rf"^weights 'w' do not fit: '{first}' is \(3, 1, 3, 3\) there, but \(8, 1, "):
        start(Weights(safetensors.torch.save(wrong), "w"), made)
    missing = {name: tensor for name, tensor in tensors.items() if name != "linear.bias"}
    with pytest.raises(InputError, match=r"they have no 'linear\.bias'$"):
        start(Weights(safetensors.torch.save(missing)), made)
    with pytest.raises(InputError, match=r"this network has no 'towers\.0'"):
        start(Weights(safetensors.torch.save(dict(tensors) | {"towers.0": torch.zeros(1)})), made)
    narrow = dict(tensors) | {"linear.weight": torch.zeros(4, 3)}  # another width of the last layer is no other label
    with pytest.raises(InputError, match=r"'linear\.weight' is \(4, 3\) there"):
        start(Weights(safetensors.torch.save(narrow)), made)
    folded = {"batch norm": "folded: 7 of 7"}
    with pytest.raises(InputError, match="its batch norm is folded"):
        start(Weights(safetensors.torch.save(missing, folded)), made)
    assert all(same(made, before).values())


def test_a_file_says_what_it_is_for(tmp_path: Path) -> None:
    architecture = SPACE.random(5)
    file = tmp_path / "w.safetensors"
    file.write_bytes(pack(network(1), architecture=architecture.to_json(), classes=list(LABELS)))
    found = read(file)
    assert found.architecture(type(architecture)) == architecture
    assert found.classes == list(LABELS)
    file.write_bytes(pack(network(1)))
    assert read(file).architecture(type(architecture)) is None
    (tmp_path / "architecture.json").write_text(json.dumps({"architecture": architecture.model_dump(mode="json")}))
    assert read(file).architecture(type(architecture)) == architecture
    (tmp_path / "architecture.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read(file).architecture(type(architecture))


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read weights .*No such file"):
        read(tmp_path / "nowhere")
    for content in (b"", b"weights", pack(network(1))[:-10], pickle.dumps({"a": 1})):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(InputError, match="not a safetensors file"):
            read(tmp_path / "bad")


def test_weights_are_part_of_what_names_a_training_and_cross_without_what_is_cached() -> None:
    one, other = Weights(pack(network(1))), Weights(pack(network(2)))
    assert one.digest != other.digest
    assert one.digest == Weights(one.content, "another name").digest
    plain = Rung("retrain", configuration.Recipe(epochs=1), configuration.TowersConfig(), final=True)
    keys = {Rung("retrain", plain.recipe, plain.towers, True, w.digest).key for w in (one, other)} | {plain.key}
    assert len(keys) == 3
    size = len(pickle.dumps(one))
    _ = one.tensors, one.metadata
    assert len(pickle.dumps(one)) == size
    assert pickle.loads(pickle.dumps(one)) == one


# --------------------------------------------------------------------------------------------- through the commands

SMALL = [
    *("--set", "executor.kind=in-process", "--set", "retrain.epochs=1", "--set", "retrain.images=256"),
    *("--set", "space.width=[0.125]", "--seeds", "1"),
]


@pytest.fixture(scope="module")
def folder(nas: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a system was retrained on digits and exported, and other data lie beside it."""
    cwd = tmp_path_factory.mktemp("transfer")
    done = nas("retrain", "googlenet", *SMALL, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "winner (retrained)" in done.stdout
    assert nas("export", cwd=cwd).returncode == 0
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (120, 8, 8), dtype=np.uint8)
    np.savez(cwd / "three.npz", images=pixels, labels=np.arange(120) % 3)
    return cwd


EXPORTED = "results/googlenet-digits/export/model.safetensors"


def signals(cwd: Path, name: str) -> list[tuple[str, dict[str, float]]]:
    records = existing_store(f"sqlite:///{cwd}/results/{name}/study.db", name)
    assert records is not None
    return [(entry.measurement.rung, dict(entry.measurement.signals)) for entry in records.all()]


def test_retraining_needs_no_search_where_there_is_one_architecture(nas: Command, folder: Path) -> None:
    rows = json.loads(nas("leaderboard", "googlenet-digits", "--format", "json", cwd=folder).stdout)
    assert [(row["name"], row["rank"], row["rung"], row["test_seeds"]) for row in rows] == [
        ("retrained", 1, "retrain", 1)
    ]
    assert rows[0]["towers"] == [2, 5]


def test_from_its_own_weights_it_starts_where_they_ended(nas: Command, folder: Path) -> None:
    """One step of a vanishing learning rate: the test loss is that of the weights."""
    [(_, first)] = signals(folder, "googlenet-digits")
    still = ["--set", "retrain.learning_rate=1e-12", "--name", "still"]
    done = nas("retrain", "googlenet", *SMALL, *still, "--init", EXPORTED, cwd=folder)
    assert done.returncode == 0, done.stderr
    [(_, again)] = signals(folder, "still")
    assert again["test_loss"] == pytest.approx(first["test_loss"], rel=1e-5)
    done = nas("retrain", "googlenet", *SMALL, *still, cwd=folder)
    assert done.returncode == 0
    assert done.stdout.count("winner (retrained)") == 1
    found = dict(signals(folder, "still"))
    assert len(found) == 2, "fresh weights are another training than given ones"
    losses = [one["test_loss"] for one in found.values()]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_other_data_are_an_experiment_of_their_own_with_a_new_last_layer(nas: Command, folder: Path) -> None:
    done = nas("retrain", "googlenet-digits", *SMALL[:-4], "--init", EXPORTED, "--data", "three.npz", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "from model.safetensors" in done.stdout
    own = folder / "results" / "googlenet-digits-three"
    tensors = safetensors.torch.load_file(next((own / "weights").glob("*-0.safetensors")))
    assert tensors["linear.weight"].shape == (3, 128)
    done = nas("export", "googlenet-digits-three", cwd=folder)
    assert done.returncode == 0, done.stderr
    digest = read(folder / EXPORTED).digest
    assert f"model.safetensors (sha256 {digest})" in (own / "export" / "MODEL_CARD.md").read_text()
    again = nas("retrain", "googlenet-digits", *SMALL[:-4], "--init", EXPORTED, "--data", "three.npz", cwd=folder)
    assert again.returncode == 0
    assert len(signals(folder, "googlenet-digits-three")) == 2, "each once: without the test images, and on all"


def test_weights_of_another_network_are_refused_before_anything_is_written(nas: Command, folder: Path) -> None:
    wide = [word.replace("0.125", "0.25") for word in SMALL]
    done = nas("retrain", "googlenet", *wide, "--name", "wide", "--init", EXPORTED, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: weights 'model.safetensors' do not fit: "
        "'stem.first.conv.weight' is (8, 1, 3, 3) there, but (16, 1, 3, 3) here"
    )
    assert not (folder / "results" / "wide").exists()


def test_a_space_of_many_takes_the_architecture_of_the_weights(tmp_path: Path) -> None:
    config = configuration.read(
        None,
        (),
        **{
            "space.name": "inception",
            "space.widths": [8, 8],
            "space.stem": [8, 8],
            "space.cells": [1, 2],
            "executor.kind": "in-process",
        },
        results=str(tmp_path),
    )
    experiment = library.Experiment("t", config=config, retrain__epochs=1, retrain__images=128, retrain__seeds=1)
    with pytest.raises(ExperimentError, match="no measured candidate"):
        experiment.retrain()
    assert not (tmp_path / "t").exists()
    file = tmp_path / "w.safetensors"
    file.write_bytes(weights.pack(network(1, 7), architecture=SPACE.random(5).to_json()))
    [measured] = experiment.retrain(init=file)
    assert measured.key == SPACE.random(5).key
    assert measured.rung != experiment.leaderboard()[0].rung
    assert [row.name for row in experiment.leaderboard()] == ["retrained"]


@pytest.mark.slow
def test_weights_cross_to_ray_workers(tmp_path: Path) -> None:
    """Their file is gone before any worker could read it: bytes cross, not a path."""
    experiment = library.Experiment(
        "over-ray",
        config=configuration.read(Path("googlenet"), ["space.width=[0.125]"], results=str(tmp_path)),
        retrain__epochs=1, retrain__images=128, retrain__learning_rate=1e-12, executor__workers=1, retrain__seeds=1,
    )  # fmt: skip
    space = search_spaces.load("googlenet", {"width": [0.125]})
    made = space.build(space.random(0), SHAPE, 10)
    file = tmp_path / "w.safetensors"
    file.write_bytes(pack(made))
    [measured] = experiment.retrain(init=file)
    held = safetensors.torch.load_file(next((experiment.folder / "weights").glob("*-0.safetensors")))
    torch.testing.assert_close(held["linear.weight"], made.state_dict()["linear.weight"])
    assert measured.status == "done"
