"""DICOM series: slices sorted by position along their normal, each with its own rescale, checked for gaps.

Classic single-frame series and enhanced multi-frame objects are read into the same list of slices, so that both pass
the same checks. What cannot be placed in space without guessing is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder

from preprocessing.geometry import MIN_SLICES, Scan
from preprocessing.refusal import Refusal

EXTENSIONS = (".dcm", ".dicom", ".ima")
_MODALITIES = {"CT": "ct", "MR": "mr", "PT": "pet"}
_IDENTITY_TAGS = ["SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "PatientID", "PatientName", "Modality",
                  "Rows", "Columns"]  # fmt: skip
_PARALLEL = 1e-3  # largest difference of two direction cosines that count as parallel
_ANGLE_LOST = "the orientation of the slices is not stated"


@dataclass(frozen=True)
class Identity:
    """Whose and which series a file belongs to. Stays in memory: nothing of it is written to a store."""

    series: str
    study: str
    instance: str
    patient: str
    name: str
    modality: str


@dataclass
class Slice:
    """One picture in space: `position` (3,) and `axes` (2, 3) in LPS+, `spacing` between rows and between columns."""

    pixels: np.ndarray
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    slope: float
    intercept: float
    padding: float | None


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's magic word, whatever its name."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _load(path: Path, **options: Any) -> pydicom.Dataset:
    """A data set; files without the preamble are accepted when their name says DICOM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=path.suffix.lower() in EXTENSIONS, **options)


def identify(path: Path) -> Identity | None:
    """The series a file belongs to; None for DICOM objects without pixels. Raises Refusal when it is no DICOM file."""
    if path.stat().st_size == 0:
        raise Refusal("empty_file", f"{path.name} has no bytes")
    try:
        data = _load(path, stop_before_pixels=True, specific_tags=_IDENTITY_TAGS)
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise Refusal("unreadable", f"{path.name} could not be read as DICOM") from error
    if "SOPInstanceUID" not in data:
        raise Refusal("unreadable", f"{path.name} could not be read as DICOM")
    if "Rows" not in data or "Columns" not in data:
        return None
    instance = str(data.SOPInstanceUID)
    series = str(data.get("SeriesInstanceUID", "") or instance)
    return Identity(
        series=series,
        study=str(data.get("StudyInstanceUID", "") or series),
        instance=instance,
        patient=str(data.get("PatientID", "") or "").strip(),
        name=str(data.get("PatientName", "") or "").strip(),
        modality=_MODALITIES.get(str(data.get("Modality", "")), "other"),
    )


