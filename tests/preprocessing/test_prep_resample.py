"""Images: order-3 quality where they grow, no alias where they shrink."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage
from tests_prep import smooth
from threadpoolctl import threadpool_limits

from preprocessing.geometry import resampled_grid
from preprocessing.resample import cardinal_cubic, operator, resample, resample_mask

# Spacings (z, y, x) of a grid that is resampled to 1 mm. The first half is done plane by plane and then along z, the
# second half along z first.
SPACINGS = [(3.0, 0.7, 0.8), (1.0, 0.7, 1.0), (1.0, 2.2, 0.6), (2.5, 1.7, 1.2), (1.6, 1.0, 1.0)] + [
    (0.4, 0.9, 0.7), (0.3, 1.0, 1.0), (0.5, 1.9, 1.4), (0.62, 1.0, 1.3)
]  # fmt: skip


def grids(shape, spacing):
    return resampled_grid(shape, np.diag([*spacing, 1.0]), (1, 1, 1))[0]


def in_one_product(volume, axes, kernel="cubic"):
    """The definition: a matrix an axis, in float64 and at once."""
    z, y, x = (np.eye(g.n) if g.unchanged else operator(g, kernel).toarray().astype(np.float64) for g in axes)
    return np.einsum("az,by,cx,zyx->abc", z, y, x, volume.astype(np.float64), optimize=True)


def test_growing_equals_a_prefiltered_cubic_spline():
    volume = np.random.default_rng(0).normal(size=(9, 14, 11)).astype(np.float32)
    axes, _ = resampled_grid(volume.shape, np.diag([3.0, 1.7, 2.1, 1]), (1, 1, 1))
    places = np.meshgrid(*[g.start + g.step * np.arange(g.n) for g in axes], indexing="ij")
    expected = ndimage.map_coordinates(volume.astype(np.float64), places, order=3, mode="reflect")
    np.testing.assert_allclose(resample(volume, axes), expected, atol=5e-5)


def test_the_kernel_interpolates():
    np.testing.assert_allclose(cardinal_cubic(np.arange(-9.0, 10.0)), np.arange(-9, 10) == 0, atol=1e-6)


@pytest.mark.parametrize("factor", [1.6, 2.0, 3.5])
def test_a_constant_stays_constant(factor):
    axes, _ = resampled_grid((13, 10, 17), np.diag([1.0, 1 / factor, 1, 1]), (0.7, 1.0, 1.4))
    np.testing.assert_allclose(resample(np.full((13, 10, 17), -1000.0), axes), -1000.0, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_fine_grating_leaves_no_alias_and_a_coarse_one_stays(axis):
    shape, spacing = [12, 10, 14], np.ones(3)
    shape[axis] = 160
    target = np.ones(3)
    target[axis] = 2.0
    axes, _ = resampled_grid(shape, np.diag([*spacing, 1]), target)
    places = np.arange(160.0).reshape([-1 if a == axis else 1 for a in range(3)])
    interior = tuple(slice(10, -10) if a == axis else slice(None) for a in range(3))

    def left(frequency: float) -> float:
        grating = np.broadcast_to(np.sin(2 * np.pi * frequency * places + 0.3), shape).astype(np.float32)
        return float(np.sqrt(2) * resample(grating, axes)[interior].std())

    assert left(0.43) < 0.01  # would alias to 0.07 cycles a voxel
    assert left(0.38) < 0.02
    assert left(0.10) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", [(3, 70, 45), (131, 18, 33), (40, 5, 300)])
def test_tiles_blocks_and_threads_compute_what_the_matrices_say(shape, spacing):
    volume = np.random.default_rng(1).normal(0, 500, shape).astype(np.float32)
    axes = grids(shape, spacing)
    one = resample(volume, axes)
    np.testing.assert_allclose(one, in_one_product(volume, axes), atol=5e-3)
    for threads in (2, 3):
        assert np.array_equal(resample(volume, axes, threads=threads), one)
    with threadpool_limits(limits=2, user_api="blas"):
        assert np.array_equal(resample(volume, axes), one)


@pytest.mark.parametrize("shape, spacing", [((20, 60, 50), (2.5, 1.3, 1.7)), ((50, 40, 30), (1.5, 2.0, 1.2))])
def test_a_growing_ct_is_within_1_hu_of_order_3_everywhere(shape, spacing):
    rng = np.random.default_rng(2)
    volume = np.clip(smooth(shape, 2) - 500 + rng.normal(0, 40, shape), -1024, 3071)
    volume[:, shape[1] // 2 :, 5:9] = 3071  # metal beside air
    volume[:, : shape[1] // 4] = -1000
    volume = np.rint(volume).astype(np.int16)
    axes = grids(shape, spacing)
    expected = ndimage.affine_transform(
        volume.astype(np.float64), [g.step for g in axes], [g.start for g in axes], tuple(g.n for g in axes), order=3,
        mode="reflect",
    )  # fmt: skip
    assert np.abs(resample(volume, axes) - expected).max() < 0.1


@pytest.mark.parametrize("spacing", SPACINGS)
def test_constants_stay_constant_to_a_millionth(spacing):
    axes = grids((21, 34, 27), spacing)
    for value in (-1000, 3071, 0.001, 60000.0):
        np.testing.assert_allclose(resample(np.full((21, 34, 27), value), axes), value, rtol=2e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_no_side_is_preferred(spacing):
    volume = np.random.default_rng(3).normal(0, 300, (19, 26, 23)).astype(np.float32)
    out = resample(volume, grids(volume.shape, spacing))
    for axis in range(3):
        mirrored = resample(np.flip(volume, axis), grids(volume.shape, spacing))
        np.testing.assert_allclose(np.flip(mirrored, axis), out, atol=2e-3)
    for order in ((1, 2, 0), (2, 1, 0)):
        turned = volume.transpose(order)
        other = resample(turned, grids(turned.shape, [spacing[a] for a in order]))
        np.testing.assert_allclose(other, out.transpose(order), atol=2e-3)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float64])
def test_any_dtype_and_any_layout_give_the_same_bits(dtype):
    volume = np.random.default_rng(4).integers(0, 3000, (13, 30, 22))
    axes = grids(volume.shape, (2.0, 0.8, 0.7))
    expected = resample(volume.astype(np.float32), axes)
    assert np.array_equal(resample(volume.astype(dtype), axes), expected)
    backwards = np.asfortranarray(volume.astype(dtype)[::-1, :, ::-1])[::-1, :, ::-1]
    assert np.array_equal(resample(backwards, axes), expected)


@pytest.mark.parametrize("spacing", [(3.0, 0.7, 0.8), (0.4, 0.9, 0.7), (2.0, 1.5, 1.2)])
def test_what_hidden_voxels_hold_does_not_matter(spacing):
    rng = np.random.default_rng(5)
    volume = rng.normal(40, 20, (15, 40, 36)).astype(np.float32)
    hidden = np.hypot(*np.ogrid[-20:20, -18:18]) > 17
    hidden = np.broadcast_to(hidden, volume.shape)
    axes = grids(volume.shape, spacing)
    plain = resample(np.where(hidden, -1000.0, volume), axes)
    for junk in (np.nan, np.inf, -3024.0, 1e36):
        assert np.array_equal(resample(np.where(hidden, junk, volume), axes, hidden=hidden, fill=-1000.0), plain)


@pytest.mark.parametrize("spacing", [0.3, 0.5, 0.7, 0.8, 0.9, 1.4, 2.0, 3.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_edge_of_padding_rings_by_less_than_an_eighth_of_its_height(axis, spacing):
    """Padding counts as air: -1000 beside tissue of 40 HU overshoots by less than 130 HU, -3024 would by twice that."""
    shape, spacings = [5, 5, 5], [1.0, 1.0, 1.0]
    shape[axis], spacings[axis] = 90, spacing
    padding = (np.arange(90.0).reshape([-1 if a == axis else 1 for a in range(3)]) < 31) & np.ones(shape, bool)
    volume = np.where(padding, -3024, 40).astype(np.int16)
    axes = grids(shape, spacings)
    out = resample(volume, axes, hidden=padding, fill=-1000.0)
    bound = 1040 / 8
    assert -1000 - bound < out.min() and out.max() < 40 + bound
    places = axes[axis].start + axes[axis].step * np.arange(axes[axis].n)
    far = np.abs(places - 30.5) > 6 * max(1.0, axes[axis].step)
    away = np.compress(far, np.moveaxis(out, axis, 0), axis=0)
    clean = np.where(places[far] < 30.5, -1000, 40).reshape(-1, 1, 1)
    assert np.abs(away - clean).max() < 2.0  # six voxels from the edge nothing is left of it


@pytest.mark.parametrize("spacing", SPACINGS)
def test_masks_are_interpolated_linearly_and_cut_at_one_half(spacing):
    mask = smooth((24, 40, 31), 6) > 500
    axes = grids(mask.shape, spacing)
    share = in_one_product(mask, axes, "linear")
    clear = np.abs(share - 0.5) > 1e-5
    assert np.array_equal(resample_mask(mask, axes)[clear], (share >= 0.5)[clear])
    assert np.array_equal(resample_mask(mask, axes, threads=3), resample_mask(mask, axes))
    assert resample_mask(np.ones_like(mask), axes).all() and not resample_mask(np.zeros_like(mask), axes).any()


@pytest.mark.parametrize("spacing", [(1.5, 0.7, 0.7), (0.5, 0.7, 0.7), (0.5, 1.0, 1.0), (3.0, 1.0, 1.0)])
def test_no_second_copy_of_a_volume_is_made(spacing):
    """Beside its input and its output the resampler holds some tens of planes, however many there are."""
    volume = np.zeros((500, 64, 80), np.int16)
    axes = grids(volume.shape, spacing)
    resample(volume[:20], grids((20, 64, 80), spacing))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        out = resample(volume, axes)
        beside = tracemalloc.get_traced_memory()[1] - before - out.nbytes
    finally:
        tracemalloc.stop()
    assert beside < 100 * 64 * 80 * 4
