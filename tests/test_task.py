"""The tasks: losses, what is counted, and the metrics that the counts give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nas import auxiliary
from nas.config import TowersConfig
from nas.data.images import IGNORED, Images
from nas.errors import SpaceError
from nas.training.loop import Resident, evaluate
from nas.training.task import TASKS, Classification, DensePrediction, check

TASK = DensePrediction()


def one_hot(predicted: Tensor, classes: int) -> Tensor:
    """Logits (N, classes, H, W) of these predictions (N, H, W)."""
    return F.one_hot(predicted, classes).movedim(3, 1).float()


def random(seed: int, ignored: float = 0.3, classes: int = 3) -> tuple[Tensor, Tensor]:
    """(logits, labels) of 4 images of 5x6."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (4, 5, 6), generator=generator)
    labels[torch.rand(4, 5, 6, generator=generator) < ignored] = IGNORED
    return torch.randn(4, classes, 5, 6, generator=generator), labels


# ------------------------------------------------------------------------------------------------- metrics


def test_a_worked_example() -> None:
    """Two rows of four pixels; class 2 does not occur, is predicted once, and so costs class 1 a pixel."""
    labels = torch.tensor([[[0, 0, 0, 1], [1, 1, IGNORED, IGNORED]]])
    predicted = torch.tensor([[[0, 0, 1, 1], [1, 2, 0, 1]]])
    statistics = TASK.statistics(one_hot(predicted, 3), labels)
    assert statistics.tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 0]]
    found = TASK.metrics(statistics)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["miou"] == pytest.approx((2 / 3 + 2 / 4) / 2)  # class 0: 2 of 3; class 1: 2 of 4


@settings(deadline=None, derandomize=True, max_examples=50)
@given(seed=st.integers(0, 2**32), ignored=st.sampled_from([0.0, 0.5]), classes=st.integers(2, 5))
def test_metrics_are_those_of_a_loop_over_the_pixels(seed: int, ignored: float, classes: int) -> None:
    logits, labels = random(seed, ignored, classes)
    predicted, truth = logits.argmax(1).numpy(), labels.numpy()
    seen = truth != IGNORED
    ious = []
    for c in range(classes):
        inside, said = (truth == c) & seen, (predicted == c) & seen
        if inside.any():
            ious.append((inside & said).sum() / (inside | said).sum())
    halves = [TASK.statistics(logits[part], labels[part]) for part in (slice(0, 1), slice(1, 4))]
    found = TASK.metrics(halves[0] + halves[1])
    assert found == {
        "accuracy": pytest.approx((predicted == truth)[seen].mean()),
        "miou": pytest.approx(np.mean(ious)),
    }


def test_the_right_answer_scores_1_and_uint8_masks_do_as_well() -> None:
    _, labels = random(0, ignored=0.0)
    assert TASK.metrics(TASK.statistics(one_hot(labels, 3), labels.to(torch.uint8))) == {"accuracy": 1.0, "miou": 1.0}


def test_classification_counts_right_and_all() -> None:
    task = Classification()
    statistics = task.statistics(torch.eye(3), torch.tensor([0, 1, 1]))
    assert statistics.tolist() == [2, 3]
    assert task.metrics(statistics + statistics) == {"accuracy": pytest.approx(2 / 3)}


# -------------------------------------------------------------------------------------------------- losses


@settings(deadline=None, derandomize=True, max_examples=50)
@given(seed=st.integers(0, 2**32), ignored=st.sampled_from([0.0, 0.5]), smoothing=st.sampled_from([0.0, 0.2]))
def test_the_loss_is_the_mean_over_the_labelled_pixels(seed: int, ignored: float, smoothing: float) -> None:
    logits, labels = random(seed, ignored)
    rows = logits.movedim(1, 3)[labels != IGNORED].double()
    right = rows.log_softmax(1).gather(1, labels[labels != IGNORED][:, None]).mean()
    expected = -(1 - smoothing) * right - smoothing * rows.log_softmax(1).mean()
    assert float(TASK.loss(logits, labels.to(torch.uint8), smoothing)) == pytest.approx(float(expected), rel=1e-5)
    assert int(TASK.count(labels)) == len(rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_ignored_pixels_get_no_gradient(smoothing: float) -> None:
    logits, labels = random(0)
    logits.requires_grad_()
    TASK.loss(logits, labels, smoothing).backward()
    assert logits.grad is not None
    touched = (logits.grad != 0).any(1)
    assert torch.equal(touched, labels != IGNORED)


def test_a_batch_without_a_label_costs_nothing() -> None:
    logits, labels = random(0)
    logits.requires_grad_()
    loss = TASK.loss(logits, torch.full_like(labels, IGNORED), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_logits_of_a_smaller_map_are_upsampled_bilinearly() -> None:
    logits, labels = random(0)
    small = torch.randn(4, 3, 2, 3)
    large = F.interpolate(small, (5, 6), mode="bilinear", align_corners=False)
    assert torch.equal(TASK.loss(small, labels), TASK.loss(large, labels))
    assert torch.equal(TASK.statistics(small, labels), TASK.statistics(large, labels))
    assert not torch.equal(TASK.loss(small, labels), TASK.loss(logits, labels))


# ------------------------------------------------------------------------------------------------- evaluate


class Pixelwise(nn.Module):
    """A 1x1 convolution: one cell and the head."""

    cell_names = ("cell",)

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Conv2d(1, 4, 1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x).relu())


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_evaluate_is_over_pixels_whatever_the_batches(batch_size: int) -> None:
    """Images of few labelled pixels weigh less: the mean is over pixels, as in one batch of all."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (7, 4, 4), dtype=np.uint8)
    labels[:4, 1:] = IGNORED
    pixels = generator.integers(0, 256, (7, 1, 4, 4), dtype=np.uint8)
    images = Resident(Images(pixels, labels), (128.0,), (64.0,), torch.device("cpu"))
    torch.manual_seed(0)
    model = auxiliary.supervise(Pixelwise(), TowersConfig(placement="none"), (1, 4, 4), 3)
    found = evaluate(model, TASK, images, batch_size)
    with torch.no_grad():
        logits = model.network(images.normalised(images.pixels))
    assert set(found) == {"loss", "accuracy", "miou"}
    assert found["loss"] == pytest.approx(float(TASK.loss(logits, images.labels)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(TASK.metrics(TASK.statistics(logits, images.labels))["accuracy"])


# ---------------------------------------------------------------------------------------------------- check


def test_logits_of_another_task_are_refused_in_one_line() -> None:
    check("dense", "mine", (3, 8, 9), (1, 8, 9), 3)
    check("classification", "mine", (3,), (1, 8, 9), 3)
    with pytest.raises(SpaceError, match=r"'mine' builds networks with logits \(N, 3, 2, 2\).*a pixel: \(N, 3, 8, 9\)"):
        check("dense", "mine", (3, 2, 2), (1, 8, 9), 3)
    with pytest.raises(SpaceError, match=r"one label an image: \(N, 3\)"):
        check("classification", "mine", (3, 8, 9), (1, 8, 9), 3)
    with pytest.raises(SpaceError, match=r"needs logits \(N, classes, H, W\), got \(4, 3\)"):
        TASK.loss(torch.zeros(4, 3), torch.zeros(4, 5, 6, dtype=torch.int64))
    assert set(TASKS) == {"classification", "dense"}
