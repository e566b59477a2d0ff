"""The sections of the config file."""

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
    """The search space. All further keys of this section are settings of the space, which checks them."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="constants")

    name: str = Field("inception_resnet", description="Name of a space (`nas space list`), or path/to/file.py:Name.")

    @property
    def settings(self) -> dict[str, Any]:
        """The space's own keys."""
        return dict(self.model_extra or {})


class DataConfig(Section):
    """The images and their split."""

    name: str = Field(
        "digits", description="A known data set (`nas data list`), a .npz file, or a folder with class/image.png."
    )
    dir: Path | None = Field(
        None, description="Folder that holds the known data sets; unset: they are downloaded to the user's cache."
    )
    validation: Fraction = Field(0.2, description="Share of the training images on which candidates are ranked.")
    max_validation: Positive = Field(5000, description="Largest number of validation images; it caps `validation`.")
    test: Fraction = Field(
        0.2, description="Share of the images in the test split, if the data set has no official test split."
    )
    split_seed: int = Field(0, ge=0, lt=2**31, description="Seed of the stratified split.")
    size: Positive | None = Field(
        None, description="Pixels per side to which the images of a folder are resized; unset: no resizing."
    )
    shrink: Positive = Field(
        1, description="Factor by which averaging reduces each side of the images; 1: no reduction."
    )


class Recipe(Section):
    """How a network is trained."""

    epochs: Positive | None = Field(
        None, description="Passes over the images; unset: chosen from the number of images."
    )
    images: Positive | None = Field(None, description="Largest number of training images; unset: all.")
    steps: Positive | None = Field(None, description="Optimisation steps; if set, they replace `epochs`.")
    batch_size: Positive | None = Field(
        None, description="Images per step; unset: a power of two from 16 to 128, near 1/30 of the number of images."
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd (Nesterov momentum) or adamw.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Highest learning rate; unset: 0.1 for a batch size of 128, scaled with the square root of the "
        "batch size.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd, or the first beta of adamw.")
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Weight decay; biases and normalisation layers have none. Unset: 0.0005 for 50,000 images or more, "
        "up to ten times as much for fewer.",
    )
    schedule: Literal["one-cycle", "cosine"] = Field(
        "one-cycle", description="Learning rate schedule: one-cycle rises and falls, cosine only falls; both end at 0."
    )
    warmup: Fraction = Field(0.25, description="Share of the steps during which one-cycle rises.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing; 0: off.")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights; the averaged weights are scored; 0: off.",
    )
    readings: tuple[Positive, ...] = Field(
        (), description="Epochs after which averaged weights are scored as well, with recomputed batch-norm statistics."
    )
    gradient_norms: tuple[Positive, ...] = Field(
        (), description="Steps (from 1) at which the gradient norm of each cell is recorded."
    )
    clip: float = Field(0.0, ge=0, description="Gradient norm above which gradients are clipped; 0: no clipping.")
    resizing: tuple[tuple[Fraction, Fraction], ...] | None = Field(
        None,
        description="Progressive resizing. Each pair [side, steps] trains at that share of the image side until that "
        "share of the steps. Unset: chosen from image size and time; []: full size throughout.",
    )
    augment: tuple[Literal["crop", "flip", "cutout"], ...] | None = Field(
        None, description="Any of crop, flip, cutout; unset: chosen for the data set."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Arithmetic of the forward pass; auto: bfloat16 where the hardware gains from it, else float32.",
    )


class ProxyConfig(Recipe):
    """The proxy: the short training by which candidates are ranked."""

    images: Positive = Field(20_000, description="Largest number of training images.")
    shrink: Positive = Field(
        1, description="Factor by which each side of the images is reduced at the lowest rung; 1: no reduction."
    )
    width: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Width multiplier of the low-fidelity variant trained at the lowest rung; 1: the candidate itself.",
    )


class RetrainConfig(Recipe):
    """The full training of the winner, on the training and validation images together."""

    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Label smoothing; 0: off.")
    seeds: Positive | None = Field(
        None, description="Number of seeds from which the winner is trained; unset: 1 with a time budget, else 3."
    )
    towers: bool = Field(True, description="Whether full training uses the towers of [towers].")
    all_images: bool | None = Field(
        None,
        description="Train the exported network on all images, test images included. A separate training without the "
        "test images gives the test accuracy. Unset: true for your own data, if it has "
        "fewer than 5,000 images and no test split.",
    )
    references: bool | None = Field(
        None,
        description="Also train the textbook networks of the space and three random networks, one seed each; unset: "
        "true without a time budget.",
    )


