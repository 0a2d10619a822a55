"""What an export did: tensor by tensor, which files, from which run."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl3d import __version__
from ssl3d.export.folder import PAGE, REPORT, ExportFolder
from ssl3d.models.transfer import HTML_COLUMNS, TransferReport

if TYPE_CHECKING:
    from ssl3d.export.source import Source
    from ssl3d.weights import ImportReport

_LISTED = 8  # adapted tensors that the terminal names


@dataclass
class ExportReport(TransferReport):
    """A TransferReport with what the user should know (`notes`) and the `provenance`.

    `target`: the program in words; `to`: as a key of TARGETS. `written`: names of files below the folder `out`;
    `changed`: files elsewhere, such as the user's plans. `imported`: of the transfer before it, where the weights come
    from another program.
    """

    target: str = ""
    to: str = ""
    out: Path = Path()
    written: list[str] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    imported: ImportReport | None = None

    @classmethod
    def of(cls, source: Source, target: str, **provenance: Any) -> ExportReport:
        """The report of an export that begins, with the source's provenance and `provenance` of its own."""
        known = {"ssl3d": __version__, **provenance, **source.provenance}
        return cls(target=target, provenance=known, imported=source.imported)

    @property
    def files(self) -> list[Path]:
        """The files written."""
        return [self.out / name for name in self.written]

    def text(self) -> str:
        """A few plain lines for the terminal."""
        lines = [] if self.imported is None else [self.imported.text()]
        lines += [f"{self.target}: {self.summary()}{self.when()}", f"  {self.shares()}"]
        lines += [f"  {t.outcome} {t.name}: {t.reason}" for t in self.tensors if t.outcome == "adapted"][:_LISTED]
        more = len(self.names("adapted")) - _LISTED
        lines += [f"  and {more} more (report.json)"] if more > 0 else []
        lines += [f"  {n}" for n in self.notes]
        lines += [f"wrote {path}" for path in (*self.files, *self.changed)]
        return "\n".join(lines)

    def when(self) -> str:
        """After which step the weights were taken, where that is known; to put behind the summary."""
        step = self.provenance.get("step")
        return "" if step is None else f", of step {step}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for report.json; files by their names in the folder, which can be moved and shared."""
        return {
            "target": self.target,
            "to": self.to,
            "files": self.written,
            "notes": self.notes,
            "provenance": self.provenance,
            **super().to_dict(),
            **({} if self.imported is None else {"imported": self.imported.to_dict()}),
        }

    def write(self, folder: ExportFolder) -> None:
        """report.json and report.html, last of all, as they name every file of the folder."""
        self.to, self.out, self.written = folder.to, folder.out, [*folder.names, REPORT, PAGE]
        folder.write_json(REPORT, self.to_dict())
        folder.write_text(PAGE, self._page())

    def _page(self) -> str:
        """The transfer as a row, the notes, and a table of all tensors."""
        head = "".join(f"<th>{name}</th>" for name in HTML_COLUMNS)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        tensors = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"
            for cells in ((t.name, t.part, list(t.shape), t.outcome, t.reason) for t in self.tensors)
        )
        title = html.escape(self.target)
        before = "" if self.imported is None else self.imported.html_row(f"{self.imported.format} (imported)")
        return (
            f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>"
            "<style>body{font:14px sans-serif;margin:2em}td,th{text-align:left;padding:2px 12px 2px 0}</style>"
            f"<h1>{title}</h1><table><tr>{head}</tr>{before}{self.html_row(self.target)}</table><ul>{notes}</ul>"
            "<table><tr><th>tensor</th><th>part</th><th>shape</th><th>outcome</th><th>how, why</th></tr>"
            f"{tensors}</table></html>\n"
        )
