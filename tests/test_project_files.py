"""Project files agree with each other: named scripts exist, versions are equal, dependencies are pinned."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "results/reference/**/*.md", "*/**/*.py")
    for path in ROOT.glob(pattern)
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


@pytest.fixture(scope="module")
def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def tested() -> dict[str, str]:
    """The tested version of each package."""
    lines = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").lower().split()
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_the_scripts_that_are_named_exist() -> None:
    names = {
        (path, name)
        for path in TEXTS
        for name in re.findall(r"\bscripts/[\w/]+\.py\b", (ROOT / path).read_text(encoding="utf-8"))
    }
    assert len(names) > 30
    assert [f"{path}: {name}" for path, name in sorted(names) if not (ROOT / name).is_file()] == []


def test_each_dependency_has_a_lowest_and_a_tested_version(project: Any, tested: dict[str, str]) -> None:
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        match = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<\d+)?", line)
        assert match is not None, line
        name, lowest = match.groups()
        assert numbers(lowest) <= numbers(tested[name]), line


def test_the_citation_gives_the_version_and_the_license_of_the_package(project: Any) -> None:
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {project['version']}" in lines
    assert f"license: {project['license']}" in lines
