"""fit() and evaluate(): what they compute, what they leave alone, and that a seed fixes all of it."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nas import auxiliary
from nas.auxiliary import DeepSupervision
from nas.config import DataConfig, Recipe, TowersConfig
from nas.data import Data, Images, load
from nas.errors import CandidateError
from nas.training import loop as training
from nas.training.loop import Fit, Resident, evaluate, fit, learning_rate_share, make_optimizer, stream
from nas.training.task import Classification

TASK = Classification()
CPU = torch.device("cpu")
NO_TOWERS = TowersConfig(placement="none")
TOWERS = TowersConfig(placement=(0, 1), weight=0.5)
STILL = 1e-30
"""A learning rate that moves no float32 weight."""


class Small(nn.Module):
    """Three cells of convolution, batch norm and ReLU; dropout; one linear layer."""

    cell_names = ("cells.0", "cells.1", "cells.2")

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [1, 8, 8, 8]
        self.cells = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.cells(x).mean((2, 3))))


class Witness(Small):
    """Notes its weights at the first training batch, and every image that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.initial = ""
        self.batches: list[str] = []
        self.images: set[bytes] = set()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.initial = self.initial or checksum(*self.state_dict().values())
            self.batches.append(checksum(x))
            self.images |= {image.numpy().tobytes() for image in x.contiguous()}
        return super().forward(x)


def checksum(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig())


@pytest.fixture(scope="module")
def train(data: Data) -> Resident:
    return Resident(data.train, data.mean, data.std, CPU)


@pytest.fixture(scope="module")
def validation(data: Data) -> Resident:
    return Resident(data.validation, data.mean, data.std, CPU)


def first(data: Data, count: int) -> Resident:
    return Resident(Images(data.train.pixels[:count], data.train.labels[:count]), data.mean, data.std, CPU)


def recipe(**keys: object) -> Recipe:
    return Recipe.model_validate({"epochs": 1, "learning_rate": 0.05, "augment": (), "batch_size": 128} | keys)


