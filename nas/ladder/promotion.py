"""Asynchronous promotion under a budget: which candidate is trained next, at which rung. Pure.

Candidates are offered with their free features (all at once, or as they are proposed), outcomes are told as they come,
and `next` answers with a training to start. Each rung in use has a share of the budget; the training goes to the rung
that is the furthest behind its share, and there to the candidate with the best predicted full score: at the cheapest
rung one that is untrained, at a higher rung one that comes from the rung below. So whatever is learned at any rung
steers at once which new candidates are tried.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from nas.ladder.ranker import FEW, Fit, Floats, Observations, Pool, Prior, Ranker

IDLE, RUNNING, DONE, FAILED = range(4)
ROUNDING = 1e-9

Key = TypeVar("Key", bound=Hashable)
"""What the caller calls a candidate."""


@dataclass(frozen=True)
class Policy:
    """How the budget is spent. The default is the engine's.

    `full` is full training's share of the budget (see `share`); the rungs below share the rest evenly.

    Where all candidates are known before the first training, a fixed budget is divided among rungs, and two more rules
    hold. Where a short training is very cheap, full training gets less: at most `cheap` / (`cheap` + cost ratio). And
    the first full training waits until `wait` of the lower rungs' budget is spent: it is then chosen among more
    candidates. A search makes its candidates one by one, and the number of its full trainings follows from theirs:
    these rules do not hold there.

    An untrained candidate is chosen by its predicted score, less `variety` deviations times the root of the number of
    tried candidates of its size. So a rare size is tried before a common one is tried often. But where sizes lie far
    apart, the trend tells them apart, and `variety` would only lead away from the better sizes. It is about half where
    neighbouring sizes are `apart` deviations apart by the presumed trend, and its share `least` where much further.
    The ranker is refitted when outcomes have grown by `refit`.
    """

    full: float = 2 / 3
    cheap: float = 18.0
    wait: float = 0.5
    variety: float = 0.5
    apart: float = 0.012
    least: float = 0.1
    refit: float = 0.1
    prior: Prior = field(default_factory=Prior)

    def divided(self, costs: Sequence[float]) -> float:
        """Full training's share of the budget where all candidates are known before the first training."""
        if len(costs) == 1:
            return 1.0
        return min(self.share(costs), self.cheap / (self.cheap + costs[-1] / costs[-2]))

    def share(self, costs: Sequence[float]) -> float:
        """Full training's share of the budget: at most `full`, and at most half of a rung is promoted to it."""
        if len(costs) == 1:
            return 1.0
        most = 0.5 * costs[-1] / costs[-2] / (len(costs) - 1)  # times the share of all that is below
        return min(self.full, most / (1 + most))


