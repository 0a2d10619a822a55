"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NEAR = 8  # names that a sentence lists


def write_atomically(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then move it there: a reader never sees half of it.

    An existing file keeps its permissions. Raises whatever `write` raises, leaving `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """A text file, atomically."""

    def write(part: Path) -> None:
        part.write_text(text, encoding="utf-8")

    return write_atomically(path, write)


def write_json(path: Path, content: Any) -> Path:
    """A JSON file as nnU-Net writes them (indent 4, keys in their order), atomically."""
    return write_text(path, json.dumps(content, indent=4) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError, or ValueError saying that `path` is not `what`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file '{path}'{_near(path)}; give {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"'{path}' is not readable as JSON ({error}); give {what}") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a JSON {type(content).__name__}, not an object; give {what}")
    return content


def _near(path: Path) -> str:
    """What may have been meant with nnU-Net's file `path`, which is not there: half a sentence, or nothing."""
    if path.is_absolute() and path.parts[1].startswith("Dataset"):  # "$nnUNet_preprocessed/Dataset..."
        return " (is nnUNet_preprocessed set in this terminal?)"
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return ""
    found = folder.glob("*Plans*.json" if folder == path.parent else "Dataset*")
    names = sorted(one.name for one in found if not any(s.startswith(".bak") for s in one.suffixes))
    more = ", ..." if len(names) > _NEAR else ""
    return f"; '{folder}' holds {', '.join(names[:_NEAR])}{more}" if names else ""


def keep_backup(path: Path) -> Path:
    """Copy `path` beside itself as <stem>.bak<suffix>, .bak2, .bak3, ...: the first name that is free."""
    number = 1
    while True:
        backup = path.with_name(f"{path.stem}.bak{number if number > 1 else ''}{path.suffix}")
        try:
            with backup.open("xb") as file:  # 'x': an older backup is never overwritten
                file.write(path.read_bytes())
            return backup
        except FileExistsError:
            number += 1


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
