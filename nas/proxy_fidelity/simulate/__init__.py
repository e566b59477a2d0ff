"""Replays the ladder on a recorded table: what a policy finds within its budget, without any training.

The ladder has the rungs of `ladder.rungs` and `ladder.factor`, as far as they were recorded; plain halving has all.

Each repeat offers a fresh random half of the (restricted) table. Found is the best by score among the fully trained;
the target is the top of the whole restricted table. Beside the ladder stand random search, plain successive halving
(Jamieson and Talwalkar 2016), "train the largest", and halving that begins with the largest.
"""

from __future__ import annotations

import heapq
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from nas.config import LadderConfig
from nas.ladder import Policy, Promotion
from nas.proxy_fidelity.simulate.recorded import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Training = tuple[int, int]
"""(candidate, rung)."""

REPEATS_A_TASK = 10


@dataclass(frozen=True)
class Simulation:
    """What is simulated: so many full trainings, so many times, with so many workers."""

    budget: float
    repeats: int = 1000
    seed: int = 0
    workers: int = 1
    ladder: LadderConfig = field(default_factory=LadderConfig)
    policy: Policy = field(default_factory=Policy)

    def rungs(self, table: Table) -> list[int]:
        """The recorded rungs that the ladder uses: full training, and those that cost about what its lower ones do."""
        costs = np.log(table.costs.mean(axis=0))
        below = costs[-1] - np.log(self.ladder.factor) * np.arange(self.ladder.rungs)
        return sorted({int(np.abs(costs - wanted).argmin()) for wanted in below} | {table.rungs - 1})


@dataclass(frozen=True)
class Result:
    """What a policy achieved: shares of repeats that found a top architecture, and means over the repeats.

    `regret` is in the table's score (or truth), `cost` in full trainings; so is `makespan`, the time from the first
    training's start to the last one's end, when a full training takes one.
    """

    policy: str
    p_top1: float
    p_top05: float
    regret: float
    cost: float
    makespan: float


@dataclass(frozen=True)
class _Replay:
    """One policy in one repeat: the candidate found, full trainings paid, and virtual time."""

    found: int
    cost: float
    makespan: float


def simulate(
    table: Table, simulation: Simulation, processes: int | None = None, listen: Callable[[int], None] = lambda _: None
) -> list[Result]:
    """All policies on the table, the ladder first. `listen` hears how many repeats are done.

    Every repeat has a seed of its own, so that results do not depend on the number of processes.
    """
    parts = [
        range(first, min(first + REPEATS_A_TASK, simulation.repeats))
        for first in range(0, simulation.repeats, REPEATS_A_TASK)
    ]
    processes = min(processes or cpu_count(), len(parts))
    replays: dict[int, list[_Replay]] = {}
    for done in _replayed(table, simulation, parts, processes):
        replays.update(done)
        listen(len(replays))
    best = np.sort(table.truth)[::-1]
    top1, top05 = (best[max(1, round(share * len(best))) - 1] for share in (0.01, 0.005))
    results = []
    for number, name in enumerate(POLICIES):
        chosen = [replays[repeat][number] for repeat in range(simulation.repeats)]
        truth = table.truth[[one.found for one in chosen]]
        results.append(
            Result(
                policy=name,
                p_top1=float((truth >= top1).mean()),
                p_top05=float((truth >= top05).mean()),
                regret=float((best[0] - truth).mean()),
                cost=float(np.mean([one.cost for one in chosen])),
                makespan=float(np.mean([one.makespan for one in chosen])),
            )
        )
    return results


def _replayed(
    table: Table, simulation: Simulation, parts: Sequence[range], processes: int
) -> Iterator[dict[int, list[_Replay]]]:
    if processes == 1:
        yield from (_replay(table, simulation, part) for part in parts)
        return
    spawn = multiprocessing.get_context("spawn")  # forking a process with threads may hang
    with ProcessPoolExecutor(processes, spawn, _take, (table, simulation)) as pool:
        for future in as_completed([pool.submit(_replay_part, part) for part in parts]):
            yield future.result()


_taken: tuple[Table, Simulation]


def _take(table: Table, simulation: Simulation) -> None:
    """In a fresh process: what all its repeats share comes over once."""
    global _taken
    _taken = (table, simulation)


def _replay_part(part: range) -> dict[int, list[_Replay]]:
    return _replay(*_taken, part)


