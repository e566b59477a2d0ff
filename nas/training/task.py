"""Tasks: from logits and labels to a loss and to metrics.

Which task a data set is shows in its labels; a person does not say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.data.images import IGNORED, TaskName
from nas.errors import SpaceError
from nas.space import Shape


class Task(Protocol):
    """A loss, what is counted over a split, and the metrics that the counts give."""

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean loss of a batch, a scalar."""

    def count(self, labels: Tensor) -> int | Tensor:
        """How many labels of a batch the mean loss is over."""

    def statistics(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Counts of a batch; the sum over batches is what `metrics` takes."""

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        """Metrics by name, higher is better; "accuracy" is one of them."""

    def logits_shape(self, input_shape: Shape, classes: int) -> tuple[int, ...]:
        """Shape of the logits of one image."""


class Classification:
    """One label an image: logits ``(N, classes)``, labels ``(N,)``; cross-entropy and accuracy."""

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def count(self, labels: Tensor) -> int | Tensor:
        return len(labels)

    def statistics(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(right, all)."""
        right = (logits.argmax(1) == labels).sum()
        return torch.stack([right, torch.full_like(right, len(labels))])

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        right, count = statistics.tolist()
        return {"accuracy": right / count}

    def logits_shape(self, input_shape: Shape, classes: int) -> tuple[int, ...]:
        return (classes,)


class DensePrediction:
    """One label a pixel: logits ``(N, classes, h, w)``, labels ``(N, H, W)`` of any integer type, 255 ignored.

    Cross-entropy over the pixels that are labelled (Long et al. 2015, arXiv:1411.4038); pixel accuracy, and the
    intersection over union of each class that occurs among the labels, averaged (mIoU). Logits on a smaller map
    than the labels', as a tower's are, are upsampled bilinearly.
    """

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        # One row a pixel: the loss of maps has no deterministic kernel on GPUs.
        rows = _upsampled(logits, labels).movedim(1, -1).flatten(0, 2)
        total = F.cross_entropy(
            rows, labels.flatten().long(), ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
        )
        return total / self.count(labels).clamp(min=1)  # 0, not NaN, where no pixel is labelled

    def count(self, labels: Tensor) -> Tensor:
        return (labels != IGNORED).sum()

    def statistics(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Confusion counts (classes, classes): a row a label, a column a prediction."""
        classes = logits.shape[1]
        predicted = _upsampled(logits, labels).argmax(1)
        labelled = labels != IGNORED
        pairs = labels[labelled].long() * classes + predicted[labelled]
        return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)

    def metrics(self, statistics: Tensor) -> dict[str, float]:
        confusion = statistics.double()
        right, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        occurs = labelled > 0
        overlaps = right[occurs] / (labelled + predicted - right)[occurs]
        return {"accuracy": float(right.sum() / labelled.sum()), "miou": float(overlaps.mean())}

    def logits_shape(self, input_shape: Shape, classes: int) -> tuple[int, ...]:
        return (classes, *input_shape[1:])


TASKS: Mapping[TaskName, Task] = {"classification": Classification(), "dense": DensePrediction()}
"""The task of a data set, by `nas.data.Data.task`."""


def check(task: TaskName, space: str, logits: tuple[int, ...], input_shape: Shape, classes: int) -> None:
    """Raise SpaceError where a network gives logits of another task; `logits` is the shape for one image."""
    wanted = TASKS[task].logits_shape(input_shape, classes)
    if logits != wanted:
        label = {"classification": "one label an image", "dense": "one label a pixel"}[task]
        raise SpaceError(
            f"space {space!r} builds networks with logits {_shape(logits)}, "
            f"but this data set has {label}: {_shape(wanted)}"
        )


def _upsampled(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.dim() != 4:
        raise SpaceError(f"one label a pixel needs logits (N, classes, H, W), got {tuple(logits.shape)}")
    size = labels.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(('N', *map(str, shape)))})"
