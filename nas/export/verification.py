"""Verifies that each file gives the logits of the trained network, and measures its latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from nas.data.images import IGNORED
from nas.errors import VerificationError
from nas.export import files
from nas.export.facts import Check, Facts, Labels, Logits, Pixels, Predict
from nas.export.network import one_line

BATCH = 64
"""Images a step; more of them leave the cache and take longer each."""
BATCH_PIXELS = 2**22
"""Pixels a step, where images are large."""
MOST_IMAGES = 2000
"""Test images that files are compared on."""
MOST_LOGITS = 2**26
"""Logits that are held at once of each file: 256 MiB. Where each pixel has some, fewer images are compared."""
LATENCY_SECONDS = 0.2
"""How long each latency is measured."""
ROUNDS = 5
"""In so many parts."""

Key = TypeVar("Key")


def sample(pixels: Pixels, facts: Facts) -> Pixels:
    """The images that are compared: the first `MOST_IMAGES`, or fewer where their logits would be too many to hold."""
    return pixels[: min(MOST_IMAGES, max(2, MOST_LOGITS // math.prod(facts.logits_shape)))]


def expected_logits(trained: nn.Module, pixels: Pixels, facts: Facts) -> Logits:
    """Logits of the trained network; raises VerificationError when they are no logits."""
    logits = _predict_all(files.predict_with(trained, facts), pixels)
    wanted = (len(pixels), *facts.logits_shape)
    if logits.shape[: len(wanted)] != wanted:
        raise VerificationError(f"the trained network's logits have shape {logits.shape}, expected {wanted}")
    if not np.isfinite(logits).all():
        raise VerificationError("the trained network gives logits that are not finite")
    return logits


def verify(file: str, load: Callable[[], Predict], pixels: Pixels, expected: Logits, tolerance: float) -> Check:
    """Compare one file with the trained network on all `pixels`; raises VerificationError.

    Predictions that differ are reported but need no limit of their own: they can only differ where the
    trained network's two highest logits are closer than twice the difference, which is a tie within rounding.
    """
    try:
        logits = _predict_all(load(), pixels)
    except Exception as error:
        raise VerificationError(f"{file} cannot be loaded back and run: {one_line(error)}") from error
    if logits.shape != expected.shape:
        raise VerificationError(f"{file} gives logits of shape {logits.shape}, expected {expected.shape}")
    if not np.isfinite(logits).all():
        raise VerificationError(f"{file} gives logits that are not finite")
    difference = float(np.abs(logits.astype(np.float64) - expected).max())
    agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
    if difference > tolerance:
        raise VerificationError(
            f"{file} differs from the trained network by {difference:.3g} in a logit, allowed {tolerance:g} "
            f"({agreement:.2%} of {len(pixels)} predictions agree)"
        )
    return Check(file, difference, agreement, len(pixels))


def accuracies(logits: Logits, labels: Labels, heads: Sequence[str]) -> dict[str, float]:
    """Share of right predictions, 0 to 1, of each head; of labelled pixels, where labels are masks."""
    labels = labels[: len(logits)]  # see `sample`
    if labels.ndim == 3:
        return {heads[0]: float((logits.argmax(1) == labels)[labels != IGNORED].mean())}
    each = logits.reshape(*logits.shape[:2], -1).argmax(1) == labels[:, None]
    return {head: float(right) for head, right in zip(heads, each.mean(0), strict=True)}


def _predict_all(predict: Predict, pixels: Pixels) -> Logits:
    """Logits of all images: the first one alone, then batches, so that several batch sizes are tried."""
    batch = min(BATCH, max(1, BATCH_PIXELS // math.prod(pixels.shape[2:])))
    cuts = [0, *range(1, len(pixels), batch), len(pixels)]
    return np.concatenate([predict(pixels[begin:end]) for begin, end in pairwise(cuts)])


def latency(trained: nn.Module, folder: Path, pixels: Pixels, facts: Facts) -> dict[str, float]:
    """Median milliseconds for these images (N, C, H, W) on one CPU thread: trained network, then the files."""
    with one_thread():
        return in_turns(forms(trained, folder, pixels, facts))


def forms(trained: nn.Module, folder: Path, pixels: Pixels, facts: Facts) -> dict[str, Callable[[], object]]:
    """Inference on these pixels by the trained network and by the files in `folder`, on one CPU thread."""
    image = files.normalised(pixels, facts)
    program = files.load_pt2(folder / files.PT2)
    session = files.load_onnx(folder / files.ONNX, threads=1)
    return {
        "eager": lambda: trained(image),
        files.PT2: lambda: program(pixels),
        files.ONNX: lambda: session(pixels),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_turns(calls: Mapping[Key, Callable[[], object]]) -> dict[Key, float]:
    """Median milliseconds of each call, over `LATENCY_SECONDS` each, in rounds: some of each, then the next."""
    times: dict[Key, list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for number in range(ROUNDS):
            for key, call in calls.items():
                for _ in range(1 if number else 3):
                    call()
                own: list[float] = []
                while len(own) < 2 or sum(own) < LATENCY_SECONDS / ROUNDS:
                    begin = time.perf_counter()
                    call()
                    own.append(time.perf_counter() - begin)
                times[key] += own
    return {key: statistics.median(own) * 1e3 for key, own in times.items()}
