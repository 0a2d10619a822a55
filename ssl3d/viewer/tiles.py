"""A volume of bytes as one picture: its slices in rows of tiles, in a grey PNG that a browser decodes by itself."""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def columns(shape: tuple[int, int, int]) -> int:
    """Tiles in a row, for a picture that is about square: browsers limit its longer side."""
    depth, height, width = shape
    return min(depth, max(1, round(math.sqrt(depth * height / width))))


def tile(volume: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(D,H,W) -> slice z at row z // columns and column z % columns of tiles (H,W); tiles left over are 0."""
    depth, height, width = volume.shape
    across = columns((depth, height, width))
    down = -(-depth // across)
    padded = np.zeros((down * across, height, width), np.uint8)
    padded[:depth] = volume
    return padded.reshape(down, across, height, width).swapaxes(1, 2).reshape(down * height, across * width)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Grey pixels (rows, columns) as a PNG without colour profile or gamma: a canvas gives back these very numbers.

    Rows are not filtered: of noisy scans that saves less than a tenth, of labels nothing.
    """
    height, width = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    parts = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
             for name, data in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
