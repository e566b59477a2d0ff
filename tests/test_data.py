"""Data sets: what is read, what is refused and in which words, how it is split, and how batches are augmented."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import nas.data
from nas.config import DataConfig
from nas.data import Data, Images, known, load
from nas.data.augment import augment
from nas.data.images import Source
from nas.data.sets import SETS, Known
from nas.data.split import divide, fingerprint, statistics
from nas.errors import DataError

RNG = np.random.default_rng(0)


def config(name: object, **keys: Any) -> DataConfig:
    return DataConfig.model_validate({"name": str(name), **keys})


def refused(name: object, **keys: Any) -> str:
    """The one line with which a data set is refused."""
    with pytest.raises(DataError) as caught:
        load(config(name, **keys))
    message = str(caught.value)
    assert "\n" not in message
    return message


def pixels(count: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def rows(images: Images) -> list[bytes]:
    """Each image with its label, to compare as sets whatever the order."""
    pairs = zip(images.pixels, images.labels, strict=True)
    return sorted(image.tobytes() + bytes([label]) for image, label in pairs)


# --- the interface ----------------------------------------------------------------------------------------------


def test_public_names() -> None:
    assert nas.data.__all__ == ["Data", "Images", "known", "load", "load_for_truth", "shrunk"]
    assert list(known()) == ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100"]
    assert all(text and "\n" not in text for text in known().values())


def test_heavy_packages_wait_until_they_are_needed() -> None:
    code = "import sys, nas.data; print([m for m in ('torch', 'sklearn', 'pooch', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits() -> None:
    data = load(DataConfig())
    assert (data.name, data.input_shape, data.classes) == ("digits", (1, 8, 8), tuple("0123456789"))
    assert data.test is not None
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert len(data.test) == round(0.2 * 1797)
    assert data.train.pixels.dtype == np.uint8
    assert data.train.labels.dtype == np.int64
    assert data.train.pixels.max() == 255  # 16 of scikit-learn
    assert data.augmentations == ("crop",)
    assert load(DataConfig()).fingerprint == data.fingerprint


def test_proxies_get_no_test_split_and_retraining_gets_the_rest() -> None:
    data = load(DataConfig())
    hidden = data.without_test()
    assert hidden.test is None
    assert hidden.fingerprint == data.fingerprint
    both = hidden.train_and_validation()
    assert rows(both) == sorted(rows(data.train) + rows(data.validation))


def test_a_batch_of_loaded_pixels_can_become_a_tensor_without_a_warning(recwarn: Any) -> None:
    data = load(DataConfig())
    assert data.test is not None
    for part in (data.train, data.validation, data.test):
        torch.from_numpy(part.pixels)
        torch.from_numpy(part.labels)
    assert [str(w.message) for w in recwarn if "writ" in str(w.message)] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imagenet", "unknown data set 'imagenet': not one of digits, mnist, fashion-mnist, cifar10, cifar100"),
        ("nowhere/set", "no data at 'nowhere/set'"),
        ("missing.npz", "no data at 'missing.npz'"),
    ],
)
def test_unknown_sets_are_refused(name: str, words: str) -> None:
    assert words in refused(name)


def test_size_is_refused_where_it_would_be_ignored(tmp_path: Path) -> None:
    assert "data.size resizes folders" in refused("digits", size=16)


# --- the split --------------------------------------------------------------------------------------------------


def numbered(counts: list[int], classes: int | None = None) -> Source:
    """A source with this many images of each class, each image with its own number in its pixels."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    images = np.zeros((len(labels), 1, 4, 4), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(len(labels)), 256)
    names = tuple(f"class{i}" for i in range(classes or len(counts)))
    return Source(names, Images(images, labels), None, ("crop",))


def split_config(seed: int = 0, validation: float = 0.2, test: float = 0.2) -> DataConfig:
    return config("x", split_seed=seed, validation=validation, test=test)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(20, 60), min_size=2, max_size=5),
    seed=st.integers(0, 2**31 - 1),
    validation=st.floats(0.1, 0.5),
    test=st.floats(0.1, 0.5),
)
def test_splits_are_disjoint_complete_stratified_and_seeded(
    counts: list[int], seed: int, validation: float, test: float
) -> None:
    source = numbered(counts)
    parts = divide("x", source, split_config(seed, validation, test))
    again = divide("x", source, split_config(seed, validation, test))
    assert [rows(part) for part in parts] == [rows(part) for part in again]
    assert fingerprint(parts) == fingerprint(again)
    together = [row for part in parts for row in rows(part)]
    assert len(set(together)) == len(together)  # disjoint: no number twice
    assert sorted(together) == rows(source.images)  # complete, and labels went with their images
    train, held, tested = (np.bincount(part.labels, minlength=len(counts)) for part in parts)
    assert np.all(np.abs(tested - test * np.array(counts)) < 2)
    assert np.all(np.abs(held - validation * (np.array(counts) - tested)) < 2)
    assert min(train.min(), held.min(), tested.min()) >= 1


