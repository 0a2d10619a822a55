"""Keep the memory that tensors free: giving it back and asking again costs page faults at every step on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3), GNU libc
GROWTH = 2**30  # bytes that a process may grow by before what is free of them is given back


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for this process's life; True where it could be told so (GNU libc).

    For processes of short life that allocate the same large buffers again and again (evaluation workers): their
    resident size stays at its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


@contextmanager
def bounded_freed_memory(growth: int = GROWTH, every: float = 5.0) -> Iterator[None]:
    """Give freed memory back to the system whenever the process has grown by `growth` bytes; looked at `every` seconds.

    Small arrays that last lie between large ones that do not, and the C library then keeps the gaps: encoding a
    thousand volumes grew by ten times what was in use, with `keep_freed_memory` or without. Does nothing where the
    library has no malloc_trim.
    """
    done = threading.Event()

    def watch(trim: Callable[[int], int]) -> None:
        held = resident_bytes()
        while not done.wait(every):
            if resident_bytes() > held + growth:
                trim(0)
                held = resident_bytes()

    if not sys.platform.startswith("linux") or not hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        yield
        return
    thread = threading.Thread(target=watch, args=(library.malloc_trim,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def resident_bytes() -> int:
    """What this process holds in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
