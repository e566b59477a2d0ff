"""The steps of an experiment (search, full training, export) on an open driver."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nas import leaderboard
from nas.config import Config, Recipe
from nas.config.sections import FEWEST_TO_CALIBRATE
from nas.data import Data
from nas.data.sets import SETS
from nas.errors import ExperimentError, InputError, SearchError
from nas.evaluation import complexity
from nas.evaluation.evaluator import Job
from nas.evaluation.weights import Weights, start_from
from nas.export import Ensemble, Exported, Facts
from nas.export import check as check_export
from nas.export import export as write_export
from nas.ladder import Rung
from nas.progress import Progress, counted
from nas.proxy_fidelity.calibrated import calibrated, spread
from nas.search.candidates import Prices
from nas.search.loop import Search
from nas.search.study import Journal
from nas.space import Architecture, SearchSpace
from nas.steps import pruned, retrained, speed
from nas.steps import retrain as retraining
from nas.steps.driver import Driver
from nas.store import Measurement, existing_store
from nas.verdict import Evidence
from nas.verdict import problems as verdict_of

CALIBRATION_SEEDS = 1000
"""Seeds of calibrating trainings begin here: sharing initial weights with a proxy would flatter it."""

SEARCHED = 0.6
"""Share of the search's time after which a calibrated one proposes nothing more; the rest is full trainings'."""

AUGMENTATIONS = (("crop", "flip"), ("crop",))
"""Augmentations that are tried on images of the user's own."""

CLEARLY_LESS = 0.9
"""The first of `AUGMENTATIONS` is left where another has at most this share of its validation loss: short trainings
favour less augmentation than full ones, but a class that a mirror changes shows at once."""

DEFAULT_SEEDS = 3
"""Trainings of the winner without a time budget."""

DEFAULT_TRIALS = 30
"""Candidates of a search that is given neither a number nor a time."""


def search(driver: Driver, share: float | None = None) -> Progress:
    """Measure candidates. With a `share` of the time budget, the rest is for retraining, which limits their size."""
    wanted = driver.config.search
    driver.give_proxies()
    prices, slowest = speed.measured(driver, within_run=share is not None)
    choose_augmentation(driver, prices, slowest)
    trials = DEFAULT_TRIALS if wanted.trials is None and wanted.time is None else wanted.trials
    driver.say(f"Searching {_count(driver.space.size())} architectures on {counted(driver.executor.workers, 'worker')}")
    if driver.plan is not None:
        driver.say(speed.in_words(driver.plan, slowest))
    elif driver.config.ladder.rungs > 1 and len(driver.rungs) == 1:
        full = driver.full_rung().epochs
        driver.say(
            f"No promotions: the proxy ({driver.proxy.epochs} epochs) is too close to full training ({full} epochs); "
            "lower proxy.epochs to use the ladder"
        )
    if driver.budget.left_to_search(1.0 if share is None else share) == 0:
        driver.say(f"The search has used its part of search.time ({wanted.time:g} s); raise search.time to continue")
    if driver.proxy.is_variant:
        driver.say("The lowest rung trains low-fidelity variants of the candidates (proxy.shrink, proxy.width)")
    candidates, experiment = driver.candidates(prices, slowest), driver.config.experiment
    journal = Journal(driver.config.folder, experiment, wanted.objectives, candidates.constraints)
    loop = Search(
        candidates,
        driver.rungs,
        driver.config.seed,
        driver.records,
        driver.executor,
        driver.budget,
        driver.listen,
        driver.check,
        None if driver.plan is None else driver.plan.final * driver.executor.workers,
        journal,
    )
    whole = 1.0 if share is None else share
    progress = loop.run(trials, whole * (SEARCHED if wanted.calibrate else 1.0))
    if (chosen := loop.chosen) is not None:
        driver.records.set_fact("chosen", chosen[0])
    if wanted.calibrate:
        calibrate(driver, whole)
    return progress


