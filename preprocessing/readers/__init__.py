"""Files -> Scan, a format family a module. `header` reads what discovery needs, `read` the voxels of one frame.

No file is believed: what lies under its name is looked at first (`sniff`), then header against size, then every
checksum (`contents`), then the values (`values`, and `plausible` for scans of all sources).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from preprocessing import isolation
from preprocessing.geometry import Scan, same_place
from preprocessing.readers import dicom, dicom_seg, metaimage, mgh, minc, nifti, nrrd, sniff
from preprocessing.readers.header import Header
from preprocessing.readers.nifti import header_file
from preprocessing.refusal import Refusal

__all__ = ["Header", "header", "header_file", "read", "read_segmentation", "read_series",
           "split_extension", "stack_channels"]  # fmt: skip

_READERS = {extension: module for module in (nifti, mgh, nrrd, metaimage, minc) for extension in module.EXTENSIONS}
_HEADER_TIMEOUT_S = 60.0
_HEADER_BYTES = 1 << 30
EXTENSIONS = tuple(sorted(_READERS, key=len, reverse=True))  # ".nii.gz" is tried before ".gz" could be
_CUT_SHORT = ("expected", "truncated", "end of file", "end-of-stream", "unexpected end", "not enough", "premature",
              "cannot reshape")  # fmt: skip


def split_extension(name: str) -> tuple[str, str]:
    """("case_001", ".nii.gz") of a volume file's name; ("anything.txt", "") when no reader takes it."""
    lower = name.lower()
    for extension in EXTENSIONS:
        if lower.endswith(extension) and len(name) > len(extension):
            return name[: -len(extension)], extension
    return name, ""


def _reason(error: Exception, paths: Sequence[Path]) -> Refusal:
    """The refusal that a decoder's exception amounts to; its text is kept, folders are cut out of it.

    Raises MemoryError where that is what it says.
    """
    if isinstance(error, Refusal):
        return error
    if isolation.is_out_of_memory(error):
        raise MemoryError(str(error)) from error
    if isinstance(error, FileNotFoundError):
        return Refusal("missing_file")
    if isinstance(error, PermissionError):
        return Refusal("no_permission")
    if isinstance(error, OSError) and error.errno is not None:
        return Refusal("read_error", f"the disk or network failed while the file was read ({error.strerror})")
    text = " ".join(str(error).split())
    for path in paths:
        text = text.replace(str(path), path.name).replace(str(path.parent), "")
    if isinstance(error, EOFError | zlib.error) or any(word in text.lower() for word in _CUT_SHORT):
        return Refusal("truncated")
    return Refusal("unreadable", f"the file could not be read as an image ({type(error).__name__}: {text[:160]})")


def header(path: Path) -> Header:
    """Shape, frames and affine of a volume file, without its voxels. Raises Refusal."""
    if _READERS[split_extension(path.name)[1]] is minc and minc.is_hdf5(path):  # a C library, which it may crash
        return isolation.run(_header_here, path, timeout_s=_HEADER_TIMEOUT_S, memory_bytes=_HEADER_BYTES)
    return _header_here(path)


def _header_here(path: Path) -> Header:
    """`header` in this very process."""
    try:
        sniff.check_is_file(path)
        return _READERS[split_extension(path.name)[1]].header(path)
    except Exception as error:  # whatever a library raises before a file that lies
        raise _reason(error, [path]) from error


def read(path: Path, frames: Sequence[int] | None = None) -> Iterator[Scan]:
    """The frames of a volume file in turn (all of them for None), each (1, X, Y, Z). Raises Refusal."""
    try:
        sniff.check_is_file(path)
        yield from _READERS[split_extension(path.name)[1]].read(path, frames)
    except Exception as error:  # whatever a library raises before a file that lies
        raise _reason(error, [path]) from error


def read_series(paths: Sequence[Path], selection: dicom.Selection | None = None, allow_gaps: bool = False) -> Scan:
    """One volume of DICOM files, which may come in any order. Raises Refusal. See `dicom.read_series`."""
    try:
        return dicom.read_series(paths, selection, allow_gaps)
    except Exception as error:  # whatever a library raises before a file that lies
        raise _reason(error, paths) from error


def read_segmentation(path: Path, image: Scan) -> Scan:
    """A DICOM SEG as the label of `image`, on its grid. Raises Refusal. See `dicom_seg.read_segmentation`."""
    try:
        return dicom_seg.read_segmentation(path, image)
    except Exception as error:  # whatever a library raises before a file that lies
        raise _reason(error, [path]) from error


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