def test_another_seed_is_another_split() -> None:
    source = numbered([50, 50])
    one, other = (divide("x", source, split_config(seed)) for seed in (0, 1))
    assert all(rows(a) != rows(b) for a, b in zip(one, other, strict=True))
    assert fingerprint(one) != fingerprint(other)


def test_an_official_test_split_stays_as_it_is() -> None:
    official = Images(pixels(7, 1, 4, 4), np.array([0, 1, 0, 1, 1, 0, 0]))
    source = replace(numbered([20, 30]), test=official)
    train, validation, test = divide("x", source, split_config())
    assert test is official
    assert (len(train), len(validation)) == (40, 10)


def test_the_first_training_images_are_a_sample_of_all_classes() -> None:
    train, *_ = divide("x", numbered([100] * 4), split_config())
    assert set(train.labels[:40]) == {0, 1, 2, 3}


@pytest.mark.parametrize(("counts", "number"), [([30, 1], 1), ([2, 30], 2), ([60, 60, 3], 3)])
def test_a_class_too_small_to_be_in_each_split_is_named_with_its_count(counts: list[int], number: int) -> None:
    def all_seeds() -> None:  # chance may serve a class of 3 with one seed, but not with all
        for seed in range(10):
            divide("x", numbered(counts), split_config(seed))

    with pytest.raises(DataError, match=rf"class 'class\d' has {number} images?, too few"):
        all_seeds()


@pytest.mark.parametrize("change", ["pixel", "label", "split"])
def test_the_fingerprint_changes_with_the_data(change: str) -> None:
    parts = divide("x", numbered([20, 20]), split_config())
    before = fingerprint(parts)
    if change == "pixel":
        parts[2].pixels[3, 0, 2, 2] += 1
    elif change == "label":
        parts[2].labels[3] = 1 - parts[2].labels[3]
    else:
        parts = parts[1], parts[0], parts[2]
    assert fingerprint(parts) != before


def test_statistics_are_those_of_numpy_and_std_is_never_0() -> None:
    images = pixels(2500, 3, 5, 4)  # more than one chunk
    images[:, 1] = 7
    mean, std = statistics(images)
    assert mean == pytest.approx(images.mean(axis=(0, 2, 3)))
    assert std[0] == pytest.approx(images[:, 0].std())
    assert std[1] == 1


# --- idx files: MNIST and Fashion-MNIST -------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


IDX = {
    f"{part}-{kind}-idx{dimensions}-ubyte.gz": content
    for part, labels in (("train", np.arange(100) % 10), ("t10k", np.arange(20) % 10))
    for kind, dimensions, content in (
        ("images", 3, idx(pixels(len(labels), 28, 28))),
        ("labels", 1, idx(labels)),
    )
}


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """official(name, files, **changes): from now on these are the official archives of a known set."""

    def register(name: str, files: Mapping[str, bytes], **changes: Any) -> None:
        md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
        entry: Known = replace(SETS[name], md5=md5, **changes)
        monkeypatch.setattr("nas.data.loading.SETS", {**SETS, name: entry})

    return register


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def gzipped(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: gzip.compress(content, mtime=0) for name, content in files.items()}


def unpacked(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name.removesuffix(".gz"): content for name, content in files.items()}


def test_fashion_mnist(real_data: Path) -> None:
    data = load(config("fashion-mnist", dir=real_data))
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.input_shape == (1, 28, 28)
    assert [data.classes[label] for label in data.test.labels[:3]] == ["Ankle boot", "Pullover", "Trouser"]
    assert np.bincount(data.validation.labels).tolist() == [500] * 10
    assert data.mean[0] == pytest.approx(72.94, abs=0.3)  # that of all 60,000
    assert data.std[0] == pytest.approx(90.02, abs=0.3)


def test_idx_files_in_their_own_folder_or_not_gzipped_or_not(tmp_path: Path, official: Callable[..., None]) -> None:
    official("mnist", gzipped(IDX))
    write(tmp_path / "a" / "mnist", gzipped(IDX))
    write(tmp_path / "b", gzipped(IDX))
    write(tmp_path / "c", unpacked(IDX))
    sets = [load(config("mnist", dir=tmp_path / folder)) for folder in "abc"]
    assert len({data.fingerprint for data in sets}) == 1
    test = sets[0].test
    assert test is not None
    assert test.pixels.tobytes() == IDX["t10k-images-idx3-ubyte.gz"][16:]
    assert test.labels.tolist() == [*range(10), *range(10)]
    assert test.pixels.flags.writeable  # torch warns about what is not


