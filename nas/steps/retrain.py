"""Full trainings of the winner and of the references, and the runner of jobs.

Only here, and in what follows, is the test split scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from nas.evaluation.evaluator import Job
from nas.executor import Executor
from nas.ladder import Rung
from nas.progress import Budget, Event, Listener, Progress
from nas.search.candidates import Candidates
from nas.space import Architecture
from nas.store import Measurement, Store

RANDOM_REFERENCES = 3
"""How many random networks stand for the average one."""

NAMED_REFERENCES = 2
"""How many textbook networks stand beside the winner."""

RANDOM_DRAWS = 300
"""Draws among which they are looked for."""

SAFETY = 0.85
"""Share of the time that is planned: the rest is for scoring, uneven finishing and noise."""


def references(candidates: Candidates, seed: int, ranked: Sequence[str] = ()) -> dict[str, list[Architecture]]:
    """The rows that a winner is compared with: named points of the space, and random networks.

    Of the named points within the limits on candidates, the best `NAMED_REFERENCES` by `ranked` (keys, best first);
    where none is within them, the first that the space names. Random ones keep the limits, or come nearest to them
    where few do.
    """
    space = candidates.space
    points = {name: space.point(values) for name, values in space.named().items()}
    within = {name: one for name, one in points.items() if max([0.0, *candidates.excess(one)[0].values()]) <= 0}
    places = {key: place for place, key in enumerate(ranked)}
    ordered = sorted(within or dict([*points.items()][:1]), key=lambda name: places.get(points[name].key, len(places)))
    rows: dict[str, list[Architecture]] = {name: [points[name]] for name in ordered[:NAMED_REFERENCES]}
    drawn: dict[str, tuple[float, Architecture]] = {}
    for attempt in range(RANDOM_DRAWS):
        try:
            architecture = space.random(RANDOM_DRAWS * seed + attempt)
            if architecture.key in drawn:
                continue
            excess, _ = candidates.excess(architecture)
        except Exception:  # a third-party space may raise anything, and what cannot be built is no reference
            continue
        drawn[architecture.key] = max([0.0, *excess.values()]), architecture
        found = sum(over == 0 for over, _ in drawn.values())
        if found == RANDOM_REFERENCES or len(drawn) == space.size():
            break
    nearest = sorted(drawn.values(), key=lambda pair: pair[0])  # stable: those within the limits as they were drawn
    rows["random"] = [architecture for _, architecture in nearest[:RANDOM_REFERENCES]]
    return rows


def affordable_epochs(seconds: float, proxies: Sequence[Measurement], images: int, workers: int) -> int:
    """Epochs of `images` images that one training of each of these candidates can have, side by side, in the time."""
    costs = sorted((m.cost["seconds"] / m.cost["images"] * images for m in proxies), reverse=True)
    loads = [0.0] * workers
    for cost in costs:  # the longest first, each to the worker that is free first
        loads[loads.index(min(loads))] += cost
    return max(1, int(SAFETY * seconds / max(loads)))


def measure(
    jobs: Mapping[Job, str],
    executor: Executor,
    records: Store,
    budget: Budget,
    listen: Listener,
    stage: str,
    weights: Path | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Measure all jobs (each with a name to show) that are not measured yet; returns all their measurements.

    Weights, where they come back, are on disk before their measurement is written down.
    """
    found = [_measured(job, records, weights) for job in jobs]
    measured = [one for one in found if one is not None]
    waiting = [job for job, one in zip(jobs, found, strict=True) if one is None]
    for job in waiting:
        executor.submit(job)
    while executor.running:
        for outcome in executor.wait(timeout=1.0):
            check()
            if weights is not None and outcome.towers is not None:
                _write(towers_file(weights, outcome.measurement), outcome.towers)
            if weights is not None and outcome.weights is not None:
                _write(weights_file(weights, outcome.measurement), outcome.weights)
            if not outcome.job.rung.final or outcome.measurement.status == "done":
                records.add(outcome.measurement)  # a retraining that failed is tried again by the next command
            budget.save()
            measured.append(outcome.measurement)
            progress = Progress(
                stage=stage,
                done=sum(m.status == "done" for m in measured),
                failed=sum(m.status != "done" for m in measured),
                infeasible=0,
                running=min(executor.running, executor.retrainings if outcome.job.rung.final else executor.workers),
                best=None,
                total=len(jobs),
                seconds_left=budget.left(),
            )
            listen(Event(progress, jobs[outcome.job], outcome.measurement))
    return measured


def known(jobs: Iterable[Job], records: Store, weights: Path | None = None) -> int:
    """How many of these `measure` would not measure again."""
    return sum(_measured(job, records, weights) is not None for job in jobs)


def _measured(job: Job, records: Store, weights: Path | None) -> Measurement | None:
    """What stands in the table; a retraining whose weights are lost counts as not made."""
    found = records.get(*job.unit)
    if found is None or not job.rung.final or weights is None:
        return found
    there = weights_file(weights, found).is_file() and (not found.towers or towers_file(weights, found).is_file())
    return found if there else None


def jobs(
    winner: Architecture,
    rung: Rung,
    seed: int,
    seeds: int,
    rows: Mapping[str, Sequence[Architecture]],
    next_best: Sequence[Architecture] = (),
    seconds: float | None = None,
) -> dict[Job, str]:
    """The trainings: the winner and those `next_best` to it from `seeds` seeds, each reference from one.

    Each takes at most `seconds`, where these are given.
    """

    def job(architecture: Architecture, seed: int) -> Job:
        return Job.of(architecture, rung, seed, seconds=seconds)

    found = {job(winner, seed + i): f"winner, seed {seed + i}" for i in range(seeds)}
    for rank, architecture in enumerate(next_best, 2):
        found |= {job(architecture, seed + i): f"rank {rank}, seed {seed + i}" for i in range(seeds)}
    for name, architectures in rows.items():
        for architecture in architectures:
            found.setdefault(job(architecture, seed), name)
    return found


def weights_file(folder: Path, measurement: Measurement) -> Path:
    """Where the weights of a retrained network lie."""
    return folder / f"{measurement.key}-{measurement.rung}-{measurement.seed}.safetensors"


def towers_file(folder: Path, measurement: Measurement) -> Path:
    """Where the weights of its towers lie: beside the network's, which never hold a tower."""
    network = weights_file(folder, measurement)
    return network.with_stem(f"{network.stem}-towers")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
