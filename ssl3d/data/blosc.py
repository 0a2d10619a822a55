"""Decode one blosc chunk into an array, or encode one, in the calling thread, with as little as possible in between.

numcodecs carries the blosc library, and checks and converts its arguments in Python for about an eighth of what a crop
costs, or a volume. Where the library's own functions are visible inside numcodecs' extension they are called directly,
through ctypes, which releases the GIL as well; otherwise numcodecs is used: same library, same bytes.
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

# One context a thread: blosc's own pool of threads survives no fork, and its users wait on one lock.
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


class ChunkEncoder:
    """A `chunk` to be filled again and again, and its compressed bytes: those of numcodecs' Blosc codec."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, cname: str, clevel: int, shuffle: str) -> None:
        self.chunk = np.zeros(shape, dtype)
        self._name, self._level = cname.encode(), clevel
        self._mode = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}[shuffle]
        self._scratch = np.empty(self.chunk.nbytes + blosc.MAX_OVERHEAD, np.uint8)
        self._addresses = self.chunk.ctypes.data, self._scratch.ctypes.data

    def encode(self) -> bytes:
        """The chunk as it is now, compressed."""
        if _compress is None:
            return blosc.compress(self.chunk, self._name, self._level, self._mode)
        source, target = self._addresses
        itemsize, room = self.chunk.itemsize, self._scratch.nbytes
        length = _compress(self._level, self._mode, itemsize, self.chunk.nbytes, source, target, room, self._name, 0, 1)
        if length <= 0:
            raise RuntimeError(f"blosc could not compress a chunk (code {length})")
        return ctypes.string_at(target, length)


def _direct_compress() -> Callable[..., int] | None:
    """The C function inside numcodecs' extension; None where it is not visible."""
    try:
        compress = ctypes.CDLL(blosc.__file__).blosc_compress_ctx
    except (OSError, AttributeError):
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    compress.argtypes = [ctypes.c_int, ctypes.c_int, size, size, pointer, pointer, size, ctypes.c_char_p, size,
                         ctypes.c_int]  # fmt: skip
    compress.restype = ctypes.c_int
    return compress


_compress = _direct_compress()
