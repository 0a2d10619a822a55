"""Diffusion condensation: clusters of clusters are found, whatever the order and the scale of the points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ssl3d.tasks.condensation import coarsest_with, condense


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two labellings are one partition."""
    pairs = len(set(zip(first.tolist(), second.tolist())))
    return pairs == len(set(first.tolist())) == len(set(second.tolist()))


@pytest.fixture(scope="module")
def nested() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 points in 6 tight clusters, which lie in 2 loose ones."""
    fine, coarse = np.arange(60) % 6, np.arange(60) % 2
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [100, 0], [8, 0], [108, 1], [0, 9], [100, 9]], dtype=float)
    return centres[fine] + rng.normal(size=(60, 2)), fine, coarse


def test_nested_clusters_are_found_at_their_scales(nested):
    points, fine, coarse = nested
    partitions = condense(points)
    counts = [labels.max() + 1 for labels in partitions]
    assert counts[0] == 60 and counts[-1] == 1 and counts == sorted(set(counts), reverse=True)
    assert same(coarsest_with(partitions, 6), fine) and same(coarsest_with(partitions, 2), coarse)
    for finer, coarser in itertools.pairwise(partitions):
        assert len(set(zip(finer.tolist(), coarser.tolist()))) == finer.max() + 1, "clusters merge and never split"


def test_order_scale_and_place_of_the_points_do_not_matter(nested):
    points, _, _ = nested
    order = np.random.default_rng(1).permutation(60)
    expected = condense(points)
    for changed, back in ((points[order], np.argsort(order)), (1000 * points - 5, np.arange(60))):
        found = condense(changed)
        for clusters in (6, 2):
            assert same(coarsest_with(found, clusters)[back], coarsest_with(expected, clusters))


def test_equal_points_are_one_cluster_from_the_start():
    assert [labels.tolist() for labels in condense(np.ones((4, 3)))] == [[0, 0, 0, 0]]
    partitions = condense(np.array([[0.0], [5.0], [0.0]]))
    assert same(partitions[0], np.array([0, 1, 0])) and partitions[-1].max() == 0
    assert coarsest_with(partitions, 9) is partitions[0]
