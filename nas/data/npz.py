"""A data set in a .npz file: ``images`` and ``labels``, or ``x_train``, ``y_train``, ``x_test``, ``y_test``.

The second is how Keras writes its sets; the test images are then the official test split. ``classes``, an
array of names, may be added to either. Labels are the integers 0 to K-1, or texts: the class names.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nas.data.images import Images, Labels, Pixels, Source
from nas.errors import DataError

Array = npt.NDArray[Any]

_LAYOUTS = (("images", "labels"), ("x_train", "y_train", "x_test", "y_test"))
_CHANNELS = (1, 3, 4)


def read(path: Path) -> Source:
    """The data set of a .npz file; raises DataError."""
    arrays = _arrays(path)
    first, *others = next(layout for layout in _LAYOUTS if layout[0] in arrays)
    labels, *test = others
    names = _class_names(path, arrays, labels)
    return Source(
        classes=names,
        images=_images(path, arrays, first, labels, names),
        test=_images(path, arrays, test[0], test[1], names) if test else None,
        augmentations=("crop",),  # a flip could turn one class into another; nobody can tell from here
    )


def _arrays(path: Path) -> Mapping[str, Array]:
    """All arrays of the file: exactly those of one layout, and perhaps classes."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{str(path)!r} is a single array, not a .npz file")
        with loaded as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
        raise DataError(f"cannot read {str(path)!r}: {reason}") from None
    if not any(set(arrays) - {"classes"} == set(layout) for layout in _LAYOUTS):
        found = ", ".join(arrays) or "nothing"
        valid = " or ".join(", ".join(layout) for layout in _LAYOUTS)
        raise DataError(f"{str(path)!r} holds {found}; expected {valid} (and classes, if you like)")
    return arrays


def _images(path: Path, arrays: Mapping[str, Array], images: str, labels: str, names: tuple[str, ...]) -> Images:
    return Images(
        _pixels(f"{images} of {str(path)!r}", arrays[images]),
        _numbers(f"{labels} of {str(path)!r}", arrays[labels], names),
    )


def _pixels(what: str, array: Array) -> Pixels:
    """uint8 (N, C, H, W) of (N, H, W), (N, H, W, C) or (N, C, H, W)."""
    values = _bytes(what, array)
    if values.ndim == 3:
        return values[:, None]
    last = values.ndim == 4 and values.shape[3] in _CHANNELS
    first = values.ndim == 4 and values.shape[1] in _CHANNELS
    if first == last:
        why = "the channels may be second or last" if first else "no place for 1, 3 or 4 channels"
        raise DataError(
            f"{what} have the shape {values.shape}: {why}; expected (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if last else values


def _bytes(what: str, array: Array) -> Pixels:
    """uint8 values; floats from 0 to 1 are scaled to 0 to 255."""
    if array.dtype == np.uint8:
        return array
    wanted = f"{what} must be uint8, or floats from 0 to 1"
    if array.dtype.kind not in "iuf" or array.size == 0:
        raise DataError(f"{wanted}, got {array.size} values of {array.dtype}")
    if not np.isfinite(array).all():
        raise DataError(f"{what} hold NaN or infinite values")
    low, high = array.min(), array.max()
    if array.dtype.kind != "f" or low < 0 or high > 1:
        raise DataError(f"{wanted}, got {array.dtype} from {low:g} to {high:g}")
    return np.rint(array * np.float32(255)).astype(np.uint8)


def _class_names(path: Path, arrays: Mapping[str, Array], key: str) -> tuple[str, ...]:
    """The given names; else the sorted texts of the training labels, or one number for each."""
    labels = _column(f"{key} of {str(path)!r}", arrays[key])
    if "classes" not in arrays:
        if labels.dtype.kind == "U":
            return tuple(str(name) for name in np.unique(labels))
        return tuple(str(number) for number in range(len(np.unique(labels))))
    names = tuple(str(name) for name in arrays["classes"].ravel())
    if arrays["classes"].dtype.kind != "U" or arrays["classes"].ndim != 1 or len(set(names)) < len(names):
        raise DataError(f"classes of {str(path)!r} must be a list of different texts")
    return names


def _numbers(what: str, array: Array, names: tuple[str, ...]) -> Labels:
    """Labels as int64 numbers of `names`."""
    labels = _column(what, array)
    wanted = np.array(names) if labels.dtype.kind == "U" else np.arange(len(names))
    found = np.unique(labels)
    strangers = found[~np.isin(found, wanted)]
    if labels.dtype.kind == "U":
        if len(strangers):
            raise DataError(f"{what} hold {_few(strangers)}, not among the classes {_few(wanted)}")
        order = np.argsort(wanted)
        return order[np.searchsorted(wanted, labels, sorter=order)].astype(np.int64)
    if len(strangers):
        raise DataError(f"{what} must be 0 to {len(names) - 1}, a number for each class, got {_few(found)}")
    return labels.astype(np.int64)


def _column(what: str, array: Array) -> Array:
    """(N,) of (N,) or, as Keras writes some, (N, 1); integers or texts."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{what} must be one label for each image, got the shape {array.shape}")
    if array.dtype.kind not in "iuU":
        raise DataError(f"{what} must be integers or texts, got {array.dtype}")
    return array


def _few(values: Array) -> str:
    shown = ", ".join(str(value) for value in values[:6])
    return f"{shown} and {len(values) - 6} more" if len(values) > 6 else shown
