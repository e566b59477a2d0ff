"""Every command of the README and of the guide does what it says: run here in small, in the order of the pages."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GUIDE = re.findall(r"guide/[\w-]+\.md", (ROOT / "scripts" / "docs" / "mkdocs.yml").read_text(encoding="utf-8"))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in (README, *(ROOT / "docs" / page for page in GUIDE)))
"""The README and the pages of the guide, in the order of the navigation."""

COMMANDS = list(
    dict.fromkeys(  # a command that stands on several pages runs once
        line.partition("  #")[0].strip()
        for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
        for line in block.splitlines()
        if line.strip()
    )
)

SMALL = [
    *("proxy.epochs=1", "proxy.images=300", "retrain.epochs=1", "retrain.images=300", "retrain.seeds=1"),
    "retrain.references=false",
]
"""Settings added to each `nas run` and `nas search`."""


def test_the_pages_have_commands() -> None:
    assert {page.name for page in (ROOT / "docs" / "guide").iterdir()} == {Path(page).name for page in GUIDE}
    assert len(COMMANDS) > 30
    assert {command.split()[0] for command in COMMANDS} <= {"nas", "pip", "scripts/quickstart", "scripts/test"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster with two declared GPUs, which `executor.address=auto` finds."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
    cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Path:
    """A folder with what the reader has: photos, photos of other things, and the space of the example."""
    cwd = tmp_path_factory.mktemp("readme")
    generator = np.random.default_rng(0)
    for name in ("photos/cats", "photos/dogs", "more-photos/birds", "more-photos/fish", "more-photos/frogs"):
        (cwd / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(cwd / name / f"{number}.png")
    example = re.search(r"<!-- example space -->\n```python\n(.*?)```", TEXT, re.S)
    assert example
    (cwd / "plain.py").write_text(example[1])
    return cwd


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_one_after_the_other(
    nas: Callable[..., Any], folder: Path, request: pytest.FixtureRequest
) -> None:
    for command in COMMANDS:
        if not command.startswith("nas "):
            continue  # set-up: tested below
        if "DATA" in command:
            command = command.replace("DATA", str(request.getfixturevalue("real_data")))
        if re.match(r"nas (run|search) ", command):
            command += " --trials 1" + "".join(f" --set {one}" for one in SMALL)
            ray_executor = "executor.gpus" in command or "executor.address" in command
            command += f" --set executor.{'address=auto' if ray_executor else 'kind=in-process'}"
        elif command.startswith("nas plan"):
            command += " --set executor.kind=in-process --set proxy.images=300"
        elif command.startswith("nas calibrate collect"):
            command += " --architectures 8 --epochs 1 --full-epochs 2 --seeds 1 --full-seeds 1 --train 300"
        elif command.startswith("nas calibrate report"):
            command += " --resamples 20"
        elif command.startswith("nas simulate"):
            command += " --repeats 4"
        elif re.match(r"nas retrain ", command):
            command = command.replace("--seeds 5", "--seeds 2")
        if ">" in command:
            words = ["bash", "-c", command.replace("nas ", f"{sys.executable} -m nas ", 1)]
            subprocess.run(words, cwd=folder, check=True)
            continue
        done = nas(*shlex.split(command)[1:], cwd=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_library_example(tmp_path: Path) -> None:
    [example] = [code for code in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "nas.Experiment(" in code]
    small = example.replace(
        'data="digits")',
        'data="digits", executor__kind="in-process", proxy__epochs=1, '
        "retrain__epochs=1, retrain__seeds=1, retrain__references=False)",
    )
    small = small.replace("trials=30", "trials=2")
    assert small.count("trials=2") == 1
    assert "retrain__epochs=1" in small
    done = subprocess.run([sys.executable, "-c", small], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "1 trial" in done.stdout
    assert done.stdout.rstrip().endswith("export")
    [example] = [code for code in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "JournalFileBackend(" in code]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"[01] [\d.]+\n", done.stdout)


def test_the_example_of_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"<!-- towers -->\n```python\n(.*?)```", TEXT, re.S)
    assert example
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example[1], names)
    assert list(torch.load("network.pt", weights_only=True)) == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
        "5.weight",
        "5.bias",
    ]
    assert len(names["model"].towers) == 1


@pytest.mark.slow
def test_pip_install(tmp_path: Path) -> None:
    """The wheel holds everything: `nas` runs from it alone."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "results", ".*_cache", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    code = "import nas, search_spaces; print(nas.__file__, search_spaces.__file__); import nas.cli as c; c.main()"
    for words, said in ((["data", "list"], "fashion-mnist"), (["config", "googlenet-wide"], "width = [1.25]")):
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(str(tmp_path / "site")) == 2
        assert said in done.stdout


def test_quickstart(tmp_path: Path) -> None:
    """The script finds its .venv and passes on what it is given."""
    if not (ROOT / ".venv" / "installed").is_file():
        pytest.skip("not set up by the scripts")
    done = subprocess.run(
        [str(ROOT / "scripts" / "quickstart"), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Search, retrain the winner and export it." in done.stdout
