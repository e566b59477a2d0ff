"""The benchmark of outcomes: textbook networks, the order of its runs, its report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import textbook
import torch
from PIL import Image

from scripts.benchmarks import outcome

# ----------------------------------------------------------------------------------------- textbook networks


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 272_186),
        ("resnet20-w8", 68_642),
        ("resnet20-w8-s2", 68_642),
        ("resnet8", 77_754),
        ("resnet8-s2", 77_754),
        ("vgg", 574_314),
    ],
)
def test_textbook_networks_have_the_published_sizes(name: str, parameters: int) -> None:
    network = textbook.NETWORKS[name](1, 10)
    assert textbook.parameter_count(network) == parameters
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_stem_of_stride_2_halves_the_maps() -> None:
    sides = {name: textbook.NETWORKS[name](1, 10).stem(torch.zeros(1, 1, 28, 28)).shape[2:] for name in outcome.SMALL}
    assert {name: tuple(shape) for name, shape in sides.items()} == {
        "resnet8": (28, 28),
        "resnet8-s2": (14, 14),
        "resnet20-w8": (28, 28),
        "resnet20-w8-s2": (14, 14),
    }


def test_all_textbook_networks_of_the_limited_job_are_within_the_limit() -> None:
    job = outcome.JOBS["fashion-80k"]
    assert job.sets == ("search.max_params=80000",)
    assert all(textbook.parameter_count(textbook.NETWORKS[name](1, 10)) <= 80_000 for name in job.baselines)


def test_crops_and_flips_move_pixels_and_keep_the_batch() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(1, 256, (64, 3, 16, 16), dtype=torch.uint8)
    moved = textbook.augmented(pixels, ["crop", "flip"])
    assert moved.shape == pixels.shape
    assert moved.dtype == torch.uint8
    shifted = [bool((moved[row] == 0).any()) for row in range(64)]  # black comes in from beyond the border
    assert 0.9 < np.mean(shifted) <= 1  # 24 of 25 shifts
    assert torch.equal(textbook.augmented(pixels, []), pixels)
    mirrored = textbook.augmented(pixels, ["flip"])
    same = [torch.equal(mirrored[row], pixels[row]) for row in range(64)]
    assert 10 < sum(same) < 54
    assert all(torch.equal(mirrored[row], pixels[row].flip(2)) for row in range(64) if not same[row])


def tiny_trainer() -> tuple[Any, Any]:
    """(trainer, its images)."""
    images = textbook.Images(torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8), torch.arange(8) % 2)
    return textbook.Trainer(textbook.NETWORKS["resnet8-s2"](1, 2), images, []), images


def test_the_learning_rate_rises_for_a_quarter_of_the_time_and_decay_spares_norms_and_biases() -> None:
    trainer, images = tiny_trainer()
    rates = []
    for progress in (0.0, 0.25, 0.625, 1.0):
        trainer.step(images.pixels, images.labels, progress)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.005, 0.1, 0.05, 0.0])
    decays = {group["weight_decay"]: group["params"] for group in trainer.optimizer.param_groups}
    assert {parameter.dim() for parameter in decays[5e-4]} == {2, 4}
    assert {parameter.dim() for parameter in decays[0.0]} == {1}


def make_folder(folder: Path, each: int, seed: int, sizes: tuple[int, int] = (8, 8)) -> Path:
    """Dark and light images with noise."""
    generator = np.random.default_rng(seed)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = (level + generator.normal(0, 30, (*sizes, 3))).clip(0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def test_a_textbook_network_learns_and_ends_in_time(tmp_path: Path) -> None:
    train, test = make_folder(tmp_path / "train", 24, 0), make_folder(tmp_path / "test", 20, 1)
    words = ["resnet8-s2", "--data", str(train), "--test", str(test), "--size", "8", "--seconds", "3"]
    trainer, images = tiny_trainer()
    trainer.step(images.pixels, images.labels, 0.0)  # the first step of a process imports half of torch
    began = time.monotonic()
    result = textbook.run(textbook.arguments().parse_args(words), began)
    assert time.monotonic() - began < 3.2
    assert result["seconds"] < 3.06
    assert result["accuracy"] > 0.8
    assert result["steps"] >= 10
    assert result["epochs"] == pytest.approx(result["steps"] * 32 / 48, abs=0.01)
    assert (result["train_images"], result["test_images"], result["batch"]) == (48, 40, 32)
    assert result["parameters"] == textbook.parameter_count(textbook.NETWORKS["resnet8-s2"](3, 2))


def test_the_start_of_the_process_counts() -> None:
    if shutil.which("ps") is None:
        pytest.skip("no ps to compare with")
    age = textbook.process_seconds()
    listed = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    assert age == pytest.approx(float(listed.stdout), abs=2.5)


def test_where_no_time_is_left_the_script_says_so(tmp_path: Path) -> None:
    train, test = make_folder(tmp_path / "train", 4, 0), make_folder(tmp_path / "test", 4, 1)
    words = ["resnet8-s2", "--data", str(train), "--test", str(test), "--size", "8", "--seconds", "20"]
    with pytest.raises(SystemExit, match="--seconds 20 leaves no time to train: start and scoring take"):
        textbook.run(textbook.arguments().parse_args(words), time.monotonic() - 30)


def test_folders_are_resized_and_grey_only_where_all_training_images_are(tmp_path: Path) -> None:
    train, test = make_folder(tmp_path / "train", 3, 0, (10, 12)), make_folder(tmp_path / "test", 2, 1, (9, 30))
    data = textbook.read_data(str(train), None, test, 8)
    assert data.classes == ("dark", "light")
    assert (data.train.pixels.shape, data.test.pixels.shape) == ((6, 3, 8, 8), (4, 3, 8, 8))
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    for file in train.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert textbook.read_data(str(train), None, test, 8).test.pixels.shape == (4, 1, 8, 8)


def test_fashion_mnist_is_read(real_data: Path) -> None:
    data = textbook.read_data("fashion-mnist", real_data, None, 32)
    assert (data.train.pixels.shape, data.test.pixels.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert data.test.labels.bincount().tolist() == [1000] * 10


def test_the_baseline_imports_nothing_of_this_project() -> None:
    text = Path(textbook.__file__).read_text(encoding="utf-8")
    imports = {line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports - sys.stdlib_module_names - {"__future__"} == {"numpy", "PIL", "torch"}


# -------------------------------------------------------------------------------------------- order of runs


class FakeRunner:
    """Gives each run a fixed accuracy and time; `late` and `broken` name runs."""

    def __init__(self, accuracies: dict[str, float], late: str = "", broken: str = "") -> None:
        self.accuracies, self.late, self.broken = accuracies, late, broken
        self.names: list[str] = []

    def __call__(self, run: Any) -> dict[str, Any]:
        self.names.append(run.name)
        if run.name == self.broken:
            raise outcome.RunError("exit code 1")
        seconds = run.budget * (1.03 if run.name == self.late else 1.01)
        accuracy = self.accuracies[run.who] + 0.01 * run.seed
        return {"accuracy": accuracy, "seconds": seconds, "parameters": 1000, "test_images": 10_000}


ACCURACIES = {"engine": 0.92, "resnet20": 0.9, "vgg": 0.91, "random-search": 0.915}
ACCURACIES |= {"resnet8": 0.88, "resnet8-s2": 0.87, "resnet20-w8": 0.89, "resnet20-w8-s2": 0.86}


def jobs(*names: str) -> list[Any]:
    return [outcome.JOBS[name] for name in names]


@pytest.fixture
def file(tmp_path: Path) -> Any:
    return outcome.RunFile(tmp_path / "to" / "runs.jsonl")


def test_the_engine_and_the_baselines_alternate(file: Any) -> None:
    runner = FakeRunner(ACCURACIES)
    assert outcome.measure(jobs("fashion-10m"), [0, 1], file, runner) == []
    assert runner.names == [f"fashion-10m-{who}-{seed}" for seed in (0, 1) for who in ("engine", "resnet20", "vgg")]


def test_a_run_that_is_there_is_not_repeated(file: Any) -> None:
    first = FakeRunner(ACCURACIES, broken="fashion-10m-resnet20-0")
    assert outcome.measure(jobs("fashion-10m"), [0], file, first) == ["fashion-10m-resnet20-0"]
    assert [row["who"] for row in file.rows()] == ["engine", "vgg"]
    again = FakeRunner(ACCURACIES)
    assert outcome.measure(jobs("fashion-10m"), [0, 1], file, again) == []
    missing = ["fashion-10m-resnet20-0", *(f"fashion-10m-{who}-1" for who in ("engine", "resnet20", "vgg"))]
    assert again.names == missing


def test_a_run_far_over_its_budget_is_marked(file: Any) -> None:
    outcome.measure(jobs("fashion-10m"), [0], file, FakeRunner(ACCURACIES, late="fashion-10m-engine-0"))
    rows = {row["who"]: row for row in file.rows()}
    assert (rows["engine"]["seconds"], rows["engine"]["over_budget"]) == (618, True)
    assert (rows["vgg"]["seconds"], rows["vgg"]["over_budget"]) == (606, False)
    assert {"cpu", "cores", "commit", "versions", "date"} <= set(rows["vgg"])
    text = outcome.report(file.rows())
    assert "the job fails" in text
    assert "engine seed 0 (618.0 s)" in text


def test_thirty_minutes_take_the_network_that_was_better_at_ten(file: Any) -> None:
    runner = FakeRunner(ACCURACIES)
    outcome.measure(jobs("fashion-30m"), [0], file, runner)  # nothing is there at ten minutes: both
    assert runner.names == [f"fashion-30m-{who}-0" for who in ("engine", "resnet20", "vgg")]
    runner.names.clear()
    outcome.measure(jobs("cifar-10m", "cifar-30m"), [0], file, runner)
    assert runner.names[3:] == ["cifar-30m-engine-0", "cifar-30m-vgg-0"]


def test_the_limited_job_runs_all_its_networks_and_random_search_only_when_asked(file: Any) -> None:
    runner = FakeRunner(ACCURACIES)
    outcome.measure(jobs("fashion-80k"), [0], file, runner)
    assert runner.names == [f"fashion-80k-{who}-0" for who in ("engine", *outcome.SMALL)]
    runner.names.clear()
    outcome.measure(jobs("fashion-80k"), [0], file, runner, asked=["random-search", "engine", "vgg"])
    assert runner.names == ["fashion-80k-random-search-0"]


def test_runs_of_another_length_are_not_mixed(file: Any) -> None:
    outcome.measure(jobs("photos"), [0], file, FakeRunner(ACCURACIES), scale=0.1)
    assert [row["budget"] for row in file.rows()] == pytest.approx([24, 24])
    with pytest.raises(SystemExit, match="give another --to"):
        outcome.measure(jobs("photos"), [1], file, FakeRunner(ACCURACIES))


def test_the_commands(tmp_path: Path) -> None:
    place = {"data": "fashion-mnist", "directory": "DATA"}
    run = outcome.Run(outcome.JOBS["fashion-80k"], 2, "random-search", 600.0)
    assert outcome.engine_words(run, place, tmp_path)[1:] == [
        *("run", "--data", "fashion-mnist", "--data-dir", "DATA", "--time", "600s", "--seed", "2"),
        *("--name", "fashion-80k-random-search-2", "--results", str(tmp_path)),
        *("--set", "search.max_params=80000", "--set", "search.sampler=random", "--set", "search.proposals=1"),
    ]
    run = outcome.Run(outcome.JOBS["photos"], 1, "resnet8", 240.0)
    words = outcome.textbook_words(run, {"data": "mine", "new": "mine-new"})[2:]
    given = textbook.arguments().parse_args(words)
    assert (given.network, given.data, str(given.test)) == ("resnet8", "mine", "mine-new")
    assert (given.size, given.seconds, given.seed) == (32, 240, 1)


# ------------------------------------------------------------------------------------------- scores, report


def write_onnx(path: Path, classes: list[str]) -> None:
    """A model whose logits are (-mean pixel + 128, mean pixel - 128): dark, light."""
    helper, kind = onnx.helper, onnx.TensorProto
    constants = [
        onnx.numpy_helper.from_array(np.array([-1, 1], np.float32), "sign"),
        onnx.numpy_helper.from_array(np.array([128], np.float32), "middle"),
        onnx.numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
        onnx.numpy_helper.from_array(np.array([-1, 1], np.int64), "column"),
    ]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["real"], to=kind.FLOAT),
        helper.make_node("ReduceMean", ["real", "axes"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "middle"], ["apart"]),
        helper.make_node("Reshape", ["apart", "column"], ["stacked"]),
        helper.make_node("Mul", ["stacked", "sign"], ["logits"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", kind.UINT8, ["batch", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", kind.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "means", [pixels], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(classes)})
    onnx.save(model, path)


def test_an_exported_model_is_scored_by_the_names_of_its_classes(tmp_path: Path) -> None:
    levels = np.array([10, 30, 200, 220, 240], np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (5, 3, 8, 8)).copy()
    write_onnx(tmp_path / "model.onnx", ["dark", "light"])
    labels = np.array([0, 0, 1, 1, 0])
    assert outcome.score(tmp_path, outcome.TestSet(pixels, labels, ("dark", "light"))) == 0.8
    assert outcome.score(tmp_path, outcome.TestSet(pixels, 1 - labels, ("light", "dark"))) == 0.8
    assert outcome.score(tmp_path, outcome.TestSet(pixels, labels, None)) == 0.8
    with pytest.raises(outcome.RunError, match="has the classes"):
        outcome.score(tmp_path, outcome.TestSet(pixels, labels, ("dark", "grey")))


def rows_of(who: str, accuracies: list[float], job: str = "fashion-10m", cpu: str = "EPYC") -> list[dict[str, Any]]:
    alike = {"job": job, "who": who, "budget": 600.0, "over_budget": False, "parameters": 272_186}
    alike |= {"test_images": 10_000, "cpu": cpu, "cores": 2, "commit": "abc1234", "versions": {"torch": "2.13"}}
    rows = [{**alike, "seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate(accuracies)]
    for row in rows:
        row |= {"seconds": 590.0 + row["seed"], "date": f"2026-11-2{row['seed']}T00:00:00+00:00"}
    return rows


def test_the_report_has_the_paired_difference_and_its_interval() -> None:
    rows = [*rows_of("engine", [0.93, 0.935, 0.94]), *rows_of("resnet20", [0.92, 0.915, 0.91])]
    rows += rows_of("vgg", [0.92, 0.92, 0.92])
    text = outcome.report(rows)
    # to vgg: 1, 1.5, 2 points; mean 1.5, deviation 0.5, t(2, 0.975) = 4.3027: 4.3027 * 0.5 / sqrt(3) = 1.2421
    assert "Against vgg, the best textbook network here: +1.50 [+0.26, +2.74] points." in text
    assert "**The exported model is better.**" in text
    row = "| engine | 272,186 | 93.50 % | 93.00, 93.50, 94.00 (seeds 0, 1, 2) |  |  | 591.0 (592.0) |"
    assert row in text.splitlines()
    # to resnet20: 1, 2, 3 points; deviation 1: 4.3027 / sqrt(3) = 2.4841
    assert "| +2.00 [-0.48, +4.48] | 3 | 591.0 (592.0) |" in text
    assert "EPYC, 2 cores" in text
    assert "2026-11-20 to 2026-11-22" in text
    assert "nas run --data fashion-mnist --data-dir DATA --time 600s --seed 0" in text
    assert "10,000 test images (an accuracy on them has a 95 % interval of ± 0.5 points)" in text


def test_the_report_says_where_nothing_is_shown() -> None:
    even = [*rows_of("engine", [0.92, 0.93]), *rows_of("vgg", [0.925, 0.925])]
    # -0.5 and 0.5 points: deviation 0.7071, t(1, 0.975) = 12.7062: 12.7062 * 0.7071 / sqrt(2) = 6.3531
    assert "+0.00 [-6.35, +6.35] points. **The interval holds 0: no difference is shown.**" in outcome.report(even)
    single = [*rows_of("engine", [0.92]), *rows_of("vgg", [0.925])]
    assert "-0.50 (one pair) points. One pair does not show the spread." in outcome.report(single)
    assert "share no seed yet" in outcome.report(rows_of("engine", [0.92]))


def test_runs_of_different_machines_are_not_paired() -> None:
    rows = [*rows_of("engine", [0.92, 0.93]), *rows_of("vgg", [0.925, 0.925], cpu="Xeon")]
    text = outcome.report(rows)
    assert "share no seed yet" in text
    assert "Runs of different machines are not paired." in text


def test_the_report_alone_is_written_by_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = outcome.RunFile(tmp_path / "runs.jsonl")
    for row in [*rows_of("engine", [0.92]), *rows_of("vgg", [0.91])]:
        file.append(row)
    monkeypatch.setattr(sys, "argv", ["outcome.py", "--report", "--to", str(tmp_path)])
    outcome.main()
    assert "## fashion-10m" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_job_without_its_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["outcome.py", "--jobs", "photos", "--to", str(tmp_path)])
    with pytest.raises(SystemExit, match="photos needs --photos and --photos-new"):
        outcome.main()
