"""Signals, each against a computation of its own."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas import auxiliary
from nas.config import TowersConfig
from nas.evaluation import complexity, signals
from search_spaces.inception import InceptionSettings, InceptionSpace

SHAPE = (1, 8, 8)
SPACE = InceptionSpace(InceptionSettings(stem=(8, 8), widths=(8, 16, 16)))


def inception(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SPACE.build(SPACE.random(seed), SHAPE, 10)


def images(count: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


class Chain(nn.Module):
    """Cells given as modules, then the mean over places as logits."""

    def __init__(self, *cells: nn.Module) -> None:
        super().__init__()
        self.cells = nn.Sequential(*cells)
        self.cell_names = tuple(f"cells.{number}" for number in range(len(cells)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x).mean((2, 3))


def test_training_speed_by_hand() -> None:
    losses = [4.0, 2.0, 1.0, 1.0, 0.5, 0.5]  # three epochs of two steps: 3, 1, 0.5
    found = signals.training_speed(losses, 2)
    assert found["tse"] == pytest.approx(4.5)
    assert found["tse_e"] == pytest.approx(0.5)
    assert found["tse_ema"] == pytest.approx(0.5 + 0.9 * 1 + 0.81 * 3)


def test_training_speed_counts_epochs_back_from_the_last_step() -> None:
    found = signals.training_speed([9.0, 4.0, 2.0], 2)
    assert found["tse_e"] == pytest.approx(3.0)
    assert found["tse"] == pytest.approx(7.5)
    assert found["tse_ema"] == pytest.approx(3.0 + 0.9 * 4.5)


def test_naswot_by_comparing_activations_one_by_one() -> None:
    torch.manual_seed(1)
    network = Chain(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU()))
    batch = images(6)
    first = network.cells[0](batch)
    second = network.cells[1](first)
    codes = torch.cat([first.flatten(1), second.flatten(1)], 1) > 0
    kernel = [[float((a == b).sum()) for b in codes] for a in codes]
    assert signals.naswot(network, batch) == pytest.approx(np.linalg.slogdet(np.array(kernel))[1], rel=1e-6)


def test_naswot_of_equal_images_is_singular() -> None:
    assert signals.naswot(inception(), images(1).expand(4, -1, -1, -1)) == -math.inf


def test_synflow_of_a_chain_of_linear_layers_is_known_in_closed_form() -> None:
    torch.manual_seed(2)
    layers = [nn.Conv2d(a, b, 1, bias=False) for a, b in itertools.pairwise((1, 3, 4, 2))]
    network = Chain(*(nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)) for layer in layers))
    product = np.ones(1)
    for layer in layers:
        product = layer.weight.detach().double().abs().numpy()[:, :, 0, 0] @ product
    # each layer's saliency sums to R, which is linear in it
    assert signals.synflow(network, SHAPE) == pytest.approx(math.log(len(layers) * product.sum()))


def test_synflow_is_zero_where_nothing_flows() -> None:
    network = Chain(nn.Conv2d(1, 2, 1, bias=False))
    nn.init.zeros_(network.cells[0].weight)
    assert signals.synflow(network, SHAPE) == -math.inf


def test_az_nas_against_a_pca_and_a_jacobian_by_hand() -> None:
    torch.manual_seed(3)
    network = Chain(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 1, bias=False))
    found = signals.az_nas(network, SHAPE, torch.device("cpu"), 7)

    chance = torch.Generator().manual_seed(7)
    noise = torch.randn(signals.AZ_IMAGES, *SHAPE, generator=chance)
    first = network.cells[0](noise).detach()
    second = network.cells[1](first).detach()
    entropies = []
    for one in (first, second):
        shares = PCA().fit(one.movedim(1, -1).flatten(0, 2).double().numpy()).explained_variance_ratio_
        entropies.append(-sum(share * math.log(share) for share in shares if share > 1e-12))
    assert found["az_expressivity"] == pytest.approx(sum(entropies), abs=1e-6)
    assert found["az_progressivity"] == pytest.approx(entropies[1] - entropies[0], abs=1e-6)

    signs = (torch.randint(2, second.shape, generator=chance) * 2 - 1).movedim(1, -1).flatten(0, 2).double().numpy()
    weight = network.cells[1].weight.detach().double().numpy()[:, :, 0, 0]
    gain = np.linalg.svd((signs @ weight).T @ signs / len(signs))[1][0]
    assert found["az_trainability"] == pytest.approx(2 - gain - 1 / gain, abs=1e-5)
    assert gain == pytest.approx(np.linalg.norm(weight, 2), rel=0.1)  # what it estimates


def test_a_cell_that_keeps_its_scale_trains_best() -> None:
    def trainability(scale: float) -> float:
        cells = [nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1, bias=False)]
        cells[1].weight.data = scale * torch.eye(3)[:, :, None, None]
        return signals.az_nas(Chain(*cells), SHAPE, torch.device("cpu"), 0)["az_trainability"]

    assert trainability(1.0) > max(trainability(0.3), trainability(3.0))
    assert trainability(1.0) == pytest.approx(0, abs=0.02)


def test_reductions_between_cells_are_allowed_for() -> None:
    found = signals.zero_cost(inception(3), images(), 0)
    assert {"az_expressivity", "az_progressivity", "az_trainability", "naswot", "synflow"} == set(found)


def test_reading_an_untrained_network_changes_nothing_and_repeats() -> None:
    network = inception()
    state, random = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    modes = [module.training for module in network.modules()]
    first = signals.zero_cost(network, images(), 0)
    assert signals.zero_cost(network, images(), 0) == first
    assert all(torch.equal(one, state[name]) for name, one in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(p.grad is None for p in network.parameters())


def test_towers_are_summed_up_beside_the_main_head() -> None:
    scores = {"loss": 0.5, "tower1_loss": 0.6, "tower1_accuracy": 0.8, "tower3_loss": 0.8, "tower3_accuracy": 0.6}
    found = signals.of_towers(scores, ("tower1", "tower3"))
    means = {"tower_loss": 0.7, "tower_accuracy": 0.7, "tower_gap": 0.2}
    assert found == pytest.approx(means | {"tower1_gap": 0.1, "tower3_gap": 0.3})
    assert signals.of_towers(scores, ()) == {}


def test_multiply_adds_are_what_a_step_really_computes() -> None:
    network = inception(4)
    flops = complexity.count(network, SHAPE).flops
    model = auxiliary.supervise(network, TowersConfig(placement="middle"), SHAPE, 10)
    with FlopCounterMode(display=False) as counter:
        model.losses(model(images(32)), torch.zeros(32, dtype=torch.int64)).backward()
        model.eval()
        with torch.no_grad():
            model(images(16))
    counted = signals.multiply_adds(flops, model.share, 32, 16)
    assert counter.get_total_flops() / 2 == pytest.approx(counted, rel=0.1)  # images need no gradient
