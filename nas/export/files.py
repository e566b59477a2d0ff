"""Writes and loads each file format. Nothing of this project is pickled into them."""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors.torch
import torch
from torch import nn

from nas.config import ExportConfig
from nas.data.images import TaskName
from nas.errors import ConfigError, JobError
from nas.export.composed import EarlyExits
from nas.export.facts import Facts, Logits, Pixels, Predict
from nas.export.network import PixelNetwork, one_line
from nas.space import Shape

SAFETENSORS, PT2, ONNX, ARCHITECTURE = "model.safetensors", "model.pt2", "model.onnx", "architecture.json"
TOWERS = "towers.safetensors"


OUTPUT: Mapping[TaskName, str] = {"classification": "(N, classes)", "dense": "(N, classes, H, W)"}


def metadata(facts: Facts, batch_norm: str, exits: Sequence[str] = ()) -> dict[str, Any]:
    """What every model file says of itself."""
    output = f"logits: float32 {OUTPUT[facts.task]}"
    if facts.members:
        output += f", the log of the mean probability of {len(facts.members)} networks: softmax gives the mean"
    if exits:
        output = f"logits, {', '.join(exits)}: each float32 (N, classes); the exits are those of the towers, by depth"
    return {
        "space": facts.space,
        "architecture": json.loads(facts.architecture),
        "data": facts.data,
        "classes": list(facts.classes),
        "input": "pixels: uint8 (N, C, H, W), raw, normalised inside",
        "output": output,
        "input shape": list(facts.input_shape),
        "pixel range": [0, 255],
        "mean": list(facts.mean),
        "std": list(facts.std),
        "dtype": "float32",
        "batch norm": batch_norm,
    }


def _strings(values: Mapping[str, Any]) -> dict[str, str]:
    """For formats that hold strings only: anything else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def write_architecture(path: Path, facts: Facts) -> None:
    value = {"space": facts.space, "architecture": json.loads(facts.architecture)}
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_safetensors(folder: Path, trained: nn.Module, metadata: Mapping[str, Any]) -> None:
    """The network's plain state dict; towers, where they are exported, have a file of their own."""
    for file, module in _modules(trained).items():
        state = module.state_dict()
        # Cloned: safetensors takes neither channels-last nor shared tensors.
        tensors = {name: state[name].clone(memory_format=torch.contiguous_format) for name in state}
        own = {"format": "pt", "input": "images: float32 (N, C, H, W), normalised: (pixels - mean) / std"}
        own |= {"batch norm": "as trained"}
        safetensors.torch.save_file(tensors, folder / file, metadata=_strings({**metadata, **own}))


def _modules(trained: nn.Module) -> dict[str, nn.Module]:
    """Which module is written to which safetensors file."""
    if isinstance(trained, EarlyExits):
        return {SAFETENSORS: trained.network, TOWERS: trained.towers}
    return {SAFETENSORS: trained}


def write_pt2(
    path: Path, model: PixelNetwork, shape: Shape, metadata: Mapping[str, Any]
) -> torch.export.ExportedProgram:
    """The whole model for any number of images; raises JobError when torch.export refuses it."""
    # Traced with two images: one would be taken for a constant.
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    try:
        with _quiet():
            batch = torch.export.Dim("batch", min=1)
            program = torch.export.export(model.eval(), (example,), dynamic_shapes={"pixels": {0: batch}})
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths and source lines of this machine
            torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})
    except Exception as error:
        raise JobError(f"cannot write {PT2}: {one_line(error)}") from error
    return program


def check_opset(opset: int) -> None:
    """Raises ConfigError for an operator set in which not even a network of one layer can be written."""
    if opset == ExportConfig().opset:
        return
    with TemporaryDirectory() as folder:
        model = PixelNetwork(nn.Flatten(), (0.0,), (1.0,))
        program = write_pt2(Path(folder) / PT2, model, (1, 4, 4), {})
        try:
            write_onnx(Path(folder) / ONNX, program, opset, {})
        except JobError as error:
            raise ConfigError(f"export.opset = {opset}: {error}") from None


def write_onnx(
    path: Path,
    program: torch.export.ExportedProgram,
    opset: int,
    metadata: Mapping[str, Any],
    exits: Sequence[str] = (),
) -> None:
    """One ONNX file made of the torch.export program; raises JobError when this opset cannot hold it."""
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                input_names=["pixels"],
                output_names=["logits", *exits],
                dynamic_shapes={"pixels": {0: "batch"}},
                opset_version=opset,
                verbose=False,
            )
        model = made.model_proto  # type: ignore[union-attr]
        for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.value_info):
            part.ClearField("metadata_props")  # how each node came about; it can outweigh a small network
        onnx.helper.set_model_props(model, _strings(metadata))
        onnx.save(model, path)  # weights inside; program.save would put large ones beside it
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:
        raise JobError(f"cannot write {ONNX}: {one_line(error)}") from error
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != opset:  # the exporter falls back to its own with no more than a warning
        raise JobError(f"cannot write {ONNX} with operator set {opset}: torch.onnx made it {written}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch.export and torch.onnx about their own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def normalised(pixels: Pixels, facts: Facts) -> torch.Tensor:
    """Images (N, C, H, W) as the trained network takes them.

    In numpy, another way than `PixelNetwork`'s, so that a mistake there does not hide from the verification.
    """
    mean = np.asarray(facts.mean, np.float32).reshape(-1, 1, 1)
    std = np.asarray(facts.std, np.float32).reshape(-1, 1, 1)
    images = torch.from_numpy((pixels.astype(np.float32) - mean) / std)
    return images.contiguous(memory_format=torch.channels_last)


def predict_with(network: nn.Module, facts: Facts) -> Predict:
    """Raw pixels to logits through a network that takes normalised images."""

    def predict(pixels: Pixels) -> Logits:
        with torch.no_grad():
            return _heads(network(normalised(pixels, facts)))

    return predict


def _heads(output: Any) -> Logits:
    """One array of a model's output, the heads last."""
    if isinstance(output, Mapping):
        return np.stack([one.numpy() for one in output.values()], -1)
    return np.asarray(output.numpy())


def load_safetensors(path: Path, trained: nn.Module, facts: Facts) -> Predict:
    """The network with weights from the file (and the towers' beside it) alone."""
    loaded = copy.deepcopy(trained)
    for tensor in loaded.state_dict().values():  # what the file does not give shall not be right by chance
        tensor.fill_(math.nan if tensor.is_floating_point() else 0)
    for file, module in _modules(loaded).items():
        module.load_state_dict(safetensors.torch.load_file(path.with_name(file)))
    return predict_with(loaded, facts)


def load_pt2(path: Path) -> Predict:
    """The torch.export program."""
    with _quiet():
        model = torch.export.load(path).module()

    def predict(pixels: Pixels) -> Logits:
        with torch.no_grad():
            writable = torch.from_numpy(pixels.copy())
            return _heads(model(writable))

    return predict


def load_onnx(path: Path, threads: int = 0) -> Predict:
    """The ONNX model in onnxruntime on the CPU; 0 threads: as many as it likes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(pixels: Pixels) -> Logits:
        heads = [np.asarray(one) for one in session.run(None, {"pixels": pixels})]
        return heads[0] if len(heads) == 1 else np.stack(heads, -1)

    return predict
