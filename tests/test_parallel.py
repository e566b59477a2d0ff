"""One training over two processes is the training of one: real processes, torch's gloo between them."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nas import auxiliary
from nas.auxiliary import DeepSupervision
from nas.config import Recipe, TowersConfig
from nas.data import Images
from nas.data.images import IGNORED
from nas.errors import CandidateError
from nas.evaluation import weights
from nas.training.loop import Fit, Resident, evaluate, fit
from nas.training.parallel import ALONE, Shard, _normalised, _synchronised
from nas.training.task import TASKS

CPU = torch.device("cpu")
BATCH = 33
"""Not a multiple of two: the processes have 17 and 16 images."""

RECIPE = Recipe(
    epochs=2, batch_size=BATCH, augment=("crop", "flip"), label_smoothing=0.1, gradient_norms=(1, 5), readings=(1,)
)
TOWERS = TowersConfig(placement=(0, 1), kind="linear", share=0.9)
NONE = TowersConfig(placement="none")


class Network(nn.Module):
    """Three convolutions, with batch norm or without, and a part that nothing uses."""

    cell_names = ("cells.0", "cells.1", "cells.2")

    def __init__(self, norm: bool, dense: bool = False) -> None:
        super().__init__()
        widths = [1, 6, 6, 6]
        self.cells = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(one, other, 3, padding=1, bias=not norm),
                    nn.BatchNorm2d(other) if norm else nn.Identity(),
                    nn.Tanh(),
                )
                for one, other in itertools.pairwise(widths)
            )
        )
        self.unused = nn.Linear(2, 2)
        self.head: nn.Module = nn.Conv2d(6, 3, 1) if dense else nn.Linear(6, 3)
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        x = self.cells(x)
        return self.head(x if self.dense else x.mean((2, 3)))


def images(dense: bool) -> Resident:
    chance = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (100, 1, 8, 8), generator=chance, dtype=torch.uint8)
    labels = torch.randint(0, 3, (100, 8, 8) if dense else (100,), generator=chance)
    if dense:  # some images have few labelled pixels, or none
        labels[torch.rand(100, 8, 8, generator=chance) < torch.linspace(0, 1.2, 100)[:, None, None]] = IGNORED
        labels = labels.to(torch.uint8)
    return Resident(Images(pixels.numpy(), labels.numpy()), [0.5], [70.0], CPU)


CASES: dict[str, dict[str, Any]] = {
    "plain": {"norm": False, "towers": TOWERS},
    "batch norm": {"norm": True, "towers": TOWERS},
    "bare": {"norm": True, "towers": NONE},
    "relay": {
        "norm": True,
        "towers": TowersConfig(placement=(0, 1), kind="linear", share=0.9, reach="relay:2", main_reach=2),
    },
    "clipped and averaged": {"norm": True, "towers": TOWERS, "recipe": {"clip": 0.5, "ema": 0.9, "optimizer": "adamw"}},
    "one label a pixel": {"norm": False, "towers": TowersConfig(placement=(1,), share=0.9), "dense": True},
}


def trained(case: str, shard: Shard) -> tuple[DeepSupervision, Fit]:
    given = CASES[case]
    dense = given.get("dense", False)
    torch.manual_seed(shard.rank)  # another process may begin with other weights: those of the first count
    network = Network(given["norm"], dense)
    model = auxiliary.supervise(network, given["towers"], (1, 8, 8), 3, 0, None, ("a", "b", "c"))
    assert len(model.towers) == len(given["towers"].placement if given["towers"] is not NONE else ())
    task = TASKS["dense" if dense else "classification"]
    recipe = RECIPE.model_copy(update=given.get("recipe", {}))
    split = images(dense)

    def read() -> Mapping[str, float]:
        return evaluate(model, task, split, towers=False)

    return model, fit(model, task, split, recipe, 7, read=read, shard=shard)


def found(model: DeepSupervision, result: Fit) -> dict[str, Any]:
    norms = {step: list(norms) for step, norms in result.gradient_norms.items()}
    return {
        "state": model.state_dict(),
        "losses": torch.tensor(result.step_losses),
        "accuracy": result.train_accuracy,
        "norms": torch.tensor([norms[1], norms[5]]),
        "images": result.images,
        "reading": result.readings[1]["loss"],
    }


def _rank(rank: int, folder: str) -> None:
    """One of two processes; what it finds goes to a file."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    shard = Shard.of_this_process()
    assert (shard.rank, shard.world) == (rank, 2)
    results: dict[str, Any] = {case: found(*trained(case, shard)) for case in CASES}
    results["norm"] = _norm(shard)
    try:
        recipe = RECIPE.model_copy(update={"batch_size": 1})
        model = auxiliary.supervise(Network(False), NONE, (1, 8, 8), 3, 0)
        fit(model, TASKS["classification"], images(False), recipe, 7, shard=shard)
    except CandidateError as error:
        results["too small"] = str(error)
    model, _ = trained("batch norm", shard)
    assert not any("forward" in vars(module) for module in model.modules())  # as nobody had touched it
    copy.deepcopy(model.network)
    assert not any("tower" in name for name in weights_of(model))
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def weights_of(model: DeepSupervision) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(weights.pack(model.network))


