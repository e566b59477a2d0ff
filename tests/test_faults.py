"""Faults from outside, end to end: the driver killed, interrupted, started twice, or started with other settings.

Everything runs as a person runs it: ``python -m nas search`` in a process of its own. Its space notes each training.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nas.config import Config, DataConfig, ProxyConfig, SearchConfig, SpaceConfig, TowersConfig
from nas.data import Data, load
from nas.errors import ConfigError, SpaceError
from nas.space import Architecture, SearchSpace
from nas.steps.driver import check_usable

SPACE = '''
"""The Inception space; each network notes in a file when its training begins (with more images than a dry run)."""
from pathlib import Path
from search_spaces.inception import InceptionSettings, InceptionSpace

class Settings(InceptionSettings):
    notes: str

class Note:
    def __init__(self, file, key):
        self.file, self.key, self.written = file, key, False
    def __call__(self, network, inputs):
        if network.training and len(inputs[0]) > 10 and not self.written:
            self.written = True
            with Path(self.file).open("a") as file:
                file.write(self.key + "\\n")

class Noting(InceptionSpace):
    """Inception networks that note their trainings."""
    settings_type = Settings
    def build(self, architecture, input_shape, num_classes):
        network = super().build(architecture, input_shape, num_classes)
        network.register_forward_pre_hook(Note(self.settings.notes, architecture.key))
        return network
'''


@dataclass
class Place:
    """An experiment's folder and its command."""

    folder: Path

    @property
    def notes(self) -> Path:
        return self.folder / "notes.txt"

    def command(self, *more: str, trials: int) -> list[str]:
        settings = {
            "space.name": "inception",
            "space.widths": "[8,8,8]",
            "space.stem": "[8,8]",
            "space.notes": str(self.notes),
            "proxy.epochs": "5",
            "ladder.rungs": "1",  # each candidate is trained once; promotions that die are tested in test_search
            "executor.device": "cpu",
        }
        words = [sys.executable, "-m", "nas", "search", "--name", "faults", "--results", str(self.folder)]
        words += ["--space", f"{self.folder / 'noting.py'}:Noting", "--data", "digits", "--trials", str(trials)]
        return [*words, *(word for pair in settings.items() for word in ("--set", "=".join(pair))), *more]

    def start(self, *more: str, trials: int, before: Sequence[str] = ()) -> subprocess.Popen[str]:
        """In a session of its own, as a shell starts it, so that Ctrl-C can go to all of its processes."""
        return subprocess.Popen(
            [*before, *self.command(*more, trials=trials)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # whoever runs the tests
            cwd=self.folder,
        )

    def run(self, *more: str, trials: int) -> subprocess.CompletedProcess[str]:
        """From beginning to end, in one process."""
        command = self.command("--set", "executor.kind=in-process", *more, trials=trials)
        return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.folder)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What another process reads in the database; nothing before it is there."""
        file = self.folder / "faults" / "study.db"
        if not file.is_file():
            return []
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as connection:
            try:
                return connection.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def measured(self) -> dict[str, tuple[Any, ...]]:
        """Of each architecture in the table, all that was written down."""
        proposed = {key for (key,) in self.rows("SELECT key FROM nas_proposals WHERE status = 'candidate'")}
        rows = self.rows("SELECT key, * FROM nas_evaluations")
        return {row[0]: row for row in rows if row[0] in proposed}

    def trained(self) -> Counter[str]:
        """How often the training of each architecture began."""
        return Counter(self.notes.read_text().split()) if self.notes.exists() else Counter()

    def states(self) -> Counter[str]:
        """Trials by their state: no architecture (failed), infeasible, waiting, or the state of their measurement."""
        statuses = dict(self.rows("SELECT key, status FROM nas_evaluations"))
        trials = self.rows("SELECT key, status FROM nas_proposals")
        return Counter(statuses.get(key, "waiting") if status == "candidate" else status for key, status in trials)

    def proposals(self) -> dict[int, str]:
        """The parameters of each trial by its number."""
        return dict(self.rows("SELECT number, parameters FROM nas_proposals"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "noting.py").write_text(SPACE)
    return Place(folder)


@pytest.fixture
def new_place(tmp_path: Path) -> Place:
    (tmp_path / "noting.py").write_text(SPACE)
    return Place(tmp_path)


def until(what: Callable[[], object], seconds: float, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended early ({process.returncode}): {process.communicate()}")
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def workers(driver: int) -> set[int]:
    """The processes below a driver, by /proc. Ray's agents are left out: they wait a minute for their Ray, idly."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status, names[int(entry.name)] = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except OSError:
                continue  # it has just ended
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found: set[int] = set()
    border = {driver}
    while border:
        border = {child for child, parent in parents.items() if parent in border} - found
        found |= border
    assert any(names[pid].startswith("ray::Worker") for pid in found)
    return {pid for pid in found if not names[pid].rstrip("\0").endswith("Agent")}


