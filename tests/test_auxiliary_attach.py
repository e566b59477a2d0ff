"""`attach` on networks written by others, in every way that PyTorch runs them; `strip` gives them back."""

from __future__ import annotations

import copy
import io
import os
import pickle
import warnings
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nas import auxiliary
from nas.auxiliary import DeepSupervision, Tap, Tower, attach, strip, supervise, towers
from nas.config import TowersConfig
from nas.errors import ConfigError, JobError, SpaceError
from search_spaces.inception import InceptionSettings, InceptionSpace


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class BasicBlock(nn.Module):
    """As torchvision has it: the block's own last ReLU is in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """torchvision's ResNet-18, narrow: layer1 to layer4 of two blocks each."""

    def __init__(self, classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for number in range(1, 5):
            before, after = widths[number - 1], widths[number]
            stride = 1 if number == 1 else 2
            self.add_module(
                f"layer{number}", nn.Sequential(BasicBlock(before, after, stride), BasicBlock(after, after))
            )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


GoogLeNetOutputs = namedtuple("GoogLeNetOutputs", ["logits", "aux_logits2", "aux_logits1"])


class Inception(nn.Module):
    def __init__(self, inputs: int, *widths: int) -> None:
        super().__init__()
        one, r3, three, r5, five, pool = widths
        self.branch1 = nn.Conv2d(inputs, one, 1)
        self.branch2 = nn.Sequential(nn.Conv2d(inputs, r3, 1), nn.Conv2d(r3, three, 3, padding=1))
        self.branch3 = nn.Sequential(nn.Conv2d(inputs, r5, 1), nn.Conv2d(r5, five, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), nn.Conv2d(inputs, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(b(x)) for b in (self.branch1, self.branch2, self.branch3, self.branch4)], 1)


class InceptionAux(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 8, 1)
        self.fc1 = nn.Linear(8 * 16, 32)
        self.fc2 = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(torch.flatten(F.adaptive_avg_pool2d(self.conv(x), 4), 1))))


class GoogLeNet(nn.Module):
    """torchvision's GoogLeNet, narrow and short: with towers of its own, three outputs while it trains."""

    def __init__(self, classes: int = 10, aux_logits: bool = True) -> None:
        super().__init__()
        self.aux_logits = aux_logits
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3)
        self.inception3a = Inception(8, 4, 4, 6, 2, 4, 2)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(16, 4, 4, 8, 2, 4, 4)
        self.inception4d = Inception(20, 4, 4, 8, 2, 4, 4)
        if aux_logits:
            self.aux1 = InceptionAux(20, classes)
            self.aux2 = InceptionAux(20, classes)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(20, classes)

    def forward(self, x: Tensor) -> Any:
        x = self.maxpool3(self.inception3a(F.relu(self.conv1(x))))
        x = self.inception4a(x)
        aux1 = self.aux1(x) if self.aux_logits and self.training else None
        x = self.inception4d(x)
        aux2 = self.aux2(x) if self.aux_logits and self.training else None
        x = self.fc(torch.flatten(self.avgpool(x), 1))
        return GoogLeNetOutputs(x, aux2, aux1) if self.aux_logits and self.training else x


IMAGES = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])


def train(model: DeepSupervision, optimizer: torch.optim.Optimizer, steps: int = 3, through: Any = None) -> list[float]:
    losses = []
    for step in range(steps):
        one = model.losses((through or model)(IMAGES), LABELS, step / steps)
        optimizer.zero_grad()
        one.backward()
        optimizer.step()
        losses.append(float(one.main.detach()))
    return losses


# ----------------------------------------------------------------------------------- networks of others


