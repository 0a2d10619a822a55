"""Bytes by key under a store's root: files written atomically on a disk, objects behind an fsspec URL."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ssl3d.data.direct import write_parts

Item = TypeVar("Item")
Result = TypeVar("Result")

READERS = 16  # objects asked for at once: a network answers many as fast as one
_WINDOW = 32 * READERS
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class StoreError(OSError):
    """A store that cannot be written or reached, for a reason that is not its content; one sentence with a remedy."""


class Objects(Protocol):
    """The few operations a store's writer and reader need. Keys are relative to the root, with forward slashes.

    Writing raises StoreError when the target is full, read-only or cannot be reached; so does reading behind a URL.
    """

    root: str

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole: a reader sees the old bytes or the new ones, never a part."""

    def put_parts(self, key: str, parts: Iterable[bytes]) -> None:
        """`put` of an object that is too large for the memory, handed over in parts."""

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object only if there is none; False, and nothing written, when there is one."""

    def get(self, key: str) -> bytes:
        """The bytes of an object. Raises FileNotFoundError."""

    def get_ranges(self, key: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes [first, end) of an object, span by span. Raises FileNotFoundError."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""

    def size(self, key: str) -> int:
        """Bytes of an object. Raises FileNotFoundError."""

    def names(self, prefix: str) -> list[str]:
        """Sorted names directly below `prefix`, objects and folders alike; empty when there is no such folder."""

    def holding(self, prefix: str, name: str) -> list[str]:
        """Sorted names of the folders directly below `prefix` that hold an object `name`."""

    def remove(self, prefix: str) -> None:
        """Remove an object or a whole folder; nothing happens when it does not exist."""


class LocalObjects:
    """Files below a directory. Writes go to a neighbour file, are flushed to the disk, then renamed."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)

    def path(self, key: str) -> Path:
        return Path(self.root, key)

    def put(self, key: str, data: bytes) -> None:
        self.put_parts(key, (data,))

    def put_parts(self, key: str, parts: Iterable[bytes]) -> None:
        path = self.path(key)
        # A name of its own: a worker that outlived its run may be writing the same object.
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_parts(partial, parts)
            partial.replace(path)
            self._flush_folder(path.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise cannot_write(self.root, error) from error
            raise

    @staticmethod
    def _flush_folder(folder: Path) -> None:
        """The rename itself must survive a power cut before the next object (the commit) may be written."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def put_new(self, key: str, data: bytes) -> bool:
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        except OSError as error:
            raise cannot_write(self.root, error) from error
        return True

    def get(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def get_ranges(self, key: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        found = []
        with self.path(key).open("rb") as file:
            for first, end in spans:
                file.seek(first)
                found.append(file.read(end - first))
        return found

    def exists(self, key: str) -> bool:
        return self.path(key).exists()

    def size(self, key: str) -> int:
        return self.path(key).stat().st_size

    def names(self, prefix: str) -> list[str]:
        path = self.path(prefix)
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def holding(self, prefix: str, name: str) -> list[str]:
        path = self.path(prefix)
        if not path.is_dir():
            return []
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if Path(entry.path, name).exists())

    def remove(self, prefix: str) -> None:
        path = self.path(prefix)
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.root, error) from error


class RemoteObjects:
    """Objects behind an fsspec URL (s3://, gs://, memory://); a put is one request or one completed upload, atomic.

    Cheap to pickle, and usable after a fork: each process has its own connection. Keys, endpoint and region come from
    the environment (AWS_ENDPOINT_URL, AWS_PROFILE, ...) or from fsspec's configuration files.
    """

    def __init__(self, url: str) -> None:
        self.root = url.rstrip("/")

    @property
    def _fs(self) -> Any:
        return _filesystem(self.root, os.getpid())[0]

    def path(self, key: str) -> str:
        base = _filesystem(self.root, os.getpid())[1]
        return f"{base}/{key}" if key else base

    def put(self, key: str, data: bytes) -> None:
        self._write(self._fs.pipe_file, self.path(key), data)

    def put_parts(self, key: str, parts: Iterable[bytes]) -> None:
        file = self._write(self._fs.open, self.path(key), "wb")
        try:
            for part in parts:
                self._write(file.write, part)
        except BaseException:
            file.discard()
            file.closed = True  # or its finalizer would upload what there is
            raise
        self._write(file.close)

    def put_new(self, key: str, data: bytes) -> bool:
        if self.exists(key):  # not every backend knows exclusive writes
            return False
        try:
            self._write(self._fs.pipe_file, self.path(key), data, mode="create")
        except FileExistsError:
            return False
        return True

    def get(self, key: str) -> bytes:
        return self._ask(self._fs.cat_file, self.path(key))

    def get_ranges(self, key: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        starts, ends = [first for first, _ in spans], [end for _, end in spans]
        found = self._ask(self._fs.cat_ranges, [self.path(key)] * len(spans), starts, ends, on_error="raise")
        return list(found)

    def exists(self, key: str) -> bool:
        return self._ask(self._fs.exists, self.path(key))

    def size(self, key: str) -> int:
        return int(self._ask(self._fs.size, self.path(key)))

    def names(self, prefix: str) -> list[str]:
        try:
            entries = self._ask(self._fs.ls, self.path(prefix), detail=False)
        except FileNotFoundError:
            return []
        return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries} - {""})

    def holding(self, prefix: str, name: str) -> list[str]:
        try:
            found = self._ask(self._fs.find, self.path(prefix))  # one listing, not one question a folder
        except FileNotFoundError:
            return []
        depth = self.path(prefix).strip("/").count("/") + 2
        parts = [path.strip("/").split("/") for path in found if path.endswith(f"/{name}")]
        return sorted(part[-2] for part in parts if len(part) == depth + 1)

    def remove(self, prefix: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask(self._fs.rm, self.path(prefix), recursive=True)

    def _write(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """`_ask` of something that writes: what can be missing then is the bucket."""
        try:
            return self._ask(function, *arguments, **options)
        except FileNotFoundError as error:
            raise StoreError(f"{self.root} cannot be written: there is no such bucket, create it first") from error

    def _ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call the file system; what it raises becomes one sentence. Raises FileNotFoundError, FileExistsError."""
        try:
            return function(*arguments, **options)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # every backend brings exceptions of its own
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise StoreError(
                f"{self.root} cannot be read or written ({said}): check the address, the credentials and the endpoint,"
                " then run the same command again"
            ) from error


@lru_cache(maxsize=16)
def _filesystem(url: str, pid: int) -> tuple[Any, str]:
    """(file system, path of the root in it) of this process: fsspec's event loops and connections survive no fork."""
    del pid
    import fsspec

    scheme = url.partition("://")[0]
    try:
        filesystem, base = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(scheme)
        remedy = f"pip install {extra}" if extra else "check the part before ://"
        raise ValueError(f"{url} cannot be opened ({error}): {remedy}") from error
    filesystem.dircache.use_listings_cache = False  # a listing cached before a write would hide new volumes
    return filesystem, base


def cannot_write(root: str, error: OSError) -> StoreError:
    """What stands in the way of writing, and the remedy."""
    if isinstance(error, StoreError):
        return error
    said = error.strerror or str(error)
    if error.errno in _FULL:
        remedy = "free some space, then run the same command again: it goes on where it ended"
        return StoreError(f"store {root} is full ({said}): {remedy}")
    if error.errno in _CLOSED:
        return StoreError(f"store {root} cannot be written ({said}): choose a place that you may write to")
    return StoreError(f"store {root} cannot be written ({said}): run the same command again once that is repaired")


def no_store(root: str | Path) -> FileNotFoundError:
    """What to raise where there is no store: a folder of scans is the SOURCE of one, not its place."""
    scans = not is_url(root) and local_path(root).is_dir() and any(local_path(root).iterdir())
    remedy = f"{root} STORE, and give the STORE" if scans else f"SOURCE {root}"
    return FileNotFoundError(f"there is no ssl3d store at {root}: make one with ssl3d convert {remedy}")


def is_url(root: str | Path) -> bool:
    """Whether `root` is an fsspec URL rather than a path (file:// is a path)."""
    return "://" in str(root) and not str(root).startswith("file://")


def local_path(root: str | Path) -> Path:
    """The path that a root on a disk means, file:// taken off."""
    return Path(str(root).removeprefix("file://"))


def open_objects(root: str | Path) -> Objects:
    """The objects below a path or an fsspec URL (file:// is a path)."""
    return RemoteObjects(str(root)) if is_url(root) else LocalObjects(local_path(root))


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Results in the order of `items`, computed many at once, a window of them at a time.

    For what waits (for a disk, a network). No thread runs while a result is used: Python's lock would go back and forth
    between them, which costs several times what a small file does.
    """

    def of_part(part: Sequence[Item]) -> list[Result]:
        return [function(item) for item in part]

    with ThreadPoolExecutor(READERS, thread_name_prefix="ssl3d-objects") as pool:
        for first in range(0, len(items), _WINDOW):
            window = items[first : first + _WINDOW]
            size = -(-len(window) // READERS)
            parts = [window[k : k + size] for k in range(0, len(window), size)]
            for results in list(pool.map(of_part, parts)):
                yield from results
