"""Random crops, flips and cutouts of whole batches, on any device. Masks move with their images."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data.images import IGNORED

NAMES = ("crop", "flip", "cutout")  # drawn and applied in this order, in whatever order they are asked for


def augment(images: Tensor, names: Collection[str], generator: torch.Generator) -> Tensor:
    """`images` (N, C, H, W), of any type and memory format, augmented; each image draws for itself.

    crop: shifted by up to an eighth of the shorter side (at least 1 pixel) each way, 0 beyond the border.
    flip: mirrored left to right, every second image on average.
    cutout: a square of a quarter of the shorter side set to 0 (DeVries & Taylor 2017, arXiv:1708.04552).

    All draws are from `generator`, on its device: a CPU generator gives the same batch on every device. The
    given tensor is not changed. Raises ValueError for an unknown name.
    """
    return _augmented(images, None, names, generator)[0]


def augment_both(
    images: Tensor, masks: Tensor, names: Collection[str], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`augment`, and the masks (N, H, W) moved with their images: `IGNORED` beyond the border, cutout leaves them."""
    images, moved = _augmented(images, masks[:, None], names, generator)
    assert moved is not None
    return images, moved[:, 0]


Pair = tuple[Tensor, Tensor | None]


def _augmented(images: Tensor, masks: Tensor | None, names: Collection[str], generator: torch.Generator) -> Pair:
    if unknown := sorted(set(names) - set(NAMES)):
        raise ValueError(f"unknown augmentation {', '.join(unknown)}; valid: {', '.join(NAMES)}")
    for name in NAMES:
        if name in names:
            images, masks = _STEPS[name](images, masks, generator)
    return images, masks


def _crop(images: Tensor, masks: Tensor | None, generator: torch.Generator) -> Pair:
    count, _, height, width = images.shape
    shift = max(1, min(height, width) // 8)
    down, right = _draw((2, count), 2 * shift + 1, images, generator)
    rows = torch.arange(count, device=images.device)

    def shifted(one: Tensor, beyond: int) -> Tensor:
        padded = F.pad(one, (shift, shift, shift, shift), value=beyond)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, shifts, shifts, H, W), a view
        return _formatted(windows[rows, :, down, right], one)

    return shifted(images, 0), None if masks is None else shifted(masks, IGNORED)


def _flip(images: Tensor, masks: Tensor | None, generator: torch.Generator) -> Pair:
    mirrored = _draw((images.shape[0], 1, 1, 1), 2, images, generator).bool()

    def flipped(one: Tensor) -> Tensor:
        return _formatted(torch.where(mirrored, one.flip(3), one), one)

    return flipped(images), None if masks is None else flipped(masks)


def _cutout(images: Tensor, masks: Tensor | None, generator: torch.Generator) -> Pair:
    count, _, height, width = images.shape
    side = max(1, min(height, width) // 4)
    top = _draw((count, 1, 1, 1), height - side + 1, images, generator)
    left = _draw((count, 1, 1, 1), width - side + 1, images, generator)
    row = torch.arange(height, device=images.device)[:, None] - top
    column = torch.arange(width, device=images.device) - left
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)  # (N, 1, H, W)
    return _formatted(images.masked_fill(inside, 0), images), masks


_STEPS = {"crop": _crop, "flip": _flip, "cutout": _cutout}


def _draw(shape: tuple[int, ...], below: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """Integers from 0 to below - 1, drawn on the generator's device and moved to the images'."""
    return torch.randint(below, shape, generator=generator, device=generator.device).to(images.device)


def _formatted(result: Tensor, images: Tensor) -> Tensor:
    """`result` in the memory format of `images`: another layout would slow every convolution after it."""
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
