"""Files written whole or not at all: whoever reads one never sees half of it, whatever was killed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a hidden file beside `path`, flush it to the disk, move it there; returns `path`.

    Folders are made; an existing file keeps its permissions. Raises whatever `write` raises, leaving `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")  # several may write one file
    try:
        write(part)
        if path.exists():
            part.chmod(path.stat().st_mode & 0o777)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """A file of these bytes, as `write_atomically`."""
    return write_atomically(path, lambda part: part.write_bytes(content))


def write_text(path: Path, text: str) -> Path:
    """A file of this text in UTF-8, as `write_atomically`."""
    return write_bytes(path, text.encode())


def write_json(path: Path, content: Any, indent: int | None = 2) -> Path:
    """A JSON file, keys in their order, as `write_atomically`."""
    return write_text(path, json.dumps(content, indent=indent) + "\n")
