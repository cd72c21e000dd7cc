"""Progress of a long job: a bar with rate and time left on a terminal, else a line about every 30 seconds."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_WINDOW = 60.0  # seconds over which the rate is averaged: follows a change of speed, smooths a slow step


@contextmanager
def progress(
    total: int,
    start: int = 0,
    unit: str = "steps",
    *,
    per_step: int = 1,
    title: str = "",
    interval: float = 30.0,
    console: Console | None = None,
) -> Iterator[Meter]:
    """Show how far a job is, how fast, and how long it still takes.

    Args:
        total: steps of the whole job.
        start: steps done before (a resumed job); they do not count for the rate.
        unit: what the rate counts, for example "pairs".
        per_step: units in one step (the batch size).
        title: stands before the bar.
        interval: seconds between two lines where the output is no terminal.
        console: where to; the standard error output by default, so that results can be piped.
    """
    console = console or Console(stderr=True)
    meter = Meter(total, start, unit, per_step)
    if console.is_terminal:
        columns = (
            TextColumn(title or "{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=console, refresh_per_second=4) as bar:
            task = bar.add_task("", total=total, completed=start, text="")
            meter.show = lambda: _show_bar(bar, task, meter)
            yield meter
    else:
        printer = _LinePrinter(console, title, interval)
        meter.show = lambda: printer.show(meter)
        yield meter
        printer.finish(meter)


class Stages:
    """Tells how far a job of several stages is: a line for every tenth, on the standard error output."""

    def __init__(self) -> None:
        self._shown = ("", -1)

    def __call__(self, stage: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if (stage, tenth) != self._shown:
            self._shown = (stage, tenth)
            print(f"{stage}: {done:,} of {total:,}", file=sys.stderr)


class Meter:
    """Counts steps; ``rate`` and ``seconds_left`` come from the last minute."""

    def __init__(
        self, total: int, start: int, unit: str, per_step: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.step, self.unit, self.per_step = total, start, unit, per_step
        self.note = ""
        self.show: Callable[[], None] = lambda: None
        self._clock = clock
        self._marks = deque([(clock(), start)])  # (seconds, step), oldest first

    def update(self, step: int, note: str = "") -> None:
        """Say that ``step`` steps are done; ``note`` (a loss) stands behind the rate."""
        self.step, self.note = step, note or self.note
        self._marks.append((self._clock(), step))
        while len(self._marks) > 2 and self._marks[-1][0] - self._marks[1][0] >= _WINDOW:
            self._marks.popleft()
        self.show()

    @property
    def rate(self) -> float:
        """Units per second, 0 before the first step is done."""
        (then, first), (now, last) = self._marks[0], self._marks[-1]
        return (last - first) * self.per_step / (now - then) if now > then else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until ``total``, None while the rate is unknown."""
        return (self.total - self.step) * self.per_step / self.rate if self.rate > 0 else None

    def text(self) -> str:
        """Rate, time left and note, for example ``31.4 pairs/s, 0:12:05 left, l1 0.138``."""
        parts = [f"{self.rate:.3g} {self.unit}/s" if self.rate < 100 else f"{self.rate:,.0f} {self.unit}/s"]
        if self.seconds_left is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
        return ", ".join([*parts, self.note] if self.note else parts)


def _show_bar(bar: Progress, task: TaskID, meter: Meter) -> None:
    bar.update(task, completed=meter.step, text=meter.text())


class _LinePrinter:
    def __init__(self, console: Console, title: str, interval: float) -> None:
        self._console, self._title, self._interval = console, title, interval
        self._last, self._shown = time.monotonic(), -1

    def show(self, meter: Meter) -> None:
        if time.monotonic() - self._last >= self._interval:
            self.finish(meter)

    def finish(self, meter: Meter) -> None:
        if meter.step != self._shown:
            title = f"{self._title} " if self._title else ""
            self._console.print(
                f"{title}{meter.step}/{meter.total}, {meter.text()}", highlight=False, soft_wrap=True
            )
            self._last, self._shown = time.monotonic(), meter.step
