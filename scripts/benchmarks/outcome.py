"""With the same data, machine and minutes: is the exported model better than a textbook network?

    python scripts/benchmarks/outcome.py --data-dir DATA                    Fashion-MNIST and CIFAR-10, seeds 0 to 2
    python scripts/benchmarks/outcome.py --jobs photos --photos photos --photos-new photos-new
    python scripts/benchmarks/outcome.py --data-dir DATA --jobs fashion-10m --who engine random-search
    python scripts/benchmarks/outcome.py --report                           write README.md, train nothing
    python scripts/benchmarks/outcome.py --data-dir DATA --jobs fashion-10m --seeds 0 --scale 0.2    to try it

A pair is a job and a seed. In each pair `nas run --time T` and the textbook scripts (baselines/textbook.py) follow
each other, never side by side, on an otherwise idle machine; each has T from the start of its process to its exit, on
the CPU. The engine's exported file is then scored on the test images of the scripts. A textbook network
trains on all given images for the whole time. `random-search` is the engine with random sampling.

Each finished run is a line of `runs.jsonl`; a run that is there is not repeated: stop and start at will. A run that
was stopped begins again. Run it in a checkout that nobody edits: each run starts the engine from its files. Another
version of the engine belongs into another folder (--to). The report has, for each job, the paired difference with
Student's 95 % interval over the seeds. CIFAR-10 lies in DATA/cifar10/cifar-10-batches-py; `--data-dir` takes several
folders.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEXTBOOK = Path(__file__).resolve().parent / "baselines" / "textbook.py"
ENGINE, RANDOM_SEARCH = "engine", "random-search"
RANDOM_SETS = ("search.sampler=random", "search.proposals=1")
TOLERANCE = 0.02
"""A run that takes longer than its budget by more than this share fails."""
FOLDER_SIZE = 32
"""Images of the folders are resized to this many pixels a side, by the engine and by the scripts."""
SCORING_BATCH = 500

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Data, minutes, and the textbook networks that the engine is compared with."""

    name: str
    data: str
    minutes: float
    baselines: tuple[str, ...]
    sets: tuple[str, ...] = ()
    decided_by: str | None = None
    """The job whose best textbook network is the only one here."""

    @property
    def is_folder(self) -> bool:
        return self.data in FOLDERS


FOLDERS = ("photos", "shapes")
STRONG = ("resnet20", "vgg")
SMALL = ("resnet8", "resnet8-s2", "resnet20-w8", "resnet20-w8-s2")
FOLDER_SETS = (f"data.size={FOLDER_SIZE}",)
JOBS = {
    job.name: job
    for job in (
        Job("fashion-10m", "fashion-mnist", 10, STRONG),
        Job("fashion-30m", "fashion-mnist", 30, STRONG, decided_by="fashion-10m"),
        Job("cifar-10m", "cifar10", 10, STRONG),
        Job("cifar-30m", "cifar10", 30, STRONG, decided_by="cifar-10m"),
        Job("fashion-80k", "fashion-mnist", 10, SMALL, ("search.max_params=80000",)),
        Job("photos", "photos", 4, ("resnet8",), FOLDER_SETS),
        Job("shapes", "shapes", 4, ("resnet8",), FOLDER_SETS),
    )
}
CONTENDERS = (ENGINE, *dict.fromkeys(name for job in JOBS.values() for name in job.baselines), RANDOM_SEARCH)


@dataclass(frozen=True)
class Run:
    """One process that is measured."""

    job: Job
    seed: int
    who: str
    budget: float
    """Seconds."""

    @property
    def is_engine(self) -> bool:
        return self.who in (ENGINE, RANDOM_SEARCH)

    @property
    def name(self) -> str:
        return f"{self.job.name}-{self.who}-{self.seed}"


class RunError(Exception):
    """A process failed; its log says why."""


# ------------------------------------------------------------------------------------------- what is to be run


