"""RegionBatch and Geometry: normalisation, what moves to a device, chaining."""

from __future__ import annotations

import pytest
import torch

from ssl3d.regions import Geometry, RegionBatch
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


def test_displacements_add_up_but_do_not_chain():
    plain = Geometry.identity(1, (3, 4, 2))
    elastic = Geometry(plain.matrix, plain.size, torch.randn(1, 3, 3, 4, 2))
    assert elastic.displacement is not None
    moved = elastic.source_points() - plain.source_points()
    torch.testing.assert_close(moved, elastic.displacement.movedim(1, -1))
    with pytest.raises(ValueError, match="one resampling"):
        plain.then(elastic)
