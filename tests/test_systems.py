"""The published systems: each is a config that parses, says what it says, and runs by its name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from nas import auxiliary
from nas import config as configuration
from nas.errors import ConfigError
from search_spaces import systems
from search_spaces.googlenet import ARCHITECTURE, TOWERS, scaled, tower_cells

NAMES = ("darts", "googlenet", "googlenet-wide", "nasnet", "relay")

Command = Callable[..., Any]


def read(name: str) -> configuration.Config:
    return configuration.read(Path(name))


def test_the_systems_are_there_each_with_a_line_that_says_what_it_is() -> None:
    found = systems.available()
    assert set(found) == {*NAMES, "pspnet"}
    assert list(found) == sorted(found)
    for name, line in found.items():
        assert line.endswith("."), name
        assert len(line) > 40, name


@pytest.mark.parametrize("name", [*NAMES, "pspnet"])
def test_each_names_a_space_and_its_settings_hold(name: str) -> None:
    table = tomllib.loads((systems.FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    chosen = table["space"]
    space = search_spaces.load(chosen["name"], {key: value for key, value in chosen.items() if key != "name"})
    if space.size() == 1:
        assert table["search"]["trials"] == 1, "one architecture: nothing to choose"
        assert table["retrain"]["references"] is False


@pytest.mark.parametrize("name", NAMES)
def test_each_parses_and_its_towers_find_their_cells(name: str) -> None:
    config = read(name)
    assert config.experiment == f"{name}-digits"
    space = search_spaces.load(config.space.name, config.space.settings)
    network = space.build(space.random(0), (1, 8, 8), 10)
    assert auxiliary.supervise(network, config.towers, (1, 8, 8), 10).cells


def test_googlenet_is_the_paper_s_network_with_the_paper_s_towers() -> None:
    config = read("googlenet")
    space = search_spaces.load(config.space.name, config.space.settings)
    assert space.random(0) == ARCHITECTURE
    towers = {"kind", "placement", "weight", "schedule"}
    assert config.towers.model_dump(include=towers) == TOWERS.model_dump(include=towers)
    assert config.towers.placement == tower_cells(1.0)


def test_its_sibling_is_deeper_and_wider_and_has_its_towers_in_the_same_places() -> None:
    config = read("googlenet-wide")
    space = search_spaces.load(config.space.name, config.space.settings)
    [width], [depth] = config.space.settings["width"], config.space.settings["depth"]
    assert width > 1
    assert depth > 1
    assert space.random(0) == scaled(ARCHITECTURE, width, depth)
    assert config.towers.placement == tower_cells(depth)


def test_the_newer_keys_say_what_the_papers_say() -> None:
    relay = read("relay").towers.model_dump()
    assert (relay["reach"], relay["main_reach"], relay["placement"]) == ("relay:4", 5, (2, 5))
    for name, kind in (("nasnet", "light"), ("darts", "darts")):
        towers = read(name).towers
        assert (towers.placement, towers.weight, towers.kind) == ("two-thirds", 0.4, kind)


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configuration.read(Path("googlenet")).space.name == "googlenet"
    (tmp_path / "googlenet").write_text("seed = 7\n")
    config = configuration.read(Path("googlenet"))
    assert (config.seed, config.space.name, config.name) == (7, "inception_resnet", None)


def test_keys_are_set_on_top_of_a_system() -> None:
    config = configuration.read(Path("googlenet"), ["space.width=[0.5]"], **{"data.name": "photos"})
    assert config.space.settings["width"] == [0.5]
    assert config.experiment == "googlenet-photos"
    assert configuration.read(Path("googlenet"), name="mine").experiment == "mine"


def test_an_unknown_name_names_the_systems(nas: Command, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file 'googelnet', nor a system of that name: darts, googlenet, "):
        configuration.read(Path("googelnet"))
    for words in (["run", "googelnet"], ["config", "googelnet"], ["retrain", "googelnet"]):
        done = nas(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert "darts, googlenet, googlenet-wide, nasnet, pspnet, relay" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_commands_take_a_system_where_a_file_is_expected(nas: Command, tmp_path: Path) -> None:
    assert "width = [1.0]" in nas("config", "googlenet", cwd=tmp_path).stdout
    listed = nas("system", "list", cwd=tmp_path).stdout
    assert all(name in listed for name in NAMES)
    assert "googlenet " in nas("space", "list", cwd=tmp_path).stdout


SMALL = [
    *("--set", "space.width=[0.125]", "--set", "executor.kind=in-process", "--set", "proxy.images=256"),
    *("--set", "proxy.epochs=1", "--set", "retrain.epochs=1", "--set", "retrain.images=256"),
]


def test_a_system_runs_from_its_name_to_an_export_without_towers(nas: Command, tmp_path: Path) -> None:
    done = nas("run", "googlenet", *SMALL, "--set", "retrain.seeds=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "googlenet-digits"
    assert "winner (trial 0)" in done.stdout
    card = json.loads((folder / "export" / "model_card.json").read_text())
    assert card["notes"]["towers in training"] == "cell 2, cell 5"
    assert card["space"] == "googlenet"
    assert "towers.safetensors" not in {file.name for file in (folder / "export").iterdir()}
