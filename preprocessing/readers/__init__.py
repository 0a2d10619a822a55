"""Files -> Scan, a format family a module. `header` reads what discovery needs, `read` the voxels of one frame."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from preprocessing.geometry import Scan, same_place
from preprocessing.readers import dicom, itk, nifti
from preprocessing.readers.header import Header
from preprocessing.refusal import Refusal

__all__ = ["Header", "header", "read", "read_series", "split_extension", "stack_channels"]

_READERS = dict.fromkeys(nifti.EXTENSIONS, nifti) | dict.fromkeys(itk.EXTENSIONS, itk)
EXTENSIONS = tuple(sorted(_READERS, key=len, reverse=True))  # ".nii.gz" is tried before ".gz" could be
_CUT_SHORT = ("expected", "truncated", "end of file", "end-of-stream", "unexpected end", "not enough", "premature")
_FAILURES = (OSError, EOFError, ValueError, RuntimeError, KeyError, TypeError, ArithmeticError, IndexError,
             NotImplementedError, AttributeError, zlib.error, ImageFileError, HeaderDataError)  # fmt: skip


def split_extension(name: str) -> tuple[str, str]:
    """("case_001", ".nii.gz") of a volume file's name; ("anything.txt", "") when no reader takes it."""
    lower = name.lower()
    for extension in EXTENSIONS:
        if lower.endswith(extension) and len(name) > len(extension):
            return name[: -len(extension)], extension
    return name, ""


def _reason(error: Exception, paths: Sequence[Path]) -> Refusal:
    """The refusal that a decoder's exception amounts to; its text is kept, folders are cut out of it."""
    if isinstance(error, Refusal):
        return error
    text = " ".join(str(error).split())
    for path in paths:
        text = text.replace(str(path), path.name).replace(str(path.parent), "")
    if isinstance(error, EOFError | zlib.error) or any(word in text.lower() for word in _CUT_SHORT):
        return Refusal("truncated")
    return Refusal("unreadable", f"the file could not be read as an image ({type(error).__name__}: {text[:160]})")


def _check_present(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise Refusal("missing_file", f"{path.name} is not there")
        if path.stat().st_size == 0:
            raise Refusal("empty_file", f"{path.name} has no bytes")


def header(path: Path) -> Header:
    """Shape, frames and affine of a volume file, without its voxels. Raises Refusal."""
    try:
        _check_present([path])
        return _READERS[split_extension(path.name)[1]].header(path)
    except _FAILURES as error:
        raise _reason(error, [path]) from error


def read(path: Path, frames: Sequence[int] | None = None) -> Iterator[Scan]:
    """The frames of a volume file in turn (all of them for None), each (1, X, Y, Z). Raises Refusal."""
    try:
        _check_present([path])
        yield from _READERS[split_extension(path.name)[1]].read(path, frames)
    except _FAILURES as error:
        raise _reason(error, [path]) from error


def read_series(paths: Sequence[Path]) -> Scan:
    """The volume of a DICOM series, whose files may come in any order. Raises Refusal."""
    try:
        _check_present(paths)
        return dicom.read_series(paths)
    except _FAILURES as error:
        raise _reason(error, paths) from error


def stack_channels(scans: Sequence[Scan]) -> Scan:
    """Scans of one case as the channels of one volume. Raises Refusal `channel_mismatch` when their grids differ."""
    first = scans[0]
    for number, scan in enumerate(scans):
        if scan.data.shape[1:] != first.data.shape[1:]:
            raise Refusal(
                "channel_mismatch",
                f"channel {number} has {scan.data.shape[1:]} voxels, channel 0 has {first.data.shape[1:]}",
            )
        if not same_place(scan.data.shape[1:], first.affine, scan.affine):
            raise Refusal("channel_mismatch", f"channel {number} lies elsewhere in the world than channel 0")
    data = np.concatenate([scan.data for scan in scans])
    return Scan(data, first.affine, flags=list(first.flags))
