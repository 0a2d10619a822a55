"""Grids: nothing is rotated, every voxel keeps its world position."""

from itertools import permutations

import nibabel as nib
import numpy as np
import pytest
from tests_prep import oblique, smooth

from preprocessing.geometry import Scan, canonical, canonical_grid, resampled_grid, spacing_of
from preprocessing.refusal import Refusal
from preprocessing.resample import resample


def _world(affine, index):
    return (affine @ np.append(index, 1.0))[:3]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1), (-1, -1, -1)])
def test_every_voxel_keeps_value_and_world_position(order, signs):
    array = smooth((5, 7, 9))
    turn = np.eye(4)
    turn[:3, :3] = np.diag(signs)[:, list(order)] * np.array([0.7, 1.5, 3.0])
    turn[:3, 3] = (10, -4, 2)
    affine = oblique((1, 1, 1), 12) @ turn
    moved = canonical(Scan(array[None], affine))
    inverse = np.linalg.inv(affine)
    for z, y, x in ((0, 0, 0), (1, 2, 3), tuple(n - 1 for n in moved.data.shape[1:])):
        source = inverse @ np.append(_world(moved.affine, (z, y, x)), 1.0)
        i, j, k = np.rint(source[:3]).astype(int)
        np.testing.assert_allclose(source[:3], (i, j, k), atol=1e-9)
        assert moved.data[0, z, y, x] == array[i, j, k]
    axes = moved.affine[:3, :3] / spacing_of(moved.affine)
    assert axes[2, 0] > 0.8 and axes[1, 1] < -0.8 and axes[0, 2] < -0.8  # Superior, Posterior, Left


def test_one_millimetre_affine_is_the_one_of_the_format():
    affine = nib.orientations.inv_ornt_aff([[0, 1], [1, 1], [2, 1]], (4, 5, 6))
    shape, moved = canonical_grid(affine, (4, 5, 6))
    assert shape == (6, 5, 4)
    np.testing.assert_allclose(moved, [[0, 0, -1, 3], [0, -1, 0, 4], [1, 0, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.diag([1.0, 0, 1, 1]), "affine_singular"),
        (np.ones((4, 4)), "affine_singular"),
        (np.full((4, 4), np.nan), "affine_not_finite"),
        (np.diag([1.0, 1, 80, 1]), "implausible_spacing"),
        (np.diag([0.001, 1, 1, 1]), "implausible_spacing"),
    ],
)
def test_an_affine_that_places_no_scan_is_refused(bad, reason):
    with pytest.raises(Refusal, match=reason):
        canonical(Scan(np.zeros((1, 4, 4, 4)), bad))


def test_resampled_grid_keeps_centre_and_field_of_view():
    affine = canonical_grid(oblique((0.7, 1.3, 5.0)), (40, 50, 12))[1]
    axes, moved = resampled_grid((12, 50, 40), affine, (1, 1, 1))
    assert [g.n for g in axes] == [60, 65, 28]
    np.testing.assert_allclose(spacing_of(moved), 1.0)
    old = _world(affine, (np.array([12, 50, 40]) - 1) / 2)
    np.testing.assert_allclose(_world(moved, (np.array([60, 65, 28]) - 1) / 2), old, atol=1e-9)


def test_a_ramp_stays_at_its_world_position():
    """A coordinate painted into the voxels is the coordinate of the resampled voxel: no half-voxel shift."""
    affine = canonical_grid(oblique((0.6, 2.0, 3.3)), (30, 22, 26))[1]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (26, 22, 30)], indexing="ij"), -1)
    painted = index @ affine[:3, :3].T + affine[:3, 3]
    axes, moved = resampled_grid((26, 22, 30), affine, (1.0, 1.5, 1.2))
    new_index = np.stack(np.meshgrid(*[np.arange(g.n) for g in axes], indexing="ij"), -1)
    expected = new_index @ moved[:3, :3].T + moved[:3, 3]
    margins = tuple(slice(n // 3, -(n // 3)) for n in new_index.shape[:3])
    for axis in range(3):
        got = resample(painted[..., axis], axes)
        assert np.abs(got - expected[..., axis])[margins].max() < 0.05


def test_a_grid_near_the_target_is_left_alone():
    axes, moved = resampled_grid((9, 8, 7), np.diag([1.0004, 0.9996, 1.0, 1]), (1, 1, 1))
    assert all(grid.unchanged for grid in axes)
    np.testing.assert_array_equal(moved, np.diag([1.0004, 0.9996, 1.0, 1]))
