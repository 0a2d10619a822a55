"""MINC 1 (netCDF) and MINC 2 (HDF5) through nibabel; MINC 2 needs h5py, which is an extra."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from preprocessing.geometry import Scan, check_affine
from preprocessing.readers import sniff, values
from preprocessing.readers.header import Header
from preprocessing.refusal import Refusal

EXTENSIONS = (".mnc",)
_HDF5 = b"\x89HDF"
_NETCDF = b"CDF"


def is_hdf5(path: Path) -> bool:
    """Whether a file, if it is one, is MINC 2 by its first bytes."""
    if not path.is_file() or not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def _open(path: Path) -> Any:
    """nibabel's image. Raises Refusal `missing_library` for MINC 2 without h5py."""
    with path.open("rb") as file:
        block = file.read(sniff.HEAD_BYTES)
    magic = next((word for word in (_HDF5, _NETCDF) if block.startswith(word)), None)
    sniff.check_is_no_impostor(block, magic)
    if magic is None:
        raise Refusal("unreadable", "the file is neither netCDF nor HDF5, as MINC is")
    if magic == _HDF5 and importlib.util.find_spec("h5py") is None:
        raise Refusal("missing_library", "MINC 2 files need h5py: pip install 'ssl3d[minc]'")
    image: Any = nib.load(path)
    if len(image.shape) != 3:
        reason = "too_few_slices" if len(image.shape) < 3 else "unsupported_dimensions"
        raise Refusal(reason, f"the image has {len(image.shape)} dimensions, a volume has 3")
    if min(image.shape) <= 0:
        raise Refusal("bad_dimensions", f"an axis of {image.shape} has no voxels")
    check_affine(np.asarray(image.affine, dtype=np.float64))
    return image


def header(path: Path) -> Header:
    """Shape, frames and affine of a file. Raises Refusal."""
    image = _open(path)
    x, y, z = (int(n) for n in image.shape)
    return Header((x, y, z), 1, np.asarray(image.affine, dtype=np.float64))


def read(path: Path, frames: Sequence[int] | None) -> Iterator[Scan]:
    """The volume of a file, (1, X, Y, Z) for each of `frames`. Raises Refusal."""
    image = _open(path)
    for _ in range(1) if frames is None else frames:
        array = values.physical(np.asarray(image.dataobj))
        yield Scan(array[None], np.asarray(image.affine, dtype=np.float64))
