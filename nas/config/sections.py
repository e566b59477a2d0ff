"""The sections of the file and the whole of it, every key explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from nas import metrics
from nas.config.towers import TowersConfig
from nas.config.values import Fraction, Positive, Seconds, Section

FEWEST_TO_CALIBRATE = 5


def _check_objective(name: object) -> object:
    valid = [metric.name for metric in metrics.objectives()]
    if name not in valid:
        raise ValueError(f"must be {', '.join(valid[:-1])} or {valid[-1]}")
    return name


Objective = Annotated[str, BeforeValidator(_check_objective)]


def _limit_on(key: str) -> str:
    """The explanation of a limit, without a full stop."""
    return f"Limit on {metrics.limits()[key].description}"


class SpaceConfig(BaseModel):
    """Which search space. Further keys are settings of that space, checked by it."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="constants")

    name: str = Field("inception_resnet", description="A space by name (`nas space list`), or path/to/file.py:Name.")

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
    shrink: Positive = Field(1, description="So many pixels a side are averaged into one; 1: images as they are.")


class Recipe(Section):
    """How to train."""

    epochs: Positive | None = Field(None, description="Passes over the images; unset: chosen by their number.")
    images: Positive | None = Field(None, description="Train on at most this many images; unset: all.")
    steps: Positive | None = Field(None, description="Optimisation steps; where set, they replace `epochs`.")
    batch_size: Positive | None = Field(
        None, description="Images a step; unset: a power of two near a thirtieth of the images, from 16 to 128."
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd (Nesterov momentum) or adamw.")
    learning_rate: float | None = Field(
        None, gt=0, description="Highest learning rate; unset: 0.1 for batches of 128, by the square root for others."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd, first beta of adamw.")
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Weight decay; none on biases and normalisation. Unset: 0.0005 from 50,000 images on, up to ten times "
        "as much with fewer.",
    )
    schedule: Literal["one-cycle", "cosine"] = Field(
        "one-cycle", description="Learning rate: up and down (one-cycle) or down (cosine), ending at 0."
    )
    warmup: Fraction = Field(0.25, description="Share of the steps in which one-cycle rises.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the label given to all classes.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of averaged weights, which are then scored; 0: off.")
    readings: tuple[Positive, ...] = Field(
        (), description="Epochs after which averaged weights are scored too, batch-norm statistics recomputed."
    )
    gradient_norms: tuple[Positive, ...] = Field(
        (), description="Steps (from 1) after whose backward the norm of each cell's gradient is recorded."
    )
    clip: float = Field(0.0, ge=0, description="Largest gradient norm; 0: no clipping.")
    resizing: tuple[tuple[Fraction, Fraction], ...] | None = Field(
        None,
        description="Pairs [share of the side, share of the steps]: until that share of the steps, images are trained "
        "on at that share of their side. Unset: chosen by size and time; []: all steps at full size.",
    )
    augment: tuple[Literal["crop", "flip", "cutout"], ...] | None = Field(
        None, description="Any of crop, flip, cutout; unset: what suits the data set."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of the forward pass; auto: bfloat16 on a GPU, float32 elsewhere."
    )


class ProxyConfig(Recipe):
    """The short training that judges candidates."""

    images: Positive = Field(20_000, description="Train on at most this many images.")
    shrink: Positive = Field(
        1, description="So many pixels a side are averaged into one at the lowest rung; 1: images as they are."
    )
    width: float = Field(
        1.0,
        gt=0,
        le=1,
        description="At the lowest rung a network with this share of its channels stands in; 1: none.",
    )


class RetrainConfig(Recipe):
    """The full training of the winner, on training and validation images together."""

    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of the label given to all classes.")
    seeds: Positive | None = Field(
        None, description="Trainings of the winner, each from its own seed; unset: 1 with a time budget, else 3."
    )
    towers: bool = Field(True, description="Train with the towers of [towers].")
    all_images: bool | None = Field(
        None,
        description="The exported network is trained on all images, the test images too; its test accuracy is measured "
        "on a training without them. Unset: for your own images, where fewer than 5,000 are given and no test images.",
    )
    references: bool | None = Field(
        None,
        description="Train the space's named points and three random networks alike, one seed each; unset: not with a "
        "time budget.",
    )


class PruneConfig(Section):
    """How `nas export --prune` makes the retrained winner smaller: it removes channels and fine-tunes what is left."""

    epochs: Positive | None = Field(None, description="Epochs of fine-tuning; unset: retraining's.")
    learning_rate: float | None = Field(
        None, gt=0, description="Highest learning rate of fine-tuning; unset: half of retraining's."
    )
    step: Positive = Field(8, description="Channels go until a layer has a multiple of this: CPUs like eights.")


class SearchConfig(Section):
    """How candidates are chosen, and when to stop."""

    trials: Positive | None = Field(
        None, description="Stop after this many measured candidates; unset: 30, or as many as `time` allows."
    )
    time: Seconds | None = Field(
        None, description="Time budget, such as 30m; for `nas run` it includes retraining and export."
    )
    sampler: Literal["tpe", "random", "gp", "nsga2"] = Field("tpe", description="tpe, random, gp or nsga2.")
    proposals: Annotated[int, Field(ge=1, le=64)] = Field(
        16,
        description="With one objective: so many proposals for each candidate (fewer where a worker would wait for "
        "more); the one that promises most, by its choices and sizes, is trained. Every second candidate's are drawn "
        "at random (nsga2 learns nothing of those). 1: each proposal of the sampler is trained.",
    )
    objectives: tuple[Objective, ...] = Field(
        ("loss",),
        min_length=1,
        description="What to optimise; the first ranks the board: "
        f"{', '.join(metric.name for metric in metrics.objectives())}.",
    )
    max_params: Positive | None = Field(None, description=f"{_limit_on('max_params')}.")
    max_flops: Positive | None = Field(
        None, description=f"{_limit_on('max_flops')}; unset with a time budget: what fits it."
    )
    max_latency: float | None = Field(None, gt=0, description=f"{_limit_on('max_latency')}.")
    max_memory: Positive | None = Field(None, description=f"{_limit_on('max_memory')}.")
    warm_start: tuple[str, ...] | None = Field(
        None, description="Named points of the space to begin with; unset: all that it names."
    )
    share: Fraction | None = Field(
        None, description="Share of the time budget of `nas run` that the search takes; unset: more of a longer one."
    )
    calibrate: int = Field(
        0,
        ge=0,
        description="So many candidates, spread over the board, are also trained fully, out of the same `time` (beside "
        "the `trials` where there is none), to measure how far the ranking can be trusted; half of the validation "
        "images are kept for that. 0: none.",
    )

    @field_validator("calibrate")
    @classmethod
    def _enough_to_rank(cls, calibrate: int) -> int:
        if 0 < calibrate < FEWEST_TO_CALIBRATE:
            raise ValueError(f"must be 0 or at least {FEWEST_TO_CALIBRATE}: fewer say nothing of a ranking")
        return calibrate


class LadderConfig(Section):
    """Which candidates are trained again, for longer, before one is chosen: asynchronous promotion."""

    rungs: Positive = Field(
        2,
        description="Rungs of training: [proxy], then `factor` times its epochs, and so on, as long as full training "
        "goes well beyond the rung below; 1: [proxy] alone.",
    )
    factor: int = Field(9, ge=2, description="Epochs of a rung over those of the rung below.")


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
    retrain_workers: Positive | None = Field(
        None,
        description="Processes that retrain one network together (data-parallel), each on a GPU of its own; 1: each "
        "worker retrains one alone. Unset: as many as there are GPUs; 1 without GPUs and with search.time.",
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
    ladder: LadderConfig = LadderConfig()
    retrain: RetrainConfig = RetrainConfig()
    prune: PruneConfig = PruneConfig()
    executor: ExecutorConfig = ExecutorConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _first_objective_ranks(self) -> Self:
        chosen = self.search.objectives
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"search.objectives names one twice: {', '.join(chosen)}")
        ranking = [metric.name for metric in metrics.objectives() if metric.known == "after training"]
        if chosen[0] not in ranking:
            raise ValueError(f"search.objectives must begin with {' or '.join(ranking)}, got {chosen[0]}")
        return self

    @property
    def experiment(self) -> str:
        """The experiment's name: the given one, or one made of space and data."""
        if self.name is not None:
            return self.name
        return self.named_after(self.space.name.rpartition(":")[2] if ":" in self.space.name else self.space.name)

    def named_after(self, what: str) -> str:
        """The name of an experiment with `what` on these data; what no name may hold becomes a hyphen."""
        data = Path(self.data.name)
        return re.sub(r"[^\w.-]+", "-", f"{what}-{data.stem if data.suffix == '.npz' else data.name}")

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return self.results / self.experiment

    @property
    def weights(self) -> Path:
        """Folder of the retrained weights."""
        return self.folder / "weights"

    @property
    def database(self) -> str:
        """SQL URL of the study and its measurements."""
        return self.storage or f"sqlite:///{(self.folder / 'study.db').resolve()}"
