"""DICOM files that tests write: classic slices, enhanced objects, mosaics, and what lies beside them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from preprocessing import readers
from preprocessing.geometry import Scan
from preprocessing.series import group
from preprocessing.source import Root, Source
from preprocessing.subjects import Patients

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
CORNER = np.array([-20.0, -30.0, 5.0])  # of the lowest slice, LPS
SPACING = (0.8, 1.2)  # mm between rows, between columns


def blank(path: Path, sop_class: str, modality: str, **tags: object) -> FileDataset:
    """An object without pixels; `tags` by keyword, None leaves one away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID") or generate_uid()
    item = FileDataset(str(path), Dataset(), file_meta=meta, preamble=b"\0" * 128)
    item.SOPClassUID, item.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    item.StudyInstanceUID, item.SeriesInstanceUID = "1.2.826.1", "1.2.826.1.1"
    item.PatientID, item.PatientName, item.Modality = "MRN-4711", "DOE^JOHN", modality
    put(item, tags)
    return item


def put(item: Dataset, tags: dict[str, object]) -> None:
    """Set tags by keyword; None deletes one."""
    for keyword, value in tags.items():
        if value is not None:
            setattr(item, keyword, value)
        elif keyword in item:
            delattr(item, keyword)


def set_pixels(item: Dataset, stored: np.ndarray) -> None:
    """Integers (rows, columns) or (frames, rows, columns) as native pixel data."""
    item.Rows, item.Columns = stored.shape[-2:]
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * stored.itemsize
    item.BitsAllocated, item.BitsStored, item.HighBit = bits, bits, bits - 1
    item.PixelRepresentation = int(stored.dtype.kind == "i")
    item.PixelData = np.ascontiguousarray(stored).astype(stored.dtype.newbyteorder("<")).tobytes()
    item["PixelData"].VR = "OW"


def slice_file(
    path: Path,
    stored: np.ndarray,
    position: Sequence[float],
    *,
    axes: Sequence[float] = AXIAL,
    modality: str = "CT",
    **tags: object,
) -> FileDataset:
    """One classic slice of integers (rows, columns), rescaled to HU by -1024 when it is CT; saved at `path`."""
    item = blank(path, CTImageStorage if modality == "CT" else MRImageStorage, modality)
    item.ImagePositionPatient = [float(round(v, 6)) for v in position]
    item.ImageOrientationPatient = [float(round(v, 9)) for v in axes]
    item.PixelSpacing, item.SliceThickness = list(SPACING), 2.0
    item.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    item.FrameOfReferenceUID = "1.2.826.9"
    if modality == "CT":
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
    set_pixels(item, stored)
    put(item, tags)
    if "SOPInstanceUID" in tags:
        item.file_meta.MediaStorageSOPInstanceUID = str(tags["SOPInstanceUID"])
    item.save_as(path, enforce_file_format=True)
    return item


def series(
    folder: Path,
    values: np.ndarray,
    heights: Sequence[float] | None = None,
    *,
    axes: Sequence[float] = AXIAL,
    drift: Sequence[float] = (0.0, 0.0),
    each: Sequence[dict[str, object]] | None = None,
    start: int = 0,
    **tags: object,
) -> list[Path]:
    """A classic series of HU or MR values (slices, rows, columns) at `heights` mm along the normal.

    `drift`: mm along row and column a mm of height (gantry tilt); `each`: tags of each slice. Names are not in order.
    """
    normal = np.cross(axes[:3], axes[3:])
    heights = [2.0 * k for k in range(len(values))] if heights is None else list(heights)
    paths = []
    for k, number in enumerate(np.random.default_rng(1).permutation(len(values))):
        beside = drift[0] * heights[k] * np.array(axes[:3]) + drift[1] * heights[k] * np.array(axes[3:])
        offset = 1024 if tags.get("modality", "CT") == "CT" else 0
        own = {"InstanceNumber": k + 1, **tags, **(each[k] if each else {})}
        path = folder / f"IM{start + number:04d}"
        stored = np.rint(values[k] + offset).astype(np.int16)
        slice_file(path, stored, CORNER + heights[k] * normal + beside, axes=axes, **own)  # type: ignore[arg-type]
        paths.append(path)
    return sorted(paths)