def contenders(job: Job, rows: Sequence[Row], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Who runs in each pair of this job, in order; `rows` are the runs so far."""
    if asked is not None:
        return tuple(who for who in CONTENDERS if who in asked and who in (ENGINE, RANDOM_SEARCH, *job.baselines))
    baselines = job.baselines
    if job.decided_by is not None and (best := best_baseline(JOBS[job.decided_by], rows)) is not None:
        baselines = (best,)
    return (ENGINE, *baselines)


def best_baseline(job: Job, rows: Sequence[Row]) -> str | None:
    """The textbook network with the best mean over the seeds that all of them have; None without such seeds."""
    return best_of({who: by_seed(rows, job.name, who) for who in job.baselines})


def best_of(runs: Mapping[str, Mapping[int, Row]]) -> str | None:
    """Who has the best mean accuracy over the seeds that all have; None without such seeds."""
    shared = set.intersection(*(set(seeds) for seeds in runs.values())) if runs else set()
    return max(runs, key=lambda who: fmean(runs[who][seed]["accuracy"] for seed in shared)) if shared else None


def by_seed(rows: Iterable[Row], job: str, who: str) -> dict[int, Row]:
    return {row["seed"]: row for row in rows if row["job"] == job and row["who"] == who}


class RunFile:
    """`runs.jsonl`: a line a finished run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[Row]:
        if not self.path.is_file():
            return []
        rows = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                sys.exit(f"{self.path}, line {number} is not JSON: remove the line, and the run is repeated")
        return rows

    def append(self, row: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def measure(
    jobs: Sequence[Job],
    seeds: Sequence[int],
    file: RunFile,
    runner: Callable[[Run], Row],
    *,
    asked: Sequence[str] | None = None,
    scale: float = 1.0,
) -> list[str]:
    """Runs what is not there yet, one after the other; returns the names of the runs that failed."""
    check_budgets(file, scale)
    failed = []
    for job in jobs:
        names = contenders(job, file.rows(), asked)
        for seed in seeds:
            for who in names:
                run = Run(job, seed, who, job.minutes * 60 * scale)
                if seed in by_seed(file.rows(), job.name, who):
                    continue
                print(f"{job.name}, seed {seed}, {who}: {run.budget:g} s", flush=True)
                try:
                    row = finished(run, runner(run))
                except RunError as error:
                    print(f"  failed: {error}", flush=True)
                    failed.append(run.name)
                    continue
                file.append(row)
                over = ", OVER THE BUDGET" if row["over_budget"] else ""
                print(f"  {100 * row['accuracy']:.2f} % in {row['seconds']:.1f} s{over}", flush=True)
    return failed


def check_budgets(file: RunFile, scale: float) -> None:
    """Exits where the folder has runs of another length."""
    for row in file.rows():
        budget = JOBS[row["job"]].minutes * 60 * scale
        if abs(row["budget"] - budget) > 1e-6 * budget:
            sys.exit(f"{file.path} has a run of {row['budget']:g} s, not {budget:g}: give another --to, or its --scale")


def finished(run: Run, measured: Row) -> Row:
    """The line of a run; `measured` has accuracy, seconds, parameters and what else the runner knows."""
    row = {"job": run.job.name, "seed": run.seed, "who": run.who, "budget": run.budget}
    row |= {**measured, "over_budget": measured["seconds"] > (1 + TOLERANCE) * run.budget}
    return {**row, **machine(), "date": datetime.now(UTC).isoformat(timespec="seconds")}


def machine() -> Row:
    """CPU and versions."""
    packages = ("torch", "numpy", "onnxruntime", "ray")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "commit": commit(), "versions": versions}


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The engine's commit, with a + where files of the engine differ from it."""
    head = git("rev-parse", "--short", "HEAD")
    return f"{head}+" if head and git("status", "--porcelain", "--", "nas", "search_spaces") else head


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


# -------------------------------------------------------------------------------------------------- processes


class Processes:
    """The runner: starts a process for a run, waits for it, and scores what it left."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.work: Path = given.work
        self.tests: dict[str, TestSet] = {}

    def __call__(self, run: Run) -> Row:
        self.work.mkdir(parents=True, exist_ok=True)
        if not run.is_engine:
            seconds, printed = self.timed(run, textbook_words(run, self.place(run.job)))
            own = json.loads(printed.splitlines()[-1])
            return {**own, "own_seconds": own["seconds"], "seconds": seconds}
        shutil.rmtree(self.work / run.name, ignore_errors=True)  # of a run that was stopped
        seconds, _ = self.timed(run, engine_words(run, self.place(run.job), self.work))
        export = self.work / run.name / "export"
        if not (export / "model.onnx").is_file():
            raise RunError(f"{export} holds no model.onnx")
        card = json.loads((export / "model_card.json").read_text(encoding="utf-8"))
        test = self.test(run.job)
        row = {"accuracy": score(export, test), "seconds": seconds, "parameters": card["params"]}
        return row | {"test_images": len(test), "card_accuracy": card["exported accuracy"].get("logits")}

    def timed(self, run: Run, words: Sequence[str]) -> tuple[float, str]:
        """(seconds from start to exit, standard output) of a command that works on the CPU."""
        log = self.work / f"{run.name}.log"
        with log.open("w", encoding="utf-8") as errors:
            began = time.monotonic()
            process = subprocess.run(
                words,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
                check=False,
            )
            seconds = time.monotonic() - began
            errors.write(process.stdout)
        if process.returncode:
            raise RunError(f"exit code {process.returncode}, see {log}")
        return round(seconds, 2), process.stdout

    def place(self, job: Job) -> Mapping[str, str]:
        """Where the job's data lie."""
        return places(self.given)[job.data]

    def test(self, job: Job) -> TestSet:
        """The test images, read once."""
        if job.data not in self.tests:
            textbook = import_textbook()
            place = self.place(job)
            directory, new = place.get("directory"), place.get("new")
            data = textbook.read_data(
                place["data"], Path(directory) if directory else None, Path(new) if new else None, FOLDER_SIZE
            )
            self.tests[job.data] = TestSet(
                data.test.pixels.contiguous().numpy(), data.test.labels.numpy(), data.classes
            )
        return self.tests[job.data]


def places(given: argparse.Namespace) -> dict[str, Mapping[str, str]]:
    """The data that the command line names: --data of both commands, --data-dir, or a folder of new images."""
    there: dict[str, Mapping[str, str]] = {}
    for directory in given.data_dir or ():
        for name, sign in (("fashion-mnist", "*-ubyte.gz"), ("cifar10", "cifar-10-batches-py/test_batch")):
            if name not in there and any((directory / name).glob(sign)):
                there[name] = {"data": name, "directory": str(directory)}
    for name in FOLDERS:
        folder, new = getattr(given, name), getattr(given, f"{name}_new")
        if folder and new:
            there[name] = {"data": str(folder), "new": str(new)}
    return there


def engine_words(run: Run, place: Mapping[str, str], work: Path) -> list[str]:
    words = [str(Path(sys.executable).with_name("nas")), "run", "--data", place["data"]]
    if "directory" in place:
        words += ["--data-dir", place["directory"]]
    words += ["--time", f"{run.budget:g}s", "--seed", str(run.seed), "--name", run.name, "--results", str(work)]
    sets = (*run.job.sets, *(RANDOM_SETS if run.who == RANDOM_SEARCH else ()))
    return [*words, *(word for assignment in sets for word in ("--set", assignment))]


def textbook_words(run: Run, place: Mapping[str, str]) -> list[str]:
    words = [sys.executable, str(TEXTBOOK), run.who, "--data", place["data"]]
    if "directory" in place:
        words += ["--data-dir", place["directory"]]
    else:
        words += ["--test", place["new"], "--size", str(FOLDER_SIZE)]
    return [*words, "--seconds", f"{run.budget:g}", "--seed", str(run.seed)]


def import_textbook() -> Any:
    sys.path.insert(0, str(TEXTBOOK.parent))
    try:
        import textbook
    finally:
        sys.path.pop(0)
    return textbook


@dataclass(frozen=True)
class TestSet:
    """Test images: pixels uint8 (N, C, H, W), labels (N), and the names of the classes where they have names."""

    pixels: Any
    labels: Any
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.labels)


