"""MGH and MGZ, the volumes of FreeSurfer: a big-endian header, the voxels, tags behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader

from preprocessing.geometry import Scan, check_affine
from preprocessing.readers import contents, sniff, values
from preprocessing.readers.header import Header
from preprocessing.refusal import Refusal

EXTENSIONS = (".mgz", ".mgh")
_VERSION = b"\x00\x00\x00\x01"
_HEADER_BYTES = 284
_FIELD_BYTES = 90  # of them in use
_ORIENTED = 28  # where the flag "goodRASFlag" lies
_TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


@dataclass
class _File:
    """A parsed file."""

    dtype: np.dtype
    shape: tuple[int, int, int]
    frames: int
    affine: np.ndarray
    flags: list[str]


def _parse(path: Path) -> _File:
    """Everything but the voxels. Raises Refusal."""
    block = contents.head(path, sniff.HEAD_BYTES)
    sniff.check_is_no_impostor(block, _VERSION)
    if not block.startswith(_VERSION):
        raise Refusal("unreadable", "the file does not start with an MGH header")
    if len(block) < _HEADER_BYTES:
        raise Refusal("truncated", "the file ends inside its header")
    header = MGHHeader(block[:_FIELD_BYTES], check=False)
    shape = [int(n) for n in header["dims"]]
    if min(shape) <= 0:
        raise Refusal("bad_dimensions", f"an axis of {tuple(shape)} has no voxels")
    if int(header["type"]) not in _TYPES:
        raise Refusal("unsupported_type", f"the voxels' type has the unknown code {int(header['type'])}")
    dtype = np.dtype(_TYPES[int(header["type"])])
    if int.from_bytes(block[_ORIENTED : _ORIENTED + 2], "big") != 1:  # nibabel puts a guess in its place
        raise Refusal("no_orientation")
    sizes = header["delta"].astype(np.float64)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise Refusal("bad_spacing", f"voxel sizes of {', '.join(f'{s:g}' for s in sizes)} are no sizes")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused in the next line
        affine = np.asarray(header.get_affine(), dtype=np.float64)
    check_affine(affine)
    compressed = contents.is_gzip(path)
    needed = int(np.prod([*shape, dtype.itemsize], dtype=object))
    contents.check_size(path, 0 if compressed else _HEADER_BYTES, needed, compressed)
    named = path.name.lower().endswith(".mgz")
    return _File(
        dtype, (shape[0], shape[1], shape[2]), shape[3], affine, [] if named == compressed else ["misnamed"]
    )


def header(path: Path) -> Header:
    """Shape, frames and affine of a file. Raises Refusal."""
    file = _parse(path)
    return Header(file.shape, file.frames, file.affine)


def read(path: Path, frames: Sequence[int] | None) -> Iterator[Scan]:
    """The frames of a file, each (1, X, Y, Z). Raises Refusal."""
    file = _parse(path)
    size = int(np.prod(file.shape)) * file.dtype.itemsize
    wanted = range(file.frames) if frames is None else frames
    flags = list(file.flags)
    for data in contents.volumes(path, _HEADER_BYTES, size, file.frames, wanted, flags, footer=True):
        raw = np.frombuffer(data, file.dtype).reshape(file.shape, order="F")
        values.check_byte_order(raw)
        yield Scan(values.physical(raw)[None], file.affine, flags=sorted(set(flags)))
