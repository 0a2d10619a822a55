"""DICOM pixels -> physical values: decoding, bits, rescale of each frame, padding, mosaics unpacked.

Values are slope * stored + intercept (HU for CT; counts or Bq/ml for PET, no SUV). Philips' private scale of MR values
is not used: it changes a scan by one factor, which normalisation removes. The window, LUTs of presentation and the
real-world value map change nothing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, get_decoder, iter_pixels, pixel_array
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

from preprocessing.readers.dicom_header import (
    BROKEN,
    MODALITIES,
    Groups,
    Picture,
    check_file,
    load,
    number,
    pictures_of,
)
from preprocessing.refusal import Refusal

_CUT_SHORT = ("less than", "expected", "truncated", "end of", "no pixel data", "no 'pixel data'", "insufficient")
# The first choice where several are installed: GDCM, pydicom's own, ends the process on damaged JPEG 2000.
_CODECS = dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg") | dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls")
_DEFER = 1 << 23  # bytes; larger elements stay on the disk until asked for: one frame of a large object is read alone


@dataclass
class Slice:
    """One slice with its values (rows, columns), integers where they are whole, else float32; `invalid`: padding.

    `position` (3,) mm of its first pixel and `axes` (2, 3), LPS+; `spacing` between rows and between columns.
    """

    values: np.ndarray
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    thickness: float = 0.0
    invalid: np.ndarray | None = None
    rescaled: bool = False  # the file states how stored values become physical ones


def place(picture: Picture) -> Slice:
    """A picture in space, without its pixels. Raises Refusal `no_geometry`."""
    for value, what in ((picture.position, "position"), (picture.axes, "orientation"), (picture.spacing, "spacing")):
        if value is None:
            raise Refusal("no_geometry", f"the {what} of a slice is not stated")
    assert picture.position is not None and picture.axes is not None and picture.spacing is not None
    if min(picture.spacing) <= 0:
        raise Refusal("no_geometry", f"the spacing of a slice is {picture.spacing[0]:g} x {picture.spacing[1]:g} mm")
    return Slice(
        values=np.broadcast_to(np.uint8(0), picture.shape),
        position=np.array(picture.position),
        axes=np.array(picture.axes).reshape(2, 3),
        spacing=(picture.spacing[0], picture.spacing[1]),
        thickness=picture.thickness,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's own log lines, which may quote values of the header, and without warnings."""
    logger = logging.getLogger("pydicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def read_file(path: Path, frames: Sequence[int] | None, pixels: bool = True) -> tuple[str, list[Slice]]:
    """(modality, slices) of a file: of the given frames (None: all), a mosaic as its tiles; of a large object only
    these frames are decoded. Without `pixels` all values are zero. Raises Refusal.
    """
    check_file(path)
    with quiet():
        try:
            return _read_file(path, frames, pixels)
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk, not the file
                raise
            if any(word in str(error).lower() for word in _CUT_SHORT):
                raise Refusal("truncated", "the pixels of a slice end before they should") from error
            raise Refusal("unreadable", f"a slice could not be decoded ({type(error).__name__})") from error


def _read_file(path: Path, frames: Sequence[int] | None, pixels: bool) -> tuple[str, list[Slice]]:
    """See `read_file`."""
    if frames is None:
        data = load(path, defer_size=_DEFER) if pixels else load(path, stop_before_pixels=True)
        pictures = pictures_of(path, data)
    else:  # one of the volumes of a large object
        data, pictures = _header_of(path, path.stat().st_mtime_ns)
    modality = MODALITIES.get(str(data.get("Modality", "")), "other")
    chosen = [pictures[k] for k in (range(len(pictures)) if frames is None else frames)]
    placed = [item for picture in chosen for item in _slices(data, picture, None, None)]  # refuses before it decodes
    if not pixels:
        return modality, placed
    _check_decoder(data)
    if _encapsulated(data):
        _silence_codecs()
    correct, plugin = _encapsulated(data), _CODECS.get(data.file_meta.TransferSyntaxUID, "")
    if len(pictures) == 1 and frames is None:
        stored = iter([pixel_array(data, decoding_plugin=plugin, correct_unused_bits=correct)])
    else:
        stored = iter_pixels(path, indices=[picture.frame for picture in chosen], decoding_plugin=plugin,
                             transfer_syntax_uid=data.file_meta.TransferSyntaxUID,
                             correct_unused_bits=correct)  # fmt: skip
    out: list[Slice] = []
    for picture, frame in zip(chosen, stored):
        values, invalid = _values(data, frame, picture.frame)
        out += _slices(data, picture, values, invalid)
    rescaled = _states_rescale(data)
    return modality, [replace(item, rescaled=rescaled) for item in out]


@lru_cache(maxsize=1)
def _header_of(path: Path, _modified: int) -> tuple[pydicom.Dataset, list[Picture]]:
    """(data set without pixels, pictures) of a multi-frame object, kept for the next volume of the same file."""
    data = load(path, stop_before_pixels=True)
    return data, pictures_of(path, data)


@lru_cache(maxsize=1)
def _silence_codecs() -> None:
    """GDCM writes what it thinks of a file to the screen."""
    import gdcm

    for switch in (gdcm.Trace.DebugOff, gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff):
        switch()


def _states_rescale(data: pydicom.Dataset) -> bool:
    """Whether the object says how stored values become physical ones."""
    found = Groups(data).find(0, "PixelValueTransformationSequence", "RescaleIntercept")
    return found is not None or bool(data.get("ModalityLUTSequence", None))


def _check_decoder(data: pydicom.Dataset) -> None:
    """Raises Refusal `missing_decoder` naming a compression that no installed codec reads."""
    syntax = data.file_meta.TransferSyntaxUID
    try:
        available = not syntax.is_encapsulated or get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):
        available = False
    if not available:
        raise Refusal("missing_decoder", f"no decoder for {syntax.name} is installed")


