"""Everything a person can write in the TOML file, typed and closed: the reference manual of the keys.

``nas config`` prints the resolved file with these explanations. Each key can be given on the command line too:
``--set proxy.epochs=3``. Sections are frozen values; unknown keys and impossible values raise ConfigError, one
line that names the key, the value and what would be valid.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from nas.errors import ConfigError, first_error

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
CellNumber = Annotated[int, Field(ge=0)]


def parse_duration(text: object) -> object:
    """Seconds from ``90``, ``"90s"``, ``"30m"`` or ``"1.5h"``; anything else is left for pydantic to refuse."""
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*(s|m|h|)", text.strip())
    if match is None:
        raise ValueError("a duration looks like 90s, 30m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]


class Section(BaseModel):
    """A closed, frozen table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SpaceConfig(BaseModel):
    """Which search space. Further keys are settings of that space, checked by it."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="constants")

    name: str = Field("inception", description="A space by name (`nas space list`), or path/to/file.py:Name.")

    @property
    def settings(self) -> dict[str, Any]:
        """The space's own keys."""
        return dict(self.model_extra or {})


class DataConfig(Section):
    """Which images, and how they are split."""

    name: str = Field(
        "digits", description="A known set (`nas data list`), a .npz file, or a folder with class/image.png."
    )
    dir: Path | None = Field(None, description="Where known sets lie; unset: downloaded to the user's cache.")
    validation: Fraction = Field(0.2, description="Share of the training images that judges candidates ...")
    max_validation: Positive = Field(5000, description="... but at most this many of them.")
    test: Fraction = Field(0.2, description="Share that is the test split, where the set has no official one.")
    split_seed: int = Field(0, ge=0, lt=2**31, description="Seed of the stratified split.")
    size: Positive | None = Field(None, description="Images of a folder are resized to this many pixels a side.")


TowerLabels = Literal["own", "coarse"] | tuple[tuple[str, str], ...]
Weight = Annotated[float, Field(ge=0)]
PLACEMENTS = "auto, middle, thirds, two-thirds, stages, every:k, none, or cell numbers from 0"


