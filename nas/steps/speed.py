"""Measures the speed of this machine once per experiment, and derives what a time budget allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from nas import ladder
from nas.errors import SearchError
from nas.evaluation.cost_model import CostModel, Sample, spread_over_cost
from nas.evaluation.evaluator import Job
from nas.ladder import Rung
from nas.progress import counted
from nas.search.candidates import Prices, scaled, work_of
from nas.search.time_plan import (
    FORWARD_SHARE,
    LEAST_STEPS,
    MARGIN,
    MOST_EPOCHS,
    SAVED_FOR_WRITING,
    WRITING_OF_STARTING,
    TimePlan,
    time_plan,
)
from nas.space import Architecture
from nas.steps.driver import Driver
from nas.store import Measurement

TIMED = 4
"""Architectures whose training step is timed."""

TIMED_WHOLE = 2
"""... and of these, whose step is timed with all cores of the machine too."""

DRAWN = 30
"""Random architectures drawn at most, where a space names too few points."""

TESTED_SHARE = 0.15
"""Share of the time for full training in which the winner is trained without the test images, to be tested, where what
is exported is trained on all images."""

VERIFIED = 4
"""Forms of the winner that are run on test images for the export: as trained, and three files."""

VERIFIED_IMAGES = 2000
"""Test images that files are compared on, at most."""


def measured(driver: Driver, within_run: bool) -> tuple[Prices | None, float | None]:
    """What a step costs here, and the slowest step that a candidate may have; None without a time budget.

    Measured when a budget is first used, and read from then on, so that a resumed search prepares the same jobs. A
    longer budget raises the limit, and a shorter one does not lower it, for candidates are measured already.
    """
    records, seconds = driver.records, driver.config.search.time
    known = records.fact("cost_model")
    if known is None:
        if driver.plan is None and not (within_run and seconds is not None):
            return None, None
        known = _timed(driver)
        records.set_fact("cost_model", known)
    worker, whole = (CostModel.model_validate(known[name]) for name in ("worker", "whole"))
    prices = Prices(worker, whole, known["batch"], known["area"])
    limit = float(records.fact("slowest_step", 0.0))
    if seconds is not None:
        plan = driver.plan or time_plan(seconds, driver.executor.workers, driver.config.search.share)
        limit = max(limit, plan.slowest_step(driver.steps_an_epoch), known["fastest"])
        records.set_fact("slowest_step", limit)
    return prices, limit or None


def in_words(plan: TimePlan, slowest: float | None) -> str:
    """The plan in one line."""
    limit = "" if slowest is None else f"; candidates whose training step takes at most {1000 * slowest:.3g} ms"
    return (
        f"Budget of {_duration(plan.total)}: {_duration(plan.search)} to search, {_duration(plan.final)} to train the "
        f"winner{limit}"
    )


@dataclass(frozen=True)
class FinalTrainings:
    """What is trained fully within a time budget.

    `rung` is that of the trainings with test accuracies, each of which may take so many `seconds`. `all_images` is the
    rung of the network that is exported instead, where it is trained on the test images too.
    """

    rung: Rung
    seconds: float
    all_images: Rung | None


@dataclass(frozen=True)
class _Lengths:
    """Steps of the full trainings within a budget of `time` seconds, as decided and stored; each takes its `share`.

    `steps` are those of tested trainings, `all_steps` that of the one on all images.
    """

    time: float
    key: str
    step_seconds: float
    share: float
    steps: int
    all_steps: int | None

    def seconds(self, count: int) -> float:
        return (count * self.steps + (self.all_steps or 0)) * self.step_seconds


def final_trainings(driver: Driver, architecture: Architecture, count: int) -> FinalTrainings:
    """`count` full trainings in the time that is left, and that on all images, where it follows them.

    Their steps are decided once for a budget and an architecture, from the measured speed of that one, and stored. What
    was trained for longer within another budget is not replaced by a shorter training.
    """
    seconds = driver.budget.seconds
    assert seconds is not None
    stored = driver.records.fact("retrain_steps")
    known = None if stored is None else _Lengths(**stored)
    if known and (known.key != architecture.key or (known.all_steps is None) == driver.exports_all_images):
        known = None
    lengths = known if known and known.time == seconds else _lengths(driver, architecture, count, seconds, known)
    driver.records.set_fact("retrain_steps", asdict(lengths))
    all_images = None
    if lengths.all_steps is not None:
        all_images = driver.all_images_rung(driver.timed_rung(lengths.all_steps))
    part = lengths.share * _left(driver, lengths.step_seconds)
    allowed = max(part, lengths.steps * lengths.step_seconds / 2)
    return FinalTrainings(driver.timed_rung(lengths.steps), allowed, all_images)


def seconds_for_all_images(driver: Driver) -> float:
    """The longest that the training on all images may take: what is left of the budget when it starts."""
    lengths = _Lengths(**driver.records.fact("retrain_steps"))
    planned = (lengths.all_steps or 0) * lengths.step_seconds
    return max(_left(driver, lengths.step_seconds), planned / 2)


def _lengths(
    driver: Driver, architecture: Architecture, count: int, seconds: float, before: _Lengths | None
) -> _Lengths:
    """Steps that fit into what is left of the budget; `before` are those of another budget."""
    step = _step_seconds(driver, architecture)
    left, an_epoch, recipe = _left(driver, step), driver.steps_an_epoch, driver.config.retrain
    most = recipe.steps or (recipe.epochs or 0) * an_epoch or max(LEAST_STEPS, round(MOST_EPOCHS * an_epoch))
    share = 1 / count
    if driver.exports_all_images:
        share = TESTED_SHARE if count == 1 else 1 / (count + 1)

    def steps_of(part: float) -> int:
        return min(most, max(an_epoch, int(part * MARGIN * left / step)))

    all_steps = steps_of(1 - count * share) if driver.exports_all_images else None
    lengths = _Lengths(seconds, architecture.key, step, share, steps_of(share), all_steps)
    if before and before.steps > lengths.steps and _was_trained(driver, architecture, driver.timed_rung(before.steps)):
        return replace(lengths, steps=before.steps, all_steps=before.all_steps)
    if lengths.seconds(count) > left:
        driver.say(
            f"Little is left of search.time ({_duration(max(0.0, left))}): full training has "
            f"{counted(all_steps or lengths.steps, 'step')}; `nas retrain` trains without this limit"
        )
    return lengths


def _left(driver: Driver, step: float) -> float:
    """Seconds of the budget that are left for training, once what follows it is done."""
    left = driver.budget.left()
    assert left is not None
    test = 0 if driver.data.test is None else len(driver.data.test)
    an_image = FORWARD_SHARE * step / ladder.batch_size(driver.config.retrain, len(driver.data.train))
    writing = SAVED_FOR_WRITING + WRITING_OF_STARTING * driver.started_in
    return left - writing - (test + VERIFIED * min(test, VERIFIED_IMAGES)) * an_image


def _step_seconds(driver: Driver, architecture: Architecture) -> float:
    """Seconds of a training step of an architecture with all cores of a machine, measured."""
    rung = ladder.timing_rung(driver.config, len(driver.data.train), whole=True)
    [one] = driver.measure({Job.of(architecture, rung, driver.config.seed): "speed of the winner"}, "timing")
    if one.status != "done":
        raise SearchError(f"the winner could not be trained: {one.cause}")
    return one.cost["step_seconds"]


def _was_trained(driver: Driver, architecture: Architecture, rung: Rung) -> bool:
    known = driver.records.get(architecture.key, rung.key, driver.config.seed)
    return known is not None and known.status == "done"


def _timed(driver: Driver) -> dict[str, object]:
    """Models of the seconds of a step on a worker and with a whole machine, from a few architectures."""
    chosen = _to_time(driver)
    train = len(driver.data.train)
    rungs = [ladder.timing_rung(driver.config, train, whole) for whole in (False, True)]
    seed = driver.config.seed
    jobs = {Job.of(one, rungs[0], seed): "speed" for one in chosen}
    jobs |= {Job.of(one, rungs[1], seed): "speed" for one in chosen[len(chosen) // 2 :][:TIMED_WHOLE]}
    driver.say(f"Timing training steps of {counted(len(chosen), 'network')}")
    found = [one for one in driver.measure(jobs, "timing") if one.status == "done"]
    if not found:
        raise SearchError("no network of the space could be trained")
    recipe = rungs[0].recipe
    batch = ladder.batch_size(recipe, train)
    area = mean_area(recipe.resizing or ())
    samples = {rung.key: [_sample(driver, one, batch, area) for one in found if one.rung == rung.key] for rung in rungs}
    worker = CostModel.fit(samples[rungs[0].key])
    whole = CostModel.fit(samples[rungs[1].key], worker)
    fastest = min(whole.seconds_per_step(one.work, batch) for many in samples.values() for one in many)
    models = {"worker": worker.model_dump(mode="json"), "whole": whole.model_dump(mode="json")}
    return models | {"batch": batch, "area": area, "fastest": 1.01 * fastest}


def _to_time(driver: Driver) -> list[Architecture]:
    """Architectures within the user's limits, spread over cost; the costliest would take too long to time."""
    candidates = driver.candidates()
    found: dict[Architecture, float] = {}
    nearest: dict[Architecture, float] = {}
    for architecture in _points(driver):
        try:
            sizes = candidates.sizes(architecture)
        except Exception:  # a third-party space may raise anything, and its other points may be sound
            continue
        within = all(over <= 0 for over in candidates.beyond(sizes)[0].values())
        (found if within else nearest)[architecture] = sizes["flops"]
    flops = found or nearest
    if not flops:
        raise SearchError("the space builds no network")
    ordered = sorted(flops, key=flops.__getitem__)
    cheaper = ordered[: max(TIMED, 3 * len(ordered) // 4)]
    return [cheaper[place] for place in spread_over_cost([flops[one] for one in cheaper], TIMED)]


def _points(driver: Driver) -> Iterator[Architecture]:
    """The named points of the space, and some random ones."""
    space = driver.space
    yield from (space.point(values) for values in space.named().values())
    for number in range(DRAWN if len(space.named()) < TIMED else 0):
        try:
            yield space.random(1_000 * driver.config.seed + number)
        except Exception:  # as above
            continue


def _sample(driver: Driver, one: Measurement, batch: int, area: float) -> Sample:
    architecture = driver.space.architecture_type.from_json(one.architecture)
    work = work_of(driver.space, architecture, driver.data.input_shape, len(driver.data.classes))
    return Sample(scaled(work, area), batch, one.cost["step_seconds"])


def mean_area(resizing: ladder.Resizing) -> float:
    """Share of an image's pixels, in the mean over a training that begins with smaller images."""
    area, start = 0.0, 0.0
    for share, until in resizing:
        area, start = area + (until - start) * share**2, until
    return area + 1 - start


def _duration(seconds: float) -> str:
    """``45 s``, ``7 min 50 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.3g} s" if seconds < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