def _encapsulated(data: pydicom.Dataset) -> bool:
    return bool(data.file_meta.TransferSyntaxUID.is_encapsulated)


def _used_bits(data: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Native integers without what else lies in their word (old overlays), signed ones with their sign extended.

    pydicom does the same by Bits Stored alone; High Bit says where they begin.
    """
    if stored.dtype.kind not in "iu":
        return stored
    allocated, bits = int(data.BitsAllocated), int(data.BitsStored)
    high = int(data.get("HighBit", bits - 1))
    if not 0 < bits <= high + 1 <= allocated:
        return stored
    return (stored << (allocated - 1 - high)) >> (allocated - bits)


def _padding(data: pydicom.Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Pixels that Pixel Padding Value (and Range Limit) declare, in stored values; None when there are none.

    A value written with the wrong sign (63536 for -2000) is taken as the pixels' own type reads its bits.
    """
    if "PixelPaddingValue" not in data or stored.dtype.kind not in "iu":
        return None
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = data.get(keyword)
        if value in (None, ""):
            continue
        if isinstance(value, bytes):  # written with a type that says nothing
            value = int.from_bytes(value[:2], "little")
        unsigned = np.array(int(value) % (1 << (8 * stored.itemsize)), f"u{stored.itemsize}")
        ends.append(int(unsigned.view(stored.dtype.newbyteorder("="))))
    if not ends:
        return None
    mask = (stored >= min(ends)) & (stored <= max(ends))
    return mask if mask.any() else None


def _values(data: pydicom.Dataset, stored: np.ndarray, frame: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(physical values, declared padding or None) of one frame's stored values (rows, columns)."""
    if stored.ndim != 2:
        raise Refusal("colour")
    invalid = _padding(data, stored)
    if not _encapsulated(data):
        used = _used_bits(data, stored)
        invalid = _padding(data, used) if invalid is None else invalid
        stored = used
    if data.get("ModalityLUTSequence", None):
        return np.asarray(apply_modality_lut(stored, data), dtype=np.float32), invalid
    groups = Groups(data)
    sequence = "PixelValueTransformationSequence"
    slope = number(groups.find(frame, sequence, "RescaleSlope"), 1.0)
    intercept = number(groups.find(frame, sequence, "RescaleIntercept"), 0.0)
    unit = str(groups.find(frame, sequence, "RescaleType") or "").strip()
    if slope == 0.0:
        raise Refusal("bad_rescale", "the rescale slope of a slice is zero")
    if str(data.get("Modality", "")) == "CT" and unit not in ("", "HU", "US"):
        raise Refusal("derived", f"the values of this CT are {unit}, not HU")
    if stored.dtype.kind in "iu" and slope == round(slope) and intercept == round(intercept):
        exact = stored.astype(np.int64) * int(slope) + int(intercept)
        low, high = int(exact.min()), int(exact.max())
        for kind in (np.int16, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return exact.astype(kind), invalid
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32), invalid


def _slices(
    data: pydicom.Dataset, picture: Picture, values: np.ndarray | None, invalid: np.ndarray | None
) -> list[Slice]:
    """The slices of a picture: one, or the tiles of a mosaic."""
    item = place(picture)
    if picture.mosaic:
        return tiles(data, item, values)
    return [item if values is None else replace(item, values=values, invalid=invalid)]


def tiles(data: pydicom.Dataset, whole: Slice, values: np.ndarray | None = None) -> list[Slice]:
    """The slices of a Siemens mosaic, with values when given. Raises Refusal `mosaic`.

    The header places the mosaic as if it were one slice with the volume's centre: the first tile's corner lies half of
    the difference in size further in. Slices follow each other along the normal that the CSA header states.
    """
    with quiet():  # it announces itself as experimental
        from nibabel.nicom import csareader
    try:
        csa = csareader.get_csa_header(data) or {}
        count = int(csareader.get_n_mosaic(csa) or 0) if csa else 0
        normal = csareader.get_slice_normal(csa) if csa else None
    except (csareader.CSAReadError, ValueError, KeyError, TypeError, IndexError) as error:
        raise Refusal("mosaic", "the Siemens header that describes the mosaic cannot be read") from error
    if count < 1:
        raise Refusal("mosaic", "the pictures are mosaics of slices, and how many is not stated")
    side = int(np.ceil(np.sqrt(count)))
    rows, columns = (n // side for n in whole.values.shape)
    if min(rows, columns) < 1:
        raise Refusal("mosaic", f"a picture of {whole.values.shape} pixels cannot hold {count} slices")
    gap = number(data.get("SpacingBetweenSlices")) or whole.thickness
    if gap <= 0:
        raise Refusal("no_geometry", "the distance of the slices of a mosaic is not stated")
    across = np.cross(whole.axes[0], whole.axes[1])
    if normal is not None and float(np.dot(normal, across)) < 0:
        across = -across
    corner = whole.position + whole.axes[0] * whole.spacing[1] * (whole.values.shape[1] - columns) / 2
    corner = corner + whole.axes[1] * whole.spacing[0] * (whole.values.shape[0] - rows) / 2
    out = []
    for k in range(count):
        top, left = (k // side) * rows, (k % side) * columns
        tile = np.broadcast_to(np.uint8(0), (rows, columns))
        if values is not None:
            tile = values[top : top + rows, left : left + columns]
        out.append(replace(whole, values=tile, position=corner + k * gap * across))
    return out