def _pixels(data: pydicom.Dataset) -> np.ndarray:
    """Stored values (frames, rows, columns). Raises Refusal `missing_decoder` naming the compression."""
    if int(data.get("SamplesPerPixel", 1)) != 1:
        raise Refusal("colour")
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise Refusal(
            "missing_decoder",
            f"no decoder for {syntax.name} is installed: pip install pylibjpeg pylibjpeg-openjpeg pylibjpeg-libjpeg",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = data.pixel_array
    return pixels if pixels.ndim == 3 else pixels[None]


def _find(groups: Sequence[Any], sequence: str, attribute: str) -> Any:
    """`attribute` of a functional group (enhanced) or of the data set itself (classic); None when nowhere."""
    for group in groups:
        item = group[sequence].value if sequence in group else None
        if item and attribute in item[0]:
            return item[0][attribute].value
    return groups[-1].get(attribute)


def _number(value: Any, default: float) -> float:
    return default if value in (None, "") else float(value)


def slices_of(data: pydicom.Dataset, pixels: np.ndarray | None) -> list[Slice]:
    """The slices of one data set, one for a classic object, one a frame for an enhanced one. Raises Refusal."""
    if "MOSAIC" in [str(word) for word in data.get("ImageType", None) or []]:
        raise Refusal("mosaic")
    count = int(data.get("NumberOfFrames", 1) or 1)
    shared = list(data.get("SharedFunctionalGroupsSequence", None) or [])
    per_frame = list(data.get("PerFrameFunctionalGroupsSequence", None) or [])
    if count > 1 and len(per_frame) != count:
        raise Refusal("no_geometry", f"a multi-frame object of {count} frames does not place each of its frames")
    out = []
    for frame in range(count):
        groups = [*per_frame[frame : frame + 1], *shared, data]
        position = _find(groups, "PlanePositionSequence", "ImagePositionPatient")
        orientation = _find(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = _find(groups, "PixelMeasuresSequence", "PixelSpacing")
        for value, n, what in ((position, 3, "position"), (orientation, 6, "orientation"), (spacing, 2, "spacing")):
            if value is None or len(value) != n:
                raise Refusal("no_geometry", f"the {what} of a slice is not stated")
        out.append(
            Slice(
                pixels=np.empty((int(data.Rows), int(data.Columns)), np.uint8) if pixels is None else pixels[frame],
                position=np.array([float(v) for v in position]),
                axes=np.array([float(v) for v in orientation]).reshape(2, 3),
                spacing=(float(spacing[0]), float(spacing[1])),
                slope=_number(_find(groups, "PixelValueTransformationSequence", "RescaleSlope"), 1.0),
                intercept=_number(_find(groups, "PixelValueTransformationSequence", "RescaleIntercept"), 0.0),
                padding=None if "PixelPaddingValue" not in data else float(data.PixelPaddingValue),
            )
        )
    return out


def ordered(slices: Sequence[Slice]) -> tuple[list[Slice], np.ndarray]:
    """Slices sorted along their normal, and the step (3,) in LPS+ from one to the next.

    Raises Refusal: mixed_orientation, mixed_size, too_few_slices, repeated_positions, missing_slices, uneven_spacing.
    """
    first = slices[0]
    for item in slices:
        if np.abs(item.axes - first.axes).max() > _PARALLEL:
            raise Refusal("mixed_orientation")
        if item.pixels.shape != first.pixels.shape or not np.allclose(item.spacing, first.spacing, rtol=1e-3):
            raise Refusal("mixed_size")
    if len(slices) < MIN_SLICES:
        raise Refusal("too_few_slices", f"the series has {len(slices)} slices, a volume needs at least {MIN_SLICES}")
    normal = np.cross(first.axes[0], first.axes[1])
    if not np.isclose(np.linalg.norm(normal), 1.0, atol=1e-2):
        raise Refusal("no_geometry", _ANGLE_LOST)
    stack = sorted(slices, key=lambda item: float(item.position @ normal))
    heights = np.array([float(item.position @ normal) for item in stack])
    _check_even(heights)
    step = (stack[-1].position - stack[0].position) / (len(stack) - 1)
    line = stack[0].position + np.arange(len(stack))[:, None] * step
    drift = np.linalg.norm(np.array([item.position for item in stack]) - line, axis=1).max()
    if drift > max(0.1, 0.05 * np.linalg.norm(step)):
        raise Refusal("uneven_spacing", f"a slice lies {drift:.2f} mm beside the line of the others")
    return stack, step


def _check_even(heights: np.ndarray) -> None:
    """`heights`: sorted positions in mm along the normal. Raises Refusal when they are not evenly spaced."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    tolerance = max(0.02, 0.02 * usual)
    if (gaps < 0.01).any():
        at = heights[int(np.argmin(gaps))]
        raise Refusal("repeated_positions", f"several slices lie at {at:.2f} mm along the normal")
    for height, gap in zip(heights, gaps):
        if abs(gap - usual) <= tolerance:
            continue
        share = gap / usual
        if round(share) >= 2 and abs(share - round(share)) < 0.05:
            lost = ", ".join(f"{height + usual * k:.2f}" for k in range(1, round(share)))
            raise Refusal(
                "missing_slices", f"no slice at {lost} mm along the normal, where slices are {usual:.2f} apart"
            )
        raise Refusal(
            "uneven_spacing",
            f"slices at {height:.2f} and {height + gap:.2f} mm along the normal are {gap:.2f} apart, not {usual:.2f}",
        )


def affine_of(stack: Sequence[Slice], step: np.ndarray) -> np.ndarray:
    """4x4 (column, row, slice, 1) -> RAS+ mm. A step that is not along the normal (gantry tilt) stays in the affine."""
    affine = np.eye(4)
    affine[:3, 0] = stack[0].axes[0] * stack[0].spacing[1]
    affine[:3, 1] = stack[0].axes[1] * stack[0].spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = stack[0].position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _values(item: Slice) -> np.ndarray:
    """Physical values of a slice: exact integers where slope and intercept are integers, else float32."""
    if item.slope == 1.0 and item.intercept == round(item.intercept):
        return item.pixels.astype(np.int32) + np.int32(item.intercept)
    return (item.pixels.astype(np.float64) * item.slope + item.intercept).astype(np.float32)


def read_series(paths: Sequence[Path]) -> Scan:
    """The series as one volume (1, columns, rows, slices) of physical values (HU for CT). Raises Refusal."""
    slices: list[Slice] = []
    modality = "other"
    for path in paths:
        data = _load(path)
        modality = _MODALITIES.get(str(data.get("Modality", "")), "other")
        slices += slices_of(data, _pixels(data))
    stack, step = ordered(slices)
    volume = np.stack([_values(item) for item in stack])
    invalid = None
    if modality == "ct" and any(item.padding is not None for item in stack):
        invalid = np.stack([item.pixels == item.padding for item in stack]).transpose(2, 1, 0)
    return Scan(volume.transpose(2, 1, 0)[None], affine_of(stack, step), [modality], invalid)


def series_geometry(paths: Sequence[Path]) -> tuple[tuple[int, int, int], np.ndarray]:
    """((columns, rows, slices), affine) of a series from its headers alone. Raises Refusal."""
    slices = [item for path in paths for item in slices_of(_load(path, stop_before_pixels=True), None)]
    stack, step = ordered(slices)
    rows, columns = stack[0].pixels.shape
    return (columns, rows, len(stack)), affine_of(stack, step)