class Promotion(Generic[Key]):
    """One ladder at work.

    `costs` are what the rungs cost in full trainings, ascending; `budget` is in full trainings and is never exceeded
    as long as no training costs more than was expected of it. `features` and `signals` name the columns of what is
    offered and told. Rungs are counted from 0, the cheapest training. New candidates that the caller has chosen enter
    whatever they cost.
    """

    def __init__(
        self,
        costs: Sequence[float],
        budget: float,
        features: Sequence[str] = (),
        signals: Sequence[str] = (),
        policy: Policy | None = None,
        seed: int = 0,
    ) -> None:
        self._policy = policy or Policy()
        self._budget = budget
        self._features, self._signals = tuple(features), tuple(signals)
        self._rungs = len(costs)
        self._ranker = Ranker(costs, self._policy.prior)
        self._generator = np.random.default_rng(seed)
        self._keys: list[Key] = []
        self._number: dict[Key, int] = {}
        self._free = np.zeros((0, len(self._features)))
        self._costs = np.zeros((0, self._rungs))
        self._state = np.zeros((0, self._rungs), dtype=np.int8)
        self._tie = np.zeros(0)
        self._told: list[tuple[int, int, float, Floats]] = []
        self._scored = 0  # of those, at the cheapest rung
        self._lost: list[int] = []  # who failed there
        self._spent = np.zeros(self._rungs)  # running trainings count as spent
        self._closed = False
        self._complete = False  # all candidates were known before the first training
        self._held: bool | None = None
        self._pool: Pool | None = None
        self._plan: Floats | None = None
        self._step = np.zeros(self._rungs)  # mean cost of a training
        self._fit: Fit | None = None
        self._fitted = -1  # outcomes that the last fit knew
        self._heard = np.zeros((0, self._rungs), dtype=bool)  # whose, at which rungs

    def offer(self, keys: Sequence[Key], features: Floats, costs: Floats) -> None:
        """More candidates: their free features (n, F) and what each rung is expected to cost them (n, R)."""
        for key in keys:
            self._number[key] = len(self._keys)
            self._keys.append(key)
        self._free = np.concatenate([self._free, np.asarray(features, dtype=np.float64)])
        self._costs = np.concatenate([self._costs, np.asarray(costs, dtype=np.float64)])
        self._state = np.concatenate([self._state, np.zeros((len(keys), self._rungs), dtype=np.int8)])
        self._tie = np.concatenate([self._tie, 1e-9 * self._generator.random(len(keys))])
        self._plan = None

    def enter(self, key: Key, features: Floats, costs: Floats) -> None:
        """A new candidate that somebody else has chosen: offered, and in training at the cheapest rung."""
        self.offer([key], np.asarray(features)[None], np.asarray(costs)[None])
        self._start(self._number[key], 0)

    def replay(
        self, key: Key, rung: int, score: float | None, signals: Sequence[float] = (), cost: float | None = None
    ) -> None:
        """An outcome of an earlier run, of a candidate that was offered; those at lower rungs come before."""
        self._start(self._number[key], rung)
        self.tell(key, rung, score, signals, cost)

    @property
    def keys(self) -> tuple[Key, ...]:
        """All candidates in the order of the offers."""
        return tuple(self._keys)

    @property
    def wants_candidate(self) -> bool:
        """Whether the cheapest rung is the one furthest behind its share."""
        return not self._keys or self._by_need()[0] == 0

    def close(self) -> None:
        """No more candidates will be offered: what is left of the budget may be spent on those that there are."""
        self._closed = True
        if (self._state == IDLE).all():
            self._complete, self._plan = True, None

    def hold(self, held: bool) -> None:
        """From now on full training waits (True), or comes before all else (False), whatever its share."""
        self._held = held

    @property
    def spent(self) -> float:
        """Full trainings spent, with what is running."""
        return float(self._spent.sum())

    def next(self, limit: float = math.inf) -> tuple[Key, int] | None:
        """The training to start now, (key, rung); None: wait for outcomes or offers, or the budget is spent.

        `limit` is what a training may cost at most, where there is less time than budget.
        """
        if not self._keys:
            return None
        for rung in self._by_need()[: self._rungs - 1 if self._held else None]:
            chosen = self._best(rung) if self._costs[:, rung].mean() <= limit else None
            if chosen is not None:
                return self._start(chosen, rung)
        chosen = self._with_the_rest()
        return None if chosen is None else self._start(chosen, self._rungs - 1)

    def tell(
        self, key: Key, rung: int, score: float | None, signals: Sequence[float] = (), cost: float | None = None
    ) -> None:
        """The outcome of a training that was started; `score` None: it failed, and the candidate drops out.

        Higher scores are better. `cost` is what it really cost, where that is not what was expected. Who fails at the
        cheapest rung is the worst there, so that the ranker learns which new candidates do.
        """
        candidate = self._number[key]
        assert self._state[candidate, rung] == RUNNING, f"{key!r} is not in training at rung {rung}"
        if cost is not None:
            self._spent[rung] += cost - self._costs[candidate, rung]
        self._state[candidate, rung] = DONE if score is not None else FAILED
        if score is not None:
            row = np.array(signals if len(signals) else [np.nan] * len(self._signals), dtype=np.float64)
            self._told.append((candidate, rung, score, row))
            self._scored += rung == 0
        elif rung == 0:
            self._lost.append(candidate)

    def found(self) -> Key | None:
        """The candidate with the best score among those fully trained."""
        top = [(score, -candidate) for candidate, rung, score, _ in self._told if rung == self._rungs - 1]
        return self._keys[-max(top)[1]] if top else None

    def predicted_scores(self) -> tuple[Floats, Floats]:
        """Mean and deviation of each candidate's full score, in the order of the offers."""
        if self._fit is None or len(self._fit.mean) < len(self._keys):
            self._refit()
        assert self._fit is not None
        return self._fit.mean, self._fit.deviation

    @property
    def informed(self) -> bool:
        """Whether enough outcomes of the cheapest rung are known to tell new candidates apart before training."""
        return self._scored >= FEW

    def predict(self, features: Floats) -> Floats:
        """Mean full score of candidates (n, F) that were not offered, as the ranker expects it."""
        if self._fit is None or self._has_grown:
            self._refit()
        assert self._fit is not None
        return self._fit.of_others(features)

    def _refit(self) -> None:
        """The ranker looks at all candidates and outcomes anew."""
        if self._pool is None or len(self._pool.row) < len(self._keys):
            self._pool = Pool.of(self._free, self._features, self._policy.prior)
        seen = self._observations()
        self._fit = self._ranker.fit(self._pool, seen)
        self._heard = np.zeros_like(self._state, dtype=bool)
        self._heard[seen.candidate, seen.rung] = True
        self._fitted = self._outcomes

    @property
    def _has_grown(self) -> bool:
        """Whether more outcomes came since the last fit than may be left out."""
        return self._outcomes >= self._fitted + max(1.0, self._policy.refit * self._fitted)

    @property
    def _outcomes(self) -> int:
        return len(self._told) + len(self._lost)

    def _means(self, able: NDArray[np.bool_], below: int | None = None) -> Floats:
        """The predicted score's means, by the last fit if it will do, else by a new one.

        A candidate at the rung `below` waits until a fit knows its score there. New candidates (None) are all compared.
        """

        def known() -> NDArray[np.bool_]:
            heard = np.ones(len(self._heard), bool) if below is None else self._heard[:, below]
            return np.concatenate([heard, np.zeros(len(able) - len(heard), bool)])

        if self._has_grown or not (able & known()).any() or (below is None and not known().all()):
            self._refit()
        assert self._fit is not None
        means = np.full(len(able), -np.inf)
        means[: len(self._fit.mean)] = self._fit.mean
        return np.where(known(), means, -np.inf)

    # ------------------------------------------------------------------------------------------ choosing

    def _by_need(self) -> list[int]:
        """Rungs in use, the one furthest behind its share first.

        Full training is due when a whole one fits into its share of what is spent, so that the last comes last. Where
        all candidates were known at first, it also waits for the rungs below (see `Policy`).
        """
        planned = self._planned()
        step = self._step * np.array([0.5] * (self._rungs - 1) + [1.0])
        behind = (self._spent + step) / planned
        if self._complete and self._rungs > 1:
            behind[-1] = self._policy.wait + (1 - self._policy.wait) * behind[-1]
        if self._held is not None:
            behind[-1] = math.inf if self._held else -math.inf
        return [int(rung) for rung in np.argsort(behind, kind="stable")]

    def _planned(self) -> Floats:
        """What each rung may spend, in full trainings. Full training has a whole number of them, and at least one."""
        if self._plan is None:
            self._step = self._costs.mean(axis=0)
            one = float(self._step[-1])
            share = self._policy.divided if self._complete else self._policy.share
            full = one * max(1, round(self._budget * share(self._step.tolist()) / one))
            rest = max(self._budget - full, ROUNDING) / max(1, self._rungs - 1)
            self._plan = np.array([rest] * (self._rungs - 1) + [full])
        return self._plan

    def _best(self, rung: int) -> int | None:
        """The candidate with the best predicted score among those that can be trained at this rung now."""
        top = self._rungs - 1
        left = self._budget - self.spent
        state = self._state
        if rung != top:
            left -= max(0.0, self._planned()[top] - self._spent[top])
        elif self._spent[top] + ROUNDING >= self._planned()[top] or self._awaited() or self._half_went_on():
            return None
        if rung == 0:
            able = (state == IDLE).all(axis=1)
        else:
            able = (state[:, rung - 1] == DONE) & (state[:, rung:] == IDLE).all(axis=1)
        able &= self._costs[:, rung] <= left + ROUNDING
        if not able.any():
            return None
        predicted_scores = self._means(able, rung - 1 if rung else None)
        return self._first(able, predicted_scores - self._crowded() if rung == 0 else predicted_scores)

    def _awaited(self) -> bool:
        """Whether the next full training is the last one planned, and outcomes that it should be chosen by are due."""
        top = self._rungs - 1
        last = self._spent[top] + 1.5 * self._step[top] > self._planned()[top]
        return bool(last and (self._state[:, :top] == RUNNING).any())

    def _half_went_on(self) -> bool:
        """Whether one more full training would be more than half of those that the rung below has seen."""
        top = self._rungs - 1
        if top == 0:
            return False
        went, seen = ((self._state[:, rung] != IDLE).sum() for rung in (top, top - 1))
        return bool(2 * (went + 1) > max(2, seen))

    def _crowded(self) -> Floats:
        """What each candidate loses because others of its size were tried: less where sizes lie far apart."""
        assert self._pool is not None
        family = self._pool.family
        tried = np.bincount(family[(self._state != IDLE).any(axis=1)], minlength=len(family))
        share = max(self._policy.least, 1 / (1 + (self._pool.spacing / self._policy.apart) ** 2))
        return np.asarray(self._policy.variety * share * np.sqrt(tried[family]))

    def _first(self, able: NDArray[np.bool_], values: Floats) -> int:
        candidates = np.flatnonzero(able)
        return int(candidates[np.argmax((values + self._tie)[candidates])])

    def _with_the_rest(self) -> int | None:
        """Nothing is left to do as planned: whom to train fully with what is left of the budget."""
        top = self._rungs - 1
        if not self._closed or (self._state[:, :top] == RUNNING).any():
            return None
        able = (self._state[:, top] == IDLE) & (self._state != FAILED).all(axis=1)
        able &= self._costs[:, top] <= self._budget - self.spent + ROUNDING
        return self._first(able, self._means(able)) if able.any() else None

    def _start(self, candidate: int, rung: int) -> tuple[Key, int]:
        self._spent[rung] += self._costs[candidate, rung]
        self._state[candidate, rung] = RUNNING
        return self._keys[candidate], rung

    def _observations(self) -> Observations:
        told = self._told
        if self._scored:
            worst = min(score for _, rung, score, _ in told if rung == 0) - 1.0
            told = told + [(candidate, 0, worst, np.full(len(self._signals), np.nan)) for candidate in self._lost]
        return Observations(
            np.array([one[0] for one in told], dtype=np.int64),
            np.array([one[1] for one in told], dtype=np.int64),
            np.array([one[2] for one in told], dtype=np.float64),
            np.array([one[3] for one in told], dtype=np.float64).reshape(len(told), len(self._signals)),
        )


