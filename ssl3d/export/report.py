"""What an export did: tensor by tensor, which files, from which run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl3d.models.init import TransferReport


@dataclass
class ExportReport(TransferReport):
    """A TransferReport with the files written (`files`), what the user should know (`notes`) and the `provenance`."""

    target: str = ""
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """A few plain lines for the terminal."""
        lines = [f"{self.target}: {self.summary()}"]
        lines += [f"  {t.outcome} {t.name}: {t.reason}" for t in self.tensors if t.outcome == "adapted"]
        lines += [f"  {n}" for n in self.notes]
        lines += [f"wrote {path}" for path in self.files]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for report.json; files by name, so that the folder can be moved and shared."""
        return {
            "target": self.target,
            "files": [path.name for path in self.files],
            "notes": self.notes,
            "provenance": self.provenance,
            **super().to_dict(),
        }
