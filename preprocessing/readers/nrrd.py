"""NRRD, attached (.nrrd) and detached (.nhdr), raw and gzip (definition: teem.sourceforge.net/nrrd/format.html)."""

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

EXTENSIONS = (".nrrd", ".nhdr")
_MAGIC = b"NRRD000"
_WORDS = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPES = {word: code for code, words in _WORDS.items() for word in words.split(", ")}
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
_FRAMES = ("list", "time", "???", "none", "")  # kinds of a fourth axis along which whole volumes lie
_COLOURS = ("rgb-color", "rgba-color", "hsv-color", "3-color", "4-color", "xyz-color")


def _fields(path: Path) -> tuple[dict[str, str], list[str], int]:
    """(fields by lower-case name, lines after "data file: LIST", byte after the header). Raises Refusal."""
    with path.open("rb") as file:
        block = file.read(HEADER_LIMIT)
    sniff.check_is_no_impostor(block[: sniff.HEAD_BYTES], _MAGIC)
    if not block.startswith(_MAGIC):
        raise Refusal("unreadable", "the file does not start with an NRRD header")
    end = re.search(rb"\r?\n\r?\n", block)
    text = block[: end.start()] if end else block
    fields: dict[str, str] = {}
    listed: list[str] | None = None
    for line in text.decode("latin-1").splitlines()[1:]:
        name, colon, value = line.partition(": ")
        if listed is not None:
            listed.append(line.strip())
        elif not line.startswith("#") and colon and ":=" not in name:
            fields[name.strip().lower().replace("datafile", "data file")] = value.strip()
            if fields.get("data file", "").upper().startswith("LIST"):
                listed = []
    if end is None and "data file" not in fields:
        raise Refusal("truncated", "the header has no end")
    return fields, listed or [], end.end() if end else len(block)


def _files(path: Path, fields: dict[str, str], listed: list[str]) -> list[Path]:
    """The files that hold the voxels."""
    stated = fields.get("data file")
    if stated is None:
        return [path]
    if stated.upper().startswith("LIST"):
        return [beside(path, name) for name in listed if name] or [beside(path, "")]
    pattern = re.fullmatch(r"(\S*%\S*) (-?\d+) (-?\d+) (-?\d+)( \d+)?", stated)
    if pattern:
        return numbered(path, pattern[1], int(pattern[2]), int(pattern[3]), int(pattern[4]))
    return [beside(path, stated)]


def _affine(fields: dict[str, str], directions: list[str]) -> np.ndarray:
    """(x, y, z, 1) -> world mm RAS+ from the vectors of the three axes. Raises Refusal."""
    signs = _TO_RAS.get(fields.get("space", "").lower())
    if signs is None:
        raise Refusal("no_orientation", "the header names no space such as left-posterior-superior")
    affine = np.eye(4)
    for axis, vector in enumerate(directions):
        affine[:3, axis] = numbers(vector.strip("()").replace(",", " "), 3, "direction")
    origin = fields.get("space origin")
    if origin is not None:
        affine[:3, 3] = numbers(origin.strip("()").replace(",", " "), 3, "origin")
    return np.diag([*signs, 1.0]) @ affine


def _frame_axis(fields: dict[str, str], directions: list[str]) -> int | None:
    """The axis along which whole volumes lie; None for one volume. Raises Refusal for what is no such thing."""
    spatial = [axis for axis, vector in enumerate(directions) if vector.lower() != "none"]
    others = [axis for axis in range(len(directions)) if axis not in spatial]
    kinds = fields.get("kinds", "").lower().split() or [""] * len(directions)
    if len(kinds) != len(directions):
        raise Refusal("corrupt_header", f"{len(kinds)} kinds are stated for {len(directions)} axes")
    for axis in others:
        if kinds[axis] in _COLOURS:
            raise Refusal("colour")
        if kinds[axis] == "complex":
            raise Refusal("complex")
        if kinds[axis] not in _FRAMES:
            raise Refusal("vector_voxels", f"each voxel holds a {kinds[axis]}")
    if len(spatial) < 3:
        raise Refusal("too_few_slices", f"the image has {len(spatial)} axes in space, a volume has 3")
    if len(spatial) > 3 or len(others) > 1:
        raise Refusal("unsupported_dimensions", f"the image has {len(directions)} dimensions")
    return others[0] if others else None


def _type(fields: dict[str, str]) -> np.dtype:
    """The voxels' type. Raises Refusal."""
    code = _TYPES.get(fields.get("type", "").lower())
    if code is None:
        raise Refusal("unsupported_type", f"voxels of type '{fields.get('type', '')[:40]}' are not read")
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    if order is None and code[1] != "1":
        raise Refusal("corrupt_header", "the byte order of the voxels is not stated")
    return np.dtype(f"{order or '<'}{code}")


def _parse(path: Path) -> Raster:
    """Everything but the voxels. Raises Refusal."""
    fields, listed, end = _fields(path)
    dimension = sizes_of(fields.get("dimension", ""), 1)[0]
    dtype = _type(fields)
    if not 1 <= dimension <= 16:
        raise Refusal("bad_dimensions", f"the header speaks of {dimension} dimensions")
    sizes = sizes_of(fields.get("sizes", ""), dimension)
    if "space directions" not in fields:
        if dimension < 3:
            raise Refusal("too_few_slices", f"the image has {dimension} dimensions, a volume has 3")
        raise Refusal("no_orientation", "the header states no space directions")
    directions = re.findall(r"\([^)]*\)|none", fields["space directions"], re.IGNORECASE)
    if len(directions) != dimension:
        raise Refusal("corrupt_header", f"{len(directions)} directions are stated for {dimension} axes")
    frame_axis = _frame_axis(fields, directions)
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise Refusal("unsupported_encoding", f"the encoding '{encoding[:40]}' is not read, raw and gzip are")
    if fields.get("line skip", "0") not in ("0", "") or (fields.get("byte skip", "0") != "0" and encoding != "raw"):
        raise Refusal("unsupported_encoding", "skipped lines, or skipped bytes of compressed voxels, are not read")
    skip = sizes_of(fields.get("byte skip", "0"), 1)[0]
    files = _files(path, fields, listed)
    offset = -1 if skip == -1 else skip + (end if files == [path] else 0)
    if skip < -1:
        raise Refusal("bad_offset", f"{skip} bytes before the voxels cannot be skipped")
    affine = _affine(fields, [d for d in directions if d.lower() != "none"])
    raster = Raster(files, offset, encoding != "raw", dtype, sizes, frame_axis, affine)
    raster.check()
    return raster


def header(path: Path) -> Header:
    """Shape, frames and affine of a file. Raises Refusal."""
    return _parse(path).header()


def read(path: Path, frames: Sequence[int] | None) -> Iterator[Scan]:
    """The frames of a file, each (1, X, Y, Z). Raises Refusal."""
    yield from _parse(path).scans(frames)
