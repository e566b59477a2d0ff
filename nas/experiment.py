"""One experiment: a folder under results/, and the pipeline over it as methods.

::

    experiment = nas.Experiment("demo", space="inception", data="digits")
    experiment.search(trials=30)
    experiment.leaderboard()
    experiment.retrain()
    experiment.export()

Each command of ``nas`` that works on an experiment is one of these methods. Modules that need torch, Optuna or Ray are
imported by the step that runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import config as configuration
from nas import leaderboard
from nas.config import Config
from nas.errors import ExperimentError, SearchError
from nas.leaderboard import Record
from nas.records import Measurement, Records, existing_records

if TYPE_CHECKING:
    from nas.driver import Driver
    from nas.export import Exported
    from nas.ladder import Rung
    from nas.search import Listener, Progress
    from nas.space import Architecture, SearchSpace, Shape

DEFAULT_TRIALS = 30
"""Candidates of a search that is given neither a number nor a time."""


@dataclass(frozen=True)
class Shown:
    """An architecture, cell by cell: (cell, description, params, FLOPs) and the totals of the bare network."""

    architecture: Architecture
    name: str
    input_shape: Shape
    cells: list[tuple[str, str, int, int]]
    params: int
    flops: int


class Experiment:
    """An experiment by name and config. Constructing one writes nothing.

    `config` is a whole Config; the other arguments override single keys of it (``space="inception"``,
    ``data="digits"``, ``search__trials=30``). `listen` gets an `nas.search.Event` for everything worth telling.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        space: str | None = None,
        data: str | None = None,
        config: Config | None = None,
        listen: Listener | None = None,
        **keys: Any,
    ) -> None:
        table = config.model_dump(mode="json") if config is not None else {}
        for key, value in {"name": name, "space.name": space, "data.name": data, **keys}.items():
            if value is not None:
                configuration.assign(table, key.replace("__", "."), value)
        self.config = configuration.make(table)
        self.listen: Listener = listen or (lambda event: None)

    @classmethod
    def open(
        cls, name: str | None = None, results: Path = Path("results"), assignments: Sequence[str] = ()
    ) -> Experiment:
        """An experiment that exists, by name; None: the one that was worked on last.

        `assignments` (``section.key=value``) change its config for what is done now.
        """
        folder = results / name if name is not None else _latest(results)
        file = folder / "config.toml"
        if not file.is_file():
            raise ExperimentError(f"no experiment {folder.name!r} in {str(results)!r}{_there_are(results)}")
        config = configuration.read(file, assignments, name=folder.name, results=str(results))
        return cls(config=config)

    @property
    def folder(self) -> Path:
        """Where config, study, measurements, weights and exports lie."""
        return self.config.folder

    # ------------------------------------------------------------------------------------------- the steps

    def run(self) -> Exported:
        """Search, retrain, export. A time budget covers all of it."""
        from nas.driver import driving

        with driving(self.config) as driver:
            self._search(driver, within_run=True)
            self._retrain(driver, within_run=True)
            driver.executor.close()
            return self._export(driver)

    def search(self, trials: int | None = None, time: float | str | None = None) -> Progress:
        """Measure candidates until there are so many, or the time is over; goes on where an earlier search ended."""
        from nas.driver import driving

        with driving(self._changed(search__trials=trials, search__time=time)) as driver:
            return self._search(driver, within_run=False)

    def retrain(self, seeds: int | None = None) -> list[Measurement]:
        """Train the winner (and the references) on the full recipe; returns the winner's measurements."""
        from nas.driver import driving

        with driving(self._changed(retrain__seeds=seeds)) as driver:
            return self._retrain(driver, within_run=False)

    def export(self) -> Exported:
        """Write the retrained winner as safetensors, torch.export and ONNX, each verified on real test images."""
        from nas.driver import driving

        with driving(self.config, workers=False) as driver:
            return self._export(driver)

    def leaderboard(self) -> list[Record]:
        """Every measured candidate and the reference rows, best first."""
        records = self._records()
        if records is None or records.fact("proxy_rung") is None:
            return []
        return leaderboard.board(
            records.all(),
            records.fact("proxy_rung"),
            records.fact("retrain_rung"),
            self.config.search.objectives[0],
            records.fact("references", {}),
        )

    def show(self, what: str) -> Shown:
        """An architecture: a trial's number, a key, a named point of the space, or a JSON file."""
        from nas import complexity

        space, (shape, classes) = self._space(), self._image()
        architecture = self._find(what, space)
        network = space.build(architecture, shape, classes)
        by_module = complexity.flops_by_module(network, shape)
        described = space.describe(architecture)
        names: tuple[str, ...] = network.cell_names  # type: ignore[assignment]
        cells = [
            (
                name,
                described[number] if number < len(described) else "",
                sum(p.numel() for p in network.get_submodule(name).parameters()),
                by_module[name],
            )
            for number, name in enumerate(names)
        ]
        total = complexity.count(network, shape)
        return Shown(architecture, what, shape, cells, total.params, total.flops)

    # ----------------------------------------------------------------------------------- inside the driver

    def _search(self, driver: Driver, within_run: bool) -> Progress:
        from nas.search import Search

        config, records = self.config, driver.records
        driver.give_proxies()
        max_flops = self._flops_within_time(driver) if within_run else None
        trials = config.search.trials
        if trials is None and config.search.time is None:
            trials = DEFAULT_TRIALS
        self._say(driver, f"Searching {_count(driver.space.size())} architectures on {driver.executor.slots} workers")
        search = Search(
            driver.candidates(max_flops),
            driver.proxy,
            config.seed,
            driver.study,
            records,
            driver.executor,
            driver.budget,
            self.listen,
            driver.check,
        )
        return search.run(trials, config.search.share if within_run else 1.0)

    def _flops_within_time(self, driver: Driver) -> int | None:
        """With a time budget and no limit on FLOPs: the largest networks that can be retrained within it.

        Decided once, from the speed of one reference, and remembered, so that a resumed search keeps to it.
        """
        from nas import retrain
        from nas.proxy import Job

        config, records = self.config, driver.records
        if config.search.time is None or config.search.max_flops is not None:
            return None
        remembered = records.fact("max_flops")
        if remembered is not None:
            return int(remembered)
        rows = retrain.references(driver.candidates(None), config.seed)
        if not rows:
            return None
        job = Job.of(next(iter(rows.values()))[0], driver.proxy, config.seed)
        measured = retrain.measure({job: "speed probe"}, driver.executor, records, driver.budget, self.listen, "probe")
        if measured[0].status != "done":
            return None
        beside = sum(map(len, rows.values())) if config.retrain.references else 0
        rung = driver.retrain_rung()
        limit = retrain.affordable_flops(
            (1 - config.search.share) * config.search.time,
            measured[0],
            config.retrain.seeds,
            beside,
            rung.epochs * driver.retrain_images,
            driver.executor.slots,
        )
        records.set_fact("max_flops", limit)
        self._say(
            driver,
            f"Limit {limit / 1e6:,.3g} MFLOPs an image: so that {rung.epochs} epochs of retraining fit the time",
        )
        return limit

    def _retrain(self, driver: Driver, within_run: bool) -> list[Measurement]:
        from nas import retrain
        from nas.proxy import Job

        config, records = self.config, driver.records
        winner = self._winner(records)
        architecture = driver.space.architecture_type.from_json(winner.architecture)
        rows: dict[str, list[Architecture]] = {}
        if config.retrain.references:
            rows = self._references(driver)
            jobs = {Job.of(one, driver.proxy, config.seed): name for name, many in rows.items() for one in many}
            driver.give_proxies()
            proxies = retrain.measure(
                jobs, driver.executor, records, driver.budget, self.listen, "references", check=driver.check
            )
            records.set_fact("references", {name: [one.key for one in many] for name, many in rows.items()})
        else:
            proxies = []
        trainings = [winner] * config.retrain.seeds + [one for one in proxies if one.status == "done"]
        rung = self._rung_within_time(driver, trainings) if within_run else driver.retrain_rung()
        jobs = retrain.jobs(architecture, rung, config.seed, config.retrain.seeds, rows)
        self._say(driver, f"Retraining: {len(jobs)} trainings of {rung.epochs} epochs")
        driver.give_everything()
        measured = retrain.measure(
            jobs,
            driver.executor,
            records,
            driver.budget,
            self.listen,
            "retrain",
            self.folder / "weights",
            driver.check,
        )
        records.set_fact("retrain_rung", rung.key)
        records.set_fact("retrain_recipe", rung.recipe.model_dump(mode="json"))
        own = [m for m in measured if m.key == winner.key]
        if not any(m.status == "done" for m in own):
            raise SearchError(f"the winner could not be retrained: {own[0].cause}")
        return own

    def _rung_within_time(self, driver: Driver, trainings: list[Measurement]) -> Rung:
        """The retraining rung, its epochs cut to what the budget allows; decided once and remembered."""
        from nas import retrain

        full = driver.retrain_rung()
        left = driver.budget.left()
        if left is None:
            return full
        remembered = driver.records.fact("retrain_epochs")
        if remembered is None:
            fit = retrain.affordable_epochs(left, trainings, driver.retrain_images, driver.executor.slots)
            remembered = min(full.epochs, fit)
            driver.records.set_fact("retrain_epochs", remembered)
        return driver.retrain_rung(int(remembered))

    def _references(self, driver: Driver) -> dict[str, list[Architecture]]:
        """The reference architectures, the same ones after a resume."""
        from nas import retrain

        remembered = driver.records.fact("max_flops")
        return retrain.references(driver.candidates(remembered), self.config.seed)

    def _export(self, driver: Driver) -> Exported:
        import safetensors.torch

        from nas import complexity, export, retrain

        records, data = driver.records, driver.data
        rung = records.fact("retrain_rung")
        winner = self._winner(records)
        trained = {
            e.measurement.seed: e.measurement
            for e in records.all()
            if e.measurement.key == winner.key and e.measurement.rung == rung and e.measurement.status == "done"
        }
        if not trained:
            raise ExperimentError(f"experiment {self.config.experiment!r} is not retrained yet: run `nas retrain`")
        seed = min(trained)  # by number, not by test accuracy: the test split chooses nothing
        architecture = driver.space.architecture_type.from_json(winner.architecture)
        network = driver.space.build(architecture, data.input_shape, len(data.classes))
        weights = retrain.weights_file(self.folder / "weights", trained[seed])
        network.load_state_dict(safetensors.torch.load_file(weights))
        cost = complexity.count(network, data.input_shape)
        assert data.test is not None
        facts = export.Facts(
            space=self.config.space.name,
            architecture=winner.architecture,
            data=data.name,
            classes=data.classes,
            input_shape=data.input_shape,
            mean=data.mean,
            std=data.std,
            params=cost.params,
            flops=cost.flops,
            accuracies={s: m.signals["test_accuracy"] for s, m in sorted(trained.items())},
            exported_seed=seed,
            notes={
                "experiment": self.config.experiment,
                "recipe": ", ".join(f"{k} {v}" for k, v in records.fact("retrain_recipe").items() if v is not None),
                "retraining": str(rung),
                "towers in training": ", ".join(f"cell {cell}" for cell in trained[seed].towers) or "none",
            },
        )
        self._say(driver, f"Exporting seed {seed} and verifying on {len(data.test)} test images")
        return export.export(network, facts, data.test.pixels, self.folder / "export", self.config.export)

    def _winner(self, records: Records) -> Measurement:
        found = leaderboard.best(records.all(), records.fact("proxy_rung", ""), self.config.search.objectives[0])
        if found is None:
            raise ExperimentError(f"experiment {self.config.experiment!r} has no measured candidate yet")
        return found

    # --------------------------------------------------------------------------------------------- plumbing

    def _changed(self, **keys: Any) -> Config:
        """The config with these keys, from now on."""
        table = self.config.model_dump(mode="json")
        for key, value in keys.items():
            if value is not None:
                configuration.assign(table, key.replace("__", "."), value)
        self.config = configuration.make(table)
        return self.config

    def _records(self) -> Records | None:
        """What was measured so far; None (and nothing written) before the experiment has begun."""
        return existing_records(self.config.database, self.config.experiment)

    def _space(self) -> SearchSpace:
        import search_spaces

        return search_spaces.load(self.config.space.name, self.config.space.settings)

    def _image(self) -> tuple[Shape, int]:
        """Shape and number of classes of the images, from the experiment if it has begun, else from the data."""
        records = self._records()
        known = records.fact("image") if records is not None else None
        if known is not None:
            return (known[0], known[1], known[2]), known[3]
        from nas.data import load

        data = load(self.config.data)
        return data.input_shape, len(data.classes)

    def _find(self, what: str, space: SearchSpace) -> Architecture:
        named = space.named()
        if what in named:
            return space.point(named[what])
        if Path(what).is_file():
            return space.architecture_type.from_json(Path(what).read_text(encoding="utf-8"))
        records = self._records()
        if records is not None:
            for entry in records.all():
                if what in (str(entry.trial), entry.measurement.key):
                    return space.architecture_type.from_json(entry.measurement.architecture)
        raise ExperimentError(
            f"nothing to show for {what!r}: give a measured trial's number, an architecture's key, "
            f"a JSON file, or a named point ({', '.join(named) or 'this space has none'})"
        )

    def _say(self, driver: Driver, text: str) -> None:
        from nas.search import Event, Progress

        progress = Progress("", 0, 0, 0, driver.executor.running, None, None, driver.budget.left())
        self.listen(Event(progress, text=text))


def _latest(results: Path) -> Path:
    files = sorted(results.glob("*/config.toml"), key=_last_worked_on)
    if not files:
        raise ExperimentError(f"no experiment in {str(results)!r} yet: start with `nas run`")
    return files[-1].parent


def _last_worked_on(config_file: Path) -> float:
    return max(file.stat().st_mtime for file in config_file.parent.iterdir() if file.is_file())


def _there_are(results: Path) -> str:
    names = sorted(file.parent.name for file in results.glob("*/config.toml"))
    return f"; there are: {', '.join(names)}" if names else ""


def _count(size: int | None) -> str:
    if size is None:
        return "an unknown number of"
    return f"{size:,}" if size < 1e6 else f"{size:.2g}"
