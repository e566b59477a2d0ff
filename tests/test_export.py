"""The export: what is in the folder, that a stranger can use it, and that a wrong one never appears."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nas.config import ExportConfig
from nas.errors import DataError, InputError, JobError, VerificationError
from nas.evaluation.complexity import activation_bytes
from nas.export import Check, Exported, Facts, export, files, fold, network, verification
from nas.export.facts import Pixels

SHAPE = (3, 14, 14)
FACTS = Facts(
    space="inception",
    architecture='{"cells":[1,2],"stem":8}',
    data="digits",
    classes=("zero", "one", "a | b", "three", "four"),
    input_shape=SHAPE,
    mean=(120.0, 30.5, 99.0),
    std=(50.0, 71.25, 12.0),
    params=12345,
    flops=987654,
    accuracies={3: 0.91, 4: 0.93, 5: 0.98},
    exported_seed=4,
    notes={"command": "nas run"},
)
CONFIG = ExportConfig()


class ConvNormAct(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Cell(nn.Module):
    """1x1, 3x3, double 3x3 and pooling branches; the first convolutions of three of them in one, then split."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.first = ConvNormAct(inputs, 3 * width, 1)
        self.three = ConvNormAct(width, width, 3)
        self.five = nn.Sequential(ConvNormAct(width, width, 3), ConvNormAct(width, width, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), ConvNormAct(inputs, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        one, three, five = torch.split(self.first(x), self.width, 1)
        return torch.cat([one, self.three(three), self.five(five), self.pool(x)], 1)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 8, 3)
        self.cells = nn.Sequential(Cell(8, 4), nn.MaxPool2d(3, 2, 1), Cell(16, 6))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.4)
        self.head = nn.Linear(24, len(FACTS.classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.pool(self.cells(self.stem(x))).flatten(1)))


class Untraceable(Inception):
    """Asks for the number of channels with Python's `range`, which torch.fx cannot trace."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x[:, i : i + 1] for i in range(x.shape[1])], 1))


class Moody(Inception):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(())


class Infinite(Inception):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


def trained(kind: type[nn.Module] = Inception) -> nn.Module:
    """A network with batch norm statistics far from 0 and 1, half of it in training mode."""
    torch.manual_seed(0)
    made = kind()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.3, 3)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
        for module in made.modules():
            if isinstance(module, nn.Linear):
                module.weight *= 10
    made.train()
    made.get_submodule("cells.0").eval()
    return made


def images(number: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (number, *SHAPE), dtype=np.uint8)


def logits_of(made: nn.Module, pixels: Pixels) -> np.ndarray:
    """The network's own answer, in the test's own words."""
    mean, std = torch.tensor(FACTS.mean).view(3, 1, 1), torch.tensor(FACTS.std).view(3, 1, 1)
    with torch.no_grad():
        return copy.deepcopy(made).eval()((torch.from_numpy(pixels).float() - mean) / std).numpy()


def hidden(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.name.startswith("."))


@dataclasses.dataclass(frozen=True)
class Made:
    network: nn.Module
    before: dict[str, Tensor]
    pixels: Pixels
    exported: Exported


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    original, pixels = trained(), images(150)
    before = copy.deepcopy(original.state_dict())
    folder = tmp_path_factory.mktemp("experiment") / "export"
    return Made(original, before, pixels, export(original, FACTS, pixels, folder, CONFIG))


def test_folder_holds_the_six_files_and_nothing_else(made: Made) -> None:
    names = {path.name for path in made.exported.folder.iterdir()}
    assert names == {
        "model.safetensors", "architecture.json", "model.pt2", "model.onnx", "model_card.json", "MODEL_CARD.md",
    }  # fmt: skip
    assert hidden(made.exported.folder.parent) == []


def test_network_is_unchanged(made: Made) -> None:
    after = made.network.state_dict()
    assert list(after) == list(made.before)
    assert all(torch.equal(after[name], made.before[name]) for name in after)
    assert made.network.training
    assert not made.network.get_submodule("cells.0").training
    for module in made.network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.requires_grad for parameter in made.network.parameters())


STRANGER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nas", "search_spaces"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
for name in ("nas", "search_spaces"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported here")

import numpy as np, onnxruntime, torch
pixels = np.load("../pixels.npy")
program = torch.export.load("model.pt2").module()
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
answers = {}
for size in (1, 2, 7, 64):
    answers[f"pt2 {size}"] = program(torch.from_numpy(pixels[:size])).numpy()
    answers[f"onnx {size}"] = session.run(["logits"], {"pixels": pixels[:size]})[0]
np.savez("../answers.npz", **answers)
print(session.get_inputs()[0].name, session.get_inputs()[0].type, session.get_inputs()[0].shape)
"""


