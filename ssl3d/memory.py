"""Keep the memory that tensors free: giving it back and asking again costs page faults at every step on a CPU."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3), GNU libc


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
