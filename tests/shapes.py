"""Generated data with a label a pixel: circles and squares on noise, as folders of images and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 24


def draw(generator: np.random.Generator, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """(image, mask), uint8 (side, side): a bright circle (1), a bright square (2) or both on noise (0)."""
    image = generator.integers(0, 110, (side, side))
    mask = np.zeros((side, side), np.uint8)
    rows, columns = np.indices((side, side))
    for number in generator.permutation([1, 2])[: generator.integers(1, 3)]:
        radius = generator.integers(side // 6, side // 4)
        row, column = generator.integers(radius, side - radius, 2)
        down, right = np.abs(rows - row), np.abs(columns - column)
        inside = down**2 + right**2 <= radius**2 if number == 1 else np.maximum(down, right) < radius
        mask[inside] = number
        image[inside] = generator.integers(140, 256, inside.sum())
    return image.astype(np.uint8), mask


def write(root: Path, count: int, side: int = SIDE, seed: int = 0, names: str | None = None) -> Path:
    """`count` pairs under root/images and root/masks; with `names`, a classes.txt."""
    generator = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, mask = draw(generator, side)
        Image.fromarray(image).save(root / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number:03}.png")
    if names is not None:
        (root / "classes.txt").write_text(names, encoding="utf-8")
    return root