class TowersConfig(Section):
    """Auxiliary towers, only ever used in training."""

    placement: (
        Annotated[str, Field(pattern=r"^(auto|middle|thirds|two-thirds|stages|every:[1-9]\d*|none)$")]
        | tuple[CellNumber, ...]
    ) = Field("auto", description=f"Where: {PLACEMENTS}.")
    kind: Literal["light", "linear", "googlenet", "darts", "fcn"] = Field(
        "light", description="Which tower: light, linear, googlenet, darts; fcn for dense prediction."
    )
    share: Fraction = Field(
        0.1, description="Light and linear towers shrink to this share of the bare network's FLOPs, all together."
    )
    weight: Weight | tuple[Weight, ...] = Field(0.3, description="Weight of the towers' losses, or of each one's.")
    schedule: Annotated[str, Field(pattern=r"^(constant|linear|cosine|off:(0?\.\d+|1|1\.0))$")] = Field(
        "constant",
        description="Course of the weights: constant, linear or cosine to 0, or off:f (0 after a fraction f).",
    )
    reach: Annotated[str, Field(pattern=r"^(full|relay:[1-9]\d*|detached)$")] = Field(
        "full",
        description="Gradients of a tower reach all earlier layers (full), k cells (relay:k) or none (detached).",
    )
    main_reach: Positive | None = Field(
        None, description="With relay:k, cells below the head that the main loss reaches; unset: all."
    )
    labels: TowerLabels | tuple[TowerLabels, ...] = Field(
        "own",
        description="What the towers, or each one, learn: own, coarse (the set's super-classes), or a file of groups.",
    )

    @field_validator("placement", "schedule", "reach", "labels", mode="wrap")
    @classmethod
    def _one_message_for_all_forms(
        cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> Any:
        try:
            return validate(_read_groups(value) if info.field_name == "labels" else value)
        except ValidationError:
            valid = {
                "placement": PLACEMENTS,
                "schedule": "constant, linear, cosine or off:f with f up to 1, such as off:0.5",
                "reach": "full, relay:k (such as relay:2) or detached",
                "labels": "own, coarse, or a TOML or JSON file of class = group; or a list of these, one a tower",
            }
            raise ValueError(f"must be {valid[str(info.field_name)]}") from None

    @model_validator(mode="after")
    def _main_reach_relays(self) -> Self:
        if self.main_reach is not None and not self.reach.startswith("relay:"):
            raise ValueError(f"main_reach goes with reach relay:k, not with {self.reach}")
        return self


def _read_groups(labels: Any) -> Any:
    """What a person writes as labels, with files and tables of groups turned into pairs of class and group."""
    if isinstance(labels, list):
        return [one if _is_pair(one) else _read_groups(one) for one in labels]
    if isinstance(labels, str) and labels not in ("own", "coarse"):
        try:
            text = Path(labels).read_text(encoding="utf-8")
            labels = json.loads(text) if labels.endswith(".json") else tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {labels!r} as a file of class = group: {error}") from None
    return tuple((str(one), str(group)) for one, group in labels.items()) if isinstance(labels, Mapping) else labels


def _is_pair(labels: Any) -> bool:
    return (
        isinstance(labels, list | tuple)
        and len(labels) == 2
        and labels[0] not in ("own", "coarse")
        and all(isinstance(one, str) for one in labels)
    )


class Recipe(Section):
    """How to train."""

    epochs: Positive | None = Field(None, description="Passes over the images; unset: chosen by their number.")
    images: Positive | None = Field(None, description="Train on at most this many images; unset: all.")
    batch_size: Positive = Field(128, description="Images a step.")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd (Nesterov momentum) or adamw.")
    learning_rate: float = Field(0.1, gt=0, description="Highest learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd, first beta of adamw.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay; none on biases and normalisation.")
    schedule: Literal["one-cycle", "cosine"] = Field(
        "one-cycle", description="Learning rate: up and down (one-cycle) or down (cosine), ending at 0."
    )
    warmup: Fraction = Field(0.25, description="Share of the steps in which one-cycle rises.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the label given to all classes.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of averaged weights, which are then scored; 0: off.")
    gradient_norms: tuple[Positive, ...] = Field(
        (), description="Steps (from 1) after whose backward the norm of each cell's gradient is recorded."
    )
    clip: float = Field(0.0, ge=0, description="Largest gradient norm; 0: no clipping.")
    augment: tuple[Literal["crop", "flip", "cutout"], ...] | None = Field(
        None, description="Any of crop, flip, cutout; unset: what suits the data set."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of the forward pass; auto: bfloat16 on a GPU, float32 elsewhere."
    )


class ProxyConfig(Recipe):
    """The short training that judges candidates."""

    images: Positive = Field(20_000, description="Train on at most this many images.")


class RetrainConfig(Recipe):
    """The full training of the winner, on training and validation images together."""

    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of the label given to all classes.")
    seeds: Positive = Field(3, description="How many trainings of the winner, each from its own seed.")
    towers: bool = Field(True, description="Train with the towers of [towers].")
    references: bool = Field(
        True, description="Train the space's reference and three random networks alike, one seed each."
    )


class SearchConfig(Section):
    """How candidates are chosen, and when to stop."""

    trials: Positive | None = Field(None, description="Stop after this many measured candidates.")
    time: Seconds | None = Field(
        None, description="Time budget, such as 30m; for `nas run` it includes retraining and export."
    )
    sampler: Literal["tpe", "random", "gp", "nsga2"] = Field("tpe", description="tpe, random, gp or nsga2.")
    objectives: tuple[Literal["loss", "accuracy", "params", "flops", "latency"], ...] = Field(
        ("loss",),
        min_length=1,
        description="What to optimise; the first ranks the board: loss, accuracy (validation), params, flops, latency.",
    )
    max_params: Positive | None = Field(None, description="Limit on parameters of the bare network.")
    max_flops: Positive | None = Field(
        None,
        description="Limit on FLOPs an image (2 a multiply-add); unset with a time budget: what fits it.",
    )
    max_latency: float | None = Field(None, gt=0, description="Limit on measured milliseconds for one image.")
    warm_start: tuple[str, ...] | None = Field(
        None, description="Named points of the space to begin with; unset: all that it names."
    )
    share: Fraction = Field(0.4, description="Share of the time budget of `nas run` that the search takes.")


class ExecutorConfig(Section):
    """Where candidates train."""

    kind: Literal["ray", "in-process"] = Field("ray", description="ray, or in-process (one at a time, for debugging).")
    workers: Positive | None = Field(
        None,
        description="Long-lived workers; unset: one a CPU thread set, or one a GPU share where there are GPUs.",
    )
    threads: Positive = Field(1, description="CPU threads a worker.")
    gpus: float = Field(
        0, ge=0, description="GPUs a worker, such as 0.5; 0 with GPUs present: one each; see also `device`."
    )
    device: Literal["auto", "cpu"] = Field("auto", description="auto uses GPUs where there are any; cpu never does.")
    address: str | None = Field(None, description="An existing Ray cluster, such as auto or host:6379.")


class ExportConfig(Section):
    """What the exported model must satisfy."""

    opset: Annotated[int, Field(ge=18)] = Field(18, description="ONNX operator set.")
    tolerance: float = Field(
        1e-3,
        gt=0,
        description="Largest allowed logit difference to the training network, on real test images.",
    )


class Config(Section):
    """The whole file."""

    name: str | None = Field(None, pattern=r"^\w[\w.-]*$", description="Name of the experiment; unset: <space>-<data>.")
    results: Path = Field(Path("results"), description="Folder of the experiments.")
    storage: str | None = Field(
        None,
        description="SQL URL of the study and its measurements; unset: SQLite in the experiment's folder.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything but the split.")
    space: SpaceConfig = SpaceConfig()
    data: DataConfig = DataConfig()
    towers: TowersConfig = TowersConfig()
    proxy: ProxyConfig = ProxyConfig()
    search: SearchConfig = SearchConfig()
    retrain: RetrainConfig = RetrainConfig()
    executor: ExecutorConfig = ExecutorConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _first_objective_ranks(self) -> Self:
        chosen = self.search.objectives
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"search.objectives names one twice: {', '.join(chosen)}")
        if chosen[0] not in ("loss", "accuracy"):
            raise ValueError(f"search.objectives must begin with loss or accuracy, got {chosen[0]}")
        return self

    @property
    def experiment(self) -> str:
        """The experiment's name: the given one, or one made of space and data."""
        if self.name is not None:
            return self.name
        return self.named_after(self.space.name.rpartition(":")[2] if ":" in self.space.name else self.space.name)

    def named_after(self, what: str) -> str:
        """The name of an experiment with `what` on these data."""
        data = Path(self.data.name)
        return f"{what}-{data.stem if data.suffix == '.npz' else data.name}"

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return self.results / self.experiment

    @property
    def database(self) -> str:
        """SQL URL of the study and its measurements."""
        return self.storage or f"sqlite:///{(self.folder / 'study.db').resolve()}"


