"""Executors: the same measurements in this process and over Ray, and workers that may die at any moment.

One Ray for all tests here: a cluster of two machines on this one, with GPUs that are only declared.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import safetensors.torch
import torch
from ray.cluster_utils import Cluster

from nas.config import DataConfig, ExecutorConfig, Recipe, SearchConfig, TowersConfig
from nas.data import Data, load
from nas.errors import ConfigError, JobError
from nas.evaluation.evaluator import Job, Outcome, Setup, SpaceSpec
from nas.executor import ATTEMPTS, Executor, InProcess, RayExecutor, ray_executor, start
from nas.executor.cluster import start_ray
from nas.ladder import Rung

RUNG = Rung(
    "proxy",
    Recipe(epochs=1, images=256, batch_size=128, learning_rate=0.1, augment=("crop",)),
    TowersConfig(placement="middle"),
)

FINAL = Rung("retrain", RUNG.recipe, TowersConfig(placement="middle", kind="linear", share=0.9), final=True)
"""Without dropout, whose masks are each process's own."""

SPACE = '''
"""Networks that behave as their architecture says; each training notes its process in the folder `notes`."""
import os
import signal
import time
from pathlib import Path
import torch
from torch import nn
from nas.space import Architecture, SearchSpace, SpaceSettings

class Behaviour(Architecture):
    does: str = "learn"
    width: int = 4

class Settings(SpaceSettings):
    notes: str

class Network(nn.Module):
    cell_names = ("cell1", "cell2", "cell3")

    def __init__(self, architecture, channels, classes, notes):
        super().__init__()
        self.does, self.notes = architecture.does, Path(notes) / f"{architecture.does}{architecture.width}"
        self.cell1 = nn.Conv2d(channels, architecture.width, 3, padding=1)
        self.cell2 = nn.Conv2d(architecture.width, architecture.width, 3, padding=1)
        self.cell3 = nn.Conv2d(architecture.width, architecture.width, 3, padding=1)
        self.linear = nn.Linear(architecture.width, classes)
        self.begun = False

    def forward(self, x):
        if self.training and len(x) > 10 and not self.begun:  # a training, no dry run
            self.begun = True
            first = not self.notes.exists()
            with self.notes.open("a") as file:
                file.write(f"{os.getpid()}\\n")
            if self.does == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.does == "linger" and first:
                time.sleep(120)
            mark = self.notes.with_name(f"running-{os.getpid()}")
            if self.does == "slow":
                mark.touch()
                time.sleep(2)
                mark.unlink()
            if self.does == "starve" or (self.does == "hunger" and first):
                raise torch.OutOfMemoryError("no room")
            if self.does == "hunger" and list(mark.parent.glob("running-*")):
                raise RuntimeError("something runs beside it")
        y = self.linear(torch.relu(self.cell3(self.cell2(self.cell1(x)))).mean((2, 3)))
        return y / 0 if self.does == "diverge" and self.training else y

class Space(SearchSpace):
    """Behaving networks."""
    architecture_type = Behaviour
    settings_type = Settings
    def suggest(self, trial):
        return Behaviour(width=trial.suggest_int("width", 2, 64))
    def build(self, architecture, input_shape, num_classes):
        return Network(architecture, input_shape[0], num_classes, self.settings.notes)
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[Executor]:
    """Two machines, of 6 CPUs and 2 GPUs and of 1 CPU; the executors of the tests find Ray running and use it."""
    if ray.is_initialized():  # left by another test file
        ray.shutdown()
    head = {"num_cpus": 6, "num_gpus": 2, "include_dashboard": False}
    machines = Cluster(initialize_head=True, head_node_args=head)
    try:
        machines.add_node(num_cpus=1)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        with RayExecutor(ExecutorConfig(address=machines.address, workers=1, device="cpu")) as connected:
            assert {number: signal.getsignal(number) for number in handlers} == handlers
            yield connected
        assert not ray.is_initialized()  # who starts it ends it
    finally:
        machines.shutdown()


@pytest.fixture(scope="module")
def pool(cluster: Executor) -> Iterator[Executor]:
    """Two workers that several tests share, one setting after the other."""
    with start(ExecutorConfig(workers=2, device="cpu")) as executor:
        assert isinstance(executor, RayExecutor)
        yield executor
    assert ray.is_initialized()  # who finds it running leaves it running


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig()).without_test()


@pytest.fixture(scope="module")
def inception(data: Data) -> Setup:
    spec = SpaceSpec.of("inception", {"widths": [8, 8, 8], "stem": [8, 8]})
    return Setup(spec, data, SearchConfig())


@pytest.fixture
def behaving(tmp_path: Path, data: Data) -> Setup:
    """A space of one's own, whose file is gone before any worker asks for it."""
    file = tmp_path / "behaving.py"
    file.write_text(SPACE)
    spec = SpaceSpec.of(f"{file}:Space", {"notes": str(tmp_path)})
    file.unlink()
    return Setup(spec, data, SearchConfig())


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_flush_denormal(False)


def job(setting: Setup, does: str, width: int = 4, rung: Rung = RUNG) -> Job:
    architecture_type: Any = setting.space.load().architecture_type
    return Job.of(architecture_type(does=does, width=width), rung, 0)


def outcomes(executor: Executor, jobs: list[Job], seconds: float = 90) -> list[Outcome]:
    """Submit all and wait for all; more may be submitted than there are workers."""
    for one in jobs:
        executor.submit(one)
    found: list[Outcome] = []
    deadline = time.monotonic() + seconds
    while executor.running and time.monotonic() < deadline:
        found += executor.wait(timeout=1.0)
    assert executor.running == 0, f"{executor.running} jobs did not come back"
    assert sorted(o.job.key for o in found) == sorted(one.key for one in jobs)
    return found


def some_outcomes(executor: Executor, count: int, seconds: float = 200) -> list[Outcome]:
    """Wait for so many."""
    found: list[Outcome] = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < deadline, "waited in vain"
        found += executor.wait(timeout=1.0)
    return found


def until(what: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def read(weights: bytes) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(weights)


def pids(setting: Setup, behaviour: str) -> list[int]:
    """The processes that began to train networks of this behaviour and width."""
    file = Path(setting.space.settings["notes"]) / behaviour
    return [int(line) for line in file.read_text().split()] if file.exists() else []


# ------------------------------------------------------------------------------------------------ results


def test_measurements_are_the_same_in_this_process_and_over_ray(pool: Executor, inception: Setup) -> None:
    space = inception.space.load()
    jobs = [Job.of(space.random(seed), RUNG, seed, trial=seed) for seed in range(4)]
    jobs.append(Job.of(space.random(0), Rung("retrain", RUNG.recipe, RUNG.towers), 0))
    longer = RUNG.recipe.model_copy(update={"epochs": 3, "readings": (1, 3)})
    none = TowersConfig(placement="none")
    rungs = (Rung("3", longer, none, as_costly_as=RUNG.towers), Rung("free", RUNG.recipe, none, free=True))
    jobs += [Job.of(space.random(0), one, 0) for one in rungs]
    found = []
    with start(ExecutorConfig(kind="in-process")) as here:
        assert isinstance(here, InProcess)
        for executor, workers in ((here, 1), (pool, 2)):
            assert executor.wait() == []
            executor.use(inception)
            assert executor.free == executor.workers == workers
            found.append({o.job: o.measurement for o in outcomes(executor, jobs)})
            assert executor.free == executor.workers
    for one in jobs:
        here_one, there_one = (measurements[one] for measurements in found)
        assert here_one.status == "done"
        assert here_one.signals == there_one.signals  # to the last bit
        assert here_one.towers == there_one.towers
        assert (there_one.key, there_one.rung, there_one.seed) == one.unit


def test_a_space_in_a_file_works_on_workers_that_never_see_the_file(pool: Executor, behaving: Setup) -> None:
    pool.use(behaving)  # after another setting
    found = outcomes(pool, [job(behaving, "learn", width) for width in (3, 4, 5)])
    assert [o.measurement.status for o in found] == ["done"] * 3
    for width in (3, 4, 5):
        assert os.getpid() not in pids(behaving, f"learn{width}")


# ------------------------------------------------------------------------------------------ dying workers


def test_a_worker_killed_in_mid_candidate_costs_one_retry(pool: Executor, behaving: Setup) -> None:
    pool.use(behaving)
    jobs = [job(behaving, "linger"), job(behaving, "learn", 3), job(behaving, "learn", 4)]
    for one in jobs:
        pool.submit(one)
    assert (pool.running, pool.free) == (3, -1)  # one more than there are workers waits its turn
    assert {o.job for o in some_outcomes(pool, 2)} == set(jobs[1:])
    began = time.monotonic()
    assert pool.wait(timeout=0.2) == []  # waiting is bounded
    assert time.monotonic() - began < 5
    until(lambda: pids(behaving, "linger4"))
    os.kill(pids(behaving, "linger4")[0], signal.SIGKILL)
    (outcome,) = some_outcomes(pool, 1)
    assert outcome.job == jobs[0]
    assert outcome.measurement.status == "done"
    assert len(set(pids(behaving, "linger4"))) == 2
    with InProcess(ExecutorConfig()) as executor:
        executor.use(behaving)
        (again,) = outcomes(executor, jobs[:1])
    assert again.measurement.signals == outcome.measurement.signals


def test_a_candidate_that_always_kills_its_worker_fails_alone(pool: Executor, behaving: Setup) -> None:
    pool.use(behaving)
    deadly = job(behaving, "die")
    others = [job(behaving, "learn", width) for width in (3, 4, 5)]
    found = {o.job: o.measurement for o in outcomes(pool, [deadly, *others])}
    assert found[deadly].status == "failed"
    assert re.fullmatch(r"its worker died 2 times \(\w+\)", found[deadly].cause or "")
    died = pids(behaving, "die4")
    assert len(died) == len(set(died)) == ATTEMPTS
    assert [found[one].status for one in others] == ["done"] * 3
    assert pool.free == pool.workers == 2
    again = outcomes(pool, [job(behaving, "learn", width) for width in (6, 7)])  # both workers work on
    assert [o.measurement.status for o in again] == ["done"] * 2


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("import frobnicate", r"^a worker could not be set up: .*No module named 'frobnicate'$"),
        ("os._exit(1)", "workers in a row died as they started"),  # and are not replaced for ever
    ],
)
def test_workers_that_cannot_be_set_up_end_the_work_and_are_no_candidates_fault(
    cluster: Executor, tmp_path: Path, data: Data, first: str, said: str
) -> None:
    file = tmp_path / "here_only.py"
    file.write_text(f"import os\nif os.getpid() != {os.getpid()}:\n    {first}\n{SPACE}")
    setting = Setup(SpaceSpec.of(f"{file}:Space", {"notes": str(tmp_path)}), data, SearchConfig())
    with RayExecutor(ExecutorConfig(workers=1, device="cpu")) as executor:
        executor.use(setting)
        executor.submit(job(setting, "learn"))
        with pytest.raises(JobError, match=said):
            some_outcomes(executor, 1)


# ------------------------------------------------------------------------------------------ out of memory


def test_what_found_too_little_memory_beside_others_is_tried_again_alone(cluster: Executor, behaving: Setup) -> None:
    with RayExecutor(ExecutorConfig(workers=4, gpus=0.5)) as executor:
        executor.use(behaving)
        jobs = [job(behaving, "slow", width) for width in (2, 3, 4, 5, 6)]
        jobs[1:1] = [job(behaving, "hunger"), job(behaving, "starve")]
        found = {o.job: o.measurement for o in outcomes(executor, jobs)}
        for one in jobs:
            done = one != job(behaving, "starve")
            assert found[one].status == ("done" if done else "failed"), found[one].cause
        assert found[job(behaving, "starve")].cause == "out of memory on cpu: no room"
        assert len(pids(behaving, "hunger4")) == len(pids(behaving, "starve4")) == 2
        assert executor.free == executor.workers == 4


def test_what_has_the_memory_for_itself_is_not_tried_again(pool: Executor, behaving: Setup) -> None:
    with InProcess(ExecutorConfig()) as here:
        for executor, width in ((pool, 4), (here, 5)):
            executor.use(behaving)
            (outcome,) = outcomes(executor, [job(behaving, "hunger", width)])
            assert outcome.measurement.status == "failed"
            assert outcome.measurement.cause == "out of memory on cpu: no room"
            assert len(pids(behaving, f"hunger{width}")) == 1


# --------------------------------------------------------------------------------------- one of several


@pytest.mark.slow
def test_a_network_retrained_by_two_processes_is_that_of_one(cluster: Executor) -> None:
    """Weights within 5e-3: rounding grows through batch norm. Where it cannot, test_parallel.py asks for 1e-5."""
    setting = Setup(
        SpaceSpec.of("inception", {"widths": [8, 8, 8], "stem": [8, 8]}), load(DataConfig()), SearchConfig()
    )
    one = Job.of(setting.space.load().random(0), FINAL, 0)
    found: list[Outcome] = []
    with (
        InProcess(ExecutorConfig()) as here,
        RayExecutor(ExecutorConfig(device="cpu", workers=1, retrain_workers=2)) as together,
    ):
        for executor in (here, together):
            executor.use(setting)
            found += outcomes(executor, [one])
    alone, shared = found
    assert shared.measurement.status == "done", shared.measurement.cause
    assert shared.measurement.signals.keys() == alone.measurement.signals.keys()
    assert shared.measurement.towers == alone.measurement.towers
    for name, value in alone.measurement.signals.items():
        assert shared.measurement.signals[name] == pytest.approx(value, rel=1e-3, abs=1e-2), name
    for ours, theirs in ((alone.weights, shared.weights), (alone.towers, shared.towers)):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(read(theirs), read(ours), rtol=5e-3, atol=5e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_several_gpus_a_retraining_has_them_all(cluster: Executor, behaving: Setup) -> None:
    """By default, each process on one; a lost process costs one retry, a candidate's own fault none."""
    setting = replace(behaving, data=load(DataConfig()))
    with RayExecutor(ExecutorConfig()) as executor:
        assert (executor.workers, executor.retrainings, executor.processes) == (2, 1, 2)
        executor.use(setting)
        proxies = [job(setting, "learn", width) for width in (5, 6)]
        finals = [job(setting, does, 3, FINAL) for does in ("learn", "diverge", "linger")]
        for one in (proxies[0], *finals, proxies[1]):
            executor.submit(one)
        found: list[Outcome] = []
        deadline = time.monotonic() + 500
        while len(pids(setting, "linger3")) < 2:  # both processes train
            assert time.monotonic() < deadline, "waited in vain"
            found += executor.wait(timeout=0.2)
        os.kill(pids(setting, "linger3")[0], signal.SIGKILL)
        found += some_outcomes(executor, 5 - len(found), 300)
        assert executor.running == 0
    assert {one.job for one in found} == {*proxies, *finals}
    measured = {one.job: one.measurement for one in found}
    for one in (*proxies, finals[0], finals[2]):
        assert measured[one].status == "done", measured[one].cause
    assert measured[finals[1]].cause == "the training loss was not finite by step 2"
    trained = {name: pids(setting, name) for name in ("learn5", "learn3", "diverge3", "linger3", "learn6")}
    assert {name: len(set(those)) for name, those in trained.items()} == {
        "learn5": 1,
        "learn3": 2,
        "diverge3": 2,
        "linger3": 4,
        "learn6": 1,
    }


@pytest.mark.parametrize(
    ("config", "processes"),
    [
        ({}, 2),
        ({"gpus": 0.5, "workers": 3}, 2),
        ({"workers": 1}, 1),  # the person wants one GPU used
        ({"retrain_workers": 1}, 1),
        ({"device": "cpu"}, 1),
        ({"device": "cpu", "retrain_workers": 3}, 3),
    ],
)
def test_as_many_processes_retrain_a_network_as_there_are_gpus(
    cluster: Executor, config: dict[str, object], processes: int
) -> None:
    with RayExecutor(ExecutorConfig.model_validate(config)) as executor:
        assert executor.processes == processes
        assert executor.retrainings == (executor.workers if processes == 1 else 1)


# ------------------------------------------------------------------------------------------------- places


def test_four_workers_of_half_a_gpu_see_two_gpus_twice(cluster: Executor) -> None:
    with RayExecutor(ExecutorConfig(workers=4, gpus=0.5)) as executor:
        assert executor.workers == 4
        assert executor.gpu_ids() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("config", "workers"),
    [
        ({}, 2),  # one worker a GPU
        ({"gpus": 0.4}, 4),  # what is left of two GPUs makes no fifth share
        ({"gpus": 0.25}, 6),  # as many as there are CPUs beside the GPUs
        ({"device": "cpu"}, 7),
        ({"device": "cpu", "threads": 4}, 1),  # 7 CPUs, but on two machines
    ],
)
def test_there_are_as_many_slots_as_have_room(cluster: Executor, config: dict[str, object], workers: int) -> None:
    with RayExecutor(ExecutorConfig.model_validate(config)) as executor:
        assert executor.workers == workers


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"device": "cpu", "workers": 8}, "executor.workers asks for 8 workers, but Ray has room for 7"),
        ({"gpus": 0.4, "workers": 5}, "executor.workers asks for 5 workers, but Ray has room for 4"),
        ({"device": "cpu", "threads": 7}, "executor.threads asks for 7 CPUs a worker, but Ray has 6 a machine"),
        ({"gpus": 3}, "executor.gpus asks for 3 GPUs a worker, but one GPU is all that a worker uses"),
        ({"gpus": 0.5, "device": "cpu"}, "executor.gpus asks for 0.5 GPUs a worker, but Ray has none to use"),
        ({"retrain_workers": 3}, "executor.retrain_workers asks for 3 processes, but Ray has room for 2"),
    ],
)
def test_more_than_there_is_room_for_is_refused(cluster: Executor, config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        RayExecutor(ExecutorConfig.model_validate(config))
    assert ray.is_initialized()


def test_workers_that_wait_for_room_are_no_mystery(
    pool: Executor, behaving: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program, here the pool's two workers, may have what there is room for."""
    monkeypatch.setattr(ray_executor, "START", 1.0)
    with RayExecutor(ExecutorConfig(workers=1, threads=6, device="cpu")) as executor:
        executor.use(behaving)
        executor.submit(job(behaving, "learn"))
        with pytest.raises(JobError, match=r"^no worker has started in 1 s: has the cluster room for one\?$"):
            some_outcomes(executor, 1)


@pytest.mark.slow
def test_closing_ends_the_processes_of_a_retraining(cluster: Executor, behaving: Setup) -> None:
    """The last on this cluster: without a dashboard, Ray Train's placement group stays until the driver's job ends."""
    setting = replace(behaving, data=load(DataConfig()))
    with RayExecutor(ExecutorConfig(device="cpu", workers=1, retrain_workers=2)) as executor:
        executor.use(setting)
        executor.submit(job(setting, "linger", 7, FINAL))
        until(lambda: executor.wait(timeout=0.2) or len(pids(setting, "linger7")) == 2, 120)
    until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids(setting, "linger7")))


# -------------------------------------------------------------------------- a process and a Ray of its own

UNREACHABLE = """
import signal, sys, time
from nas.config import ExecutorConfig
from nas.errors import JobError
from nas.executor import RayExecutor
handler = lambda *_: None
signal.signal(signal.SIGTERM, handler)
for address in sys.argv[1:]:
    began = time.monotonic()
    try:
        RayExecutor(ExecutorConfig(address=address))
    except JobError as error:
        print(error)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert time.monotonic() - began < 30
"""


def test_a_cluster_that_does_not_answer_is_a_clear_error_soon() -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens on a port that is only bound
        addresses = [f"127.0.0.1:{taken.getsockname()[1]}", "nowhere.invalid:6379", "half-an-address"]
        command = [sys.executable, "-c", UNREACHABLE, *addresses]
        run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    for address, line in zip(addresses, run.stdout.splitlines(), strict=True):
        assert line.startswith(f"Ray could not be reached at '{address}': ")


RETRAINING = """
import sys
from nas.config import DataConfig, ExecutorConfig, SearchConfig
from nas.data import load
from nas.executor import start
from nas.evaluation.evaluator import Job, Setup, SpaceSpec
sys.path.insert(0, sys.argv[1])
from test_executor import FINAL, job
if __name__ == "__main__":
    setting = Setup(SpaceSpec.of(f"{sys.argv[2]}:Space", {"notes": sys.argv[3]}), load(DataConfig()), SearchConfig())
    with start(ExecutorConfig(device="cpu", workers=2, retrain_workers=2)) as executor:
        executor.use(setting)
        for does in ("learn", "linger"):
            executor.submit(job(setting, does, 4, FINAL))
            for outcome in executor.wait():
                print(outcome.measurement.status, outcome.measurement.cause, flush=True)
"""


@pytest.mark.slow
def test_a_retraining_is_silent_and_its_processes_do_not_outlive_a_killed_driver(tmp_path: Path) -> None:
    (tmp_path / "behaving.py").write_text(SPACE)
    noted = tmp_path / "linger4"
    words = [str(Path(__file__).parent), str(tmp_path / "behaving.py"), str(tmp_path)]
    keys = {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    driver = subprocess.Popen(
        [sys.executable, "-c", RETRAINING, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **keys},
    )
    try:
        until(lambda: driver.poll() is not None or (noted.exists() and len(noted.read_text().split()) == 2), 300)
    finally:
        driver.kill()
        out, complaints = driver.communicate()
    assert (out, complaints) == ("done None\n", "")
    assert not (tmp_path / "ray_results").exists()
    for pid in noted.read_text().split():
        until(lambda pid=pid: not Path(f"/proc/{pid}/cmdline").exists(), 30)  # type: ignore[misc]


class Stubborn:
    """A Ray that fails to start so many times."""

    exceptions = ray.exceptions

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.calls: list[str] = []

    def init(self, **_: object) -> None:
        self.calls.append("init")
        if self.calls.count("init") <= self.failures:
            raise self.error

    def shutdown(self) -> None:
        self.calls.append("shutdown")


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.RaySystemError("Failed to connect to GCS.\nMore about it"),
        Exception("The current node timed out during startup.\nMore about it"),  # Ray's own choice, on a busy machine
    ],
)
def test_a_ray_of_our_own_that_does_not_start_is_given_a_second_chance(error: Exception) -> None:
    config = ExecutorConfig()
    once = Stubborn(1, error)
    start_ray(once, config)
    assert once.calls == ["init", "shutdown", "init"]
    with pytest.raises(JobError, match=r"^Ray could not be reached on this machine: .*(GCS|startup)\.$"):
        start_ray(Stubborn(2, error), config)
