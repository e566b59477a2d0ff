"""Data with a label a pixel: what is read, what is refused and in which words, how it is split and augmented."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapes import write

from nas.config import DataConfig
from nas.data import Data, load
from nas.data.augment import augment, augment_both
from nas.data.images import IGNORED, Images, Source
from nas.data.split import divide, fingerprint, strata
from nas.errors import DataError
from nas.training.loop import Resident


def config(name: object, **keys: Any) -> DataConfig:
    return DataConfig.model_validate({"name": str(name), **keys})


def refused(name: object, **keys: Any) -> str:
    """The one line with which a data set is refused."""
    with pytest.raises(DataError) as caught:
        load(config(name, **keys))
    message = str(caught.value)
    assert "\n" not in message
    return message


def save(array: np.ndarray, file: Path, **keys: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(file, **keys)
    return file


def everything(data: Data) -> dict[bytes, bytes]:
    """Masks by their images, over all splits."""
    assert data.test is not None
    return {
        image.tobytes(): mask.tobytes()
        for part in (data.train, data.validation, data.test)
        for image, mask in zip(part.pixels, part.labels, strict=True)
    }


# ---------------------------------------------------------------------------------------------------- read


def test_images_and_masks_stay_together(tmp_path: Path) -> None:
    write(tmp_path, 20)
    data = load(config(tmp_path))
    assert data.task == "dense"
    assert data.classes == ("0", "1", "2")
    assert data.input_shape == (1, 24, 24)
    assert data.augmentations == ("crop", "flip")
    assert data.train.labels.dtype == np.uint8
    assert data.train.labels.shape == (len(data.train), 24, 24)
    found = everything(data)
    assert len(found) == 20
    for file in (tmp_path / "images").iterdir():
        mask = np.asarray(Image.open(tmp_path / "masks" / file.name))
        assert found[np.asarray(Image.open(file)).tobytes()] == mask.tobytes()
    assert len(data.train_and_validation()) == len(data.train) + len(data.validation) == 16


def test_an_official_test_split_and_names(tmp_path: Path) -> None:
    write(tmp_path / "train", 10)
    write(tmp_path / "test", 3, seed=1)
    (tmp_path / "classes.txt").write_text("ground\n\ncircle\nsquare\nrare\n", encoding="utf-8")
    data = load(config(tmp_path))
    assert data.classes == ("ground", "circle", "square", "rare")  # the last one occurs nowhere, and may
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 3)


def test_a_folder_of_classes_is_still_one(tmp_path: Path) -> None:
    for name in ("images", "other"):
        for number in range(10):
            save(np.zeros((8, 8)), tmp_path / name / f"{number}.png")
    data = load(config(tmp_path))
    assert data.task == "classification"
    assert data.classes == ("images", "other")


@pytest.mark.parametrize(
    "form", ["grey", "palette", "bilevel", "grey of 2 bits", "grey of 4 bits", "palette of 2 bits"]
)
def test_the_values_of_a_mask_are_those_in_the_file(tmp_path: Path, form: str) -> None:
    """Pillow stretches grey of few bits to 0 to 255; a palette says nothing of the class."""
    write(tmp_path, 10, side=8)
    top = {"bilevel": 2}.get(form, 3)
    mask = np.arange(64).reshape(8, 8) % top
    for file in (tmp_path / "masks").iterdir():
        if form.startswith("palette"):
            image = Image.fromarray(mask.astype(np.uint8), "P")
            image.putpalette([255, 0, 0, 9, 9, 9, 0, 128, 255] + [7, 7, 7] * 253)
            options: dict[str, Any] = {"bits": 2} if "2 bits" in form else {}
            image.save(file, **options)
        elif form == "bilevel":
            Image.fromarray(mask == 1).save(file)
        elif "bits" in form:
            file.write_bytes(grey_png(mask.astype(np.uint8), 2 if "2 bits" in form else 4))
        else:
            save(mask, file)
    data = load(config(tmp_path))
    assert all((one == mask).all() for one in data.train.labels)
    assert len(data.classes) == top


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A PNG of grey values in so few bits, which Pillow does not write."""
    per_byte = 8 // bits
    rows = values.reshape(len(values), -1, per_byte)
    packed = sum(rows[:, :, i].astype(int) << (bits * (per_byte - 1 - i)) for i in range(per_byte))
    raw = b"".join(b"\0" + bytes(row.tolist()) for row in np.asarray(packed, np.uint8))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_resizing_blends_images_and_never_masks(tmp_path: Path) -> None:
    write(tmp_path, 9, side=24)
    image = np.zeros((48, 30), np.uint8)
    image[24:] = 200
    save(image, tmp_path / "images" / "odd.png")
    save(np.where(image > 0, 2, IGNORED), tmp_path / "masks" / "odd.png")
    assert "images differ in size" in refused(tmp_path)
    assert "set data.size" in refused(tmp_path)
    data = load(config(tmp_path, size=9))
    assert data.input_shape == (1, 9, 9)
    assert set(np.unique(data.train_and_validation().labels)) <= {0, 1, 2, IGNORED}
    found = everything(data)
    blended = np.asarray(Image.fromarray(image).resize((9, 9), Image.Resampling.BILINEAR))
    assert 0 < blended[4, 0] < 200
    mask = np.frombuffer(found[blended.tobytes()], np.uint8).reshape(9, 9)
    assert set(mask.ravel()) == {2, IGNORED}


