"""RegionBatch and Geometry: normalisation, what moves to a device, chaining, elastic maps and their inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from ssl3d.regions import Elastic, Geometry, RegionBatch
from ssl3d.testing.toys import make_batch


def stored(padded: int = 0) -> RegionBatch:
    """Two int16 regions of two channels with different numbers for each."""
    batch = make_batch((4, 6, 5), channels=2, padded=padded)
    numbers = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return batch.replace(
        image=torch.randint(-1500, 1500, batch.image.shape, dtype=torch.int16), slope=numbers / 2, intercept=numbers,
        low=-500 * numbers, high=400 * numbers, mean=10 * numbers, std=7 * numbers,
    )  # fmt: skip


@pytest.mark.parametrize("padded", [0, 2])
def test_normalised_is_its_formula(padded):
    batch = stored(padded)
    out = batch.normalised()
    for b in range(2):
        for c in range(2):
            n = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[b, c]
            value = (n / 2 * batch.image[b, c].double() + n).clamp(-500 * n, 400 * n)
            expected = (value - 10 * n) / (7 * n)
            if batch.valid is not None:
                expected = expected.where(batch.valid[b, 0], (-510 / 7) * torch.ones(()).double())
            torch.testing.assert_close(out.image[b, c].double(), expected, rtol=1e-5, atol=1e-5)
    assert out.image.dtype == torch.float32 and batch.image.dtype == torch.int16
    with pytest.raises(ValueError, match="normalised already"):
        out.normalised()


def test_slices_masks_and_moves():
    batch = stored()
    assert len(batch[1:]) == 1 and torch.equal(batch[1:].seed, batch.seed[1:])
    assert batch.size == (4, 6, 5) and batch.valid_mask().all() and batch.valid_mask().shape == (2, 1, 4, 6, 5)
    away = batch.to("meta")
    assert away.image.device.type == "meta" and away.seed.device.type == "cpu" and torch.equal(away.seed, batch.seed)


def test_geometries_chain():
    first, later = (Geometry(torch.eye(4).repeat(2, 1, 1), (3, 4, 2)) for _ in range(2))
    first.matrix[:, :3] = torch.randn(2, 3, 4)
    later.matrix[:, :3] = torch.randn(2, 3, 4)
    both = first.then(later)
    points = later.source_points()
    expected = (
        torch.einsum("bij,bdhwj->bdhwi", first.matrix[:, :3, :3], points) + first.matrix[:, None, None, None, :3, 3]
    )
    torch.testing.assert_close(both.source_points(), expected)
    identity = Geometry.identity(2, (3, 4, 2))
    assert torch.equal(identity.source_points()[1, 2, 3, 1], torch.tensor([2.0, 3.0, 1.0])) and len(identity) == 2


def elastic_geometry(size: tuple[int, int, int] = (12, 30, 17), most: float = Elastic.LIMIT) -> Geometry:
    """A float64 geometry of two samples with a turn, a stretch and the largest displacements allowed."""
    step = (4.0, 9.5, 6.25)
    matrix = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    matrix[:, :3, :3] += 0.3 * torch.randn(2, 3, 3, dtype=torch.float64)
    matrix[:, :3, 3] = 20 * torch.randn(2, 3, dtype=torch.float64)
    control = 2 * torch.rand(2, 3, *Elastic.lattice(size, step), dtype=torch.float64) - 1
    return Geometry(matrix, size, Elastic(control * most * torch.tensor(step).view(3, 1, 1, 1), step))


def test_elastic_is_a_cubic_b_spline_everywhere():
    geometry = elastic_geometry()
    elastic = geometry.elastic
    assert elastic is not None
    points = torch.rand(2, 5, 7, 3, dtype=torch.float64) * torch.tensor([12, 30, 17]) - 0.5
    expected = np.zeros((2, 5, 7, 3))
    for b, i, j in np.ndindex(2, 5, 7):
        weights = []
        for axis, count in enumerate(elastic.control.shape[2:]):
            place = (float(points[b, i, j, axis]) + 0.5) / elastic.step[axis] + 1  # control point 1 lies on the face
            weights.append([float(BSpline.basis_element([k - 2, k - 1, k, k + 1, k + 2], False)(place))
                            if abs(place - k) < 2 else 0.0 for k in range(count)])  # fmt: skip
        expected[b, i, j] = np.einsum("cdhw,d,h,w->c", elastic.control[b].numpy(), *weights)
    np.testing.assert_allclose(elastic.at(points).numpy(), expected, atol=1e-12)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in geometry.size), indexing="ij"), -1)
    grid = grid.expand(2, *grid.shape)
    torch.testing.assert_close(elastic.on_grid(geometry.size), elastic.at(grid), rtol=0, atol=1e-12)
    torch.testing.assert_close(geometry.source_points(), geometry.to_source(grid), rtol=0, atol=1e-12)
    for axis, step in enumerate(elastic.step):
        assert elastic.on_grid(geometry.size)[..., axis].abs().max() <= Elastic.LIMIT * step


def test_geometry_is_undone_even_at_the_largest_displacements():
    geometry = elastic_geometry()
    points = torch.rand(2, 4, 6, 3, dtype=torch.float64) * 40 - 10  # some outside of the output
    torch.testing.assert_close(geometry.to_output(geometry.to_source(points)), points, rtol=0, atol=1e-3)  # voxels
    plain = Geometry(geometry.matrix, geometry.size)
    torch.testing.assert_close(plain.to_output(plain.to_source(points)), points, rtol=0, atol=1e-12)


def test_the_limit_keeps_neighbours_in_order():
    """The sum over control points of |sum_j +-dB/dx_j|, in steps, is what bounds how far neighbours move apart."""
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    value = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], -1) / 6
    slope = torch.stack([-((1 - t) ** 2), 3 * t**2 - 4 * t, -3 * t**2 + 2 * t + 1, t**2], -1) / 2
    worst = 0.0
    for i in range(41):
        d, h, w = (
            torch.einsum("i,bj,ck->bcijk", *x)
            for x in ((slope[i], value, value), (value[i], slope, value), (value[i], value, slope))
        )
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            worst = max(worst, (d + signs[0] * h + signs[1] * w).abs().sum((-1, -2, -3)).max().item())
    assert worst == pytest.approx(2.479, abs=2e-3), "Choi and Lee's constant"
    assert Elastic.LIMIT * worst < 0.62 + 1e-3


def test_only_the_last_of_a_chain_may_be_elastic():
    elastic = elastic_geometry()
    first = Geometry(torch.eye(4, dtype=torch.float64).repeat(2, 1, 1), (20, 40, 30))
    first.matrix[:, :3] += 0.1 * torch.randn(2, 3, 4, dtype=torch.float64)
    points = torch.rand(2, 5, 3, dtype=torch.float64) * 10
    expected = first.to_source(elastic.to_source(points))
    torch.testing.assert_close(first.then(elastic).to_source(points), expected, rtol=0, atol=1e-12)
    assert torch.equal(elastic[1:].to_source(points[1:]), elastic.to_source(points)[1:])
    with pytest.raises(ValueError, match="one resampling"):
        elastic.then(first)