def run_python(code: str, folder: Path) -> str:
    """Output of code in a fresh, isolated interpreter, inside `folder`."""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_without_this_project_gets_the_network_s_logits(made: Made) -> None:
    folder = made.exported.folder
    np.save(folder.parent / "pixels.npy", made.pixels)
    assert run_python(STRANGER, folder).split(None, 2)[:2] == ["pixels", "tensor(uint8)"]
    answers = np.load(folder.parent / "answers.npz")
    assert len(answers.files) == 8
    for name in answers.files:
        expected = logits_of(made.network, made.pixels[: int(name.split()[1])])
        assert expected.std() > 1, "logits too close together to tell anything"
        np.testing.assert_allclose(answers[name], expected, atol=1e-4, rtol=0, err_msg=name)


def test_onnx_is_one_file_with_folded_norms(made: Made) -> None:
    model = onnx.load(made.exported.folder / "model.onnx", load_external_data=False)
    kinds = {node.op_type for node in model.graph.node}
    assert "Conv" in kinds
    assert not kinds & {"BatchNormalization", "Dropout"}
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": CONFIG.opset}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not any(node.metadata_props for node in model.graph.node)
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
              for value in (*model.graph.input, *model.graph.output)]  # fmt: skip
    assert shapes == [["batch", *SHAPE], ["batch", len(FACTS.classes)]]


def test_pt2_has_no_norm_and_no_dropout(made: Made) -> None:
    program = torch.export.load(made.exported.folder / "model.pt2")
    called = {str(node.target) for node in program.graph.nodes}
    assert "aten.conv2d.default" in called
    assert not any("norm" in target or "dropout" in target for target in called)


def onnx_metadata(folder: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}


def safetensors_metadata(folder: Path) -> dict[str, str]:
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        return file.metadata()


