"""Exports a trained network as safetensors, torch.export and ONNX, and compares each loaded file with it.

`export` writes one folder::

    model.safetensors   the plain state dict, to build on; its input is normalised images
    architecture.json   the space's name and the architecture
    model.pt2           torch.export: raw pixels in, logits out; needs PyTorch alone
    model.onnx          the same in one ONNX file
    model_card.json     what it is, how good, how fast, how verified, how to load
    MODEL_CARD.md       the same for people

The .pt2 and ONNX models take ``pixels``, uint8 (N, C, H, W), 0 to 255, and normalise inside; batch norm is folded.
An `Ensemble` is exported as one network. `EarlyExits` give the towers' logits too, and ``towers.safetensors`` their
weights; without it no tower is in any file.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from nas.config import ExportConfig
from nas.errors import DataError, InputError
from nas.evaluation import complexity
from nas.export import card, files, verification
from nas.export.composed import EarlyExits, Ensemble
from nas.export.facts import Check, Compared, Exported, Facts, Labels, Pixels, Predict
from nas.export.network import PixelNetwork, fold, still
from nas.store import check_place

__all__ = [
    "Check",
    "Compared",
    "EarlyExits",
    "Ensemble",
    "Exported",
    "Facts",
    "check",
    "export",
    "fold",
    "side_by_side",
]

MANY = 64
"""Latency is measured of one image and of so many ..."""

SLOW = 2000.0
"""... where that may take less than so many milliseconds."""

FILES = {files.SAFETENSORS, files.TOWERS, files.ARCHITECTURE, files.PT2, files.ONNX, card.JSON, card.TEXT}


def export(
    network: nn.Module,
    facts: Facts,
    test_pixels: Pixels,
    folder: Path,
    config: ExportConfig,
    labels: Labels | None = None,
) -> Exported:
    """Write and verify the export of a network, from normalised images (N, C, H, W) to the task's logits.

    Every file is compared on all of `test_pixels`, uint8 (N, C, H, W), or on as many of them as there is memory for
    the logits of every pixel; with their `labels`, the card says how many are predicted right. The network is not
    changed. The folder appears when everything in it is verified; until then an earlier export stays in its place.

    Raises VerificationError when a file does not do what the network does, JobError when the network cannot
    be written in a format, DataError when the images do not fit, InputError when `folder` holds other things.
    """
    _check_images(test_pixels, facts)
    test_images = len(test_pixels)
    test_pixels = verification.sample(test_pixels, facts)
    with _appearing(folder.resolve()) as partial:
        trained = still(network)
        exits = trained.names if isinstance(trained, EarlyExits) else ()
        expected = verification.expected_logits(trained, test_pixels, facts)

        def verify(file: str, load: Callable[[Path], Predict]) -> Check:
            return verification.verify(file, lambda: load(partial / file), test_pixels, expected, config.tolerance)

        folded, batch_norm = fold(trained)
        metadata = files.metadata(facts, batch_norm, exits)
        files.write_architecture(partial / files.ARCHITECTURE, facts)
        files.write_safetensors(partial, trained, metadata)
        checks = [verify(files.SAFETENSORS, lambda path: files.load_safetensors(path, trained, facts))]
        model = PixelNetwork(folded, facts.mean, facts.std)
        program = files.write_pt2(partial / files.PT2, model, facts.input_shape, metadata)
        checks += [verify(files.PT2, files.load_pt2)]
        files.write_onnx(partial / files.ONNX, program, config.opset, metadata, exits)
        checks += [verify(files.ONNX, files.load_onnx)]
        latency = {1: verification.latency(trained, partial, test_pixels[:1], facts)}
        if MANY * latency[1]["eager"] < SLOW:
            many = np.resize(test_pixels, (MANY, *test_pixels.shape[1:]))
            latency[MANY] = verification.latency(trained, partial, many, facts)
        heads = {} if labels is None else verification.accuracies(expected, labels, ("logits", *exits))
        memory = complexity.activation_bytes(trained, facts.input_shape)
        content = card.content(facts, config, batch_norm, checks, latency, partial, exits, heads, memory, test_images)
        (partial / card.JSON).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (partial / card.TEXT).write_text(card.markdown(content), encoding="utf-8")
    return Exported(folder, tuple(checks), content)


def check(config: ExportConfig, folder: Path) -> None:
    """Raises an InputError where an export cannot be written into `folder`, or not in the ONNX operator set wanted."""
    check_place(folder)
    check_place(folder.resolve().parent)  # where it appears from
    _refuse_foreign(folder)
    files.check_opset(config.opset)


def side_by_side(
    networks: Mapping[str, nn.Module], pixels: Pixels, facts: Facts, config: ExportConfig
) -> dict[str, dict[str, float]]:
    """Median milliseconds for one image (1, C, H, W) on one CPU thread, of each network in each form.

    They take turns: where the machine changes its pace it does so for all of them.
    """
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    with TemporaryDirectory() as folder, verification.one_thread():
        for number, (name, network) in enumerate(networks.items()):
            place = Path(folder) / str(number)
            place.mkdir()
            trained = still(network)
            model = PixelNetwork(fold(trained)[0], facts.mean, facts.std)
            program = files.write_pt2(place / files.PT2, model, facts.input_shape, {})
            files.write_onnx(place / files.ONNX, program, config.opset, {})
            forms = verification.forms(trained, place, pixels, facts)
            calls |= {(name, form): call for form, call in forms.items()}
        times = verification.in_turns(calls)
    return {name: {form: times[one, form] for one, form in times if one == name} for name in networks}


def _check_images(pixels: Pixels, facts: Facts) -> None:
    if pixels.dtype != np.uint8 or pixels.shape[1:] != tuple(facts.input_shape) or not len(pixels):
        wanted = f"at least one uint8 image of shape {tuple(facts.input_shape)}"
        raise DataError(f"export is verified on {wanted}; got {pixels.dtype} of shape {pixels.shape}")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A hidden sibling to write into: it becomes `folder` when the body succeeds and goes when it fails."""
    previous = folder.with_name(f".{folder.name}.previous")
    _refuse_foreign(folder)
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):  # left by a killed export
        shutil.rmtree(stale, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if previous.exists() and not folder.exists():  # interrupted between the two renames, now or earlier
            previous.rename(folder)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """Replacing a folder deletes it, so it must be an export: a slip of the pen costs nobody their files."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot export to {str(folder)!r}: it is a file")
    others = sorted({path.name for path in folder.iterdir()} - FILES) if folder.exists() else []
    if others:
        raise InputError(f"cannot export to {str(folder)!r}: it holds {others[0]!r}, no part of an export")
