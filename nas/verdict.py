"""Intervals, ties and warnings: which accuracies can be told apart, and when a search cannot help.

Pure functions of plain values. Accuracies and shares are from 0 to 1; messages give differences in points
(hundredths).

The formulas hold for images that are right or wrong. In dense prediction an accuracy is a mean over pixels, and the
pixels of one image are not independent: pass None as the number of images there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist, fmean, quantiles

CONFIDENCE = 0.95

MIN_DEGREES_OF_FREEDOM = 5
"""With fewer, a deviation estimated from repeated seeds may be far too small by chance."""

MIN_SCORES = 4
"""With fewer candidates nothing is said about their spread."""

MAX_NOISE_SHARE = 0.5
"""Share of the variance of scores above which their ranking is called mostly noise."""

MAX_HALF_WIDTH = 0.01
"""Half of an accuracy's interval above which a test set is called small."""

QUARTILES_PER_DEVIATION = 1.349
"""Distance between the quartiles of a normal distribution whose standard deviation is 1."""


# ---------------------------------------------------------------------------------------- intervals and differences


def accuracy_interval(accuracy: float, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The score interval of an accuracy (Wilson 1927, JASA 22).

    It says what the accuracy on other images of the same kind may be. It does not count what another seed changes.

    Args:
        accuracy: Share of right images, or the mean of several trainings on the same images.
        images: Number of images it was measured on. Several trainings on the same images do not add up.
        confidence: Between 0 and 1.

    Raises:
        ValueError: An argument is out of its range.
    """
    if not (0 <= accuracy <= 1 and images >= 1 and 0 < confidence < 1):
        raise ValueError(f"no interval for accuracy {accuracy}, {images} images, confidence {confidence}")
    z = _two_sided(confidence)
    center = accuracy + z * z / (2 * images)
    half = z * math.sqrt(accuracy * (1 - accuracy) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return max(0.0, min(accuracy, (center - half) / scale)), min(1.0, max(accuracy, (center + half) / scale))


def difference_deviation(a: float, b: float, images: int) -> float:
    """Standard error of the difference of two accuracies on the same images.

    Counts them as independent. Trained networks mostly fail on the same images, so this is larger than the truth.
    """
    return math.sqrt((a * (1 - a) + b * (1 - b)) / images)


def paired_deviation(a: Sequence[bool], b: Sequence[bool]) -> float:
    """The same where it is known which images are right: only those that one network alone gets right count.

    Args:
        a: For each image, whether the first network is right.
        b: The same for the second network, with the images in the same order.
    """
    only_a, only_b = _discordant(a, b)
    return math.sqrt(only_a + only_b - (only_a - only_b) ** 2 / len(a)) / len(a)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p-value of "both networks are equally accurate" (McNemar 1947, Psychometrika 12)."""
    only_a, only_b = _discordant(a, b)
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / (1 << n))


