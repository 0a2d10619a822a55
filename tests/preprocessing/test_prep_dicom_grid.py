"""DICOM stacks that are no regular grid: a smooth field of world coordinates must come out where it was."""

import dicom_prep as files
import numpy as np
import pytest

from preprocessing.readers import dicom, dicom_stack
from preprocessing.refusal import Refusal

_OBLIQUE = (0.96, 0.28, 0.0, -0.28 * 0.8, 0.96 * 0.8, 0.6)


def _field(world):
    """HU of world points (..., 3) in RAS mm: smooth over some centimetres, with no symmetry."""
    x, y, z = np.moveaxis(world, -1, 0)
    return 40 + 90 * np.sin(x / 9 + y / 14) + 70 * np.cos(z / 11 - x / 17) + 1.5 * y


def _sample(heights, axes, drift, rows=40, columns=32):
    """The field at the pixels of slices, LPS geometry as `dicom_prep.series` writes it."""
    row, column = np.array(axes[:3]), np.array(axes[3:])
    normal = np.cross(row, column)
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    out = []
    for height in heights:
        corner = files.CORNER + height * (normal + drift[0] * row + drift[1] * column)
        place = corner + files.SPACING[1] * c[..., None] * row + files.SPACING[0] * r[..., None] * column
        out.append(_field(place * [-1, -1, 1]))
    return np.array(out)


def _check(scan, tolerance):
    """Valid voxels equal the field at their own world place."""
    index = np.stack([*np.meshgrid(*map(np.arange, scan.data.shape[1:]), indexing="ij")], axis=-1)
    world = index @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    valid = np.ones(scan.data.shape[1:], bool) if scan.invalid is None else ~scan.invalid
    error = np.abs(scan.data[0] - _field(world))[valid]
    assert error.max() < tolerance, error.max()
    return valid


@pytest.mark.parametrize("axes", [files.AXIAL, files.SAGITTAL, _OBLIQUE])
@pytest.mark.parametrize("drift", [(0.0, 0.36), (0.36, 0.0), (-0.2, 0.1)])  # 20 degrees and less
def test_gantry_tilt_is_resampled_in_each_plane(tmp_path, axes, drift):
    heights = np.arange(12) * 2.5
    files.series(tmp_path, _sample(heights, axes, drift), heights, axes=axes, drift=drift)
    scan = dicom.read_series(list(tmp_path.iterdir()))
    assert scan.flags == ["resampled_tilt"]
    directions = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    valid = _check(scan, 2.0)  # half a HU of rounding, mirrored edges
    assert valid.sum() >= 12 * 37 * 29  # nearly every measured pixel is kept


@pytest.mark.parametrize("axes", [files.AXIAL, _OBLIQUE])
@pytest.mark.parametrize(
    "heights",
    [
        [*(1.25 * np.arange(9)), *(10 + 2.5 * np.arange(1, 9))],  # skull base and vertex
        list(2 * np.arange(14) + np.random.default_rng(3).uniform(-0.3, 0.3, 14)),
    ],
)
def test_uneven_distances_are_resampled_to_an_even_grid(tmp_path, axes, heights):
    files.series(tmp_path, _sample(heights, axes, (0, 0)), heights, axes=axes)
    scan = dicom.read_series(list(tmp_path.iterdir()))
    assert scan.flags == ["resampled_uneven"] and scan.invalid is None
    step = np.linalg.norm(scan.affine[:3, 2])
    assert min(np.diff(heights)) * 0.9 <= step <= np.median(np.diff(heights)) * 1.01
    assert step * (scan.data.shape[3] - 1) == pytest.approx(max(heights) - min(heights))
    _check(scan, 1.5)


def test_tilt_and_uneven_distances_together(tmp_path):
    heights = [*(1.5 * np.arange(8)), *(10.5 + 3.0 * np.arange(1, 7))]
    files.series(tmp_path, _sample(heights, files.AXIAL, (0.0, 0.3)), heights, drift=(0.0, 0.3))
    scan = dicom.read_series(list(tmp_path.iterdir()))
    assert scan.flags == ["resampled_tilt", "resampled_uneven"]
    _check(scan, 2.0)


def test_padding_outside_the_circle_does_not_ring_into_the_body(tmp_path):
    heights = 2.5 * np.arange(8)
    values = _sample(heights, files.AXIAL, (0, 0.3))
    values[:, :6] = -2000
    files.series(tmp_path, values, heights, drift=(0, 0.3))
    scan = dicom.read_series(list(tmp_path.iterdir()))
    valid = _check_range(scan)
    assert 0.7 * values.size < valid.sum() < values.size


def _check_range(scan):
    valid = ~scan.invalid
    inner = scan.data[0][valid]
    assert inner.min() > -1000 - 200 and inner.max() < 450
    assert not np.isin(scan.data[0], -2000).any()
    return valid


def test_a_straight_stack_is_not_touched(tmp_path):
    values = files.body(7, 9, 11)
    files.series(tmp_path, values, 2.5 * np.arange(7) + np.random.default_rng(0).uniform(-0.004, 0.004, 7))
    scan = dicom.read_series(list(tmp_path.iterdir()))
    assert scan.flags == [] and scan.data.dtype == np.int16
    np.testing.assert_array_equal(scan.data[0], values.transpose(2, 1, 0))


