"""Pruning: channels that do nothing change nothing, what is left is an architecture, and how it compares is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from recorded import add_candidate
from torch import nn

import search_spaces
from nas.config import Config, PruneConfig, Recipe, TowersConfig
from nas.data import load
from nas.errors import InputError, JobError, SpaceError
from nas.evaluation.complexity import complexity
from nas.ladder import Rung
from nas.space import SearchSpace, Shape
from nas.steps import prune, pruned
from nas.store import Measurement, Store, existing_store, open_database
from search_spaces.inception import ConvUnit, InceptionArchitecture, InceptionNetwork

Command = Callable[..., Any]

SPACES: dict[str, tuple[dict[str, Any], Shape]] = {
    "as it comes": ({}, (1, 8, 8)),
    "no batch norm": ({"batch_norm": False, "widths": [16, 16]}, (3, 9, 9)),
    "every cell another": ({"tied": False, "widths": [16, 8], "cells": [1, 3]}, (1, 8, 8)),
    "factorised": ({"five_kinds": ["3x3+3x3", "1x7+7x1"], "widths": [16, 16], "reduce": [0.1, 1.0]}, (1, 8, 8)),
    "fully connected": ({"head": "fully-connected", "widths": [16]}, (2, 12, 9)),
    "large stem": ({"resolution": 4, "widths": [8, 8]}, (3, 32, 32)),
    "large stem, no batch norm": ({"resolution": 4, "widths": [8], "batch_norm": False}, (1, 32, 32)),
}
BRANCHES = ("one", "three", "five", "pool")


def trained(space: SearchSpace, architecture: InceptionArchitecture, shape: Shape, seed: int = 0) -> InceptionNetwork:
    """A network whose channels all matter, each as much as chance has it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = space.build(architecture, shape, 4)
        assert isinstance(made, InceptionNetwork)
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.data.uniform_(0.5, 2)
            elif isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.data.normal_()
    return made.eval()


def widths(architecture: InceptionArchitecture) -> dict[str, int]:
    """Every width, by a name; 0: absent."""
    found = {"stem": architecture.stem}
    for s, stage in enumerate(architecture.stages):
        for c, cell in enumerate(stage):
            values = cell.model_dump(exclude={"five_kind", "pool_kind"})
            found |= {f"{s}.{c}.{field}": value for field, value in values.items()}
    return found


def units(network: InceptionNetwork) -> dict[str, list[tuple[ConvUnit, int, int]]]:
    """The layers of every width, in the test's own words: (unit, first channel, channels)."""
    stem = [unit for unit in network.stem if isinstance(unit, ConvUnit)]
    found = {"stem": [(unit, 0, unit.conv.out_channels) for unit in stem]}
    for name in network.cell_names:
        cell: Any = network.get_submodule(name)
        at = f"{int(name[-2]) - 1}.{ord(name[-1]) - ord('a')}"
        start = 0
        for field, share in zip(("one", "three_reduce", "five_reduce"), cell.shares, strict=True):
            if share:
                found[f"{at}.{field}"] = [(cell.siblings, start, share)]
            start += share
        for field, layers in (
            ("three", [cell.three] if cell.shares[1] else []),
            ("five", list(cell.five) if cell.shares[2] else []),
            ("pool", [cell.pool[1]] if cell.pools else []),
        ):
            if layers:
                found[f"{at}.{field}"] = [(unit, 0, unit.conv.out_channels) for unit in layers]
    return found


def silence(unit: ConvUnit, channels: torch.Tensor) -> None:
    """Make these output channels 0 everywhere."""
    tensors = [unit.conv.weight, unit.conv.bias]
    tensors += [unit.norm.weight, unit.norm.bias] if hasattr(unit, "norm") else []
    for tensor in tensors:
        if tensor is not None:
            tensor.data[channels] = 0


def rebuilt(space: SearchSpace, state: Any, architecture: InceptionArchitecture, shape: Shape) -> nn.Module:
    made = space.build(architecture, shape, 4)
    made.load_state_dict(dict(state), strict=True)
    return made.eval()