def test_files_missing_from_the_given_folder_are_named_and_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: pytest.fail("downloaded"))
    write(tmp_path, dict.fromkeys(list(IDX)[:3], b""))
    message = refused("mnist", dir=tmp_path)
    assert message.startswith("data set 'mnist' lacks t10k-labels-idx1-ubyte.gz (looked in ")
    assert str(tmp_path / "mnist") in message
    assert "cifar-100-python.tar.gz" in refused("cifar100", dir=tmp_path)
    assert "no folder" in refused("mnist", dir=tmp_path / "nowhere")


def test_a_wrong_checksum_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, gzipped(IDX))
    message = refused("mnist", dir=tmp_path)
    assert "train-images-idx3-ubyte.gz" in message
    assert "f68b3c2dcbeaaa9fbdd348bbdeb94873" in message
    write(tmp_path, {"cifar-10-python.tar.gz": b"not it"})
    assert "cifar-10-python.tar.gz' is damaged or not the official file" in refused("cifar10", dir=tmp_path)


IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (IMAGES, IDX[LABELS + ".gz"], "begins 00000801, not 00000803"),
        (IMAGES, IDX[IMAGES + ".gz"][:-1], "78399 bytes of values, but its header says 100x28x28"),
        (IMAGES, IDX[IMAGES + ".gz"] + b"\0", "78401 bytes of values"),
        (IMAGES, IDX[IMAGES + ".gz"][:9], "shorter than its header"),
        (IMAGES, b"", "begins , not 00000803"),
        (LABELS, idx(np.arange(99) % 10), "100 training images but 99 labels"),
        (LABELS, idx(np.arange(100) % 11), "labels go from 0 to 10, but there are 10 classes"),
        (LABELS, idx(np.arange(100) % 9), "class '9' has no training images"),
        (IMAGES, idx(pixels(0, 28, 28)), "0 training images but 100 labels"),
        (IMAGES, idx(pixels(100, 3, 28)), "images must be at least 4x4 pixels, got 28x3"),
        (IMAGES, idx(pixels(100, 28, 27)), "training images are 27x28 with 1 channel, test 28x28 with 1"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, file: str, content: bytes, words: str) -> None:
    message = refused("mnist", dir=write(tmp_path, {**unpacked(IDX), file: content}))
    assert words in message


def test_damaged_gzip_is_refused(tmp_path: Path, official: Callable[..., None]) -> None:
    files = gzipped(IDX)
    files[f"{IMAGES}.gz"] = files[f"{IMAGES}.gz"][:-20]
    official("mnist", files)
    assert f"cannot read '{tmp_path / IMAGES}.gz'" in refused("mnist", dir=write(tmp_path, files))


# --- CIFAR ------------------------------------------------------------------------------------------------------


def cifar_batch(count: int, key: bytes = b"labels") -> dict[bytes, Any]:
    return {key: [i % 2 for i in range(count)], b"data": pixels(count, 3072), b"filenames": [b"a.png"] * count}


CIFAR = {
    **{f"data_batch_{i}": pickle.dumps(cifar_batch(4), protocol=2) for i in range(1, 6)},
    "test_batch": pickle.dumps(cifar_batch(6), protocol=2),
    "batches.meta": pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2),
}
CIFAR100 = {
    "train": pickle.dumps({**cifar_batch(20, b"fine_labels"), b"coarse_labels": [0] * 20}, protocol=2),
    "test": pickle.dumps({**cifar_batch(6, b"fine_labels"), b"coarse_labels": [0] * 6}, protocol=2),
    "meta": pickle.dumps({b"fine_label_names": [b"cat", b"dog"], b"coarse_label_names": [b"pet"]}, protocol=2),
}


def tar(files: Mapping[str, bytes], folder: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def python2_batch(count: int) -> tuple[bytes, np.ndarray]:
    """(a batch as Python 2's pickle wrote the official ones, its pixels); its array is column-first."""
    data = pixels(count, 3072)
    content = data.tobytes(order="F")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + (b"M" + struct.pack("<H", count) + b"M\x00\x0c\x86")
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + (b"\x88T" + struct.pack("<I", len(content)) + content + b"tb")
    )
    labels = b"](" + b"".join(b"K" + bytes([i % 2]) for i in range(count)) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + labels + b"u.", data