def last_rounds(seconds: float, full: float, share: float) -> int:
    """Rounds of full trainings, one a worker, that a search of so many seconds ends with: what fits their share."""
    return math.floor(share * seconds / full)


def due(
    left: float, whole: float, full: float, new_candidate: float, workers: int, promoted: int, share: float
) -> bool:
    """Whether full training is due where time ends the search: as late as the planned rounds still fit.

    Seconds `left` of the `whole`; `full` and `new_candidate` are the seconds of a full training and of a new candidate
    on one of the workers; `promoted` full trainings were begun. A later choice is made among more candidates.
    """
    planned = [workers * last_rounds(whole, full, share) - promoted, workers * last_rounds(left, full, share)]
    missing = max(planned)  # by what is left alone, where those of before were more than the workers now would have had
    return missing > 0 and left < math.ceil(missing / workers) * full + 2 * new_candidate


def budget_for(new_candidates: int, costs: Sequence[float], policy: Policy | None = None) -> tuple[int, int, float]:
    """(rungs, promoted, budget) of a ladder that so many new candidates enter: full trainings are what the policy adds.

    `costs` ascend, in any unit; the budget is in trainings at the highest rung that is left. A rung is left out for
    which not even one training would be due. One rung: nobody is promoted.
    """
    for count in range(len(costs), 1, -1):
        full = (policy or Policy()).share(costs[:count])
        below = new_candidates * costs[0] / costs[count - 1] * (count - 1)
        promoted = round(below * full / (1 - full))
        if promoted >= 1:
            return count, promoted, below + promoted
    return 1, 0, float(new_candidates)