def enhanced(path: Path, values: np.ndarray, frames: Sequence[dict[str, object]], **tags: object) -> FileDataset:
    """An enhanced MR object: `values` (frames, rows, columns) integers, and of each frame `position`, `axes`, `stack`,
    `time`, `echo`, `slope`, `b`, as far as given.
    """
    item = blank(path, EnhancedMRImageStorage, "MR")
    item.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    set_pixels(item, values)
    item.NumberOfFrames = len(values)
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), 2.0
    shared = Dataset()
    shared.PixelMeasuresSequence = DicomSequence([measures])
    item.SharedFunctionalGroupsSequence = DicomSequence([shared])
    item.PerFrameFunctionalGroupsSequence = DicomSequence([_frame(frame) for frame in frames])
    put(item, tags)
    item.save_as(path, enforce_file_format=True)
    return item


def _frame(stated: dict[str, object]) -> Dataset:
    groups = Dataset()

    def add(sequence: str, **values: object) -> None:
        inner = Dataset()
        put(inner, values)
        setattr(groups, sequence, DicomSequence([inner]))

    add("PlanePositionSequence", ImagePositionPatient=[float(v) for v in stated["position"]])  # type: ignore[attr-defined]
    add("PlaneOrientationSequence", ImageOrientationPatient=list(stated.get("axes", AXIAL)))  # type: ignore[call-overload]
    add("FrameContentSequence", StackID=str(stated.get("stack", "1")), TemporalPositionIndex=stated.get("time", 1))
    if "echo" in stated:
        add("MREchoSequence", EffectiveEchoTime=stated["echo"])
    if "b" in stated:
        add("MRDiffusionSequence", DiffusionBValue=stated["b"])
    add("PixelValueTransformationSequence", RescaleSlope=stated.get("slope", 1), RescaleIntercept=0, RescaleType="US")
    return groups


def csa(**values: Sequence[float]) -> bytes:
    """A Siemens CSA2 header of numeric tags."""
    out = b"SV10\x04\x03\x02\x01" + struct.pack("<2I", len(values), 77)
    for name, numbers in values.items():
        out += struct.pack("<64si4s3i", name.encode(), len(numbers), b"FD\0\0", 4, max(6, len(numbers)), 77)
        for k in range(max(6, len(numbers))):
            text = f"{numbers[k]:.8f}\0".encode() if k < len(numbers) else b""
            padded = text + b"\0" * (-len(text) % 4)
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + padded
    return out


def mosaic(path: Path, volume: np.ndarray, normal: Sequence[float], gap: float, **tags: object) -> FileDataset:
    """A Siemens mosaic of `volume` (slices, rows, columns) MR values, whose header places the mosaic as one slice."""
    count, rows, columns = volume.shape
    side = int(np.ceil(np.sqrt(count)))
    picture = np.zeros((side * rows, side * columns), volume.dtype)
    for k in range(count):
        picture[(k // side) * rows :, (k % side) * columns :][:rows, :columns] = volume[k]
    corner = CORNER - [SPACING[1] * (side - 1) * columns / 2, SPACING[0] * (side - 1) * rows / 2, 0]
    item = slice_file(path, picture, corner, modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
                      SpacingBetweenSlices=gap, **tags)  # type: ignore[arg-type]  # fmt: skip
    block = item.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", csa(NumberOfImagesInMosaic=[count], SliceNormalVector=list(normal)))
    item.save_as(path, enforce_file_format=True)
    return item


def body(slices: int = 6, rows: int = 14, columns: int = 10, seed: int = 0) -> np.ndarray:
    """Whole HU with texture (slices, rows, columns)."""
    values = np.random.default_rng(seed).normal(0, 200, size=(slices, rows, columns)).round()
    return np.clip(values, -1000, 2000)


def sources_of(folder: Path, order: np.random.Generator | None = None) -> list[Source]:
    """Sources of all files below a folder, which are given sorted or shuffled by `order`."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if order is not None:
        found = [found[k] for k in order.permutation(len(found))]
    return group(dict.fromkeys(found, Root(folder, str(folder))), b"k" * 32, Patients())


def reasons(sources: Sequence[Source]) -> list[str]:
    """Why those that are refused are, sorted."""
    return sorted(source.problem.reason for source in sources if source.problem is not None)


def scan(source: Source) -> Scan:
    """What the files of a source hold."""
    return readers.read_series(source.paths, source.selection)


def volumes(sources: Sequence[Source]) -> dict[str, np.ndarray]:
    """{suffix of the id: values (slices, rows, columns)} of what is not refused."""
    good = [source for source in sources if source.problem is None]
    return {source.id.split("_", 3)[-1] if source.id.count("_") > 2 else "": scan(source).data[0].transpose(2, 1, 0)
            for source in good}  # fmt: skip