def living(pids: set[int]) -> set[int]:
    """Those of these processes that still run, and are no zombies."""
    found = set()
    for pid in pids:
        try:
            state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.add(pid)
    return found


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Drivers that a test starts; whatever happens, none outlives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


# ---------------------------------------------------------------------------------------------- kill -9


@pytest.mark.slow
def test_a_driver_killed_and_started_again_measures_nothing_twice_and_repeats_no_proposal(
    new_place: Place, processes: list[subprocess.Popen[str]]
) -> None:
    trials = 7
    first = new_place.start("--workers", "2", trials=trials)
    processes.append(first)
    until(lambda: len(new_place.measured()) >= 3, 100, first)
    family = workers(first.pid)
    first.kill()
    first.communicate()
    before, proposed = new_place.measured(), new_place.proposals()
    assert 3 <= len(before) < trials
    assert new_place.states()["waiting"] > 0
    assert family
    until(lambda: not living(family), 30)  # Ray and its workers end by themselves
    trained = new_place.trained()  # a worker may have begun what it was given just before

    second = new_place.start("--workers", "2", trials=trials)
    processes.append(second)
    out, complaints = second.communicate(timeout=120)
    assert second.returncode == 0, complaints
    assert f"of {trials} candidates" in out
    after = new_place.measured()
    assert len(after) == trials
    assert before.items() <= after.items()  # to the letter, seconds and all
    again = {key: count for key, count in new_place.trained().items() if count > 1}
    assert not set(again) & set(before)  # what was written down is not trained again ...
    assert set(again) <= set(trained)  # ... only what was being trained when the driver died
    assert max(again.values(), default=0) <= 2
    assert set(new_place.states()) <= {"done", "failed"}
    proposals = new_place.proposals()
    assert proposed.items() <= proposals.items()
    assert len(set(proposals.values())) == len(proposals)


# -------------------------------------------------------------------------------------- Ctrl-C, two drivers


@pytest.fixture(scope="module")
def interrupted(place: Place) -> tuple[int, str, str, subprocess.CompletedProcess[str]]:
    """A search over Ray, beside which a second one is started, ended with Ctrl-C."""
    first = place.start("--workers", "2", trials=1000)
    try:
        until(lambda: len(place.measured()) >= 2, 100, first)
        family = workers(first.pid)
        config = place.folder / "faults" / "config.toml"
        before = config.read_text()
        second = place.run(trials=1000)
        assert config.read_text() == before  # it would say another executor
        assert first.poll() is None
        os.killpg(first.pid, signal.SIGINT)
        out, complaints = first.communicate(timeout=60)
        until(lambda: not living(family), 30)
    finally:
        if first.poll() is None:
            first.kill()
            first.communicate()
    return first.returncode, out, complaints, second


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(
    place: Place, interrupted: tuple[int, str, str, subprocess.CompletedProcess[str]]
) -> None:
    code, out, complaints, _ = interrupted
    assert code == 130
    assert "Traceback" not in out + complaints
    (line,) = complaints.strip().splitlines()
    assert line.startswith("Stopped; what was measured is saved. To go on: nas search --name faults --results ")
    assert place.rows("SELECT * FROM nas_leases") == []


@pytest.mark.slow
def test_a_second_driver_is_refused_in_one_line(
    interrupted: tuple[int, str, str, subprocess.CompletedProcess[str]],
) -> None:
    *_, second = interrupted
    assert second.returncode == 2
    (line,) = second.stderr.strip().splitlines()
    assert re.fullmatch(r"error: this experiment is being written by another driver \(process \d+ on .+\)", line)


