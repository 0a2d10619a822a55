"""Every geometric label under flips, rotations, scaling and elastic deformation, recomputed from world millimetres.

Two ways, neither through Geometry's own arithmetic: in numpy from the affine of the augmented batch (and scipy's
splines), and by painting each source voxel's world position into the image, which then says where its voxels were.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from ssl3d.augment import Compose, SpatialTransform
from ssl3d.regions import Geometry, RegionBatch
from ssl3d.tasks import volume_fusion
from ssl3d.tasks.local_contrast import LocalContrast
from ssl3d.tasks.matched_points import features_at
from ssl3d.tasks.position import PositionRegression, normalised_coordinates
from ssl3d.tasks.voco import VoCo
from ssl3d.tasks.volume_fusion import VolumeFusion
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (10, 24, 36)
STILL = {"p_flip": 0.0, "p_rotation": 0.0, "p_scale": 0.0}
CHANGES = {
    "flips": STILL | {"p_flip": 0.5},
    "rotations": STILL | {"p_rotation": 1.0, "rotation": 40.0},
    "scaling": STILL | {"p_scale": 1.0, "p_axis_scale": 1.0, "scale": (0.7, 1.4)},
    "elastic": STILL | {"p_elastic": 1.0, "elastic": 5.0, "elastic_spacing": 20.0},
}
CHANGES["all"] = CHANGES["elastic"] | {
    "p_flip": 0.5, "p_rotation": 1.0, "rotation": 25.0, "p_scale": 1.0, "p_axis_scale": 1.0, "shift": 0.15,
}  # fmt: skip
changed = pytest.mark.parametrize("change", CHANGES)


def augmentation(change: str) -> Compose:
    return Compose([SpatialTransform(**CHANGES[change], spacing=(3, 1, 0.8), max_reach=3)])


def oblique(batch: RegionBatch) -> RegionBatch:
    """The batch with scans that lie askew in the scanner, each in its own way."""
    affine = batch.affine.clone()
    turns = Rotation.from_quat(np.random.default_rng(0).normal(size=(len(batch), 4))).as_matrix()
    affine[:, :3, :3] = torch.from_numpy(turns) @ affine[:, :3, :3]
    return batch.replace(affine=affine)


def painted(batch: RegionBatch) -> RegionBatch:
    """The batch whose three channels are the world position in mm of each voxel: linear, so kept by interpolation."""
    grid = np.stack(np.meshgrid(*map(np.arange, batch.size), indexing="ij"), -1)
    image = np.stack([at(batch.affine[b], grid + batch.start[b].numpy()) for b in range(len(batch))])
    return batch.replace(image=torch.from_numpy(image).movedim(-1, 1).float())


def at(affine: torch.Tensor, voxels: np.ndarray) -> np.ndarray:
    """Voxels (...,3) -> world mm (...,3), float64."""
    return voxels @ affine[:3, :3].numpy().T + affine[:3, 3].numpy()


def back(affine: torch.Tensor, world: np.ndarray) -> np.ndarray:
    """World mm (...,3) -> voxels (...,3), float64."""
    return (world - affine[:3, 3].numpy()) @ np.linalg.inv(affine[:3, :3].numpy()).T


def weights(x: np.ndarray, step: float, count: int) -> np.ndarray:
    """Voxel coordinates (n,) -> (n, control points): cubic B-splines, the second control point on the outer face."""
    place = (x + 0.5) / step + 1
    columns = []
    for k in range(count):
        column = np.zeros(len(x))
        near = np.abs(place - k) < 2
        column[near] = BSpline.basis_element([k - 2, k - 1, k, k + 1, k + 2], extrapolate=False)(place[near])
        columns.append(column)
    return np.stack(columns, 1)


def world(out: RegionBatch, geometry: Geometry, b: int, points: np.ndarray) -> np.ndarray:
    """Output voxels (n,3) of sample b -> world mm (n,3), from the affine of the augmented batch, float64."""
    if geometry.elastic is not None:
        control, step = geometry.elastic.control[b].double().numpy(), geometry.elastic.step
        axes = [weights(points[:, i], step[i], control.shape[i + 1]) for i in range(3)]
        points = points + np.einsum("cdhw,nd,nh,nw->nc", control, *axes)
    return at(out.affine[b], points + out.start[b].numpy())


def voxels(size: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, 3).astype(float)


@changed
def test_positions(change):
    augment = augmentation(change)
    source = painted(oblique(make_batch(augment.reach(SIZE), batch=3, channels=3, padded=3)))
    out, geometry = augment(source, SIZE)
    found = normalised_coordinates(source, geometry).double().numpy()
    assert out.valid is not None
    for b in range(3):
        shape = source.volume_shape[b].numpy()
        seen = out.image[b].flatten(1).T.double().numpy()
        for where, allowed in ((world(out, geometry, b, voxels(SIZE)), 1e-2), (seen, 0.1)):
            expected = ((back(source.affine[b], where) + 0.5) / shape * 2 - 1).T.reshape(3, *SIZE)
            error = np.abs(found[b] - expected) * shape[:, None, None, None] / 2
            assert error[:, out.valid[b, 0].numpy()].max() < allowed, "voxels"
    assert 0.2 < out.valid.float().mean() <= 1


@changed
def test_the_network_is_told_these_positions(change):
    task = PositionRegression(TinyUNet(3), SIZE, augment=augmentation(change))
    source = painted(oblique(make_batch(task.region.size, batch=2, channels=3)))
    seen = []
    encode = task.backbone.encode
    task.backbone.encode = lambda x: seen.append(x) or encode(x)  # type: ignore[func-returns-value, method-assign]
    affine, shape = source.affine, source.volume_shape

    def locate(features: list[torch.Tensor], size: tuple[int, ...]) -> torch.Tensor:
        """What a network would say that reads the painted positions."""
        answers = []
        for b in range(2):
            stored = back(affine[b], seen[0][b].flatten(1).T.double().numpy())
            answers.append(torch.from_numpy(((stored + 0.5) / shape[b].numpy() * 2 - 1).T.reshape(3, *size)))
        return torch.stack(answers).float().requires_grad_()

    task.locate.forward = locate  # type: ignore[method-assign, assignment]
    assert task(source)["position_error"] < 1e-3


@changed
def test_overlaps(change):
    crop, grid = (10, 12, 8), (1, 3, 2)
    task = VoCo(TinyUNet(), crop_size=crop, grid=grid, hidden_dim=8, augment=augmentation(change))
    batch = oblique(make_batch(task.region.size, batch=4))
    for j in range(task.crops):
        starts = task.draw_starts(batch)[:, j]
        out, geometry = task.read_crop(batch, starts, f"crop {j}")
        found = task.overlap(geometry, starts).double().numpy()
        for b in range(4):
            stored = back(batch.affine[b], world(out, geometry, b, voxels(crop)))
            place = stored - batch.start[b].numpy() - np.array(task.margin) + 0.5  # from the tiled region's corner
            cell = np.floor(place / crop).astype(int)
            expected = [(cell == c).all(1).mean() for c in itertools.product(*map(range, grid))]
            assert np.abs(found[b] - expected).max() < 1e-5
            assert 0.2 < found[b].sum() < 1 + 1e-5


@changed
def test_correspondences(change):
    task = LocalContrast(TinyUNet(3), SIZE, augmentation(change), scale=1, count=16, region=3, hidden_dim=8, out_dim=4)
    batch = painted(oblique(make_batch(task.region.size, batch=3, channels=3)))
    views, geometries = task.views(batch)
    points = task.sampler.match(views, geometries)
    spacing = batch.spacing[0].numpy()
    assert points.matched.float().mean() > 0.3
    painted_at = [features_at(v.image, p).double().numpy() for v, p in zip(views, (points.first, points.second))]
    for b in range(3):
        chosen = points.matched[b].numpy()
        where = [p[b].double().numpy()[chosen].reshape(-1, 3) for p in (points.first, points.second)]
        first, second = (world(v, g, b, p) for v, g, p in zip(views, geometries, where))
        for one, other in ((first, second), tuple(x[b][chosen].reshape(-1, 3) for x in painted_at)):
            apart = np.abs(back(batch.affine[b], one) - back(batch.affine[b], other))
            assert apart.max() < 0.1, "voxels"
        centre = at(batch.affine[b], points.source[b].double().numpy()[chosen] + batch.start[b].numpy())
        middle = first.reshape(chosen.sum(), 27, 3)[:, 13]
        assert (np.linalg.norm(centre - middle, axis=1) < 0.01 * spacing.min()).all()


@changed
def test_fusion_classes(change, monkeypatch):
    task = VolumeFusion(TinyUNet(3), SIZE, smallest=3, largest=(6, 9, 12), augment=augmentation(change))
    batch = painted(oblique(make_batch(task.region.size, batch=2, channels=3)))
    seen, labels, moved = [], [], []
    encode, loss, augment = task.backbone.encode, volume_fusion.dice_ce, task.augment
    assert augment is not None
    task.backbone.encode = lambda x: seen.append(x) or encode(x)  # type: ignore[func-returns-value, method-assign]
    task.augment = lambda b, s: moved.append(augment(b, s)) or moved[-1]  # type: ignore[assignment, func-returns-value]
    monkeypatch.setattr(volume_fusion, "dice_ce", lambda *a: labels.append(a[1:]) or loss(*a))
    task(batch)
    (fused,), ((label, where),), ((out, geometry),) = seen, labels, moved
    mm = [world(out, geometry, b, voxels(SIZE)) for b in range(2)]
    for b in range(2):
        mine, other = mm[b], mm[1 - b]
        mixed = fused[b].flatten(1).T.double().numpy()
        share = ((mixed - other) * (mine - other)).sum(1) / ((mine - other) ** 2).sum(1)
        inside = where[b].flatten().numpy()
        expected = share[inside] * task.levels
        assert np.abs(expected - label[b].flatten().numpy()[inside]).max() < 0.05
        assert len(np.unique(np.round(expected))) == task.levels + 1 and inside.mean() > 0.2
