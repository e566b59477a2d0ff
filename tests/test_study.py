"""The study: what it proposes after a restart, what it teaches the sampler, and what it leaves for a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sql
from optuna.trial import TrialState

from nas.space import Architecture, SearchSpace
from nas.study import ARCHITECTURE, CAUSE, GENERATION, Asked, Study, make_sampler, proposals

NAMES = tuple("abcdef")


class Point(Architecture):
    values: tuple[int, ...]
    kind: str


class Grid(SearchSpace):
    """Six whole numbers and a kind; 2 * 16 ** 6 points. Nothing is ever built."""

    architecture_type = Point

    def suggest(self, trial: Any) -> Point:
        values = tuple(trial.suggest_int(name, 0, 15) for name in NAMES)
        return Point(values=values, kind=trial.suggest_categorical("kind", ["round", "square"]))

    def build(self, architecture: Any, input_shape: Any, num_classes: int) -> Any:
        raise NotImplementedError


class Breaking(Grid):
    """Dies after so many questions."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def suggest(self, trial: Any) -> Point:
        for name in NAMES[: self.after]:
            trial.suggest_int(name, 0, 15)
        raise KeyboardInterrupt


GRID = Grid()
FIRST = {**dict.fromkeys(NAMES, 3), "kind": "square"}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with Optuna's tables and nothing in them, which takes a while to make."""
    file = tmp_path_factory.mktemp("empty") / "study.db"
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    storage.remove_session()
    storage.engine.dispose()
    return file.read_bytes()


@pytest.fixture
def new(tmp_path: Path, empty: bytes) -> Iterator[Callable[..., Study]]:
    """Opens the study of a name, as a driver does when it starts."""

    def opened(
        sampler: str = "random", objectives: Sequence[str] = ("loss",), seed: int = 0, name: str = "study"
    ) -> Study:
        file = tmp_path / f"{name}.db"
        if not file.exists():
            file.write_bytes(empty)
        return Study(f"sqlite:///{file}", name, objectives, sampler, seed)

    return opened


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., list[optuna.trial.FrozenTrial]]:
    """The trials as another process reads them from the database."""

    def trials(name: str = "study") -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path / name}.db").get_trials()

    return trials


def loss(asked: Asked) -> float:
    values = asked.architecture.values  # type: ignore[attr-defined]
    return sum((value - 11) ** 2 for value in values) + (asked.architecture.kind == "round")  # type: ignore[attr-defined]


def excess(asked: Asked, limit: int) -> float:
    return sum(asked.architecture.values) / limit - 1  # type: ignore[attr-defined]


def advance(study: Study, count: int) -> list[Asked]:
    found = []
    for _ in range(count):
        asked = study.ask(GRID)
        study.tell(asked.number, [loss(asked)])
        found.append(asked)
    return found


# --------------------------------------------------------------------------------------------- proposals


@pytest.mark.parametrize(("sampler", "trials"), [("random", 12), ("tpe", 16), ("nsga2", GENERATION + 4), ("gp", 11)])
def test_a_reopened_study_proposes_what_an_uninterrupted_one_would_have(
    new: Callable[..., Study], sampler: str, trials: int
) -> None:
    whole = [asked.architecture for asked in advance(new(sampler, name="whole"), trials)]
    repeated = trials - len({one.key for one in whole})  # a seeded sampler that starts again repeats itself ...
    assert repeated <= (2 if sampler == "nsga2" else 0)  # ... but a child may be just like a parent
    pieces: list[Asked] = []
    for count in (1, 3, trials - 7, 1, 1, 1):
        pieces += advance(new(sampler, name="pieces"), count)
    assert [one.architecture for one in pieces] == whole
    assert [one.number for one in pieces] == list(range(trials))


def test_proposals_depend_on_the_seed_and_differ_from_trial_to_trial(new: Callable[..., Study]) -> None:
    one, other = (new(seed=seed, name=f"seed{seed}") for seed in (1, 2))
    keys = [asked.architecture.key for study in (one, other) for asked in (study.ask(GRID) for _ in range(5))]
    assert len(set(keys)) == 10


