"""The noise ceiling: how well a ranking can agree with a truth that is noisy itself.

Accuracy of an architecture from a seed = latent + noise. The noise's deviation comes from architectures trained from
two seeds or more (pooled within them); the latents' variance is that of the means less the noise left in them. Means
are drawn together until they have that variance: this keeps the shape of their distribution, which a normal one would
not (Louis 1984, "constrained" empirical Bayes). Noise is taken as normal and equally large everywhere.

Given the latents, noise in two trainings is independent, so of a pair at distance d the expected product of signs is
erf(d / (2 s)) erf(d / (s sqrt(2 (1/k_i + 1/k_j)))) for one further training against the mean of k, and the second
factor alone for a predictor that knows the latents. The expected tau is its mean over pairs: nothing is simulated, but
in the best tenth, as who is in it depends on the noise itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from nas.proxy_fidelity.calibration.agreement import Array, Estimate, estimate, mean, tau


@dataclass(frozen=True)
class Parts:
    """Latent accuracies (n,), the number of seeds in each mean (n,), and the deviation of one seed's noise."""

    latent: Array
    seeds: NDArray[np.int64]
    noise: float

    @property
    def spread(self) -> float:
        """Deviation of the latents."""
        return float(self.latent.std(ddof=1))


def decompose(truths: Array, weights: Array | None = None) -> Parts | None:
    """Latents and noise of truths (n, S), NaN where a seed is missing; None where no architecture has two seeds."""
    drawn = np.ones(len(truths)) if weights is None else weights
    count = (~np.isnan(truths)).sum(1)
    means = np.nanmean(truths, axis=1)
    freedom = float((drawn * (count - 1)).sum())
    if freedom <= 0:
        return None
    noise = float((drawn * np.nansum((truths - means[:, None]) ** 2, 1)).sum()) / freedom
    grand = np.average(means, weights=drawn)
    variance = float((drawn * (means - grand) ** 2).sum()) / (drawn.sum() - 1)
    latent = max(0.0, variance - noise * float(np.average(1 / count, weights=drawn)))
    shrink = np.sqrt(latent / variance) if variance > 0 else 0.0
    return Parts(grand + shrink * (means - grand), count, float(np.sqrt(noise)))


def expected(parts: Parts, weights: Array, perfect: bool) -> float:
    """Tau to be expected of one further training, or of a perfect predictor, against the truth; NaN of no pair."""
    inside = weights > 0
    latent, k, m = parts.latent[inside], parts.seeds[inside], weights[inside]
    pairs = m.sum() ** 2 - (m**2).sum()
    if pairs <= 0:
        return float("nan")
    distance = latent[:, None] - latent
    noise = max(parts.noise, 1e-12)
    truth = erf(distance / (noise * np.sqrt(2 * (1 / k[:, None] + 1 / k))))
    other = np.sign(distance) if perfect else erf(distance / (2 * noise))
    return float(np.einsum("i,ij,j", m, truth * other, m) / pairs)


def expected_on_top(parts: Parts, share: float, perfect: bool, seed: int, draws: int = 200) -> float:
    """The same among the best `share` by the truth: simulated, as the noise decides too who is among them."""
    generator = np.random.default_rng(seed)
    n = len(parts.latent)
    found = np.full(draws, np.nan)
    for number in range(draws):
        truth = parts.latent + parts.noise * generator.standard_normal(n) / np.sqrt(parts.seeds)
        other = parts.latent + (0 if perfect else parts.noise * generator.standard_normal(n))
        best = np.argsort(-truth, kind="stable")[: int(np.ceil(share * n))]
        found[number] = tau(other[best], truth[best])
    return float(mean(found, 0))


def ceilings(truths: Array, groups: NDArray[np.bool_], perfect: bool, resamples: int, seed: int) -> list[Estimate]:
    """`expected` in each group (G, n), and last its mean over all groups but the first; over resampled architectures.

    A resampled architecture brings all its seeds: drawing among two would halve what they say of the noise.
    """
    parts = decompose(truths)
    if parts is None:
        return [Estimate(np.nan, np.nan, np.nan, int(group.sum())) for group in groups] + [
            Estimate(np.nan, np.nan, np.nan, len(truths))
        ]
    generator = np.random.default_rng(seed)
    values = [expected(parts, group.astype(float), perfect) for group in groups]
    drawn = np.full((resamples, len(groups)), np.nan)
    for number in range(resamples):
        weights = np.bincount(generator.integers(0, len(truths), len(truths)), minlength=len(truths)).astype(float)
        if (resampled := decompose(truths, weights)) is not None:
            drawn[number] = [expected(resampled, np.where(group, weights, 0), perfect) for group in groups]
    found = [
        estimate(value, drawn[:, place], int(group.sum()))
        for place, (value, group) in enumerate(zip(values, groups, strict=True))
    ]
    within = estimate(float(mean(np.array(values[1:]), 0)), mean(drawn[:, 1:], 1), int(groups[1:].any(0).sum()))
    return [*found, within]
