"""Synthetic tables in which many networks share a few sizes, to test the ladder.

The default resembles spaces of an operation on each edge of a small cell, such as NAS-Bench-201 (Dong and Yang 2020):
six edges with one of five operations each, of which only two convolutions have parameters. So a size says how many
there are of each, and 9,445 networks have 28 sizes: a few hundred networks share a small one, few share a large one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.proxy_fidelity.simulate.recorded import Table

Floats = NDArray[np.float64]

EDGES = 6
NONE, SMALL, LARGE, SKIP, POOL = range(5)
STEM_PARAMS, SMALL_PARAMS, LARGE_PARAMS = 73_306, 28_000, 243_040
SMALLEST, LARGEST = 7e4, 1.5e6


@dataclass(frozen=True)
class SharedSizes:
    """How a table is made.

    A full score is the sum of a trend in the logarithm of the size and of a part of the network's own; a short score
    has less trend, and own parts that correlate with those of full training.

    Attributes:
        sizes: Distinct sizes, of very unequal counts, and own parts that are normal. None: operations on edges, whose
            own part is half structure: a gain by any skip connection, and an effect of each operation at each edge.
        share: Share of the variance of full scores that the trend explains.
        early_share: The same of short scores.
        agreement: Correlation of own parts of short and full scores.
        ordered: Whether sizes are better the larger they are; if not, each has an effect drawn at random.
        cost: Of a short training, in full trainings.
    """

    sizes: int | None = None
    share: float = 0.6
    early_share: float = 0.25
    agreement: float = 0.775
    ordered: bool = True
    cost: float = 0.06
    networks: int = 9445


VARIANTS: dict[str, SharedSizes] = {
    "operations on edges": SharedSizes(),
    "28 sizes, normal": SharedSizes(28),
    "10 sizes": SharedSizes(10),
    "50 sizes": SharedSizes(50),
    "100 sizes": SharedSizes(100),
    "size explains .2": SharedSizes(share=0.2, early_share=0.08),
    "size explains .4": SharedSizes(share=0.4, early_share=0.16),
    "size explains .8": SharedSizes(share=0.8, early_share=0.34),
    "short scores say less": SharedSizes(agreement=0.5),
    "short scores say more": SharedSizes(agreement=0.95),
    "sizes in no order": SharedSizes(ordered=False),
}


def table(made: SharedSizes, seed: int = 0) -> Table:
    """The table. Ranks by full and short scores have a Kendall's tau of about .6 by default."""
    generator = np.random.default_rng(seed)
    params, own = _on_edges(made.networks, generator) if made.sizes is None else _drawn(made, generator)
    size = np.log(params)
    if not made.ordered:
        distinct, which = np.unique(params, return_inverse=True)
        size = generator.standard_normal(len(distinct))[which]
    size, own, chance = (_standardised(part) for part in (size, own, generator.standard_normal(len(params))))
    full = np.sqrt(made.share) * size + np.sqrt(1 - made.share) * own
    agreed = made.agreement * own + np.sqrt(1 - made.agreement**2) * chance
    short = np.sqrt(made.early_share) * size + np.sqrt(1 - made.early_share) * agreed
    return Table(
        architectures=tuple(str(number) for number in range(len(params))),
        epochs=(12.0, 200.0),
        params=params,
        scores=np.stack([short, full], axis=1),
        costs=np.tile([made.cost, 1.0], (len(params), 1)),
        free=params[:, None],
        free_names=("params",),
        signals=np.zeros((len(params), 2, 0)),
        signal_names=(),
        truth=full,
    )


def _on_edges(networks: int, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Parameters and own parts of networks with an operation on each edge."""
    cells = np.array(list(itertools.product(range(5), repeat=EDGES)))
    cells = cells[generator.permutation(len(cells))[:networks]]
    small, large, skips = ((cells == operation).sum(axis=1) for operation in (SMALL, LARGE, SKIP))
    params = (STEM_PARAMS + SMALL_PARAMS * small + LARGE_PARAMS * large).astype(np.float64)
    effects = generator.standard_normal((EDGES, 5))[np.arange(EDGES), cells].sum(axis=1)
    _, which = np.unique(params, return_inverse=True)
    effects -= (np.bincount(which, effects) / np.bincount(which))[which]  # what the size says is in the trend
    chance = generator.standard_normal(len(params))
    return params, np.minimum(skips, 1) + np.sqrt(0.7) * _standardised(effects) + np.sqrt(0.3) * chance


def _drawn(made: SharedSizes, generator: np.random.Generator) -> tuple[Floats, Floats]:
    """Parameters of as many sizes as asked for, and normal own parts."""
    assert made.sizes is not None
    sizes = np.exp(np.sort(generator.uniform(np.log(SMALLEST), np.log(LARGEST), made.sizes))).round()
    counts = np.maximum(generator.dirichlet(np.full(made.sizes, 0.7)), 1e-3)
    params = sizes[generator.choice(made.sizes, made.networks, p=counts / counts.sum())]
    return params, generator.standard_normal(made.networks)


def _standardised(values: Floats) -> Floats:
    return np.asarray((values - values.mean()) / values.std())
