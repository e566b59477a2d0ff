"""The study: what it proposes after a restart, what it teaches the sampler, and what it leaves for a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sql
from optuna.trial import TrialState

from nas.records import open_database
from nas.space import Architecture, SearchSpace
from nas.study import ARCHITECTURE, CAUSE, GENERATION, Asked, Study, load, make_sampler, proposals

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


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Callable[[str], sql.Engine]]:
    """A new connection to the database of a name, as another process has it."""
    made = []

    def connected(name: str = "study") -> sql.Engine:
        made.append(open_database(f"sqlite:///{tmp_path / name}.db"))
        return made[-1]

    yield connected
    for one in made:
        one.dispose()


@pytest.fixture
def new(engine: Callable[[str], sql.Engine]) -> Callable[..., Study]:
    """Opens the study of a name, as a driver does when it starts."""

    def opened(
        sampler: str = "random", objectives: Sequence[str] = ("loss",), seed: int = 0, name: str = "study"
    ) -> Study:
        return Study(engine(name), name, objectives, sampler, seed)

    return opened


@pytest.fixture
def stored(engine: Callable[[str], sql.Engine]) -> Callable[..., list[optuna.trial.FrozenTrial]]:
    """The trials as another process reads them from the database."""

    def trials(name: str = "study", objectives: Sequence[str] = ("loss",)) -> list[optuna.trial.FrozenTrial]:
        return load(engine(name), name, objectives).get_trials()

    return trials


def loss(asked: Asked) -> float:
    values = asked.architecture.values  # type: ignore[attr-defined]
    return sum((value - 11) ** 2 for value in values) + (asked.architecture.kind == "round")  # type: ignore[attr-defined]


def excess(asked: Asked, limit: int) -> float:
    return sum(asked.architecture.values) / limit - 1  # type: ignore[attr-defined]


def kept(study: Study) -> Asked:
    """A proposal that is going to be measured."""
    asked = study.ask(GRID)
    study.keep(asked.number)
    return asked


def advance(study: Study, count: int) -> list[Asked]:
    found = []
    for _ in range(count):
        asked = study.ask(GRID)
        study.tell(asked.number, [loss(asked)])
        found.append(asked)
    return found


def test_a_limit_that_comes_later_does_not_end_what_the_gaussian_process_learns(new: Callable[..., Study]) -> None:
    """Its trials must all have the same constraints; it would fail at each proposal, and random ones take its place."""
    first = new("gp")
    for _ in range(11):
        asked = first.ask(GRID)
        first.constrain(asked.number, {"latency_ms": -0.25})
        first.tell(asked.number, [loss(asked)])
    study = new("gp")
    study.limited_by(["flops", "latency_ms"], {asked.architecture.to_json(): {"flops": 0.5, "latency_ms": 9.0}})
    for _ in range(2):
        later = study.ask(GRID)
        study.constrain(later.number, {"flops": -0.5, "latency_ms": -0.5})
        study.tell(later.number, [loss(later)])
    said = [list(trial.constraints.items()) for trial in study._study.get_trials()]
    assert said[0] == [("flops", -1.0), ("latency_ms", -0.25)]  # the order is the one in which gp reads them
    assert said[10] == [("flops", 0.5), ("latency_ms", -0.25)]
    assert said[11] == [("flops", -0.5), ("latency_ms", -0.5)]


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
    before = [kept(new("tpe")).architecture.key for _ in range(6)]  # a driver each, none of which tells
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
    number = kept(new()).number
    new().constrain(number, {"params": 0.5})
    study = new()
    study.constrain(number, {"params": 0.5})
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
    assert [d.name for d in study._study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert {t.state for t in stored(objectives=directions)} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}


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
    told, waiting, pruned, also_waiting = (kept(first) for _ in range(4))
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
def test_a_trial_without_an_architecture_was_never_proposed(
    new: Callable[..., Study], stored: Callable[..., list[optuna.trial.FrozenTrial]], after: int
) -> None:
    first = kept(new())
    with pytest.raises(KeyboardInterrupt):
        new().ask(Breaking(after))
    assert len(stored()) == 1
    assert new().running(GRID) == [first]
    assert new().ask(GRID).number == 1


def test_an_enqueued_point_comes_first_and_once(new: Callable[..., Study]) -> None:
    other = {**FIRST, "a": 4}
    asked = []
    for _ in range(4):  # each start of the same command enqueues the same points
        study = new("tpe")
        study.enqueue(FIRST)
        study.enqueue(other)
        asked.append(kept(study))
    assert [one.architecture for one in asked[:2]] == [GRID.point(FIRST), GRID.point(other)]
    assert not {GRID.point(FIRST).key, GRID.point(other).key} & {one.architecture.key for one in asked[2:]}
    new().tell(asked[0].number, [1.0])
    again = new()
    again.enqueue(FIRST)
    again.enqueue(other)
    assert len(again) == 4  # neither while it runs nor when it is told


def test_an_enqueued_point_is_not_lost_when_its_trial_is_interrupted_at_once(new: Callable[..., Study]) -> None:
    first = new()
    first.enqueue(FIRST)
    with pytest.raises(KeyboardInterrupt):
        first.ask(Breaking(1))
    again = new()
    again.enqueue(FIRST)
    assert again.running(GRID) == []
    assert again.ask(GRID).architecture == GRID.point(FIRST)
    assert again.ask(GRID).architecture != GRID.point(FIRST)


def test_a_proposal_that_is_forgotten_takes_its_number_and_leaves_nothing(
    new: Callable[..., Study], stored: Callable[..., list[optuna.trial.FrozenTrial]]
) -> None:
    study = new()
    first, forgotten, second, last = (study.ask(GRID) for _ in range(4))
    study.forget(forgotten.number)
    study.forget(last.number)
    study.keep(first.number)
    study.keep(second.number)
    states = [trial.state.name for trial in stored()]
    assert states == ["RUNNING", "FAIL", "RUNNING", "FAIL"]
    assert stored()[1].user_attrs == stored()[3].user_attrs == {}
    again = new()
    assert again.running(GRID) == [first, second]
    assert again.ask(GRID) == study.ask(GRID)  # of the same number, and so of the same seed
    assert again.values()[first.number] == first.values
    assert again.values()[forgotten.number] == {}


def test_proposals_tells_of_every_trial_that_has_an_architecture(
    new: Callable[..., Study], engine: Callable[..., sql.Engine]
) -> None:
    study = new()
    asked = [kept(study) for _ in range(3)]
    study.tell(asked[0].number, [1.0])
    study.tell_infeasible(asked[1].number, "over")
    with pytest.raises(KeyboardInterrupt):
        study.ask(Breaking(1))
    found = proposals(engine(), "study")
    assert found == [(one.number, one.architecture.to_json()) for one in asked]


def test_a_trial_is_written_and_read_to_the_letter(
    new: Callable[..., Study], stored: Callable[..., list[optuna.trial.FrozenTrial]]
) -> None:
    study = new("nsga2", ("loss", "flops"))
    for asked in [study.ask(GRID) for _ in range(GENERATION + 3)]:
        study.constrain(asked.number, {"params": excess(asked, 60)})
        study.tell(asked.number, [loss(asked), 1.5])
    waiting = kept(study)
    read = stored(objectives=("loss", "flops"))
    assert read == study._study.get_trials()  # values, times, distributions and what the sampler noted
    assert (read[-1].number, read[-1].state) == (waiting.number, TrialState.RUNNING)


def test_a_row_that_is_lost_takes_no_other_ones_number(new: Callable[..., Study], engine: Callable[..., Any]) -> None:
    asked = advance(new(), 3)
    with engine().begin() as connection:
        connection.execute(sql.text("DELETE FROM nas_trials WHERE number = 1"))
    assert len(new()) == 3
    assert kept(new()).number == 3
    assert [number for number, _ in proposals(engine(), "study")] == [asked[0].number, asked[2].number, 3]


def test_studies_of_one_database_keep_apart(engine: Callable[..., sql.Engine]) -> None:
    one, other = (Study(engine(), name, ["loss"], "random", 0) for name in ("one", "other"))
    advance(one, 3)
    assert other.ask(GRID).number == 0
    assert len(proposals(engine(), "one")) == 3
