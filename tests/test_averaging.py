"""Averaged weights: what they are, that their statistics are recomputed, and that training never sees them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nas.training.averaging import Averaged, recompute_statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2)
    )


def images(count: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_few_steps_count_alike_and_many_fade() -> None:
    model = nn.Linear(1, 1, bias=False)
    averaged = Averaged(model, steps_an_epoch=8)  # a horizon of 4 steps
    values = [3.0, 5.0, 1.0, 7.0, 2.0, 9.0]
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update()
    expected = sum(values[:4]) / 4
    for value in values[4:]:
        expected += (value - expected) / 4
    with averaged.applied(iter([])):
        assert model.weight.item() == torch.tensor(expected)
    assert model.weight.item() == 9.0


def test_statistics_are_the_mean_over_the_batches() -> None:
    model, batches = network(), [images(8, 1), images(8, 2)]
    recompute_statistics(model, iter(batches))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    before = torch.stack([model[0](batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, before)
    assert norm.momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_afterwards_everything_is_as_it_was() -> None:
    model = network().train()
    model[3].eval()
    averaged = Averaged(model, 2)
    averaged.update()
    with torch.no_grad():
        model[0].weight.mul_(2)
    model(images())
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.random.get_rng_state()
    with averaged.applied(iter([images(8, 3)])):
        assert not torch.equal(model[0].weight, state["0.weight"])
        assert not torch.equal(model[1].running_mean, state["1.running_mean"])
        model.eval()(images())
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_model_without_batch_norm_needs_no_batches() -> None:
    model = nn.Linear(2, 2).train()
    averaged = Averaged(model, 1)

    def never() -> Tensor:
        raise AssertionError("no batch is asked for")

    with averaged.applied(never() for _ in range(1)):
        assert not model.training
    assert model.training
