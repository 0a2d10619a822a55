"""What a report is made of: sections of paragraphs, tables and charts, for a page, for a paper, and as data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from matplotlib.figure import Figure

from downstream import drawing


@dataclass(frozen=True)
class Table:
    """Plain text in rows. `name`: of its files in OUT/paper, empty for tables that no paper needs.

    Columns in `numbers` are right-aligned, those in `tight` are not wrapped, cells whose text is in `marks` are
    coloured by it. `title` stands above; a `folded` table is opened by the reader.
    """

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    title: str = ""
    numbers: Collection[int] = ()
    tight: Collection[int] = ()
    marks: Collection[str] = ()
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure in vectors: `alt` says in words what it shows, `caption` how to read it; `name` as of a Table."""

    name: str
    figure: Figure
    alt: str
    caption: str

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG file, drawn once for page and paper."""
        return drawing.svg(self.figure, self.name)


@dataclass(frozen=True)
class Html:
    """A finished piece of a page, escaped by whom it was made."""

    content: str


Block = Table | Chart | Html


@dataclass(frozen=True)
class Section:
    """A part of a report. `data`: its numbers and sentences as plain types, merged into report.json.

    Without a `title` it has no heading and stands in no list of contents.
    """

    title: str
    blocks: Sequence[Block]
    data: dict[str, Any] = field(default_factory=dict)