def pt2_metadata(folder: Path) -> dict[str, str]:
    extra = {"metadata.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    return {key: json.dumps(value) for key, value in json.loads(extra["metadata.json"]).items()}


@pytest.mark.parametrize("read", [onnx_metadata, safetensors_metadata, pt2_metadata])
def test_metadata_say_what_goes_in_and_what_comes_out(made: Made, read: Callable[[Path], dict[str, str]]) -> None:
    metadata = read(made.exported.folder)
    assert json.loads(metadata["classes"]) == list(FACTS.classes)
    assert json.loads(metadata["input shape"]) == list(SHAPE)
    assert json.loads(metadata["pixel range"]) == [0, 255]
    assert json.loads(metadata["mean"]) == list(FACTS.mean)
    assert json.loads(metadata["std"]) == list(FACTS.std)
    assert "float32" in metadata["dtype"]
    assert ("normalised: (pixels" if read is safetensors_metadata else "uint8") in metadata["input"]


def test_files_hold_no_paths_of_this_machine(made: Made) -> None:
    for name in ("model.pt2", "model.onnx", "model.safetensors"):
        content = (made.exported.folder / name).read_bytes()
        for path in (__file__, network.__file__, torch.__path__[0], str(Path.cwd())):
            assert path.encode() not in content, (name, path)


def test_safetensors_load_into_the_network(made: Made) -> None:
    tensors = safetensors.torch.load_file(made.exported.folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: t.shape for n, t in made.before.items()}
    built = Inception()
    built.load_state_dict(tensors)
    np.testing.assert_array_equal(logits_of(built, made.pixels), logits_of(made.network, made.pixels))
    assert safetensors_metadata(made.exported.folder)["batch norm"] == "as trained"
    architecture = json.loads((made.exported.folder / "architecture.json").read_text())
    assert architecture == {"space": "inception", "architecture": {"cells": [1, 2], "stem": 8}}


def test_every_file_was_checked_on_every_image(made: Made) -> None:
    checks = made.exported.checks
    assert [check.file for check in checks] == ["model.safetensors", "model.pt2", "model.onnx"]
    for check in checks:
        assert check.images == 150
        assert check.agreement == 1
        assert check.max_difference < 1e-4
        assert (check.max_difference == 0) == (check.file == "model.safetensors"), "nothing was folded"


def test_card(made: Made) -> None:
    card = json.loads((made.exported.folder / "model_card.json").read_text())
    assert card == made.exported.card
    assert (card["params"], card["flops"], card["opset"]) == (12345, 987654, 18)
    assert card["accuracy"]["by seed"] == {"3": 0.91, "4": 0.93, "5": 0.98}
    assert card["accuracy"]["mean"] == pytest.approx(0.94)
    assert card["accuracy"]["standard deviation"] == pytest.approx(np.std([0.91, 0.93, 0.98], ddof=1))
    assert card["batch norm"] == "folded: 11 of 11"
    assert card["exported seed"] == 4
    assert card["peak activation bytes"] == activation_bytes(made.network, SHAPE) > 4 * 14 * 14 * (3 + 16)
    assert f"{card['peak activation bytes']:,} bytes" in (made.exported.folder / "MODEL_CARD.md").read_text()
    assert set(card["versions"]) == {"python", "torch", "onnx", "onnxruntime", "numpy", "platform"}
    assert [check["file"] for check in card["verification"]["checks"]] == [c.file for c in made.exported.checks]
    assert list(card["latency ms"]) == ["1", "64"]
    for times in card["latency ms"].values():
        assert list(times) == ["eager", "model.pt2", "model.onnx"]
        assert all(0 < value < 1000 for value in times.values())
    for file, size in card["bytes"].items():
        assert size == (made.exported.folder / file).stat().st_size
    text = (made.exported.folder / "MODEL_CARD.md").read_text()
    for said in ("12,345", "987,654", "91.00%", "94.00%", "3.61%", "a \\| b", "nas run", "folded: 11 of 11"):
        assert said in text


def test_one_seed_has_no_standard_deviation(made: Made, tmp_path: Path) -> None:
    from nas.export import card

    facts = dataclasses.replace(FACTS, accuracies={0: 0.5})
    value = card.content(facts, CONFIG, "", made.exported.checks, {}, tmp_path)
    assert value["accuracy"] == {
        "by seed": {"0": 0.5}, "mean": 0.5, "standard deviation": None, "95 % interval": None
    }  # fmt: skip
    assert "| 0 | 50.00% |" in card.markdown(value)
    assert "| mean |" not in card.markdown(value)


def test_accuracies_have_the_interval_of_the_images_behind_them(made: Made, tmp_path: Path) -> None:
    from nas.export import card

    def markdown(**changes: Any) -> str:
        facts = dataclasses.replace(FACTS, **changes)
        content = card.content(facts, CONFIG, "", made.exported.checks, {}, tmp_path, heads=heads, test_images=10_000)
        assert json.loads(json.dumps(content)) == content
        return card.markdown(content)

    heads = {"logits": 0.95}
    text = markdown(accuracies={0: 0.9356, 1: 0.9356})
    assert "| seed | test accuracy | 95 % interval | test images |" in text
    assert "| 0 | 93.56% | [93.06, 94.02] | 10,000 |" in text
    assert "| mean | 93.56% | [93.06, 94.02] | 10,000 |" in text
    assert "| standard deviation | 0.00% |  |  |" in text
    ensemble = markdown(accuracies={}, members={"a, seed 0": 0.9356})
    assert "| a, seed 0 | 93.56% | [93.06, 94.02] | 10,000 |" in ensemble
    assert "| the ensemble | 95.00% | [90.25, 97.50] | 150 |" in ensemble, "on the images that files were compared on"
    heads = {"logits": 0.95, "exit": 0.9}
    assert "| exit | 90.00% | [84.16, 93.85] | 150 |" in markdown()
    assert "interval" not in markdown(task="dense"), "pixels of one image are not independent"
    scores = card._scores({0: 0.9356, 1: 0.9356}, 10_000)
    assert card.spread(scores) == "93.56 % ± 0.00 (2) [93.06, 94.02]"


def test_snippets_of_the_card_run(made: Made) -> None:
    text = (made.exported.folder / "MODEL_CARD.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    zeros = logits_of(made.network, np.zeros((1, *SHAPE), np.uint8))
    assert [("model.pt2" in snippet, "model.onnx" in snippet) for snippet in snippets] == [(1, 0), (0, 1)]
    wiped = "\nfor name in set(globals()) - {'__builtins__'}: del globals()[name]\n"  # each stands alone
    printed = run_python(wiped.join(snippets), made.exported.folder).splitlines()
    assert printed == [str([FACTS.classes[zeros.argmax()]])] * 2


# What must not appear


def with_wrong_mean(monkeypatch: pytest.MonkeyPatch, made: Made) -> type[nn.Module]:
    right = network.PixelNetwork.__init__

    def wrong(self: nn.Module, bare: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        right(self, bare, (mean[0], mean[1] + 0.5, mean[2]), std)

    monkeypatch.setattr(network.PixelNetwork, "__init__", wrong)
    return Inception


def with_wrong_safetensors(monkeypatch: pytest.MonkeyPatch, made: Made) -> type[nn.Module]:
    right = files.write_safetensors

    def wrong(folder: Path, trained: nn.Module, metadata: Any) -> None:
        other = copy.deepcopy(trained)
        next(other.parameters()).data += 0.01
        right(folder, other, metadata)

    monkeypatch.setattr(files, "write_safetensors", wrong)
    return Inception


def with_wrong_onnx(monkeypatch: pytest.MonkeyPatch, made: Made) -> type[nn.Module]:
    def wrong(path: Path, *_: Any) -> None:
        model = onnx.load(made.exported.folder / "model.onnx")
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(files, "write_onnx", wrong)
    return Inception


def with_random_logits(monkeypatch: pytest.MonkeyPatch, made: Made) -> type[nn.Module]:
    return Moody


def with_infinite_logits(monkeypatch: pytest.MonkeyPatch, made: Made) -> type[nn.Module]:
    return Infinite


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (with_wrong_mean, r"model\.pt2 differs from the trained network by \S+ in a logit, allowed 0\.001"),
        (with_wrong_safetensors, r"model\.safetensors differs"),
        (with_wrong_onnx, r"model\.onnx differs from the trained network by 0\.01 .*100\.00% of 150"),
        (with_random_logits, r"model\.safetensors differs"),
        (with_infinite_logits, r"the trained network gives logits that are not finite"),
    ],
)
def test_wrong_file_never_appears(
    made: Made, spoil: Any, complaint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind = spoil(monkeypatch, made)
    with pytest.raises(VerificationError, match=complaint) as caught:
        export(trained(kind), FACTS, made.pixels, tmp_path / "export", CONFIG)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def a_finished(folder: Path, marker: str) -> None:
    folder.mkdir()
    (folder / "MODEL_CARD.md").write_text(marker)


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_an_earlier_export_stays_until_the_new_one_is_verified(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    a_finished(folder, "old")
    with pytest.raises(VerificationError):
        export(trained(Infinite), FACTS, made.pixels, folder, CONFIG)
    assert (folder / "MODEL_CARD.md").read_text() == "old"

    monkeypatch.setattr(files, "write_pt2", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(made.network, FACTS, made.pixels, folder, CONFIG)
    assert [path.name for path in folder.iterdir()] == ["MODEL_CARD.md"]
    assert hidden(tmp_path) == []


def test_untraceable_network_is_exported_unfolded_in_place_of_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    a_finished(folder, "old")
    (tmp_path / ".export.partial-killed").mkdir()
    odd, pixels = trained(Untraceable), images(70)
    exported = export(odd, FACTS, pixels, folder, ExportConfig(opset=20))
    assert exported.card["batch norm"].startswith("not folded: TypeError: 'Proxy' object")
    assert "not folded" in (folder / "MODEL_CARD.md").read_text()
    assert [check.agreement for check in exported.checks] == [1, 1, 1]
    model = onnx.load(folder / "model.onnx")
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20}
    assert hidden(tmp_path) == []


def test_an_export_killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    a_finished(tmp_path / ".export.previous", "old")
    with pytest.raises(VerificationError):
        export(trained(Infinite), FACTS, images(2), tmp_path / "export", CONFIG)
    assert (tmp_path / "export" / "MODEL_CARD.md").read_text() == "old"
    assert hidden(tmp_path) == []


def test_folders_of_other_things_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds 'thesis\.tex'"):
        export(trained(), FACTS, images(2), tmp_path, CONFIG)
    with pytest.raises(InputError, match="is a file"):
        export(trained(), FACTS, images(2), tmp_path / "thesis.tex", CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_impossible_opset_is_refused(tmp_path: Path) -> None:
    model = network.PixelNetwork(nn.Flatten(), FACTS.mean, FACTS.std)
    program = files.write_pt2(tmp_path / "model.pt2", model, SHAPE, {})
    with pytest.raises(JobError, match=r"cannot write model\.onnx with operator set 99"):
        files.write_onnx(tmp_path / "model.onnx", program, 99, {})


def test_network_that_fixes_the_batch_is_refused_in_one_line(tmp_path: Path) -> None:
    model = network.PixelNetwork(nn.Unflatten(0, (2, 1)), FACTS.mean, FACTS.std)
    with pytest.raises(JobError, match=r"cannot write model\.pt2: .+") as caught:
        files.write_pt2(tmp_path / "model.pt2", model, SHAPE, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pixels", [images(0), images(2)[:, :1], images(2).astype(np.float32)])
def test_images_that_do_not_fit_are_refused(pixels: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least one uint8 image of shape \(3, 14, 14\)"):
        export(trained(), FACTS, pixels, tmp_path / "export", CONFIG)


def test_class_names_must_match_the_logits(tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, classes=("zero", "one"))
    with pytest.raises(VerificationError, match=r"shape \(2, 5\), expected \(2, 2\)"):
        export(trained(), facts, images(2), tmp_path / "export", CONFIG)


# The parts


def answering(logits: Any) -> Callable[[], Callable[[Pixels], Any]]:
    """Loads a model that gives the image numbered i row i of `logits`; the number is its only pixel."""
    return lambda: lambda pixels: logits[pixels[:, 0]]


NUMBERED = np.array([[0], [1]], np.uint8)


def test_a_tie_within_rounding_is_reported_and_passes() -> None:
    expected = np.array([[1.0, 1.0001], [0.0, 5.0]], np.float32)
    swapped = answering(np.array([[1.0001, 1.0], [0.0, 5.0]], np.float32))
    check = verification.verify("model.pt2", swapped, NUMBERED, expected, 1e-3)
    assert check == Check("model.pt2", pytest.approx(1e-4, rel=1e-2), 0.5, 2)
    with pytest.raises(VerificationError, match=r"model\.pt2 differs .*50\.00% of 2"):
        verification.verify("model.pt2", swapped, NUMBERED, expected, 1e-5)


@pytest.mark.parametrize(
    ("logits", "complaint"),
    [
        (np.full((2, 2), np.nan, np.float32), "not finite"),
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\), expected \(2, 2\)"),
        (None, "cannot be loaded back and run: TypeError"),
    ],
)
def test_nonsense_from_a_file_is_refused(logits: Any, complaint: str) -> None:
    with pytest.raises(VerificationError, match=complaint):
        verification.verify("x", answering(logits), NUMBERED, np.zeros((2, 2), np.float32), 1e9)


def test_accuracy_is_of_the_images_that_were_compared() -> None:
    logits, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 0, 2, 2])
    assert verification.accuracies(logits, labels, ("logits",)) == {"logits": pytest.approx(2 / 3)}


def test_latency_gives_the_threads_back(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "LATENCY_SECONDS", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        still = network.still(made.network)
        measured = verification.latency(still, made.exported.folder, made.pixels[:1], FACTS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert list(measured) == ["eager", "model.pt2", "model.onnx"]


class Twice(nn.Module):
    """One convolution called twice, each time with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.conv(self.a(self.conv(x))))


class Forked(nn.Module):
    """The convolution's output is wanted without the norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Hooked(nn.Module):
    """Something happens between convolution and norm that no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.conv.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize(
    ("layers", "done"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4)), "folded: 1 of 1"),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, groups=3), nn.BatchNorm2d(6, 0.1)), "folded: 1 of 1"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), "folded: 1 of 1"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)), "folded: 0 of 1"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout2d(0.5), nn.ReLU()), "none in the network"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
            "folded: 0 of 1",
        ),
        (Twice, "folded: 0 of 2"),
        (Forked, "folded: 0 of 1"),
        (Hooked, "folded: 0 of 1"),
    ],
)
def test_fold_keeps_the_function(layers: Callable[[], nn.Module], done: str) -> None:
    torch.manual_seed(0)
    original = layers()
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3)  # type: ignore[union-attr]
    folded, what = fold(original)
    assert what == done
    assert not any(isinstance(module, nn.Dropout2d) for module in folded.modules())
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(folded(x), original.eval()(x), atol=1e-5, rtol=0)
