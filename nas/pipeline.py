"""The steps of an experiment - search, retrain, export - on an open driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch

from nas import complexity, leaderboard
from nas import retrain as retraining
from nas.driver import Driver
from nas.errors import ExperimentError, SearchError
from nas.export import Exported, Facts
from nas.export import export as write_export
from nas.ladder import Rung
from nas.progress import Progress
from nas.proxy import Job
from nas.records import Measurement
from nas.search import Search
from nas.space import Architecture

DEFAULT_TRIALS = 30
"""Candidates of a search that is given neither a number nor a time."""


def search(driver: Driver, share: float | None = None) -> Progress:
    """Measure candidates. With a `share` of the time budget, the rest is for retraining, which limits their size."""
    wanted = driver.config.search
    driver.give_proxies()
    max_flops = _flops_within_budget(driver, 1 - share) if share is not None else _remembered_flops(driver)
    trials = DEFAULT_TRIALS if wanted.trials is None and wanted.time is None else wanted.trials
    driver.say(f"Searching {_count(driver.space.size())} architectures on {driver.executor.slots} workers")
    loop = Search(
        driver.candidates(max_flops),
        driver.proxy,
        driver.config.seed,
        driver.study,
        driver.records,
        driver.executor,
        driver.budget,
        driver.listen,
        driver.check,
    )
    return loop.run(trials, 1.0 if share is None else share)


def retrain(driver: Driver, within_budget: bool = False) -> list[Measurement]:
    """Train the winner from several seeds and the references from one; returns the winner's measurements.

    `within_budget` cuts the epochs to what the time budget allows.
    """
    config, records = driver.config, driver.records
    best = winner(driver)
    rows = _references(driver) if config.retrain.references else {}
    proxies = _measure(
        driver,
        {Job.of(one, driver.proxy, config.seed): name for name, many in rows.items() for one in many},
        "references",
    )
    records.set_fact("references", {name: [one.key for one in many] for name, many in rows.items()})
    trainings = [best] * config.retrain.seeds + [one for one in proxies if one.status == "done"]
    rung = _rung_within_budget(driver, trainings) if within_budget else driver.retrain_rung()
    architecture = driver.space.architecture_type.from_json(best.architecture)
    jobs = retraining.jobs(architecture, rung, config.seed, config.retrain.seeds, rows)
    driver.say(f"Retraining: {len(jobs)} trainings of {rung.epochs} epochs")
    driver.give_everything()
    measured = _measure(driver, jobs, "retrain")
    records.set_fact("retrained", {"rung": rung.key, "recipe": rung.recipe.model_dump(mode="json")})
    own = [m for m in measured if m.key == best.key]
    if not any(m.status == "done" for m in own):
        raise SearchError(f"the winner could not be retrained: {own[0].cause}")
    return own


def export(driver: Driver, folder: Path | None = None) -> Exported:
    """Write and verify the winner, as retrained from the first seed: the test split chooses nothing."""
    records, data = driver.records, driver.data
    retrained, best = records.fact("retrained", {}), winner(driver)
    trained = {
        e.measurement.seed: e.measurement
        for e in records.all()
        if e.measurement.key == best.key
        and e.measurement.rung == retrained.get("rung")
        and e.measurement.status == "done"
    }
    if not trained:
        raise ExperimentError(f"experiment {driver.config.experiment!r} is not retrained yet: run `nas retrain`")
    seed = min(trained)
    architecture = driver.space.architecture_type.from_json(best.architecture)
    network = driver.space.build(architecture, data.input_shape, len(data.classes))
    weights = retraining.weights_file(driver.weights, trained[seed])
    if not weights.is_file():
        raise ExperimentError(f"the weights {str(weights)!r} are gone: `nas retrain` trains them again")
    network.load_state_dict(safetensors.torch.load_file(weights))
    cost = complexity.count(network, data.input_shape)
    assert data.test is not None
    recipe = {key: value for key, value in retrained["recipe"].items() if value is not None}
    facts = Facts(
        space=driver.config.space.name,
        architecture=best.architecture,
        data=data.name,
        classes=data.classes,
        input_shape=data.input_shape,
        mean=data.mean,
        std=data.std,
        params=cost.params,
        flops=cost.flops,
        accuracies={s: m.signals["test_accuracy"] for s, m in sorted(trained.items())},
        mious={s: m.signals["test_miou"] for s, m in sorted(trained.items()) if "test_miou" in m.signals},
        task=data.task,
        exported_seed=seed,
        notes={
            "experiment": driver.config.experiment,
            "recipe": ", ".join(f"{key} {value}" for key, value in recipe.items()),
            "retraining": retrained["rung"],
            "towers in training": ", ".join(f"cell {cell}" for cell in trained[seed].towers) or "none",
        },
    )
    driver.say(f"Exporting seed {seed} and verifying on {len(data.test)} test images")
    folder = driver.config.folder / "export" if folder is None else folder
    return write_export(network, facts, data.test.pixels, folder, driver.config.export)


def winner(driver: Driver) -> Measurement:
    """The best candidate at the proxy rung; raises ExperimentError where none is measured."""
    objective = driver.config.search.objectives[0]
    found = leaderboard.best(driver.records.all(), driver.proxy.key, objective)
    if found is None:
        raise ExperimentError(f"experiment {driver.config.experiment!r} has no measured candidate yet")
    return found


def _measure(driver: Driver, jobs: Mapping[Job, str], stage: str) -> list[Measurement]:
    return retraining.measure(
        jobs,
        driver.executor,
        driver.records,
        driver.budget,
        driver.listen,
        stage,
        driver.weights,
        driver.check,
    )


def _references(driver: Driver) -> dict[str, list[Architecture]]:
    """The reference architectures, within the limit that the search kept to."""
    driver.give_proxies()
    return retraining.references(driver.candidates(_remembered_flops(driver)), driver.config.seed)


def _remembered_flops(driver: Driver) -> int | None:
    """The limit on FLOPs that an earlier budget set, if any."""
    remembered = driver.records.fact("max_flops")
    return None if remembered is None else int(remembered["value"])


def _flops_within_budget(driver: Driver, share: float) -> int | None:
    """With a time budget and no limit on FLOPs: the largest networks that a share of it retrains; else None.

    Decided once for a budget, from the speed of one reference, and remembered, so that a resumed search keeps to it.
    More time raises it; less does not lower it, for candidates are measured already.
    """
    config, records = driver.config, driver.records
    if config.search.time is None or config.search.max_flops is not None:
        return None
    remembered = records.fact("max_flops", {"time": None, "value": 0})
    if remembered["time"] == config.search.time:
        return int(remembered["value"])
    rows = retraining.references(driver.candidates(None), config.seed)
    job = Job.of(next(iter(rows.values()))[0], driver.proxy, config.seed)
    [probe] = _measure(driver, {job: "speed probe"}, "probe")
    if probe.status != "done":
        return None
    rung = driver.retrain_rung()
    limit = retraining.affordable_flops(
        share * config.search.time,
        probe,
        config.retrain.seeds,
        sum(map(len, rows.values())) if config.retrain.references else 0,
        rung.epochs * driver.retrain_images,
        driver.executor.slots,
    )
    limit = max(limit, int(remembered["value"]))
    records.set_fact("max_flops", {"time": config.search.time, "value": limit})
    driver.say(f"Limit {limit / 1e6:,.3g} MFLOPs an image: so that {rung.epochs} epochs of retraining fit the time")
    return limit


def _rung_within_budget(driver: Driver, trainings: Sequence[Measurement]) -> Rung:
    """The retraining rung, its epochs cut to what is left of the budget; decided once and remembered."""
    full, left = driver.retrain_rung(), driver.budget.left()
    if left is None:
        return full
    decided = driver.records.fact("retrain_epochs", {})
    if (decided.get("time"), decided.get("of")) != (driver.budget.seconds, full.key):
        fit = retraining.affordable_epochs(left, trainings, driver.retrain_images, driver.executor.slots)
        decided = {"time": driver.budget.seconds, "of": full.key, "value": min(full.epochs, fit)}
        driver.records.set_fact("retrain_epochs", decided)
    return driver.retrain_rung(int(decided["value"]))


def _count(size: int | None) -> str:
    if size is None:
        return "an unknown number of"
    return f"{size:,}" if size < 1e6 else f"{size:.2g}"