def make(table: Mapping[str, Any]) -> Config:
    """A checked Config of nested plain values; raises ConfigError in one line."""
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{first_error(error)}{_valid_keys(error)}") from None


def read(path: Path | None, assignments: Iterable[str] = (), **sections: Any) -> Config:
    """The config of a file (None: defaults), then ``section.key=value`` assignments, then whole sections.

    The name of a packaged system stands for its file, unless there is a file of that name; its experiments are
    called after it. Values in assignments are TOML; what is not TOML is taken as a string, so that
    ``data.name=digits`` works.
    """
    table: dict[str, Any] = {}
    system = path.name if path is not None and not path.exists() else None
    if path is not None:
        path = path if system is None else _system(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read config {str(path)!r}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"config {str(path)!r} is not TOML: {error}") from None
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes section.key=value, got {assignment!r}")
        assign(table, key.strip(), _toml_value(text.strip()))
    for key, value in sections.items():
        if value is not None:
            assign(table, key.replace("__", "."), value)
    config = make(table)
    if system is not None and config.name is None:
        return config.model_copy(update={"name": config.named_after(system)})
    return config


def _system(name: Path) -> Path:
    from search_spaces import systems

    file = systems.find(str(name))
    if file is None:
        raise ConfigError(f"no config file {str(name)!r}, nor a system of that name: {', '.join(systems.available())}")
    return file


def resume(path: Path | None, assignments: Sequence[str] = (), **sections: Any) -> Config:
    """As `read`; but without a file, an experiment of that name that has begun goes on with its own config."""
    config = read(path, assignments, **sections)
    own = config.folder / "config.toml"
    return read(own, assignments, **sections) if path is None and own.is_file() else config


def assign(table: dict[str, Any], dotted: str, value: Any) -> None:
    """Put `value` at ``a.b.c`` of nested tables."""
    *parents, last = dotted.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{dotted!r}: {parent!r} is not a section")
    table[last] = value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _valid_keys(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] != "extra_forbidden":
        return ""
    section: Any = Config
    for part in first["loc"][:-1]:
        section = section.model_fields[str(part)].annotation
    return f" (valid: {', '.join(section.model_fields)})"


def explained(config: Config, space_settings: BaseModel | None = None) -> str:
    """The resolved config as TOML, every key with its explanation; unset keys are commented out.

    With the settings of a loaded space, all of its keys stand in ``[space]`` too.
    """
    scalars = [_line(config, key) for key in Config.model_fields if not isinstance(getattr(config, key), BaseModel)]
    sections = [
        "\n".join([f"[{key}]  # {(section.__doc__ or '').partition(chr(10))[0]}", *_lines(section, space_settings)])
        for key in Config.model_fields
        if isinstance(section := getattr(config, key), BaseModel)
    ]
    return "\n\n".join(["\n".join(scalars), *sections]) + "\n"


def _lines(section: BaseModel, space_settings: BaseModel | None) -> list[str]:
    lines = [_line(section, key) for key in type(section).model_fields]
    if isinstance(section, SpaceConfig) and space_settings is not None:
        return lines + [_line(space_settings, key) for key in type(space_settings).model_fields]
    settings = section.model_dump(mode="json", include=set(section.model_extra or {}))
    return lines + [f"{_toml_key(key)} = {_toml(value)}" for key, value in settings.items() if value is not None]


def _line(section: BaseModel, key: str) -> str:
    value = section.model_dump(mode="json")[key]
    text = f"# {key} =" if value is None else f"{key} = {_toml(value)}"
    explanation = type(section).model_fields[key].description
    return f"{text:<32}  # {explanation}" if explanation else text


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    if isinstance(value, str):  # TOML has no surrogate pairs, and no bare DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return repr(value)  # TOML, unlike JSON, has inf and nan
    return json.dumps(value)  # integers and booleans are written alike in TOML and JSON


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)
