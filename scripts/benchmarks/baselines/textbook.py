#!/usr/bin/env python
"""Trains a textbook network for SECONDS and prints one JSON line: what a user gets without a search.

    python scripts/benchmarks/baselines/textbook.py resnet20 --data fashion-mnist --data-dir DATA --seconds 600
    python scripts/benchmarks/baselines/textbook.py vgg --data cifar10 --data-dir DATA --seconds 600 --seed 1
    python scripts/benchmarks/baselines/textbook.py resnet8 --data photos --test photos-new --size 32 --seconds 240

Plain PyTorch on the CPU; nothing of this project is imported. It trains on all given training images, without a
validation split. The recipe is the usual one: SGD with Nesterov momentum, one-cycle learning rate, random crops and
flips, label smoothing. The time is that of the whole process: start, imports, loading, training and scoring.

Networks: ResNets for small images (He et al. 2016, arXiv:1512.03385, section 4.2) with 1x1 convolutions as
projections, and a small VGG with batch norm. `-w8` has width 8 instead of 16; `-s2` has stride 2 in the stem.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
WARMUP = 0.25
"""Share of the training time in which the learning rate rises."""
LABEL_SMOOTHING = 0.1
BATCH, SMALL_BATCH, SMALL_SET = 128, 32, 5_000
SCORING_BATCH = 500
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GREY_MODES = ("1", "L", "LA")
EXIT_SECONDS = 0.5
"""What Python takes to end, with a reserve."""


# ------------------------------------------------------------------------------------------------ networks


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(inputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            convolution(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )
        is_same_shape = stride == 1 and inputs == outputs
        projection = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if is_same_shape else projection

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.body(images) + self.shortcut(images))


class ResNet(nn.Module):
    """A stem, three stages of basic blocks, global average pooling, a linear layer."""

    def __init__(self, blocks: int, width: int, stride: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(channels, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            for block in range(blocks):
                stages.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(images)).mean((2, 3)))
        return logits


class VGG(nn.Module):
    """A convolution, three blocks of two convolutions with a pooling in each, global max pooling, a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(channels, 32), nn.BatchNorm2d(32), nn.GELU()]
        inputs = 32
        for width in (64, 128, 128):
            layers += [convolution(inputs, width), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.GELU()]
            layers += [convolution(width, width), nn.BatchNorm2d(width), nn.GELU()]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images).amax((2, 3)))
        return logits


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet20": lambda channels, classes: ResNet(3, 16, 1, channels, classes),
    "resnet20-w8": lambda channels, classes: ResNet(3, 8, 1, channels, classes),
    "resnet20-w8-s2": lambda channels, classes: ResNet(3, 8, 2, channels, classes),
    "resnet8": lambda channels, classes: ResNet(1, 16, 1, channels, classes),
    "resnet8-s2": lambda channels, classes: ResNet(1, 16, 2, channels, classes),
    "vgg": VGG,
}
"""By name: (channels of the images, classes) -> network."""


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# ---------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Images:
    """Pixels uint8 (N, C, H, W) with their labels int64 (N)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """Training and test images. `classes` are the names of a folder's classes, None for a known set."""

    train: Images
    test: Images
    classes: tuple[str, ...] | None = None

    @property
    def class_count(self) -> int:
        return int(self.train.labels.max()) + 1


def read_data(name: str, directory: Path | None, test: Path | None, size: int) -> Data:
    """A known set in `directory`, or the folder `name` of class/image files with the folder `test`."""
    if name in ("fashion-mnist", "cifar10"):
        if directory is None:
            sys.exit(f"--data {name} needs --data-dir: the folder that holds {name}/")
        folder = directory / name if (directory / name).is_dir() else directory
        return read_idx(folder) if name == "fashion-mnist" else read_cifar10(folder)
    if test is None:
        sys.exit(f"--data {name} needs --test: a folder of new images, with the same classes")
    classes = class_names(Path(name))
    if class_names(test) != classes:
        sys.exit(f"{name} has the classes {', '.join(classes)}; {test} has {', '.join(class_names(test))}")
    mode = "L" if all(is_grey(file) for file, _ in labelled_files(Path(name))) else "RGB"
    return Data(read_folder(Path(name), size, mode), read_folder(test, size, mode), classes)


