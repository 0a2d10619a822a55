"""NIfTI-1 and NIfTI-2, single files and pairs, compressed or not, whatever their names say.

nibabel parses the header and the transforms. The voxels are cut out of verified bytes, see `contents`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from preprocessing.geometry import Scan, check_affine, corner_distance, spacing_of
from preprocessing.readers import contents, sniff, values
from preprocessing.readers.header import Header
from preprocessing.refusal import Refusal

EXTENSIONS = (".nii.gz", ".nii", ".hdr", ".img", ".hdr.gz", ".img.gz")
QFORM_DIFFERS_MM = 1.0  # at a corner of the volume
_PIXDIM_DIFFERS = 0.01  # relative
_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}  # of the header's unit of length: unknown, metre, mm, micrometre
_LONGEST_TYPE = 8  # bytes; the long double of the format has no one layout


@dataclass
class _File:
    """A parsed file: `voxels` lie in that file from `offset` on, value = slope * stored + inter."""

    voxels: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, int, int]
    frames: int
    slope: float
    inter: float
    affine: np.ndarray
    flags: list[str] = field(default_factory=list)


def header_file(path: Path) -> Path:
    """The file that stands for a volume: an .img's own header where it has one, else `path` itself."""
    name = path.name
    for suffix in (".img", ".img.gz"):
        if name.lower().endswith(suffix):
            stem = name[: -len(suffix)]
            for partner in (".hdr", ".HDR", ".hdr.gz", ".HDR.gz"):
                if (path.parent / (stem + partner)).is_file():
                    return path.parent / (stem + partner)
    return path


def _voxel_file(path: Path) -> Path:
    """The .img of a .hdr. Raises Refusal `missing_data`."""
    stem = path.name[: path.name.lower().rindex(".hdr")]
    for partner in (".img", ".IMG", ".img.gz", ".IMG.gz"):
        if (path.parent / (stem + partner)).is_file():
            found = path.parent / (stem + partner)
            sniff.check_is_file(found)
            return found
    raise Refusal("missing_data", f"{stem}.img, which holds the voxels, is not beside the header")


def _header(block: bytes) -> tuple[Any, bool]:
    """(nibabel's header as the bytes have it, nothing mended; whether it is a single file). Raises Refusal."""
    sniff.check_is_no_impostor(block)
    for kind, size in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540)):
        for order in "<>":
            stated = int(np.frombuffer(block[:4].ljust(4, b"\0"), f"{order}i4")[0])
            if stated != size:
                continue
            if len(block) < size:
                raise Refusal("truncated", "the file ends inside its header")
            header = kind(block[:size], endianness=order, check=False)
            magic = bytes(header["magic"].item())
            if magic[:3] not in (b"n+1", b"ni1", b"n+2", b"ni2"):
                raise Refusal("analyze")
            if not 1 <= int(header["dim"][0]) <= 7:
                other = int(header["dim"][0].byteswap())
                if 1 <= other <= 7:
                    raise Refusal("byte_order", "the parts of the header are not in one byte order")
                raise Refusal("bad_dimensions", f"the header speaks of {int(header['dim'][0])} dimensions, not 1 to 7")
            return header, magic[1:2] == b"+"
    if len(block) < 348:
        raise Refusal("truncated", "the file ends inside its header")
    if b"n+1" in block[344:348] or b"ni1" in block[344:348] or block[4:7] in (b"n+2", b"ni2"):
        raise Refusal("corrupt_header", "the size that the header states of itself is wrong")
    raise Refusal("unreadable", "the file does not start with a NIfTI header")


def _extent(header: Any) -> tuple[tuple[int, int, int], int]:
    """((X, Y, Z), frames), axes of length one beyond the third ignored. Raises Refusal."""
    shape = [int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])]]
    if min(shape) <= 0:
        raise Refusal("bad_dimensions", f"an axis of {tuple(shape)} has no voxels")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) < 3:
        raise Refusal("too_few_slices", f"the image has {len(shape)} dimensions, a volume has 3")
    if len(shape) > 4:
        raise Refusal("unsupported_dimensions", f"the image has {len(shape)} dimensions {tuple(shape)}")
    return (shape[0], shape[1], shape[2]), (shape[3] if len(shape) == 4 else 1)


def _type(header: Any) -> np.dtype:
    """The stored type, in the file's byte order. Raises Refusal: colour, complex, unsupported_type."""
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise Refusal("unsupported_type", f"the voxels' type has the unknown code {int(header['datatype'])}") from error
    if dtype.fields is not None:
        raise Refusal("colour")
    if dtype.kind == "c":
        raise Refusal("complex")
    if dtype.kind not in "iuf" or not 0 < dtype.itemsize <= _LONGEST_TYPE:
        raise Refusal("unsupported_type", f"voxels of type {dtype} are not read")
    return dtype