@pytest.mark.slow
def test_another_meaning_of_the_scores_is_refused(place: Place, interrupted: object) -> None:
    config, before = (place.folder / "faults" / "config.toml").read_text(), place.measured()
    run = place.run("--seed", "1", "--set", "proxy.epochs=2", trials=1000)
    assert run.returncode == 2
    (line,) = run.stderr.strip().splitlines()
    assert "seed (0, now 1), proxy.epochs (5, now 2)" in line
    assert "--name" in line
    assert place.measured() == before
    assert (place.folder / "faults" / "config.toml").read_text() == config


@pytest.mark.slow
def test_more_trials_go_on_where_it_was_stopped(place: Place, interrupted: object) -> None:
    before = place.measured()
    waiting = place.states()["waiting"]
    assert 1 <= waiting <= 2
    run = place.run(trials=len(before) + waiting + 1)
    assert run.returncode == 0, run.stderr
    after = place.measured()
    assert len(after) == len(before) + waiting + 1
    assert before.items() <= after.items()
    assert "waiting" not in place.states()
    trained = place.trained()
    assert all(trained[key] == 1 for key in before)
    assert all(trained[key] <= 2 for key in after)


@pytest.mark.slow
def test_a_polite_end_is_an_interrupt_too(new_place: Place, processes: list[subprocess.Popen[str]]) -> None:
    deaf = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]  # as a script's background jobs are to Ctrl-C
    driver = new_place.start("--set", "executor.kind=in-process", trials=1000, before=deaf)
    processes.append(driver)
    until(new_place.measured, 60, driver)
    driver.terminate()
    out, complaints = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert "Traceback" not in out + complaints
    assert complaints.startswith("Stopped; what was measured is saved.")
    assert new_place.rows("SELECT * FROM nas_leases") == []


# -------------------------------------------------------------- fine each for itself, but not together


class Bit(Architecture):
    works: bool


class Moody(SearchSpace):
    """Half of its networks, or none, can be built."""

    architecture_type = Bit

    def __init__(self, never: bool) -> None:
        super().__init__()
        self.never = never

    def suggest(self, trial: Any) -> Bit:
        return Bit(works=trial.suggest_categorical("works", [False, True]))

    def build(self, architecture: Any, input_shape: Any, num_classes: int) -> nn.Module:
        if self.never or not architecture.works:
            raise ArithmeticError("not today")
        network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
        network.cell_names = ("0",)  # type: ignore[assignment]
        return network


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig())


def test_a_space_may_have_networks_that_cannot_be_built_but_not_only_such(data: Data) -> None:
    config = Config(space=SpaceConfig(name="moody.py:Moody"))
    state = torch.get_rng_state()
    check_usable(config, Moody(never=False), data)
    torch.set_rng_state(state)
    with pytest.raises(SpaceError, match=r"^space 'moody.py:Moody' builds no network: ArithmeticError: not today$"):
        check_usable(config, Moody(never=True), data)


def test_stand_ins_that_cannot_be_are_refused(data: Data) -> None:
    thin = Config(proxy=ProxyConfig(width=0.5))
    with pytest.raises(SpaceError, match=r"^proxy\.width needs a space that makes thinner networks: Moody does not$"):
        check_usable(thin, Moody(never=False), data)
    tiny = Config(proxy=ProxyConfig(shrink=9))
    with pytest.raises(ConfigError, match=r"^proxy\.shrink = 9 leaves nothing of images of 8x8 pixels$"):
        check_usable(tiny, Moody(never=False), data)
    check_usable(Config(proxy=ProxyConfig(shrink=8)), Moody(never=False), data)


def test_what_config_and_space_do_not_agree_on_is_refused(data: Data) -> None:
    warm = Config(search=SearchConfig(warm_start=("googlenet",)))
    with pytest.raises(ConfigError, match=r"^search\.warm_start names 'googlenet', but the space has: none$"):
        check_usable(warm, Moody(never=False), data)
    towers = Config(towers=TowersConfig(placement=(1,)))
    with pytest.raises(ConfigError, match=r"^towers\.placement names cell 1, but this network has cells 0 to 0$"):
        check_usable(towers, Moody(never=False), data)