@hypothesis_settings(deadline=None, derandomize=True, max_examples=40)
@given(name=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 2**32), silent=st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_channels_that_do_nothing_go_first_and_change_no_logit(name: str, seed: int, silent: float) -> None:
    keys, shape = SPACES[name]
    space = search_spaces.load("inception", keys)
    architecture: Any = space.random(seed)
    network = trained(space, architecture, shape, seed % 1000)
    chance = torch.Generator().manual_seed(seed % 2**31)
    silenced = {}
    for width, layers in units(network).items():
        whole = widths(architecture)[width]
        count = silenced[width] = int(torch.rand((), generator=chance) < 0.8) * int(silent * whole)
        for unit, start, channels in layers:
            chosen = torch.randperm(channels, generator=chance)[: channels // whole * count]
            silence(unit, start + chosen)
    images = torch.randn(3, *shape, generator=chance)
    expected = network(images)
    assert expected.std() > 1e-3 or silent == 1, "logits too alike to tell anything"

    path: list[Any] = list(space.prune_path(architecture, network, 1))
    before = widths(architecture)
    of_silent = [
        one for one in path
        if all(before[w] - left <= silenced.get(w, 0) or absent(w, one) for w, left in widths(one).items())
    ]  # fmt: skip
    assert of_silent == path[: len(of_silent)], "those that do nothing go first"
    last = of_silent[-1] if of_silent else architecture
    for width, left in widths(last).items():
        kept = before[width] - silenced.get(width, 0)
        if kept and not absent(width, last):
            assert left == kept, width
        else:  # a branch goes, with its reduce; a channel stays of the stem, of a reduce, and of a cell's last branch
            assert left <= 1, width
    for one in {len(of_silent) // 2, len(of_silent) - 1} if of_silent else ():
        smaller = rebuilt(space, space.pruned_weights(architecture, network, of_silent[one]), of_silent[one], shape)
        torch.testing.assert_close(smaller(images), expected, atol=1e-4, rtol=1e-4)


def absent(width: str, architecture: InceptionArchitecture) -> bool:
    """Whether it is the reduce of a branch that went."""
    return width.endswith("_reduce") and not widths(architecture)[width.removesuffix("_reduce")]


@pytest.mark.slow
@hypothesis_settings(deadline=None, derandomize=True, max_examples=15)
@given(
    name=st.sampled_from(sorted(SPACES)),
    seed=st.integers(0, 2**32),
    share=st.floats(0.05, 0.7),
    step=st.sampled_from([1, 4, 8]),
)
def test_the_largest_network_that_is_small_enough(name: str, seed: int, share: float, step: int) -> None:
    keys, shape = SPACES[name]
    space = search_spaces.load("inception", keys)
    architecture: Any = space.random(seed)
    network = trained(space, architecture, shape)
    path: list[Any] = [architecture, *space.prune_path(architecture, network, step)]

    def flops(place: int) -> int:
        return complexity(space, path[place], shape, 4).flops

    some = [flops(place) for place in range(0, len(path), 1 + len(path) // 5)]
    assert some == sorted(some, reverse=True)
    assert len(set(path)) == len(path)
    allowed = (1 - share) * some[0]
    if flops(-1) > allowed:
        with pytest.raises(InputError, match="is more than can be removed"):
            prune.smaller(space, architecture, network, share, step, shape, 4)
        return
    found: Any = prune.smaller(space, architecture, network, share, step, shape, 4)
    place = path.index(found)
    assert flops(place) <= allowed < flops(place - 1)
    before, after = widths(architecture), widths(found)
    assert all(after[width] in (before[width], *range(0, before[width], step)) for width in before)
    assert space.architecture_type.from_json(found.to_json()) == found
    state = space.pruned_weights(architecture, network, found)
    assert rebuilt(space, state, found, shape)(torch.randn(2, *shape)).isfinite().all()


def test_the_channels_that_are_kept_are_the_most_important_of_each_network() -> None:
    """Two networks of one architecture keep different channels of the same number."""
    space = search_spaces.load("inception", {"widths": [16, 16]})
    architecture: Any = space.random(3)
    kept = []
    for seed in (0, 1):
        network = trained(space, architecture, (1, 8, 8), seed)
        first = network.stem[0]
        scale = torch.rand(architecture.stem, generator=torch.Generator().manual_seed(seed)) + 0.1
        first.norm.weight.data, first.norm.bias.data = scale, torch.zeros_like(scale)
        smaller = architecture.model_copy(update={"stem": 8})
        state = space.pruned_weights(architecture, network, smaller)
        assert set(state["stem.first.norm.weight"].tolist()) == set(scale.sort().values[-8:].tolist())
        assert state["stem.first.norm.weight"].tolist() == [x for x in scale.tolist() if x in scale.sort().values[-8:]]
        kept.append(scale.argsort()[-8:].sort().values.tolist())
    assert kept[0] != kept[1]


def test_googlenet_can_be_pruned_too() -> None:
    space = search_spaces.load("googlenet", {"width": [0.125]})
    architecture: Any = space.random(0)
    network: Any = space.build(architecture, (1, 64, 64), 10).eval()
    small = prune.smaller(space, architecture, network, 0.5, 4, (1, 64, 64), 10)
    weights = [prune.weights_left(space, architecture, network, small, (1, 64, 64), 10) for _ in range(8)]
    assert len({one.digest for one in weights}) == 1, "the digest names the training, which is made once"
    space.build(small, (1, 64, 64), 10).load_state_dict(weights[0].tensors)
    assert complexity(space, small, (1, 64, 64), 10).flops <= complexity(space, architecture, (1, 64, 64), 10).flops / 2


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan"), float("inf")])
def test_a_share_is_between_nothing_and_everything(share: float) -> None:
    with pytest.raises(InputError, match=r"^--prune takes the share .* above 0 and below 1; got"):
        prune.check_share(share)


def test_a_space_that_does_not_say_how_cannot_be_pruned() -> None:
    space = search_spaces.load("resnet")
    architecture = space.random(0)
    network = space.build(architecture, (3, 32, 32), 10)
    with pytest.raises(SpaceError, match=r"cannot be pruned: ResNetSpace has no prune_path\(\)$"):
        prune.smaller(space, architecture, network, 0.5, 1, (3, 32, 32), 10)
    with pytest.raises(SpaceError, match=r"pruned_weights\(\)"):
        space.pruned_weights(architecture, network, architecture)


def test_weights_that_do_not_fit_are_the_space_s_mistake() -> None:
    class Careless(type(search_spaces.load("inception"))):  # type: ignore[misc]
        def pruned_weights(self, architecture: Any, network: Any, smaller: Any) -> Any:
            return network.state_dict()

    space = Careless()
    architecture = space.random(0)
    network = space.build(architecture, (1, 8, 8), 4)
    small = prune.smaller(space, architecture, network, 0.3, 1, (1, 8, 8), 4)
    with pytest.raises(JobError, match=r"^pruned_weights\(\) of Careless gives no weights"):
        prune.weights_left(space, architecture, network, small, (1, 8, 8), 4)


def test_fine_tuning_is_calmer_and_has_no_towers() -> None:
    full = Rung("retrain", Recipe(epochs=25, learning_rate=0.2), TowersConfig(), final=True, init="other")
    tuned = prune.fine_tuning(full, PruneConfig(), "digest")
    assert (tuned.name, tuned.final, tuned.init) == ("pruned", True, "digest")
    assert (tuned.epochs, tuned.recipe.learning_rate, tuned.towers.placement) == (25, 0.1, "none")
    given_ = prune.fine_tuning(full, PruneConfig(epochs=3, learning_rate=0.01), "digest")
    assert (given_.epochs, given_.recipe.learning_rate) == (3, 0.01)
    assert prune.fine_tuning(full, PruneConfig(), "another").key != tuned.key
    scratch = prune.from_scratch(full)
    assert (scratch.recipe, scratch.towers, scratch.init) == (full.recipe, full.towers, None)
    assert len({full.key, tuned.key, scratch.key}) == 3


# --------------------------------------------------------------------------------------------- through the commands

KEYS = [
    *(
        "executor.kind=in-process",
        "space.name=inception",
        "space.widths=[16,16]",
        "space.stem=[16,16]",
        "space.cells=[2,2]",
    ),
    *("proxy.images=256", "proxy.epochs=1", "retrain.epochs=2", "retrain.images=512", "retrain.references=false"),
]
SMALL = [word for key in KEYS for word in ("--set", key)]


@pytest.fixture(scope="module")
def retrained(nas: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the winner of two candidates is retrained from two seeds, with a small candidate far behind it."""
    cwd = tmp_path_factory.mktemp("prune")
    assert nas("search", "--name", "e", *SMALL, "--trials", "2", cwd=cwd).returncode == 0
    records = Store(open_database(f"sqlite:///{cwd}/results/e/study.db"), "e")
    small = InceptionArchitecture.model_validate({"stem": 4, "stages": [[{"one": 4}]]})
    signals = {"val_loss": 9.0, "val_accuracy": 0.0, "flops": 1000.0, "params": 10.0}
    rung = records.fact("rungs")[0]
    add_candidate(records, Measurement(small.to_json(), small.key, rung, 0, "done", signals, {"seconds": 1.0}), 99)
    done = nas("retrain", "e", "--seeds", "2", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


@pytest.fixture
def cwd(retrained: Path, tmp_path: Path) -> Path:
    """A copy of it, with nothing pruned yet."""
    shutil.copytree(retrained, tmp_path / "copy")
    return tmp_path / "copy"


def measurements(cwd: Path) -> list[Measurement]:
    records = existing_store(f"sqlite:///{cwd}/results/e/study.db", "e")
    assert records is not None
    return [entry.measurement for entry in records.all()]


def written(cwd: Path) -> dict[str, bytes]:
    files = (file for file in (cwd / "results").rglob("*") if file.is_file() and ".db" not in file.name)
    return {str(file.relative_to(cwd)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_a_pruned_winner_is_an_ordinary_network_beside_its_rivals(nas: Command, cwd: Path) -> None:
    assert nas("export", "e", cwd=cwd).returncode == 0
    whole = json.loads((cwd / "results/e/export/model_card.json").read_text())
    assert "compared" not in whole
    before = measurements(cwd)
    done = nas("export", "e", "--prune", "0.4", cwd=cwd)
    assert done.returncode == 0, done.stderr
    card = json.loads((cwd / "results/e/export/model_card.json").read_text())
    rows = {row["name"]: row for row in card["compared"]}
    assert list(rows) == [pruned.ORIGINAL, pruned.PRUNED, pruned.SCRATCH, pruned.EQUAL]
    original, own, scratch, equal = rows.values()

    assert original["key"] != own["key"] == scratch["key"] != equal["key"]
    assert original["flops"] == whole["flops"]
    assert own["flops"] == card["flops"] <= 0.6 * whole["flops"]
    board = json.loads(nas("leaderboard", "e", "--format", "json", cwd=cwd).stdout)
    assert {row["key"] for row in board} == {one.key for one in before}, "no row of the board is pruned"
    assert equal["key"] == next(row["key"] for row in board if row["flops"] <= own["flops"])
    space = search_spaces.load("inception")
    architecture = space.architecture_type.model_validate(card["architecture"])
    assert architecture.key == own["key"]
    network = space.build(architecture, (1, 8, 8), 10)
    network.load_state_dict(safetensors.torch.load_file(cwd / "results/e/export/model.safetensors"))
    data = load(Config().data)
    assert data.test is not None
    images = (torch.from_numpy(data.test.pixels).float() - data.mean[0]) / data.std[0]
    with torch.no_grad():
        right = (network.eval()(images).argmax(1).numpy() == data.test.labels).mean()
    assert own["accuracy"]["by seed"]["0"] == pytest.approx(right)
    session = onnxruntime.InferenceSession(cwd / "results/e/export/model.onnx")
    [logits] = session.run(None, {"pixels": data.test.pixels})
    assert (logits.argmax(1) == data.test.labels).mean() == pytest.approx(right)

    made = [one for one in measurements(cwd) if one not in before]
    by_name: dict[tuple[str, str], list[Measurement]] = {(one.key, one.rung.partition("-")[0]): [] for one in made}
    for one in made:
        by_name[one.key, one.rung.partition("-")[0]].append(one)
    assert {name: len(many) for name, many in by_name.items()} == {
        (own["key"], "pruned"): 2, (own["key"], "scratch"): 2, (equal["key"], "retrain"): 2,
    }  # fmt: skip
    for row, (key, rung) in ((own, (own["key"], "pruned")), (scratch, (own["key"], "scratch"))):
        by_seed = {str(one.seed): one.signals["test_accuracy"] for one in by_name[key, rung]}
        assert row["accuracy"]["by seed"] == by_seed
    assert all(not one.towers for one in by_name[own["key"], "pruned"]), "no tower, also not in training"
    assert all(one.towers for one in by_name[own["key"], "scratch"]), "trained as the original was"
    assert {one.rung for one in by_name[equal["key"], "retrain"]} == {one.rung for one in before if one.seed == 1}
    assert {form for row in rows.values() for form in row["latency ms"]} == {"eager", "model.pt2", "model.onnx"}
    assert [check["agreement"] for check in card["verification"]["checks"]] == [1.0] * 3

    text = (cwd / "results/e/export/MODEL_CARD.md").read_text()
    assert "## Pruned" in text
    assert f"removed from the retrained network `{whole_key(whole)}`" in text
    assert f"until {1 - own['flops'] / whole['flops']:.1%} of its multiply-adds were gone" in text
    assert f"{100 * own['accuracy']['mean']:.2f} % ± {100 * own['accuracy']['standard deviation']:.2f} (2)" in text
    assert f"{100 * scratch['accuracy']['mean']:.2f} %" in done.stdout
    assert all(name in done.stdout for name in rows)

    again = nas("export", "e", "--prune", "0.4", cwd=cwd)
    assert again.returncode == 0
    assert len(measurements(cwd)) == len(before) + 6, "trained once"
    assert nas("export", "e", cwd=cwd).returncode == 0
    assert json.loads((cwd / "results/e/export/architecture.json").read_text())["architecture"] == whole["architecture"]


def whole_key(card: dict[str, Any]) -> str:
    return search_spaces.load("inception").architecture_type.model_validate(card["architecture"]).key


@pytest.mark.slow
def test_fine_tuning_starts_from_the_weights_of_each_seed(nas: Command, cwd: Path) -> None:
    still = ["--set", "prune.learning_rate=1e-12", "--set", "prune.epochs=1", "--set", "prune.step=1"]
    done = nas("export", "e", "--prune", "0.3", *still, cwd=cwd)
    assert done.returncode == 0, done.stderr
    space = search_spaces.load("inception", {"widths": [16, 16]})
    card = json.loads((cwd / "results/e/export/model_card.json").read_text())
    original, own = (space.architecture_type.model_validate(row["architecture"]) for row in card["compared"][:2])
    for seed in (0, 1):
        [before] = (cwd / "results/e/weights").glob(f"{original.key}-retrain-*-{seed}.safetensors")
        [after] = (cwd / "results/e/weights").glob(f"{own.key}-pruned-*-{seed}.safetensors")
        network = space.build(original, (1, 8, 8), 10)
        network.load_state_dict(safetensors.torch.load_file(before))
        sliced, tuned = space.pruned_weights(original, network, own), safetensors.torch.load_file(after)
        assert set(sliced) == set(tuned)
        for name, _ in network.named_parameters():
            if name in sliced:
                torch.testing.assert_close(tuned[name], sliced[name], msg=name)
        assert not torch.equal(sliced["linear.weight"], network.state_dict()["linear.weight"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prune", "0"], "--prune takes the share of the multiply-adds to remove, above 0 and below 1; got 0"),
        (["--prune", "1"], "--prune takes the share"),
        (["--prune", "nan"], "--prune takes the share"),
        (["--prune", "0.999"], "--prune 0.999 is more than can be removed: the narrowest network"),
        (["--prune", "0.5", "--ensemble", "2"], "--ensemble and --prune do not go together"),
        (["--prune", "0.5", "--early-exit"], "--early-exit and --prune do not go together"),
        (["--prune", "0.5", "--set", "prune.epochs=0"], "prune.epochs"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_cannot_be_is_one_line_and_writes_nothing(nas: Command, cwd: Path, words: list[str], said: str) -> None:
    files, rows = written(cwd), measurements(cwd)
    done = nas("export", "e", *words, "--set", "prune.learning_rate=0.01", cwd=cwd)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (written(cwd), measurements(cwd)) == (files, rows)


def test_what_is_not_retrained_is_not_pruned(nas: Command, tmp_path: Path) -> None:
    assert nas("search", "--name", "e", *SMALL, "--trials", "1", cwd=tmp_path).returncode == 0
    done = nas("export", "e", "--prune", "0.5", cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "error: experiment 'e' is not retrained yet: run `nas retrain`",
    )