def read_idx(folder: Path) -> Data:
    """The four official files of Fashion-MNIST."""
    splits = []
    for split in ("train", "t10k"):
        pixels = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
        count, height, width = np.frombuffer(pixels, ">i4", 3, 4)
        array = np.frombuffer(pixels, np.uint8, offset=16).reshape(count, 1, height, width)
        splits.append(images_of(array, np.frombuffer(labels, np.uint8, offset=8)))
    train, test = splits
    return Data(train, test)


def read_cifar10(folder: Path) -> Data:
    """The official python layout; its files are pickles, so take them from a source that you trust."""
    batches = folder / "cifar-10-batches-py"
    splits = []
    for names in ([f"data_batch_{number}" for number in range(1, 6)], ["test_batch"]):
        tables = [pickle.loads((batches / name).read_bytes(), encoding="bytes") for name in names]
        array = np.concatenate([table[b"data"] for table in tables]).reshape(-1, 3, 32, 32)
        splits.append(images_of(array, np.concatenate([table[b"labels"] for table in tables])))
    train, test = splits
    return Data(train, test)


def class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def labelled_files(folder: Path) -> list[tuple[Path, int]]:
    """The image files of a folder of class/image files, with the number of their class."""
    return [
        (file, number)
        for number, name in enumerate(class_names(folder))
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]


def is_grey(file: Path) -> bool:
    with Image.open(file) as image:
        return image.mode in GREY_MODES


def read_folder(folder: Path, size: int, mode: str) -> Images:
    """All images of a folder, resized to `size` x `size` pixels."""
    arrays, labels = [], []
    for file, number in labelled_files(folder):
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert(mode)
            array = np.asarray(upright.resize((size, size), Image.Resampling.BICUBIC))
        arrays.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        labels.append(number)
    return images_of(np.stack(arrays), np.array(labels))


def images_of(pixels: np.ndarray, labels: np.ndarray) -> Images:
    tensor = torch.tensor(pixels).contiguous(memory_format=torch.channels_last)
    return Images(tensor, torch.tensor(labels.astype(np.int64)))


