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
from ssl3d.data.objects import Objects

LEDGER_FILE = "conversion.json"
_SAMPLE = 1 << 16  # bytes read from each end of a file


def content_digest(paths: Sequence[Path]) -> str:
    """Digest of sizes, and of both ends of the first and last file: cheap, and another scan differs.

    A file that cannot be read has none of its own; whoever converts it will say why.
    """
    digest = hashlib.blake2b(digest_size=12)
    for number, path in enumerate(paths):
        try:
            size = path.stat().st_size if path.is_file() else -1
            ends = _ends(path, size) if size > 0 and number in (0, len(paths) - 1) else b""
        except OSError:
            size, ends = -1, b""
        digest.update(f"{size};".encode())
        digest.update(ends)
    return digest.hexdigest()


def _ends(path: Path, size: int) -> bytes:
    """The first and the last bytes of a file."""
    with path.open("rb") as file:
        head = file.read(_SAMPLE)
        file.seek(max(0, size - _SAMPLE))
        return head + file.read(_SAMPLE)


@dataclass
class Entry:
    """What a source became: `content` digest of its image, `made` digest of its label, targets and settings.

    `name`: digest of the name it came with, by which (and its content) it is found again whatever its id became.
    """

    content: str
    made: str
    duplicate_of: str = ""
    name: str = ""


@dataclass
class Ledger:
    """The settings of a store and the sources that went into it, by id. `codes`: numbers of classes, by kind."""

    requested_spacing: Any = None
    spacing: Any = None
    entries: dict[str, Entry] = field(default_factory=dict)
    codes: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def load(cls, objects: Objects) -> Ledger:
        """The ledger of a store, empty where there is none yet. Raises ValueError when it is damaged."""
        try:
            data = json.loads(objects.get(LEDGER_FILE))
            entries = {name: Entry(**entry) for name, entry in data["entries"].items()}
            return cls(data["requested_spacing"], data["spacing"], entries, data.get("codes", {}))
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{objects.root}/{LEDGER_FILE} is damaged: bring it back from a copy, or convert to another store"
            ) from error

    def save(self, objects: Objects) -> None:
        """Write it, atomically."""
        objects.put(LEDGER_FILE, json.dumps(asdict(self), indent=1, sort_keys=True).encode())


def made_with(source: Source, modality: str) -> str:
    """Digest of all that decides how a source is converted, its image and the store's spacing aside."""
    label = content_digest([source.label]) if source.label is not None else ""
    classes = sorted(source.classes.items()) if source.label is not None else []
    if source.masks:  # classes that other sources bring later do not change this one
        label = content_digest([path for _, path in sorted(source.masks.items())])
        classes = sorted((value, name) for value, name in source.classes.items() if name in source.masks)
    stated = [modality, label, classes, source.ignore, sorted(source.targets.items()), source.subject]
    return hashlib.blake2b(json.dumps(stated).encode(), digest_size=12).hexdigest()
