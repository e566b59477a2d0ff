"""``load`` reads the data set that the section [data] describes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nas.config import DataConfig
from nas.data import archives, cifar, folder, idx, masks, npz
from nas.data.images import Data, Images, Source
from nas.data.sets import SETS, Known
from nas.data.split import check, divide, divide_for_truth, fingerprint, shrunk, statistics
from nas.errors import DataError


def load(config: DataConfig, progress: bool = False) -> Data:
    """The data set that `config` names, complete, checked and split; the same for the same config and files.

    Raises DataError, in one line, for a set that is unknown, missing, damaged or cannot be split. `progress`
    shows a bar while a known set is downloaded (only where `config.dir` is unset and the cache lacks it).
    """
    name, source = _checked(config, progress)
    train, validation, test = divide(name, source, config)
    mean, std = statistics(train.pixels)
    return Data(
        name=name,
        classes=source.classes,
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        augmentations=source.augmentations,
        fingerprint=fingerprint((train, validation, test)),
        coarse=source.coarse,
        official_test=source.test is not None,
    )


def load_for_truth(config: DataConfig, train: int, validation: int, progress: bool = False) -> Data:
    """The data set, cut to collect a truth table: `train` images to train on, `validation` that proxies are scored on.

    All others, but the test split, are the truth's; there is no test split. A known set with an official test split
    comes shuffled and is cut in its own order: training images first, the proxies' last. Raises DataError as `load`.
    """
    name, source = _checked(config, progress)
    in_order = config.name in SETS and source.test is not None
    trained, truth, judged = divide_for_truth(name, source, config, train, validation, in_order)
    mean, std = statistics(trained.pixels)
    return Data(
        name=name,
        classes=source.classes,
        train=trained,
        validation=judged,
        test=None,
        mean=mean,
        std=std,
        augmentations=source.augmentations,
        fingerprint=fingerprint((trained, judged, truth)),
        coarse=source.coarse,
        truth=truth,
    )


def _checked(config: DataConfig, progress: bool) -> tuple[str, Source]:
    """(name, images) of the set, shrunk as asked for and checked for form."""
    name, source = _source(config, progress)
    if config.shrink > 1:
        test = None if source.test is None else shrunk(source.test, config.shrink)
        source = replace(source, images=shrunk(source.images, config.shrink), test=test)
    check(name, source)
    return name, source


def _source(config: DataConfig, progress: bool) -> tuple[str, Source]:
    """(name, images) of a known set, a .npz file or a folder."""
    path = Path(config.name).expanduser()
    if config.name not in SETS and path.is_dir():
        reader = masks if masks.is_one(path) else folder
        return path.resolve().name, reader.read(path, config.size)
    if config.size is not None:
        raise DataError(f"data.size resizes folders of images only, and {config.name!r} is none")
    if config.name in SETS:
        return config.name, _read_known(config.name, SETS[config.name], config.dir, progress)
    if path.suffix == ".npz" and path.is_file():
        return path.stem, npz.read(path)
    if path.suffix == ".npz" or path.name != config.name:
        raise DataError(f"no data at {config.name!r}: expected a .npz file or a folder with class/image.png")
    raise DataError(f"unknown data set {config.name!r}: not one of {', '.join(SETS)}, nor a .npz file or a folder here")


def _read_known(name: str, entry: Known, directory: Path | None, progress: bool) -> Source:
    if entry.reader == "scikit-learn":
        return Source(entry.classes, _digits(), None, entry.augmentations)
    if directory is not None and not directory.is_dir():
        raise DataError(f"no folder {str(directory)!r} to look for data set {name!r} in")
    place = archives.download(name, entry, progress) if directory is None else directory
    if entry.reader == "idx":
        train, test = idx.read(idx.locate(name, entry, place))
        return Source(entry.classes, train, test, entry.augmentations)
    return cifar.read(entry, cifar.locate(name, entry, place))


def _digits() -> Images:
    """scikit-learn's digits; its pixels are counts from 0 to 16."""
    from sklearn.datasets import load_digits  # slow to import

    values = load_digits()
    pixels = np.rint(values.images * (255 / 16)).astype(np.uint8)
    return Images(pixels[:, None], values.target.astype(np.int64))