def test_cifar10_as_folder_and_as_archive(tmp_path: Path, official: Callable[..., None]) -> None:
    archive = tar({"readme.html": b"hello", **CIFAR}, "cifar-10-batches-py")
    official("cifar10", {"cifar-10-python.tar.gz": archive})
    write(tmp_path / "a" / "cifar10" / "cifar-10-batches-py", CIFAR)
    write(tmp_path / "b" / "cifar-10-batches-py", CIFAR)
    write(tmp_path / "c", CIFAR)
    write(tmp_path / "d", {"cifar-10-python.tar.gz": archive})
    write(tmp_path / "e" / "cifar10", {"cifar-10-python.tar.gz": archive})
    sets = [load(config("cifar10", dir=tmp_path / folder)) for folder in "abcde"]
    assert len({data.fingerprint for data in sets}) == 1
    data = sets[0]
    assert data.test is not None
    assert (data.classes, data.input_shape) == (("cat", "dog"), (3, 32, 32))
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 6)
    expected = pickle.loads(CIFAR["test_batch"])[b"data"]
    assert np.array_equal(data.test.pixels.reshape(6, 3072), expected)
    assert data.augmentations == ("crop", "flip")
    assert data.test.pixels.flags.writeable
    assert not (tmp_path / "d" / "cifar-10-batches-py").exists()  # read, not unpacked


def test_cifar100_learns_its_fine_labels(tmp_path: Path, official: Callable[..., None]) -> None:
    official("cifar100", {"cifar-100-python.tar.gz": tar(CIFAR100, "cifar-100-python")})
    write(tmp_path / "cifar-100-python", CIFAR100)
    data = load(config("cifar100", dir=tmp_path))
    assert data.classes == ("cat", "dog")
    assert set(data.train.labels) == {0, 1}
    assert data.coarse == (0, 0)  # both are pets


def test_cifar100_knows_the_super_class_of_each_class(tmp_path: Path, official: Callable[..., None]) -> None:
    fine = [0, 1, 2, 3] * 5
    table = {**cifar_batch(20, b"fine_labels"), b"fine_labels": fine, b"coarse_labels": [[7, 3, 7, 3][i] for i in fine]}
    names = [b"cod", b"rose", b"trout", b"lily"]
    files = {**CIFAR100, "train": pickle.dumps(table), "meta": pickle.dumps({b"fine_label_names": names})}
    files["test"] = pickle.dumps({**table, b"filenames": []})
    official("cifar100", {"cifar-100-python.tar.gz": tar(files, "cifar-100-python")})
    write(tmp_path / "cifar-100-python", files)
    assert load(config("cifar100", dir=tmp_path)).coarse == (1, 0, 1, 0)


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    content, data = python2_batch(300)
    read = load(config("cifar10", dir=write(tmp_path, {**CIFAR, "test_batch": content})))
    assert read.test is not None
    assert np.array_equal(read.test.pixels.reshape(300, 3072), data)