def test_trials_that_still_run_do_not_repeat_after_a_restart(new: Callable[..., Study]) -> None:
    before = [new("tpe").ask(GRID).architecture.key for _ in range(6)]  # a driver each, none of which tells
    assert len(set(before)) == 6


def test_exploring_leaves_the_sampler_aside(new: Callable[..., Study]) -> None:
    tpe, random = new("tpe", name="tpe"), new("random", name="random")
    for study in (tpe, random):
        advance(study, 20)
    assert tpe.ask(GRID).architecture != random.ask(GRID).architecture
    assert tpe.ask(GRID, explore=True).architecture == random.ask(GRID).architecture  # of the same seed and number


# ----------------------------------------------------------------------------------- limits and failures


def test_infeasible_trials_are_pruned_with_their_constraints_and_cause(
    new: Callable[..., Study], stored: Callable[..., list[optuna.trial.FrozenTrial]]
) -> None:
    study = new()
    over, under, faulty = (study.ask(GRID) for _ in range(3))
    study.constrain(over.number, {"params": 0.5, "flops": -0.1})
    study.tell_infeasible(over.number, "params 150 is 50 % over the limit")
    study.constrain(under.number, {"params": -0.5, "flops": -0.2})
    study.tell(under.number, [0.25])
    study.tell_failed(faulty.number, "ValueError: it broke")
    trials = stored()
    assert [t.state for t in trials] == [TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL]
    assert trials[0].constraints == {"params": 0.5, "flops": -0.1}
    assert trials[1].constraints == {"params": -0.5, "flops": -0.2}
    assert trials[1].values == [0.25]
    causes = [t.user_attrs.get(CAUSE) for t in trials]
    assert causes == ["params 150 is 50 % over the limit", None, "ValueError: it broke"]
    assert [t.user_attrs[ARCHITECTURE] for t in trials] == [a.architecture.to_json() for a in (over, under, faulty)]


@pytest.mark.filterwarnings("error")
def test_what_an_interrupted_driver_said_of_a_trial_may_be_said_again(
    new: Callable[..., Study], stored: Callable[..., list[optuna.trial.FrozenTrial]]
) -> None:
    number = new().ask(GRID).number
    new().constrain(number, {"params": 0.5})
    study = new()
    study.constrain(number, {"params": 0.5, "flops": 0.25})
    study.tell_infeasible(number, "params and flops")
    assert stored()[0].constraints == {"params": 0.5, "flops": 0.25}
    assert stored()[0].state == TrialState.PRUNED


def test_tpe_learns_to_stay_within_the_limits(new: Callable[..., Study]) -> None:
    """The loss pulls towards a sum of 66, the limit is 16: one random point in 225 keeps it."""
    feasible = {}
    for sampler in ("tpe", "random"):
        study = new(sampler, name=sampler)
        found = []
        for _ in range(80):
            asked = study.ask(GRID)
            over = excess(asked, 16)
            study.constrain(asked.number, {"params": over})
            if over > 0:
                study.tell_infeasible(asked.number, "over")
            else:
                study.tell(asked.number, [loss(asked)])
            found.append(over <= 0)
        feasible[sampler] = sum(found[-30:])
    assert feasible["random"] <= 3
    assert feasible["tpe"] >= 10