def augmented(pixels: Tensor, names: list[str]) -> Tensor:
    """Each image shifted by up to an eighth of its side, black beyond the border, and mirrored or not."""
    count, _, height, width = pixels.shape
    if "crop" in names:
        pad = max(1, min(height, width) // 8)
        windows = F.pad(pixels, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
        down, right = torch.randint(2 * pad + 1, (2, count))
        pixels = windows[torch.arange(count), :, down, right]
    if "flip" in names:
        pixels = torch.where(torch.rand(count, 1, 1, 1) < 0.5, pixels.flip(3), pixels)
    return pixels


# ------------------------------------------------------------------------------------------------ training


class Trainer:
    """One network with its optimizer, arithmetic and normalisation."""

    def __init__(self, network: nn.Module, train: Images, augment: list[str]) -> None:
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.augment = augment
        self.bfloat16 = False
        pixels = train.pixels[:10_000].float()
        self.mean = pixels.mean((0, 2, 3)).view(1, -1, 1, 1)
        self.std = pixels.std((0, 2, 3)).clamp(min=1.0).view(1, -1, 1, 1)
        decayed = [parameter for parameter in network.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in network.parameters() if parameter.dim() <= 1]  # norms and biases
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True)

    def logits(self, pixels: Tensor) -> Tensor:
        images = (pixels.float() - self.mean) / self.std
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last)).float()
        return logits

    def step(self, pixels: Tensor, labels: Tensor, progress: float) -> None:
        """One step; `progress`, 0 to 1, is the share of the training time that is gone."""
        rising, falling = 0.05 + 0.95 * progress / WARMUP, (1 - progress) / (1 - WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * max(0.0, min(rising, falling))
        loss = F.cross_entropy(self.logits(augmented(pixels, self.augment)), labels, label_smoothing=LABEL_SMOOTHING)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.inference_mode()
    def right(self, images: Images) -> int:
        """How many of the images get their label."""
        self.network.eval()
        batches = zip(torch.split(images.pixels, SCORING_BATCH), torch.split(images.labels, SCORING_BATCH), strict=True)
        count = sum(int((self.logits(pixels).argmax(1) == labels).sum()) for pixels, labels in batches)
        self.network.train()
        return count


def process_seconds() -> float:
    """Seconds since this process began."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError):
        return time.process_time()  # not Linux: the processor's seconds are about as many until here


def seconds_of(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def has_native_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def is_bfloat16_faster(network: nn.Module, train: Images, augment: list[str], batch: int, steps: int = 5) -> bool:
    """Times some steps of a copy of the network in float32 and in bfloat16."""
    seconds = []
    for bfloat16 in (False, True):
        trainer = Trainer(copy.deepcopy(network), train, augment)
        trainer.bfloat16 = bfloat16
        pixels, labels = train.pixels[:batch], train.labels[:batch]
        trainer.step(pixels, labels, 0.0)
        seconds.append(min(seconds_of(lambda: trainer.step(pixels, labels, 0.0)) for _ in range(steps)))  # noqa: B023
    return seconds[1] < seconds[0]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data", required=True, help="fashion-mnist, cifar10 or a folder of class/image files")
    parser.add_argument("--data-dir", type=Path, help="the folder that holds fashion-mnist/ or cifar10/")
    parser.add_argument("--test", type=Path, help="a folder of test images, where --data is a folder")
    parser.add_argument("--size", type=int, default=32, help="pixels a side, where --data is a folder")
    parser.add_argument("--seconds", type=float, required=True, help="from the start of the process to its end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--augment", nargs="*", choices=("crop", "flip"), default=["crop", "flip"])
    return parser


def run(given: argparse.Namespace, began: float) -> dict[str, object]:
    """Loads, trains until everything can end `given.seconds` after `began` (monotonic clock), and scores."""
    torch.manual_seed(given.seed)
    torch.set_flush_denormal(True)  # weight decay drives weights there, and CPUs are slow with them
    data = read_data(given.data, given.data_dir, given.test, given.size)
    batch = min(len(data.train), BATCH if len(data.train) >= SMALL_SET else SMALL_BATCH)
    network = NETWORKS[given.network](data.train.pixels.shape[1], data.class_count)
    bfloat16 = has_native_bfloat16() and is_bfloat16_faster(network, data.train, given.augment, batch)
    trainer = Trainer(network, data.train, given.augment)
    trainer.bfloat16 = bfloat16

    sample = Images(data.test.pixels[:SCORING_BATCH], data.test.labels[:SCORING_BATCH])
    trainer.right(sample)  # the first batch is slower
    scoring = min(seconds_of(lambda: trainer.right(sample)) for _ in range(2)) * len(data.test) / len(sample)
    end = began + given.seconds - 1.2 * scoring - EXIT_SECONDS
    if end <= time.monotonic():
        missing = time.monotonic() - end
        sys.exit(f"--seconds {given.seconds:g} leaves no time to train: start and scoring take {missing:.1f} s longer")
    steps = train(trainer, data.train, batch, end)

    return {
        "network": given.network,
        "accuracy": trainer.right(data.test) / len(data.test),
        "steps": steps,
        "epochs": round(steps * batch / len(data.train), 2),
        "seconds": round(time.monotonic() - began, 2),
        "parameters": parameter_count(network),
        "batch": batch,
        "precision": "bfloat16" if bfloat16 else "float32",
        "threads": torch.get_num_threads(),
        "train_images": len(data.train),
        "test_images": len(data.test),
    }


def train(trainer: Trainer, images: Images, batch: int, end: float) -> int:
    """Trains until the time `end`; returns the number of steps."""
    begin = now = time.monotonic()
    steps, longest = 0, 0.0
    order = torch.empty(0, dtype=torch.int64)
    while now + longest < end:
        if len(order) < batch:
            order = torch.randperm(len(images))
        rows, order = order[:batch], order[batch:]
        trainer.step(images.pixels[rows], images.labels[rows], (now - begin) / (end - begin))
        steps, previous, now = steps + 1, now, time.monotonic()
        longest = max(0.9 * longest, now - previous)
    return steps


def main() -> None:
    began = time.monotonic() - process_seconds()
    print(json.dumps(run(arguments().parse_args(), began)), flush=True)


if __name__ == "__main__":
    main()
