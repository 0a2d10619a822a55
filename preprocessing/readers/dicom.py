"""DICOM files -> Scan: the files (and frames) of one volume, in any order, however they were stored.

`dicom_header` reads what objects say of themselves, `dicom_pixels` their values, `dicom_stack` builds the regular grid.
What cannot be placed in space without guessing is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preprocessing.geometry import Scan
from preprocessing.readers import dicom_stack
from preprocessing.readers.dicom_header import EXTENSIONS, is_dicom
from preprocessing.readers.dicom_pixels import Slice, read_file

__all__ = ["EXTENSIONS", "is_dicom", "read_series", "series_geometry"]

Selection = Sequence[Sequence[int]]


def _slices(paths: Sequence[Path], selection: Selection | None, pixels: bool) -> tuple[str, list[Slice]]:
    """(modality, slices) of the given frames of the files."""
    slices: list[Slice] = []
    modality = "other"
    for number, path in enumerate(paths):
        modality, found = read_file(path, selection[number] if selection else None, pixels)
        slices += found
    return modality, slices


def read_series(paths: Sequence[Path], selection: Selection | None = None, allow_gaps: bool = False) -> Scan:
    """One volume (1, columns, rows, slices) of physical values (HU for CT). Raises Refusal.

    `selection`: of each file, the frames that belong to it (None: all). `allow_gaps`: fill missing slices between
    their neighbours, flagged `interpolated_gaps` and invalid, since nobody measured them.
    """
    modality, slices = _slices(paths, selection, pixels=True)
    return dicom_stack.assemble(dicom_stack.order(slices, allow_gaps), modality)


def series_geometry(
    paths: Sequence[Path], selection: Selection | None = None
) -> tuple[tuple[int, int, int], np.ndarray]:
    """((columns, rows, slices), affine RAS+) of a volume from its headers alone. Raises Refusal."""
    return dicom_stack.grid(dicom_stack.order(_slices(paths, selection, pixels=False)[1], allow_gaps=True))
