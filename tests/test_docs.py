"""The documentation: links, length, and the pages that are generated from the code. `mkdocs build` checks the rest."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

import search_spaces
from nas.config import Config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="the documentation is built with the extra dev")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "scripts" / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1500


def test_links_of_the_readme_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_key_of_the_config_is_documented(hooks: ModuleType) -> None:
    config = Config()
    page = hooks.config_page()
    for key in Config.model_fields:
        section = getattr(config, key)
        if isinstance(section, BaseModel):
            _, found, text = page.partition(f"\n## [{key}] {{#{key}}}\n")
            assert found, key
            rows = re.findall(r"^\| `(\w+)` \|", text.partition("\n## ")[0], re.M)
            assert rows == list(type(section).model_fields), key
        else:
            assert f"| `{key}` |" in page.partition("\n## [")[0]
    for name in search_spaces.available():
        assert f"\n### {name} {{#space-{name}}}\n" in page


def test_every_row_of_the_config_has_four_cells(hooks: ModuleType) -> None:
    rows = [line for line in hooks.config_page().splitlines() if line.startswith("| ")]
    assert len(rows) > 100
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    assert not [row for row in rows if row.endswith("|  |")], "a key without an explanation"


def test_every_command_and_option_is_documented(hooks: ModuleType) -> None:
    page = hooks.commands_page()
    for command in ("run", "search", "leaderboard", "retrain", "export", "show", "plan", "simulate", "config"):
        assert f"\n## nas {command}\n" in page
    for command in ("calibrate collect", "calibrate report", "space list", "system list", "data list"):
        assert f"\n## nas {command}\n" in page
    for option in ("--prune", "--early-exit", "--of-ceiling", "`--set`, `-s`", "--references`, `--no-references"):
        assert option in page
    assert "| `--seed` | `0` | Seed of the bootstrap. |" in page
    assert "--help" not in page.partition("\n## ")[2]
    assert not [line for line in page.splitlines() if line.endswith("|  |")], "an option without an explanation"


def test_every_module_is_documented(hooks: ModuleType) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", hooks.modules_page(), re.M)
    assert {"nas", "nas.config.sections", "search_spaces", "search_spaces.resnet"} <= {name for name, _ in rows}
    assert [name for name, purpose in rows if not purpose] == []