@pytest.mark.parametrize("make", [ResNet, lambda: GoogLeNet(aux_logits=False), GoogLeNet])
@pytest.mark.parametrize("lazy", [True, False])
def test_towers_train_beside_anybodys_network_and_strip_gives_it_back(make: Any, lazy: bool) -> None:
    network = make()
    keys = list(network.state_dict())
    names = ["layer2", "layer3.0"] if isinstance(network, ResNet) else ["inception4a", "inception4d"]
    model = attach(network, towers=names, **({} if lazy else {"example": IMAGES, "num_classes": 10}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)  # before the first forward
    model.train()
    output, aside = model(IMAGES)
    assert type(output) is type(network(IMAGES))
    assert [one.shape for one in aside] == [(6, 10), (6, 10)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name, _ in model.named_parameters() if name.startswith("towers.")} <= moved
    assert [name for name, _ in model.named_parameters() if name.startswith("towers.")]
    assert list(network.state_dict()) == keys
    stripped = strip(model.state_dict())
    assert list(stripped) == keys
    assert all(torch.equal(stripped[name], value) for name, value in network.state_dict().items())
    fresh = make()
    fresh.load_state_dict(stripped)
    assert torch.equal(fresh.eval()(IMAGES), network.eval()(IMAGES))


def test_towers_are_set_one_by_one() -> None:
    given: dict[str, Any] = {
        "layer1": "linear",
        "layer3": {"kind": "googlenet", "weight": 0.5},
        "layer2": Tower("darts", 0.0, (0,) * 5 + (1,) * 5),
    }
    model = attach(ResNet(), given, IMAGES, schedule="linear")
    assert [tap.module for tap in model.taps] == ["layer1", "layer2", "layer3"]
    outputs = model(IMAGES)
    assert [one.shape[1] for one in outputs[1]] == [10, 2, 10]
    losses = model.losses(outputs, LABELS, progress=0.5)
    assert losses.weights == (0.15, 0.0, 0.25)
    assert losses.total == losses.main + 0.15 * losses.towers[0] + 0.25 * losses.towers[2]
    assert losses.towers[1] == F.cross_entropy(outputs[1][1], LABELS // 5)
    losses.backward()
    assert all(p.grad is not None for p in model.parameters())  # one of weight 0 stays in the graph, as DDP needs


def test_towers_may_be_named_by_the_number_of_the_cell() -> None:
    space = InceptionSpace(InceptionSettings(widths=(16, 16), cells=(2, 2)))
    network = space.build(space.random(0), (3, 64, 64), 10)
    model = attach(network, [0, 2], IMAGES)
    assert [tap.module for tap in model.taps] == [network.cell_names[0], network.cell_names[2]]


@pytest.mark.parametrize("built", [False, True])
def test_a_wrapper_copies_and_pickles_before_and_after_it_is_built(built: bool) -> None:
    model = attach(ResNet(), ["layer2"]).eval()
    if built:
        model(IMAGES)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = model(IMAGES)
    for twin in twins:
        output, aside = twin(IMAGES)
        assert torch.equal(output, expected[0])
        assert torch.equal(aside[0], expected[1][0])


def test_lazy_towers_neither_change_the_network_nor_random_numbers() -> None:
    network = ResNet().eval()
    with torch.no_grad():
        expected = network(IMAGES)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(attach(network, ["layer1", "layer4"]).eval()(IMAGES)[0], expected)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_lazy_towers_are_those_that_an_example_gives() -> None:
    lazy, eager = attach(ResNet(), ["layer2"], seed=3), attach(ResNet(), ["layer2"], (3, 64, 64), seed=3)
    lazy.eval()(IMAGES)
    assert lazy.share == eager.share > 0
    for one, other in zip(lazy.towers.parameters(), eager.towers.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("towers", "keys", "error", "complaint"),
    [
        (["layer9"], {}, SpaceError, "no module 'layer9'"),
        ([1], {}, SpaceError, "names no cells"),
        (["fc"], {}, SpaceError, r"'fc' must give a tensor \(N, C, H, W\)"),
        ({"layer1": "heavy"}, {}, ConfigError, "must be one of light, linear"),
        ({"layer1": {"knd": "light"}}, {}, ConfigError, "unknown key 'knd'"),
        ({"layer1": {"weight": -1.0}}, {}, ConfigError, "weight must be 0 or more"),
        ({"layer1": {"labels": (0, 2)}}, {}, ConfigError, "onto 0, 1, 2"),
        ({"layer1": {"labels": (0, 1)}}, {}, ConfigError, "map 2 classes, but the network has 10"),
        ({"layer1": "fcn"}, {}, ConfigError, "'fcn' does not fit one label an image"),
        (["layer1"], {"schedule": "sometimes"}, ConfigError, "schedule"),
        (["layer1"], {"reach": "relay:0"}, ConfigError, "relay:k"),
        (["layer1"], {"main_reach": 2}, ConfigError, "relay:k only"),
        (["layer1"], {"cells": ["layer2", "layer3"]}, ConfigError, "'layer1', which is not among the cells"),
    ],
)
def test_settings_that_cannot_be_are_refused(towers: Any, keys: Any, error: Any, complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        attach(ResNet(), towers, IMAGES, **keys)


# ------------------------------------------------------------------------------- ways to run a network


def test_compiled_it_gives_what_it_gives_eager() -> None:
    eager = attach(ResNet(), ["layer2", "layer3"], IMAGES)
    eager.towers.eval()  # without dropout, to compare
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, backend="aot_eager")
    losses = eager.losses(eager(IMAGES), LABELS)
    losses.backward()
    others = twin.losses(compiled(IMAGES), LABELS)
    others.backward()
    torch.testing.assert_close([others.main, *others.towers], [losses.main, *losses.towers])
    for (name, one), other in zip(eager.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)
    assert not any(module._forward_hooks for module in twin.network.modules())


def test_towers_not_built_yet_are_built_within_a_compiled_call() -> None:
    model = attach(ResNet(), ["layer2", "layer3"])
    losses = model.losses(torch.compile(model, backend="eager")(IMAGES), LABELS)
    losses.backward()
    assert model.built
    assert len(losses.towers) == 2
    assert all(parameter.grad is not None for parameter in model.towers.parameters())


def test_under_autocast_and_channels_last() -> None:
    model = attach(ResNet(), ["layer2"], IMAGES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, aside = model(IMAGES.contiguous(memory_format=torch.channels_last))
        losses = model.losses((output, aside), LABELS)
    assert output.dtype == aside[0].dtype == torch.bfloat16
    losses.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def _rank(rank: int, folder: str) -> None:
    """One of two processes; what it finds goes to a file."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mine = slice(3 * rank, 3 * rank + 3)
    found: dict[str, Any] = {}
    for reach, keys in (("full", {}), ("relay:2", {"main_reach": 2})):
        model = _for_ranks(reach, keys)
        parallel = nn.parallel.DistributedDataParallel(model)
        for step in range(2):
            if reach == "full":
                losses = model.losses(parallel(IMAGES[mine]), LABELS[mine], step / 2)
                losses.backward()
            else:
                with parallel.no_sync():
                    losses = model.losses(parallel(IMAGES[mine]), LABELS[mine], step / 2)
                    losses.backward(parallel)
            if step == 0:
                parallel.zero_grad()
        found[reach] = {name: p.grad for name, p in model.named_parameters()}
    for wrong in (None, parallel):  # by itself, or with DDP's own reduction on
        try:
            model.losses(parallel(IMAGES[mine]), LABELS[mine]).backward(wrong)
        except JobError as error:
            found["refused"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _for_ranks(reach: str, keys: dict[str, Any]) -> DeepSupervision:
    torch.manual_seed(1)
    network = ResNet()
    towers = {"layer1": {"weight": 0.0}, "layer2": {"weight": 0.5}}
    model = attach(network, towers, IMAGES, reach=reach, cells=[f"layer{i}" for i in range(1, 5)], **keys)
    return model.eval()  # batch statistics are each process's own: without them, two halves are one whole


@pytest.mark.slow
def test_over_two_processes_gradients_are_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for reach, keys in (("full", {}), ("relay:2", {"main_reach": 2})):
        model = _for_ranks(reach, keys)
        model.losses(model(IMAGES), LABELS, 0.5).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(ranks[0][reach][name], ranks[1][reach][name], rtol=0, atol=0)
            torch.testing.assert_close(ranks[0][reach][name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert "no_sync" in ranks[0]["refused"]


# ----------------------------------------------------------------------------------------------- strip


def test_strip_knows_checkpoints_from_elsewhere() -> None:
    mixed = GoogLeNet().state_dict()
    bare = GoogLeNet(aux_logits=False).state_dict()
    assert list(strip(mixed)) == list(bare)
    assert list(strip({f"module.{key}": value for key, value in mixed.items()})) == list(bare)
    assert list(strip({f"module._orig_mod.{key}": value for key, value in mixed.items()})) == list(bare)
    assert list(strip(bare)) == list(bare)
    for tower in ("AuxLogits", "aux_classifier", "auxiliary_head", "auxiliary_heads", "aux_head", "aux"):
        assert strip({"conv.weight": 1, f"{tower}.fc.weight": 2}) == {"conv.weight": 1}
    assert strip({"conv.weight": 1, "early.fc.weight": 2}, towers=["early"]) == {"conv.weight": 1}
    assert strip({"auxin.weight": 1, "maux.weight": 2}) == {"auxin.weight": 1, "maux.weight": 2}
    assert strip({}) == {}


# ------------------------------------------------------------------------------------ kinds and shares


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_head_of_darts_has_its_published_size() -> None:
    assert parameters(towers.darts(Tap("", 576, 8, 8, False), 10, 0)) == 476_426


def test_the_head_of_darts_leaves_the_trunk_alone_and_pools_8x8_as_published() -> None:
    x = -torch.ones(2, 12, 8, 8)
    head = towers.darts(Tap("", 12, 8, 8, False), 10, 0).eval()
    head(x)
    assert torch.equal(x, -torch.ones(2, 12, 8, 8))
    assert isinstance(head[1], nn.AvgPool2d)  # type: ignore[index]
    for side in (1, 3, 7, 16):
        assert towers.darts(Tap("", 12, side, side, False), 10, 0)(torch.randn(2, 12, side, side)).shape == (2, 10)


class Dense(nn.Module):
    """One answer a pixel."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.second = nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(F.relu(self.second(F.relu(self.first(x))))), x.shape[2:])


@pytest.mark.parametrize("kind", ["fcn", "light", "linear"])
def test_towers_for_dense_prediction_give_maps(kind: str) -> None:
    model = attach(Dense(), {"first": {"kind": kind}}, IMAGES[:, :, :32, :32], share=0.9)
    output, aside = model(IMAGES[:, :, :32, :32])
    assert output.shape == (6, 4, 32, 32)
    assert aside[0].shape == (6, 4, 16, 16)
    with pytest.raises(ConfigError, match="does not fit one label a pixel: use light, linear, fcn"):
        attach(Dense(), {"first": "darts"}, IMAGES)


def test_the_fcn_tower_is_pspnets() -> None:
    tower = towers.fcn(Tap("", 1024, 60, 60, False), 150, 0)
    assert parameters(tower) == 1024 * 256 * 9 + 2 * 256 + 256 * 150 + 150
    assert [type(one) for one in tower.children()] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout2d, nn.Conv2d]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    placement=st.sampled_from(["auto", "thirds", "stages", "every:1"]),
    kind=st.sampled_from(["light", "linear"]),
    share=st.sampled_from([0.001, 0.02, 0.1, 0.5]),
    classes=st.integers(2, 100),
)
def test_light_and_linear_towers_keep_to_their_share(
    seed: int, placement: str, kind: str, share: float, classes: int
) -> None:
    space = InceptionSpace()
    network = space.build(space.random(seed), (1, 16, 16), classes)
    config = TowersConfig.model_validate({"placement": placement, "kind": kind, "share": share})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = supervise(network, config, (1, 16, 16), classes)
    wanted = auxiliary.place(config, auxiliary.dry_run(network, network.cell_names, torch.zeros(2, 1, 16, 16)).sides)
    assert 0 <= model.share <= share
    assert set(model.cells) <= set(wanted)
    left_out = len(wanted) - len(model.cells)
    assert [str(one.message).startswith(f"{left_out} of {len(wanted)} towers left out") for one in said] == [True] * (
        left_out > 0
    )


def test_a_light_tower_shrinks_rather_than_go() -> None:
    space = InceptionSpace()
    network = space.build(space.random(1), (1, 16, 16), 10)
    sizes = [
        parameters(supervise(network, TowersConfig(share=share), (1, 16, 16), 10).towers)
        for share in (0.9, 0.01, 0.003, 0.0015)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2
    exact = supervise(network, TowersConfig(kind="googlenet", share=0.001), (1, 16, 16), 10)
    assert exact.share > 0.1  # the exact kinds are what they are
