"""Splits the images of a source: checks, stratified split, statistics, fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from nas.config import DataConfig
from nas.data.images import IGNORED, Images, Labels, Pixels, Source
from nas.errors import DataError

SMALLEST = 4  # pixels a side: below, a stem and one reduction leave nothing to classify

_CHUNK = 1024  # images at a time in sums, so that no float64 copy of a whole set is made


def check(name: str, source: Source) -> None:
    """Raise DataError unless the source is a problem that can be trained on."""
    _check_images(name, "training", source.images, source.classes)
    if len(source.classes) < 2:
        raise DataError(f"data set {name!r} has one class only ({', '.join(source.classes)}); 2 are needed")
    if source.test is None:
        return
    _check_images(name, "test", source.test, source.classes)
    ours, theirs = source.images.pixels.shape[1:], source.test.pixels.shape[1:]
    if ours != theirs:
        raise DataError(f"data set {name!r}: training images are {_shape(ours)}, test {_shape(theirs)}")


def _check_images(name: str, part: str, images: Images, classes: tuple[str, ...]) -> None:
    count, _, height, width = images.pixels.shape
    if count != len(images.labels):
        raise DataError(f"data set {name!r} has {count} {part} images but {len(images.labels)} labels")
    if count == 0:
        raise DataError(f"data set {name!r} has no {part} images")
    if min(height, width) < SMALLEST:
        needed = f"at least {SMALLEST}x{SMALLEST}"
        raise DataError(f"data set {name!r}: images must be {needed} pixels, got {width}x{height}")
    if images.labels.ndim == 3:  # numbers of classes are checked where the masks are read, each by its file
        if (images.labels == IGNORED).all():
            raise DataError(f"data set {name!r}: no pixel of the {part} masks is labelled, all are {IGNORED}")
        return
    if images.labels.min() < 0 or images.labels.max() >= len(classes):
        raise DataError(
            f"data set {name!r}: {part} labels go from {images.labels.min()} to {images.labels.max()}, "
            f"but there are {len(classes)} classes"
        )
    for number in np.flatnonzero(_counts(images.labels, len(classes)) == 0):
        raise DataError(f"data set {name!r}: class {classes[number]!r} has no {part} images")


def divide(name: str, source: Source, config: DataConfig) -> tuple[Images, Images, Images]:
    """(training, validation, test) images: disjoint, complete, every class in each (of labels, if not of masks).

    Raises DataError where there are too few images.
    An official test split stays as it is; where there is none, one is cut before validation is.
    """
    rest, test = source.images, source.test
    if test is None:
        rest, test = _cut(name, source, rest, round(config.test * len(rest)), config.split_seed)
    size = min(round(config.validation * len(rest)), config.max_validation)
    train, validation = _cut(name, source, rest, size, config.split_seed)
    return train, validation, test


def divide_for_truth(
    name: str, source: Source, config: DataConfig, train: int, validation: int, in_order: bool
) -> tuple[Images, Images, Images]:
    """(training, truth, validation) images, disjoint, without the test split: so many of the first and the last.

    All others are truth. `in_order` keeps the order of a set that comes shuffled; else the cuts are stratified.
    Raises DataError where nothing is left for the truth.
    """
    rest = source.images
    if source.test is None:
        rest, _ = _cut(name, source, rest, round(config.test * len(rest)), config.split_seed)
    if train + validation >= len(rest):
        raise DataError(
            f"data set {name!r} has {len(rest)} images beside the test split: {train} to train on and {validation} "
            "for proxies leave none for the truth"
        )
    if in_order:
        rows = np.arange(len(rest))
        return rest[rows[:train]], rest[rows[train : len(rest) - validation]], rest[rows[len(rest) - validation :]]
    rest, judged = _cut(name, source, rest, validation, config.split_seed)
    truth, trained = _cut(name, source, rest, train, config.split_seed)
    return trained, truth, judged


def shrunk(images: Images, factor: int) -> Images:
    """Images with squares of `factor` pixels a side averaged into one, rounded; what does not fill one is cut off.

    Of masks each square keeps its upper left label: labels have no average.
    """
    if factor == 1:
        return images
    count, channels, height, width = images.pixels.shape
    height, width = height // factor, width // factor
    whole = images.pixels[:, :, : height * factor, : width * factor]
    squares = whole.reshape(count, channels, height, factor, width, factor)
    total = squares.sum(axis=(3, 5), dtype=np.uint32)
    labels = images.labels
    if labels.ndim == 3:
        labels = labels[:, : height * factor : factor, : width * factor : factor]
    return Images(((total + factor**2 // 2) // factor**2).astype(np.uint8), labels)


def _cut(name: str, source: Source, images: Images, size: int, seed: int) -> tuple[Images, Images]:
    """(what remains, `size` of the images, stratified), both shuffled."""
    from sklearn.model_selection import train_test_split  # slow to import

    if images.labels.ndim == 3:
        return _cut_masks(name, images, size, seed)
    classes = len(source.classes)
    before = _counts(images.labels, classes)
    if before.min() < 2 or min(size, len(images) - size) < classes:  # where scikit-learn would refuse
        raise _too_few(name, source, int(before.argmin()))
    rows = np.arange(len(images))
    kept, cut = train_test_split(rows, test_size=size, stratify=images.labels, random_state=seed)
    fewest = np.minimum(_counts(images.labels[kept], classes), _counts(images.labels[cut], classes))
    if fewest.min() == 0:
        raise _too_few(name, source, int(fewest.argmin()))
    return images[kept], images[cut]


def _cut_masks(name: str, images: Images, size: int, seed: int) -> tuple[Images, Images]:
    """As `_cut`, with masks: stratified by the most common class of each that is not the background (0)."""
    from sklearn.model_selection import train_test_split

    if not 0 < size < len(images):
        count = f"{len(images)} image{'s' * (len(images) != 1)}"
        raise DataError(
            f"data set {name!r} has {count}, too few for every split at these shares (data.validation, data.test)"
        )
    rows = np.arange(len(images))
    kept, cut = train_test_split(rows, test_size=size, stratify=strata(images.labels, size), random_state=seed)
    return images[kept], images[cut]


def strata(masks: Labels, size: int) -> Labels | None:
    """A number a mask (N, H, W) by which a part of so many can be stratified; None where that is not possible.

    Classes too rare to be in that part stand together.
    """
    found = np.array([_subject(mask) for mask in masks])
    numbers, counts = np.unique(found, return_counts=True)
    rare = np.isin(found, numbers[counts * size < len(masks)])
    found[rare] = IGNORED if rare.sum() > 1 else numbers[counts.argmax()]
    numbers, counts = np.unique(found, return_counts=True)
    return found if counts.min() > 1 and len(numbers) <= min(size, len(masks) - size) else None


def _subject(mask: Labels) -> int:
    """The most common class but the background; the background where there is nothing else."""
    counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)[1:IGNORED]
    return int(counts.argmax()) + 1 if counts.any() else 0


def _too_few(name: str, source: Source, number: int) -> DataError:
    count = int(_counts(source.images.labels, len(source.classes))[number])
    splits = "training, validation and test" if source.test is None else "training and validation"
    return DataError(
        f"data set {name!r}: class {source.classes[number]!r} has {count} image{'s' * (count != 1)}, "
        f"too few to be in the {splits} split at these shares (data.validation, data.test)"
    )


def _counts(labels: Labels, classes: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.bincount(labels, minlength=classes)


def _shape(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} with {channels} channel{'s' * (channels != 1)}"


def statistics(pixels: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel of (N, C, H, W), in pixel units; a constant channel has 1.

    The sums are of integers and exact, so that neither chunks nor threads show in the result.
    """
    channels = pixels.shape[1]
    total, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(pixels), _CHUNK):
        values = pixels[start : start + _CHUNK].astype(np.float64)
        total += values.sum(axis=(0, 2, 3))
        squares += np.square(values, out=values).sum(axis=(0, 2, 3))
    count = pixels.size / channels
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.where(std > 1e-6, std, 1.0).tolist())


def fingerprint(parts: Iterable[Images]) -> str:
    """16 hexadecimal digits that change when a pixel, a label or the split does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part.pixels.shape).encode())
        digest.update(np.ascontiguousarray(part.pixels).data)
        digest.update(np.ascontiguousarray(part.labels, "<i8" if part.labels.ndim == 1 else np.uint8).data)
    return digest.hexdigest()[:16]
