"""`conversion.json` in a store: from what content and with which settings each volume was made.

It lets a run tell "converted already" from "another file of the same name", and refuse to mix settings. Contents are
told apart by digests of a part of their bytes; no path is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from preprocessing.source import Source

LEDGER_FILE = "conversion.json"
_SAMPLE = 1 << 16  # bytes read from each end of a file


def content_digest(paths: Sequence[Path]) -> str:
    """Digest of sizes, and of both ends of the first and last file: cheap, and another scan differs."""
    digest = hashlib.blake2b(digest_size=12)
    for number, path in enumerate(paths):
        size = path.stat().st_size if path.is_file() else -1
        digest.update(f"{size};".encode())
        if size > 0 and number in (0, len(paths) - 1):
            with path.open("rb") as file:
                digest.update(file.read(_SAMPLE))
                file.seek(max(0, size - _SAMPLE))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


@dataclass
class Entry:
    """What a source became: `content` digest of its image, `made` digest of its label, targets and settings."""

    content: str
    made: str
    duplicate_of: str = ""


@dataclass
class Ledger:
    """The settings of a store and the sources that went into it, by id."""

    requested_spacing: Any = None
    spacing: Any = None
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> Ledger:
        """The ledger of a store, empty where there is none yet."""
        file = root / LEDGER_FILE
        if not file.is_file():
            return cls()
        data = json.loads(file.read_text(encoding="utf-8"))
        entries = {name: Entry(**entry) for name, entry in data["entries"].items()}
        return cls(data["requested_spacing"], data["spacing"], entries)

    def save(self, root: Path) -> None:
        """Write it, atomically."""
        partial = root / (LEDGER_FILE + ".partial")
        text = json.dumps(asdict(self), indent=1, sort_keys=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(root / LEDGER_FILE)


def made_with(source: Source, modality: str) -> str:
    """Digest of all that decides how a source is converted, its image and the store's spacing aside."""
    label = content_digest([source.label]) if source.label is not None else ""
    classes = sorted(source.classes.items()) if source.label is not None else []
    stated = [modality, label, classes, source.ignore, sorted(source.targets.items()), source.subject]
    return hashlib.blake2b(json.dumps(stated).encode(), digest_size=12).hexdigest()
