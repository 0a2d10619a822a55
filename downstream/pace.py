"""How long the unfinished cells of an evaluation may take: measures differ a hundredfold in what a cell costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from downstream.context import TEST, Cell, Context
from downstream.scoring import done
from downstream.times import read_seconds
from ssl3d.terminal import duration


@dataclass
class Pace:
    """Cells to do, and the seconds of those that were timed, both a measure; so many `workers` share what is left."""

    context: Context
    workers: int
    to_do: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def of(cls, context: Context, cells: Sequence[Cell], workers: int) -> Pace:
        """Of the cells of a plan; one of the test is finished with any choice, for its search may be still to come."""
        pace = cls(context, workers)
        for cell in {context.key(cell): cell for cell in cells}.values():
            choices = context.measure(cell).grid() if cell.split == TEST else [cell.choice]
            tried = (replace(cell, choice=choice) for choice in choices)
            finished = next((one for one in tried if done(context, one)), None)
            if finished is None:
                pace.to_do[cell.measure] += 1
            else:
                pace._time(finished)
        return pace

    def finish(self, cells: Sequence[Cell]) -> None:
        """Cells that are finished now."""
        for cell in cells:
            self.to_do[cell.measure] -= 1
            self._time(cell)

    def left(self) -> str:
        """ "about 3 h left"; "more than" where cells of a measure of which none was timed are left; or nothing."""
        known = [name for name, count in self.to_do.items() if count > 0 and self.cells[name]]
        seconds = sum(self.to_do[name] * self.seconds[name] / self.cells[name] for name in known)
        if not known:
            return ""
        unknown = any(count > 0 and not self.cells[name] for name, count in self.to_do.items())
        return f"{'more than' if unknown else 'about'} {duration(seconds / self.workers)} left"

    def _time(self, cell: Cell) -> None:
        taken = read_seconds(self.context.out, self.context.key(cell))
        if taken is not None:
            self.cells[cell.measure] += 1
            self.seconds[cell.measure] += taken
