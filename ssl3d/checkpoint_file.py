"""One checkpoint file: plain types and tensors, written whole or not at all, with a digest of every byte.

The file is what torch.save makes, a zip archive, and any torch reads it. torch checks no checksum when it reads, so a
flipped bit in a weight would go unnoticed; the digest stands in the archive's comment, and moves with the file.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

# Where other programs keep weights in a folder, most particular first (nnU-Net and its hub, MONAI bundles, hubs).
PUBLISHED = (
    "checkpoint_final.pth", "fold_0/checkpoint_final.pth", "fold_all/checkpoint_final.pth", "checkpoint.pth",
    "models/model.pt", "model.safetensors", "model.pt", "pytorch_model.bin",
)  # fmt: skip
_MARK = b"blake2b "
_COMMENT = len(_MARK) + 2 * 16
_BLOCK = 1 << 22


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a neighbour file, flush it to the disk, rename it to `path`.

    Raises OSError when the disk is full or closed; nothing is left of the attempt then.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            hashed = _Hashed(file)
            try:
                torch.save(dict(content), hashed)  # type: ignore[arg-type]
            except Exception as error:
                raise hashed.error or error from error  # torch wraps what its file raised
            hashed.finish()
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any]:
    """The content of a file on the CPU. Raises ValueError with one sentence naming the file."""
    try:
        if not _is_whole(path):
            raise ValueError("its bytes do not have the digest written with them")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is damaged or no checkpoint of ssl3d ({reason})") from None


def is_signed(path: Path) -> bool:
    """Whether a file ends with a digest as `write` leaves it, right or wrong."""
    if path.stat().st_size < 2 + _COMMENT:
        return False
    with path.open("rb") as file:
        file.seek(-_COMMENT, os.SEEK_END)
        return file.read(len(_MARK)) == _MARK


class _Hashed:
    """A file to be written from beginning to end, and the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.blake2b(digest_size=16)
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self._hash.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> None:
        """Put the digest into the archive's comment, whose length is the last field of an archive without one."""
        self._file.seek(-2, os.SEEK_END)
        self._file.write(struct.pack("<H", _COMMENT) + _MARK + self._hash.hexdigest().encode())


def _is_whole(path: Path) -> bool:
    """Whether the bytes of a file are those that its comment has the digest of."""
    left = path.stat().st_size - 2 - _COMMENT
    hashed = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while left > 0:
            block = file.read(min(_BLOCK, left))
            if not block:
                return False
            hashed.update(block)
            left -= len(block)
        tail = file.read()
    hashed.update(b"\0\0")  # the length of the comment before there was one
    return tail == struct.pack("<H", _COMMENT) + _MARK + hashed.hexdigest().encode()
