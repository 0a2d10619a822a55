"""DICOM: order by position, rescale a slice, gaps named, nothing of the patient kept."""

import nibabel as nib
import numpy as np
import pytest

from preprocessing import convert, readers
from preprocessing.geometry import Scan, canonical
from preprocessing.refusal import Refusal
from ssl3d.data.store import open_store


def _body(slices=6, rows=14, columns=10):
    values = np.random.default_rng(0).normal(0, 200, size=(slices, rows, columns)).round()
    return np.clip(values, -1000, 2000)


@pytest.mark.parametrize("turned", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (0.8, 0.6, 0, 0, 0, -1)])
def test_values_and_places_of_a_shuffled_series(tmp_path, ct_series, turned):
    heights = [5.0 + 2.5 * k for k in range(6)]
    values = ct_series(tmp_path / "s", _body(), heights, orientation=turned)
    scan = readers.read_series(sorted((tmp_path / "s").iterdir()))
    np.testing.assert_array_equal(scan.data[0], values.transpose(2, 1, 0))
    assert scan.modality == ["ct"]
    normal = np.cross(turned[:3], turned[3:])
    row, column = np.array(turned[:3]), np.array(turned[3:])
    for c, r, k in ((0, 0, 0), (9, 3, 5), (4, 13, 2)):
        lps = np.array([-20.0, -30, 0]) + heights[k] * normal + 1.2 * c * row + 0.8 * r * column
        np.testing.assert_allclose((scan.affine @ [c, r, k, 1])[:3], lps * [-1, -1, 1], atol=1e-9)


def test_each_slice_has_its_own_rescale(tmp_path, ct_series):
    values = _body() / 4 * 4
    slopes = [0.25, 0.5, 1.0, 0.5, 0.25, 1.0]
    ct_series(tmp_path / "s", values, [2.0 * k for k in range(6)], slopes=slopes)
    scan = readers.read_series(sorted((tmp_path / "s").iterdir()))
    np.testing.assert_allclose(scan.data[0], values.transpose(2, 1, 0), atol=1e-3)


@pytest.mark.parametrize(
    ("heights", "reason", "named"),
    [
        ([0, 2, 4, 8, 10, 12], "missing_slices", "6.00"),
        ([0, 2, 4, 6, 12.7, 14.7], "uneven_spacing", "12.70"),
        ([0, 2, 4, 4, 6, 8], "repeated_positions", "4.00"),
    ],
)
def test_gaps_are_refused_and_named(tmp_path, ct_series, heights, reason, named):
    ct_series(tmp_path / "s", _body(), [float(h) for h in heights])
    with pytest.raises(Refusal) as caught:
        readers.read_series(sorted((tmp_path / "s").iterdir()))
    assert caught.value.reason == reason and named in caught.value.detail


def test_two_orientations_and_two_slices_are_refused(tmp_path, ct_series):
    ct_series(tmp_path / "s", _body(3), [0.0, 2, 4], series="1.2.3")
    ct_series(tmp_path / "t", _body(3), [0.0, 2, 4], series="1.2.3", orientation=(0, 1, 0, 0, 0, -1))
    with pytest.raises(Refusal, match="mixed_orientation"):
        readers.read_series([*(tmp_path / "s").iterdir(), *(tmp_path / "t").iterdir()])
    ct_series(tmp_path / "u", _body(2), [0.0, 2.0])
    with pytest.raises(Refusal, match="too_few_slices"):
        readers.read_series(list((tmp_path / "u").iterdir()))


@pytest.mark.slow
def test_declared_padding_is_not_valid_and_not_edited(tmp_path, ct_series):
    values = _body()
    values[:, :2] = -2000
    ct_series(tmp_path / "s", values, [3.0 * k for k in range(6)], padding=-976)
    convert(tmp_path / "s", tmp_path / "store", spacing="keep", workers=1)
    store = open_store(tmp_path / "store")
    stored = store.read(0, (0, 0, 0), (6, 14, 10))[0]
    valid = store.read(0, (0, 0, 0), (6, 14, 10), kind="valid")[0]
    np.testing.assert_array_equal(stored, values)
    np.testing.assert_array_equal(valid != 0, values != -2000)