def score(export: Path, test: TestSet) -> float:
    """Accuracy of an exported model, 0 to 1. It takes raw pixels and normalises them itself."""
    import numpy as np

    predict, classes = load_onnx(export / "model.onnx")
    numbers = test.labels
    if test.classes is not None:  # a folder's: by name, in case the orders differ
        if set(test.classes) != set(classes):
            raise RunError(f"{export} has the classes {', '.join(classes)}, the test {', '.join(test.classes)}")
        numbers = np.array([classes.index(name) for name in test.classes])[test.labels]
    right = 0
    for start in range(0, len(test), SCORING_BATCH):
        logits = predict(test.pixels[start : start + SCORING_BATCH])
        right += int((logits.argmax(1) == numbers[start : start + SCORING_BATCH]).sum())
    return right / len(test)


def load_onnx(path: Path) -> tuple[Callable[[Any], Any], list[str]]:
    """(raw pixels -> logits, names of the classes)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    return lambda pixels: session.run(["logits"], {"pixels": pixels})[0], list(classes)


# ----------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Difference:
    """The engine's accuracy minus another's, paired by seed; low and high are None for a single pair."""

    pairs: int
    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, engine: Mapping[int, Row], other: Mapping[int, Row]) -> Difference | None:
        """Pairs of the same machine only; None without any."""
        seeds = sorted(seed for seed in engine if seed in other and same_machine(engine[seed], other[seed]))
        if not seeds:
            return None
        apart = [engine[seed]["accuracy"] - other[seed]["accuracy"] for seed in seeds]
        if len(apart) == 1:
            return cls(1, apart[0], None, None)
        from scipy.stats import t

        half = float(t.ppf(0.975, len(apart) - 1)) * stdev(apart) / len(apart) ** 0.5
        return cls(len(apart), fmean(apart), fmean(apart) - half, fmean(apart) + half)

    def __str__(self) -> str:
        """In points."""
        if self.low is None or self.high is None:
            return f"{100 * self.mean:+.2f} (one pair)"
        return f"{100 * self.mean:+.2f} [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"


def same_machine(first: Row, second: Row) -> bool:
    return (first["cpu"], first["cores"]) == (second["cpu"], second["cores"])


def report(rows: Sequence[Row]) -> str:
    """README.md of the folder."""
    parts = [HEAD]
    parts += [section(job, rows) for job in JOBS.values() if any(row["job"] == job.name for row in rows)]
    return "\n".join([*parts, foot(rows)])


def section(job: Job, rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["job"] == job.name]
    runs = {who: by_seed(own, job.name, who) for who in CONTENDERS}
    seconds, images = own[0]["budget"], own[0]["test_images"]
    mean = fmean(row["accuracy"] for row in own)
    noise = 196 * (mean * (1 - mean) / images) ** 0.5
    text = f"{title(job)}, {seconds:g} seconds each, {images:,} test images"
    lines = [f"## {job.name}", "", f"{text} (an accuracy on them has a 95 % interval of ± {noise:.1f} points).", ""]
    lines += [verdict(job, runs), ""]
    lines.append("| who | parameters | mean | by seed | engine ahead, points | pairs | seconds, mean (longest) |")
    lines.append("|---|---|---|---|---|---|---|")
    lines += [table_row(who, runs) for who in CONTENDERS if runs[who]]
    if late := [row for row in own if row["over_budget"]]:
        names = ", ".join(f"{row['who']} seed {row['seed']} ({row['seconds']:.1f} s)" for row in late)
        lines += ["", f"**Over the budget by more than {100 * TOLERANCE:.0f} %, a failure: {names}.**"]
    return "\n".join([*lines, ""])


def title(job: Job) -> str:
    names = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "photos": "A folder of photographs"}
    text = names.get(job.data, "A folder of drawn shapes")
    limits = [assignment for assignment in job.sets if assignment.startswith("search.max")]
    return ", ".join([text, *(f"`{assignment}`" for assignment in limits)])


def verdict(job: Job, runs: Mapping[str, Mapping[int, Row]]) -> str:
    """The engine against the best textbook network."""
    differences = {who: Difference.of(runs[ENGINE], runs[who]) for who in job.baselines}
    best = best_of({who: runs[who] for who in job.baselines if differences[who] is not None})
    if best is None or (difference := differences[best]) is None:
        return "The engine and the textbook networks share no seed yet."
    text = f"Against {best}, the best textbook network here: {difference} points."
    if any(row["over_budget"] for row in runs[ENGINE].values()):
        return f"{text} **The engine took longer than its budget: the job fails.**"
    if difference.low is None or difference.high is None:
        return f"{text} One pair does not show the spread."
    if difference.low <= 0 <= difference.high:
        return f"{text} **The interval holds 0: no difference is shown.**"
    return f"{text} **The exported model is {'better' if difference.low > 0 else 'worse'}.**"


def table_row(who: str, runs: Mapping[str, Mapping[int, Row]]) -> str:
    own = [runs[who][seed] for seed in sorted(runs[who])]
    mean = 100 * fmean(row["accuracy"] for row in own)
    seeds = ", ".join(f"{100 * row['accuracy']:.2f}{'!' if row['over_budget'] else ''}" for row in own)
    numbers = ", ".join(str(row["seed"]) for row in own)
    parameters = sorted({row["parameters"] for row in own})
    sizes = f"{parameters[0]:,}" if len(parameters) == 1 else f"{parameters[0]:,} to {parameters[-1]:,}"
    difference = None if who == ENGINE else Difference.of(runs[ENGINE], runs[who])
    seconds = [row["seconds"] for row in own]
    cells = [who, sizes, f"{mean:.2f} %", f"{seeds} (seeds {numbers})", str(difference or "")]
    cells += [str(difference.pairs if difference else ""), f"{fmean(seconds):.1f} ({max(seconds):.1f})"]
    return "| " + " | ".join(cells) + " |"


def foot(rows: Sequence[Row]) -> str:
    dates = sorted(row["date"][:10] for row in rows)
    machines = sorted({f"{row['cpu']}, {row['cores']} cores" for row in rows})
    commits = sorted({row["commit"] for row in rows if row["who"] in (ENGINE, RANDOM_SEARCH)})
    packages = sorted({", ".join(f"{name} {number}" for name, number in row["versions"].items()) for row in rows})
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    names = [job.name for job in JOBS.values() if any(row["job"] == job.name for row in rows)]
    seeds = sorted({row["seed"] for row in rows})
    scale = next(row["budget"] / (60 * JOBS[row["job"]].minutes) for row in rows)
    scaled = "" if abs(scale - 1) < 1e-9 else f" --scale {scale:g}"
    command = f"python scripts/benchmarks/outcome.py --jobs {' '.join(names)} --seeds {' '.join(map(str, seeds))}"
    command += "" if all(JOBS[name].is_folder for name in names) else " --data-dir DATA"
    for folder in FOLDERS:
        command += f" --{folder} {folder} --{folder}-new {folder}-new" if folder in names else ""
    command += scaled
    if any(row["who"] == RANDOM_SEARCH for row in rows):
        command += f"  # and --who {RANDOM_SEARCH}"
    lines = ["## How it was measured", "", "```sh", command]
    for name in names:
        job = JOBS[name]
        place = {"data": job.data} | ({"new": f"{job.data}-new"} if job.is_folder else {"directory": "DATA"})
        run = Run(job, 0, ENGINE, job.minutes * 60 * scale)
        lines.append(" ".join(["nas", *engine_words(run, place, Path("results"))[1:]]))
        for who in job.baselines:
            if any(row["who"] == who and row["job"] == name for row in rows):
                words = textbook_words(Run(job, 0, who, run.budget), place)[2:]
                lines.append(" ".join(["python scripts/benchmarks/baselines/textbook.py", *words]))
    lines += ["```", "", f"{days}. {'; '.join(machines)}. {'; '.join(packages)}."]
    if commits:
        lines.append(f"Engine at commit {', '.join(commits)} (+: with changes that are not committed).")
    if len(machines) > 1:
        lines.append("Runs of different machines are not paired.")
    return "\n".join([*lines, ""])


HEAD = """\
# Outcome: the engine against textbook networks