def choose_augmentation(driver: Driver, prices: Prices | None, slowest: float | None) -> None:
    """Decide by short trainings how images of the user's own are augmented, and store it.

    A folder does not say whether a mirrored image still shows its class. One named network is trained with each
    of `AUGMENTATIONS`; the validation losses decide.
    """
    records, config = driver.records, driver.config
    is_open = driver.given.proxy.augment is None or driver.given.retrain.augment is None
    known = config.data.name in SETS or driver.data.task != "classification" or not is_open
    if driver.plan is None or prices is None or known or records.fact("augmentation") is not None:
        return
    candidates = driver.candidates(prices, slowest)
    priced = []
    for values in driver.space.named().values():
        architecture = driver.space.point(values)
        sizes = candidates.sizes(architecture)
        if all(over <= 0 for over in candidates.beyond(sizes)[0].values()):
            priced.append((sizes["step_seconds"], architecture.key, architecture))
    if not priced:
        return
    chosen = sorted(priced)[len(priced) // 2][2]
    steps = max(1, round(driver.plan.proxy / prices.of_worker(candidates.work(chosen))))
    jobs: dict[Job, str] = {}
    for names in AUGMENTATIONS:
        recipe = driver.proxy.recipe.model_copy(update={"augment": names})
        rung = replace(driver.proxy, name="pilot", recipe=recipe)
        jobs[Job.of(chosen, rung, config.seed, steps=steps)] = f"augmentation {', '.join(names)}"
    losses = {
        names: one.signals["val_loss"]
        for names, job in zip(AUGMENTATIONS, jobs, strict=True)
        for one in driver.measure(jobs, "pilot")
        if one.rung == job.rung.key and one.status == "done"
    }
    if not losses:
        return
    usual, least = AUGMENTATIONS[0], min(losses, key=lambda names: losses[names])
    best = usual if losses[least] > CLEARLY_LESS * losses.get(usual, math.inf) else least
    records.set_fact("augmentation", best)
    driver.use_augmentation(best)
    said = ", ".join(f"{' + '.join(names)} {loss:.3f}" for names, loss in losses.items())
    driver.say(f"Augmentation: {' + '.join(best)} (validation loss after a short training: {said})")


def calibrate(driver: Driver, share: float = 1.0) -> None:
    """Train candidates, spread over the board, fully; what they say of the ranking is remembered, and ranks the board.

    With a time budget the epochs are cut to what is left of `share` of it.
    """
    config, records = driver.config, driver.records
    ranked = leaderboard.in_order(records.all(), [one.key for one in driver.rungs], config.search.objectives[0])
    chosen = spread(ranked, driver.space.architecture_type, min(config.search.calibrate, len(ranked)))
    if len(chosen) < FEWEST_TO_CALIBRATE:
        driver.say(
            f"No calibration: it needs {FEWEST_TO_CALIBRATE} candidates, got {len(chosen)}; measure more candidates"
        )
        return
    count = len(driver.data.train)
    left = driver.budget.left_to_search(share)
    full = rung = driver.full_rung()
    if left is not None:
        lowest = {e.measurement.key: e.measurement for e in records.all() if e.measurement.rung == driver.proxy.key}
        trainings, an_epoch = [lowest[one.key] for one in chosen], min(config.retrain.images or count, count)
        fit = retraining.affordable_epochs(left, trainings, an_epoch, driver.executor.workers)
        rung = driver.full_rung(_decided_epochs(driver, full, fit, driver.rungs[-1].epochs))
    driver.say(f"Calibrating: training {len(chosen)} candidates across the board for {counted(rung.epochs, 'epoch')}")
    seed = CALIBRATION_SEEDS + config.seed
    driver.measure({Job.of(one, rung, seed): "fully" for one in chosen}, "calibrate")
    rungs = [one.key for one in driver.rungs]
    images = [one.effort * min(one.recipe.images or count, count) for one in (*driver.rungs, rung)]
    found = calibrated(records.all(), rungs, rung.key, config.search.objectives[0], images)
    if found is None:
        driver.say("No calibration: too few full trainings succeeded")
        return
    found = replace(found, epochs=None if rung.epochs == full.epochs else rung.epochs)
    records.set_fact("calibration", found.as_fact())
    driver.say(found.sentence)


def retrain(
    driver: Driver, within_budget: bool = False, top: int = 1, init: Weights | None = None
) -> list[Measurement]:
    """Train the winner from several seeds and the references from one; returns the winner's measurements.

    `within_budget` cuts the epochs to what the time budget allows. `top` also trains those next to the winner. With
    `init` every training starts from these weights, and there are no references: they fit one architecture.
    """
    config, records = driver.config, driver.records
    chosen = _to_retrain(config, driver.space, retrained.ranked(driver), top, init)
    timed = within_budget and config.search.time is not None
    seeds = config.retrain.seeds or (1 if timed else DEFAULT_SEEDS)
    references = not timed if config.retrain.references is None else config.retrain.references
    rows = _references(driver) if references and init is None else {}
    if driver.plan is None:
        driver.measure(
            {Job.of(one, driver.proxy, config.seed): name for name, many in rows.items() for one in many}, "references"
        )
    if init is None:
        records.set_fact("references", {name: [one.key for one in many] for name, many in rows.items()})
    rung, seconds = driver.retrain_rung(init=None if init is None else init.digest), None
    all_images = driver.all_images_rung(rung) if driver.exports_all_images else None
    if timed:
        count = seeds * len(chosen) + sum(map(len, rows.values()))
        trainings = speed.final_trainings(driver, chosen[0], count)
        rung, seconds, all_images = trainings.rung, trainings.seconds, trainings.all_images
    jobs = retraining.jobs(chosen[0], rung, config.seed, seeds, rows, chosen[1:], seconds)
    there = f", {known} already done" if (known := driver.known(jobs)) else ""
    start = f" from {init.name}" if init else ""
    driver.say(f"Retraining: {counted(len(jobs), 'training')} of {_length(rung)}{start}{there}")
    driver.give_everything(*([] if init is None else [init]))
    measured = driver.measure(jobs, "retrain")
    own = [m for m in measured if m.key == chosen[0].key]
    if not any(m.status == "done" for m in own):
        raise SearchError(f"the winner could not be retrained: {own[0].cause}")
    if all_images is not None:
        images = len(driver.data.all_images())
        driver.say(f"Training the network to export on all {images:,} images: {_length(all_images)}")
        seconds = speed.seconds_for_all_images(driver) if timed else None
        [on_all] = driver.measure(
            {Job.of(chosen[0], all_images, config.seed, seconds=seconds): "winner, all images"}, "retrain"
        )
        if on_all.status != "done":
            raise SearchError(f"the winner could not be trained on all images: {on_all.cause}")
    _remember_retrained(driver, rung, [one.key for one in chosen], init, all_images)
    problems = _problems(driver, own, rung)
    records.set_fact("problems", problems)
    for line in problems:
        driver.say(line)
    return own


def _problems(driver: Driver, winner: Sequence[Measurement], rung: Rung) -> list[str]:
    """What speaks against trusting the result: the search was noise, or no better than simpler ways."""
    records, data = driver.records, driver.data
    rows: dict[str, list[str]] = records.fact("references", {})
    tested: dict[str, list[float]] = {}
    proxies: dict[str, list[float]] = {}
    for one in (entry.measurement for entry in records.all()):
        if one.status == "done" and one.rung == rung.key:
            tested.setdefault(one.key, []).append(one.signals["test_accuracy"])
        if one.status == "done" and one.rung == driver.proxy.key:
            proxies.setdefault(one.key, []).append(one.signals["val_accuracy"])
    named = {name: [score for key in keys for score in tested.get(key, ())] for name, keys in rows.items()}
    randoms = named.pop("random", [])
    dense = data.task != "classification"  # pixels of one image are not independent
    labels = data.validation.labels
    evidence = Evidence(
        scores=[scores[0] for scores in proxies.values()],
        repeats=[scores for scores in proxies.values() if len(scores) > 1],
        validation_images=None if dense else len(data.validation),
        largest_class=None if dense else float(np.bincount(labels).max() / len(labels)),
        winner=[one.signals["test_accuracy"] for one in winner if one.status == "done"],
        references={name: scores for name, scores in named.items() if scores},
        randoms=randoms,
        test_images=None if dense or data.test is None else len(data.test),
    )
    return verdict_of(evidence)


def check_retrainable(config: Config, space: SearchSpace, data: Data, top: int, init: Weights | None) -> None:
    """Raises an InputError, before anything is written, where there is nothing to retrain or the weights do not fit."""
    records = existing_store(config.database, config.experiment)
    best = []
    if records is not None:
        best = leaderboard.standing(records, config.search.objectives[0])
    chosen = _to_retrain(config, space, best, top, init)
    for architecture in chosen if init is not None else ():
        assert init is not None
        with torch.random.fork_rng(devices=[]):
            network = space.build(architecture, data.input_shape, len(data.classes))
        start_from(init, network, space, architecture, data.input_shape, data.classes)


def _to_retrain(
    config: Config, space: SearchSpace, best: Sequence[Measurement], top: int, init: Weights | None
) -> list[Architecture]:
    """The best of the board; without a search, the only point of the space, or what the weights are for."""
    kind = space.architecture_type
    if top < 1:
        raise InputError(f"--top must be at least 1, got {top}")
    found: list[Architecture] = [kind.from_json(one.architecture) for one in best[:top]]
    if not found and space.size() == 1:
        found = [space.random(config.seed)]
    if not found and init is not None and (own := init.architecture(kind)) is not None:
        found = [own]
    if not found:
        raise ExperimentError(f"experiment {config.experiment!r} has no measured candidate yet")
    if len(found) < top:
        raise ExperimentError(f"--top {top} asks for more than the {max(len(best), 1)} measured by now")
    return found


def _recipe_fact(rung: Rung) -> dict[str, Any]:
    return dict(rung.recipe.model_dump(mode="json"))


def _length(rung: Rung) -> str:
    """How long a training is, in words."""
    return counted(rung.recipe.steps, "step") if rung.recipe.steps else counted(rung.epochs, "epoch")


def _remember_retrained(
    driver: Driver, rung: Rung, keys: Sequence[str], init: Weights | None, all_images: Rung | None
) -> None:
    """What export and board read: the rungs, and the architectures that were retrained at the first, by now."""
    before = driver.records.fact("retrained", {})
    earlier = before.get("keys", []) if before.get("rung") == rung.key else []
    fact = {
        "rung": rung.key,
        "recipe": _recipe_fact(rung),
        "towers": rung.towers.model_dump(mode="json"),
        "keys": [*keys, *(key for key in earlier if key not in keys)],
        "init": None if init is None else f"{init.name} (sha256 {init.digest})",
        "all_images": None if all_images is None else {"rung": all_images.key, "recipe": _recipe_fact(all_images)},
    }
    driver.records.set_fact("retrained", fact)


def export(
    driver: Driver,
    folder: Path | None = None,
    ensemble: int | None = None,
    early_exit: bool = False,
    prune: float | None = None,
) -> Exported:
    """Write and verify the winner, as retrained from the first seed: the test split chooses nothing.

    With `ensemble`, so many retrained networks in one; with `early_exit`, the winner with the logits of its towers;
    with `prune`, the winner without that share of its multiply-adds, fine-tuned.
    """
    data, found = driver.data, retrained.trained(driver.config, driver.records)
    if prune is None:
        driver.executor.close()  # nothing is trained: the whole machine is for verifying
    smaller = None if prune is None else pruned.fine_tuned(driver, prune)
    seeds = next(iter(found.values())) if smaller is None else smaller.seeds
    members = seeds[:1] if ensemble is None else retrained.members(found, ensemble)
    on_all = None if ensemble is not None else retrained.on_all_images(driver.records, seeds[0])
    if smaller is not None:
        on_all = smaller.on_all_images
    members = members if on_all is None else [on_all]
    networks = [retrained.network(driver.config, driver.space, data, one) for one in members]
    model: nn.Module = networks[0] if ensemble is None else Ensemble(networks)
    facts = _facts(driver, seeds, members, model, ensemble is not None, on_all is not None)
    if smaller is not None:
        driver.executor.close()  # latencies are measured on a quiet machine
        facts = pruned.told(driver, smaller, facts)
    if early_exit:
        model = retrained.with_exits(driver, networks[0], members[0])
    assert data.test is not None
    what = f"seed {members[0].seed}" if ensemble is None else f"an ensemble of {ensemble}"
    what = what if on_all is None else "the network trained on all images"
    driver.say(f"Exporting {what} and verifying on {len(data.test)} test images")
    folder = driver.config.folder / "export" if folder is None else folder
    unseen = data.test.labels if on_all is None else None
    return write_export(model, facts, data.test.pixels, folder, driver.config.export, unseen)


def check_exportable(
    config: Config, folder: Path | None = None, ensemble: int | None = None, early_exit: bool = False
) -> None:
    """Raises an InputError, before anything is written, where there is nothing to export, or no place for it."""
    check_export(config.export, config.folder / "export" if folder is None else folder)
    found = retrained.trained(config, existing_store(config.database, config.experiment))
    if ensemble is not None:
        retrained.members(found, ensemble)
    if early_exit:
        retrained.check_exits(next(iter(found.values()))[0])


def check_together(ensemble: int | None, early_exit: bool, prune: float | None) -> None:
    """Raises InputError where more is asked of an export than goes together."""
    asked = [("--ensemble", ensemble is not None), ("--early-exit", early_exit), ("--prune", prune is not None)]
    given = [option for option, is_given in asked if is_given]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} do not go together")


