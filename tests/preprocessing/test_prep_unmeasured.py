"""Voxels that no scanner measured are found whatever the modality, and keep their values; the table is no body."""

import nibabel as nib
import numpy as np
import pytest
from tests_prep import save, smooth

from preprocessing import convert
from preprocessing.foreground import foreground
from preprocessing.geometry import Scan
from preprocessing.source import Source
from preprocessing.unmeasured import blanked, outside_circle
from preprocessing.volume import build
from ssl3d.data.store import open_store


def _slices(shape=(10, 60, 72)):
    """CT noise around -1000 with a body in it, clipped at -1024 as scanners do."""
    values = np.random.default_rng(0).normal(-1000, 15, shape)
    values[:, 20:44, 24:52] += 1040
    return np.maximum(values, -1024).round().astype(np.int16)


def _distance(shape, spacing=(1.0, 1.0)):
    y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing))
    return np.hypot(y[:, None], x[None])


@pytest.mark.parametrize("rim", [-1024, -1000, 0])
@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (3.0, 0.8, 0.8)])
def test_the_rim_of_a_cylinder_is_found_whatever_it_holds(rim, spacing):
    values = _slices((10, 64, 64))
    outside = _distance((64, 64)) > 31.5
    values[:, outside] = rim
    found = outside_circle(values, spacing)
    assert found is not None
    assert (found == outside[None]).mean() > 0.995
    assert (values[found] == rim).all()


def test_air_clipped_to_one_value_is_no_rim():
    values = np.full((10, 60, 72), -1024, np.int16)
    values[:, 20:44, 24:52] = _slices()[:, 20:44, 24:52]
    assert outside_circle(values, (2.0, 1.0, 1.0)) is None
    assert outside_circle(_slices(), (2.0, 1.0, 1.0)) is None
    cylinder = np.full((10, 60, 60), -1000, np.int16)  # a round phantom in empty space
    cylinder[:, _distance((60, 60)) < 14] = 30
    assert outside_circle(cylinder, (2.0, 1.0, 1.0)) is None


def _head(shape=(24, 40, 36)):
    """A bright ellipsoid in Rician noise."""
    generator = np.random.default_rng(0)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = sum(g**2 for g in grid) < 0.75
    values = np.where(inside, 400 + 0.3 * smooth(shape), 0)
    return np.hypot(values + generator.normal(0, 9, shape), generator.normal(0, 9, shape)).astype(np.float32), inside


def test_a_blanked_face_is_found_and_the_air_around_is_not():
    values, inside = _head()
    face = np.zeros(values.shape, bool)
    face[:11, :14, 6:30] = True  # low and in front
    assert (face & inside).sum() > 300
    assert blanked(values, "mr") is None
    values[face] = 0
    found = blanked(values, "mr")
    np.testing.assert_array_equal(found, face)


@pytest.mark.parametrize("value", [0, -1, 250])
def test_the_outside_of_a_brain_mask_and_padded_planes_are_blanked(value):
    values, inside = _head()
    stripped = np.where(inside, values, np.float32(value))
    assert ((blanked(stripped, "mr")) == ~inside).mean() > 0.99
    padded = np.pad(values, ((0, 0), (3, 5), (0, 4)), constant_values=value)
    expected = np.pad(np.zeros(values.shape, bool), ((0, 0), (3, 5), (0, 4)), constant_values=True)
    np.testing.assert_array_equal(blanked(padded, "mr"), expected)


def test_dark_noise_of_few_counts_and_constant_insides_are_not_blanked():
    values, inside = _head()
    for share in (0.01, 0.05, 0.25):
        counts = np.random.default_rng(1).binomial(1, share, values.shape)
        assert blanked(np.where(inside, values, counts), "mr") is None
    values[9:15, 15:25, 12:24] = 0  # a hole that does not reach the border
    assert blanked(values, "mr") is None


def test_ct_air_is_not_blanked_but_zeros_are():
    values = _slices()
    values[:, :12] = -1024
    assert blanked(values, "ct") is None
    values[:, :12] = 0
    assert blanked(values, "ct").sum() == 12 * 72 * 10


@pytest.mark.parametrize("modality", ["ct", "mr", "pet", "other"])
def test_padding_that_a_file_declares_counts_in_every_modality(modality):
    values = smooth((17, 12, 21)) - (900 if modality == "ct" else 0)
    invalid = np.zeros(values.shape, bool)
    invalid[5:9, 4:7, 3:8] = True
    values[invalid] = -32768
    source = Source("a", "a", "a", "a", [], "s", "1", "")
    scan = Scan(values[None], np.diag([1.0, 1.0, 2.0, 1]), None, invalid)
    kept = build("a", source, scan, None, "keep", modality)
    np.testing.assert_array_equal(kept.valid[0] == 0, invalid.T[:, ::-1, ::-1])
    moved = build("a", source, scan, None, "iso1", modality)
    stored = moved.image[0] * moved.attributes.scale[0] + moved.attributes.offset[0]
    assert stored.min() > values[~invalid].min() - 300  # it does not ring into what was measured
    assert 0.5 < (moved.valid == 0).sum() / (2 * invalid.sum()) < 1.5


