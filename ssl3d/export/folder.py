"""The folder of an export: it holds one export, whose files come into place together; nobody else's file is touched.

What an export writes is gathered in a hidden folder inside, then moved, report.json last. That report lists the files
that are an export's. Where a kill left none, the journal in the hidden folder does, a line a file that was about to be
moved: so the same command succeeds after it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ssl3d.files import write_atomically, write_text

REPORT, PAGE = "report.json", "report.html"
_HIDDEN = ".ssl3d-export"


@dataclass(frozen=True)
class Written:
    """What an earlier export left in a folder: its target `to` ("" for none) and its `files`, below the folder."""

    to: str = ""
    files: frozenset[str] = frozenset()


class ExportFolder:
    """`with ExportFolder(out, to) as folder:` writes files for the target `to`; at its end they are moved into `out`.

    Files of the export that was there before are replaced or removed. When anything is raised, `out` stays as it was.
    Raises ValueError when `out` is a file, a run or another target's, a file there is no export's, or another export is
    writing there.
    """

    def __init__(self, out: Path, to: str) -> None:
        check_folder(out, to)
        self.out, self.to = out, to
        self.names: list[str] = []
        self._made = not out.exists()
        self._lock = FileLock(out / _HIDDEN / "lock")

    def __enter__(self) -> ExportFolder:
        (self.out / _HIDDEN).mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"--out {self.out}: another export is writing there; wait for its end, or give another folder"
            ) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._put_in_place()
        finally:
            self._clear()
            self._lock.release()

    def write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Let `write` make the file `name` of the folder, "docs/README.md"; returns where it lies until the end."""
        assert name not in self.names, f"{name} is written twice"
        if not self.names:
            shutil.rmtree(self._new, ignore_errors=True)  # left by a kill
        self.names.append(name)
        return write_atomically(self._new / name, write)

    def write_text(self, name: str, text: str) -> Path:
        """A text file, as `write`."""
        return self.write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, content: Any) -> Path:
        """A JSON file, as `write`."""
        return self.write_text(name, json.dumps(content, indent=2) + "\n")

    def check(self) -> None:
        """Raises ValueError when a file that is written, or the report, would replace one that is no export's."""
        _check_files(self.out, [*self.names, REPORT, PAGE])

    def _put_in_place(self) -> None:
        self.check()
        before = written(self.out)
        lines = [self.to, *sorted(before.files)]
        write_text(self._journal, "\n".join(lines))
        (self.out / REPORT).unlink(missing_ok=True)  # from here to the end there is no export, but a journal of one
        for name in sorted(self.names, key=lambda name: name == REPORT):
            if name == REPORT:
                self._remove(before.files - {*self.names})
            lines.append(name)
            write_text(self._journal, "\n".join(lines))
            path = self.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (self._new / name).replace(path)
        shutil.rmtree(self.out / _HIDDEN)

    def _remove(self, names: frozenset[str]) -> None:
        """Remove files of the export before that this one has not, and the folders that are empty then."""
        for path in (self.out / name for name in sorted(names)):
            if not path.is_dir():
                path.unlink(missing_ok=True)
            for folder in path.parents[: len(path.relative_to(self.out).parts) - 1]:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _clear(self) -> None:
        """Remove what is hidden, but the journal of an export that did not end; and `out`, when it was made in vain."""
        shutil.rmtree(self._new if self._journal.exists() else self.out / _HIDDEN, ignore_errors=True)
        if self._made and self.out.is_dir() and not any(self.out.iterdir()):
            self.out.rmdir()

    @property
    def _new(self) -> Path:
        return self.out / _HIDDEN / "new"

    @property
    def _journal(self) -> Path:
        return _journal(self.out)


def check_folder(out: Path, to: str) -> None:
    """Raises ValueError when `out` is no folder, is a run, holds another target's export or a report of its own."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out {out}: '{path}' is a file; give a folder, which is made where there is none")
    if (out / "checkpoints").is_dir():
        raise ValueError(f"--out {out} is a run, whose files an export must not mix with; give a folder of its own")
    _check_files(out, [REPORT, PAGE])
    if (there := written(out).to) not in ("", to):
        raise ValueError(
            f"--out {out} holds an export to {there}, and a folder holds one target: give --to {to} another folder"
        )


def written(out: Path) -> Written:
    """What the report of an export in `out` lists, or the journal of one that was killed; nothing where there is none.

    Names that lead out of the folder are left out: a report may come from anyone.
    """
    if os.path.lexists(out / REPORT):
        to, files = _reported(out / REPORT)
    else:
        try:
            to, *files = _journal(out).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return Written()
    inside = (name for name in files if not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts)
    return Written(to, frozenset(inside))


def _reported(path: Path) -> tuple[str, list[str]]:
    """The target and the files of a report.json; none when it is no export's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        to, files = content["to"], content["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []
    if not isinstance(to, str) or not isinstance(files, list):
        return "", []
    return to, [name for name in files if isinstance(name, str)]


def _check_files(out: Path, names: list[str]) -> None:
    ours = written(out).files
    for name in names:
        above = [str(folder) for folder in PurePosixPath(name).parents][:-1]
        taken = [folder for folder in above if os.path.lexists(out / folder) and not (out / folder).is_dir()]
        taken += [name] if os.path.lexists(out / name) and name not in ours else []
        if taken:
            raise ValueError(
                f"--out {out}: its '{taken[0]}' would be overwritten, which no export lists in a {REPORT} there; "
                "give another folder"
            )


def _journal(out: Path) -> Path:
    return out / _HIDDEN / "journal.txt"
