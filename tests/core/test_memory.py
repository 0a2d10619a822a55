"""Freed memory is kept: by the C library's own account, a large block is not mapped apart and not given back."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# The account is read, not the kernel's count of page faults: that one differs from machine to machine.
CODE = """
import ctypes
from ssl3d.memory import keep_freed_memory

SIZE = 80_000_000
libc = ctypes.CDLL(None)

class Account(ctypes.Structure):  # struct mallinfo2, GNU libc 2.33
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc.mallinfo2.restype = Account
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
kept = keep_freed_memory() if {keep} else True
before = libc.mallinfo2()
block = libc.malloc(SIZE)
mapped = libc.mallinfo2().hblkhd - before.hblkhd >= SIZE
libc.free(block)
print(int(kept), int(mapped), int(libc.mallinfo2().fordblks >= SIZE))
"""


def _account(keep: bool) -> list[str]:
    out = subprocess.run([sys.executable, "-c", CODE.format(keep=keep)], check=True, capture_output=True, text=True)
    return out.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is GNU libc's")
def test_freed_memory_is_kept():
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("the C library does not account for its memory by mallinfo2 (GNU libc 2.33)")
    assert _account(keep=False) == ["1", "1", "0"]  # else the test would show nothing
    assert _account(keep=True) == ["1", "0", "1"]


GROWN = """
import sys, time
import ssl3d.memory as memory

def fragmented():
    kept, large = [], []
    for _ in range(2000):
        large.append(bytearray(100_000))
        kept.append(bytearray(2_000))
    return kept

def grown(watched):
    memory.keep_freed_memory()
    before = memory.resident_bytes()
    if not watched:
        kept = fragmented()
    else:
        with memory.bounded_freed_memory(growth=50_000_000, every=1.0):
            kept = fragmented()
            time.sleep(2.5)  # the first look comes after the large ones are gone
    return memory.resident_bytes() - before

print(grown(sys.argv[1] == "watched"))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="malloc_trim is GNU libc's")
def test_gaps_between_what_lasts_are_given_back():
    """200 MB freed between 4 MB that stay."""
    plain, watched = (
        int(subprocess.run([sys.executable, "-c", GROWN, how], check=True, capture_output=True, text=True).stdout)
        for how in ("plain", "watched")
    )
    assert plain > 150_000_000 > 60_000_000 > watched
