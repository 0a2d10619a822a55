"""Labels: no new value, no lost class, volumes and places kept."""

import numpy as np
import pytest

from preprocessing.geometry import resampled_grid
from preprocessing.labels import as_integers, label_info, resample_labels
from preprocessing.refusal import Refusal


def _balls(shape, spacing, radius_mm, count, seed=0):
    """`count` balls of different classes at random places (mm), on a grid of `spacing`."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing)], indexing="ij"), -1)
    label = np.zeros(shape, np.uint8)
    size = np.array(shape) * spacing
    for value in range(1, count + 1):
        centre = generator.uniform(radius_mm + 2, size - radius_mm - 2)
        label[((grid - centre) ** 2).sum(-1) <= radius_mm**2] = value
    return label


@pytest.mark.parametrize(
    ("spacing", "target"),
    [((3.3, 0.9, 0.98), (1, 1, 1)), ((0.5, 0.5, 0.5), (1, 1, 1)), ((0.7, 1.6, 2.2), (1.5, 1.5, 1.5))],
)
def test_volumes_and_centroids_survive(spacing, target):
    spacing = np.array(spacing)
    shape = tuple(int(n) for n in np.ceil(60 / spacing))
    label = _balls(shape, spacing, 11.0, 2)
    axes, affine = resampled_grid(shape, np.diag([*spacing, 1]), target)
    out = resample_labels(label, axes)
    assert set(np.unique(out)) <= set(np.unique(label))
    for value in (1, 2):
        before, after = np.argwhere(label == value), np.argwhere(out == value)
        assert len(after) * np.prod(target) == pytest.approx(len(before) * np.prod(spacing), rel=0.02)
        moved = after.mean(0) @ affine[:3, :3].T + affine[:3, 3]
        assert np.linalg.norm(moved - before.mean(0) * spacing) < 0.5


def test_a_class_of_one_voxel_survives_shrinking():
    label = np.zeros((20, 31, 26), np.uint8)
    label[3, 7, 5], label[11, 20, 13], label[14:, :, :] = 9, 117, 3
    out = resample_labels(label, resampled_grid(label.shape, np.diag([1.0, 0.4, 0.5, 1]), (2.5, 1.9, 2.0))[0])
    assert set(np.unique(out)) == {0, 3, 9, 117}


def test_many_classes_cost_little():
    label = _balls((60, 70, 64), np.array([1.0, 1.0, 1.0]), 6.0, 117, seed=3)
    out = resample_labels(label, resampled_grid(label.shape, np.eye(4), (1.7, 1.7, 1.7))[0])
    assert set(np.unique(out)) == set(np.unique(label))


def test_coordinates_lie_in_their_class_and_are_bounded_and_repeatable():
    label = _balls((40, 30, 50), np.ones(3), 9.0, 2).astype(np.uint8)
    label[0] = 255
    info = label_info("case", label, {0: "background", 1: "liver"}, 255)
    assert info.classes == {0: "background", 1: "liver", 2: "class_2", 255: "class_255"}
    assert set(info.coordinates) == {1, 2} and info.ignore == 255
    for value, places in info.coordinates.items():
        assert len(places) == 1000
        assert all(label[z, y, x] == value for z, y, x in places)
    assert label_info("case", label, {}, 255).coordinates == info.coordinates


@pytest.mark.parametrize("values", [[0.0, 0.5], [0.0, np.nan], [-1, 2], [0, 70000]])
def test_what_is_no_label_is_refused(values):
    with pytest.raises(Refusal, match="label_not_integer"):
        as_integers(np.array(values))


def test_dtypes():
    assert as_integers(np.array([0.0, 254.9999])).dtype == np.uint8
    assert as_integers(np.array([0, 256])).dtype == np.uint16
