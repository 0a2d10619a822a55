"""DICOM SEG -> a label on the grid of the scan it belongs to. Contours (RT Structure Set) are not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from preprocessing.geometry import Scan
from preprocessing.readers.dicom_header import check_file
from preprocessing.readers.dicom_pixels import quiet
from preprocessing.refusal import Refusal

_MAY_BE_LOST = 0.01  # share of labelled voxels outside the scan: partial voxels at its border


def read_segmentation(path: Path, image: Scan) -> Scan:
    """Segment numbers (1, X, Y, Z) on the voxels of `image`, nearest neighbour; 0 where nothing is segmented.

    A segmentation may cover fewer slices than its image. Raises Refusal: label_unreadable, label_overlap,
    label_not_integer, label_affine_mismatch.
    """
    check_file(path)
    values, affine = _volume(path)
    shape = image.data.shape[1:]
    to_label = np.linalg.inv(affine) @ image.affine
    label = ndimage.affine_transform(values, to_label[:3, :3], to_label[:3, 3], shape, order=0, mode="constant")
    members = np.argwhere(values > 0)
    places = np.linalg.inv(image.affine) @ affine @ np.c_[members, np.ones(len(members))].T
    outside = ((places[:3] < -0.5) | (places[:3] > np.array(shape)[:, None] - 0.5)).any(axis=0)
    if len(members) and outside.mean() > _MAY_BE_LOST:
        raise Refusal("label_affine_mismatch", f"{outside.mean():.0%} of the segmented voxels lie outside the scan")
    return Scan(label[None], image.affine)


def _volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(segment numbers (slices, rows, columns), affine RAS+) of a segmentation."""
    with quiet():
        import highdicom

        try:
            segmentation = highdicom.seg.segread(path)
            volume = segmentation.get_volume(combine_segments=True)
        except (ValueError, RuntimeError, AttributeError, TypeError, KeyError, IndexError, OSError) as error:
            if isinstance(error, RuntimeError) and "overlap" in str(error).lower():
                raise Refusal("label_overlap") from error
            if isinstance(error, ValueError) and "fractional" in str(error).lower():
                raise Refusal("label_not_integer", "the segmentation holds shares of segments, not classes") from error
            raise Refusal("label_unreadable", f"a DICOM SEG could not be read ({type(error).__name__})") from error
    return np.asarray(volume.array), np.asarray(volume.get_affine("RAH"), dtype=np.float64)
