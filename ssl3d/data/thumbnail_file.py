"""The thumbnails of a store as one array beside the index: written row by row, read by the row."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ssl3d.data import format as fmt
from ssl3d.data.objects import LocalObjects, Objects, in_parallel, open_objects
from ssl3d.data.thumbnail import SIDE

THUMBNAIL_OBJECT = "thumbnail.npy"  # inside volumes/<id>/, so that it comes and goes with its volume
_DTYPE = np.dtype("<f2")
_SHAPE = (SIDE, SIDE, SIDE)
_BLOCK = 64  # rows fetched at once from behind a URL: 4 MiB
_ROW_BYTES = SIDE**3 * _DTYPE.itemsize


def encode_thumbnail(thumbnail: np.ndarray) -> bytes:
    """The object of one volume's thumbnail (32,32,32) float16."""
    return _header(_SHAPE) + thumbnail.astype(_DTYPE).tobytes()


def write_thumbnails(objects: Objects, ids: Sequence[str]) -> None:
    """Write thumbnails.npy (n,32,32,32) float16, rows as `ids`; a few thumbnails are in memory at a time.

    Raises ValueError naming a volume whose thumbnail is missing or damaged.
    """

    head = _header(_SHAPE)

    def read(volume_id: str) -> bytes:
        try:
            return objects.get(f"{fmt.VOLUMES}/{volume_id}/{THUMBNAIL_OBJECT}")
        except FileNotFoundError:
            return b""

    def parts() -> Iterator[bytes]:
        yield _header((len(ids), *_SHAPE))
        for volume_id, data in zip(ids, in_parallel(read, ids)):
            if not data.startswith(head) or len(data) != len(head) + _ROW_BYTES:
                raise ValueError(
                    f"volume {volume_id} of {objects.root}: its thumbnail is missing or damaged, convert its source"
                    " again"
                )
            yield data[len(head) :]

    objects.put_parts(fmt.THUMBNAILS_FILE, parts())


class ThumbnailFile:
    """`ThumbnailFile(root)[row]` is the (32,32,32) float16 thumbnail of a row of the index, from a disk or a URL.

    Behind a URL some rows are fetched at once and the last ones kept: they are mostly asked for one after the other.
    """

    def __init__(self, root: str | Path) -> None:
        self._objects = open_objects(root)
        self._mapped: np.ndarray | None = None
        self._first, self._size = 0, 0
        self._block, self._rows = -1, np.empty((0, *_SHAPE), _DTYPE)
        if isinstance(self._objects, LocalObjects):
            self._mapped = np.load(self._objects.path(fmt.THUMBNAILS_FILE), mmap_mode="r")
        else:
            self._size = self._objects.size(fmt.THUMBNAILS_FILE)
            self._first = self._size % _ROW_BYTES

    def __getitem__(self, row: int) -> np.ndarray:
        if self._mapped is not None:
            return self._mapped[row]
        block, position = divmod(row, _BLOCK)
        if block != self._block:
            first = self._first + block * _BLOCK * _ROW_BYTES
            end = min(first + _BLOCK * _ROW_BYTES, self._size)
            (data,) = self._objects.get_ranges(fmt.THUMBNAILS_FILE, [(first, end)])
            self._block, self._rows = block, np.frombuffer(data, _DTYPE).reshape(-1, *_SHAPE)
        return self._rows[position]


def _header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of float16 begins with."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": _DTYPE.str, "fortran_order": False, "shape": shape})
    return file.getvalue()
