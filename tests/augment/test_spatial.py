"""SpatialTransform: one geometry for image, label and valid; exact flips; a true place in the world."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl3d.augment import Compose, SpatialTransform
from ssl3d.regions import RegionBatch
from ssl3d.testing.toys import make_batch

SIZE = (16, 32, 24)
ALWAYS = {"p_rotation": 1.0, "p_scale": 1.0, "p_axis_scale": 1.0}
ELASTIC = {"elastic": 4.0, "p_elastic": 1.0, "elastic_spacing": 16.0}


def paint(batch: RegionBatch, coefficients: Tensor) -> RegionBatch:
    """The batch with channel c = coefficients[c] . (voxel index): linear, so linear interpolation is exact."""
    axes = [torch.arange(n, dtype=torch.float32) for n in batch.size]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    image = torch.einsum("ci,idhw->cdhw", coefficients, index).repeat(len(batch), 1, 1, 1, 1)
    return batch.replace(image=image)


def region(transform: SpatialTransform, batch: int = 4, channels: int = 3, **kwargs) -> RegionBatch:
    return make_batch(transform.reach(SIZE), batch, channels, **kwargs)


@pytest.mark.parametrize("elastic", [{}, ELASTIC], ids=["affine", "elastic"])
@pytest.mark.parametrize("rotation", [0.0, 25.0, (40.0, 0.0, 10.0)])
def test_image_follows_the_geometry(rotation, elastic):
    shape = {**ALWAYS, **elastic, "scale": (0.8, 1.2), "spacing": (3, 1, 0.8)}
    transform = SpatialTransform(rotation=rotation, max_reach=3, **shape)
    coefficients = torch.tensor([[0.05, 0.0, 0.0], [0.0, 0.03, 0.0], [0.01, -0.02, 0.04]])
    batch = paint(region(transform), coefficients)
    out, geometry = transform(batch, SIZE)
    assert out.valid is not None and out.valid.all(), "reach() promised that nothing falls outside"
    expected = torch.einsum("ci,bdhwi->bcdhw", coefficients, geometry.source_points())
    torch.testing.assert_close(out.image, expected, rtol=0, atol=1e-4)
    assert out.image.shape == (4, 3, *SIZE) and geometry.size == SIZE


def test_rotation_is_rigid_in_millimetres():
    transform = SpatialTransform(rotation=30, **ALWAYS | {"p_scale": 0.0})
    batch = region(transform, spacing=(3.0, 1.0, 0.8))
    _, geometry = transform(batch, SIZE)
    spacing = batch.spacing.double()
    steps = geometry.matrix[:, :3, :3].double() * spacing[:, :, None] / spacing[:, None, :]  # mm moved for a mm
    torch.testing.assert_close(steps @ steps.mT, torch.eye(3).double().repeat(4, 1, 1), rtol=0, atol=1e-5)


def test_place_in_the_world_is_kept():
    transform = SpatialTransform(rotation=30, **ALWAYS)
    batch = region(transform)
    out, geometry = transform(batch, SIZE)
    index = torch.tensor([[0.0, 0, 0], [15, 31, 23], [3, 30, 7]], dtype=torch.float64)
    source = index @ geometry.matrix[:, :3, :3].double().mT + geometry.matrix[:, None, :3, 3].double()

    def world(b: RegionBatch, points: Tensor) -> Tensor:
        return (points + b.start[:, None]) @ b.affine[:, :3, :3].mT + b.affine[:, None, :3, 3]

    torch.testing.assert_close(world(out, index), world(batch, source), rtol=0, atol=1e-3)
    torch.testing.assert_close(out.affine[:, :3, :3].norm(dim=1), out.spacing.double(), rtol=1e-6, atol=0)
    middle = torch.tensor([[(n - 1) / 2 for n in SIZE]]).double()
    middle_before = torch.tensor([[(n - 1) / 2 for n in batch.size]]).double()
    torch.testing.assert_close(world(out, middle), world(batch, middle_before), rtol=0, atol=1e-6)


@pytest.mark.parametrize("elastic", [{}, ELASTIC], ids=["affine", "elastic"])
def test_label_and_valid_are_the_nearest_of_the_same_geometry(elastic):
    transform = SpatialTransform(rotation=30, max_reach=1, **ALWAYS, **elastic)
    batch = region(transform, labels=True, padded=5)
    assert batch.valid is not None and batch.label is not None
    batch = batch.replace(label=torch.randint(0, 70_000, batch.label.shape))  # beyond float16, uint16 and so on
    out, geometry = transform(batch, SIZE)
    points = geometry.source_points()
    nearest = (points + 0.5).floor().long()
    extent = torch.tensor(batch.size)
    inside = ((points >= -0.5) & (points <= extent - 0.5)).all(-1)
    d, h, w = torch.minimum(nearest.clamp(min=0), extent - 1).unbind(-1)
    b = torch.arange(len(batch)).view(-1, 1, 1, 1)
    assert out.label is not None and out.valid is not None and out.label.dtype == torch.int64
    assert torch.equal(out.label[:, 0], batch.label[b, 0, d, h, w] * inside)
    assert torch.equal(out.valid[:, 0], batch.valid[b, 0, d, h, w] & inside)
    assert 0 < out.valid.float().mean() < 1


def test_nothing_of_invalid_voxels_reaches_valid_ones():
    transform = SpatialTransform(rotation=30, **ALWAYS, **ELASTIC)
    batch = region(transform, padded=12)
    assert batch.valid is not None
    out, _ = transform(batch, SIZE)
    poisoned, _ = transform(batch.replace(image=torch.where(batch.valid, batch.image, 1e6)), SIZE)
    assert torch.equal(out.image, poisoned.image)
    assert out.valid is not None and not out.valid.all()
    assert (out.image[~out.valid.expand_as(out.image)] == -2).all(), "invalid voxels are air, (low - mean) / std"


def test_pure_flips_copy_voxels():
    transform = SpatialTransform(p_rotation=0, p_scale=0)
    batch = make_batch(SIZE, batch=16, labels=True)
    out, geometry = transform(batch, SIZE)
    assert out.valid is None
    seen = set()
    for b in range(16):
        flips = geometry.matrix[b, :3, :3].diagonal()
        assert torch.equal(geometry.matrix[b, :3, :3], flips.diag()) and set(flips.tolist()) <= {-1.0, 1.0}
        axes = [i + 1 for i in range(3) if flips[i] < 0]
        assert torch.equal(out.image[b], batch.image[b].flip(axes))
        assert batch.label is not None and out.label is not None
        assert torch.equal(out.label[b], batch.label[b].flip(axes))
        d, h, w = geometry.source_points()[b].round().long().unbind(-1)
        assert torch.equal(out.image[b, 0], batch.image[b, 0, d, h, w])
        seen.add(tuple(axes))
    assert len(seen) > 4
    only_left_right = SpatialTransform(flip_axes=[2], p_flip=1, p_rotation=0, p_scale=0)
    assert torch.equal(only_left_right(batch, SIZE)[0].image, batch.image.flip(4))


@pytest.mark.parametrize("source", [(20, 33, 29), (16, 32, 24)])
def test_without_any_draw_it_is_the_exact_centre_crop(source):
    batch = make_batch(source)
    out, geometry = SpatialTransform(p_flip=0, p_rotation=0, p_scale=0)(batch, SIZE)
    o = [(n - m) // 2 for n, m in zip(source, SIZE)]
    expected = batch.image[..., o[0] : o[0] + 16, o[1] : o[1] + 32, o[2] : o[2] + 24]
    assert torch.equal(out.image, expected)
    assert geometry.matrix[0, :3, 3].tolist() == o
    cropped, same = Compose()(batch, SIZE)
    assert torch.equal(cropped.image, expected) and torch.equal(same.matrix, geometry.matrix)


@pytest.mark.parametrize("elastic", [{}, ELASTIC | {"p_elastic": 0.5}], ids=["affine", "elastic"])
def test_a_sample_depends_on_its_seed_alone(elastic):
    transform = SpatialTransform(rotation=30, **ALWAYS, **elastic)
    batch = region(transform, batch=5, padded=4)
    together, geometry = transform(batch, SIZE)
    order = torch.tensor([3, 0, 4])
    some, again = transform(batch._map(lambda t: t[order]), SIZE)
    assert torch.equal(some.image, together.image[order]) and torch.equal(again.matrix, geometry.matrix[order])
    assert torch.equal(again.source_points(), geometry.source_points()[order])
    assert not torch.equal(transform(batch, SIZE, view=1)[1].matrix, geometry.matrix)
    state = torch.random.get_rng_state()
    transform(batch, SIZE)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was used"


def test_geometry_is_exact_under_autocast():
    transform = SpatialTransform(rotation=30, **ALWAYS, **ELASTIC)
    batch = region(transform)
    out, geometry = transform(batch, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, low_geometry = transform(batch, SIZE)
        points = low_geometry.source_points()
    assert torch.equal(low.image, out.image) and torch.equal(points, geometry.source_points())


def test_reach():
    still = SpatialTransform(p_rotation=0, p_scale=0)
    assert still.reach(SIZE) == SIZE
    zoom = SpatialTransform(p_rotation=0, scale=(0.5, 1.25))
    assert zoom.reach(SIZE) == (20, 40, 30)
    quarter = SpatialTransform(p_scale=0, rotation=(0, 0, 90), max_reach=9)
    d, h, w = quarter.reach((16, 32, 24))
    assert w == 24 and math.hypot(16, 32) - 1 <= min(d, h) <= math.hypot(16, 32) + 3
    assert SpatialTransform(rotation=180).reach(SIZE) == (24, 48, 36), "max_reach"
    for size in ((15, 31, 24), (160, 160, 160)):
        assert all((n - m) % 2 == 0 and n >= m for n, m in zip(SpatialTransform().reach(size), size))


@pytest.mark.parametrize(
    "key, value",
    [
        ("rotation", 200.0), ("rotation", (1.0, 2.0)), ("scale", (1.2, 0.8)), ("scale", (0.0, 1.0)), ("p_flip", 1.5),
        ("p_rotation", -0.1), ("p_scale", 2.0), ("p_axis_scale", 2.0), ("flip_axes", (0, 3)), ("flip_axes", (1, 1)),
        ("spacing", (1.0, 0.0, 1.0)), ("max_reach", 0.5), ("elastic", -1.0), ("elastic", 9.0), ("p_elastic", 2.0),
        ("elastic_spacing", 0.0),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(ValueError, match=rf"^{key}="):
        SpatialTransform(**{key: value})


@pytest.mark.parametrize("turn", [0.0, 1.0])
def test_shifts_are_whole_voxels_that_the_geometry_knows(turn):
    transform = SpatialTransform(
        rotation=20, p_rotation=turn, p_scale=0, shift=(0.5, 0.25, 0), max_reach=3, spacing=(3, 1, 0.8)
    )
    coefficients = torch.tensor([[0.05, 0.0, 0.0], [0.0, 0.03, 0.0], [0.01, -0.02, 0.04]])
    batch = paint(region(transform, batch=60), coefficients)
    views = [transform(batch, SIZE, view) for view in (0, 1)]
    middle = torch.tensor([[(n - 1) / 2 for n in SIZE]])
    centres = [middle @ g.matrix[:, :3, :3].mT + g.matrix[:, None, :3, 3] for _, g in views]
    moved = centres[0][:, 0] - torch.tensor([(n - 1) / 2 for n in batch.size])
    limit = torch.tensor([8.0, 8.0, 0.0])
    assert (moved.abs() <= limit + 1e-3).all() and (moved.abs().amax(0) > 0.8 * limit - 1e-3).all()
    torch.testing.assert_close(moved, moved.round(), rtol=0, atol=1e-3)
    assert not torch.allclose(centres[0], centres[1]), "views have places of their own"
    for out, geometry in views:
        assert out.valid is None or out.valid.all()
        expected = torch.einsum("ci,bdhwi->bcdhw", coefficients, geometry.source_points())
        torch.testing.assert_close(out.image, expected, rtol=0, atol=1e-4)


def test_a_shift_never_leaves_the_region():
    transform = SpatialTransform(p_rotation=0, p_scale=0, shift=2.0, max_reach=1.25)
    assert transform.reach(SIZE) == (20, 40, 30)
    _, geometry = transform(region(transform, batch=30), SIZE)
    points = geometry.source_points().flatten(1, 3)
    assert points.min() >= 0 and (points.amax(1) <= torch.tensor([19.0, 39, 29])).all()


def test_elastic_moves_millimetres_smoothly_and_leaves_other_draws_alone():
    still = {"p_flip": 0.0, "p_rotation": 0.0, "p_scale": 0.0, "spacing": (3, 1, 0.8)}
    transform = SpatialTransform(**still, **ELASTIC)
    batch = region(transform, batch=30)
    _, geometry = transform(batch, SIZE)
    plain = SpatialTransform(**still)(batch, SIZE)[1]
    moved = (geometry.source_points() - plain.source_points()) * batch.spacing[:, None, None, None]  # mm
    assert moved.abs().max() <= 4 + 1e-4 and 0.5 < moved.std() < 2 and moved.flatten(1, 3).std(1).min() > 0.2
    for axis in range(3):  # smooth: control points are 16 mm apart, neighbouring voxels move nearly alike
        steps = moved.diff(dim=axis + 1) / batch.spacing[0, axis]
        assert steps.abs().max() < 0.62
    assert all((m - n) % 2 == 0 and m > n for m, n in zip(transform.reach(SIZE), SIZE))
    assert transform.reach(SIZE) == (20, 40, 34), "4 mm on each side: 2, 4 and 5 voxels"
    draw, again = (SpatialTransform(**ALWAYS, **e).draw(batch.seed) for e in ({}, ELASTIC))
    assert torch.equal(draw.angles, again.angles) and torch.equal(draw.shift, again.shift)


def test_elastic_is_for_some_samples_and_copies_the_others():
    transform = SpatialTransform(p_rotation=0, p_scale=0, **ELASTIC | {"p_elastic": 0.5})
    batch = region(transform, batch=40)
    out, geometry = transform(batch, SIZE)
    assert geometry.elastic is not None
    deformed = geometry.elastic.control.flatten(1).abs().amax(1) > 0
    assert 10 < deformed.sum() < 30
    points = geometry.source_points()
    whole = (points == points.round()).flatten(1).all(1)
    assert torch.equal(whole, ~deformed)
    for b in (~deformed).nonzero().flatten().tolist():
        d, h, w = points[b].long().unbind(-1)
        assert torch.equal(out.image[b, 0], batch.image[b, 0, d, h, w])


def test_finer_voxels_than_planned_never_fold():
    transform = SpatialTransform(p_rotation=0, p_scale=0, **ELASTIC)
    batch = region(transform, batch=8, spacing=(0.3, 0.2, 0.1))
    elastic = transform(batch, SIZE)[1].elastic
    assert elastic is not None and elastic.control.abs().max() <= 0.25 * 16
