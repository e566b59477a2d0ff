"""The proposer: what it proposes after a restart, and what the sampler learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch import nn

from nas.config import SearchConfig
from nas.search.candidates import Candidates
from nas.search.proposer import Draw, Proposer
from nas.search.state import SearchState
from nas.search.study import ARCHITECTURE, CAUSE, GENERATION, make_sampler, study_of
from nas.space import Architecture, SearchSpace
from nas.store import Measurement, Proposal, Store, open_database

NAMES = tuple("abcdef")
RUNG = "proxy-0"


class Point(Architecture):
    values: tuple[int, ...]
    kind: str


class Sized(nn.Module):
    """As many parameters as the values' sum, and one."""

    def __init__(self, values: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(sum(values) + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] * self.weight.sum()


class Grid(SearchSpace):
    """Six whole numbers and a kind; 2 * 16 ** 6 points."""

    architecture_type = Point

    def suggest(self, trial: Any) -> Point:
        values = tuple(trial.suggest_int(name, 0, 15) for name in NAMES)
        return Point(values=values, kind=trial.suggest_categorical("kind", ["round", "square"]))

    def build(self, architecture: Any, input_shape: Any, num_classes: int) -> nn.Module:
        return Sized(architecture.values)


class Breaking(Grid):
    """Makes nothing of odd first values."""

    def suggest(self, trial: Any) -> Point:
        point = super().suggest(trial)
        if point.values[0] % 2:
            raise ValueError("the first value\nis odd")
        return point


class Interrupted(Grid):
    def suggest(self, trial: Any) -> Point:
        trial.suggest_int(NAMES[0], 0, 15)
        raise KeyboardInterrupt


FIRST = {**dict.fromkeys(NAMES, 3), "kind": "square"}


def loss(architecture: Any) -> float:
    return float(sum((value - 11) ** 2 for value in architecture.values) + (architecture.kind == "round"))


class Run:
    """A proposer over a store, as a driver has it when it starts."""

    def __init__(
        self,
        store: Store,
        sampler: str = "random",
        seed: int = 0,
        space: SearchSpace | None = None,
        named: Sequence[Mapping[str, Any]] = (),
        **limits: Any,
    ) -> None:
        self.store = store
        config = SearchConfig.model_validate({"sampler": sampler, **limits})
        self.candidates = Candidates(space or Grid(), (1, 2, 2), 2, config)
        self.state = SearchState.replay([RUNG], seed, config.objectives[0], store.events())
        self.proposer = Proposer(self.candidates, sampler, seed)
        self.proposer.start(self.state, named)

    def propose(self, at_random: bool = False) -> tuple[Draw, Proposal]:
        draw = self.proposer.draw(self.state, at_random)
        return draw, self.record(draw)

    def record(self, draw: Draw) -> Proposal:
        proposal = self.proposer.record(draw, self.state.next_number)
        self.store.add_proposal(proposal)
        self.state.apply(proposal)
        self.proposer.recorded(draw, proposal)
        return proposal

    def measure(self, proposal: Proposal, status: str = "done", **signals: float) -> None:
        architecture = Point.from_json(proposal.architecture)
        found = {"val_loss": loss(architecture), "params": float(sum(architecture.values) + 1), "flops": 0.0, **signals}
        cause = None if status == "done" else "it broke"
        one = Measurement(proposal.architecture, proposal.key, RUNG, self.state.seed, status, found, cause=cause)  # type: ignore[arg-type]
        self.store.add(one)
        self.state.apply(one)
        self.proposer.tell(proposal, one)

    def advance(self, count: int) -> list[Proposal]:
        """Propose and measure; what is known is discarded, as by the search."""
        proposals: list[Proposal] = []
        while len(proposals) < count:
            draw = self.proposer.draw(self.state, False)
            if draw.key in self.state:
                self.proposer.discard(draw)
                continue
            proposals.append(self.record(draw))
            if proposals[-1].status == "candidate":
                self.measure(proposals[-1])
        return proposals

    def study(self) -> optuna.Study:
        return study_of(self.state, self.candidates.limits.objectives, self.candidates.constraints)


@pytest.fixture
def new(tmp_path: Path) -> Callable[..., Run]:
    """Starts on the store of a name, as another process does."""

    def started(sampler: str = "random", name: str = "study", **more: Any) -> Run:
        return Run(Store(open_database(f"sqlite:///{tmp_path / name}.db"), name), sampler, **more)

    return started


# --------------------------------------------------------------------------------------------------- after a restart


@pytest.mark.parametrize(("sampler", "trials"), [("random", 12), ("tpe", 16), ("nsga2", GENERATION + 4), ("gp", 11)])
def test_a_resumed_search_proposes_what_an_undisturbed_one_would_have(
    new: Callable[..., Run], sampler: str, trials: int
) -> None:
    whole = new(sampler, name="whole").advance(trials)
    assert len({one.key for one in whole}) == trials
    pieces: list[Proposal] = []
    for count in (1, 3, trials - 7, 1, 1, 1):
        pieces += new(sampler, name="pieces").advance(count)
    assert pieces == whole
    assert [one.number for one in pieces] == list(range(trials))


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_resumed_search_with_limits_proposes_what_an_undisturbed_one_would_have(
    new: Callable[..., Run], sampler: str
) -> None:
    whole = new(sampler, name="whole", max_params=50).advance(14)
    assert {one.status for one in whole} == {"candidate", "infeasible"}
    pieces = [one for count in (5, 6, 1, 2) for one in new(sampler, name="pieces", max_params=50).advance(count)]
    assert pieces == whole


def test_discarded_draws_are_counted(new: Callable[..., Run]) -> None:
    first = new()
    draws = [first.proposer.draw(first.state, False) for _ in range(5)]
    for number in (0, 1, 3, 4):
        first.proposer.discard(draws[number])
    kept = first.record(draws[2])
    assert (kept.number, kept.draw, kept.draws) == (0, 2, 5)
    again = new()
    assert again.proposer.draw(again.state, False).number == 5
    assert first.proposer.draw(first.state, False).key == new().propose()[1].key  # of the same number and seed


def test_proposals_depend_on_the_seed_and_differ_from_draw_to_draw(new: Callable[..., Run]) -> None:
    keys = [new(seed=seed, name=f"seed{seed}").propose()[1].key for seed in (1, 2)]
    one = new(seed=1, name="seed1")
    keys += [one.propose()[1].key for _ in range(4)]
    assert len(set(keys)) == 6


def test_candidates_that_are_not_measured_do_not_repeat_after_a_restart(new: Callable[..., Run]) -> None:
    before = [new("tpe").propose()[1].key for _ in range(6)]  # a driver each, none of which measures
    assert len(set(before)) == 6
    assert [one.key for one in new().state.pending] == before


def test_a_candidate_of_an_earlier_run_is_learned_from(new: Callable[..., Run]) -> None:
    _, waiting = new("tpe").propose()
    run = new("tpe")
    run.propose()
    run.measure(waiting)
    states = [trial.state for trial in run.proposer._study_of(run.state).get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING]


def test_random_draws_leave_the_sampler_aside(new: Callable[..., Run]) -> None:
    tpe, random = new("tpe", name="tpe"), new("random", name="random")
    for run in (tpe, random):
        run.advance(20)
    keys = [run.proposer.draw(run.state, at_random).key for run, at_random in ((tpe, True), (random, False))]
    assert keys[0] == keys[1]  # of the same seed and number
    assert new("tpe", name="tpe").proposer.draw(tpe.state, False).key != keys[0]


# ------------------------------------------------------------------------------------------------------ named points


def test_named_points_come_first_and_once(new: Callable[..., Run]) -> None:
    other = {**FIRST, "a": 4}
    proposals = [new("tpe", named=[FIRST, other]).propose()[1] for _ in range(4)]  # each start names them again
    assert [one.key for one in proposals[:2]] == [Grid().point(FIRST).key, Grid().point(other).key]
    assert [one.origin for one in proposals] == ["named", "named", "sampler", "sampler"]
    assert len({one.key for one in proposals}) == 4


def test_a_named_point_is_not_lost_when_its_draw_is_interrupted(new: Callable[..., Run]) -> None:
    first = new(named=[FIRST], space=Grid())
    first.candidates = Candidates(Interrupted(), (1, 2, 2), 2, SearchConfig())
    first.proposer._candidates = first.candidates
    with pytest.raises(KeyboardInterrupt):
        first.propose()
    again = new(named=[FIRST])
    assert again.state.pending == []
    assert again.propose()[1].key == Grid().point(FIRST).key
    assert again.propose()[1].key != Grid().point(FIRST).key


# --------------------------------------------------------------------------------------------------------- the batch


def test_the_best_of_the_batch_is_taken_and_the_others_are_discarded(new: Callable[..., Run]) -> None:
    run = new()
    draws = [run.proposer.draw(run.state, False) for _ in range(4)]
    for draw in draws:
        run.proposer.add(draw)
    taken = run.proposer.take(lambda many: np.array([-loss(one.architecture) for one in many]))
    assert taken == min(draws, key=lambda one: loss(one.architecture))
    assert len(run.proposer) == run.proposer.drawn == 0
    states = [trial.state for trial in taken.study.get_trials()]
    assert [state == TrialState.RUNNING for state in states] == [one == taken for one in draws]


def test_named_points_of_a_batch_are_taken_whatever_their_prediction(new: Callable[..., Run]) -> None:
    run = new(named=[FIRST, {**FIRST, "a": 4}])
    for _ in range(4):
        run.proposer.add(run.proposer.draw(run.state, False))

    def never(draws: Sequence[Draw]) -> Any:
        raise AssertionError("not asked")

    taken = [run.proposer.take(never) for _ in range(2)]
    assert [one.parameters["a"] for one in taken] == [3, 4]
    assert len(run.proposer) == 0


# ------------------------------------------------------------------------------------------- limits, faults, learning


def test_what_the_sampler_learns(new: Callable[..., Run]) -> None:
    run = new("tpe", max_params=60, max_latency=1.0, space=Breaking())
    kinds: dict[str, int] = {}
    while len(kinds) < 5:
        draw, proposal = run.propose()
        kind: str = proposal.status
        if kind == "candidate":
            kind = ["done", "slow", "broken"][kinds.get("candidates", 0) % 3]
            kinds["candidates"] = kinds.get("candidates", 0) + 1
            status = {"done": "done", "slow": "infeasible", "broken": "failed"}[kind]
            run.measure(proposal, status, latency_ms=3.0 if kind == "slow" else 0.5)
        kinds[kind] = kinds.get(kind, 0) + 1
        live = draw.study.get_trials(deepcopy=False)[draw.trial.number]
        projected = run.study().get_trials()[proposal.number]
        assert (live.state, live.values, live.params) == (projected.state, projected.values, projected.params)
        assert live.constraints == projected.constraints
        assert list(live.constraints) == list(projected.constraints)
    trials = run.study().get_trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    for trial in trials:
        over = any(value > 0 for value in trial.constraints.values())
        assert over is (trial.state == TrialState.PRUNED)
        assert (CAUSE in trial.user_attrs) is (trial.state != TrialState.COMPLETE)
    odd = [trial for trial in trials if ARCHITECTURE not in trial.user_attrs]
    assert {trial.user_attrs[CAUSE] for trial in odd} == {"suggest failed: ValueError: the first value is odd"}


def test_tpe_learns_to_stay_within_the_limits(new: Callable[..., Run]) -> None:
    """The loss pulls towards a sum of 66, the limit is 16: one random point in 225 keeps it."""
    feasible = {
        sampler: sum(one.status == "candidate" for one in new(sampler, name=sampler, max_params=17).advance(80)[-30:])
        for sampler in ("tpe", "random")
    }
    assert feasible["random"] <= 3
    assert feasible["tpe"] >= 10


def test_a_limit_that_comes_later_does_not_end_what_the_gaussian_process_learns(new: Callable[..., Run]) -> None:
    """Its trials must all have the same constraints; it would fail at each proposal, and random ones take its place."""
    new("gp", max_latency=100.0).advance(11)
    run = new("gp", max_params=60, max_latency=100.0)
    run.advance(2)
    done = [trial for trial in run.study().get_trials() if trial.state == TrialState.COMPLETE]
    assert {tuple(trial.constraints) for trial in done} == {("params",)}  # latencies were not measured here


@pytest.mark.parametrize(("sampler", "trials"), [("nsga2", GENERATION + 8), ("tpe", 14), ("random", 8), ("gp", 12)])
def test_several_objectives_with_infeasible_trials(new: Callable[..., Run], sampler: str, trials: int) -> None:
    for _ in range(2):  # the second half by a driver that finds the first
        run = new(sampler, objectives=("loss", "flops", "params"), max_params=50)
        run.advance(trials // 2)
    study = run.study()
    assert [one.name for one in study.directions] == ["MINIMIZE"] * 3
    assert len(study.get_trials()) == trials
    assert {trial.state for trial in study.get_trials()} <= {TrialState.COMPLETE, TrialState.PRUNED}


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


def test_studies_of_one_database_keep_apart(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'both.db'}")
    one, other = (Run(Store(engine, name)) for name in ("one", "other"))
    one.advance(3)
    assert other.propose()[1].number == 0
    assert len(Store(engine, "one").proposals()) == 3
