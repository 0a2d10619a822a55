"""Words and progress on the terminal: rich where a person looks, plain unwrapped lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS = 60.0  # off a terminal, at most one progress line in this time


def printable(text: str) -> str:
    """`text` that any terminal and file takes: names of files may hold bytes that are no text, and line breaks."""
    decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in decoded)


def say(text: str, error: bool = False) -> None:
    """One line for the user, never wrapped or styled."""
    stream = sys.stderr if error else sys.stdout
    stream.write(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") + "\n")
    stream.flush()


def duration(seconds: float) -> str:
    """Seconds in the one or two largest of days, hours, minutes and seconds: '3 h 20 min'."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    if hours < 24:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


class Meter(Protocol):
    """What `progress` hands out."""

    def update(self, done: int, note: str = "", left: str | None = None) -> None:
        """`done` of the total; `note` is shown at the end of the line.

        `left`: "about 3 h left", for who knows better than the mean pace (empty: nobody knows yet).
        """


class _Left(TimeRemainingColumn):
    """What the caller says is left, else by the mean pace."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        return super().render(task) if left is None else Text(left, style="progress.remaining")


class _Bar:
    def __init__(self, bar: Progress, task: int) -> None:
        self.bar, self.task = bar, task

    def update(self, done: int, note: str = "", left: str | None = None) -> None:
        self.bar.update(self.task, completed=done, note=note, left=left)  # type: ignore[arg-type]


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.last = what, total, time.monotonic()
        self.first: tuple[int, float] | None = None  # done at the first update, and when that was

    def update(self, done: int, note: str = "", left: str | None = None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = done, now
        if now - self.last >= LINE_SECONDS or done == self.total:
            self.last = now
            left = self._left(done, now) if left is None else left
            say(f"{self.what}: {done} of {self.total} {note}".rstrip() + (f", {left}" if left else ""))

    def _left(self, done: int, now: float) -> str:
        """ "about 3 h left", at the mean pace since the first update of this process."""
        assert self.first is not None
        gone, seconds = done - self.first[0], now - self.first[1]
        if done >= self.total or gone <= 0:
            return ""
        return f"about {duration((self.total - done) * seconds / gone)} left"


class _Silent:
    def update(self, done: int, note: str = "", left: str | None = None) -> None:
        """Nothing: another rank or a worker shows the progress."""


@contextmanager
def progress(what: str, total: int, show: bool = True) -> Iterator[Meter]:
    """A progress bar on a terminal, one line a minute elsewhere, nothing when not `show`."""
    if not show:
        yield _Silent()
    elif not sys.stdout.isatty():
        yield _Lines(what, total)
    else:
        columns = (
            TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("<"),
            _Left(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns) as bar:
            yield _Bar(bar, bar.add_task(what, total=total, note="", left=None))