class PruneConfig(Section):
    """How `nas export --prune` removes channels from the retrained winner and fine-tunes the pruned network."""

    epochs: Positive | None = Field(None, description="Epochs of fine-tuning; unset: as many as in retraining.")
    learning_rate: float | None = Field(
        None, gt=0, description="Highest learning rate of fine-tuning; unset: half the learning rate of retraining."
    )
    step: Positive = Field(
        8, description="Pruned layers keep a multiple of this number of channels; CPUs are fast with multiples of 8."
    )


class SearchConfig(Section):
    """How candidates are chosen, and when the search stops."""

    trials: Positive | None = Field(
        None, description="Number of candidates after which the search stops; unset: 30, or as many as `time` allows."
    )
    time: Seconds | None = Field(
        None, description="Time budget, such as 30m; in `nas run` it includes retraining and export."
    )
    sampler: Literal["tpe", "random", "gp", "nsga2"] = Field(
        "tpe", description="Optuna's sampler: tpe, random, gp or nsga2."
    )
    proposals: Annotated[int, Field(ge=1, le=64)] = Field(
        16,
        description="Proposals per candidate, with one objective. The surrogate predicts a score for each proposal, "
        "and the best one is trained. For every second candidate the proposals are random; nsga2 does not learn from "
        "those. A worker never waits for more proposals. 1: every proposal of the sampler is trained.",
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
        None, description="Named points of the space that are tried first; unset: all of them."
    )
    share: Fraction | None = Field(
        None,
        description="Share of the time budget of `nas run` for the search; unset: 0.08 to 0.45, more if it is long.",
    )
    calibrate: int = Field(
        0,
        ge=0,
        description="Number of candidates that also get a full training, to measure how well the proxy ranks. They are "
        "spread over the leaderboard. With a time budget they share it. Half of the validation images are kept for "
        "this. 0: off.",
    )

    @field_validator("calibrate")
    @classmethod
    def _enough_to_rank(cls, calibrate: int) -> int:
        if 0 < calibrate < FEWEST_TO_CALIBRATE:
            raise ValueError(f"must be 0 or at least {FEWEST_TO_CALIBRATE}: fewer say nothing of a ranking")
        return calibrate


class LadderConfig(Section):
    """Asynchronous promotion: which candidates are trained again, for longer."""

    rungs: Positive = Field(
        2,
        description="Number of rungs. The lowest is [proxy]; each further rung has `factor` times the epochs. A rung "
        "that comes close to full training is left out. 1: no promotions.",
    )
    factor: int = Field(9, ge=2, description="Epochs of a rung divided by the epochs of the rung below.")


class ExecutorConfig(Section):
    """Where candidates are trained."""

    kind: Literal["ray", "in-process"] = Field(
        "ray", description="ray, or in-process: one training at a time, for debugging."
    )
    workers: Positive | None = Field(
        None,
        description="Number of workers; unset: as many as the CPU threads, or the GPUs, allow.",
    )
    threads: Positive = Field(1, description="CPU threads per worker.")
    gpus: float = Field(
        0, ge=0, description="GPUs per worker, such as 0.5; 0: one GPU per worker if there are GPUs; see also `device`."
    )
    retrain_workers: Positive | None = Field(
        None,
        description="Processes that retrain one network together (data-parallel), each on its own GPU. 1: each worker "
        "retrains one network alone. Unset: the number of GPUs, or 1 without GPUs or with search.time.",
    )
    device: Literal["auto", "cpu"] = Field("auto", description="auto uses GPUs if there are any; cpu never does.")
    address: str | None = Field(None, description="Address of an existing Ray cluster, such as auto or host:6379.")


class ExportConfig(Section):
    """Format and verification of the exported files."""

    opset: Annotated[int, Field(ge=18)] = Field(18, description="ONNX operator set.")
    tolerance: float = Field(
        1e-3,
        gt=0,
        description="Largest allowed difference between the logits of an exported file and the trained network.",
    )


class Config(Section):
    """The whole config file."""

    name: str | None = Field(None, pattern=r"^\w[\w.-]*$", description="Name of the experiment; unset: <space>-<data>.")
    results: Path = Field(Path("results"), description="Folder that holds the experiments.")
    storage: str | None = Field(
        None,
        description="SQL URL of the database; unset: an SQLite file in the experiment's folder.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything except the split (see data.split_seed).")
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