def difference_interval(
    a: float, b: float, images: int | None, deviation: float = 0.0, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of `a` - `b` (Newcombe 1998, Statistics in Medicine 17, method 10).

    Args:
        a: An accuracy.
        b: An accuracy on the same images. They count as independent: see `difference_deviation`.
        images: Number of images; None adds no uncertainty from images.
        deviation: Standard error of the difference that seeds cause.
        confidence: Between 0 and 1.
    """
    low_a, high_a = (a, a) if images is None else accuracy_interval(a, images, confidence)
    low_b, high_b = (b, b) if images is None else accuracy_interval(b, images, confidence)
    seeds = _two_sided(confidence) * deviation
    return a - b - math.hypot(a - low_a, high_b - b, seeds), a - b + math.hypot(high_a - a, b - low_b, seeds)


def distinguishable(
    a: float, b: float, images: int | None, deviation: float = 0.0, confidence: float = CONFIDENCE
) -> bool:
    """Whether the interval of the difference excludes 0. Arguments as in `difference_interval`."""
    low, high = difference_interval(a, b, images, deviation, confidence)
    return low > 0 or high < 0


# ------------------------------------------------------------------------------------------------ noise and ties


def seed_deviation(repeats: Iterable[Sequence[float]], best: float, images: int | None) -> float | None:
    """Standard deviation of one score around what the candidate is worth; None where nothing is known.

    Pooled from candidates that were measured from several seeds. With fewer than `MIN_DEGREES_OF_FREEDOM` it is at
    least the binomial deviation sqrt(p (1 - p) / images), and without repeats it is that. The binomial deviation is a
    rough substitute: it leaves out seeds, and counts images as if each candidate had its own.

    Args:
        repeats: The scores of each candidate from its seeds, all of one rung. Single scores are ignored.
        best: p, the accuracy near which candidates are compared. Two right and two wrong images are added to it
            (Agresti and Coull 1998, The American Statistician 52), so that it is never 0 or 1.
        images: Number of validation images.
    """
    groups = [list(scores) for scores in repeats if len(scores) > 1]
    freedom = sum(len(scores) - 1 for scores in groups)
    pooled = None
    if freedom:
        pooled = math.sqrt(sum((score - fmean(scores)) ** 2 for scores in groups for score in scores) / freedom)
    if images is None or freedom >= MIN_DEGREES_OF_FREEDOM:
        return pooled
    p = (best * images + 2) / (images + 4)
    return max(pooled or 0.0, math.sqrt(p * (1 - p) / images))


def tie_margin(candidates: int, deviation: float, confidence: float = CONFIDENCE) -> float:
    """How far below the best score a candidate may be and still be the best (Gupta 1965, Technometrics 7).

    The truly best candidate is within the margin with probability `confidence`, for any true accuracies and
    independent normal noise. For 2 candidates the margin is 1.64 sqrt(2) deviations. It grows with their number,
    because the best of many scores is lucky: for 30 candidates it is 2.74 sqrt(2).

    Args:
        candidates: How many were compared.
        deviation: Standard deviation of one score: see `seed_deviation`.
        confidence: Between 0 and 1.
    """
    return 0.0 if candidates < 2 else deviation * _gupta(candidates, confidence)


def tied_with_best(scores: Sequence[float], deviation: float, confidence: float = CONFIDENCE) -> list[bool]:
    """Which candidates cannot be told from the best, the best among them. More is better.

    Args:
        scores: One score of each candidate, all of one rung.
        deviation: Standard deviation of one score.
        confidence: That the truly best candidate is among them.
    """
    if not scores:
        return []
    limit = max(scores) - tie_margin(len(scores), deviation, confidence)
    return [score >= limit for score in scores]


# ------------------------------------------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Evidence:
    """What is known of a search; what is left out is not judged.

    Attributes:
        scores: Validation accuracy of each candidate, one rung.
        repeats: Validation accuracies of candidates that were measured from several seeds at that rung.
        validation_images: Number of images behind a score.
        largest_class: Share of the most frequent class among them.
        winner: Test accuracies of the winner, by seed.
        references: The same of textbook networks, by name, trained by the same recipe.
        randoms: The same of random networks.
        test_images: Number of images behind a test accuracy.
    """

    scores: Sequence[float] = ()
    repeats: Sequence[Sequence[float]] = ()
    validation_images: int | None = None
    largest_class: float | None = None
    winner: Sequence[float] = ()
    references: Mapping[str, Sequence[float]] = field(default_factory=dict)
    randoms: Sequence[float] = ()
    test_images: int | None = None


def problems(evidence: Evidence) -> list[str]:
    """Every problem, one line each: value, limit and what to do."""
    e = evidence
    # random networks differ in more than their seed: their spread is no seed noise
    seeds = seed_deviation([e.winner, *e.references.values()], 0.0, None) or 0.0
    lines = [chance_problem(e.scores, e.validation_images, e.largest_class)]
    if e.scores:
        lines.append(noise_problem(e.scores, seed_deviation(e.repeats, max(e.scores), e.validation_images)))
    if e.winner:
        lines.append(textbook_problem(e.winner, e.references, e.test_images, seeds))
        lines.append(random_problem(e.winner, e.randoms, e.test_images, seeds))
        lines.append(small_test_problem(fmean(e.winner), e.test_images))
    return [line for line in lines if line is not None]


def chance_problem(scores: Sequence[float], images: int | None, largest_class: float | None) -> str | None:
    """The best candidate is not above the share of the largest class by more than its interval.

    The interval holds for all candidates at once (Bonferroni), because the best of many is lucky.
    """
    if not scores or largest_class is None:
        return None
    best, interval = max(scores), ""
    low = best
    if images is not None:
        low, high = accuracy_interval(best, images, 1 - (1 - CONFIDENCE) / len(scores))
        interval = f" (interval {100 * low:.1f} to {100 * high:.1f} on {images:,} images)"
    if low > largest_class:
        return None
    return (
        f"No candidate is better than chance: the best validation accuracy is {100 * best:.1f} %{interval}, "
        f"the largest class has {100 * largest_class:.1f} % of the images; give more time or check the labels."
    )


def noise_problem(scores: Sequence[float], deviation: float | None) -> str | None:
    """Noise explains most of the variance of the scores.

    The spread is taken between the quartiles: a few candidates that did not learn do not make a ranking better.
    """
    if deviation is None or len(scores) < MIN_SCORES:
        return None
    low, _, high = quantiles(scores, n=4, method="inclusive")
    spread = (high - low) / QUARTILES_PER_DEVIATION
    share = 1.0 if spread <= deviation else (deviation / spread) ** 2
    if share <= MAX_NOISE_SHARE:
        return None
    return (
        f"The ranking is mostly noise: the accuracies of {len(scores)} candidates have a standard deviation of "
        f"{100 * spread:.2f} points, the noise of one is {100 * deviation:.2f} points, {100 * share:.0f} % of the "
        f"variance (limit {100 * MAX_NOISE_SHARE:.0f} %); train proxies longer or use more validation images."
    )


def textbook_problem(
    winner: Sequence[float], references: Mapping[str, Sequence[float]], images: int | None, deviation: float = 0.0
) -> str | None:
    """The winner is not better, or not clearly better, than textbook networks.

    Args:
        winner: Test accuracies by seed.
        references: The same of each textbook network, by name.
        images: Number of test images.
        deviation: Standard deviation of one training: see `seed_deviation`.
    """
    own = fmean(winner)
    means = {name: fmean(scores) for name, scores in references.items() if scores}
    clear = {
        name
        for name, mean in means.items()
        if difference_interval(own, mean, images, _of_means(deviation, winner, references[name]))[0] > 0
    }
    equal_or_better = {name: mean for name, mean in means.items() if mean >= own}
    rivals = equal_or_better or {name: mean for name, mean in means.items() if name not in clear}
    if not rivals:
        return None
    best = max(rivals, key=lambda name: rivals[name])
    interval = difference_interval(own, rivals[best], images, _of_means(deviation, winner, references[best]))
    named = ", ".join(f"{name} {_percent(mean)}" for name, mean in sorted(rivals.items(), key=lambda item: -item[1]))
    return (
        f"The winner is not {'better' if equal_or_better else 'clearly better'} than textbook networks: its test "
        f"accuracy is {_percent(own)}, {named} ({_difference(own - rivals[best], interval, best)}); "
        f"use {best}, or give the search more time."
    )


def random_problem(
    winner: Sequence[float], randoms: Sequence[float], images: int | None, deviation: float = 0.0
) -> str | None:
    """The winner is below the mean of random networks. Arguments as in `textbook_problem`."""
    if not randoms or fmean(winner) >= fmean(randoms):
        return None
    own, mean = fmean(winner), fmean(randoms)
    count = "1 random network" if len(randoms) == 1 else f"the mean of {len(randoms)} random networks"
    interval = difference_interval(own, mean, images, _of_means(deviation, winner, randoms))
    return (
        f"The winner is below {count}: its test accuracy is {_percent(own)}, theirs {_percent(mean)} "
        f"({_difference(own - mean, interval, 'them')}); the search did not help: train proxies longer or give more "
        "time."
    )


def small_test_problem(accuracy: float, images: int | None) -> str | None:
    """The test set is so small that the interval of the accuracy is wider than 1 point to each side."""
    if images is None or _half_width(accuracy, images) <= MAX_HALF_WIDTH:
        return None
    low, high = accuracy_interval(accuracy, images)
    enough = images
    while _half_width(accuracy, enough) > MAX_HALF_WIDTH:
        enough = math.ceil(1.02 * enough)
    step = 10 ** max(0, len(str(enough)) - 2)
    return (
        f"The test set is small: on {images:,} images an accuracy of {_percent(accuracy)} has the 95 % interval "
        f"{100 * low:.2f} to {100 * high:.2f}, ±{100 * _half_width(accuracy, images):.1f} points "
        f"(limit ±{100 * MAX_HALF_WIDTH:.0f}); use about {step * math.ceil(enough / step):,} test images."
    )


# -------------------------------------------------------------------------------------------------------- helpers


def _two_sided(confidence: float) -> float:
    """Standard deviations to each side: 1.96 for 95 %."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _discordant(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int]:
    """How many images the first network alone, and the second alone, gets right."""
    if not a or len(a) != len(b):
        raise ValueError(f"no comparison of {len(a)} with {len(b)} images")
    pairs = list(zip(a, b, strict=True))
    return sum(bool(x and not y) for x, y in pairs), sum(bool(y and not x) for x, y in pairs)


@lru_cache(maxsize=64)
def _gupta(candidates: int, confidence: float) -> float:
    """h, for which the integral of Phi(z + h)^(candidates - 1) phi(z) dz is `confidence`."""
    grid = [step / 20 for step in range(-160, 161)]
    density = [NormalDist().pdf(z) for z in grid]

    def within(h: float) -> float:
        values = [NormalDist().cdf(z + h) ** (candidates - 1) * d for z, d in zip(grid, density, strict=True)]
        return sum(x + y for x, y in pairwise(values)) / 40

    low, high = 0.0, 16.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < confidence else (low, middle)
    return high


def _half_width(accuracy: float, images: int) -> float:
    low, high = accuracy_interval(accuracy, images)
    return (high - low) / 2


def _of_means(deviation: float, first: Sequence[float], second: Sequence[float]) -> float:
    """Standard error of the difference of two means, given that of one training."""
    return deviation * math.sqrt(1 / len(first) + 1 / len(second))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _difference(difference: float, interval: tuple[float, float], other: str) -> str:
    low, high = interval
    noise = ", within noise" if low <= 0 <= high else ""
    return (
        f"difference to {other} {100 * difference:+.2f} points, "
        f"95 % interval {100 * low:+.2f} to {100 * high:+.2f}{noise}"
    )