With the same data, machine and minutes: is the exported model better than a textbook network that a plain script
trains for the whole time? A pair is one seed: the engine (`nas run --time`) and then the scripts, one after the other.
All wall time counts, from the start of a process to its exit. The exported `model.onnx` and the script's network are
scored on the same test images. The script trains on all given images; the engine keeps some of them to choose by.
"Engine ahead" is the mean paired difference in accuracy, in points, with Student's 95 % interval over the seeds. It
covers what changes from seed to seed, not which test images there are. `runs.jsonl` has every run.
"""


# ------------------------------------------------------------------------------------------------------- main


def selected(given: argparse.Namespace) -> Iterator[Job]:
    """The asked jobs, in the order of JOBS; without --jobs those whose data are given."""
    there = places(given)
    for job in JOBS.values():
        if job.data in there and (given.jobs is None or job.name in given.jobs):
            yield job
        elif given.jobs is not None and job.name in given.jobs:
            need = f"--{job.data} and --{job.data}-new" if job.is_folder else f"--data-dir with {job.data}/"
            sys.exit(f"{job.name} needs {need}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, nargs="+", help="where fashion-mnist/ and cifar10/ lie")
    for name in FOLDERS:
        parser.add_argument(f"--{name}", type=Path, help="a folder of class/image files to train on")
        parser.add_argument(f"--{name}-new", type=Path, help="a folder of other images of the same classes to score on")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, help="left out: all whose data are given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--who", nargs="+", choices=CONTENDERS, help="left out: the engine and the job's networks")
    parser.add_argument("--to", type=Path, help="left out: results/reference/outcome; scaled: results/outcome-small")
    parser.add_argument("--work", type=Path, help="of experiments and logs; left out: results/outcome-work")
    parser.add_argument("--scale", type=float, default=1.0, help="of all times; for tests")
    parser.add_argument("--report", action="store_true", help="write README.md, train nothing")
    given = parser.parse_args()
    full = given.scale == 1
    given.to = given.to or Path("results/reference/outcome" if full else "results/outcome-small")
    given.work = given.work or Path("results/outcome-work") / given.to.resolve().name
    file = RunFile(given.to / "runs.jsonl")
    if given.report:
        rows = file.rows()
        if not rows:
            sys.exit(f"no runs in {file.path}")
        (given.to / "README.md").write_text(report(rows), encoding="utf-8")
        print(given.to / "README.md")
        return
    jobs = list(selected(given))
    if not jobs:
        sys.exit("no data: give --data-dir, --photos and --photos-new, or --shapes and --shapes-new")
    if failed := measure(jobs, given.seeds, file, Processes(given), asked=given.who, scale=given.scale):
        sys.exit(f"failed: {', '.join(failed)}; the same command repeats them")


if __name__ == "__main__":
    main()
