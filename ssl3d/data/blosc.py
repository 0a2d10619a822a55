"""Decode one blosc chunk into an array, in the calling thread, with as little as possible in between.

numcodecs carries the blosc library, and checks and converts its arguments in Python for about an eighth of what a crop
costs. Where the library's own function is visible inside numcodecs' extension it is called directly, through ctypes,
which releases the GIL as well; otherwise numcodecs is used: same library, same bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from numcodecs import blosc


class Destination:
    """A contiguous array to decode into; its address is looked up once, not once a chunk."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.nbytes, self.address = array, array.nbytes, array.ctypes.data


# (address of the file, the file, first byte of the chunk, one past its last, destination) -> None
Decode = Callable[[int, memoryview, int, int, Destination], None]

# One decode context a thread: blosc's own pool of threads survives no fork, and its users wait on one lock.
blosc.use_threads = False


def _check_length(view: memoryview, first: int, end: int) -> None:
    """blosc trusts the compressed length in its header, so that must not point past the chunk."""
    if end - first < 16 or int.from_bytes(view[first + 12 : first + 16], "little") != end - first:
        raise ValueError("its length is not the one in its header")


def decode_wrapped(base: int, view: memoryview, first: int, end: int, destination: Destination) -> None:
    """Decode view[first:end] into `destination` by numcodecs. Raises ValueError when it is no whole chunk."""
    _check_length(view, first, end)
    if int.from_bytes(view[first + 4 : first + 8], "little") != destination.nbytes:
        raise ValueError("its size is not that of a chunk")
    try:
        blosc.decompress(view[first:end], destination.array)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _direct() -> Decode | None:
    """The same by the C function inside numcodecs' extension; None where it is not visible."""
    try:
        decompress = ctypes.CDLL(blosc.__file__).blosc_decompress_ctx
    except (OSError, AttributeError):
        return None
    decompress.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    decompress.restype = ctypes.c_int

    def decode(base: int, view: memoryview, first: int, end: int, destination: Destination) -> None:
        _check_length(view, first, end)
        if decompress(base + first, destination.address, destination.nbytes, 1) != destination.nbytes:
            raise ValueError("blosc could not decode it")

    return decode


decode_direct: Decode | None = _direct()
decode: Decode = decode_direct or decode_wrapped
