"""The plan of the house: what starts without torch and Ray, how large a module may be, what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import add_candidate

import nas
import nas.errors
from nas.config import Config, explained
from nas.store import Measurement, Store, open_database

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "ray")
LIGHT = (
    "nas",
    "nas.errors",
    "nas.metrics",
    "nas.space",
    "nas.config",
    "nas.store",
    "nas.ladder",
    "nas.leaderboard",
    "nas.proxy_fidelity.calibration",
    "nas.lease",
    "nas.search.state",
    "nas.search.study",
    "nas.cli",
    "search_spaces",
)

REPORT = f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules], flush=True)"

COMMAND = f"""
import atexit, sys
atexit.register(lambda: {REPORT})
import runpy
sys.argv = ["nas", *sys.argv[1:]]
runpy.run_module("nas", run_name="__main__")
"""


def loaded(code: str, *arguments: str, rc: int = 0) -> tuple[list[str], str]:
    """Which heavy packages a fresh process has loaded at its end, and what it printed before."""
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == rc, ran.stderr
    output, _, last = ran.stdout.rpartition("LOADED")
    return last.split(), output


def test_the_watch_sees_torch() -> None:
    """Else the next tests could not fail."""
    assert loaded(f"import sys, torch; {REPORT}")[0] == ["torch"]


@pytest.mark.parametrize("module", LIGHT)
def test_modules_without_networks_load_neither_torch_nor_ray(module: str) -> None:
    assert loaded(f"import sys, {module}; {REPORT}")[0] == []


def test_importing_them_and_the_sampler_together_loads_neither_torch_nor_ray() -> None:
    code = "from nas.search.study import make_sampler; make_sampler('tpe', 0); make_sampler('nsga2', 0)"
    assert loaded(f"import sys; {code}; {REPORT}")[0] == []


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An experiment with one measured candidate."""
    config = Config(name="demo", results=tmp_path)
    config.folder.mkdir()
    (config.folder / "config.toml").write_text(explained(config), encoding="utf-8")
    records = Store(open_database(config.database), "demo")
    signals = {"val_loss": 0.25, "val_accuracy": 0.75, "params": 1000.0, "flops": 2000.0}
    add_candidate(records, Measurement("{}", "a1b2c3d4e5f6", "proxy-0", 0, "done", signals, {"seconds": 1.0}), 0)
    records.set_fact("rungs", ["proxy-0"])
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["leaderboard", "--help"]], ids=str)
def test_help_starts_neither_torch_nor_ray(arguments: list[str]) -> None:
    names, output = loaded(COMMAND, *arguments)
    assert names == []
    assert len(output.splitlines()) > 5


@pytest.mark.parametrize("arguments", [[], ["--format", "csv"], ["--sort", "params"], ["--pareto"]], ids=str)
def test_the_leaderboard_starts_neither_torch_nor_ray(results: Path, arguments: list[str]) -> None:
    names, output = loaded(COMMAND, "leaderboard", "demo", "--results", str(results), *arguments)
    assert names == []
    assert "trial 0" in output


def test_bad_input_is_refused_before_torch_starts(results: Path) -> None:
    assert loaded(COMMAND, "leaderboard", "nowhere", "--results", str(results), rc=2)[0] == []
    assert loaded(COMMAND, "leaderboard", "demo", "--results", str(results), "--sort", "speed", rc=2)[0] == []
    assert loaded(COMMAND, "config", "--set", "proxy.epochs=0", rc=2)[0] == []


# --------------------------------------------------------------------------------------------------- shape


def test_the_public_names() -> None:
    assert nas.__all__ == ["Experiment"]
    with pytest.raises(AttributeError, match="no attribute 'Experimnet'"):
        _ = nas.Experimnet
    from nas.experiment import Experiment

    assert nas.Experiment is Experiment


# -------------------------------------------------------------------------------------------------- errors


def drawn() -> dict[str, str | None]:
    """Each error in the drawing of the docstring, with the one that it hangs on."""
    path: list[tuple[int, str]] = []
    parents: dict[str, str | None] = {}
    for line in (nas.errors.__doc__ or "").splitlines():
        match = re.match(r"^[ │├└─]+([A-Z]\w+)(?=\s|$)", line)
        if match is None:
            continue
        column = match.start(1)
        path = [(c, name) for c, name in path if c < column]
        parents[match[1]] = path[-1][1] if path else None
        path.append((column, match[1]))
    return parents


def test_every_error_is_in_the_tree_and_hangs_where_it_is_drawn() -> None:
    defined = {
        name: value
        for name, value in vars(nas.errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    tree = drawn()
    assert set(tree) == set(defined)
    assert len(tree) > 8
    assert tree["NasError"] is None
    assert defined["NasError"].__bases__ == (Exception,)
    for name, parent in tree.items():
        if parent is not None:
            assert defined[name].__bases__ == (defined[parent],)


def test_no_other_module_defines_an_error() -> None:
    for package in ("nas", "search_spaces"):
        for file in (ROOT / package).rglob("*.py"):
            if file.name != "errors.py":
                text = file.read_text(encoding="utf-8")
                assert re.findall(r"^ *class (\w+)\(\w*(?:Error|Exception)\w*\)", text, re.MULTILINE) == [], file


BANNED = frozenset(
    {
        *("hand", "promise", "outlook", "newcomer", "newcomers", "wants_newcomer", "beliefs", "stand_in", "stands_in"),
        *("thinner", "narrower", "narrowed", "bench", "slot", "slots", "crew", "over_ray", "rehearsal", "calmer"),
        *("stillborn", "judge"),
    }
)
"""Private words for things that have a name in the field; see the vocabulary in docs/concepts.md."""


def identifiers(file: Path) -> set[str]:
    """Every name that a module defines or uses, and its own."""
    found = {file.stem}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for field in ("id", "attr", "name", "arg", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found |= set(value.split("."))
    return {name.strip("_").lower() for name in found}


@pytest.mark.parametrize("package", ["nas", "search_spaces", "scripts"])
def test_names_are_those_of_the_field(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): sorted(identifiers(file) & BANNED) for file in files}
    assert {file: names for file, names in found.items() if names} == {}
