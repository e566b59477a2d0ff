"""The data sets that have a name: their files and the places of these files.

Checksums are the ones that their authors publish, or for MNIST, whose authors publish none, those that
torchvision verifies against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Known:
    """A set known by name.

    reader: which module reads it. urls: mirrors, tried in this order; each holds all files of `md5`.
    md5: official archive -> its checksum. folder: what the archive unpacks to (CIFAR only).
    classes: names, where the files do not hold them.
    """

    description: str
    augmentations: tuple[str, ...]
    reader: Literal["scikit-learn", "idx", "cifar"]
    urls: tuple[str, ...] = ()
    md5: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    classes: tuple[str, ...] = ()


_DIGITS = tuple("0123456789")
_TORONTO = ("https://cave.cs.toronto.edu/kriz/", "https://www.cs.toronto.edu/~kriz/")

SETS: Mapping[str, Known] = MappingProxyType(
    {
        "digits": Known(
            description="1,797 grey 8x8 images of digits, 10 classes; part of scikit-learn, no download",
            augmentations=("crop",),
            reader="scikit-learn",
            classes=_DIGITS,
        ),
        "mnist": Known(
            description="70,000 grey 28x28 images of digits, 10 classes; 11 MB",
            augmentations=("crop",),
            reader="idx",
            urls=(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
            md5={
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
            classes=_DIGITS,
        ),
        "fashion-mnist": Known(
            description="70,000 grey 28x28 images of clothes, 10 classes; 30 MB",
            augmentations=("flip",),  # shifts cost 1.4 points in a short training: the clothes are centred
            reader="idx",
            urls=(
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            ),
            md5={
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
            classes=(
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
        ),
        "cifar10": Known(
            description="60,000 colour 32x32 photographs, 10 classes; 163 MB",
            augmentations=("crop", "flip"),
            reader="cifar",
            urls=_TORONTO,
            md5={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
            folder="cifar-10-batches-py",
        ),
        "cifar100": Known(
            description="60,000 colour 32x32 photographs, 100 classes; 162 MB",
            augmentations=("crop", "flip"),
            reader="cifar",
            urls=_TORONTO,
            md5={"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
            folder="cifar-100-python",
        ),
    }
)


def known() -> Mapping[str, str]:
    """The sets that go by a name, and what each is in one line."""
    return {name: entry.description for name, entry in SETS.items()}
