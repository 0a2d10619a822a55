"""NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from preprocessing.geometry import Scan
from preprocessing.readers.header import Header
from preprocessing.refusal import Refusal

EXTENSIONS = (".nrrd", ".nhdr", ".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _affine(image: Any) -> np.ndarray:
    """4x4 (x, y, z, 1) -> RAS+ of an image or a reader; ITK's own world is LPS+."""
    n = image.GetDimension()
    affine = np.eye(4)
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(n, n)
    affine[:3, :3] = direction[:3, :3] * np.array(image.GetSpacing()[:3], dtype=np.float64)
    affine[:3, 3] = image.GetOrigin()[:3]
    return _LPS_TO_RAS @ affine


def _information(path: Path) -> Any:
    """The file's header. Raises Refusal for what is not a volume of one component."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetDimension() < 3:
        raise Refusal("too_few_slices", f"the image has {reader.GetDimension()} dimensions, a volume has 3")
    if reader.GetDimension() > 4:
        raise Refusal("unsupported_dimensions", f"the image has {reader.GetDimension()} dimensions")
    if reader.GetNumberOfComponents() > 1:
        raise Refusal("colour", f"each voxel holds {reader.GetNumberOfComponents()} components")
    return reader


def header(path: Path) -> Header:
    """Shape, frames and affine of a file."""
    reader = _information(path)
    size = reader.GetSize()
    return Header((size[0], size[1], size[2]), size[3] if len(size) == 4 else 1, _affine(reader))


def read(path: Path, frames: Sequence[int] | None) -> Iterator[Scan]:
    """The frames of a file, each (1, X, Y, Z)."""
    image = _information(path).Execute()
    array = sitk.GetArrayFromImage(image)
    series = array if array.ndim == 4 else array[None]
    for frame in range(len(series)) if frames is None else frames:
        volume = series[frame]
        if volume.dtype.kind not in "iu":
            volume = volume.astype(np.float32)
        yield Scan(volume.transpose(2, 1, 0)[None], _affine(image))
