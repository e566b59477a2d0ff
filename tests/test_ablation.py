"""scripts/studies/ablate_auxiliary.py, in small: it trains, goes on where it was, and its report adds up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]


def ablate(folder: Path, *words: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "studies" / "ablate_auxiliary.py"), "--small"]
    command += ["--executor", "in-process", "--folder", str(folder), "--to", str(folder / "report"), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.slow
def test_the_ablation_in_small(tmp_path: Path) -> None:
    assert "validation accuracy" in ablate(tmp_path)
    first = (tmp_path / "report" / "trainings.csv").read_text()
    assert "validation accuracy" not in ablate(tmp_path)  # nothing is trained twice
    assert (tmp_path / "report" / "trainings.csv").read_text() == first
    trainings = pd.read_csv(tmp_path / "report" / "trainings.csv")
    assert set(trainings["status"]) == {"done"}
    table = pd.read_csv(tmp_path / "report" / "variations.csv").set_index("arm")
    gain = table.loc["one, 0.3", "accuracy"] - table.loc["none", "accuracy"]
    assert table.loc["one, 0.3", "accuracy_gain"] == pytest.approx(gain, abs=1e-4)
    assert (tmp_path / "report" / "early.svg").stat().st_size > 1000
