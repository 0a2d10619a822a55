"""Archives of scans: unpacked to a folder beside the store, and refused whole when anything about them is unsafe.

Only files and folders are made, each by this module: no link, no special file, no name that leads elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import posixpath
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from preprocessing.refusal import Refusal

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
MAX_RATIO = 200  # unpacked to packed bytes; scans reach 10, a zip of zeros 1000
RATIO_FREE = 100 << 20  # bytes that may be unpacked whatever the ratio
MAX_ENTRIES = 2_000_000
MAX_DEPTH = 2  # an archive inside an archive is unpacked, one inside that is not
DISK_RESERVE = 256 << 20  # bytes left free on the disk
_PIECE = 1 << 20
_HEAD = 1 << 16  # bytes of a file that a rehearsal looks at, or an eighth of it
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)


def is_archive(name: str) -> bool:
    """By its extension."""
    return name.lower().endswith(SUFFIXES)


def bare_name(name: str) -> str:
    """An archive's name without its extension, any other name as it is."""
    found = next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(found)]


@dataclass
class _Member:
    """`kind`: file, folder, link or special. `target`: where a link leads, from the archive's own root."""

    name: str
    kind: str
    size: int = 0
    target: str = ""
    info: zipfile.ZipInfo | None = None


class Scratch(AbstractContextManager["Scratch"]):
    """The folder that archives of one run are unpacked to: `STORE.unpacked`, gone when the run ends.

    What a killed run left there is removed by the next one. Made only when there is something to unpack. For a
    `rehearsal` it is a temporary folder elsewhere, and only the beginnings of the files are unpacked, at full length.
    """

    def __init__(self, store: str | Path, rehearsal: bool = False) -> None:
        self._store = store
        self._rehearsal = rehearsal
        self._lock: FileLock | None = None
        self._number = 0
        self.path = _beside(store)
        self._temporary: Path | None = None

    def __enter__(self) -> Scratch:
        if not self._rehearsal and self.path.is_dir():
            self._claim()
            self._clear()
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary)
        elif self._lock is not None:
            shutil.rmtree(self.path)
            self._lock.release()

    def _claim(self) -> None:
        """Take the folder's lock. Raises ValueError when another run holds it."""
        if self._lock is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock", timeout=0)
            try:
                self._lock.acquire()
            except Timeout as error:
                self._lock = None
                raise ValueError(
                    f"store {self._store} is being written by another ssl3d convert: wait until it has ended"
                ) from error

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)

    def unpack(self, archive: Path) -> Path:
        """The folder that holds the archive's content, called like the archive. Raises Refusal, nothing left behind."""
        if self._rehearsal:
            self._temporary = self._temporary or Path(tempfile.mkdtemp(prefix="ssl3d-dry-run-"))
        else:
            self._claim()
        self._number += 1
        place = (self._temporary or self.path) / str(self._number) / archive.name
        place.mkdir(parents=True)
        try:
            _unpack(archive, place, heads_only=self._rehearsal)
        except Refusal:
            shutil.rmtree(place)
            raise
        return place


def _beside(store: str | Path) -> Path:
    """The scratch folder of a store; that of an object store lies in the system's temporary folder."""
    if "://" in str(store):
        name = hashlib.blake2b(str(store).encode(), digest_size=8).hexdigest()
        return Path(tempfile.gettempdir()) / f"ssl3d-{name}.unpacked"
    path = Path(store).absolute()
    return path.with_name(path.name + ".unpacked")


def _unpack(archive: Path, place: Path, heads_only: bool) -> None:
    """Raises Refusal naming what is wrong with the archive."""
    try:
        packed = archive.stat().st_size
        if packed == 0:
            raise Refusal("empty_file", "the archive has no bytes")
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                members = [_zip_member(opened, info) for info in opened.infolist()]
                budget = _Budget(packed, place, heads_only)
                budget.expect(sum(member.size for member in members))
                _write(((m, None if m.info is None else opened.open(m.info)) for m in members), place, budget)
        else:
            with tarfile.open(archive, tarinfo=_StrictInfo) as tar:
                pairs = ((_tar_member(info), tar.extractfile(info) if info.isreg() else None) for info in tar)
                budget = _Budget(packed, place, heads_only)
                _write(pairs, place, budget)
                while rest := tar.fileobj.read(_PIECE) if tar.fileobj is not None else b"":  # to reach the checksum
                    budget.enter(len(rest))
    except _DAMAGE as error:
        raise Refusal("archive_damaged", f"the archive is damaged or cut short ({type(error).__name__})") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refusal("archive_too_large") from error
        if error.errno in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL):
            raise Refusal("archive_unsafe", "the archive holds a name that no file can have") from error
        if error.errno is None:  # gzip's own: a wrong checksum, no gzip at all
            raise Refusal("archive_damaged", "the archive is damaged") from error
        raise


