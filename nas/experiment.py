"""An experiment: a folder below results/, and a method for each command.

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
from nas.search.time_plan import search_share
from nas.store import Measurement, Store, existing_store
from search_spaces import systems

if TYPE_CHECKING:
    import optuna

    from nas.data import Data
    from nas.export import Exported
    from nas.progress import Listener, Progress
    from nas.proxy_fidelity.calibrated import Calibrated
    from nas.space import Architecture, SearchSpace, Shape
    from nas.steps.plan import Plan


@dataclass(frozen=True)
class Shown:
    """An architecture, cell by cell.

    Attributes:
        architecture: The architecture.
        name: What it was asked for by.
        input_shape: Channels, height and width of an image.
        cells: For each cell: name, description, parameters, FLOPs.
        params: Parameters of the bare network.
        flops: FLOPs of the bare network for one image.
        memory: Peak of the activations in bytes, for one image at inference.
    """

    architecture: Architecture
    name: str
    input_shape: Shape
    cells: list[tuple[str, str, int, int]]
    params: int
    flops: int
    memory: int


class Experiment:
    """An experiment with a name and a config. The constructor writes nothing.

    Args:
        name: Name of the experiment; None: made of space and data.
        space: Name of the search space (``space.name``).
        data: Data set (``data.name``).
        config: A whole config. The other arguments override single keys of it.
        listen: Is called with a `nas.progress.Event` for every message and every measurement.
        keys: Further keys of the config, with two underscores for the dot: ``search__trials=30``.

    Raises:
        ConfigError: A key is unknown or a value is not valid.
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
        """Open an experiment that exists.

        Args:
            name: Name of the experiment; None: the latest one.
            results: Folder that holds the experiments.
            assignments: Changes of its config, as ``section.key=value``. The next step saves them.

        Raises:
            ExperimentError: There is no such experiment.
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
        """Open an experiment, a config file or a system for full training, possibly on other data.

        Training on other data makes a new experiment.

        Args:
            what: Name of an experiment, a config file, or a system; None: the latest experiment.
            results: Folder that holds the experiments.
            assignments: Changes of the config, as ``section.key=value``.
            data: Other data than those of the experiment.
            data_dir: Folder that holds the known data sets.
            name: Name of the new experiment; None: made of `what` and `data`.

        Raises:
            ExperimentError: There is no such experiment, file or system.
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
        """Folder with config, database, weights and exports."""
        return self.config.folder

    def run(self) -> Exported:
        """Search, retrain and export. A time budget covers all three steps."""
        from nas import export
        from nas.steps import pipeline
        from nas.steps.driver import driving

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
        """Measure candidates. Continues an earlier search of the experiment.

        Args:
            trials: Number of candidates after which the search stops.
            time: Time budget, as seconds or as text such as ``30m``.
            calibrate: Number of candidates that then get a full training. The leaderboard then ranks by predicted
                accuracy: see `calibration`.

        Returns:
            The state of the search at its end.
        """
        from nas.steps import pipeline
        from nas.steps.driver import driving

        config = self._changed(search__trials=trials, search__time=time, search__calibrate=calibrate)
        with driving(config, self.listen) as driver:
            return pipeline.search(driver)

    def retrain(self, seeds: int | None = None, top: int = 1, init: Path | str | None = None) -> list[Measurement]:
        """Train the winner, and the references, on the full recipe.

        Without a search, the architecture is the only one of the space, or the one of the weights.

        Args:
            seeds: Number of seeds from which the winner is trained; None: ``retrain.seeds``.
            top: Number of best candidates to train.
            init: Weights to start from, a safetensors file. The last layer is new if the labels differ.

        Returns:
            The measurements of the winner.
        """
        from nas.evaluation import weights
        from nas.steps import pipeline
        from nas.steps.driver import driving

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
        """Write the retrained winner as safetensors, torch.export and ONNX. Each file is verified on test images.

        Args:
            folder: Output folder; None: ``export`` in the folder of the experiment.
            ensemble: Number of retrained networks to average into one model.
            early_exit: Whether the model also returns the logits of the towers.
            prune: Share of the multiply-adds to remove. The pruned network is fine-tuned and compared with others.

        Raises:
            VerificationError: A file does not do what the trained network does.
        """
        from nas.steps import pipeline, pruned
        from nas.steps.driver import driving

        pipeline.check_together(ensemble, early_exit, prune)

        def usable(space: SearchSpace, data: Data) -> None:
            pipeline.check_exportable(self.config, folder, ensemble, early_exit)
            if prune is not None:
                pruned.check(self.config, space, data, prune)

        with driving(self.config, self.listen, workers=prune is not None, usable=usable) as driver:
            return pipeline.export(driver, folder, ensemble, early_exit, prune)

    def plan(self) -> Plan:
        """Predict how long `run` takes: train a few candidates for seconds, write nothing."""
        from nas.steps import plan

        return plan.plan(self.config, self.listen)

    def collect(self, to: Path | None = None, **wanted: Any) -> Path:
        """Collect a truth table: train architectures with proxies and with full training.

        Args:
            to: Output folder; None: ``calibration`` in the folder of the experiment.
            wanted: The fields of `nas.steps.truth.Wanted`.

        Returns:
            The file of the table.
        """
        from nas.steps import truth

        return truth.gather(self.config, truth.Wanted(**wanted), to or self.folder / "calibration", self.listen)

    def leaderboard(self) -> list[Record]:
        """All measured candidates, best first, and the references."""
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
        """The trials as an Optuna study in memory, for plots.

        Raises:
            ExperimentError: The experiment has not begun.
        """
        from nas.evaluation import complexity
        from nas.search import study
        from nas.search.state import SearchState

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
        """How well the proxy ranks; None if the search was not calibrated (``search.calibrate``)."""
        from nas.proxy_fidelity.calibrated import Calibrated

        records = self._records()
        return Calibrated.of_fact(records.fact("calibration") if records is not None else None)

    def trust(self) -> str | None:
        """The same as one sentence."""
        records = self._records()
        return None if records is None else records.fact("calibration", {}).get("sentence")

    def show(self, what: str) -> Shown:
        """An architecture, cell by cell.

        Args:
            what: Number of a trial, key of an architecture, named point of the space, or JSON file.

        Raises:
            ExperimentError: There is no such architecture.
        """
        from nas import auxiliary
        from nas.evaluation import complexity

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
