"""The registry of metrics: every number that a measurement holds as a signal, or that the leaderboard shows.

Each is declared once, in `METRICS`. Objectives, limits, the leaderboard, the model card, the explanations of the
config and the calibration read it.

To add a metric, add its entry here and compute its signal where the others of its kind are computed:
`nas.evaluation.evaluator`, for sizes that are known before training also `nas.search.candidates`. A limit also needs
its typed key in `nas.config.SearchConfig`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Direction = Literal["minimise", "maximise"]
Unit = Literal["count", "FLOPs", "bytes", "ms", "s", "nats", "share"]
Known = Literal["before training", "on the worker", "after training", "after retraining"]
Place = Literal["always", "where measured", "in files"]


@dataclass(frozen=True)
class Metric:
    """A number, and all that other modules need to know to rank, limit or show it.

    Attributes:
        name: Name of the objective and of the column of the leaderboard.
        title: Name in sentences and on the model card.
        description: What it is, as a noun phrase that can stand after "Limit on".
        known: When it is known. "before training": from the untrained network, on any machine. "on the worker": before
            training too, but only on the machine that trains. "after retraining": only of retrained networks.
        source: The module that computes it, and the paper.
        direction: Which way it is better as an objective and in the order of the leaderboard; None: neither way.
        unit: "share" is a share of 1, shown in percent; None: the number has no unit.
        signal: Its key among the signals of a measurement; empty: the leaderboard computes it.
        objective: Whether a search can optimise it.
        limit: The key of [search] that limits it; None: it has no limit.
        board: Where the leaderboard shows the signal. "always": as a column of each table. "where measured": as a
            column of tables with a row that has it. "in files": in CSV and JSON only. A column of a table is in CSV and
            JSON too. None: the leaderboard has no such column, or computes it and declares it in its `Record`.
    """

    name: str
    title: str
    description: str
    known: Known
    source: str
    direction: Direction | None = None
    unit: Unit | None = None
    signal: str = ""
    objective: bool = False
    limit: str | None = None
    board: Place | None = None

    def read(self, signals: Mapping[str, float]) -> float:
        """Its value among the signals of a measurement."""
        return signals[self.signal]

    def score(self, value: float) -> float:
        """The value with the sign that makes higher better."""
        return value if self.direction == "maximise" else -value


METRICS: tuple[Metric, ...] = (
    # ------------------------------------------------------------------------------------- scores of candidates
    Metric(
        "loss",
        "loss",
        "the mean cross-entropy of the main head on the validation images",
        known="after training",
        source="nas.training.loop.evaluate",
        direction="minimise",
        unit="nats",
        signal="val_loss",
        objective=True,
        board="always",
    ),
    Metric(
        "accuracy",
        "accuracy",
        "the share of validation images (of dense prediction: of pixels) that the main head predicts right",
        known="after training",
        source="nas.training.loop.evaluate",
        direction="maximise",
        unit="share",
        signal="val_accuracy",
        objective=True,
        board="always",
    ),
    Metric(
        "miou",
        "mIoU",
        "the intersection over union of the classes, averaged",
        known="after training",
        source="nas.training.task.DensePrediction, Long et al. 2015 (arXiv:1411.4038)",
        direction="maximise",
        unit="share",
        signal="val_miou",
        board="where measured",
    ),
    # ----------------------------------------------------------------------------------------------------- cost
    Metric(
        "params",
        "parameters",
        "parameters of the bare network",
        known="before training",
        source="nas.evaluation.complexity.count",
        direction="minimise",
        unit="count",
        signal="params",
        objective=True,
        limit="max_params",
        board="always",
    ),
    Metric(
        "flops",
        "FLOPs (2 a multiply-add)",
        "FLOPs an image (2 a multiply-add)",
        known="before training",
        source="nas.evaluation.complexity.count",
        direction="minimise",
        unit="FLOPs",
        signal="flops",
        objective=True,
        limit="max_flops",
        board="always",
    ),
    Metric(
        "latency",
        "latency",
        "measured milliseconds for one image",
        known="on the worker",
        source="nas.evaluation.complexity.latency",
        direction="minimise",
        unit="ms",
        signal="latency_ms",
        objective=True,
        limit="max_latency",
        board="in files",
    ),
    Metric(
        "memory",
        "peak of activations, eager",
        "the bytes of activations that one image takes at once, at inference in float32",
        known="before training",
        source="nas.evaluation.complexity.activation_bytes",
        direction="minimise",
        unit="bytes",
        signal="activation_bytes",
        limit="max_memory",
    ),
    Metric(
        "step_seconds",
        "seconds of a training step",
        "predicted seconds of a step of the winner's training, which a time budget limits",
        known="before training",
        source="nas.evaluation.cost_model",
        direction="minimise",
        unit="s",
        signal="step_seconds",
    ),
    Metric(
        "tower_share",
        "share of the towers",
        "the FLOPs of the towers, as a share of those of the bare network",
        known="on the worker",
        source="nas.auxiliary",
        unit="share",
        signal="tower_share",
    ),
    # -------------------------------------------------------------------- columns that the leaderboard computes
    Metric(
        "test_accuracy",
        "test accuracy",
        "accuracy on the test images, mean over seeds",
        known="after retraining",
        source="nas.training.loop.evaluate",
        direction="maximise",
        unit="share",
        signal="test_accuracy",
    ),
    Metric(
        "test_std",
        "standard deviation of the test accuracy",
        "the standard deviation of the test accuracy over seeds",
        known="after retraining",
        source="nas.leaderboard",
        direction="minimise",
        unit="share",
    ),
    Metric(
        "test_low",
        "low end of the test accuracy's interval",
        "the low end of the 95 % interval that the number of test images allows",
        known="after retraining",
        source="nas.verdict.accuracy_interval",
        direction="maximise",
        unit="share",
    ),
    Metric(
        "test_high",
        "high end of the test accuracy's interval",
        "the high end of the 95 % interval that the number of test images allows",
        known="after retraining",
        source="nas.verdict.accuracy_interval",
        direction="maximise",
        unit="share",
    ),
    Metric(
        "test_images",
        "test images",
        "the number of test images behind the test accuracy",
        known="after retraining",
        source="nas.leaderboard",
        direction="maximise",
        unit="count",
    ),
    Metric(
        "test_miou",
        "test mIoU",
        "mIoU on the test images, mean over seeds",
        known="after retraining",
        source="nas.training.task.DensePrediction",
        direction="maximise",
        unit="share",
        signal="test_miou",
    ),
    Metric(
        "test_seeds",
        "seeds",
        "the number of trainings behind the test accuracy",
        known="after retraining",
        source="nas.leaderboard",
        direction="maximise",
        unit="count",
    ),
    Metric(
        "predicted",
        "predicted accuracy",
        "the accuracy expected of full training, where the search was calibrated",
        known="after training",
        source="nas.proxy_fidelity.calibrated",
        direction="maximise",
        unit="share",
    ),
    Metric(
        "predicted_low",
        "low end of the predicted accuracy's interval",
        "the low end of the 95 % interval of the predicted accuracy",
        known="after training",
        source="nas.proxy_fidelity.calibrated",
        direction="maximise",
        unit="share",
    ),
    Metric(
        "predicted_high",
        "high end of the predicted accuracy's interval",
        "the high end of the 95 % interval of the predicted accuracy",
        known="after training",
        source="nas.proxy_fidelity.calibrated",
        direction="maximise",
        unit="share",
    ),
    Metric(
        "seconds",
        "seconds",
        "seconds of the training that the row shows",
        known="after training",
        source="nas.training.loop.fit",
        direction="minimise",
        unit="s",
    ),
    # ------------------------------------------------------------- further signals, which may predict full training
    Metric(
        "naswot",
        "NASWOT",
        "how differently images activate the ReLUs",
        known="before training",
        source="nas.evaluation.signals.naswot, Mellor et al. 2021, eq. 2",
        direction="maximise",
        signal="naswot",
    ),
    Metric(
        "synflow",
        "SynFlow",
        "the logarithm of the summed saliency of the weights for an image of ones",
        known="before training",
        source="nas.evaluation.signals.synflow, Tanaka et al. 2020, eq. 1",
        direction="maximise",
        signal="synflow",
    ),
    Metric(
        "az_expressivity",
        "expressivity",
        "the entropy of the cells' principal components",
        known="before training",
        source="nas.evaluation.signals.az_nas, Lee and Ham 2024, eq. 2-4",
        direction="maximise",
        signal="az_expressivity",
    ),
    Metric(
        "az_progressivity",
        "progressivity",
        "the smallest rise of that entropy from cell to cell",
        known="before training",
        source="nas.evaluation.signals.az_nas, Lee and Ham 2024, eq. 5",
        direction="maximise",
        signal="az_progressivity",
    ),
    Metric(
        "az_trainability",
        "trainability",
        "how far the Jacobian of each cell keeps the scale of gradients",
        known="before training",
        source="nas.evaluation.signals.az_nas, Lee and Ham 2024, eq. 6-8",
        direction="maximise",
        signal="az_trainability",
    ),
    Metric(
        "az_nas",
        "AZ-NAS",
        "the sum of the logarithms of the ranks in expressivity, progressivity, trainability and FLOPs",
        known="before training",
        source="nas.steps.truth.rank_sum, Lee and Ham 2024, eq. 9",
        direction="maximise",
        signal="az_nas",
    ),
    Metric(
        "tse",
        "TSE",
        "the sum over epochs of the mean training loss",
        known="after training",
        source="nas.evaluation.signals.training_speed, Ru et al. 2021, section 3",
        direction="minimise",
        unit="nats",
        signal="tse",
    ),
    Metric(
        "tse_e",
        "TSE-E",
        "the mean training loss of the last epoch",
        known="after training",
        source="nas.evaluation.signals.training_speed, Ru et al. 2021, section 3",
        direction="minimise",
        unit="nats",
        signal="tse_e",
    ),
    Metric(
        "tse_ema",
        "TSE-EMA",
        "the sum over epochs of the mean training loss, in which early epochs count less",
        known="after training",
        source="nas.evaluation.signals.training_speed, Ru et al. 2021, section 3",
        direction="minimise",
        unit="nats",
        signal="tse_ema",
    ),
    Metric(
        "gap",
        "gap of the towers",
        "the mean loss of the towers above that of the main head",
        known="after training",
        source="nas.evaluation.signals.of_towers, Szegedy et al. 2015, section 5",
        direction="minimise",
        unit="nats",
        signal="tower_gap",
    ),
    Metric(
        "gradient_norm",
        "gradient norm",
        "the norm of the gradient of a cell after a step",
        known="after training",
        source="nas.training.loop.fit",
        signal="gradient_norm",
    ),
)
"""In the order of the leaderboard's columns, and of the limits as a sampler is given them."""