@pytest.mark.slow
def test_a_clinical_tree_leaves_no_identifier_in_the_store(tmp_path, ct_series):
    for number in range(3):
        folder = tmp_path / "archive" / "DOE_JOHN" / f"series{number}"
        ct_series(folder, _body() + number, [2.0 * k for k in range(6)])
    gap = tmp_path / "archive" / "DOE_JOHN" / "broken"
    ct_series(gap, _body(), [0.0, 2, 4, 8, 10, 12])
    report = convert(tmp_path / "archive", tmp_path / "store", workers=1)
    assert (report.converted, [r for _, r in report.refused]) == (3, ["missing_slices"])
    index = open_store(tmp_path / "store").index
    assert index["subject"].nunique() == 1 and index["id"].nunique() == 3
    for file in (tmp_path / "store").rglob("*"):
        if file.is_file():
            text = str(file.relative_to(tmp_path / "store")).encode() + file.read_bytes()
            for secret in (b"DOE", b"JOHN", b"4711", str(tmp_path).encode()):
                assert secret not in text, file


@pytest.mark.slow
def test_the_same_patient_is_the_same_subject_in_two_stores_of_one_key(tmp_path, ct_series):
    for name in ("a", "b"):
        ct_series(tmp_path / name, _body() + len(name), [2.0 * k for k in range(6)])
        convert(tmp_path / name, tmp_path / f"{name}.zarr", subject_key=tmp_path / "key", workers=1)
    convert(tmp_path / "a", tmp_path / "c.zarr", subject_key=tmp_path / "other", workers=1)
    one, two, other = (open_store(tmp_path / f"{n}.zarr").index["subject"][0] for n in "abc")
    assert one == two != other


@pytest.mark.slow
def test_hu_of_a_real_series(data, tmp_path):
    import pydicom

    folder = data / "ct_qin_lung_philips" / "dicom_8_slices"
    slices = sorted((pydicom.dcmread(f) for f in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    expected = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices])
    report = convert(folder, tmp_path / "store", spacing="keep", workers=1)
    assert report.converted == 1
    store = open_store(tmp_path / "store")
    np.testing.assert_array_equal(store.read(0, (0, 0, 0), (8, 512, 512))[0], expected)  # rows run to P, columns to L
    attributes = store.attributes(0)
    assert (attributes.scale, attributes.offset, attributes.modality) == ([1.0], [0.0], ["ct"])
    assert attributes.source.startswith("dicom-")
    # the same patient's whole chest, averaged 2x2x2, holds the same HU at the same places
    whole = nib.load(data / "ct_qin_lung_philips" / "qin_lung_ct_2x.nii.gz")
    small = canonical(Scan(np.asarray(whole.dataobj)[None], whole.affine))
    to_small = np.linalg.inv(small.affine) @ np.array(attributes.affine)
    averaged = expected[:, ::2, ::2] / 4 + expected[:, 1::2, ::2] / 4 + expected[:, ::2, 1::2] / 4
    averaged += expected[:, 1::2, 1::2] / 4
    z, y, x = np.meshgrid(np.arange(8), np.arange(0, 512, 2) + 0.5, np.arange(0, 512, 2) + 0.5, indexing="ij")
    places = np.rint(np.einsum("ij,j...->i...", to_small, np.stack([z, y, x, np.ones_like(z)]))[:3]).astype(int)
    inside = np.all([(p >= 0) & (p < n) for p, n in zip(places, small.data.shape[1:])], axis=0)
    other = small.data[0][tuple(p[inside] for p in places)]
    assert inside.mean() > 0.7
    assert np.corrcoef(averaged[inside], other)[0, 1] > 0.97
