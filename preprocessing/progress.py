"""What a run tells the user: a bar on a terminal, plain unwrapped lines everywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Lines and a bar on standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bar: Progress | None = None

    def line(self, text: str) -> None:
        """One line, never wrapped nor coloured, above the bar if there is one."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    @contextlib.contextmanager
    def counting(self, title: str, total: int) -> Iterator[Counter]:
        """Count `total` things: a bar on a terminal, else a line at every tenth."""
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=self._console, transient=True) as bar:
                yield Counter(self, title, total, bar)
        else:
            yield Counter(self, title, total, None)


class Counter:
    """Counts up to `total`."""

    def __init__(self, reporter: Reporter, title: str, total: int, bar: Progress | None) -> None:
        self._reporter, self._title, self._total, self._bar = reporter, title, total, bar
        self._task = None if bar is None else bar.add_task(title, total=total)
        self._done = 0

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)
            return
        before, now = (10 * (self._done - 1)) // self._total, (10 * self._done) // self._total
        if now > before or self._done == self._total:
            self._reporter.line(f"{self._title} {self._done}/{self._total}")
