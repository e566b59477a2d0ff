"""Output for people: progress, the leaderboard, an architecture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich import progress as bars
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas import leaderboard, metrics
from nas.leaderboard import Record
from nas.metrics import Metric, Unit

if TYPE_CHECKING:
    from nas.experiment import Shown
    from nas.progress import Event, Progress
    from nas.store import Measurement

NARROW = 110
"""Terminals of fewer columns get the board without the last ones."""

TIED = "~ cannot be told from rank 1: the scores differ by no more than noise"
"""What the mark at a name says."""


class Screen:
    """Listens to the work: a bar and a line a candidate on a terminal, one line a stage elsewhere."""

    def __init__(self, console: Console, verbose: bool = False) -> None:
        self._console = console
        self._lines = verbose or console.is_terminal
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=20),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[status]}"),
            bars.TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, bars.TaskID] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        if event.text is not None:
            self._console.print(event.text, highlight=False, markup=False, soft_wrap=True)
        if event.progress.stage:
            self._show(event.progress)
        if event.measurement is not None and self._lines:
            line = candidate_line(event.name or "", event.measurement)
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show(self, now: Progress) -> None:
        if now.stage not in self._tasks:
            for task in self._tasks.values():
                self._bar.update(task, visible=False)
            self._tasks[now.stage] = self._bar.add_task(now.stage, status="")
        task = self._tasks[now.stage]
        self._bar.update(task, completed=now.done + now.failed, total=now.total, status=status_line(now))


def status_line(now: Progress) -> str:
    """``2 running, 1 failed, best 0.0712, 3 min left``"""
    parts = [f"{now.running} running"]
    if now.failed:
        parts.append(f"{now.failed} failed")
    if now.infeasible:
        parts.append(f"{now.infeasible} over the limits")
    if now.best is not None:
        parts.append(f"best {now.best:.4f}")
    if now.seconds_left is not None:
        parts.append(f"{duration(now.seconds_left)} left")
    return ", ".join(parts)


def candidate_line(name: str, measurement: Measurement) -> str:
    """One finished measurement in one line."""
    m = measurement
    if m.status != "done":
        return f"{name:<18} {m.status}: {m.cause}"
    split = "test" if "test_accuracy" in m.signals else "val"
    scores: list[str] = []
    sizes: list[str] = []
    for metric in metrics.on_board():
        signal = metric.signal.replace("val_", f"{split}_", 1)
        if metric.known == "after training" and signal in m.signals:
            scores.append(f"{metric.title} {in_words(metric, m.signals[signal])}")
        elif metric.board == "always" and signal in m.signals:
            unit = metric.name if metric.unit == "count" else metric.unit
            sizes.append(f"{in_words(metric, m.signals[signal])} {unit}")
    if not scores:
        return f"{name:<18} untrained, {m.cost['seconds']:.2f} s"
    towers = f"tower on {', '.join(map(str, m.towers))}" if m.towers else "no tower"
    seconds = f"{m.cost['seconds']:.1f} s"
    shown = f"{'  '.join(scores)}{' (test)' if split == 'test' else ''}"
    return f"{name:<18} {'  '.join([shown, *sizes, seconds, towers])}"


def board(rows: Sequence[Record], title: str, width: int) -> Table:
    """The leaderboard as a table for a terminal of so many columns."""
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    columns = columns_of(rows)
    shown = columns if width >= NARROW else columns[: columns.index("seconds")]
    for column in shown:
        left = column in ("name", "rung", "status", "towers", "key")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for row in rows:
        style = "dim" if row.kind == "reference" else ""
        words = dict(zip(shown, cells(row, shown), strict=True))
        words["test"] = _on_two_lines(words["test"])
        table.add_row(*map(Text, words.values()), style=style)
    if any(row.tied for row in rows):
        table.caption, table.caption_justify = TIED, "left"
    return table


def _on_two_lines(accuracy: str) -> str:
    """The interval below: beside it, a table would be too wide for a terminal."""
    return accuracy.replace(" [", "\n[")


def columns_of(rows: Sequence[Record]) -> tuple[str, ...]:
    """The columns that these rows have something in."""
    measured = {name for row in rows for name in row.values}
    scores: list[str] = []
    sizes: list[str] = []
    for metric in metrics.on_board():
        if metric.board == "always" or (metric.board == "where measured" and metric.name in measured):
            (scores if metric.known == "after training" else sizes).append(metric.name)
    if any(row.predicted is not None for row in rows):
        scores.insert(scores.index("accuracy") + 1, "predicted")
    tests = ["test", "test miou"] if "miou" in scores else ["test"]
    status = [] if all(row.status == "done" for row in rows) else ["status"]
    return ("rank", "name", "rung", *scores, *tests, *sizes, *status, "seconds", "towers", "key")


def cells(row: Record, columns: Sequence[str]) -> list[str]:
    """A row in words. The status says why a candidate has no score."""
    words = {metric.name: in_words(metric, row.values.get(metric.name)) for metric in metrics.on_board()}
    words |= {
        "rank": str(row.rank or ""),
        "name": f"{row.name}{' *' if row.pareto else ''}{' ~' if row.tied else ''}",
        "rung": row.rung,
        "predicted": predicted(row),
        "test": test_accuracy(row),
        "test miou": _percent(row.test_miou),
        "status": "" if row.status == "done" else f"{row.status}: {row.cause}",
        "seconds": f"{row.seconds:.1f}" if row.seconds is not None else "",
        "towers": ", ".join(map(str, row.towers)),
        "key": row.key,
    }
    return [words[column] for column in columns]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def test_accuracy(row: Record) -> str:
    """Mean, standard deviation and number of trainings, 95 % interval: ``98.70 % ± 0.16 (3) [98.45, 98.91]``."""
    if row.test_accuracy is None:
        return ""
    interval = None if row.test_low is None or row.test_high is None else (row.test_low, row.test_high)
    return _over_seeds(row.test_accuracy, row.test_std, row.test_seeds, interval)


def _over_seeds(mean: float, deviation: float | None, seeds: int, interval: Sequence[float] | None) -> str:
    apart = "" if deviation is None else f" ± {100 * deviation:.2f}"
    ends = "" if interval is None else f" [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]"
    return f"{_percent(mean)}{apart} ({seeds}){ends}"


def predicted(row: Record) -> str:
    """What full training would reach, and half of its 95 % interval: ``91.2 % ± 0.8``."""
    if row.predicted is None or row.predicted_low is None:
        return ""
    return f"{100 * row.predicted:.1f} % ± {100 * (row.predicted - row.predicted_low):.1f}"


def as_json(rows: Iterable[Record]) -> str:
    """A list of objects, one a row, all fields."""
    return json.dumps([row.as_dict() for row in rows], indent=1)


def as_csv(rows: Iterable[Record]) -> str:
    """A header and one line a row, all fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, leaderboard.columns())
    writer.writeheader()
    for row in rows:
        writer.writerow(row.as_dict() | {"towers": " ".join(map(str, row.towers))})
    return text.getvalue().rstrip("\n")


