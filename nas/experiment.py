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

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import config as configuration
from nas import leaderboard
from nas.config import Config
from nas.errors import ExperimentError
from nas.leaderboard import Record
from nas.store import Measurement, Store, existing_store
from nas.time_plan import search_share
from search_spaces import systems

if TYPE_CHECKING:
    import optuna

    from nas.calibrated import Calibrated
    from nas.data import Data
    from nas.export import Exported
    from nas.plan import Plan
    from nas.progress import Listener, Progress
    from nas.space import Architecture, SearchSpace, Shape


@dataclass(frozen=True)
class Shown:
    """An architecture, cell by cell: (cell, description, params, FLOPs) and the totals of the bare network.

    `memory` is the peak of its activations, in bytes, for one image at inference.
    """

    architecture: Architecture
    name: str
    input_shape: Shape
    cells: list[tuple[str, str, int, int]]
    params: int
    flops: int
    memory: int


class Experiment:
    """An experiment by name and config. Constructing one writes nothing.

    `config` is a whole Config; the other arguments override single keys of it (``space="inception"``,
    ``data="digits"``, ``search__trials=30``). `listen` gets a `nas.progress.Event` for everything worth telling.
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

        `assignments` (``section.key=value``) change its config, from now on where something is done with it.
        """
        folder = results / name if name is not None else _latest(results)
        file = folder / "config.toml"
        if not file.is_file():
            raise ExperimentError(f"no experiment {folder.name!r} in {str(results)!r}{_there_are(results)}")
        config = configuration.read(file, assignments, name=folder.name, results=str(results))
        return cls(config=config)

    @classmethod
    def to_retrain(
        cls,
        what: str | None = None,
        results: Path = Path("results"),
        assignments: Sequence[str] = (),
        data: str | None = None,
        data_dir: Path | None = None,
        name: str | None = None,
    ) -> Experiment:
        """As `open`; but `what` may also be a config file or a system, and there may be other data.

        An experiment on other data is one of its own, called `name`, or after both.
        """
        if what is None or (results / what / "config.toml").is_file():
            own = cls.open(what, results, assignments).config
            same = data is None or Path(data) == Path(own.data.name)  # photos and photos/ alike
            if same and name in (None, own.name):
                there = own.data if data_dir is None else own.data.model_copy(update={"dir": data_dir})
                return cls(config=own.model_copy(update={"data": there}))
            what, file = own.experiment, own.folder / "config.toml"
        else:
            file = Path(what)
            if (not file.exists() or file.is_dir()) and what not in systems.available():
                known = ", ".join(systems.available())
                raise ExperimentError(
                    f"no experiment {what!r} in {str(results)!r}{_there_are(results)}, nor a system; those are: {known}"
                )
        keys = {"results": str(results), "data.name": data, "data.dir": data_dir and str(data_dir)}
        config = configuration.read(file, assignments, name=name, **keys)
        if name is None and (results / what / "config.toml").is_file():
            config = config.model_copy(update={"name": config.named_after(what)})
        return cls(config=config)

    @property
    def folder(self) -> Path:
        """Where config, study, measurements, weights and exports lie."""
        return self.config.folder

    def run(self) -> Exported:
        """Search, retrain, export. A time budget covers all of it."""
        from nas import export, pipeline
        from nas.driver import driving

        def usable(space: SearchSpace, data: Data) -> None:
            export.check(self.config.export, self.folder / "export")

        began = time.monotonic()
        with driving(self.config, self.listen, usable=usable, began=began) as driver:
            wanted = self.config.search
            pipeline.search(driver, wanted.share or search_share(wanted.time or 0.0))
            pipeline.retrain(driver, within_budget=True)
            return pipeline.export(driver)

    def search(
        self, trials: int | None = None, time: float | str | None = None, calibrate: int | None = None
    ) -> Progress:
        """Measure candidates until there are so many, or the time is over; goes on where an earlier search ended.

        With `calibrate`, so many of them are then trained fully, on the same budget, and the board ranks by the
        accuracy that they let expect: see `calibration`.
        """
        from nas import pipeline
        from nas.driver import driving

        config = self._changed(search__trials=trials, search__time=time, search__calibrate=calibrate)
        with driving(config, self.listen) as driver:
            return pipeline.search(driver)

    def retrain(self, seeds: int | None = None, top: int = 1, init: Path | str | None = None) -> list[Measurement]:
        """Train the winner (and the references) on the full recipe; returns the winner's measurements.

        `top` also trains those next to it on the board. `init` is a safetensors file of weights to start from, with a
        new last layer where the labels are others. Without a search before it, the architecture is the only point of
        the space, or that of the weights.
        """
        from nas import pipeline, weights
        from nas.driver import driving

        start = None if init is None else weights.read(Path(init))
        config = self._changed(retrain__seeds=seeds)

        def usable(space: SearchSpace, data: Data) -> None:
            pipeline.check_retrainable(config, space, data, top, start)

        with driving(config, self.listen, usable=usable) as driver:
            return pipeline.retrain(driver, top=top, init=start)

    def export(
        self,
        folder: Path | None = None,
        ensemble: int | None = None,
        early_exit: bool = False,
        prune: float | None = None,
    ) -> Exported:
        """Write the retrained winner as safetensors, torch.export and ONNX, each verified on real test images.

        Into `folder`; None: ``export`` in the experiment's own. `ensemble` averages the probabilities of so many
        retrained networks; with `early_exit` the model gives its towers' logits too. `prune` is the share of the
        multiply-adds to remove: what is left is fine-tuned, and compared with its like.
        """
        from nas import pipeline, pruned
        from nas.driver import driving

        pipeline.check_together(ensemble, early_exit, prune)

        def usable(space: SearchSpace, data: Data) -> None:
            pipeline.check_exportable(self.config, folder, ensemble, early_exit)
            if prune is not None:
                pruned.check(self.config, space, data, prune)

        with driving(self.config, self.listen, workers=prune is not None, usable=usable) as driver:
            return pipeline.export(driver, folder, ensemble, early_exit, prune)

    def plan(self) -> Plan:
        """What `run` will take: a few candidates are trained for seconds. Nothing is written."""
        from nas import plan

        return plan.plan(self.config, self.listen)

    def collect(self, to: Path | None = None, **wanted: Any) -> Path:
        """Train architectures fully and by proxies: a truth table, to see how far proxies can be trusted; its file.

        `wanted` as in `nas.truth.Wanted`. Into the folder `to`; None: ``calibration`` in the experiment's own.
        """
        from nas import truth

        return truth.gather(self.config, truth.Wanted(**wanted), to or self.folder / "calibration", self.listen)

    def leaderboard(self) -> list[Record]:
        """Every measured candidate and the reference rows, best first."""
        records = self._records()
        if records is None or records.fact("rungs") is None:
            return []
        return leaderboard.board(
            records.all(),
            records.fact("rungs"),
            records.fact("retrained", {}).get("rung"),
            self.config.search.objectives[0],
            records.fact("references", {}),
            self.config.search.objectives[1:],
            records.fact("calibration", {}).get("predictions"),
            leaderboard.ImageCounts.of(records),
            records.fact("chosen"),
        )

    def study(self) -> optuna.Study:
        """The trials as an Optuna study in memory, for plots. Raises ExperimentError before the experiment began."""
        from nas import complexity, study
        from nas.state import SearchState

        records = self._records()
        if records is None or records.fact("meaning") is None:
            raise ExperimentError(f"experiment {self.config.experiment!r} has not begun: there are no trials yet")
        limits = self.config.search
        rungs = records.fact("rungs")
        state = SearchState.replay(rungs, self.config.seed, limits.objectives[0], records.events())

        def constraints(signals: Mapping[str, float]) -> Mapping[str, float]:
            return complexity.violations(limits, signals)

        return study.study_of(state, limits.objectives, constraints, self.config.experiment)

    def calibration(self) -> Calibrated | None:
        """How far the ranking can be trusted, where the search was calibrated (``search.calibrate``)."""
        from nas.calibrated import Calibrated

        records = self._records()
        return Calibrated.of_fact(records.fact("calibration") if records is not None else None)

    def trust(self) -> str | None:
        """The same in one sentence."""
        records = self._records()
        return None if records is None else records.fact("calibration", {}).get("sentence")

    def show(self, what: str) -> Shown:
        """An architecture: a trial's number, a key, a named point of the space, or a JSON file."""
        from nas import auxiliary, complexity

        space, (shape, classes) = self._space(), self._image()
        architecture = self._find(what, space)
        network = space.build(architecture, shape, classes)
        by_module = complexity.flops_by_module(network, shape)
        described = space.describe(architecture)
        cells = [
            (
                name,
                described[number] if number < len(described) else "",
                sum(p.numel() for p in network.get_submodule(name).parameters()),
                by_module[name],
            )
            for number, name in enumerate(auxiliary.cell_names(network))
        ]
        total = complexity.count(network, shape)
        memory = complexity.activation_bytes(network, shape)
        return Shown(architecture, what, shape, cells, total.params, total.flops, memory)

    def traceback(self, key: str) -> str | None:
        """Where the training of an architecture failed, as Python prints it; None: it did not, or by a known cause."""
        records = self._records()
        found = [] if records is None else [one.traceback for one in records.measurements() if one.key == key]
        return next((text for text in reversed(found) if text is not None), None)

    def _changed(self, **keys: Any) -> Config:
        """The config with these keys, from now on."""
        table = self.config.model_dump(mode="json")
        for key, value in keys.items():
            if value is not None:
                configuration.assign(table, key.replace("__", "."), value)
        self.config = configuration.make(table)
        return self.config

    def _records(self) -> Store | None:
        """What was measured so far; None (and nothing written) before the experiment has begun."""
        return existing_store(self.config.database, self.config.experiment)

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
            return _read_architecture(Path(what), space)
        for number, key, text in self._proposals(space):
            if what in (number, key):
                return space.architecture_type.from_json(text)
        raise ExperimentError(
            f"nothing to show for {what!r}: give a trial's number, an architecture's key, "
            f"a JSON file, or a named point ({', '.join(named) or 'this space has none'})"
        )

    def _proposals(self, space: SearchSpace) -> Iterator[tuple[str, str, str]]:
        """Number, key and JSON of everything measured or proposed; references have no number."""
        records = self._records()
        if records is None:
            return
        for proposal in records.proposals():
            if proposal.architecture:
                yield str(proposal.number), proposal.key, proposal.architecture
        for measurement in records.measurements():
            yield "", measurement.key, measurement.architecture


def _latest(results: Path) -> Path:
    files = sorted(results.glob("*/config.toml"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise ExperimentError(f"no experiment in {str(results)!r} yet: start with `nas run`")
    return files[-1].parent


def _there_are(results: Path) -> str:
    names = sorted(file.parent.name for file in results.glob("*/config.toml"))
    return f"; there are: {', '.join(names)}" if names else ""


def _read_architecture(file: Path, space: SearchSpace) -> Architecture:
    """An architecture as JSON, bare or as an export's ``architecture.json`` holds it."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ExperimentError(f"{str(file)!r} is not JSON") from None
    inner = table.get("architecture", table) if isinstance(table, dict) else table
    return space.architecture_type.from_json(json.dumps(inner))