def test_blanked_voxels_keep_their_values_on_every_grid(tmp_path):
    values, _ = _head()
    values[:11, :14, 6:30] = 0
    path = save(tmp_path / "scan.nii.gz", values, np.diag([1.5, 1.0, 1.2, 1]))
    for spacing in ("keep", "iso1"):
        convert(path, tmp_path / spacing, spacing=spacing, workers=1)
        store = open_store(tmp_path / spacing)
        shape = tuple(store.shape(0)[1:])
        stored, valid = store.read(0, (0, 0, 0), shape)[0], store.read(0, (0, 0, 0), shape, kind="valid")[0]
        a = store.attributes(0)
        blank = (stored * a.scale[0] + a.offset[0])[valid == 0]
        assert 0.05 < (valid == 0).mean() < 0.2
        if spacing == "keep":
            assert np.abs(blank).max() <= 1.01 * a.quantisation[0]["max_error"]
        assert np.abs(np.median(blank)) < 1 and a.valid_stats[0].count == (valid == 1).sum()


def test_a_scan_of_mostly_nan_is_refused_and_a_few_are_recorded(tmp_path):
    values = smooth((16, 17, 18))
    values[0, :5] = np.nan
    convert(save(tmp_path / "few.nii.gz", values), tmp_path / "store", spacing="keep", workers=1)
    assert "not_finite" in open_store(tmp_path / "store").index["flags"][0]
    values[:9] = np.nan
    report = convert(save(tmp_path / "most.nii.gz", values), tmp_path / "store2", workers=1)
    assert [reason for _, reason in report.refused] == ["mostly_not_finite"]


def _patient_on_table(bridge):
    """(values, table mask) on a (3, 2, 2) mm grid: an elliptic body, 16 mm of table below it, joined by a bridge."""
    _, y, x = np.meshgrid(np.arange(24), np.arange(130), np.arange(120), indexing="ij")
    values = np.full(y.shape, -1000.0, np.float32)
    values[((y - 55) / 33) ** 2 + ((x - 60) / 45) ** 2 < 1] = 30
    table = (y >= 98) & (y < 106) & (x >= 5) & (x < 115)
    values[table] = -150
    values[:, 85:98, 60 : 60 + bridge] = -150
    return values, table


@pytest.mark.parametrize("bridge", [0, 1, 3, 5])  # up to 10 mm
def test_a_table_that_touches_the_body_through_a_thin_bridge_stays_out(bridge):
    values, table = _patient_on_table(bridge)
    mask, box = foreground(values, (3.0, 2.0, 2.0), "ct", None)
    assert not mask[table].any() and box[1][1] <= 94
    assert mask[12, 55, 60] and mask[values > 0].mean() > 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ct_acrin_nsclc_ge/acrin_nsclc_042_ct.nii.gz", "ct_qin_lung_philips/qin_lung_ct_2x.nii.gz"]
)
def test_the_table_of_a_real_ct_is_outside_the_foreground(data, name):
    image = nib.as_closest_canonical(nib.load(data / name))
    values = np.asarray(image.dataobj)[::2, ::2, ::2].transpose(2, 1, 0)[:, ::-1, ::-1].astype(np.float32)
    spacing = [float(s) * 2 for s in image.header.get_zooms()[::-1]]
    valid = values > -1100
    mask, box = foreground(np.where(valid, values, -1000), spacing, "ct", valid)
    behind = np.arange(values.shape[1]) >= box[1][1]
    table = (values > -500) & behind[None, :, None]
    assert table.sum() > 2000  # there is a table behind the patient
    assert 0.1 < mask.mean() < 0.5 and np.median(values[mask]) > -200
    assert (values[mask] > -500).mean() > 0.6  # the rest is lung and bowel gas


def test_the_circle_of_a_real_ct_is_invalid_and_keeps_its_values(data, tmp_path):
    image = nib.load(data / "ct_acrin_nsclc_ge" / "acrin_nsclc_042_ct.nii.gz")
    part = np.asarray(image.dataobj[::4, ::4, 40:46])
    convert(save(tmp_path / "ct.nii.gz", part, np.diag([4, 4, 3.27, 1])), tmp_path / "s", spacing="keep", workers=1)
    store = open_store(tmp_path / "s")
    shape = tuple(store.shape(0)[1:])
    stored, valid = store.read(0, (0, 0, 0), shape)[0], store.read(0, (0, 0, 0), shape, kind="valid")[0]
    np.testing.assert_array_equal(valid == 0, stored == -3024)
    assert 0.15 < (valid == 0).mean() < 0.3