DETAIL = re.compile(r"_epoch\d+$|_cell\d+_step\d+$")
"""The end of a signal's name that says when and where it was read."""


def find(name: str) -> Metric | None:
    """The metric of that name, if there is one."""
    return next((metric for metric in METRICS if metric.name == name), None)


def named(name: str) -> Metric:
    """The metric of that name. Raises KeyError where there is none."""
    metric = find(name)
    if metric is None:
        raise KeyError(name)
    return metric


def of_signal(signal: str) -> Metric | None:
    """The metric that a signal of a measurement is a value of, if there is one.

    The same score on other images, of a tower or after some epochs is the same metric: `train_loss`, `tower3_loss` and
    `averaged_val_loss_epoch4` are losses.
    """
    signal = DETAIL.sub("", signal)
    exact = next((metric for metric in METRICS if metric.signal and metric.signal == signal), None)
    score = signal.rpartition("_")[2]
    return exact or next((m for m in METRICS if m.name == score and m.signal.endswith(f"_{score}")), None)


def objectives() -> list[Metric]:
    """The metrics that a search can optimise."""
    return [metric for metric in METRICS if metric.objective]


def limits() -> dict[str, Metric]:
    """The metrics that can be limited, by the key of [search] that does it."""
    return {metric.limit: metric for metric in METRICS if metric.limit is not None}


def on_board() -> list[Metric]:
    """The metrics whose signals the leaderboard shows."""
    return [metric for metric in METRICS if metric.board is not None]
