"""The Optuna study: a projection that Optuna's own tools open, also while a search runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from recorded import proposal

from nas.search.state import SearchState
from nas.search.study import JOURNAL, TRIAL, Journal, study_of
from nas.store import Measurement, Proposal

RUNG = "proxy-0"
DISTRIBUTION = '{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 0, "high": 9}}'


def measured(number: int, loss: float = 0.5, status: str = "done") -> Measurement:
    signals = {"val_loss": loss, "params": 10.0} if status == "done" else {}
    cause = None if status == "done" else "it broke"
    return Measurement(str(number), f"key{number}", RUNG, 0, status, signals, cause=cause)  # type: ignore[arg-type]


def proposed(number: int) -> Proposal:
    from dataclasses import replace

    return replace(
        proposal(measured(number), number), parameters={"width": number}, distributions={"width": DISTRIBUTION}
    )


def state(*events: Proposal | Measurement) -> SearchState:
    return SearchState.replay([RUNG], 0, "loss", events)


def read(folder: Path) -> optuna.Study:
    """With Optuna's public names alone, as the guide has it."""
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.load_study(study_name="demo", storage=storage)


def journal(folder: Path) -> Journal:
    return Journal(folder, "demo", ["loss"], lambda signals: {"params": signals["params"] / 20 - 1})


def test_optuna_opens_the_journal_and_finds_each_trial_at_its_number(tmp_path: Path) -> None:
    history: list[Proposal | Measurement] = [proposed(0), proposed(1), measured(1, 0.25)]
    one = journal(tmp_path)
    one.update(state(*history))
    assert read(tmp_path).get_trials() == []  # trial 0 is not finished
    history += [measured(0), proposed(2), measured(2, status="failed"), proposed(3)]
    one.update(state(*history))
    trials = read(tmp_path).get_trials()
    assert [(one.number, one.user_attrs[TRIAL]) for one in trials] == [(0, "0"), (1, "1"), (2, "2")]
    assert [one.values for one in trials] == [[0.5], [0.25], None]
    assert [one.params for one in trials] == [{"width": 0}, {"width": 1}, {"width": 2}]
    assert trials[0].constraints == {"params": -0.5}
    assert trials[2].state == TrialState.FAIL
    assert read(tmp_path).best_trial.number == 1


def test_a_resumed_search_goes_on_with_the_journal(tmp_path: Path) -> None:
    history: list[Proposal | Measurement] = [proposed(0), measured(0)]
    journal(tmp_path).update(state(*history))
    history += [proposed(1), measured(1)]
    for _ in range(2):
        journal(tmp_path).update(state(*history))
    assert [one.number for one in read(tmp_path).get_trials()] == [0, 1]


def test_a_lost_journal_is_written_anew_and_one_of_something_else_is_replaced(tmp_path: Path) -> None:
    history = [event for number in range(3) for event in (proposed(number), measured(number))]
    journal(tmp_path).update(state(*history))
    (tmp_path / JOURNAL).unlink()
    journal(tmp_path).update(state(*history))
    assert len(read(tmp_path).get_trials()) == 3
    journal(tmp_path).update(state(*history[:2]))
    assert len(read(tmp_path).get_trials()) == 1


def test_other_processes_read_it_while_it_is_written(tmp_path: Path) -> None:
    one = journal(tmp_path)
    one.update(state(proposed(0), measured(0)))
    code = (
        "import optuna, sys; from optuna.storages import JournalStorage; "
        "from optuna.storages.journal import JournalFileBackend; "
        "storage = JournalStorage(JournalFileBackend(sys.argv[1])); "
        "print(optuna.load_study(study_name='demo', storage=storage).best_value)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / JOURNAL)], capture_output=True, text=True)
    assert ran.stdout.split() == ["0.5"], ran.stderr


def test_the_study_has_the_times_of_the_record(tmp_path: Path) -> None:
    first, outcome = proposed(0), measured(0)
    [trial] = study_of(state(first, outcome), ["loss"], lambda signals: {}).get_trials()
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    assert trial.datetime_start.timestamp() == pytest.approx(first.created)
    assert trial.datetime_complete.timestamp() == pytest.approx(outcome.created)