def as_markdown(rows: Sequence[Record]) -> str:
    """A Markdown table with the columns of the terminal's."""
    columns = columns_of(rows)
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in cells(row, columns))} |" for row in rows]
    return "\n".join(lines)


def network(shown: Shown) -> Table:
    """An architecture, a row a cell."""
    a = shown.architecture
    title = f"{shown.name}  ({a.key}, input {'x'.join(map(str, shown.input_shape))})"
    table = Table(title=title, title_justify="left", header_style="bold", show_footer=True, box=SIMPLE_HEAD)
    table.caption = f"inference, one image: peak of activations {shown.memory:,} bytes"
    table.caption_justify = "left"
    table.add_column("cell", footer="whole network")
    table.add_column("branches")
    table.add_column("params", justify="right", footer=f"{shown.params:,}")
    table.add_column("FLOPs", justify="right", footer=f"{shown.flops:,}")
    for name, description, params, flops in shown.cells:
        table.add_row(name, description, f"{params:,}", f"{flops:,}")
    return table


def comparison(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A pruned network and its rivals, a row each, as the card of an export holds them."""
    forms = list(rows[0]["latency ms"])
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    table.add_column("network")
    for column in ("test accuracy", "multiply-adds", "", "params", *forms, "key"):
        table.add_column(column, justify="left" if column == "key" else "right")
    for row in rows:
        scores = row["accuracy"]
        seeds, interval = len(scores["by seed"]), scores.get("95 % interval")
        accuracy = _over_seeds(scores["mean"], scores["standard deviation"], seeds, interval)
        cost = [short(row["flops"] / 2), f"{row['share of flops']:.0%}", short(row["params"])]
        times = [f"{milliseconds:.3f} ms" for milliseconds in row["latency ms"].values()]
        table.add_row(row["name"], Text(_on_two_lines(accuracy)), *cost, *times, row["key"])
    return table


def short(number: float | None) -> str:
    """``1.2M``"""
    if number is None:
        return ""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:.3g}"


FORMATS: Mapping[Unit | None, Callable[[float], str]] = {
    "share": _percent,
    "nats": "{:.4f}".format,
    "ms": "{:.3f}".format,
    "s": "{:.1f}".format,
}
"""How a value is written, by its unit; values of other units are shortened."""


def in_words(metric: Metric, value: float | None) -> str:
    """A metric's value as the board shows it; empty where there is none."""
    return "" if value is None else FORMATS.get(metric.unit, short)(value)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``1.5 h``"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
