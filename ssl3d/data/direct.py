"""Write a large file past the page cache, where the system can.

A store is written once and read later, often by another machine. Copying it into fresh pages of the cache can cost as
much as compressing it did, pushes out what others read, and the flush that follows waits for all of it. With
O_DIRECT the disk takes the bytes from an aligned buffer while the next ones are compressed.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

BUFFER_BYTES = 1 << 22  # aligned for every disk; what is left at the end of a file is shorter, and is not
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)
_O_DIRECT = getattr(os, "O_DIRECT", 0)  # 0 where there is no such thing: everything goes through the cache
_local = threading.local()


def write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Make the file `path` of `parts`, one after the other, and flush it to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for block in _blocks(parts):
            _write(descriptor, block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _blocks(parts: Iterable[bytes]) -> Iterator[memoryview]:
    """The same bytes in blocks of BUFFER_BYTES and a shorter one; each is overwritten by the next."""
    buffer, held = _buffer(), 0
    for part in parts:
        view = memoryview(part)
        while view:
            taken = min(len(view), BUFFER_BYTES - held)
            buffer[held : held + taken] = view[:taken]
            held, view = held + taken, view[taken:]
            if held == BUFFER_BYTES:
                yield buffer
                held = 0
    if held:
        yield buffer[:held]


def _buffer() -> memoryview:
    """This thread's buffer, aligned because it is a mapping; kept, because fresh pages cost more than the copy."""
    if not hasattr(_local, "buffer"):
        _local.buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))
    return _local.buffer


def _set_direct(descriptor: int, direct: bool) -> None:
    """Let writes go past the cache from here on, or no more; where a file system cannot do that, through it."""
    if not _O_DIRECT:
        return
    import fcntl  # only where there is O_DIRECT

    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _O_DIRECT if direct else flags & ~_O_DIRECT)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise


def _write(descriptor: int, block: memoryview) -> None:
    """Write all of it: what a full disk or a limit cut short goes on through the cache, which then says why."""
    aligned = len(block) == BUFFER_BYTES
    _set_direct(descriptor, aligned)
    while block:
        try:
            block = block[os.write(descriptor, block) :]
        except OSError as error:
            if not aligned or error.errno not in _REFUSED:
                raise
        if block and aligned:
            aligned = False
            _set_direct(descriptor, aligned)
