"""MetaImage, attached (.mha) and detached (.mhd), plain and zlib-compressed (definition: itk.org/Wiki/MetaIO)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from preprocessing.geometry import Scan
from preprocessing.readers import sniff
from preprocessing.readers.header import Header
from preprocessing.readers.raster import HEADER_LIMIT, Raster, beside, numbered, numbers, sizes_of
from preprocessing.refusal import Refusal

EXTENSIONS = (".mha", ".mhd")
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _fields(path: Path) -> tuple[dict[str, str], list[str], int]:
    """(fields by lower-case name, lines after "ElementDataFile = LIST", byte after the header). Raises Refusal."""
    with path.open("rb") as file:
        block = file.read(HEADER_LIMIT)
    magic = next((word for word in (b"ObjectType", b"NDims", b"Comment") if block.startswith(word)), None)
    sniff.check_is_no_impostor(block[: sniff.HEAD_BYTES], magic)
    if magic is None:
        raise Refusal("unreadable", "the file does not start with a MetaImage header")
    end = re.search(rb"^ElementDataFile\s*=[^\n]*(\n|$)", block, re.MULTILINE)
    if end is None:
        raise Refusal("truncated", "the header has no end")
    fields = {}
    for line in block[: end.end()].decode("latin-1").splitlines():
        name, equals, value = line.partition("=")
        if equals:
            fields[name.strip().lower()] = value.strip()
    rest = block[end.end() :].decode("latin-1").splitlines() if fields["elementdatafile"].startswith("LIST") else []
    return fields, [line.strip() for line in rest if line.strip()], end.end()


def _first(fields: dict[str, str], *names: str) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _true(fields: dict[str, str], *names: str) -> bool:
    return (_first(fields, *names) or "").lower() in ("true", "1")


def _files(path: Path, stated: str, listed: list[str]) -> list[Path]:
    """The files that hold the voxels."""
    if stated.upper() == "LOCAL":
        return [path]
    if stated.startswith("LIST"):
        return [beside(path, name) for name in listed] or [beside(path, "")]
    pattern = re.fullmatch(r"(\S*%\S*) (-?\d+) (-?\d+)(?: (-?\d+))?", stated)
    if pattern:
        return numbered(path, pattern[1], int(pattern[2]), int(pattern[3]), int(pattern[4] or 1))
    return [beside(path, stated)]


def _affine(fields: dict[str, str], dimension: int) -> np.ndarray:
    """(x, y, z, 1) -> world mm RAS+. Raises Refusal: no_orientation, bad_spacing."""
    matrix = _first(fields, "transformmatrix", "rotation", "orientation")
    if matrix is None:
        raise Refusal("no_orientation", "the header states no TransformMatrix")
    stated = _first(fields, "elementspacing", "elementsize")
    if stated is None:
        raise Refusal("bad_spacing", "the header states no ElementSpacing")
    spacing = np.array(numbers(stated, dimension, "spacing"))
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise Refusal("bad_spacing", f"voxel sizes of {stated} are no sizes")
    axes = np.array(numbers(matrix, dimension**2, "matrix")).reshape(dimension, dimension)  # a row an axis
    origin = numbers(_first(fields, "offset", "position", "origin") or "0 " * dimension, dimension, "offset")
    affine = np.eye(4)
    affine[:3, :3] = axes[:3, :3].T * spacing[:3]
    affine[:3, 3] = origin[:3]
    return _LPS_TO_RAS @ affine


def _parse(path: Path) -> Raster:
    """Everything but the voxels. Raises Refusal."""
    fields, listed, end = _fields(path)
    dimension = sizes_of(fields.get("ndims", ""), 1)[0]
    if dimension < 3:
        raise Refusal("too_few_slices", f"the image has {dimension} dimensions, a volume has 3")
    if dimension > 4:
        raise Refusal("unsupported_dimensions", f"the image has {dimension} dimensions")
    components = sizes_of(fields.get("elementnumberofchannels", "1"), 1)[0]
    if components != 1:
        raise Refusal("colour" if components in (3, 4) else "vector_voxels", f"each voxel holds {components} values")
    kind = fields.get("elementtype", "").upper()
    if kind not in _TYPES:
        raise Refusal("unsupported_type", f"voxels of type '{kind[:40]}' are not read")
    if not _true(fields, "binarydata"):
        raise Refusal("unsupported_encoding", "voxels written as text are not read")
    big = _true(fields, "binarydatabyteordermsb", "elementbyteordermsb")
    files = _files(path, fields["elementdatafile"], listed)
    local = files == [path]
    skip = sizes_of(fields.get("headersize", "0"), 1)[0]
    compressed = _true(fields, "compresseddata")
    if skip < -1 or (skip and (local or compressed)):
        raise Refusal("bad_offset", f"a header size of {skip} does not say where the voxels lie")
    raster = Raster(
        files,
        end if local else skip,
        compressed,
        np.dtype((">" if big else "<") + _TYPES[kind]),
        sizes_of(fields.get("dimsize", ""), dimension),
        3 if dimension == 4 else None,
        _affine(fields, dimension),
    )
    raster.check()
    return raster


def header(path: Path) -> Header:
    """Shape, frames and affine of a file. Raises Refusal."""
    return _parse(path).header()


def read(path: Path, frames: Sequence[int] | None) -> Iterator[Scan]:
    """The frames of a file, each (1, X, Y, Z). Raises Refusal."""
    yield from _parse(path).scans(frames)