def supervised(
    kind: type[nn.Module] = Small, towers: TowersConfig = NO_TOWERS, seed: int = 0, **keys: object
) -> DeepSupervision:
    """A network from its seed, with its towers, as a worker makes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "init"))
        network = kind(**keys)
    return auxiliary.supervise(network, towers, (1, 8, 8), 10, stream(seed, "towers"))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """What each optimizer step of a fit was given and left."""
    found = Steps()
    original = training.make_optimizer

    def watched(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        optimizer = original(model, recipe)
        optimizer.register_step_pre_hook(lambda *_: found.before(model, optimizer))
        optimizer.register_step_post_hook(lambda *_: found.after(model))
        return optimizer

    monkeypatch.setattr(training, "make_optimizer", watched)
    yield found
    assert found.rates, "the fit made no step with make_optimizer's optimizer"


class Steps:
    def __init__(self) -> None:
        self.rates: list[float] = []
        self.norms: list[float] = []
        self.states: list[dict[str, Tensor]] = []

    def before(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        self.rates.append(rate)
        self.norms.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))

    def after(self, model: nn.Module) -> None:
        self.states.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})


# ------------------------------------------------------------------------------------------------ seeds


def test_the_same_seed_gives_the_same_result_bit_for_bit_whatever_runs_between(train: Resident) -> None:
    wanted = recipe(epochs=2, augment=("crop", "cutout"), images=600, ema=0.9)

    def run(seed: int) -> tuple[str, tuple[float, ...]]:
        model = supervised(towers=TOWERS, seed=seed, dropout=0.3)
        result = fit(model, TASK, train, wanted, seed)
        return checksum(*model.state_dict().values()), train_losses(result)

    once = run(7)
    torch.rand(1000)  # other work, which moves the global generators
    np.random.default_rng().random(10)
    other = run(8)
    assert run(7) == once
    assert other[0] != once[0]
    assert other[1] != once[1]


@pytest.mark.parametrize("placement", ["middle", "thirds", (0, 1, 2)])
def test_with_and_without_towers_the_network_sees_the_same_weights_batches_and_augmentations(
    train: Resident, placement: object
) -> None:
    wanted = recipe(epochs=2, augment=("crop", "flip", "cutout"), images=600)
    towers = TowersConfig.model_validate({"placement": placement, "weight": 1.0})
    bare, towered = supervised(Witness), supervised(Witness, towers)
    assert len(towered.cells) == {"middle": 1, "thirds": 2}.get(str(placement), 3)
    for model in (bare, towered):
        fit(model, TASK, train, wanted, 0)
    assert len(bare.network.batches) == 2 * (600 // 128)
    assert len(set(bare.network.batches)) == len(bare.network.batches)  # they do differ from step to step
    assert towered.network.initial == bare.network.initial
    assert towered.network.batches == bare.network.batches
    assert checksum(*towered.network.state_dict().values()) != checksum(*bare.network.state_dict().values())


def test_augmentation_does_not_shift_the_order(train: Resident) -> None:
    order: dict[tuple[str, ...], list[Tensor]] = {}
    for names in ((), ("crop", "flip", "cutout")):
        seen: list[Tensor] = []

        class Labels(Classification):
            def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
                seen.append(labels)  # noqa: B023 - called only within this turn
                return super().loss(logits, labels, label_smoothing)

        fit(supervised(), Labels(), train, recipe(epochs=2, augment=names, images=400), 0)
        order[names] = seen
    for plain, augmented in zip(*order.values(), strict=True):
        assert torch.equal(plain, augmented)
    assert len({stream(0, purpose) for purpose in ("init", "towers", "order", "augment", "dropout")}) == 5


@pytest.mark.parametrize("rate", [0.05, 1e30])
def test_the_global_random_state_is_put_back(train: Resident, rate: float) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    try:
        fit(supervised(towers=TOWERS, dropout=0.5), TASK, train, recipe(learning_rate=rate), 0)
    except CandidateError:
        assert rate == 1e30
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


def test_dropout_is_seeded_too(train: Resident) -> None:
    results = []
    for seed, disturbance in ((0, 0), (0, 3), (1, 0)):
        torch.rand(disturbance)
        model = supervised(dropout=0.5)  # the same weights each time
        with_seed = recipe(images=128, batch_size=128, learning_rate=STILL)  # one batch of the same images, unmoved
        results.append(train_losses(fit(model, TASK, train, with_seed, seed)))
    assert results[0] == results[1]
    assert results[0] != results[2]


# ----------------------------------------------------------------------------------------------- losses


def train_losses(result: Fit) -> tuple[float, ...]:
    """Mean training loss of the main head over each epoch; the last may be a part of one."""
    losses, step = result.step_losses, result.steps_an_epoch
    return tuple(fmean(losses[start : start + step]) for start in range(0, len(losses), step))


def test_train_losses_are_of_the_main_head_only(train: Resident) -> None:
    heavy = TowersConfig(placement=(0, 1, 2), weight=1000.0)
    wanted = recipe(epochs=2, learning_rate=STILL)
    bare, towered = supervised(), supervised(towers=heavy)
    assert train_losses(fit(towered, TASK, train, wanted, 0)) == train_losses(fit(bare, TASK, train, wanted, 0))


def test_tower_losses_train_the_trunk_and_weigh_what_the_schedule_says(train: Resident, steps: Steps) -> None:
    """With a linear schedule the gradient of the towers fades: at a still network it falls like 1 - progress."""
    fading = TowersConfig(placement=(1,), weight=1e6, schedule="linear")
    fit(supervised(towers=fading), TASK, train, recipe(learning_rate=STILL, epochs=2), 0)
    count = len(steps.norms)
    assert count == 2 * (len(train) // 128)
    assert steps.norms[0] > 1e4  # the tower's gradient, a million times
    assert steps.norms[-1] / steps.norms[0] == pytest.approx(1 / count, rel=0.5)


def test_label_smoothing_is_in_the_training_loss_and_not_in_the_score(data: Data) -> None:
    images = first(data, 100)
    x = images.normalised(images.pixels)
    with torch.no_grad():
        expected = float(F.cross_entropy(supervised().network.train()(x), images.labels, label_smoothing=0.2))
    model = supervised()
    result = fit(model, TASK, images, recipe(label_smoothing=0.2, learning_rate=STILL), 0)
    assert train_losses(result) == pytest.approx((expected,), rel=1e-5)
    with torch.no_grad():
        plain = float(F.cross_entropy(model.network.eval()(x), images.labels))
    assert evaluate(model, TASK, images)["loss"] == pytest.approx(plain, rel=1e-5)
    assert abs(expected - plain) > 1e-3


@pytest.mark.parametrize("images", [None, 60])
def test_a_loss_that_is_not_finite_ends_the_candidate(train: Resident, images: int | None) -> None:
    with pytest.raises(CandidateError, match=r"loss was not finite by step \d+"):
        fit(supervised(), TASK, train, recipe(learning_rate=1e30, epochs=3, images=images), 0)


def test_training_learns(train: Resident, validation: Resident) -> None:
    model = supervised(towers=TOWERS)
    result = fit(model, TASK, train, recipe(epochs=6, learning_rate=0.2, batch_size=64), 0)
    assert len(train_losses(result)) == 6
    assert train_losses(result)[-1] < train_losses(result)[0] / 3
    assert result.seconds > 0
    assert result.images == 6 * (len(train) // 64) * 64
    assert evaluate(model, TASK, validation)["accuracy"] > 0.85


# --------------------------------------------------------------------------------- schedules, optimizer


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_the_learning_rate_anneals_to_zero_within_the_epochs(
    train: Resident, steps: Steps, schedule: str, epochs: int
) -> None:
    wanted = recipe(epochs=epochs, schedule=schedule, learning_rate=0.2, warmup=0.3, batch_size=64)
    fit(supervised(), TASK, train, wanted, 0)
    count = epochs * (len(train) // 64)
    rates = [0.2 * learning_rate_share(wanted, step / count) for step in range(count + 1)]
    assert steps.rates == pytest.approx(rates[:-1])
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    top = rates.index(max(rates))
    assert max(rates) <= 0.2
    assert max(rates) > 0.2 * (1 - 2 / count)
    assert top == pytest.approx(0.3 * count if schedule == "one-cycle" else 0, abs=1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@given(warmup=st.floats(0.01, 0.99), progress=st.floats(0, 1), schedule=st.sampled_from(["one-cycle", "cosine"]))
def test_the_learning_rate_is_a_share_that_ends_at_zero(warmup: float, progress: float, schedule: str) -> None:
    wanted = recipe(warmup=warmup, schedule=schedule)
    assert 0 <= learning_rate_share(wanted, progress) <= 1 + 1e-9
    assert learning_rate_share(wanted, 1.0) == 0
    if schedule == "one-cycle":
        assert learning_rate_share(wanted, warmup) == pytest.approx(1)
        assert learning_rate_share(wanted, warmup * (1 - 1e-9)) == pytest.approx(1, abs=1e-6)  # no jump


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_and_normalisation_are_not_decayed(data: Data, optimizer: str) -> None:
    """Under a loss without a gradient only the decay is left to move the weights."""

    class Nothing(Classification):
        def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
            return 0 * logits.sum()

    model = supervised(towers=TOWERS)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    wanted = recipe(optimizer=optimizer, weight_decay=0.1, learning_rate=0.5, epochs=2)
    fit(model, Nothing(), first(data, 128), wanted, 0)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            decayed = name == "weight" and not isinstance(module, nn.BatchNorm2d)
            assert bool((parameter < 1).all()) is decayed, f"{path}.{name}"
            assert bool((parameter == 1).all()) is not decayed, f"{path}.{name}"


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_has_every_parameter_once_towers_included(optimizer: str, kind: type) -> None:
    model = supervised(towers=TOWERS)
    made = make_optimizer(model, recipe(optimizer=optimizer, momentum=0.85))
    assert isinstance(made, kind)
    given = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in model.parameters())
    for group in made.param_groups:
        if optimizer == "adamw":
            assert group["betas"][0] == 0.85
        else:
            assert (group["momentum"], group["nesterov"]) == (0.85, True)


def test_momentum_may_be_zero(data: Data) -> None:
    fit(supervised(), TASK, first(data, 128), recipe(momentum=0.0), 0)


def test_clipping_bounds_the_gradient(train: Resident, steps: Steps) -> None:
    fit(supervised(), TASK, train, recipe(clip=0.05), 0)
    assert all(norm <= 0.05 * 1.001 for norm in steps.norms)
    clipped = len(steps.norms)
    fit(supervised(), TASK, train, recipe(clip=0.0), 0)
    assert max(steps.norms[clipped:]) > 0.05


# -------------------------------------------------------------------------------------------------- EMA


def test_with_ema_the_averaged_weights_and_statistics_are_left_in_the_model(train: Resident, steps: Steps) -> None:
    decay = 0.8
    model = supervised(towers=TOWERS)
    fit(model, TASK, train, recipe(ema=decay, epochs=2), 0)
    average = {name: tensor.double() for name, tensor in steps.states[0].items()}
    for state in steps.states[1:]:
        average = {name: decay * average[name] + (1 - decay) * state[name].double() for name in average}
    moved = 0
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor.double(), average[name], rtol=1e-4, atol=1e-6), name
            moved += not torch.equal(tensor, steps.states[-1][name])
        else:
            assert int(tensor) == len(steps.states), name  # batches seen are counted, not averaged
    assert moved > 10


def test_without_ema_the_last_weights_are_left(train: Resident, steps: Steps) -> None:
    model = supervised()
    fit(model, TASK, train, recipe(), 0)
    assert checksum(*model.state_dict().values()) == checksum(*steps.states[-1].values())


# --------------------------------------------------------------------------------- images and precision


def test_recipe_images_is_one_fixed_sample_of_the_set(train: Resident) -> None:
    seen = {}
    for seed in (0, 1):
        model = supervised(Witness, seed=seed)
        result = fit(model, TASK, train, recipe(images=200, batch_size=50, epochs=3), seed)
        assert result.images == 600
        assert 190 <= len(model.network.images) <= 200  # digits holds a few images twice
        seen[seed] = model.network.images
    assert seen[0] != seen[1]
    everything = supervised(Witness)
    fit(everything, TASK, train, recipe(images=10**6, epochs=3), 0)
    assert len(everything.network.images) > 0.95 * len(train)


def test_a_set_smaller_than_a_batch_is_one_batch(data: Data) -> None:
    model = supervised(Witness)
    result = fit(model, TASK, first(data, 10), recipe(epochs=3), 0)
    assert result.images == 30
    assert len(train_losses(result)) == 3
    assert len(model.network.images) == 10


def test_bfloat16_trains_on_the_cpu_and_keeps_float32_weights(train: Resident) -> None:
    losses = {}
    for precision in ("auto", "float32", "bfloat16"):
        model = supervised(towers=TOWERS)
        wanted = recipe(precision=precision, epochs=3, learning_rate=0.1)
        losses[precision] = train_losses(fit(model, TASK, train, wanted, 0))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses["auto"] == losses["float32"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.15)


def test_the_given_pixels_are_not_changed_by_training(data: Data) -> None:
    images = Resident(data.train, data.mean, data.std, CPU)
    before = data.train.pixels.copy()
    fit(supervised(), TASK, images, recipe(augment=("crop", "flip", "cutout")), 0)
    assert np.array_equal(images.pixels.numpy(), before)
    assert np.array_equal(data.train.pixels, before)
    images.pixels.fill_(0)  # a copy: what came from shared memory is not to be written to
    assert np.array_equal(data.train.pixels, before)


# --------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("batch_size", [7, 500])
def test_evaluate_is_the_plain_mean_of_each_head(train: Resident, validation: Resident, batch_size: int) -> None:
    model = supervised(towers=TOWERS, dropout=0.5)
    fit(model, TASK, train, recipe(epochs=2), 0)
    scores = evaluate(model, TASK, validation, batch_size)
    model.eval()
    with torch.no_grad():
        logits, tower_logits = model(validation.normalised(validation.pixels))
    expected = {}
    for head, one in {"": logits, "tower0_": tower_logits[0], "tower1_": tower_logits[1]}.items():
        expected[f"{head}loss"] = float(F.cross_entropy(one, validation.labels))
        expected[f"{head}accuracy"] = float((one.argmax(1) == validation.labels).double().mean())
    assert scores == pytest.approx(expected, rel=1e-5)
    for name in scores:
        if name.endswith("accuracy"):
            assert scores[name] == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluate_changes_neither_mode_nor_state(validation: Resident, mode: bool) -> None:
    model = supervised(towers=TOWERS).train(mode)
    model.network.cells[0].eval()  # a frozen part stays as it was
    modes = [module.training for module in model.modules()]
    before = checksum(*model.state_dict().values())
    random_state = torch.get_rng_state()
    evaluate(model, TASK, validation)
    assert [module.training for module in model.modules()] == modes
    assert checksum(*model.state_dict().values()) == before
    assert torch.equal(torch.get_rng_state(), random_state)


# --------------------------------------------------------------------------------------------- readings


def test_reading_on_the_way_changes_nothing(train: Resident, validation: Resident) -> None:
    def trained(readings: tuple[int, ...]) -> tuple[training.Fit, dict[str, Tensor]]:
        model = supervised(towers=TOWERS, dropout=0.3)
        wanted = recipe(epochs=3, readings=readings, augment=("crop",))
        result = fit(model, TASK, train, wanted, 0, read=lambda: evaluate(model, TASK, validation, towers=False))
        return result, model.state_dict()

    plain, state = trained(())
    read, same = trained((1, 3))
    assert read.step_losses == plain.step_losses
    assert all(torch.equal(one, same[name]) for name, one in state.items())
    assert plain.readings == {}
    assert list(read.readings) == [1, 3]
    assert read.readings[3]["loss"] < read.readings[1]["loss"]
    assert all(set(one) == {"loss", "accuracy"} for one in read.readings.values())


def test_extra_steps_belong_to_the_last_epoch(train: Resident, validation: Resident) -> None:
    model = supervised()
    calls: list[int] = []
    result = fit(
        model, TASK, train, recipe(epochs=2, readings=(1, 2)), 0, extra_steps=3, read=lambda: {"n": len(calls)}
    )
    assert len(result.step_losses) == 2 * result.steps_an_epoch + 3
    assert result.images == len(result.step_losses) * 128
    assert list(result.readings) == [1, 2]
    assert len(train_losses(result)) == 3


def test_the_schedule_ends_with_the_extra_steps(steps: Steps, train: Resident) -> None:
    fit(supervised(), TASK, train, recipe(), 0, extra_steps=4)
    count = len(steps.rates)
    wanted = [0.05 * learning_rate_share(recipe(), step / count) for step in range(count)]
    assert steps.rates == pytest.approx(wanted)


def test_without_towers_the_main_head_is_scored_alike(validation: Resident) -> None:
    model = supervised(towers=TOWERS)
    whole, bare = evaluate(model, TASK, validation), evaluate(model, TASK, validation, towers=False)
    assert bare == {name: whole[name] for name in ("loss", "accuracy")}


def test_steps_replace_epochs(data: Data, steps: Steps) -> None:
    found = fit(supervised(), TASK, first(data, 128), recipe(epochs=50, batch_size=32, steps=7), 0)
    assert len(found.step_losses) == len(steps.rates) == 7
    assert steps.rates[-1] < steps.rates[2]


class Sizes(Small):
    """Notes the height and width of every batch that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.sizes.append((x.shape[2], x.shape[3]))
        return super().forward(x)