def _facts(
    driver: Driver,
    seeds: Sequence[Measurement],
    members: Sequence[Measurement],
    model: nn.Module,
    ensemble: bool,
    on_all: bool,
) -> Facts:
    """What the card says of a model of these members; `seeds` are the tested trainings of the exported architecture.

    `on_all`: the member was trained on all images.
    """
    data = driver.data
    cost = complexity.count(model, data.input_shape)
    fact = driver.records.fact("retrained", {})
    architectures = [json.loads(one.architecture) for one in members]
    return Facts(
        space=driver.config.space.name,
        architecture=json.dumps({"ensemble": architectures}) if ensemble else members[0].architecture,
        data=data.name,
        classes=data.classes,
        input_shape=data.input_shape,
        mean=data.mean,
        std=data.std,
        params=cost.params,
        flops=cost.flops,
        accuracies={} if ensemble else {one.seed: one.signals["test_accuracy"] for one in seeds},
        mious={one.seed: one.signals["test_miou"] for one in seeds if "test_miou" in one.signals and not ensemble},
        accuracy_note=_accuracy_note(driver, seeds[0], members[0]) if on_all else "",
        task=data.task,
        exported_seed=None if ensemble else members[0].seed,
        members={f"{one.key}, seed {one.seed}": one.signals["test_accuracy"] for one in members} if ensemble else {},
        notes={
            "experiment": driver.config.experiment,
            "recipe": retrained.in_words(Recipe.model_validate((fact["all_images"] if on_all else fact)["recipe"])),
            "retraining": members[0].rung,
            "started from": fact.get("init") or "fresh weights",
            **{f"problem {number}": line for number, line in enumerate(driver.records.fact("problems", []), 1)},
            "towers in training": ", ".join(f"cell {cell}" for cell in members[0].towers) or "none",
        },
    )


