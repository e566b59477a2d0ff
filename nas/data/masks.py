"""A data set with a label a pixel: ``images/NAME.png`` and ``masks/NAME.png``, or ``train/`` and ``test/`` of these.

A mask is a PNG in one channel, or with a palette, of its image's size; its values are numbers of classes, 255
marks pixels without a label. ``classes.txt`` beside the folders, one name a line, may name the classes. The second form
has an official test split. Every file is either read or named in an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nas.data.folder import SUFFIXES, entries, stack, upright
from nas.data.images import IGNORED, Images, Labels, Pixels, Source
from nas.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = "classes.txt"

_FORM = "expected images/NAME.png and masks/NAME.png, or train/ and test/ with these two in each"
_PARTS = ["images", "masks"]
_GREY_STEP = {2: 85, 4: 17}  # Pillow stretches grey of few bits to 0 to 255


class Pair(NamedTuple):
    """The files of an image and its mask."""

    image: Path
    mask: Path


def is_one(root: Path) -> bool:
    """Whether a folder holds masks; if not, it may still be one of classes."""
    return any(all((folder / part).is_dir() for part in _PARTS) for folder in (root, root / "train"))


def read(root: Path, size: int | None) -> Source:
    """The data set of a folder; raises DataError.

    With a `size`, images become `size` x `size` (bilinear) and masks with them (nearest).
    """
    train, test = _listings(root)
    pairs = [*train, *(test or [])]
    read = [_read(pair, size) for pair in pairs]
    pixels = stack([image for image, _ in read], [pair.image for pair in pairs])
    masks = np.stack([mask for _, mask in read])
    names = _class_names(root, masks, pairs)
    count = len(train)
    return Source(
        classes=names,
        images=Images(pixels[:count], masks[:count]),
        test=None if test is None else Images(pixels[count:], masks[count:]),
        augmentations=("crop", "flip"),
    )


def _listings(root: Path) -> tuple[list[Pair], list[Pair] | None]:
    """(training or all pairs, test pairs)."""
    folders, files = entries(root)
    strays = [file.name for file in files if file.suffix.lower() in SUFFIXES]
    names = [folder.name for folder in folders]
    if strays or names not in (_PARTS, ["test", "train"]):
        odd = strays or [name for name in names if name not in (*_PARTS, "test", "train")] or names
        raise DataError(f"folder {str(root)!r} holds {', '.join(map(repr, odd))}; {_FORM}")
    if names == _PARTS:
        return _listing(root), None
    return _listing(root / "train"), _listing(root / "test")


def _listing(root: Path) -> list[Pair]:
    """Each image with its mask, by name."""
    if [folder.name for folder in entries(root)[0]] != _PARTS:
        raise DataError(f"folder {str(root)!r} does not hold images and masks; {_FORM}")
    images, masks = (
        _by_stem(root / part, suffixes) for part, suffixes in zip(_PARTS, (SUFFIXES, (".png",)), strict=True)
    )
    for stem, image in images.items():
        if stem not in masks:
            raise DataError(f"image {str(image)!r} has no mask {str(root / 'masks' / stem)!r}.png")
    for stem, mask in masks.items():
        if stem not in images:
            raise DataError(f"mask {str(mask)!r} has no image in {str(root / 'images')!r}")
    return [Pair(image, masks[stem]) for stem, image in images.items()]


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    folders, files = entries(folder)
    strange = folders + [file for file in files if file.suffix.lower() not in suffixes]
    if strange:
        valid = ", ".join(suffix[1:] for suffix in suffixes)
        raise DataError(f"folder {str(folder)!r} holds {strange[0].name!r}; expected files of {valid} only")
    if not files:
        raise DataError(f"folder {str(folder)!r} is empty")
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise DataError(
                f"folder {str(folder)!r} holds {found[file.stem].name!r} and {file.name!r}: one mask for two"
            )
        found[file.stem] = file
    return found


def _read(pair: Pair, size: int | None) -> tuple[Pixels, Labels]:
    """(image, mask) of one size."""
    from PIL import Image

    image, mask = upright(pair.image), _mask(pair.mask)
    if image.size != mask.size:
        one, other = ("{}x{}".format(*each.size) for each in (image, mask))
        raise DataError(f"image {str(pair.image)!r} is {one}, but its mask is {other}")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
        mask = mask.resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(image, np.uint8), np.asarray(mask, np.uint8)


def _mask(file: Path) -> Image:
    """A mask whose pixels are the numbers in the file."""
    from PIL import Image

    try:
        depth = file.read_bytes()[24]  # of the PNG's header
        with Image.open(file, formats=("PNG",)) as opened:
            if opened.mode not in ("1", "L", "P"):
                raise DataError(f"has pixels of mode {opened.mode}; expected numbers of classes in one 8-bit channel")
            values = np.asarray(opened).astype(np.uint8)
    except DataError as error:
        raise DataError(f"mask {str(file)!r} {error}") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DataError(f"cannot read mask {str(file)!r}: {error}") from None
    return Image.fromarray(values // _GREY_STEP.get(depth, 1) if opened.mode == "L" else values)


def _class_names(root: Path, masks: Labels, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The names of `NAMES`, or the numbers; raises DataError where they do not fit the masks."""
    occurring = np.flatnonzero(np.bincount(masks.ravel(), minlength=IGNORED + 1)[:IGNORED])
    names = _names(root / NAMES)
    if names is None:
        names = tuple(str(number) for number in range(int(occurring.max(initial=0)) + 1))
        if 1 < len(occurring) < len(names):
            absent = np.setdiff1d(np.arange(len(names)), occurring)[0]
            raise DataError(
                f"folder {str(root)!r}: masks hold class {names[-1]} but none holds {absent}; "
                f"number classes from 0 without gaps, or name all of them in {NAMES}"
            )
    for mask, pair in zip(masks, pairs, strict=True):
        beyond = mask[(mask >= len(names)) & (mask != IGNORED)]
        if beyond.size:
            raise DataError(
                f"mask {str(pair.mask)!r} holds class {beyond[0]}; {NAMES} names {len(names)}, "
                f"so that 0 to {len(names) - 1} are valid, and {IGNORED} for pixels without a label"
            )
    if len(occurring) < 2:
        held = f"one class only ({names[occurring[0]]})" if len(occurring) else "no class"
        raise DataError(
            f"folder {str(root)!r}: masks hold {held}, 2 are needed; {IGNORED} marks pixels without a label"
        )
    return names


def _names(file: Path) -> tuple[str, ...] | None:
    """One name a line; None where there is no such file."""
    if not file.exists():
        return None
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(file)!r}: {error}") from None
    if len(set(names)) < len(names) or not 2 <= len(names) <= IGNORED:
        raise DataError(f"{str(file)!r} must hold 2 to {IGNORED} different names, one a line, got {len(names)}")
    return names