def _norm(shard: Shard) -> dict[str, Tensor]:
    """Batch norm in training, forward and backward, over rows far from 0 and unlike each other in size."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=None)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, goal = torch.randn(7, 4, 3, 3) * torch.arange(1, 8).view(7, 1, 1, 1) + 1000, torch.randn(7, 4, 3, 3)
    x, goal = shard.part(x).clone().requires_grad_(), shard.part(goal)
    with _synchronised(norm, shard) if shard.world > 1 else torch.enable_grad():
        y = norm(x)
        y = norm(y)
        y.mul(goal).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    return {"y": y.detach(), "x": x.grad, "weight": shard.sum(norm.weight.grad), **norm.state_dict(prefix="state.")}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        patch.setenv("PYTHONPATH", path)
        torch.multiprocessing.spawn(_rank, (str(folder),), nprocs=2)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(ranks: list[dict[str, Any]], case: str) -> None:
    one, (first, second) = found(*trained(case, ALONE)), (rank[case] for rank in ranks)
    assert first["images"] == one["images"] == 6 * BATCH
    torch.testing.assert_close(first["losses"], one["losses"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first["norms"], one["norms"], rtol=1e-4, atol=1e-5)
    assert first["accuracy"] == one["accuracy"]
    assert first["reading"] == pytest.approx(one["reading"], rel=1e-3)  # each statistic over as many images again
    assert list(first["state"]) == list(one["state"])
    for name, value in one["state"].items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-5, atol=1e-5, msg=name)
        torch.testing.assert_close(second["state"][name], first["state"][name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(ranks: list[dict[str, Any]]) -> None:
    one, (first, second) = _norm(ALONE), (rank["norm"] for rank in ranks)
    for name in ("y", "x"):
        both = torch.cat([first[name], second[name]])
        torch.testing.assert_close(both, one[name], rtol=1e-4, atol=1e-4)
    for name in ("weight", *(name for name in one if name.startswith("state."))):
        torch.testing.assert_close(first[name], one[name], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_more_processes_than_images_in_a_batch_are_refused(ranks: list[dict[str, Any]]) -> None:
    assert [rank["too small"] for rank in ranks] == ["2 processes cannot share a batch of 1 images"] * 2


def test_the_parts_of_all_processes_are_the_batch() -> None:
    batch = torch.arange(10)
    parts = [Shard(rank, 4).part(batch) for rank in range(4)]
    assert [len(part) for part in parts] == [3, 3, 2, 2]
    torch.testing.assert_close(torch.cat(parts), batch)
    assert ALONE.part(batch) is batch


def test_batch_norm_of_one_process_is_torchs_own() -> None:
    """In evaluation to the bit: there nothing is shared."""
    norm = nn.BatchNorm2d(3).eval()
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(_normalised(norm, Shard(0, 2), x), norm(x), rtol=0, atol=0)
