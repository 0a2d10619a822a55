"""Every DICOM folder of the real data, decided as the table says, with the values and places that its files state."""

from pathlib import Path

import dicom_prep as files
import numpy as np
import pydicom
import pytest

from preprocessing import convert, readers
from preprocessing.refusal import Refusal
from ssl3d.data.store import open_store

pytestmark = pytest.mark.slow

# folder: (slices, rows, columns) of the volume it becomes, or why it is refused and in which words
DECIDED = {
    "ct_qin_lung_philips/dicom_8_slices": (8, 512, 512),
    "dicom_mr_studyforrest/dicom_18_slices": (18, 384, 274),
    "odd/dicom_enhanced_multiframe": (8, 256, 256),
    "odd/dicom_jpeg2000": (4, 256, 256),
    "odd/dicom_rle": (4, 256, 256),
    "odd/dicom_mixed_orientation": ("mixed_orientation", "2 directions or sizes (2, 2)"),
    "odd/dicom_uneven_increment": ("missing_slices", "33.11 mm"),
}


def test_the_table_is_whole(data):
    found = {path.parent.relative_to(data).as_posix() for path in data.rglob("*.dcm")}
    assert found == set(DECIDED)


@pytest.mark.parametrize("folder", DECIDED)
def test_a_folder_is_decided(data, folder):
    expected = DECIDED[folder]
    (source,) = files.sources_of(data / folder)
    if isinstance(expected[0], str):
        with pytest.raises(Refusal) as caught:
            if source.problem is not None:
                raise source.problem
            readers.read_series(source.paths)
        assert caught.value.reason == expected[0] and expected[1] in caught.value.detail
        return
    scan = readers.read_series(source.paths)
    assert scan.data.shape[:0:-1] == expected and scan.flags == [] and scan.invalid is None
    _check_voxels(scan, source.paths)


def _check_voxels(scan, paths):
    """Every slice's corner and middle pixels, as pydicom decodes them, at the place that the file states."""
    to_index = np.linalg.inv(scan.affine)
    for path in paths:
        item = pydicom.dcmread(path)
        frames = item.get("PerFrameFunctionalGroupsSequence", [item])
        for frame, pixels in zip(frames, np.atleast_3d(item.pixel_array.T).T):
            geometry = frame if "ImagePositionPatient" in frame else None
            position = (geometry or frame.PlanePositionSequence[0]).ImagePositionPatient
            axes = (geometry or frame.PlaneOrientationSequence[0]).ImageOrientationPatient
            spacing = (geometry or frame.PixelMeasuresSequence[0]).PixelSpacing
            rescale = frame if geometry else frame.PixelValueTransformationSequence[0]
            slope, intercept = float(rescale.get("RescaleSlope", 1)), float(rescale.get("RescaleIntercept", 0))
            for r, c in ((0, 0), (pixels.shape[0] - 1, 0), (pixels.shape[0] // 2, pixels.shape[1] // 3)):
                lps = np.array(position, float) + c * float(spacing[1]) * np.array(axes[:3], float)
                lps = lps + r * float(spacing[0]) * np.array(axes[3:], float)
                place = to_index @ [*(lps * [-1, -1, 1]), 1]
                index = np.rint(place[:3]).astype(int)
                np.testing.assert_allclose(place[:3], index, atol=0.05)
                assert scan.data[0][tuple(index)] == pytest.approx(float(pixels[r, c]) * slope + intercept, rel=1e-6)


def test_the_uneven_series_is_filled_on_request(data):
    paths = sorted((data / "odd" / "dicom_uneven_increment").iterdir())
    scan = readers.read_series(paths, allow_gaps=True)
    assert scan.data.shape == (1, 512, 512, 5) and scan.flags == ["interpolated_gaps"]
    np.testing.assert_array_equal(scan.invalid.all(axis=(0, 1)), [False, False, False, True, False])
    between = (scan.data[0][..., 2].astype(float) + scan.data[0][..., 4]) / 2
    np.testing.assert_allclose(scan.data[0][..., 3], between, atol=1e-3)


def test_two_compressions_of_the_same_instances_are_one_volume(data, tmp_path):
    """dicom_rle and dicom_jpeg2000 hold the same four instances under the same UIDs."""
    folders = [data / "odd" / "dicom_rle", data / "odd" / "dicom_jpeg2000"]
    alone = [readers.read_series(sorted(folder.iterdir())) for folder in folders]
    np.testing.assert_array_equal(alone[0].data, alone[1].data)
    report = convert(folders, tmp_path / "store", spacing="keep", workers=1)
    assert report.converted == 1 and [reason for _, reason in report.refused] == ["duplicate"]
    store = open_store(tmp_path / "store")
    values = store.read(0, (0, 0, 0), tuple(store.shape(0)[1:]))[0]
    np.testing.assert_array_equal(np.sort(values.ravel()), np.sort(alone[0].data.ravel()))


def test_all_of_them_at_once(data, tmp_path):
    report = convert([data / folder for folder in DECIDED], tmp_path / "store", spacing="keep", workers=1)
    assert report.converted == 4
    assert sorted((Path(shown).name, reason) for shown, reason in report.refused) == [
        ("dicom_mixed_orientation", "mixed_orientation"),
        ("dicom_rle", "duplicate"),
        ("dicom_uneven_increment", "missing_slices"),
    ]
