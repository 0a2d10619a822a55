"""Diffusion condensation: points drift to the mean of their neighbourhood and merge, from fine clusters to coarse ones.

Source: Brugnone et al., "Coarse graining of data via inhomogeneous diffusion condensation", IEEE Big Data 2019, as CUTS
uses it (Liu et al., MICCAI 2024). For pictures of what a network learnt: on the CPU, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

Points = NDArray[np.float64]
Labels = NDArray[np.int64]

ITERATIONS = 1000
STILL = 0.1  # of the kernel's width: when no point moves further, the kernel widens
WIDEN = 2.0  # its squared width
MERGE = 0.05  # of the kernel's width: points nearer than this are one


def condense(points: Points) -> list[Labels]:
    """Points (N,F) -> the partitions (N,) on the way from points that differ to one cluster, finest first.

    Each has fewer clusters than the one before; labels count from 0. A cluster weighs as much as its points.
    """
    _, labels = np.unique(points, axis=0, return_inverse=True)
    labels = labels.reshape(-1).astype(np.int64)
    points, weights = _merged(points, labels)
    partitions = [labels]
    width = _least_distance(points)
    for _ in range(ITERATIONS):
        if len(points) == 1:
            break
        kernel = np.exp(-cdist(points, points, "sqeuclidean") / width**2) * weights
        moved = kernel @ points / kernel.sum(1, keepdims=True)
        step = np.sqrt(((moved - points) ** 2).sum(1)).max()
        near = csr_array(cdist(moved, moved) < MERGE * width)
        count, group = connected_components(near, directed=False)
        if count < len(points):
            labels = group[labels].astype(np.int64)
            partitions.append(labels)
            moved, weights = _merged(moved, group, weights)
        points = moved
        if step < STILL * width:
            width *= np.sqrt(WIDEN)
    return partitions


def coarsest_with(partitions: Sequence[Labels], clusters: int) -> Labels:
    """Of partitions, finest first, the coarsest one that still has `clusters`; the finest when none has."""
    enough = [labels for labels in partitions if labels.max() + 1 >= clusters]
    return enough[-1] if enough else partitions[0]


def _merged(points: Points, group: Labels, weights: Points | None = None) -> tuple[Points, Points]:
    """The weighted means of groups of points, and their weights."""
    own = np.ones(len(points)) if weights is None else weights
    total = np.bincount(group, own).astype(np.float64)
    sums = np.zeros((len(total), points.shape[1]))
    np.add.at(sums, group, points * own[:, None])
    return sums / total[:, None], total


def _least_distance(points: Points) -> float:
    """The median distance of a point to its nearest other; 1 for a single point."""
    if len(points) == 1:
        return 1.0
    distance = cdist(points, points)
    np.fill_diagonal(distance, np.inf)
    return float(np.median(distance.min(1)))
