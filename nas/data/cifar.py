"""CIFAR-10 and CIFAR-100 in their official python layout (https://www.cs.toronto.edu/~kriz/cifar.html).

The layout is Python-2 pickles. They are read with a closed unpickler: a pickle can name the few things of
numpy that these files need, and what it gets for each is a harmless smaller variant of this module, never the real
one. Anything else is refused unexecuted.
"""

from __future__ import annotations

import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from nas.data.archives import folders, not_found, verified
from nas.data.images import Images, Labels, Source
from nas.data.sets import Known
from nas.errors import DataError

_MEMBERS = {  # official folder -> (training batches, test batch, the file of the class names)
    "cifar-10-batches-py": (tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    "cifar-100-python": (("train",), "test", "meta"),
}


def locate(name: str, entry: Known, directory: Path) -> Path:
    """The official .tar.gz (verified), or the folder that it unpacks to; raises DataError."""
    (archive, md5), *_ = entry.md5.items()
    looked = folders(name, directory)
    best: list[str] | None = None
    for folder in looked:
        if (folder / archive).is_file():
            return verified(folder / archive, md5)
        for unpacked in (folder / entry.folder, folder):
            missing = [file for file in _names(entry) if not (unpacked / file).is_file()]
            if not missing:
                return unpacked
            if len(missing) < len(_names(entry)) and best is None:
                best = missing
    raise not_found(name, best or [f"{archive} or {entry.folder}/"], looked)


def read(entry: Known, place: Path) -> Source:
    """The data set of a .tar.gz or a folder, with CIFAR-100's super-classes; raises DataError."""
    batches, test, meta = _MEMBERS[entry.folder]
    tables = {name: _load(file, f"{place}/{name}") for name, file in _files(entry, place)}
    if lacking := [name for name in _names(entry) if name not in tables]:
        raise DataError(f"{str(place)!r} lacks {', '.join(lacking)}")
    train = _joined([_images(tables[name], f"{place}/{name}") for name in batches])
    classes = _class_names(tables[meta], f"{place}/{meta}")
    official_test = _joined([_images(tables[test], f"{place}/{test}")])
    coarse = _super_classes(tables[batches[0]], train.labels, len(classes), f"{place}/{batches[0]}")
    return Source(classes, train, official_test, entry.augmentations, coarse)


def _names(entry: Known) -> tuple[str, ...]:
    batches, test, meta = _MEMBERS[entry.folder]
    return (*batches, test, meta)


def _files(entry: Known, place: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Each needed file, open; a .tar.gz is read through once, in its order, and never unpacked to disk."""
    wanted = {PurePosixPath(entry.folder, name): name for name in _names(entry)}
    try:
        if place.is_dir():
            for name in _names(entry):
                with (place / name).open("rb") as file:
                    yield name, file
            return
        with tarfile.open(place, "r:gz") as archive:
            for member in archive:
                name_in_set = wanted.get(PurePosixPath(member.name))
                content = archive.extractfile(member) if name_in_set is not None and member.isfile() else None
                if name_in_set is not None and content is not None:
                    yield name_in_set, content
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"cannot read {str(place)!r}: {error}") from None


def _load(file: IO[bytes], where: str) -> dict[bytes, Any]:
    """The table of one pickle; raises DataError where it is damaged or names anything unexpected."""
    try:
        table = _ClosedUnpickler(file, encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{where!r} {error}") from None
    except Exception as error:  # damaged pickles raise nearly anything; nothing of ours runs in there
        raise DataError(f"{where!r} is damaged: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"{where!r} is not a CIFAR file: it holds a {type(table).__name__}, not a table")
    return table


class _Array:
    """What a pickle gets as a numpy array: takes the state numpy would get, and keeps a uint8 array of it."""

    value: np.ndarray[Any, np.dtype[np.uint8]]

    def __init__(self, *_: object) -> None:
        self.value = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, columns_first, content = state
        if not isinstance(dtype, _Type) or dtype.code not in ("u1", b"u1"):
            raise DataError("is not a CIFAR file: its array is not uint8")
        self.value = np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns_first else "C")


class _Type:
    """What a pickle gets as a numpy dtype: only its code is of interest."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and fields: nothing that a uint8 has."""


def _encode(text: str, _: object) -> bytes:
    """What a pickle gets as _codecs.encode: how Python 3 writes bytes in Python 2's protocol."""
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _ClosedUnpickler(pickle.Unpickler):
    """Builds tables, lists, numbers, texts and uint8 arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(f"is refused: it asks for {module}.{name}, which no CIFAR file needs") from None


def _images(table: dict[bytes, Any], where: str) -> Images:
    """The images of one batch: rows of 3072 values, red, green and blue planes of 32x32."""
    data = table.get(b"data")
    labels = table.get(b"labels", table.get(b"fine_labels"))
    if not isinstance(data, _Array) or data.value.ndim != 2 or data.value.shape[1] != 3 * 32 * 32:
        raise DataError(f"{where!r} is not a CIFAR file: no uint8 data of (N, 3072)")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{where!r} is not a CIFAR file: no list of labels")
    if len(labels) != len(data.value):
        raise DataError(f"{where!r} is damaged: {len(data.value)} images but {len(labels)} labels")
    return Images(data.value.reshape(-1, 3, 32, 32), np.array(labels, np.int64))


def _joined(parts: Sequence[Images]) -> Images:
    """All images of some batches, copied: what comes out of a pickle is read-only."""
    return Images(np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts]))


def _class_names(table: dict[bytes, Any], where: str) -> tuple[str, ...]:
    names = table.get(b"label_names", table.get(b"fine_label_names"))
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise DataError(f"{where!r} is not a CIFAR file: no names of classes")
    return tuple(name.decode() for name in names)


def _super_classes(table: dict[bytes, Any], labels: Labels, count: int, where: str) -> tuple[int, ...] | None:
    """The super-class of each class, from the pairs that the training images carry; None where they carry none."""
    coarse = table.get(b"coarse_labels")
    if coarse is None:
        return None
    found = dict(zip(labels.tolist(), coarse, strict=False))
    if len(coarse) != len(labels) or not all(type(one) is int for one in coarse):
        raise DataError(f"{where!r} is damaged: its coarse labels do not go with its images")
    if len(found) < count:
        return None  # a cut-down set: not every class occurs
    numbers = sorted(set(found.values()))
    return tuple(numbers.index(found[one]) for one in range(count))