def test_small_images_come_first_and_full_size_last(data: Data, validation: Resident) -> None:
    model = supervised(Sizes)
    wanted = recipe(steps=10, resizing=((0.5, 0.4), (0.75, 0.7)))
    fit(model, TASK, first(data, 128), wanted, 0)
    assert model.network.sizes == [(4, 4)] * 4 + [(6, 6)] * 3 + [(8, 8)] * 3
    evaluate(model, TASK, validation)  # at full size


def test_a_resized_image_holds_the_means_of_its_areas() -> None:
    pixels = torch.arange(32.0).view(2, 1, 4, 4)
    small = training.resized(pixels, 4, recipe(resizing=((0.5, 0.9),)), 0.0)
    assert torch.equal(small, pixels.view(2, 1, 2, 2, 2, 2).mean((3, 5)))
    assert training.resized(pixels, 4, recipe(resizing=((0.5, 0.9),)), 0.9) is pixels
    assert training.resized(pixels, None, recipe(resizing=((0.5, 0.9),)), 0.0) is pixels


def test_masks_are_trained_on_at_full_size() -> None:
    pixels = np.zeros((8, 1, 8, 8), np.uint8)
    images = Resident(Images(pixels, np.zeros((8, 8, 8), np.uint8)), (0.0,), (1.0,), CPU)
    seen: list[torch.Size] = []

    class Nothing(Classification):
        def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
            return logits.sum() * 0

        def statistics(self, logits: Tensor, labels: Tensor) -> Tensor:
            seen.append(labels.shape)
            return torch.tensor([1, 1])

    model = supervised(Sizes)
    fit(model, Nothing(), images, recipe(steps=3, batch_size=4, resizing=((0.5, 0.9),)), 0)
    assert set(model.network.sizes) == {(8, 8)}
    assert set(seen) == {(4, 8, 8)}