class Malicious:
    """Writes a file when a pickle of it is loaded by a trusting unpickler."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("where", ["data", "labels", "beside"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_malicious_pickle_is_refused_and_not_executed(
    tmp_path: Path, official: Callable[..., None], where: str, packed: bool
) -> None:
    target = tmp_path / "executed"
    batch = cifar_batch(4)
    batch[where.encode()] = Malicious(target)
    payload = pickle.dumps(batch, protocol=2)
    files = {**CIFAR, "data_batch_3": payload}
    archive = {"cifar-10-python.tar.gz": tar(files, "cifar-10-batches-py")}
    official("cifar10", archive)
    message = refused("cifar10", dir=write(tmp_path / "set", archive if packed else files))
    assert "data_batch_3' is refused: it asks for " in message
    assert "mkdir" in message
    assert not target.exists()
    pickle.loads(payload)
    assert target.exists()  # the payload is a real one


@pytest.mark.parametrize(
    "name", ["builtins eval", "builtins getattr", "numpy load", "numpy.core.multiarray scalar", "numpy array"]
)
def test_a_pickle_can_name_nothing_but_what_cifar_needs(tmp_path: Path, name: str) -> None:
    payload = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."
    message = refused("cifar10", dir=write(tmp_path, {**CIFAR, "data_batch_1": payload}))
    assert f"it asks for {name.replace(' ', '.')}, which no CIFAR file needs" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CIFAR["data_batch_1"][:-50], "is damaged"),
        (b"", "is damaged"),
        (b"hello", "is damaged"),
        (pickle.dumps([1, 2], protocol=2), "holds a list, not a table"),
        (pickle.dumps({}, protocol=2), "no uint8 data of (N, 3072)"),
        (pickle.dumps({**cifar_batch(4), b"data": pixels(4, 100)}, protocol=2), "no uint8 data of (N, 3072)"),
        (pickle.dumps({**cifar_batch(4), b"data": np.zeros((4, 3072))}, protocol=2), "array is not uint8"),
        (pickle.dumps({**cifar_batch(4), b"labels": [0, 1]}, protocol=2), "4 images but 2 labels"),
        (pickle.dumps({**cifar_batch(2), b"labels": ["a", "b"]}, protocol=2), "no list of labels"),
        (pickle.dumps({**cifar_batch(4), b"labels": [0, 1, 2, 1]}, protocol=2), "there are 2 classes"),
    ],
)
def test_damaged_cifar_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in refused("cifar10", dir=write(tmp_path, {**CIFAR, "data_batch_2": content}))


def test_an_incomplete_cifar_set_is_refused(tmp_path: Path, official: Callable[..., None]) -> None:
    rest = {name: content for name, content in CIFAR.items() if name != "data_batch_4"}
    assert "lacks data_batch_4 (looked in" in refused("cifar10", dir=write(tmp_path / "a", rest))
    archive = {"cifar-10-python.tar.gz": tar(rest, "cifar-10-batches-py")}
    official("cifar10", archive)
    assert "lacks data_batch_4" in refused("cifar10", dir=write(tmp_path / "b", archive))
    broken = {"cifar-10-python.tar.gz": archive["cifar-10-python.tar.gz"][:-3000]}
    official("cifar10", broken)
    refused("cifar10", dir=write(tmp_path / "b", broken))


# --- .npz -------------------------------------------------------------------------------------------------------

LABELS40 = np.arange(40) % 2


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((40, 8, 6), (1, 8, 6)),
        ((40, 8, 6, 3), (3, 8, 6)),
        ((40, 8, 6, 1), (1, 8, 6)),
        ((40, 4, 8, 6), (4, 8, 6)),
        ((40, 3, 8, 6), (3, 8, 6)),
    ],
)
def test_npz_shapes(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    images = pixels(*shape)
    data = load(config(npz(tmp_path / "pets.npz", images=images, labels=LABELS40)))
    assert (data.name, data.input_shape, data.classes) == ("pets", expected, ("0", "1"))
    assert data.augmentations == ("crop",)
    if len(shape) == 4 and shape[1] != expected[0]:
        images = images.transpose(0, 3, 1, 2)
    original = Images(images.reshape(40, *expected), LABELS40)
    assert data.test is not None
    assert rows(original) == sorted(rows(data.train) + rows(data.validation) + rows(data.test))
    assert data.train.pixels.flags.c_contiguous


def test_npz_of_keras_has_an_official_test_split(tmp_path: Path) -> None:
    test = pixels(6, 8, 8, 3)
    path = npz(
        tmp_path / "keras.npz",
        x_train=pixels(40, 8, 8, 3),
        y_train=LABELS40[:, None].astype(np.uint8),  # as Keras writes CIFAR's
        x_test=test,
        y_test=np.array([0, 1, 0, 1, 0, 1]),
        classes=np.array(["cat", "dog"]),
    )
    data = load(config(path))
    assert data.test is not None
    assert data.classes == ("cat", "dog")
    assert np.array_equal(data.test.pixels, test.transpose(0, 3, 1, 2))
    assert (len(data.train), len(data.validation)) == (32, 8)


def test_npz_with_texts_for_labels(tmp_path: Path) -> None:
    images = pixels(40, 8, 8)
    texts = np.array(["dog", "cat"])[LABELS40]
    by_name = load(config(npz(tmp_path / "a.npz", images=images, labels=texts)))
    assert by_name.classes == ("cat", "dog")
    given_order = load(config(npz(tmp_path / "b.npz", images=images, labels=texts, classes=["dog", "cat"])))
    assert given_order.classes == ("dog", "cat")
    numbers = load(config(npz(tmp_path / "c.npz", images=images, labels=LABELS40, classes=["dog", "cat"])))
    assert given_order.fingerprint == numbers.fingerprint


def test_npz_with_floats_from_0_to_1(tmp_path: Path) -> None:
    images = pixels(40, 8, 8)
    of_bytes = load(config(npz(tmp_path / "a.npz", images=images, labels=LABELS40)))
    for dtype in (np.float32, np.float64):
        of_floats = load(config(npz(tmp_path / "b.npz", images=(images / 255).astype(dtype), labels=LABELS40)))
        assert of_floats.fingerprint == of_bytes.fingerprint


GOOD = {"images": pixels(40, 8, 8), "labels": LABELS40}
WITH_NAN = np.where(np.arange(40)[:, None, None] == 3, np.nan, np.zeros((40, 8, 8)))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": pixels(40, 3, 8, 3)}, "the channels may be second or last"),
        ({"images": pixels(40, 8, 8, 2)}, "no place for 1, 3 or 4 channels"),
        ({"images": pixels(40, 8)}, "have the shape (40, 8)"),
        ({"images": GOOD["images"].astype(np.int64)}, "must be uint8, or floats from 0 to 1, got int64 from "),
        ({"images": GOOD["images"].astype(np.float32)}, "got float32 from 0 to 255"),
        ({"images": GOOD["images"] / 255 - 0.5}, "got float64 from -0.5 to 0.5"),
        ({"images": WITH_NAN}, "hold NaN"),
        ({"images": np.full((40, 8, 8), "x")}, "values of <U1"),
        ({"images": pixels(39, 8, 8)}, "39 training images but 40 labels"),
        ({"images": pixels(40, 3, 9)}, "images must be at least 4x4 pixels, got 9x3"),
        ({"images": pixels(0, 8, 8), "labels": LABELS40[:0]}, "no training images"),
        ({"labels": LABELS40 + 1}, "must be 0 to 1, a number for each class, got 1, 2"),
        ({"labels": LABELS40 * 7 - 1}, "got -1, 6"),
        ({"labels": LABELS40 * 0}, "one class only (0)"),
        ({"labels": LABELS40.astype(float)}, "must be integers or texts, got float64"),
        ({"labels": np.eye(2)[LABELS40]}, "one label for each image, got the shape (40, 2)"),
        ({"labels": np.array([None] * 40)}, "it holds Python objects"),
        ({"classes": ["a", "b", "c"]}, "class 'c' has no training images"),
        ({"classes": ["a"]}, "must be 0 to 0, a number for each class, got 0, 1"),
        ({"classes": ["a", "a"]}, "must be a list of different texts"),
        ({"classes": ["a", "b"], "labels": np.array(["a", "c"])[LABELS40]}, "hold c, not among the classes a, b"),
        ({"x_test": pixels(3, 8, 8)}, "holds images, labels, x_test; expected images, labels or x_train,"),
    ],
)
def test_npz_files_that_cannot_be_meant_are_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    message = refused(npz(tmp_path / "bad.npz", **{**GOOD, **arrays}))
    assert words in message
    assert "bad" in message


def test_npz_test_labels_must_be_known_from_training(tmp_path: Path) -> None:
    keras = {"x_train": GOOD["images"], "y_train": LABELS40, "x_test": pixels(4, 8, 8)}
    assert "y_test of" in refused(npz(tmp_path / "a.npz", **keras, y_test=[0, 1, 2, 1]))
    assert "class '1' has no test images" in refused(npz(tmp_path / "b.npz", **keras, y_test=[0, 0, 0, 0]))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and then nothing", pickle.dumps([1])])
def test_files_that_are_not_npz_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    assert "cannot read" in refused(tmp_path / "bad.npz")


def test_damaged_npz_files_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "bad.npz", **GOOD)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert "cannot read" in refused(path)
    with path.open("wb") as file:
        np.save(file, GOOD["images"])
    assert "a single array" in refused(path)


# --- folders ----------------------------------------------------------------------------------------------------


def picture(path: Path, *shape: int, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))
    (image if mode is None else image.convert(mode)).save(path)
    return path


def pictures(root: Path, *shape: int, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> Path:
    for name in classes:
        for i in range(count):
            picture(root / name / f"{i}.png", *shape)
    return root


def test_folder_of_grey_images(tmp_path: Path) -> None:
    data = load(config(pictures(tmp_path / "pets", 8, 6)))
    assert (data.name, data.classes, data.input_shape) == ("pets", ("cat", "dog"), (1, 8, 6))
    assert data.augmentations == ("crop",)
    expected = [np.asarray(Image.open(f)).tobytes() + b"\0" for f in (tmp_path / "pets" / "cat").iterdir()]
    assert data.test is not None
    found = rows(data.train) + rows(data.validation) + rows(data.test)
    assert set(expected) < set(found)
    assert len(found) == 20


def test_folder_with_one_colour_image_is_in_colour(tmp_path: Path) -> None:
    pictures(tmp_path, 8, 8)
    picture(tmp_path / "cat" / "colour.bmp", 8, 8, 3)
    picture(tmp_path / "cat" / "transparent.PNG", 8, 8, 4)
    picture(tmp_path / "dog" / "palette.webp", 8, 8, 3)
    picture(tmp_path / "dog" / "photo.jpeg", 8, 8, 3)
    picture(tmp_path / "dog" / "photo.jpg", 8, 8)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").write_text("about these images")
    data = load(config(tmp_path))
    assert data.input_shape == (3, 8, 8)
    assert data.test is not None
    assert len(data.train) + len(data.validation) + len(data.test) == 25
    grey = data.train_and_validation().pixels
    assert (grey[:, 0] == grey[:, 1]).all(axis=(1, 2)).sum() >= 10  # the grey ones are still grey


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    pictures(tmp_path / "train", 8, 8)
    pictures(tmp_path / "test", 8, 8, count=2)
    data = load(config(tmp_path))
    assert data.test is not None
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    first = np.asarray(Image.open(tmp_path / "test" / "cat" / "0.png"))
    assert np.array_equal(data.test.pixels[0, 0], first)


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    assert load(config(pictures(tmp_path, 8, 8, classes=("train", "test")))).classes == ("test", "train")


def test_folder_resized(tmp_path: Path) -> None:
    pictures(tmp_path, 8, 8)
    odd = picture(tmp_path / "cat" / "odd.png", 12, 9)
    message = refused(tmp_path)
    assert str(odd) in message
    assert "9x12; set data.size" in message
    assert load(config(tmp_path, size=5)).input_shape == (1, 5, 5)
    assert "images must be at least 4x4 pixels, got 3x3" in refused(tmp_path, size=3)


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))
    for name in ("cat", "dog"):
        for i in range(10):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(stripes).save(tmp_path / name / f"{i}.png")
    small = load(config(tmp_path, size=8)).train.pixels
    assert small[..., 2:-2].min() > 110  # without antialiasing: 0 or 255
    assert small[..., 2:-2].max() < 145


def test_photographs_are_read_upright(tmp_path: Path) -> None:
    pictures(tmp_path, 8, 6)
    image = Image.fromarray(pixels(6, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    image.save(tmp_path / "cat" / "turned.png", exif=exif)
    assert load(config(tmp_path)).input_shape == (1, 8, 6)


def _truncate(root: Path) -> None:
    path = root / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:60])


def _many_frames(root: Path) -> None:
    frames = [Image.fromarray(pixels(8, 8)) for _ in range(3)]
    frames[0].save(root / "cat" / "moving.png", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "cannot read image '{root}/cat/3.png'"),
        (lambda root: (root / "cat" / "x.png").write_bytes(b""), "cannot read image '{root}/cat/x.png'"),
        (lambda root: (root / "bird").mkdir(), "class folder '{root}/bird' is empty"),
        (lambda root: (root / "cat" / "a.tif").write_bytes(b"x"), "'{root}/cat' holds the file 'a.tif'"),
        (lambda root: (root / "cat" / "more").mkdir(), "'{root}/cat' holds the folder 'more'"),
        (lambda root: picture(root / "x.png", 8, 8), "holds 'x.png' outside of a class"),
        (_many_frames, "'{root}/cat/moving.png' is an animation"),
        (
            lambda root: Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "cat" / "deep.png"),
            "'{root}/cat/deep.png' has pixels of mode I;16",
        ),
        (lambda root: pictures(root, 8, 8, classes=("bird",), count=1), "class 'bird' has 1 image, too few"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(pictures(tmp_path, 8, 8))
    assert words.format(root=tmp_path) in refused(tmp_path)


def test_folders_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    assert "holds no folder of a class" in refused(tmp_path)
    assert "one class only (cat)" in refused(pictures(tmp_path / "a", 8, 8, classes=("cat",)))
    pictures(tmp_path / "b" / "train", 8, 8)
    pictures(tmp_path / "b" / "test", 8, 8, classes=("cat", "fish"))
    assert "do not hold the same classes: dog, fish" in refused(tmp_path / "b")
    pictures(tmp_path / "c" / "train", 8, 8)
    pictures(tmp_path / "c" / "val", 8, 8)
    assert "holds the folder 'cat'; expected class/image.png" in refused(tmp_path / "c")


# --- downloads --------------------------------------------------------------------------------------------------


class Server:
    """An HTTP server of some files on this machine; `asked` lists what was asked for."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        asked = self.asked = list[str]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                content = files.get(self.path.removeprefix("/good/"))
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.01))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server(gzipped(IDX))
    yield running
    running.close()


