"""A folder's visible content, listed at most once and only when asked for: discovery opens no file to find files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from preprocessing.readers import header_file, split_extension

_NEVER = frozenset({"__MACOSX", "lost+found"})
STORE_FILE = "zarr.json"  # a folder that holds it is a store: nothing in it is a raw scan


class Folder:
    """`files` and `folders` by name, sorted; hidden names, stores and the folders of `skip` left out.

    Links to folders are followed, unless they lead back to a folder above. A link that leads nowhere counts as a file:
    it is the place of a scan that was never fetched. `unlisted`: the system's words when the folder cannot be listed.
    """

    def __init__(self, path: Path, skip: Iterable[Path] = (), above: tuple[Folder, ...] = ()) -> None:
        self.path = path
        self._skip = frozenset(skip)
        self._above = above
        self.unlisted = ""

    @property
    def name(self) -> str:
        """The folder's own name, "." and links resolved."""
        return self.path.name if self.path.name not in ("", "..") else self.path.resolve().name

    @cached_property
    def _identity(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino

    @cached_property
    def _listed(self) -> tuple[list[str], list[str]]:
        """(names of files, names of folders)"""
        files, folders = [], []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in _NEVER:
                        continue
                    if not _is_folder(entry):
                        files.append(entry.name)
                    elif not entry.is_symlink() or not self._leads_back(entry):
                        folders.append(entry.name)
        except OSError as error:
            self.unlisted = error.strerror or type(error).__name__
        if STORE_FILE in files:
            return [], []
        return sorted(files), sorted(folders)

    def _leads_back(self, entry: os.DirEntry[str]) -> bool:
        status = entry.stat()
        return (status.st_dev, status.st_ino) in {folder._identity for folder in (self, *self._above)}

    @property
    def files(self) -> list[str]:
        """Names of the files."""
        return self._listed[0]

    @cached_property
    def folders(self) -> dict[str, Folder]:
        """The folders inside, by name."""
        inside = {name: Folder(self.path / name, self._skip, (*self._above, self)) for name in self._listed[1]}
        doubtful = {path.name for path in self._skip}
        for name, folder in list(inside.items()):
            if (name in doubtful or folder.path.is_symlink()) and folder.path.resolve() in self._skip:
                del inside[name]
        return inside

    @cached_property
    def volumes(self) -> list[str]:
        """Names of the files that a reader of volumes takes by their extension; a pair of files is its header's."""
        names = [name for name in self.files if split_extension(name)[1]]
        if any(".img" in name.lower() for name in names):
            return [name for name in names if header_file(self.path / name).name == name]
        return names

    def walk(self, into: Callable[[Folder], bool] = lambda child: True) -> Iterator[Folder]:
        """This folder and all below that `into` lets through, each before what it holds."""
        yield self
        for folder in self.folders.values():
            if into(folder):
                yield from folder.walk(into)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False also for links in a circle, which no system call follows."""
    try:
        return entry.is_dir()
    except OSError:
        return False
