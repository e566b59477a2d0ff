"""The board: ranked at one rung only, references unranked beside it, what failed last with its cause."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nas.cli import drawing
from nas.errors import InputError
from nas.leaderboard import ImageCounts, Predictions, Record, board, columns, front, in_order, sort
from nas.metrics import on_board
from nas.store import Entry, Measurement, Store, open_database
from nas.verdict import accuracy_interval, tie_margin

PROXY, RETRAIN = "proxy-0000", "retrain-0000"
OTHER_PROXY, OTHER_RETRAIN = "proxy-1111", "retrain-1111"


def best(*given: Any) -> Measurement | None:
    """The candidate that stands first."""
    return next(iter(in_order(*given)), None)


def proxy(trial: int | None, key: str, loss: float, rung: str = PROXY, **signals: float) -> Entry:
    signals = {"val_loss": loss, "val_accuracy": 1 - loss, "params": 1000.0, "flops": 10.0, **signals}
    return Entry(Measurement("{}", key, rung, 0, "done", signals, {"seconds": 2.0}, (1,)), trial)


def stopped(trial: int, key: str, status: Any, cause: str, rung: str = PROXY) -> Entry:
    return Entry(Measurement("{}", key, rung, 0, status, cause=cause), trial)


def retrained(key: str, accuracy: float, seed: int = 0, rung: str = RETRAIN) -> Entry:
    return Entry(Measurement("{}", key, rung, seed, "done", {"test_accuracy": accuracy}, {"seconds": 90.0}), None)


def shown(entries: list[Entry], references: Mapping[str, list[str]] | None = None, objective: str = "loss") -> Any:
    return board(entries, [PROXY], RETRAIN, objective, references or {})


def ranks(rows: list[Record]) -> list[tuple[int | None, str]]:
    return [(row.rank, row.name) for row in rows]


# -------------------------------------------------------------------------------------------------- ranks


def test_candidates_are_ranked_by_the_objective() -> None:
    entries = [proxy(0, "a", 0.5), proxy(1, "b", 0.3), proxy(2, "c", 0.4, val_accuracy=0.9)]
    assert ranks(shown(entries)) == [(1, "trial 1"), (2, "trial 2"), (3, "trial 0")]
    assert ranks(shown(entries, objective="accuracy")) == [(1, "trial 2"), (2, "trial 1"), (3, "trial 0")]
    first = shown(entries)[0]
    assert (first.kind, first.key, first.status, first.rung) == ("candidate", "b", "done", "proxy")
    assert (first.loss, first.accuracy, first.params, first.flops) == (0.3, 0.7, 1000, 10)
    assert (first.seconds, first.towers, first.latency, first.cause) == (2.0, (1,), None, None)


def test_references_stand_among_them_without_a_rank() -> None:
    entries = [proxy(0, "a", 0.5), proxy(1, "b", 0.3), proxy(None, "g", 0.4)]
    rows = shown(entries, {"googlenet-small": ["g"], "absent": ["x"]})
    assert ranks(rows) == [(1, "trial 1"), (None, "googlenet-small"), (2, "trial 0")]
    assert (rows[1].kind, rows[1].key) == ("reference", "g")
    assert not rows[1].pareto


def test_a_candidate_that_is_a_reference_too_stands_in_both_rows() -> None:
    rows = shown([proxy(0, "g", 0.4), retrained("g", 0.9)], {"googlenet-small": ["g"]})
    assert sorted(ranks(rows), key=str) == [(1, "trial 0"), (None, "googlenet-small")]
    assert [row.test_accuracy for row in rows] == [0.9, 0.9]


def test_a_row_of_several_references_is_their_mean() -> None:
    entries = [proxy(None, key, loss) for key, loss in (("r", 0.2), ("s", 0.3), ("t", 0.7))]
    entries += [retrained("r", 0.8), retrained("s", 0.9), retrained("t", 0.7)]
    (row,) = shown(entries, {"random": ["r", "s", "t"]})
    assert row.name == "random (mean of 3)"
    assert (row.loss, row.test_accuracy, row.test_std) == pytest.approx((0.4, 0.8, 0.1))
    assert (row.test_seeds, row.key, row.rank) == (3, "", None)


def test_a_mean_is_of_those_that_were_measured_and_says_so() -> None:
    entries = [stopped(0, "r", "failed", "nan"), proxy(None, "s", 0.3), proxy(None, "t", 0.5)]
    entries = [Entry(entry.measurement, None) for entry in entries]
    (row,) = shown(entries, {"random": ["r", "s", "t"]})
    assert (row.name, row.loss, row.status, row.cause) == ("random (mean of 2)", 0.4, "done", None)
    (row,) = shown(entries[:1], {"random": ["r", "s", "t"]})
    assert (row.name, row.loss, row.status, row.cause) == ("random", None, "failed", "nan")


def test_what_failed_or_was_stopped_comes_last_with_its_cause() -> None:
    entries = [
        stopped(0, "a", "failed", "loss is nan"),
        proxy(1, "b", 0.9),
        stopped(2, "c", "infeasible", "params 9 is 50 % over the limit"),
    ]
    rows = shown(entries)
    assert ranks(rows) == [(1, "trial 1"), (None, "trial 0"), (None, "trial 2")]
    assert [(row.status, row.cause) for row in rows[1:]] == [
        ("failed", "loss is nan"),
        ("infeasible", "params 9 is 50 % over the limit"),
    ]
    assert all(row.loss is None and not row.pareto for row in rows[1:])
    assert rows[1].rung == "proxy"  # the rung that it reached


def test_results_of_retraining_stand_beside_the_rank_and_do_not_change_it() -> None:
    entries = [proxy(0, "a", 0.2), proxy(1, "b", 0.4)]
    entries += [retrained("b", 0.99), retrained("a", 0.7, seed=0), retrained("a", 0.9, seed=1)]
    rows = shown(entries)
    assert ranks(rows) == [(1, "trial 0"), (2, "trial 1")]
    assert (rows[0].test_accuracy, rows[0].test_std) == pytest.approx((0.8, 0.1 * 2**0.5))
    assert (rows[0].test_seeds, rows[0].rung, rows[0].loss) == (2, "retrain", 0.2)
    assert (rows[1].test_accuracy, rows[1].test_std, rows[1].test_seeds) == (0.99, None, 1)


def test_an_empty_experiment_has_an_empty_board() -> None:
    assert shown([]) == []
    assert shown([], {"random": ["r"]}) == []
    assert best([], [PROXY], "loss") is None


# --------------------------------------------------------------------------------------- 7: rungs never mix


def test_rungs_are_never_mixed() -> None:
    entries = [
        proxy(0, "a", 0.5),
        proxy(1, "b", 0.1, rung=OTHER_PROXY),  # better, but of a shorter training
        proxy(0, "a", 0.0, rung=OTHER_PROXY),
        proxy(2, "c", 0.4),
        retrained("a", 0.9),
        retrained("a", 0.1, seed=1, rung=OTHER_RETRAIN),
        retrained("c", 0.1, rung=OTHER_RETRAIN),
    ]
    for _ in range(5):
        random.Random(0).shuffle(entries)
        rows = shown(entries)
        assert ranks(rows) == [(1, "trial 2"), (2, "trial 0")]
        assert [row.loss for row in rows] == [0.4, 0.5]
        assert [row.test_accuracy for row in rows] == [None, 0.9]
        winner = best(entries, [PROXY], "loss")
        assert winner is not None
        assert (winner.key, winner.rung) == ("c", PROXY)


losses = st.lists(st.tuples(st.sampled_from([PROXY, OTHER_PROXY]), st.floats(0, 1)), max_size=12)


@settings(deadline=None, derandomize=True)
@given(losses=losses, objective=st.sampled_from(["loss", "accuracy"]))
def test_a_board_is_what_the_measurements_of_its_rung_alone_give(
    losses: list[tuple[str, float]], objective: str
) -> None:
    entries = [proxy(number, f"{number}", loss, rung) for number, (rung, loss) in enumerate(losses)]
    own = [entry for entry in entries if entry.measurement.rung == PROXY]
    rows = shown(entries, objective=objective)
    assert rows == shown(own, objective=objective)
    assert [row.rank for row in rows] == list(range(1, len(own) + 1))
    values = [getattr(row, objective) for row in rows]
    assert values == sorted(values, reverse=objective == "accuracy")
    winner = best(entries, [PROXY], objective)
    assert winner == best(own, [PROXY], objective)
    assert (winner is None) == (not rows)
    if winner is not None:
        assert winner.signals[f"val_{objective}"] == values[0]


def test_the_best_is_a_measured_candidate_and_never_a_reference() -> None:
    entries = [proxy(None, "g", 0.1), stopped(0, "a", "failed", "nan"), proxy(1, "c", 0.3), proxy(2, "b", 0.3)]
    winner = best(entries, [PROXY], "loss")
    assert winner is not None
    assert winner.key == "b"  # of equals the same one every time
    assert best(entries[:2], [PROXY], "loss") is None


# ------------------------------------------------------------------------------------------- intervals and ties


def with_noise(
    entries: list[Entry],
    validation: int | None = None,
    test: int | None = None,
    objective: str = "loss",
    predictions: Predictions | None = None,
    references: Mapping[str, list[str]] | None = None,
) -> list[Record]:
    images = ImageCounts(validation, test)
    return board(entries, [PROXY, OTHER_PROXY], RETRAIN, objective, references or {}, (), predictions, images)


def tied(rows: list[Record]) -> set[str]:
    return {row.name for row in rows if row.tied}


def test_a_test_accuracy_has_the_interval_of_its_images_alone() -> None:
    entries = [proxy(0, "a", 0.2), proxy(1, "b", 0.3), retrained("a", 0.93), retrained("a", 0.95, seed=1)]
    first, second = with_noise(entries, test=1000)
    assert (first.test_low, first.test_high) == accuracy_interval(0.94, 1000), "seeds add no images"
    assert (first.test_images, second.test_images, second.test_low) == (1000, None, None)
    assert drawing.test_accuracy(first) == "94.00 % ± 1.41 (2) [92.35, 95.31]"
    (first, _) = with_noise(entries)
    assert (first.test_low, first.test_high, first.test_images) == (None, None, None)
    assert drawing.test_accuracy(first) == "94.00 % ± 1.41 (2)"


def test_an_accuracy_of_pixels_has_no_interval() -> None:
    dense = Measurement("{}", "a", RETRAIN, 0, "done", {"test_accuracy": 0.9, "test_miou": 0.5})
    (row,) = with_noise([proxy(0, "a", 0.2, val_miou=0.5), Entry(dense, None)], 100, 100)
    assert (row.test_accuracy, row.test_low, row.test_images) == (0.9, None, None)


def test_candidates_within_the_noise_of_the_validation_images_are_tied() -> None:
    entries = [proxy(0, "a", 0.10), proxy(1, "b", 0.11), proxy(2, "c", 0.5), proxy(None, "g", 0.10)]
    references = {"googlenet-small": ["g"]}
    for objective in ("loss", "accuracy"):
        assert tied(with_noise(entries, 1000, objective=objective, references=references)) == {"trial 1"}
        assert tied(with_noise(entries, 1_000_000, objective=objective)) == set()
        assert tied(with_noise(entries, objective=objective)) == set(), "no noise is known"
    assert tied(with_noise(entries, 1000, objective="flops")) == set()
    assert with_noise([], 1000) == []
    better = [proxy(0, "a", 0.1, val_accuracy=0.5), proxy(1, "b", 0.2, val_accuracy=0.9)]
    assert tied(with_noise(better, 1000)) == {"trial 1"}, "it is not worse in accuracy"


def test_repeated_seeds_say_what_noise_is() -> None:
    entries = [proxy(0, "a", 0.10), proxy(1, "b", 0.11), proxy(2, "c", 0.20)]
    for seed in range(1, 7):
        again = Measurement("{}", "a", PROXY, seed, "done", {"val_loss": 0.1, "val_accuracy": 0.9 - 0.01 * (seed % 2)})
        entries.append(Entry(again, 0))
    assert tied(with_noise(entries)) == {"trial 1"}
    assert 0.01 < tie_margin(3, 0.0053) < 0.02
    assert tied(with_noise(entries, 10)) == {"trial 1"}, "repeats come before the number of images"


def test_scores_of_other_rungs_are_not_tied_with_the_best() -> None:
    entries = [proxy(0, "a", 0.10, rung=OTHER_PROXY), proxy(0, "a", 0.2), proxy(1, "b", 0.10), retrained("a", 0.9)]
    rows = with_noise(entries, 100)
    assert ranks(rows) == [(1, "trial 0"), (2, "trial 1")]
    assert tied(rows) == set()


def test_predicted_scores_are_tied_by_their_intervals() -> None:
    entries = [proxy(0, "a", 0.1), proxy(1, "b", 0.1), proxy(2, "c", 0.1)]
    predictions = {"a": (0.9, 0.89, 0.91), "b": (0.89, 0.88, 0.90), "c": (0.8, 0.79, 0.81)}
    assert tied(with_noise(entries, 10, predictions=predictions)) == {"trial 1"}
    exact = {key: (mean, mean, mean) for key, (mean, _, _) in predictions.items()}
    assert tied(with_noise(entries, 10, predictions=exact)) == set()


def test_the_numbers_of_images_are_read_from_the_records(tmp_path: Any) -> None:
    records = Store(open_database(f"sqlite:///{tmp_path}/records.db"), "demo")
    assert ImageCounts.of(records) == ImageCounts(None, None)
    records.set_fact("test_images", 359)
    records.set_fact("validation_images", 288)
    assert ImageCounts.of(records) == ImageCounts(288, 359)


def test_the_table_shows_intervals_and_ties_and_fits_into_100_columns() -> None:
    entries = [proxy(250 + n, f"{n}", 0.1 + n / 100, params=1e5 + n, flops=3.33e6 - n) for n in range(5)]
    entries += [proxy(None, key, 0.3, params=1.23e5, flops=3.33e6) for key in "rstg"]
    entries += [retrained(key, 0.9 + seed / 100, seed) for key in "0rst" for seed in range(3)]
    references = {"random": ["r", "s", "t"], "googlenet-small": ["g"]}
    rows = with_noise(entries, 1000, 359, references=references)
    text = printed(rows, 100)
    assert all(len(line.rstrip()) <= 100 for line in text.splitlines())
    assert "91.00 % ± 1.00 (3)" in text
    assert "[87.59, 93.54]" in text
    assert "trial 251 * ~" in text
    assert "random (mean of 3)  " in text, "no line is broken"
    assert text.count("~ cannot be told from rank 1: the scores differ by no more than noise") == 1
    assert "cannot be told" not in printed(with_noise(entries), 100)
    assert "status" not in text
    assert "status" in printed(with_noise([*entries, stopped(9, "x", "failed", "nan")]), 100)
    markdown = drawing.as_markdown(rows)
    assert "91.00 % ± 1.00 (3) [87.59, 93.54]" in markdown
    assert len(markdown.splitlines()) == 2 + len(rows)


def printed(rows: list[Record], width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(drawing.board(rows, "demo", width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ------------------------------------------------------------------------------------------------- Pareto

points = st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(points=points)
def test_the_front_is_what_brute_force_finds(points: list[tuple[int, int, int]]) -> None:
    def beaten(point: tuple[int, ...]) -> bool:
        for other in points:
            no_worse = sum(other[axis] <= point[axis] for axis in range(3)) == 3
            better = sum(other[axis] < point[axis] for axis in range(3)) > 0
            if no_worse and better:
                return True
        return False

    assert front(points) == [not beaten(point) for point in points]


def test_the_front_of_the_board_is_of_objective_and_flops_among_candidates() -> None:
    entries = [
        proxy(0, "a", 0.5, flops=1),
        proxy(1, "b", 0.3, flops=5),
        proxy(2, "c", 0.4, flops=6),  # beaten by b
        proxy(3, "d", 0.5, flops=1),  # equal to a: neither beats the other
        proxy(None, "g", 0.1, flops=1),  # would beat all of them
    ]
    rows = shown(entries, {"reference": ["g"]})
    assert {row.name for row in rows if row.pareto} == {"trial 0", "trial 1", "trial 3"}
    rows = shown([proxy(0, "a", 0.5, flops=1), proxy(1, "b", 0.3, flops=5)], objective="accuracy")
    assert all(row.pareto for row in rows)


def test_the_front_compares_scores_of_the_lowest_rung_alone() -> None:
    """After nine times the epochs a loss is lower; that must not push the others off."""
    entries = [
        proxy(0, "a", 0.5, flops=5),
        proxy(1, "b", 0.4, flops=6),
        proxy(0, "a", 0.1, rung="x9-1", flops=5),
    ]
    rows = board(entries, [PROXY, "x9-1"], RETRAIN, "loss", {})
    assert [row.name for row in rows] == ["trial 0", "trial 1"]
    assert all(row.pareto for row in rows)


# ---------------------------------------------------------------------------------------------------- sort

EXAMPLES: dict[str, list[Any]] = {
    "rank": [1, 2, 3],
    "name": ["googlenet-small", "trial 0", "trial 1"],
    "kind": ["candidate", "reference"],
    "key": ["", "a", "b"],
    "status": ["done", "failed", "infeasible"],
    "rung": ["proxy", "retrain"],
    "loss": [0.1, 0.5, 2.0],
    "accuracy": [0.9, 0.5, 0.1],
    "miou": [0.9, 0.5, 0.1],
    "params": [1, 10, 100],
    "flops": [0, 10, 100],
    "latency": [0.5, 1.5],
    "test_accuracy": [0.9, 0.5, 0.1],
    "test_std": [0.0, 0.5],
    "test_low": [0.9, 0.5],
    "test_high": [0.9, 0.5],
    "test_images": [10_000, 359],
    "test_miou": [0.9, 0.5, 0.1],
    "test_seeds": [3, 1, 0],
    "predicted": [0.9, 0.5],
    "predicted_low": [0.9, 0.5],
    "predicted_high": [0.9, 0.5],
    "seconds": [1.0, 2.0],
    "towers": [(), (1,), (1, 2), (2,)],
    "pareto": [True, False],
    "tied": [True, False],
    "cause": ["loss is nan", "params"],
}
"""Values of each column, best first."""

FLAGS = ("towers", "pareto", "tied", "test_seeds")
"""Columns in which every row has a value."""


@pytest.mark.parametrize("column", columns())
def test_rows_sort_by_each_column_best_first_and_those_without_a_value_last(column: str) -> None:
    expected = [*EXAMPLES[column], None] if column not in FLAGS else EXAMPLES[column]
    plain: dict[str, Any] = {"rank": 1, "name": "n", "kind": "candidate", "key": "k", "status": "done", "rung": "proxy"}

    def row(value: Any) -> Record:
        if column in [metric.name for metric in on_board()]:
            return Record(**plain, values={} if value is None else {column: value})
        return Record(**{**plain, column: value})

    rows = [row(value) for value in expected]
    for seed in range(5):
        random.Random(seed).shuffle(shuffled := list(rows))
        assert [getattr(row, column) for row in sort(shuffled, column)] == expected


def test_an_unknown_column_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InputError, match="no column 'acuracy'") as caught:
        sort([], "acuracy")
    assert "\n" not in str(caught.value)
    for column in columns():
        assert column in str(caught.value)