def _replay(table: Table, simulation: Simulation, part: Iterable[int]) -> dict[int, list[_Replay]]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # small matrices: more threads would only wait for each other
        return {repeat: _repeat(table, simulation, repeat) for repeat in part}


def _repeat(table: Table, simulation: Simulation, repeat: int) -> list[_Replay]:
    """All policies on the same random half."""
    generator = np.random.default_rng([simulation.seed, repeat])
    count = len(table.params)
    offered = generator.permutation(count)[: max(1, count // 2)]
    seed = int(generator.integers(2**31))
    return [run(table, simulation, offered, seed) for run in POLICIES.values()]


# -------------------------------------------------------------------------------------------------- policies


def _ladder(table: Table, simulation: Simulation, offered: Ints, seed: int) -> _Replay:
    """The engine's default policy, with workers in virtual time."""
    rungs = simulation.rungs(table)
    costs = table.costs[offered][:, rungs]
    promotion: Promotion[int] = Promotion(
        list(table.costs.mean(axis=0)[rungs]),
        simulation.budget,
        table.free_names,
        table.signal_names,
        simulation.policy,
        seed,
    )
    promotion.offer(range(len(offered)), table.free[offered], costs)
    promotion.close()
    running: list[tuple[float, int, int, int]] = []
    now, started = 0.0, 0
    while True:
        while len(running) < simulation.workers and (training := promotion.next()) is not None:
            candidate, rung = training
            started += 1  # of trainings that end together, the one started first is told first
            heapq.heappush(running, (now + costs[candidate, rung], started, candidate, rung))
        if not running:
            break
        now, _, candidate, rung = heapq.heappop(running)
        at = offered[candidate], rungs[rung]
        promotion.tell(candidate, rung, float(table.scores[at]), table.signals[at])
    found = promotion.found()
    assert found is not None, "the budget allows for any full training"
    return _Replay(int(offered[found]), promotion.spent, now)


def _in_full(table: Table, simulation: Simulation, order: Ints) -> _Replay:
    """Full trainings in this order, as many as can be paid."""
    return _halved(table, simulation, order, [0] * (table.rungs - 1) + [len(order)])


def _halving(table: Table, simulation: Simulation, order: Ints) -> _Replay:
    """Successive halving from the first of this order: each rung has the same share of the budget."""
    step = table.costs[order].mean(axis=0)
    rungs = table.rungs
    full = max(1, round(simulation.budget / rungs / step[-1]))
    rest = simulation.budget - full * step[-1]
    return _halved(table, simulation, order, [int(rest / (rungs - 1) / one + 1e-9) for one in step[:-1]] + [full])


def _halved(table: Table, simulation: Simulation, order: Ints, counts: Sequence[int]) -> _Replay:
    """Rung after rung the best of the rung before; what is needed for one full training is kept.

    What is left in the end pays further full trainings, as many as it can.
    """
    spent = makespan = 0.0
    left = order
    for rung, count in enumerate(counts):
        if count == 0:
            continue
        last = rung == table.rungs - 1
        kept = 0.0 if last else table.dearest
        trained = []
        for candidate in left if last else left[:count]:
            if spent + table.costs[candidate, rung] + kept <= simulation.budget + 1e-9:
                spent += table.costs[candidate, rung]
                trained.append(candidate)
        makespan += _makespan(table.costs[trained, rung], simulation.workers)
        if trained:
            at = np.array(trained)
            left = at[np.argsort(-table.scores[at, rung], kind="stable")]
    return _Replay(int(left[0]), spent, makespan)


def _makespan(costs: Floats, workers: int) -> float:
    """When the last of these trainings ends, each started by the first worker that is free."""
    free = [0.0] * workers
    for cost in costs:
        heapq.heappush(free, heapq.heappop(free) + cost)
    return max(free)


def _largest_first(table: Table, offered: Ints) -> Ints:
    return offered[np.argsort(-table.params[offered], kind="stable")]


POLICIES: dict[str, Callable[[Table, Simulation, Ints, int], _Replay]] = {
    "ladder": _ladder,
    "random search": lambda table, simulation, offered, _: _in_full(table, simulation, offered),
    "successive halving": lambda table, simulation, offered, _: _halving(table, simulation, offered),
    "largest": lambda table, simulation, offered, _: _in_full(table, simulation, _largest_first(table, offered)),
    "size-first halving": lambda table, simulation, offered, _: _halving(
        table, simulation, _largest_first(table, offered)
    ),
}
"""The offered candidates are in random order."""