def test_missing_slices_are_named_and_filled_only_on_request(tmp_path):
    complete = 2.0 * np.arange(16)
    heights = np.delete(complete, [5, 9, 10])
    files.series(tmp_path, _sample(heights, files.AXIAL, (0, 0)), heights)
    paths = list(tmp_path.iterdir())
    with pytest.raises(Refusal, match=r"missing_slices: no slice at 15\.00, 23\.00, 25\.00 mm .* 2\.00 apart"):
        dicom.read_series(paths)
    scan = dicom.read_series(paths, allow_gaps=True)
    assert scan.flags == ["interpolated_gaps"] and scan.data.shape[3] == 16
    np.testing.assert_array_equal(np.flatnonzero(scan.invalid.all(axis=(0, 1))), [5, 9, 10])
    assert not scan.invalid[:, :, np.setdiff1d(np.arange(16), [5, 9, 10])].any()
    _check(scan, 1.0)  # measured slices are as they were
    filled = dicom.read_series(paths, allow_gaps=True)
    filled.invalid = None
    _check(filled, 15.0)  # a smooth field between neighbours


@pytest.mark.parametrize("thickness", [1.0, 2.0, 5.0])
def test_thick_overlapping_slices_hide_no_gap(tmp_path, thickness):
    files.series(tmp_path, files.body(9), np.delete(2.0 * np.arange(10), 4), SliceThickness=thickness)
    with pytest.raises(Refusal, match="missing_slices"):
        dicom.read_series(list(tmp_path.iterdir()))


def test_two_thick_slices_among_thin_ones_fill_their_gap(tmp_path):
    heights = [0.0, 2, 4, 6, 10, 12, 14, 16]
    each = [{"SliceThickness": 4.0 if k in (3, 4) else 2.0} for k in range(8)]
    files.series(tmp_path, files.body(8), heights, each=each)
    assert dicom.read_series(list(tmp_path.iterdir())).flags == ["resampled_uneven"]


@pytest.mark.parametrize(
    ("heights", "reason", "named"),
    [
        ([0, 2, 4, 6, 13.1, 15.1], "uneven_spacing", "11.00 and 18.10"),
        ([0, 2, 4, 4, 6, 8], "repeated_positions", "9.00"),
        ([0, 2, 4, 6, 8, 400, 402], "missing_slices", "more than the 7"),
    ],
)
def test_what_cannot_be_resampled_right_is_refused(tmp_path, heights, reason, named):
    files.series(tmp_path, files.body(len(heights)), heights)
    with pytest.raises(Refusal) as caught:
        dicom.read_series(list(tmp_path.iterdir()), allow_gaps=reason == "missing_slices")
    assert caught.value.reason == reason and named in caught.value.detail


def test_slices_beside_the_line_are_refused(tmp_path):
    files.series(tmp_path / "wave", files.body(8), each=[{"ImagePositionPatient": [-20 + 3 * (k % 2), -30, 2.0 * k]}
                                                        for k in range(8)])  # fmt: skip
    with pytest.raises(Refusal, match=r"scattered_slices: a slice lies 1\.86 mm"):
        dicom.read_series(list((tmp_path / "wave").iterdir()))


def test_a_stack_that_leans_over_more_than_any_gantry_is_refused(tmp_path):
    files.series(tmp_path, files.body(6), drift=(0, 900.0))
    with pytest.raises(Refusal, match="scattered_slices: each mm of height"):
        dicom.read_series(list(tmp_path.iterdir()))


def test_a_slice_sent_twice_counts_once(tmp_path):
    values = files.body(5)
    files.series(tmp_path / "a", values)
    files.series(tmp_path / "b", values[2:3], [4.0])
    scan = dicom.read_series([*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()])
    np.testing.assert_array_equal(scan.data[0], values.transpose(2, 1, 0))


def test_the_spline_keeps_knots_constants_and_cubics():
    heights = np.array([0, 1.0, 2.2, 3, 5.5, 6, 7.1, 9])
    targets = np.linspace(0, 9, 23)
    matrix = dicom_stack.operator_between(heights, targets).toarray().astype(np.float64)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    cubic = np.polynomial.Polynomial([2, -1, 0.5, 0.1])
    np.testing.assert_allclose(matrix @ cubic(heights), cubic(targets), rtol=1e-4, atol=1e-4)
    at_knots = dicom_stack.operator_between(heights, heights).toarray()
    np.testing.assert_allclose(at_knots, np.eye(8), atol=1e-6)


def test_headers_alone_give_the_same_grid(tmp_path):
    for name, heights, drift in (("tilt", 2.5 * np.arange(6), (0, 0.3)), ("uneven", [0, 1, 2, 3, 5, 7, 9], (0, 0))):
        files.series(tmp_path / name, files.body(len(heights)), heights, drift=drift)
        paths = list((tmp_path / name).iterdir())
        scan = dicom.read_series(paths)
        shape, affine = dicom.series_geometry(paths)
        assert shape == scan.data.shape[1:]
        np.testing.assert_allclose(affine, scan.affine)
