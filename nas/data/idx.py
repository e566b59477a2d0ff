"""idx files, the format of MNIST and its relatives (http://yann.lecun.com/exdb/mnist/, archived).

A header - two zero bytes, the type (8: uint8), the number of dimensions, each dimension as 4 big-endian
bytes - and then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nas.data.archives import folders, not_found, verified
from nas.data.images import Images, Pixels
from nas.data.sets import Known
from nas.errors import DataError


def locate(name: str, entry: Known, directory: Path) -> dict[str, Path]:
    """Official file name -> where it lies, gzipped (then verified) or unpacked; raises DataError."""
    lacking: list[str] = []
    looked = folders(name, directory)
    for folder in looked:
        found = {file: path for file in entry.md5 if (path := _either(folder, file)) is not None}
        if len(found) == len(entry.md5):
            return {file: _checked(path, entry.md5[file]) for file, path in found.items()}
        missing = [file for file in entry.md5 if file not in found]
        if not lacking or len(missing) < len(lacking):
            lacking = missing
    raise not_found(name, lacking, looked)


def _either(folder: Path, file: str) -> Path | None:
    """The gzipped file before the unpacked one, which has no official checksum."""
    candidates = (folder / file, folder / file.removesuffix(".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _checked(path: Path, md5: str) -> Path:
    return verified(path, md5) if path.suffix == ".gz" else path


def read(paths: Mapping[str, Path]) -> tuple[Images, Images]:
    """(training images, test images) of the four official files; raises DataError where one is damaged."""
    train, test = (
        Images(
            read_values(paths[f"{part}-images-idx3-ubyte.gz"], 3)[:, None],
            read_values(paths[f"{part}-labels-idx1-ubyte.gz"], 1).astype(np.int64),
        )
        for part in ("train", "t10k")
    )
    return train, test


def read_values(path: Path, dimensions: int) -> Pixels:
    """The uint8 array of one idx file, with this many dimensions; raises DataError."""
    content = _content(path)
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        begin = content[:4].hex()
        raise DataError(f"{str(path)!r} is not the idx file it should be: begins {begin}, not {magic.hex()}")
    if len(content) < header:
        raise DataError(f"{str(path)!r} is damaged: {len(content)} bytes, shorter than its header")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if math.prod(shape) != len(content) - header:
        raise DataError(
            f"{str(path)!r} is damaged: {len(content) - header} bytes of values, "
            f"but its header says {'x'.join(map(str, shape))}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()  # frombuffer is read-only


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from None
