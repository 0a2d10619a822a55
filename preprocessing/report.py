"""What a conversion says at its end: counts, reasons, the exit code, and refused.csv."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ssl3d.data import format as fmt
from ssl3d.data.objects import Objects

_COLUMNS = ("source", "reason", "detail")
Row = tuple[str, str, str]  # of refused.csv


@dataclass
class ConvertReport:
    """`converted`: volumes of the given sources that are in the store (or, dry, would be); `refused`: (source, reason).

    `named_refused`: a file that was named (not met in a folder) is among the refused.
    """

    converted: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    named_refused: bool = False

    @property
    def exit_code(self) -> int:
        """0; 1 when nothing was converted or a named file was refused."""
        return 1 if self.converted == 0 or self.named_refused else 0

    @property
    def summary(self) -> str:
        """The last line of a run."""
        return f"converted {self.converted}, refused {len(self.refused)}"

    @property
    def reasons(self) -> str:
        """The line above it: how many were refused for what, most frequent first; empty when nothing was."""
        counts = Counter(reason for _, reason in self.refused)
        return ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def read_refused(objects: Objects) -> list[Row]:
    """The rows of a store's refused.csv; empty when there is none."""
    try:
        text = objects.get(fmt.REFUSED_FILE).decode()
    except FileNotFoundError:
        return []
    rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == len(_COLUMNS)]


def write_refused(objects: Objects, rows: Iterable[Row], seen: frozenset[str]) -> None:
    """Replace the rows of the sources in `seen`; those of earlier runs stay unless their source was given again."""
    earlier = [row for row in read_refused(objects) if row[0] not in seen]
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)
    writer.writerows([*earlier, *rows])
    objects.put(fmt.REFUSED_FILE, file.getvalue().encode())
