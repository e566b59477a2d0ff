"""A data set as a folder: ``class/image.png``, or ``train/class/image.png`` and ``test/class/image.png``.

The second form has an official test split. Every file is either read or named in an error; hidden files and
what file browsers leave behind are passed over.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nas.data.images import Images, Pixels, Source
from nas.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

_PASSED_OVER = ("thumbs.db", "desktop.ini")
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_FORM = "expected class/image.png, or train/class/image.png and test/class/image.png"

Listing = dict[str, list[Path]]  # class name -> its files


def read(root: Path, size: int | None) -> Source:
    """The data set of a folder, its images resized to `size` x `size` where that is given; raises DataError.

    All are grey if all files are, else RGB; transparency is dropped. EXIF rotations are applied.
    """
    train, test = _listings(root)
    if test is not None and set(train) != set(test):
        differing = ", ".join(sorted(set(train) ^ set(test)))
        raise DataError(f"folder {str(root)!r}: train and test do not hold the same classes: {differing}")
    files = [file for listing in (train, test or {}) for paths in listing.values() for file in paths]
    pixels = stack([array(file, size) for file in files], files)
    count = sum(map(len, train.values()))
    return Source(
        classes=tuple(train),
        images=Images(pixels[:count], _labels(train)),
        test=None if test is None else Images(pixels[count:], _labels(test)),
        augmentations=("crop",),  # a flip could turn one class into another; nobody can tell from here
    )


def _listings(root: Path) -> tuple[Listing, Listing | None]:
    """(training or all images, test images)."""
    folders, files = entries(root)
    strays = [file.name for file in files if file.suffix.lower() in SUFFIXES]
    if strays or not folders:
        found = f"holds {strays[0]!r} outside of a class" if strays else "holds no folder of a class"
        raise DataError(f"folder {str(root)!r} {found}; {_FORM}")
    if [folder.name for folder in folders] == ["test", "train"] and entries(root / "train")[0]:
        return _listing(root / "train"), _listing(root / "test")
    return _listing(root), None


def _listing(root: Path) -> Listing:
    return {folder.name: _class_files(folder) for folder in entries(root)[0]}


def _class_files(folder: Path) -> list[Path]:
    """The images of one class, by name."""
    folders, files = entries(folder)
    strange = [file for file in files if file.suffix.lower() not in SUFFIXES]
    if folders or strange:
        kind = "folder" if folders else "file"
        raise DataError(
            f"class folder {str(folder)!r} holds the {kind} {(folders or strange)[0].name!r}; {_FORM} "
            f"({', '.join(suffix[1:] for suffix in SUFFIXES)})"
        )
    if not files:
        raise DataError(f"class folder {str(folder)!r} is empty")
    return files


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """(folders, files) that a person put there, sorted, since file systems differ in their order."""
    try:
        found = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read folder {str(folder)!r}: {error.strerror}") from None
    found = [entry for entry in found if not _is_passed_over(entry.name)]
    return [e for e in found if e.is_dir()], [e for e in found if not e.is_dir()]


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _PASSED_OVER


def _labels(listing: Listing) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.repeat(np.arange(len(listing), dtype=np.int64), [len(files) for files in listing.values()])


def array(file: Path, size: int | None) -> Pixels:
    """One image: (H, W) if it is grey, else (H, W, 3); bicubic where it is resized, antialiased as always in Pillow."""
    from PIL.Image import Resampling

    image = upright(file)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Resampling.BICUBIC)
    return np.asarray(image, np.uint8)


def upright(file: Path) -> Image:
    """One image as a person sees it, of mode L or RGB; raises DataError."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(), Image.open(file) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _check(opened)
            turned = ImageOps.exif_transpose(opened)
            return turned.convert("L" if turned.mode in _GREY else "RGB")
    except DataError as error:
        raise DataError(f"image {str(file)!r} {error}") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DataError(f"cannot read image {str(file)!r}: {error}") from None


def _check(image: Image) -> None:
    """Refuse what a conversion would quietly spoil."""
    if image.mode not in _GREY + _COLOUR:
        raise DataError(f"has pixels of mode {image.mode}; expected 8-bit grey or colour")
    if getattr(image, "n_frames", 1) > 1:
        raise DataError("is an animation, not one image")


def stack(arrays: Sequence[Pixels], files: Sequence[Path]) -> Pixels:
    """(N, 1, H, W) if all images are grey, else (N, 3, H, W)."""
    for array, file in zip(arrays, files, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            one, other = f"{str(files[0])!r} is {size_of(arrays[0])}", f"{str(file)!r} is {size_of(array)}"
            raise DataError(f"images differ in size: {one}, {other}; set data.size to resize them")
    if all(array.ndim == 2 for array in arrays):
        return np.stack(arrays)[:, None]
    coloured = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2) for array in arrays]
    return np.stack([array.transpose(2, 0, 1) for array in coloured])


def size_of(array: Pixels) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
