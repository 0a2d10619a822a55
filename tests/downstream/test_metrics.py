"""Scores against brute force over all pairs of surface points, and against MONAI."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from skimage.measure import marching_cubes, mesh_surface_area

from downstream.metrics import METRICS, dice, score, surface, surface_dice, surface_distances

SPACING = (2.5, 0.7, 1.1)


def blobs(seed: int, shape=(9, 14, 11)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=bool)
    for _ in range(2):
        low = [rng.integers(0, n - 3) for n in shape]
        mask[tuple(slice(v, v + rng.integers(2, 6)) for v in low)] = True
    return mask & (rng.random(shape) > 0.1)


def brute_surface(mask: np.ndarray) -> np.ndarray:
    """Surface voxels one by one: a face neighbour outside the mask or the image."""
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in itertools.product(range(3), (-1, 1)):
            n = voxel.copy()
            n[axis] += step
            if n[axis] < 0 or n[axis] >= mask.shape[axis] or not mask[tuple(n)]:
                found.append(voxel)
                break
    return np.array(found)


def brute_distances(p: np.ndarray, r: np.ndarray) -> tuple[float, float]:
    a, b = brute_surface(p) * SPACING, brute_surface(r) * SPACING
    pairs = np.linalg.norm(a[:, None] - b[None], axis=-1)
    forward, backward = pairs.min(axis=1), pairs.min(axis=0)
    hd95 = max(np.percentile(forward, 95), np.percentile(backward, 95))
    return hd95, np.concatenate([forward, backward]).mean()


@pytest.mark.parametrize("seed", range(6))
def test_surface_distances_equal_brute_force(seed):
    p, r = blobs(seed), blobs(seed + 100)
    assert (np.argwhere(surface(p)) == brute_surface(p)).all()
    assert surface_distances(p, r, SPACING) == pytest.approx(brute_distances(p, r), abs=1e-9)
    assert surface_distances(r, p, SPACING) == pytest.approx(brute_distances(p, r), abs=1e-9)


@pytest.mark.filterwarnings("ignore::FutureWarning:monai.*")
def test_distances_agree_with_monai():
    p, r = blobs(3), blobs(4)
    tensors = [torch.from_numpy(np.stack([~m, m]))[None] for m in (p, r)]
    hd95 = compute_hausdorff_distance(*tensors, percentile=95, spacing=SPACING)
    assd = compute_average_surface_distance(*tensors, symmetric=True, spacing=SPACING)
    assert surface_distances(p, r, SPACING) == pytest.approx((float(hd95), float(assd)), abs=1e-5)


def test_a_shift_by_one_voxel_is_its_length_in_mm():
    p = np.zeros((8, 9, 10), dtype=bool)
    p[2:6, 3:7, 3:8] = True
    for axis, length in enumerate(SPACING):
        hd95, _ = surface_distances(p, np.roll(p, 1, axis), SPACING)
        assert hd95 <= length + 1e-9
    plane = np.zeros((8, 9, 10), dtype=bool)
    plane[3] = True
    assert surface_distances(plane, np.roll(plane, 2, 0), SPACING) == pytest.approx((5.0, 5.0))


def test_empty_masks():
    empty, full = np.zeros((4, 5, 6), dtype=bool), np.ones((4, 5, 6), dtype=bool)
    assert dice(empty, empty) == 1 and surface_distances(empty, empty, SPACING) == (0, 0)
    assert dice(empty, full) == 0 == dice(full, empty)
    diagonal = np.linalg.norm(np.array([4, 5, 6]) * SPACING)
    assert surface_distances(empty, full, SPACING) == pytest.approx((diagonal, diagonal))


def cells(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N,3) mm and areas (N,) mm^2 of the surface, a cell of 2 x 2 x 2 voxels at a time."""
    mask = np.pad(mask, 2)
    points, areas = [], []
    for corner in np.ndindex(*(n - 1 for n in mask.shape)):
        cell = mask[tuple(slice(c, c + 2) for c in corner)]
        if 0 < cell.sum() < 8:
            vertices, faces, *_ = marching_cubes(cell.astype(float), 0.5, spacing=SPACING)
            points.append(np.array(corner) * SPACING)
            areas.append(mesh_surface_area(vertices, faces))
    return np.array(points), np.array(areas)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [0.8, 2.0])
