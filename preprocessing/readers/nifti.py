"""NIfTI-1, NIfTI-2 and MGH/MGZ through nibabel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHImage
from nibabel.nifti1 import Nifti1Pair

from preprocessing.geometry import Scan
from preprocessing.readers.header import Header
from preprocessing.refusal import Refusal

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr")


def _open(path: Path) -> Any:
    """The image, whose file stays open between frames: a compressed series is decompressed once, not once a frame."""
    image: Any = nib.load(path, keep_file_open=True)
    if not isinstance(image, Nifti1Pair | MGHImage):
        raise Refusal("no_geometry", f"{type(image).__name__} files do not state where the patient's left is")
    dtype = image.get_data_dtype()
    if dtype.fields is not None:
        raise Refusal("colour")
    if dtype.kind not in "iuf":
        raise Refusal("unsupported_dimensions", f"voxels of type {dtype} are not real numbers")
    return image


def _extent(image: Any) -> tuple[tuple[int, int, int], int]:
    """((X, Y, Z), frames), axes of length one beyond the third ignored."""
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        raise Refusal("too_few_slices", f"the image has {len(shape)} dimensions, a volume has 3")
    if len(shape) > 4:
        raise Refusal("unsupported_dimensions", f"the image has {len(shape)} dimensions {shape}")
    return (shape[0], shape[1], shape[2]), (shape[3] if len(shape) == 4 else 1)


def _flags(image: Any) -> list[str]:
    """Which transform of a NIfTI header placed it, when that is not the sform."""
    if isinstance(image, MGHImage) or int(image.header["sform_code"]) > 0:
        return []
    return ["qform_used"] if int(image.header["qform_code"]) > 0 else ["no_orientation"]


def header(path: Path) -> Header:
    """Shape, frames and affine of a file."""
    image = _open(path)
    shape, frames = _extent(image)
    return Header(shape, frames, np.asarray(image.affine, dtype=np.float64))


def _native(data: np.ndarray) -> np.ndarray:
    """Integers as stored, in the machine's byte order; anything else float32."""
    if data.dtype.kind in "iu":
        return data.astype(data.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):
        return data.astype(np.float32)


def read(path: Path, frames: Sequence[int] | None) -> Iterator[Scan]:
    """The frames of a file, each (1, X, Y, Z), slope and intercept applied."""
    image = _open(path)
    shape, count = _extent(image)
    for frame in range(count) if frames is None else frames:
        proxy = image.dataobj
        full = np.asanyarray(proxy) if count == 1 else np.asanyarray(proxy[:, :, :, frame])
        yield Scan(_native(full.reshape(shape))[None], np.asarray(image.affine, dtype=np.float64), flags=_flags(image))
