"""The types of a data set: images with labels, and the splits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer[Any]]

TaskName = Literal["classification", "dense"]
"""One label an image, or one a pixel."""

IGNORED = 255
"""In a mask: a pixel that is not labelled, neither trained on nor scored."""


@dataclass(frozen=True, eq=False)  # eq: arrays do not compare to one truth
class Images:
    """Images with their labels.

    pixels: uint8 (N, C, H, W), 0 to 255.
    labels: int64 (N,), 0 to K-1; or masks, uint8 (N, H, W), 0 to K-1 or `IGNORED`.
    """

    pixels: Pixels
    labels: Labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> Images:
        """The images of these row numbers, copied."""
        return Images(self.pixels[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as its files give it: checked for form, not yet split.

    `test` is the official test split; None: the set has none, and one is cut from `images`.
    `coarse` is the number of the super-class of each class, where the set has such.
    """

    classes: tuple[str, ...]
    images: Images
    test: Images | None
    augmentations: tuple[str, ...]
    coarse: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, ready to train on.

    train and validation are shuffled, so that any first part of them is a random sample.
    mean, std: one number a channel, in pixel units (0 to 255), of the training split; std is never 0.
    augmentations: what suits this set, of crop, flip and cutout.
    coarse: the number of the super-class of each class, where the set has such (CIFAR-100 has 20).
    truth: images that neither training nor a proxy's score has seen, where a truth table is collected.
    official_test: whether the set came with its test split; else it was cut from the images.
    fingerprint: hash of pixels, labels and split, the test split included even after `without_test`.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    validation: Images
    test: Images | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentations: tuple[str, ...]
    fingerprint: str
    coarse: tuple[int, ...] | None = None
    truth: Images | None = None
    official_test: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.train.pixels.shape
        return channels, height, width

    @property
    def task(self) -> TaskName:
        """What is learned, as the labels show."""
        return "classification" if self.train.labels.ndim == 1 else "dense"

    def without_test(self) -> Data:
        """The same data without its test split: what proxies get, so that nothing chosen can depend on it."""
        return replace(self, test=None)

    def holding_truth(self) -> Data:
        """The same data with half of the validation images kept from proxies, for full trainings to be scored on."""
        half = np.arange(len(self.validation)) < len(self.validation) // 2
        judged, truth = self.validation[np.flatnonzero(half)], self.validation[np.flatnonzero(~half)]
        return replace(self, validation=judged, truth=truth, fingerprint=f"{self.fingerprint}/2")

    def train_and_validation(self) -> Images:
        """Training images followed by validation images, copied: what the winner is retrained on."""
        return _joined(self.train, self.validation, self.truth)

    def all_images(self) -> Images:
        """The images of every split, copied: what an exported network may be trained on, see `Rung.all_images`."""
        return _joined(self.train, self.validation, self.truth, self.test)


def _joined(*splits: Images | None) -> Images:
    parts = [split for split in splits if split is not None]
    return Images(np.concatenate([one.pixels for one in parts]), np.concatenate([one.labels for one in parts]))