@pytest.mark.parametrize(("sampler", "trials"), [("nsga2", GENERATION + 8), ("tpe", 14), ("random", 8), ("gp", 12)])
def test_several_objectives_with_infeasible_and_failed_trials(
    new: Callable[..., Study], stored: Callable[..., list[optuna.trial.FrozenTrial]], sampler: str, trials: int
) -> None:
    directions = ("accuracy", "flops", "params")
    for part in range(2):  # the second half by a driver that finds the first
        study = new(sampler, directions)
        for number in range(trials // 2):
            asked = study.ask(GRID)
            if number == 3:
                study.tell_failed(asked.number, "it broke")
                continue
            study.constrain(asked.number, {"params": excess(asked, 50)})
            if excess(asked, 50) > 0:
                study.tell_infeasible(asked.number, "over")
            else:
                study.tell(asked.number, [-loss(asked), *asked.architecture.values[:2]])  # type: ignore[attr-defined]
        assert len(study) == (part + 1) * (trials // 2)
    told = optuna.load_study(study_name="study", storage=study._study._storage)
    assert [d.name for d in told.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert {t.state for t in stored()} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tpe", optuna.samplers.TPESampler),
        ("random", optuna.samplers.RandomSampler),
        ("gp", optuna.samplers.GPSampler),
        ("nsga2", optuna.samplers.NSGAIISampler),
    ],
)
def test_samplers_by_name(name: str, kind: type) -> None:
    assert type(make_sampler(name, 0)) is kind


# ------------------------------------------------------------------------------------------------ resume


def test_trials_that_were_running_come_back_until_they_are_told(new: Callable[..., Study]) -> None:
    first = new()
    told, waiting, pruned, also_waiting = (first.ask(GRID) for _ in range(4))
    first.tell(told.number, [1.0])
    first.tell_infeasible(pruned.number, "over")
    for _ in range(2):  # asking for them takes nothing away
        assert new().running(GRID) == [waiting, also_waiting]
    second = new()
    second.tell(waiting.number, [2.0])
    second.tell_failed(also_waiting.number, "it broke")
    assert new().running(GRID) == []
    assert new().ask(GRID).number == 4


@pytest.mark.parametrize("after", [0, 3])
def test_a_trial_without_an_architecture_is_told_failed_at_the_restart(
    new: Callable[..., Study], stored: Callable[..., list[optuna.trial.FrozenTrial]], after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        new().ask(Breaking(after))
    assert stored()[0].state == TrialState.RUNNING
    assert new().running(GRID) == []
    (trial,) = stored()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs[CAUSE] == "interrupted before an architecture was chosen"


def test_an_enqueued_point_comes_first_and_once(new: Callable[..., Study]) -> None:
    other = {**FIRST, "a": 4}
    for _ in range(3):  # each start of the same command enqueues the same points
        new("tpe").enqueue(FIRST)
        new("tpe").enqueue(other)
    asked = [new("tpe").ask(GRID) for _ in range(4)]
    assert [one.architecture for one in asked[:2]] == [GRID.point(FIRST), GRID.point(other)]
    assert not {GRID.point(FIRST).key, GRID.point(other).key} & {one.architecture.key for one in asked[2:]}
    new().tell(asked[0].number, [1.0])
    new().enqueue(FIRST)
    new().enqueue(other)
    assert len(new()) == 4  # neither while it runs nor when it is told


def test_an_enqueued_point_is_not_lost_when_its_trial_is_interrupted_at_once(new: Callable[..., Study]) -> None:
    new().enqueue(FIRST)
    with pytest.raises(KeyboardInterrupt):
        new().ask(Breaking(1))
    again = new()
    again.enqueue(FIRST)
    assert again.running(GRID) == []
    assert again.ask(GRID).architecture == GRID.point(FIRST)
    assert again.ask(GRID).architecture != GRID.point(FIRST)


def test_proposals_tells_of_every_trial_that_has_an_architecture(new: Callable[..., Study], tmp_path: Path) -> None:
    study = new()
    asked = [study.ask(GRID) for _ in range(3)]
    study.tell(asked[0].number, [1.0])
    study.tell_infeasible(asked[1].number, "over")
    with pytest.raises(KeyboardInterrupt):
        study.ask(Breaking(1))
    found = proposals(f"sqlite:///{tmp_path / 'study'}.db", "study")
    assert found == [(one.number, one.architecture.to_json()) for one in asked]


def test_sqlite_is_tuned_for_one_writer_beside_readers(new: Callable[..., Study]) -> None:
    with new()._study._storage._backend.engine.connect() as connection:  # type: ignore[attr-defined]
        assert connection.execute(sql.text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(sql.text("PRAGMA synchronous")).scalar() == 1  # NORMAL
