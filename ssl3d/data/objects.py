"""Bytes by key under a store's root: files written atomically on a disk, objects behind an fsspec URL."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol


class Objects(Protocol):
    """The few operations a store's writer and reader need. Keys are relative to the root, with forward slashes."""

    root: str

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole: a reader sees the old bytes or the new ones, never a part."""

    def get(self, key: str) -> bytes:
        """The bytes of an object. Raises FileNotFoundError."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    def size(self, key: str) -> int:
        """Bytes of an object. Raises FileNotFoundError."""

    def names(self, prefix: str) -> list[str]:
        """Sorted names directly below `prefix`, objects and folders alike; empty when there is no such folder."""

    def remove(self, prefix: str) -> None:
        """Remove an object or a whole folder; nothing happens when it does not exist."""


class LocalObjects:
    """Files below a directory. Writes go to a neighbour file, are flushed to the disk, then renamed."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)

    def path(self, key: str) -> Path:
        return Path(self.root, key)

    def put(self, key: str, data: bytes) -> None:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        # The rename itself must survive a power cut before the next object (the commit) may be written.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def get(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def exists(self, key: str) -> bool:
        return self.path(key).exists()

    def size(self, key: str) -> int:
        return self.path(key).stat().st_size

    def names(self, prefix: str) -> list[str]:
        path = self.path(prefix)
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def remove(self, prefix: str) -> None:
        path = self.path(prefix)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class RemoteObjects:
    """Objects behind an fsspec URL (s3://, gs://, memory://); a put is one request, atomic on object stores."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.root = url.rstrip("/")
        self._fs: Any
        self._fs, self._base = fsspec.core.url_to_fs(self.root)

    def path(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base

    def put(self, key: str, data: bytes) -> None:
        self._fs.pipe_file(self.path(key), data)

    def get(self, key: str) -> bytes:
        return self._fs.cat_file(self.path(key))

    def exists(self, key: str) -> bool:
        return self._fs.exists(self.path(key))

    def size(self, key: str) -> int:
        return int(self._fs.size(self.path(key)))

    def names(self, prefix: str) -> list[str]:
        self._fs.invalidate_cache()  # a listing cached before a write would hide new volumes
        try:
            entries = self._fs.ls(self.path(prefix), detail=False)
        except FileNotFoundError:
            return []
        return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries} - {""})

    def remove(self, prefix: str) -> None:
        path = self.path(prefix)
        if self._fs.exists(path):
            self._fs.rm(path, recursive=True)


def is_url(root: str | Path) -> bool:
    """Whether `root` is an fsspec URL rather than a path."""
    return "://" in str(root)


def open_objects(root: str | Path) -> Objects:
    """The objects below a path or an fsspec URL (file:// is a path)."""
    text = str(root)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemoteObjects(text) if is_url(text) else LocalObjects(text)