def test_a_slow_machine_ends_its_schedule_in_time(data: Data, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # a second each time it is read
    monkeypatch.setattr("nas.training.loop.time.perf_counter", lambda: float(next(clock)))
    found = fit(supervised(), TASK, first(data, 128), recipe(steps=1000, batch_size=16), 0, seconds=50.0)
    assert 10 < len(found.step_losses) < 50
    assert found.images == 16 * len(found.step_losses)
    assert steps.rates[-1] < 0.15 * max(steps.rates)  # annealed all the same


def test_a_machine_that_is_fast_enough_follows_the_steps_alone(data: Data) -> None:
    one, other = (
        fit(supervised(), TASK, first(data, 128), recipe(steps=6), 0, seconds=seconds) for seconds in (None, 3600.0)
    )
    assert one.step_losses == other.step_losses


def test_the_speed_of_a_training_is_the_mean_over_its_image_sizes(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Slow(Small):
        """Takes as many seconds as there are pixels."""

        def forward(self, x: Tensor) -> Tensor:
            nonlocal now
            now += x.shape[2] * x.shape[3]
            return super().forward(x)

    monkeypatch.setattr("nas.training.loop.time.perf_counter", lambda: now)
    wanted = recipe(resizing=((0.5, 0.6), (0.75, 0.8)))
    found = training.seconds_a_step(supervised(Slow), TASK, first(data, 128), wanted, 0)
    assert found == pytest.approx(0.6 * 16 + 0.2 * 36 + 0.2 * 64)
