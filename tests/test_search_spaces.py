"""Spaces are found by name, as class in a file, or through an entry point; everything else is refused in one line."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from nas.errors import SpaceError
from nas.space import SearchSpace

PLAIN = '''
from pydantic import Field

from nas.space import Architecture, SearchSpace, SpaceSettings


class PlainArchitecture(Architecture):
    width: int


class PlainSettings(SpaceSettings):
    top: int = Field(64, ge=8)


class Plain(SearchSpace):
    """One width."""

    architecture_type = PlainArchitecture
    settings_type = PlainSettings

    def suggest(self, trial):
        return PlainArchitecture(width=trial.suggest_int("width", 8, self.settings.top))

    def build(self, architecture, input_shape, num_classes):
        raise NotImplementedError


class Half(SearchSpace):
    architecture_type = PlainArchitecture

    def suggest(self, trial):
        raise NotImplementedError


NUMBER = 3
'''


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "plain.py"
    file.write_text(PLAIN, encoding="utf-8")
    known = set(sys.modules)
    yield f"{file}:Plain"
    for name in set(sys.modules) - known:
        if name.startswith("search_space_"):
            del sys.modules[name]


def refused(name: str, settings: dict[str, Any] | None = None, source: str | None = None) -> str:
    with pytest.raises(SpaceError) as caught:
        search_spaces.load(name, settings, source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_spaces_of_the_package_are_found_by_name() -> None:
    space = search_spaces.load("inception")
    assert isinstance(space, SearchSpace)
    assert space.size()
    assert search_spaces.available()["inception"].endswith(".")
    assert list(search_spaces.available()) == [
        "googlenet",
        "inception",
        "inception_resnet",
        "resnet",
    ]  # systems are configs, no spaces


@pytest.mark.parametrize("name", ["inceptoin", "googelnet", "", "nas.space", "os", "../inception", "systems"])
def test_an_unknown_name_is_refused_and_the_known_ones_are_named(name: str) -> None:
    message = refused(name)
    assert repr(name) in message
    assert "inception" in message
    assert "file.py:Name" in message


def test_settings_of_a_space_are_closed() -> None:
    message = refused("inception", {"widhts": [8]})
    assert "unknown key 'widhts'" in message
    assert "widths" in message.partition("(settings of")[2]


def test_a_file_added_to_the_package_is_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added.py").write_text(PLAIN, encoding="utf-8")
    monkeypatch.setattr(search_spaces, "__path__", [*search_spaces.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "search_spaces.added", raising=False)
    try:
        # the half-written class of the same file is abstract, and no space
        assert search_spaces.available()["added"] == "One width."
        assert search_spaces.load("added", {"top": 8}).random(0).model_dump() == {"width": 8}
    finally:
        sys.modules.pop("search_spaces.added", None)


def test_an_entry_point_is_a_space(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = type(search_spaces.load(plain))

    class Point:
        name = "installed"

        def load(self) -> object:
            return cls

    def entry_points(*, group: str, name: str | None = None) -> list[Point]:
        assert group == "nas.search_spaces"
        return [Point()] if name in (None, "installed") else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert type(search_spaces.load("installed")) is cls
    assert search_spaces.available()["installed"] == "One width."


# --------------------------------------------------------------------------------------------- file.py:Name


def test_a_class_in_a_file_is_a_space(plain: str) -> None:
    space = search_spaces.load(plain, {"top": 16})
    assert space.settings.top == 16
    architecture = space.random(0)
    assert type(architecture).from_json(architecture.to_json()) == architecture


def test_the_same_file_gives_the_same_class_and_a_changed_one_another(plain: str) -> None:
    first = search_spaces.load(plain)
    assert type(search_spaces.load(plain)) is type(first)
    file = Path(plain.rpartition(":")[0])
    file.write_text(PLAIN.replace("8, self", "9, self"), encoding="utf-8")
    assert type(search_spaces.load(plain)) is not type(first)


def test_a_worker_needs_the_text_and_not_the_file(plain: str) -> None:
    source = search_spaces.read_source(plain)
    Path(plain.rpartition(":")[0]).unlink()
    assert search_spaces.load(plain, {"top": 8}, source).random(0).model_dump() == {"width": 8}
    assert search_spaces.read_source("inception") is None


def test_settings_of_a_file_are_closed(plain: str) -> None:
    assert "unknown key 'bottom'" in refused(plain, {"bottom": 3})
    assert "top: Input should be greater than or equal to 8, got 3" in refused(plain, {"top": 3})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nowhere.py" in refused(str(tmp_path / "nowhere.py:Plain"))
    assert str(tmp_path) in refused(f"{tmp_path}:Plain")


@pytest.mark.parametrize(
    ("attribute", "complaint"),
    [
        ("Missing", "has no 'Missing'"),
        ("", "has no ''"),
        ("NUMBER", "not a subclass of nas.space.SearchSpace"),
        ("PlainArchitecture", "not a subclass of nas.space.SearchSpace"),
        ("Half", "with suggest() and build()"),
    ],
)
def test_what_is_no_space_is_refused(plain: str, attribute: str, complaint: str) -> None:
    assert complaint in refused(f"{plain.rpartition(':')[0]}:{attribute}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"def (", "SyntaxError"),
        (b"import no_such_module_at_all", "no_such_module_at_all"),
        (b"1 / 0", "ZeroDivisionError"),
        (b"raise ValueError('two\\nlines')", "ValueError"),
        (b"# \xff", "UTF-8"),
    ],
)
def test_a_file_that_fails_is_refused_every_time(tmp_path: Path, text: bytes, complaint: str) -> None:
    (tmp_path / "bad.py").write_bytes(text)
    for _ in range(2):  # no half-made module stays behind
        message = refused(f"{tmp_path / 'bad.py'}:Plain")
        assert "bad.py" in message
        assert complaint in message


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, search_spaces; assert not {'torch', 'search_spaces.inception'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