@pytest.mark.parametrize("progress", [False, True])
def test_a_known_set_is_downloaded_once_into_the_cache(
    server: Server, official: Callable[..., None], tmp_path: Path, progress: bool, capfd: Any
) -> None:
    official("mnist", gzipped(IDX), urls=(f"{server.url}/bad/", f"{server.url}/good/"))
    data = load(config("mnist"), progress=progress)
    assert len(server.asked) == 8  # four files, each asked of both mirrors
    assert ("100%" in capfd.readouterr().err) == progress
    assert load(config("mnist")).fingerprint == data.fingerprint
    assert len(server.asked) == 8
    assert sorted(f.name for f in (tmp_path / "cache" / "nas" / "mnist").iterdir()) == sorted(IDX)


def test_a_download_with_a_wrong_checksum_is_refused_and_not_kept(
    server: Server, official: Callable[..., None], tmp_path: Path
) -> None:
    official("mnist", IDX, urls=(f"{server.url}/good/",))
    message = refused("mnist")
    assert "train-images-idx3-ubyte.gz: wrong checksum); if you have its files" in message
    assert list((tmp_path / "cache" / "nas" / "mnist").iterdir()) == []


def test_a_failed_download_says_how_to_do_without(server: Server, official: Callable[..., None]) -> None:
    official("mnist", gzipped(IDX), urls=(f"{server.url}/bad/", "http://127.0.0.1:1/"))
    message = refused("mnist")
    assert "HTTP status 404" in message
    assert "ConnectionError" in message
    assert "give their folder with --data-dir" in message


