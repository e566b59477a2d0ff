"""Whether a search can help and did: intervals, ties, and one line for each problem."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from nas.verdict import (
    Evidence,
    accuracy_interval,
    chance_problem,
    difference_deviation,
    difference_interval,
    distinguishable,
    mcnemar,
    noise_problem,
    paired_deviation,
    problems,
    random_problem,
    seed_deviation,
    small_test_problem,
    textbook_problem,
    tie_margin,
    tied_with_best,
)

# ------------------------------------------------------------------------------------------------------ intervals


@settings(deadline=None, derandomize=True)
@given(images=st.integers(1, 20_000), data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_scipys_and_contains_the_accuracy(images: int, data: st.DataObject, confidence: float) -> None:
    right = data.draw(st.integers(0, images))
    low, high = accuracy_interval(right / images, images, confidence)
    expected = binomtest(right, images).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= right / images <= high <= 1


def test_the_interval_of_a_known_case() -> None:
    assert accuracy_interval(0.9356, 10_000) == pytest.approx((0.93062, 0.94025), abs=1e-5)


@pytest.mark.parametrize(("accuracy", "images", "confidence"), [(1.1, 10, 0.95), (0.5, 0, 0.95), (0.5, 10, 1.0)])
def test_impossible_values_have_no_interval(accuracy: float, images: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="no interval"):
        accuracy_interval(accuracy, images, confidence)


def test_a_paired_comparison_is_sharper_than_one_without_pairs() -> None:
    a = [True] * 90 + [False] * 10
    b = [True] * 80 + [False] * 20  # right only where a is right
    assert paired_deviation(a, b) == pytest.approx(math.sqrt(10 - 100 / 100) / 100)
    assert paired_deviation(a, b) < difference_deviation(0.9, 0.8, 100)
    assert mcnemar(a, b) == pytest.approx(binomtest(0, 10).pvalue)
    assert not distinguishable(0.9, 0.82, 100)
    assert mcnemar(a, a) == 1
    assert mcnemar(b, a) == mcnemar(a, b)
    with pytest.raises(ValueError, match="no comparison of 100 with 99 images"):
        mcnemar(a, b[1:])


def test_a_difference_is_told_from_noise_when_there_are_enough_images() -> None:
    assert not distinguishable(0.92, 0.91, 2000)
    assert distinguishable(0.92, 0.91, 20_000)
    assert distinguishable(0.91, 0.92, 20_000)
    assert not distinguishable(0.92, 0.91, 20_000, deviation=0.01), "seeds differ by more"
    assert not distinguishable(1.0, 1.0, 10)
    assert distinguishable(0.92, 0.91, None)
    low, high = difference_interval(0.92, 0.91, 2000)
    assert low == -difference_interval(0.91, 0.92, 2000)[1]
    assert (high - low) / 2 == pytest.approx(1.96 * difference_deviation(0.92, 0.91, 2000), rel=0.01)


# ----------------------------------------------------------------------------------------------- noise and ties


def test_the_deviation_between_seeds_is_pooled() -> None:
    repeats = [[0.9, 0.92], [0.5, 0.54], [0.7], [0.6, 0.6, 0.6, 0.6]]
    assert seed_deviation(repeats, 0.9, 100) == pytest.approx(math.sqrt((0.0002 + 0.0008) / 5))
    few = seed_deviation(repeats[:2], 0.9, 100)
    assert few == pytest.approx(math.sqrt(0.9 * 0.1 / 100), rel=0.1), "at least that of the images"
    assert few == seed_deviation([], 0.9, 100)
    assert seed_deviation(repeats[:2], 0.9, None) == pytest.approx(math.sqrt(0.0010 / 2))
    assert seed_deviation([[0.5]], 0.9, None) is None
    assert (seed_deviation([], 1.0, 100) or 0) > 0.01


def test_the_pooled_deviation_is_that_of_the_noise() -> None:
    chance = random.Random(0)
    latent = [chance.gauss(0.8, 0.05) for _ in range(400)]
    repeats = [[chance.gauss(score, 0.01) for _ in range(3)] for score in latent]
    assert seed_deviation(repeats, 0.9, 1000) == pytest.approx(0.01, rel=0.05)


def test_the_margin_grows_with_the_candidates() -> None:
    assert tie_margin(1, 0.01) == 0
    assert tie_margin(2, 0.01) == pytest.approx(0.01 * 1.6449 * math.sqrt(2), rel=1e-4)
    margins = [tie_margin(count, 0.01) for count in (2, 3, 10, 30, 100, 1000)]
    assert margins == sorted(margins)
    assert margins[-1] < 0.06


@pytest.mark.parametrize("count", [2, 30])
def test_of_equal_candidates_the_best_is_tied_in_19_of_20_cases(count: int) -> None:
    """Equal ones are the hardest case."""
    chance = random.Random(1)
    inside = sum(tied_with_best([chance.gauss(0.9, 0.01) for _ in range(count)], 0.01)[0] for _ in range(4000))
    assert inside / 4000 == pytest.approx(0.95, abs=0.015)


def test_who_is_tied() -> None:
    assert tied_with_best([0.9, 0.89, 0.5], 0.005) == [True, True, False]
    assert tied_with_best([0.9, 0.89, 0.9], 0.0) == [True, False, True]
    assert tied_with_best([0.3], 0.01) == [True]
    assert tied_with_best([], 0.01) == []


# ------------------------------------------------------------------------------------------------------- problems


def test_no_candidate_is_better_than_chance() -> None:
    assert chance_problem([0.2, 0.279], None, 0.28) == (
        "No candidate is better than chance: the best validation accuracy is 27.9 %, the largest class has 28.0 % of "
        "the images; give more time or check the labels."
    )
    line = chance_problem([0.2, 0.279], 160, 0.25)
    assert line is not None
    assert "the best validation accuracy is 27.9 % (interval 20.7 to 36.4 on 160 images), the largest class" in line
    assert chance_problem([0.2, 0.279], 16_000, 0.25) is None
    assert chance_problem([], 160, 0.25) is None
    assert chance_problem([0.1], 160, None) is None


def test_candidates_that_guess_are_mostly_called_chance_however_many() -> None:
    chance = random.Random(2)

    def share(count: int) -> float:
        guesses = [[sum(chance.random() < 0.25 for _ in range(200)) / 200 for _ in range(count)] for _ in range(100)]
        return sum(chance_problem(scores, 200, 0.25) is not None for scores in guesses) / 100

    assert share(2) > 0.9
    assert share(30) > 0.9


def test_a_ranking_is_mostly_noise() -> None:
    scores = [0.900, 0.904, 0.908, 0.912, 0.916]
    line = noise_problem(scores, 0.005)
    assert line == (
        "The ranking is mostly noise: the accuracies of 5 candidates have a standard deviation of 0.59 points, the "
        "noise of one is 0.50 points, 71 % of the variance (limit 50 %); train proxies longer or use more validation "
        "images."
    )
    assert noise_problem(scores, 0.003) is None
    assert "100 % of the variance" in (noise_problem(scores, 0.02) or "")
    assert "100 % of the variance" in (noise_problem([0.9] * 5, 0.0) or "")
    assert noise_problem([*scores, 0.1], 0.006) is not None, "one that did not learn makes no ranking better"
    assert noise_problem(scores, None) is None
    assert noise_problem(scores[:3], 0.5) is None


def test_textbook_networks_are_named_with_their_scores() -> None:
    references = {"resnet-20": [0.925], "googlenet-small": [0.93, 0.94], "alexnet": [0.8]}
    line = textbook_problem([0.92, 0.92], references, 10_000)
    assert line is not None
    assert line.startswith(
        "The winner is not better than textbook networks: its test accuracy is 92.00 %, googlenet-small 93.50 %, "
        "resnet-20 92.50 % (difference to googlenet-small -1.50 points, 95 % interval -2.2"
    )
    assert line.endswith("; use googlenet-small, or give the search more time.")
    assert "noise" not in line
    assert "alexnet" not in line


def test_textbook_networks_that_are_beaten_within_noise_only_are_named_too() -> None:
    line = textbook_problem([0.922], {"resnet-20": [0.92], "alexnet": [0.8]}, 2000)
    assert line is not None
    assert line.startswith("The winner is not clearly better than textbook networks: its test accuracy is 92.20 %, ")
    assert "resnet-20 92.00 % (difference to resnet-20 +0.20 points" in line
    assert "within noise" in line
    assert textbook_problem([0.95], {"resnet-20": [0.92]}, 2000) is None
    assert textbook_problem([0.95, 0.95], {"resnet-20": [0.92]}, 2000, deviation=0.03) is not None, "noise of seeds"
    assert textbook_problem([0.95], {}, 2000) is None
    assert textbook_problem([0.95], {"resnet-20": []}, 2000) is None


def test_a_winner_below_random_networks() -> None:
    line = random_problem([0.90], [0.91, 0.93, 0.92], 10_000)
    assert line is not None
    assert line.startswith("The winner is below the mean of 3 random networks: its test accuracy is 90.00 %, ")
    assert "theirs 92.00 % (difference to them -2.00 points" in line
    assert "within noise" not in line
    assert "within noise" in (random_problem([0.90], [0.91], 100) or "")
    assert "below 1 random network:" in (random_problem([0.90], [0.91], 100) or "")
    assert random_problem([0.93], [0.91, 0.93, 0.92], 10_000) is None
    assert random_problem([0.93], [], 10_000) is None


def test_a_small_test_set() -> None:
    line = small_test_problem(0.9861, 359)
    assert line is not None
    assert line.startswith(
        "The test set is small: on 359 images an accuracy of 98.61 % has the 95 % interval 96.79 to 99.41, "
        "±1.3 points (limit ±1); use about "
    )
    enough = int(re.findall(r"use about ([\d,]+) test images", line)[0].replace(",", ""))
    assert 500 < enough < 700
    assert small_test_problem(0.9861, enough) is None
    assert small_test_problem(0.9356, 10_000) is None
    assert small_test_problem(0.9, None) is None
    assert small_test_problem(1.0, 20) is not None


def test_a_good_search_has_no_problem() -> None:
    good = Evidence(
        scores=[0.7, 0.75, 0.8, 0.85, 0.9],
        validation_images=5000,
        largest_class=0.1,
        winner=[0.95, 0.951],
        references={"resnet-20": [0.92]},
        randoms=[0.90, 0.91],
        test_images=10_000,
    )
    assert problems(good) == []
    assert problems(Evidence()) == []


def test_every_problem_is_one_line_that_ends() -> None:
    bad = Evidence(
        scores=[0.100, 0.101, 0.102, 0.103],
        repeats=[[0.1, 0.11]],
        validation_images=500,
        largest_class=0.1,
        winner=[0.10, 0.11],
        references={"resnet-20": [0.92]},
        randoms=[0.2, 0.3],
        test_images=300,
    )
    lines = problems(bad)
    beginnings: Sequence[str] = (
        "No candidate is better than chance",
        "The ranking is mostly noise",
        "The winner is not better than textbook networks",
        "The winner is below the mean of 2 random networks",
        "The test set is small",
    )
    assert len(lines) == len(beginnings)
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line.startswith(beginning)
        assert line.endswith(".")
        assert "\n" not in line