class _StrictInfo(tarfile.TarInfo):
    """A tar's header that is damaged or missing is an error; tarfile by itself takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("a header is damaged, or the end mark is missing") from error


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    if info.flag_bits & 1:
        raise Refusal("archive_encrypted")
    mode = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
    if info.is_dir():
        return _Member(info.filename, "folder")
    if mode == stat.S_IFLNK:
        if info.file_size > 4096:
            raise Refusal("archive_unsafe", "the archive holds a link of absurd length")
        target = archive.read(info).decode("utf-8", "replace")
        return _Member(info.filename, "link", target=_link_target(info.filename, target))
    if mode not in (0, stat.S_IFREG):
        return _Member(info.filename, "special")
    return _Member(info.filename, "file", info.file_size, info=info)


def _tar_member(info: tarfile.TarInfo) -> _Member:
    if info.issym():
        return _Member(info.name, "link", target=_link_target(info.name, info.linkname))
    if info.islnk():
        return _Member(info.name, "link", target=_link_target("", info.linkname))
    kind = "folder" if info.isdir() else "file" if info.isreg() else "special"
    return _Member(info.name, kind, info.size if kind == "file" else 0)


def _link_target(name: str, target: str) -> str:
    """Where a link leads, from the archive's root. Raises Refusal `archive_link`."""
    if target.startswith("/") or re.match(r"^[A-Za-z]:", target):
        raise Refusal("archive_link")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if joined == ".." or joined.startswith("../"):
        raise Refusal("archive_link")
    return joined


def _safe_parts(name: str) -> list[str]:
    """The parts of a member's name. Raises Refusal `archive_unsafe` for one that leads out."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise Refusal("archive_unsafe")
    return [part for part in parts if part not in ("", ".")]


class _Budget:
    """What may still be unpacked: bounded by the archive's own size and by the disk."""

    def __init__(self, packed: int, place: Path, heads_only: bool) -> None:
        self.heads_only = heads_only
        self._packed = packed
        self._free = shutil.disk_usage(place).free - DISK_RESERVE
        self._stated = 0
        self._entries = 0

    def expect(self, total: int) -> None:
        """Raises Refusal `archive_bomb` or `archive_too_large` when `total` bytes are too many."""
        if total > RATIO_FREE and total > MAX_RATIO * self._packed:
            raise Refusal("archive_bomb", f"it unpacks to more than {MAX_RATIO} times its size, as no scans do")
        if total > self._free and not self.heads_only:
            raise Refusal(
                "archive_too_large",
                f"unpacked it takes {total / 2**30:.1f} GiB or more, {max(0, self._free) / 2**30:.1f} are free"
                " beside the store",
            )

    def enter(self, size: int) -> None:
        """One more member of `size` bytes. Raises Refusal."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise Refusal("archive_bomb", f"it holds more than {MAX_ENTRIES} files")
        self._stated += size
        self.expect(self._stated)


def _write(members: Iterator[tuple[_Member, IO[bytes] | None]], place: Path, budget: _Budget) -> None:
    """Write files and folders, then put the content of their target in the place of links to files."""
    links: list[tuple[Path, Path]] = []
    for member, content in members:
        budget.enter(member.size)
        parts = _safe_parts(member.name)
        path = place.joinpath(*parts)
        if member.kind == "special":
            raise Refusal("archive_unsafe", "the archive holds a device or a pipe")
        if member.kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
            continue
        if not parts:
            raise Refusal("archive_unsafe", "the archive holds a file without a name")
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.kind == "link":
            links.append((path, place.joinpath(*_safe_parts(member.target))))
            continue
        path.unlink(missing_ok=True)  # the last of several members of one name counts
        assert content is not None
        with content, path.open("xb") as file:
            _copy(content, file, member.size, budget.heads_only)
    for path, target in links:  # a link to a folder is left out: what it leads to is there anyway
        if target.is_file() and not path.exists():
            path.hardlink_to(target)


def _copy(content: IO[bytes], file: IO[bytes], size: int, head_only: bool) -> None:
    """Copy a member's `size` bytes and no more, or for a rehearsal its beginning, the rest as a hole."""
    wanted = min(size, max(_HEAD, size // 8)) if head_only else size
    done = 0
    while done < wanted:
        piece = content.read(min(_PIECE, wanted - done))
        if not piece:
            raise EOFError("a file in the archive is shorter than stated")
        file.write(piece)
        done += len(piece)
    if done < size:
        file.truncate(size)
    elif content.read(1):  # zipfile checks the checksum when the end is reached
        raise EOFError("a file in the archive is longer than stated")