def test_a_damaged_cache_is_downloaded_again(server: Server, official: Callable[..., None], tmp_path: Path) -> None:
    official("mnist", gzipped(IDX), urls=(f"{server.url}/good/",))
    before = load(config("mnist"))
    (tmp_path / "cache" / "nas" / "mnist" / f"{IMAGES}.gz").write_bytes(b"cut off")
    assert load(config("mnist")).fingerprint == before.fingerprint
    assert server.asked.count(f"/good/{IMAGES}.gz") == 2


# --- augmentation -----------------------------------------------------------------------------------------------

NAMES = ("crop", "flip", "cutout")
shapes = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(4, 20), st.integers(4, 20))
dtypes = st.sampled_from([torch.uint8, torch.float32, torch.bfloat16])
seeds = st.integers(0, 2**31)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Pixels from 1 to 255: where there is a 0 afterwards, augmentation put it there."""
    return torch.randint(1, 256, shape, generator=generator(1), dtype=torch.int64).to(dtype)


@quick
@given(shape=shapes, dtype=dtypes, seed=seeds, names=st.sets(st.sampled_from(NAMES)), last=st.booleans())
def test_augment_keeps_shape_type_layout_and_its_input_and_is_seeded(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, names: set[str], last: bool
) -> None:
    images = batch(shape, dtype)
    if last:
        images = images.to(memory_format=torch.channels_last)
    before = images.clone()
    result = augment(images, names, generator(seed))
    assert (result.shape, result.dtype) == (images.shape, dtype)
    assert torch.equal(images, before)
    assert torch.equal(result, augment(images, tuple(names)[::-1], generator(seed)))
    for layout in (torch.contiguous_format, torch.channels_last):
        if images.is_contiguous(memory_format=layout):
            assert result.is_contiguous(memory_format=layout)


@quick
@given(shape=shapes, seed=seeds)
def test_a_crop_is_a_shift_by_at_most_an_eighth(shape: tuple[int, ...], seed: int) -> None:
    images = batch(shape)
    _, _, height, width = shape
    most = max(1, min(height, width) // 8)
    padded = torch.nn.functional.pad(images, (most,) * 4)
    shifts = [padded[:, :, y : y + height, x : x + width] for y in range(2 * most + 1) for x in range(2 * most + 1)]
    result = augment(images, ["crop"], generator(seed))
    for i in range(shape[0]):
        assert any(torch.equal(result[i], shift[i]) for shift in shifts)


@quick
@given(shape=shapes, seed=seeds)
def test_a_flip_mirrors_an_image_or_leaves_it(shape: tuple[int, ...], seed: int) -> None:
    images = batch(shape)
    for before, after in zip(images, augment(images, ["flip"], generator(seed)), strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))


@quick
@given(shape=shapes, seed=seeds)
def test_a_cutout_is_one_square_in_all_channels(shape: tuple[int, ...], seed: int) -> None:
    images = batch(shape)
    side = max(1, min(shape[2:]) // 4)
    for before, after in zip(images, augment(images, ["cutout"], generator(seed)), strict=True):
        assert torch.equal(after[after != 0], before[after != 0])
        cut = (after == 0).nonzero()
        assert len(cut) == shape[1] * side * side
        assert (cut[:, 1].max() - cut[:, 1].min(), cut[:, 2].max() - cut[:, 2].min()) == (side - 1, side - 1)


def test_each_image_draws_for_itself_and_every_outcome_occurs() -> None:
    images = batch((1, 1, 8, 8)).repeat(400, 1, 1, 1)
    outcomes = {name: {row.numpy().tobytes() for row in augment(images, [name], generator(0))} for name in NAMES}
    assert len(outcomes["crop"]) == 9  # shifts by -1, 0, 1 each way
    assert len(outcomes["flip"]) == 2
    assert len(outcomes["cutout"]) == 49  # a square of 2 in 8


@pytest.mark.parametrize(("size", "most"), [(8, 1), (28, 3), (32, 4)])
def test_how_far_a_crop_shifts(size: int, most: int) -> None:
    marked = torch.zeros(600, 1, size, size, dtype=torch.uint8)
    marked[:, :, size // 2, size // 2] = 1
    where = augment(marked, ["crop"], generator(0)).nonzero()[:, 2:] - size // 2
    assert (int(where.min()), int(where.max())) == (-most, most)


def test_unknown_augmentations_are_refused_before_anything_is_drawn() -> None:
    source = generator(0)
    with pytest.raises(ValueError, match="unknown augmentation rotate; valid: crop, flip, cutout"):
        augment(batch((1, 1, 8, 8)), ["crop", "rotate"], source)
    assert torch.equal(source.get_state(), generator(0).get_state())


def test_every_set_comes_with_augmentations_that_exist() -> None:
    assert all(set(entry.augmentations) <= set(NAMES) for entry in SETS.values())
    assert isinstance(load(DataConfig()), Data)