def _accuracy_note(driver: Driver, tested: Measurement, exported: Measurement) -> str:
    """How the exported network, trained on all images, differs from the tested ones."""
    images, steps = len(driver.data.all_images()), [round(one.cost["steps"]) for one in (tested, exported)]
    return (
        f"The exported network was trained on all {images:,} images for {steps[1]:,} steps. Test accuracies are"
        f" of the same architecture trained without the test images, for {steps[0]:,} steps."
    )


def _references(driver: Driver) -> dict[str, list[Architecture]]:
    """The reference architectures, within the limit that the search kept to."""
    driver.give_proxies()
    prices, slowest = speed.measured(driver, within_run=False)
    ranked = [one.key for one in retrained.ranked(driver)]
    return retraining.references(driver.candidates(prices, slowest), driver.config.seed, ranked)


def _decided_epochs(driver: Driver, full: Rung, fit: int, least: int) -> int:
    """Epochs of a calibrating training, of which `fit` fit into the time that is left. Decided once for a budget.

    What was trained for longer, within another budget, is not replaced by a shorter training: the epochs stay where
    there is a training of so many.
    """
    decided = driver.records.fact("full_epochs", {})
    before = int(decided["value"]) if decided.get("of") == full.key else 0
    if before and decided["time"] == driver.budget.seconds:
        return before
    epochs = max(least, min(fit, full.epochs))
    made = before > epochs and any(
        e.measurement.rung == driver.full_rung(before).key and e.measurement.status == "done"
        for e in driver.records.all()
    )
    if made:
        epochs = before
    elif before > epochs or epochs > fit or driver.budget.left() == 0:
        driver.say(
            f"Little is left of search.time: full training has {counted(epochs, 'epoch')}; raise search.time for more"
        )
    driver.records.set_fact("full_epochs", {"time": driver.budget.seconds, "of": full.key, "value": epochs})
    return epochs


def _count(size: int | None) -> str:
    if size is None:
        return "an unknown number of"
    return f"{size:,}" if size < 1e6 else f"{size:.2g}"