# -------------------------------------------------------------------------------------------------- refuse


def remove(root: Path) -> None:
    (root / "masks" / "003.png").unlink()


def spare(root: Path) -> None:
    (root / "images" / "003.png").unlink()


def shrink(root: Path) -> None:
    save(np.zeros((20, 24)), root / "masks" / "003.png")


def beyond(root: Path) -> None:
    (root / "classes.txt").write_text("background\ncircle\n")


def one_class(root: Path) -> None:
    for file in (root / "masks").iterdir():
        save(np.where(np.eye(24), 1, IGNORED), file)


def binary(root: Path) -> None:
    for file in (root / "masks").iterdir():
        save(np.eye(24) * 255, file)


def gap(root: Path) -> None:
    save(np.eye(24) * 7, root / "masks" / "003.png")


def colour(root: Path) -> None:
    save(np.zeros((24, 24, 3)), root / "masks" / "003.png")


def damage(root: Path) -> None:
    (root / "masks" / "003.png").write_bytes(b"\x89PNG, not")


def photograph(root: Path) -> None:
    save(np.zeros((24, 24)), root / "masks" / "another.jpg")


def stray(root: Path) -> None:
    save(np.zeros((24, 24)), root / "overview.png")


def further(root: Path) -> None:
    (root / "validation").mkdir()


def twice(root: Path) -> None:
    save(np.zeros((24, 24)), root / "images" / "003.jpg")


def nothing(root: Path) -> None:
    for file in [*(root / "masks").iterdir(), *(root / "images").iterdir()]:
        file.unlink()


def same_names(root: Path) -> None:
    (root / "classes.txt").write_text("thing\nthing\nother\n")


