"""What several test files share."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # small networks on shared cores: more threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Done:
    """What a command returned and printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def nas() -> Callable[..., Done]:
    """The command line: ``nas("run", "--name", "x", cwd=folder)``; in this process, so that torch is imported once."""
    from nas.cli import main

    def call(*words: str | Path, cwd: Path) -> Done:
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["nas", *map(str, words)])
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        return Done(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: $NAS_TEST_DATA, else ../shared/data; skips where there is none."""
    given = os.environ.get("NAS_TEST_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (set NAS_TEST_DATA)")
    return folder