def test_surface_dice_equals_its_slow_twin(seed, tolerance):
    p, r = blobs(seed), blobs(seed + 100)
    (a, area_a), (b, area_b) = cells(p), cells(r)
    pairs = np.linalg.norm(a[:, None] - b[None], axis=-1)
    near = area_a[pairs.min(1) <= tolerance].sum() + area_b[pairs.min(0) <= tolerance].sum()
    found = surface_dice(p, r, SPACING, tolerance)
    assert found == pytest.approx(near / (area_a.sum() + area_b.sum()), rel=1e-6)
    assert surface_dice(r, p, SPACING, tolerance) == pytest.approx(found, abs=1e-6)


def ball(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """A ball in mm on the anisotropic grid."""
    shape = (22, 64, 44)
    axes = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, SPACING)), indexing="ij")
    return sum((x - c) ** 2 for x, c in zip(axes, centre)) <= radius**2


def test_surface_dice_of_balls_is_the_analytic_share():
    """Of a sphere moved by d, the part with |cos| <= about tolerance / d stays within tolerance of where it was."""
    centre, radius, shift, tolerance = (26.0, 22.0, 23.0), 17.0, 6.0, 2.0
    reference = ball(centre, radius)
    cosine = np.linspace(-1, 1, 100_001)  # uniform over a sphere's area
    distance = np.abs(np.sqrt(radius**2 + shift**2 + 2 * radius * shift * cosine) - radius)
    expected = (distance <= tolerance).mean()
    for axis in range(3):
        moved = ball(tuple(c + shift * (i == axis) for i, c in enumerate(centre)), radius)
        assert surface_dice(moved, reference, SPACING, tolerance) == pytest.approx(expected, abs=0.07)
    assert surface_dice(ball(centre, radius + 1.5), reference, SPACING, 3.5) == 1
    assert surface_dice(ball(centre, radius - 9), reference, SPACING, 3.5) == 0


def test_surface_dice_of_empty_masks():
    empty, full = np.zeros((4, 5, 6), dtype=bool), np.ones((4, 5, 6), dtype=bool)
    assert surface_dice(empty, empty, SPACING, 2.0) == 1 == surface_dice(full, full, SPACING, 2.0)
    assert surface_dice(empty, full, SPACING, 2.0) == 0 == surface_dice(full, empty, SPACING, 2.0)


def test_scores_classes_and_their_mean_and_leaves_out_what_nobody_annotated():
    reference = np.zeros((4, 6, 8), dtype=np.uint8)
    reference[1:3, 1:4, 1:4] = 3
    reference[1:3, 4:6, 5:8] = 7
    reference[0] = 255
    prediction = reference.copy()
    prediction[0] = 3  # only wrong where nothing is known
    prediction[1:3, 4:6, 5] = 0
    scores = score(prediction, reference, {3: "a", 7: "b"}, SPACING, ignore=255)
    rows = {(label, metric): v for label, metric, v in scores}
    assert rows["a", "dice"] == 1 and rows["a", "assd"] == 0
    assert rows["b", "dice"] == pytest.approx(2 * 8 / (8 + 12))
    assert rows["mean_foreground", "dice"] == pytest.approx((1 + 0.8) / 2)
    assert len(rows) == 12 == 3 * len(METRICS)
    assert rows["a", "nsd"] == 1 and 0 < rows["b", "nsd"] <= 1
    with pytest.raises(ValueError, match="different grids"):
        score(prediction[1:], reference, {3: "a"}, SPACING)