def half(root: Path) -> None:
    (root / "images").rename(root / "kept")
    (root / "train").mkdir()
    (root / "kept").rename(root / "train" / "images")
    (root / "masks").rename(root / "train" / "masks")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove, ["images/003.png", "has no mask", "masks/003"]),
        (spare, ["masks/003.png", "has no image"]),
        (shrink, ["images/003.png", "is 24x24, but its mask is 24x20"]),
        (beyond, ["holds class 2", "classes.txt names 2", "0 to 1 are valid"]),
        (one_class, ["one class only (1)"]),
        (binary, ["one class only (0)", "255 marks pixels without a label"]),
        (gap, ["masks hold class 7 but none holds 3", "classes.txt"]),
        (colour, ["masks/003.png", "mode RGB", "one 8-bit channel"]),
        (damage, ["cannot read mask", "masks/003.png"]),
        (photograph, ["another.jpg", "png only"]),
        (stray, ["'overview.png'", "expected images/NAME.png and masks/NAME.png"]),
        (further, ["'validation'", "expected images/NAME.png"]),
        (twice, ["'003.jpg' and '003.png'", "one mask for two"]),
        (nothing, ["images' is empty"]),
        (same_names, ["classes.txt", "different names"]),
        (half, ["'train'", "train/ and test/"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_folders_are_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    write(tmp_path, 10)
    damage(tmp_path)
    message = refused(tmp_path)
    for word in words:
        assert word in message


def test_a_test_folder_needs_masks_too(tmp_path: Path) -> None:
    write(tmp_path / "train", 10)
    write(tmp_path / "test", 3)
    for file in (tmp_path / "test" / "masks").iterdir():
        file.unlink()
    (tmp_path / "test" / "masks").rmdir()
    assert "test' does not hold images and masks" in refused(tmp_path)


def test_splits_need_images_and_labels(tmp_path: Path) -> None:
    write(tmp_path, 2)
    assert "has 2 images, too few for every split" in refused(tmp_path)
    unlabelled = tmp_path / "unlabelled"
    write(unlabelled / "train", 10)
    write(unlabelled / "test", 3)
    for file in (unlabelled / "test" / "masks").iterdir():
        save(np.full((24, 24), IGNORED), file)
    assert "no pixel of the test masks is labelled" in refused(unlabelled)


# --------------------------------------------------------------------------------------------------- split


def source(subjects: list[int], seed: int = 0) -> Source:
    """Masks (N, 4, 4), each mostly background, some of its subject; every image is different."""
    masks = np.zeros((len(subjects), 4, 4), np.uint8)
    for mask, subject in zip(masks, subjects, strict=True):
        mask[0, :3] = subject
        mask[1] = IGNORED
    pixels = np.random.default_rng(seed).integers(0, 256, (len(subjects), 1, 4, 4), dtype=np.uint8)
    return Source(tuple("abcdef"), Images(pixels, masks), None, ())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(subjects=st.lists(st.integers(0, 5), min_size=5, max_size=60), seed=st.integers(0, 1000))
def test_splits_are_disjoint_complete_and_seeded_however_rare_a_class_is(subjects: list[int], seed: int) -> None:
    whole = source(subjects)
    settings = config("masks", split_seed=seed)
    parts = divide("masks", whole, settings)
    held = [part.pixels[i].tobytes() + part.labels[i].tobytes() for part in parts for i in range(len(part))]
    given = [p.tobytes() + m.tobytes() for p, m in zip(whole.images.pixels, whole.images.labels, strict=True)]
    assert sorted(held) == sorted(given)
    assert all(len(part) for part in parts)
    assert fingerprint(parts) == fingerprint(divide("masks", whole, settings))


def test_splits_are_stratified_by_the_subject_and_rare_ones_stand_together() -> None:
    train, validation, test = divide("masks", source([1] * 50 + [2] * 40 + [3] * 10 + [4, 5]), config("masks"))
    for part, share in ((train, 0.64), (validation, 0.16), (test, 0.2)):
        subjects = part.labels[:, 0, 0]
        assert [(subjects == subject).sum() for subject in (1, 2, 3)] == pytest.approx(
            [50 * share, 40 * share, 10 * share], abs=1.5
        )
    assert strata(source([1, 1, 1, 1, 1, 1, 2]).images.labels, 2).tolist() == [1] * 7  # type: ignore[union-attr]
    assert strata(source([0, 0, 0, 0]).images.labels, 2).tolist() == [0] * 4  # type: ignore[union-attr]
    assert strata(source([1, 1, 2, 2, 3, 3]).images.labels, 5) is None  # only one image remains


def test_the_fingerprint_changes_with_a_pixel_of_a_mask(tmp_path: Path) -> None:
    write(tmp_path, 10)
    before = load(config(tmp_path)).fingerprint
    assert load(config(tmp_path)).fingerprint == before
    file = tmp_path / "masks" / "000.png"
    mask = np.array(Image.open(file))
    mask[0, 0] = IGNORED
    save(mask, file)
    assert load(config(tmp_path)).fingerprint != before


# ------------------------------------------------------------------------------------------------- augment


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    names=st.lists(st.sampled_from(["crop", "flip"]), unique=True),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(4, 20), st.integers(4, 20)),
    seed=st.integers(0, 2**32),
)
def test_masks_move_with_their_images(names: list[str], shape: tuple[int, ...], seed: int) -> None:
    """Each image is its own mask, plus one, so that 0 is what lies beyond the border."""
    masks = torch.randint(
        0, 200, (shape[0], *shape[2:]), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    images = (masks + 1)[:, None].expand(shape).contiguous(memory_format=torch.channels_last)
    before = masks.clone()
    moved, followed = augment_both(images, masks, names, torch.Generator().manual_seed(seed))
    assert followed.shape == masks.shape
    assert followed.dtype == masks.dtype
    for channel in moved.unbind(1):
        outside = channel == 0
        assert torch.equal(followed[~outside] + 1, channel[~outside])
        assert (followed[outside] == IGNORED).all()
    assert torch.equal(masks, before)
    assert torch.equal(moved, augment(images, names, torch.Generator().manual_seed(seed)))  # the draws are the same


def test_every_augmentation_happens_and_cutout_leaves_the_mask() -> None:
    masks = torch.arange(64 * 64, dtype=torch.int64).reshape(64, 8, 8).remainder(200).to(torch.uint8)
    images = (masks + 1)[:, None]
    for name, moves in (("crop", True), ("flip", True), ("cutout", False)):
        changed, followed = augment_both(images, masks, [name], torch.Generator().manual_seed(0))
        assert not torch.equal(changed, images)
        assert torch.equal(followed, masks) is not moves
    _, cropped = augment_both(images, masks, ["crop"], torch.Generator().manual_seed(0))
    assert (cropped == IGNORED).any()


def test_a_resident_split_moves_both_alike() -> None:
    masks = np.random.default_rng(0).integers(0, 200, (16, 8, 8), dtype=np.uint8)
    images = Resident(Images(masks[:, None] + 1, masks), (0.0,), (1.0,), torch.device("cpu"))
    rows = torch.tensor([3, 5, 7])
    pixels, labels = images.batch(rows, ("crop", "flip"), torch.Generator().manual_seed(0))
    inside = pixels[:, 0] > 0
    assert torch.equal(labels[inside] + 1, pixels[:, 0][inside])
    assert (labels[~inside] == IGNORED).all()
    plain, same = images.batch(rows, (), torch.Generator())
    assert torch.equal(same, torch.from_numpy(masks[[3, 5, 7]]))
    assert torch.equal(plain[:, 0], same + 1)
