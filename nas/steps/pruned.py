"""Prunes and fine-tunes the retrained winner, and trains the networks that it is compared with.

All seeds get the architecture that the first seed's network gives; each keeps the channels that matter most to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nas.config import Config
from nas.data import Data
from nas.errors import SearchError
from nas.evaluation import complexity
from nas.evaluation.evaluator import Job
from nas.evaluation.weights import Weights
from nas.export import Compared, Facts, side_by_side
from nas.ladder import Rung
from nas.progress import counted
from nas.space import Architecture, SearchSpace
from nas.steps import prune, retrained
from nas.steps.driver import Driver
from nas.store import Measurement, Store, existing_store

ORIGINAL, PRUNED, SCRATCH, EQUAL = "original", "pruned, fine-tuned", "the same, from scratch", "best of equal cost"


@dataclass(frozen=True)
class Pruned:
    """The fine-tuned measurements, from the first seed on; the rung of the first; and the rivals, by name, likewise.

    `on_all_images` is the network that is exported instead of the first, where the original was trained on all images.
    """

    seeds: Sequence[Measurement]
    rung: Rung
    rows: Mapping[str, Sequence[Measurement]]
    on_all_images: Measurement | None = None


@dataclass(frozen=True)
class _Start:
    """The smaller architecture, its FLOPs, and what is left of each original's weights.

    `on_all_images` is what is left of the exported network's, where it was trained on all images.
    """

    originals: Sequence[Measurement]
    architecture: Architecture
    flops: int
    inits: Sequence[Weights]
    on_all_images: Weights | None


def check(config: Config, space: SearchSpace, data: Data, share: float) -> None:
    """Raises an InputError, before anything is written, where the winner cannot be pruned by so much."""
    prune.check_share(share)
    _start(config, space, data, existing_store(config.database, config.experiment), share)


def fine_tuned(driver: Driver, share: float) -> Pruned:
    """Prune the retrained winner of each seed, fine-tune it, and train its rivals; what is measured already stays."""
    config, records = driver.config, driver.records
    small = _start(config, driver.space, driver.data, records, share)
    full = retrained.rung(driver)
    rungs = [prune.fine_tuning(full, config.prune, init.digest) for init in small.inits]
    seeds = [one.seed for one in small.originals]
    equal = _equal_cost(driver, small.flops)
    rows = {
        PRUNED: [Job.of(small.architecture, rung, seed) for rung, seed in zip(rungs, seeds, strict=True)],
        SCRATCH: [Job.of(small.architecture, prune.from_scratch(full), seed) for seed in seeds],
        EQUAL: [Job.of(equal, full, seed) for seed in seeds] if equal is not None else [],
    }
    jobs = {job: f"{name}, seed {job.seed}" for name, many in rows.items() for job in many}
    removed = 1 - small.flops / small.originals[0].signals["flops"]
    there = f"; {known} already done" if (known := driver.known(jobs)) else ""
    driver.say(
        f"Pruning: {removed:.1%} of the multiply-adds removed; fine-tuning for "
        f"{counted(rungs[0].epochs, 'epoch')} from {counted(len(seeds), 'seed')}; "
        f"{counted(len(jobs) - len(seeds), 'training')} of {counted(full.epochs, 'epoch')} to compare with{there}"
    )
    last = None if small.on_all_images is None else _on_all_images_job(driver, small, small.on_all_images)
    driver.give_everything(*small.inits, *([] if small.on_all_images is None else [small.on_all_images]))
    if last is not None:
        jobs[last] = f"{PRUNED}, all images"
    made = {(one.key, one.rung, one.seed): one for one in driver.measure(jobs, "prune")}
    found = {name: [made[job.unit] for job in many] for name, many in rows.items()}
    own = found[PRUNED]
    if own[0].status != "done":
        raise SearchError(f"the pruned network could not be fine-tuned: {own[0].cause}")
    done = {name: [one for one in many if one.status == "done"] for name, many in found.items()}
    compared = {ORIGINAL: small.originals, **done}
    if last is None:
        return Pruned(done[PRUNED], rungs[0], compared)
    on_all = made[last.unit]
    if on_all.status != "done":
        raise SearchError(f"the pruned network could not be fine-tuned on all images: {on_all.cause}")
    return Pruned(done[PRUNED], last.rung, compared, on_all)


def _on_all_images_job(driver: Driver, small: _Start, init: Weights) -> Job:
    """Fine-tuning of the network to export."""
    rung = prune.fine_tuning(retrained.all_images_rung(driver), driver.config.prune, init.digest)
    return Job.of(small.architecture, rung, small.originals[0].seed)


def told(driver: Driver, pruned: Pruned, facts: Facts) -> Facts:
    """These facts, and what the card says of a pruned network beside them."""
    original = pruned.rows[ORIGINAL][0]
    notes = {
        **facts.notes,
        "recipe": retrained.in_words(pruned.rung.recipe),
        "retraining": pruned.rung.key,
        "started from": f"{original.key} as retrained ({original.rung}), pruned",
    }
    return replace(facts, notes=notes, compared=_compared(driver, pruned, facts))


def _compared(driver: Driver, pruned: Pruned, facts: Facts) -> tuple[Compared, ...]:
    """The original, the pruned and their rivals, those that were trained; latencies are of the first seed's."""
    data = driver.data
    assert data.test is not None
    first = {name: many[0] for name, many in pruned.rows.items() if many}
    networks = {name: retrained.network(driver.config, driver.space, data, one) for name, one in first.items()}
    driver.say(f"Comparing the latency of {len(networks)} networks")
    latency = side_by_side(networks, data.test.pixels[:1], facts, driver.config.export)
    return tuple(
        Compared(
            name=name,
            key=one.key,
            architecture=one.architecture,
            params=int(one.signals["params"]),
            flops=int(one.signals["flops"]),
            accuracies={each.seed: each.signals["test_accuracy"] for each in pruned.rows[name]},
            latency=latency[name],
        )
        for name, one in first.items()
    )


def _start(config: Config, space: SearchSpace, data: Data, records: Store | None, share: float) -> _Start:
    found = retrained.trained(config, records)
    originals = next(iter(found.values()))
    whole = space.architecture_type.from_json(originals[0].architecture)
    networks = [retrained.network(config, space, data, one) for one in originals]
    shape, classes = data.input_shape, len(data.classes)
    small = prune.smaller(space, whole, networks[0], share, config.prune.step, shape, classes)
    flops = complexity.complexity(space, small, shape, classes).flops
    inits = [prune.weights_left(space, whole, network, small, shape, classes) for network in networks]
    assert records is not None
    on_all = retrained.on_all_images(records, originals[0])
    if on_all is None:
        return _Start(originals, small, flops, inits, None)
    network = retrained.network(config, space, data, on_all)
    left = prune.weights_left(space, whole, network, small, shape, classes)
    return _Start(originals, small, flops, inits, replace(left, name=f"{left.name}, all images"))


def _equal_cost(driver: Driver, flops: int) -> Architecture | None:
    """The best of the board among those with at most so many FLOPs."""
    best = (one for one in retrained.ranked(driver) if one.signals["flops"] <= flops)
    one = next(best, None)
    return None if one is None else driver.space.architecture_type.from_json(one.architecture)