def _scaling(header: Any) -> tuple[float, float]:
    """(slope, intercept). A slope of zero or NaN means none, as the format says. Raises Refusal `bad_scaling`."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0.0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(inter):
        raise Refusal("bad_scaling", f"slope {slope:g} and intercept {inter:g} give no values")
    return slope, inter


def _offset(header: Any, single: bool) -> int:
    """Bytes before the first voxel. Raises Refusal `bad_offset`."""
    offset = float(header["vox_offset"])
    least = float(header.single_vox_offset) if single else 0.0
    if single and offset == 0.0:  # what old writers mean by "right behind the header"
        return int(least)
    if not np.isfinite(offset) or offset < least or offset != int(offset):
        raise Refusal("bad_offset", f"the voxels are said to start at byte {offset:g}, the earliest is {least:g}")
    return int(offset)


def _qform(header: Any) -> np.ndarray:
    """The qform's affine in the header's unit. Raises Refusal for quaternions and voxel sizes that give none."""
    sizes = header["pixdim"][1:4].astype(np.float64)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise Refusal("bad_spacing", f"voxel sizes of {', '.join(f'{s:g}' for s in sizes)} are no sizes")
    proper = header.copy()
    if float(proper["pixdim"][0]) not in (-1.0, 1.0):
        proper["pixdim"][0] = 1.0  # the format: anything else counts as 1
    try:
        return np.asarray(proper.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise Refusal("affine_not_finite", "the quaternion of the qform is none") from error


def _attempt(header: Any, which: str, unit: float) -> np.ndarray | Refusal | None:
    """The sform's or qform's affine in mm, why it cannot be used, or None where it is not coded."""
    if int(header[f"{which}_code"]) <= 0:
        return None
    try:
        affine = np.asarray(header.get_sform(), dtype=np.float64) if which == "sform" else _qform(header)
        affine[:3] *= unit
        check_affine(affine)
    except Refusal as refusal:
        return refusal
    return affine


def _place(header: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    """(affine in mm, flags). A valid sform wins; else a valid qform is taken, flagged `qform_used`.

    `qform_differs`: both are valid and put a corner more than 1 mm apart; `pixdim_differs`: the voxel sizes stated
    beside the sform are not its own. Raises Refusal `no_orientation`, or why neither can be used.
    """
    unit = _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    sform, qform = _attempt(header, "sform", unit), _attempt(header, "qform", unit)
    if isinstance(sform, np.ndarray):
        flags = []
        if isinstance(qform, np.ndarray) and corner_distance(shape, sform, qform) > QFORM_DIFFERS_MM:
            flags.append("qform_differs")
        if not np.allclose(header["pixdim"][1:4] * unit, spacing_of(sform), rtol=_PIXDIM_DIFFERS):
            flags.append("pixdim_differs")
        return sform, flags
    if isinstance(qform, np.ndarray):
        return qform, ["qform_used"]
    raise sform or qform or Refusal("no_orientation")


def _parse(path: Path) -> _File:
    """Everything but the voxels, checked against the size of the file that holds them. Raises Refusal."""
    if header_file(path) == path and path.name.lower().endswith((".img", ".img.gz")):
        raise Refusal("missing_header", f"{path.name} has no .hdr beside it")
    path = header_file(path)
    block, compressed = contents.opening(path, max(_HEADER_BYTES, sniff.HEAD_BYTES))
    header, single = _header(block)
    shape, frames = _extent(header)
    dtype = _type(header)
    slope, inter = _scaling(header)
    offset = _offset(header, single)
    flags = [] if compressed == path.name.lower().endswith(".gz") else ["misnamed"]
    affine, placing = _place(header, shape)
    if single == path.name.lower().endswith((".hdr", ".hdr.gz")):
        raise Refusal("wrong_format", f"the header says that the voxels are {'inside' if single else 'beside'} it")
    voxels = path
    if not single:
        voxels = _voxel_file(path)
        compressed = contents.is_gzip(voxels)
    size = int(np.prod([*shape, frames, dtype.itemsize], dtype=object))
    contents.check_size(voxels, 0 if compressed else offset, size, compressed)
    return _File(voxels, offset, dtype, shape, frames, slope, inter, affine, flags + placing)


def header(path: Path) -> Header:
    """Shape, frames and affine of a file. Raises Refusal."""
    file = _parse(path)
    return Header(file.shape, file.frames, file.affine)


def read(path: Path, frames: Sequence[int] | None) -> Iterator[Scan]:
    """The frames of a file, each (1, X, Y, Z), slope and intercept applied. Raises Refusal."""
    file = _parse(path)
    size = int(np.prod(file.shape)) * file.dtype.itemsize
    wanted = range(file.frames) if frames is None else frames
    flags = list(file.flags)
    for data in contents.volumes(file.voxels, file.offset, size, file.frames, wanted, flags):
        raw = np.frombuffer(data, file.dtype).reshape(file.shape, order="F")
        values.check_byte_order(raw)
        yield Scan(values.physical(raw, file.slope, file.inter)[None], file.affine, flags=sorted(set(flags)))
