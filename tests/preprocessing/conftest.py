"""Small files of every format, written by the tests themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


@pytest.fixture(autouse=True)
def own_key(tmp_path_factory, monkeypatch):
    """No test touches the user's subject key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture
def data() -> Path:
    """The real volumes."""
    root = Path(os.environ.get("SSL3D_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
    if not root.is_dir():
        pytest.skip(f"no real volumes at {root} (set SSL3D_DATA)")
    return root


@pytest.fixture
def ct_series() -> Callable[..., np.ndarray]:
    """Writes a CT series of float HU (slices, rows, columns) and returns it."""

    def write(
        folder: Path,
        values: np.ndarray,
        heights: list[float],
        *,
        patient: str = "DOE^JOHN",
        slopes: list[float] | None = None,
        orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
        series: str | None = None,
        padding: int | None = None,
    ) -> np.ndarray:
        folder.mkdir(parents=True, exist_ok=True)
        series = series or generate_uid()
        study = generate_uid()
        order = np.random.default_rng(1).permutation(len(values))
        normal = np.cross(orientation[:3], orientation[3:])
        for number, k in enumerate(order):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = CTImageStorage
            meta.MediaStorageSOPInstanceUID = generate_uid()
            file = folder / f"IM{number:04d}"
            item = FileDataset(str(file), Dataset(), file_meta=meta, preamble=b"\0" * 128)
            item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
            item.SeriesInstanceUID, item.StudyInstanceUID = series, study
            item.PatientID, item.PatientName, item.Modality = "MRN-4711", patient, "CT"
            item.Rows, item.Columns = values.shape[1:]
            item.ImageOrientationPatient = list(orientation)
            item.ImagePositionPatient = [float(v) for v in np.array([-20.0, -30.0, 0.0]) + heights[k] * normal]
            item.PixelSpacing, item.SliceThickness = [0.8, 1.2], 2.0
            item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
            item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 1
            slope = 1.0 if slopes is None else slopes[k]
            item.RescaleSlope, item.RescaleIntercept = slope, -1024
            if padding is not None:
                item.PixelPaddingValue = padding
            item.PixelData = np.rint((values[k] + 1024) / slope).astype("<i2").tobytes()
            item.save_as(file, enforce_file_format=True)
        return values

    return write


@pytest.fixture
def look_of() -> Callable[..., tuple[list[np.ndarray], pd.DataFrame]]:
    """look_of({name: (array (X, Y, Z), affine)}) -> (thumbnails, columns of an index), built as a conversion does."""
    from preprocessing.geometry import Scan
    from preprocessing.source import Source
    from preprocessing.volume import build
    from ssl3d.data.thumbnail import perceptual_hash, thumbnail

    def look(scans: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[list[np.ndarray], pd.DataFrame]:
        thumbnails, rows = [], []
        for name, (array, affine) in scans.items():
            source = Source(name, name, name, name, [], name, "1", "")
            volume = build(name, source, Scan(array[None], affine), None, "iso1", "mr")
            thumbnails.append(thumbnail(volume.image, volume.attributes, volume.valid))
            row = {"id": name, "source": name, "subject": name, "perceptual_hash": perceptual_hash(thumbnails[-1])}
            row |= {"affine": np.ravel(volume.attributes.affine).tolist(), "shape": list(volume.image.shape[1:])}
            rows.append(row)
        return thumbnails, pd.DataFrame(rows)

    return look
