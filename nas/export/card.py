"""The model card: one value, written as JSON and as Markdown."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nas import metrics, verdict
from nas.config import ExportConfig
from nas.data.images import TaskName
from nas.export import files
from nas.export.facts import Check, Compared, Facts

JSON, TEXT = "model_card.json", "MODEL_CARD.md"

TEST_ACCURACY = metrics.named("test_accuracy").title

LOAD_PT2 = """\
import json
import torch

extra = {"metadata.json": ""}
model = torch.export.load("model.pt2", extra_files=extra).module()
classes = json.loads(extra["metadata.json"])["classes"]
pixels = torch.zeros(SHAPE, dtype=torch.uint8)  # your images (N, C, H, W), raw values 0 to 255
logits = model(pixels)
print(PREDICTION)
"""
LOAD_ONNX = """\
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
pixels = np.zeros(SHAPE, dtype=np.uint8)  # your images (N, C, H, W), raw values 0 to 255
[logits] = session.run(["logits"], {"pixels": pixels})
print(PREDICTION)
"""
PREDICTION: Mapping[TaskName, str] = {
    "classification": "[classes[i] for i in logits.argmax(1)]",
    "dense": "classes, logits.argmax(1)",  # names, and their numbers (N, H, W)
}


def content(
    facts: Facts,
    config: ExportConfig,
    batch_norm: str,
    checks: Sequence[Check],
    latency: Mapping[int, Mapping[str, float]],
    folder: Path,
    exits: Sequence[str] = (),
    heads: Mapping[str, float] | None = None,
    activation_bytes: int | None = None,
    test_images: int | None = None,
) -> dict[str, Any]:
    """All that the card says, as plain values; sizes are of the files that `folder` holds by now.

    `latency` is in milliseconds, by the number of images at once and by what computes them. `heads` is the test
    accuracy, 0 to 1, of what is exported: of ``logits`` and of each of the `exits`, on the images of the `checks`.
    `test_images` are behind the other test accuracies, which have intervals where it is given.
    """
    shape = str((1, *facts.input_shape))
    dense = facts.task == "dense"  # pixels of one image are not independent: no interval
    behind = None if dense else test_images
    verified = None if dense else max((check.images for check in checks), default=None)
    load_pt2 = LOAD_PT2.replace("model(pixels)", 'model(pixels)["logits"]') if exits else LOAD_PT2
    snippets = {files.PT2: load_pt2, files.ONNX: LOAD_ONNX}
    return {
        **files.metadata(facts, batch_norm, exits),
        "params": facts.params,
        "flops": facts.flops,
        "peak activation bytes": activation_bytes,
        "latency ms": {str(images): dict(times) for images, times in latency.items()},
        "test images": behind,
        "accuracy": _scores(facts.accuracies, behind),
        **({"accuracy note": facts.accuracy_note} if facts.accuracy_note else {}),
        **({"miou": _scores(facts.mious)} if facts.mious else {}),
        "members": dict(facts.members),
        "exported accuracy": dict(heads or {}),
        "verified images": verified,
        "exported seed": facts.exported_seed,
        **({"compared": [_compared(one, facts, behind) for one in facts.compared]} if facts.compared else {}),
        "verification": {"tolerance": config.tolerance, "checks": [asdict(check) for check in checks]},
        "opset": config.opset,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "load": {
            file: snippet.replace("SHAPE", shape).replace("PREDICTION", PREDICTION[facts.task])
            for file, snippet in snippets.items()
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
            "platform": platform.platform(),
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": dict(facts.notes),
    }


def _compared(one: Compared, facts: Facts, images: int | None) -> dict[str, Any]:
    """A row of a pruned network's comparison."""
    return {
        "name": one.name,
        "key": one.key,
        "architecture": json.loads(one.architecture),
        "params": one.params,
        "flops": one.flops,
        "share of flops": one.flops / facts.compared[0].flops,
        "accuracy": _scores(one.accuracies, images),
        "latency ms": dict(one.latency),
    }


def _scores(scores: Mapping[int, float], images: int | None = None) -> dict[str, Any]:
    """Test scores, 0 to 1; a standard deviation (of the sample) takes two seeds.

    The interval is that of the mean, for other images of the same kind; it does not count what seeds change.
    """
    values = list(scores.values())
    interval = verdict.accuracy_interval(statistics.mean(values), images) if values and images else None
    return {
        "by seed": {str(seed): value for seed, value in scores.items()},
        "mean": statistics.mean(values) if values else None,
        "standard deviation": statistics.stdev(values) if len(values) > 1 else None,
        "95 % interval": None if interval is None else list(interval),
    }


def markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    parts = [
        f"# {card['space']} on {card['data']}",
        _what(card),
        "## Accuracy",
        *_table_of_scores("seed", TEST_ACCURACY, _score_rows(card["accuracy"], card["test images"])),
        *([card["accuracy note"]] if "accuracy note" in card else []),
        *_mious(card),
        *_exported_accuracy(card),
        *_pruned(card),
        "## Cost",
        _table(("parameters, FLOPs and memory of one image; time of one and more", ""), _cost_rows(card)),
        "## Verification",
        "Each file was loaded back and its logits compared with the trained network's, on test images.",
        _table(("file", "largest difference", "allowed", "same prediction", "images"), _check_rows(card)),
        "## Load",
        *(f"`{file}`:\n\n```python\n{snippet}```" for file, snippet in card["load"].items()),
        f"`{files.SAFETENSORS}` holds the network's plain state dict, for normalised images: build the network of "
        f"`{files.ARCHITECTURE}` and load it, or start from it: `nas retrain --init {files.SAFETENSORS}`.",
        "## Made with",
        _table(("", ""), [*card["versions"].items(), ("date", card["date"]), *card["notes"].items()]),
        "## Architecture",
        f"```json\n{json.dumps(card['architecture'], sort_keys=True)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _what(card: Mapping[str, Any]) -> str:
    rows = [
        ("input", card["input"]),
        ("input shape (C, H, W)", " x ".join(map(str, card["input shape"]))),
        ("pixel range", "{} to {}".format(*card["pixel range"])),
        ("mean, a channel", ", ".join(f"{value:g}" for value in card["mean"])),
        ("standard deviation, a channel", ", ".join(f"{value:g}" for value in card["std"])),
        ("output", card["output"]),
        ("classes", ", ".join(card["classes"])),
        ("weights", card["dtype"]),
        ("batch norm", card["batch norm"]),
        *([] if card["exported seed"] is None else [("exported seed", card["exported seed"])]),
        ("ONNX operator set", card["opset"]),
        *((file, f"{size:,} bytes") for file, size in card["bytes"].items()),
    ]
    return _table(("", ""), rows)


def _mious(card: Mapping[str, Any]) -> list[str]:
    if "miou" not in card:
        return []
    miou = metrics.named("miou")
    what = f"Accuracy is of pixels; {miou.title} is {miou.description}."
    return [what, *_table_of_scores("seed", metrics.named("test_miou").title, _score_rows(card["miou"]))]


Scored = tuple[str, float, int | None]
"""A name, a score and the number of images behind it; None where no interval is to be shown."""


def _score_rows(scores: Mapping[str, Any], images: int | None = None) -> list[Scored]:
    rows: list[Scored] = [(seed, value, images) for seed, value in scores["by seed"].items()]
    if scores["standard deviation"] is not None:
        rows += [("mean", scores["mean"], images), ("standard deviation", scores["standard deviation"], None)]
    return rows


def _table_of_scores(of: str, score: str, rows: Sequence[Scored]) -> list[str]:
    if all(images is None for _, _, images in rows):
        return [_table((of, score), [(name, f"{value:.2%}") for name, value, _ in rows])] if rows else []
    cells = [
        (name, f"{value:.2%}", *(("", "") if n is None else (_interval(verdict.accuracy_interval(value, n)), f"{n:,}")))
        for name, value, n in rows
    ]
    return [_table((of, score, "95 % interval", "test images"), cells)]


def _interval(ends: Sequence[float]) -> str:
    return f"[{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]"


def _exported_accuracy(card: Mapping[str, Any]) -> list[str]:
    """Of an ensemble beside its members', or of each exit."""
    verified = card["verified images"]
    heads: list[Scored] = [(name, value, verified) for name, value in card["exported accuracy"].items()]
    if card["members"]:
        rows: list[Scored] = [(name, value, card["test images"]) for name, value in card["members"].items()]
        rows += [("the ensemble", value, images) for _, value, images in heads]
        return _table_of_scores("member", TEST_ACCURACY, rows)
    return _table_of_scores("output", TEST_ACCURACY, heads) if len(heads) > 1 else []


def _pruned(card: Mapping[str, Any]) -> list[str]:
    """A pruned network beside what it was pruned from and its rivals."""
    if "compared" not in card:
        return []
    rows = card["compared"]
    whole, own = rows[:2]
    said = (
        f"Channels were removed from the retrained network `{whole['key']}`, those that matter least first, until "
        f"{1 - own['share of flops']:.1%} of its multiply-adds were gone; what was left was fine-tuned. The networks "
        "beside it were trained by the full recipe: a small network is often as good when trained from scratch (Liu "
        "et al. 2019, arXiv:1810.05270). Latencies were measured in turns, on one CPU thread."
    )
    parameters = metrics.named("params").title
    head = ("network", "architecture", TEST_ACCURACY, "multiply-adds", parameters, *own["latency ms"])
    return ["## Pruned", said, _table(head, map(_compared_cells, rows))]


def _compared_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        row["key"],
        spread(row["accuracy"]),
        f"{row['flops'] // 2:,} ({row['share of flops']:.0%})",
        f"{row['params']:,}",
        *(f"{milliseconds:.3f} ms" for milliseconds in row["latency ms"].values()),
    ]


def spread(scores: Mapping[str, Any]) -> str:
    """Mean, standard deviation and number of trainings, 95 % interval: ``98.70 % ± 0.16 (3) [98.45, 98.91]``."""
    deviation = scores["standard deviation"]
    apart = "" if deviation is None else f" ± {100 * deviation:.2f}"
    ends = "" if scores["95 % interval"] is None else f" {_interval(scores['95 % interval'])}"
    return f"{100 * scores['mean']:.2f} %{apart} ({len(scores['by seed'])}){ends}"


def _cost_rows(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    params, flops, memory = (metrics.named(name) for name in ("params", "flops", "memory"))
    latency, peak = card["latency ms"], card["peak activation bytes"]
    return [
        (params.title, f"{card['params']:,}"),
        (flops.title, f"{card['flops']:,}"),
        *([] if peak is None else [(memory.title, f"{peak:,} {memory.unit}")]),
        *(
            (f"{what}, {images} at once, one CPU thread", f"{milliseconds:.2f} ms")
            for images, times in latency.items()
            for what, milliseconds in times.items()
        ),
    ]


def _check_rows(card: Mapping[str, Any]) -> list[tuple[object, ...]]:
    allowed = f"{card['verification']['tolerance']:g}"
    return [
        (row["file"], f"{row['max_difference']:.2e}", allowed, f"{row['agreement']:.4%}", row["images"])
        for row in card["verification"]["checks"]
    ]


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])
