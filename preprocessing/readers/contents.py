"""The bytes of a file, decompressed, with every checksum and length verified before they are believed.

Libraries stop reading a compressed file where its header says that the voxels end, so that they never see the
checksum, and some fill what is missing with zeros. Here a stream is read to its end before any voxel of it is used.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from preprocessing.readers.sniff import GZIP_MAGIC
from preprocessing.refusal import Refusal

SMALL_SURPLUS = 4096  # bytes after the voxels that some programs pad with; more means a header that does not fit
TRAILING_BYTES = "trailing_bytes"  # flag
_CHUNK = 1 << 20
_FIRST = 1 << 12  # compressed bytes in which a header is found
_AUTOMATIC = 47  # zlib's code for "gzip or zlib, whichever it is"
_BEST_RATIO = 1032  # deflate cannot compress better
_ABSURD = 16  # times the bytes that are there: no transfer lost them, the header is wrong


def is_gzip(path: Path) -> bool:
    """By its first bytes, not by its name."""
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def head(path: Path, count: int) -> bytes:
    """The first `count` bytes, decompressed where the file is gzip; fewer when it holds fewer. Raises Refusal."""
    return opening(path, count)[0]


def opening(path: Path, count: int) -> tuple[bytes, bool]:
    """(`head`, whether the file is gzip) by opening the file once, and reading no more of it than that takes."""
    with path.open("rb") as file:
        first = file.read(max(count, _FIRST))
    if not first.startswith(GZIP_MAGIC):
        return first[:count], False
    with contextlib.suppress(zlib.error):  # damage is named below
        start = zlib.decompressobj(_AUTOMATIC).decompress(first, count)
        if len(start) == count:
            return start, True
    collected = b""
    for piece in inflated(path, 0, step=count):
        collected += piece
        if len(collected) >= count:
            break
    return collected[:count], True


def inflated(path: Path, offset: int, step: int = _CHUNK) -> Iterator[bytes]:
    """Pieces of what is compressed in a file from `offset` on, as gzip (any number of members) or one zlib stream.

    Ends only after the last checksum and length have been verified. Raises Refusal: truncated, bad_checksum,
    corrupt_stream, surplus_bytes.
    """
    stream = zlib.decompressobj(_AUTOMATIC)
    with path.open("rb") as file:
        file.seek(offset)
        rest = b""
        while chunk := rest or file.read(_CHUNK):
            if stream.eof:
                chunk = chunk.lstrip(b"\0")  # tapes and block devices pad with zeros
                if not chunk:
                    rest = b""
                    continue
                if not GZIP_MAGIC.startswith(chunk[:2]):
                    raise Refusal("surplus_bytes", "other bytes follow the end of the compressed data")
                stream = zlib.decompressobj(_AUTOMATIC)
            try:
                piece = stream.decompress(chunk, step)
            except zlib.error as error:
                raise _stream_fault(error) from error
            rest = stream.unused_data if stream.eof else stream.unconsumed_tail
            if piece:
                yield piece
        while not stream.eof and (piece := stream.decompress(b"", step)):
            yield piece
    if not stream.eof:
        raise Refusal("truncated", "the compressed data ends before its end mark")


def _stream_fault(error: zlib.error) -> Refusal:
    """What zlib found."""
    text = str(error)
    if "data check" in text or "length check" in text:
        return Refusal("bad_checksum")
    return Refusal("corrupt_stream", f"the compressed data is damaged ({text.rpartition(': ')[2]})")


class _Stream:
    """Bytes in order from an iterator of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def _next(self, most: int) -> memoryview:
        """At least one and at most `most` bytes; none at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        piece, self._rest = self._rest[:most], self._rest[most:]
        return piece

    def skip(self, count: int) -> None:
        """Pass over bytes. Raises Refusal `truncated`."""
        while count:
            piece = self._next(count)
            if not piece:
                raise Refusal("truncated", "the decompressed data ends before the voxels do")
            count -= len(piece)

    def take(self, count: int) -> bytearray:
        """The next bytes. Raises Refusal `truncated`."""
        out = bytearray(count)
        at = 0
        while at < count:
            piece = self._next(count - at)
            if not piece:
                raise Refusal("truncated", f"{at:,} of the {count:,} bytes of a volume are there")
            out[at : at + len(piece)] = piece
            at += len(piece)
        return out

    def drain(self) -> int:
        """Read to the end; how many bytes there were."""
        count = len(self._rest) + sum(len(piece) for piece in self._pieces)
        self._rest = memoryview(b"")
        return count


def check_size(path: Path, offset: int, needed: int, compressed: bool) -> None:
    """Raises Refusal when `needed` bytes from `offset` on cannot be in a file, from its size alone."""
    there = max(0, path.stat().st_size - (0 if compressed else offset))
    if needed > there * (_BEST_RATIO if compressed else _ABSURD):
        raise Refusal("impossible_size", f"the header speaks of {needed:,} bytes of voxels, the file holds {there:,}")
    if not compressed and needed > there:
        raise Refusal("truncated", f"{there:,} of {needed:,} bytes of voxels are there")


def check_surplus(surplus: int) -> list[str]:
    """Flags for bytes that follow the voxels. Raises Refusal `surplus_bytes` when they are too many to be padding."""
    if surplus > SMALL_SURPLUS:
        raise Refusal("surplus_bytes", f"{surplus:,} bytes follow the voxels that the header speaks of")
    return [TRAILING_BYTES] if surplus > 0 else []


def volumes(
    path: Path, offset: int, size: int, total: int, wanted: Sequence[int], flags: list[str], *, footer: bool = False
) -> Iterator[bytearray]:
    """The bytes of the `wanted` volumes (ascending) of `total` that follow each other, `size` bytes each.

    `offset`: of the first, in the decompressed file where it is gzip. `footer`: the format allows more behind them.
    What is found behind them is added to `flags`. Raises Refusal.
    """
    compressed = is_gzip(path)
    check_size(path, 0 if compressed else offset, size * total, compressed)
    if not compressed:
        if not footer:
            flags += check_surplus(path.stat().st_size - offset - size * total)
        yield from _plain_volumes(path, offset, size, wanted)
        return
    if total > 1:  # its end must be seen before the first volume is believed, and not all of them fit in memory
        whole = _Stream(inflated(path, 0))
        whole.skip(offset + size * total)
        flags += [] if footer else check_surplus(whole.drain())
    stream = _Stream(inflated(path, 0))
    at = 0
    for number in wanted:
        start = offset + number * size
        stream.skip(start - at)
        data = stream.take(size)
        at = start + size
        if total == 1:
            surplus = stream.drain()
            flags += [] if footer else check_surplus(surplus)
        yield data


def _plain_volumes(path: Path, offset: int, size: int, wanted: Sequence[int]) -> Iterator[bytearray]:
    with path.open("rb") as file:
        for number in wanted:
            file.seek(offset + number * size)
            data = bytearray(size)
            if file.readinto(data) != size:
                raise Refusal("truncated", "the file ended while it was read")
            yield data


def stream_of(path: Path, offset: int, size: int, compressed: bool) -> bytearray:
    """`size` bytes of voxels from `offset` of a file on, plain or as a compressed stream. Raises Refusal."""
    check_size(path, offset, size, compressed)
    if not compressed:
        return next(_plain_volumes(path, offset, size, [0]))
    stream = _Stream(inflated(path, offset))
    data = stream.take(size)
    check_surplus(stream.drain())
    return data
