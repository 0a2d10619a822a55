"""A random anatomy: many bent shapes painted over one another, in most cases within a body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl3d.synth.fields import SmoothField

COUNT = (20, 40)  # shapes of a scene, as anatomix draws organs
SIDES = 3  # labels that are no shapes: background, the body between the shapes, the wall
P_BODY, P_RIM = 2 / 3, 1 / 2  # scenes with a body; bodies with a wall
EXPONENTS = (2, 2, 4, 8)  # ellipsoids, and what lies between them and boxes
# Of the edge of a cube of that volume, log-uniform on each axis: balls, plates, and tubes as vesselFM's.
RADII = (0.05, 0.45)
P_THICK, THICKEST = 0.5, 3.0  # grids with voxels longer along one axis, and how long at most
WAVES = ((3, 0.05), (8, 0.015))  # octaves of the bending: lattice steps an edge, deviation as a share of the edge


@dataclass(frozen=True)
class Superellipsoid:
    """|u|^e + |v|^e + |w|^e <= 1 in its own axes: `centre` (3,) mm, `radii` (3,) mm along the columns of `axes`."""

    centre: np.ndarray
    radii: np.ndarray
    axes: np.ndarray
    exponent: int

    def value(self, points: Sequence[Tensor]) -> Tensor:
        """Points (z,y,x) mm, three tensors that broadcast -> |u|^e + |v|^e + |w|^e."""
        z, y, x = (p - float(c) for p, c in zip(points, self.centre))
        total: Tensor | None = None
        for column, radius in zip(self.axes.T, self.radii):
            a, b, c = (float(v / radius) for v in column)
            power = (z * a + y * b + x * c).square()
            for _ in range(self.exponent.bit_length() - 2):  # 2, 4, 8: squared again, since pow differs by its kernel
                power = power.square()
            total = power if total is None else total + power
        assert total is not None
        return total

    def reach_mm(self) -> np.ndarray:
        """(3,): how far it extends from its centre along z, y, x at most."""
        return np.abs(self.axes) @ self.radii


@dataclass(frozen=True)
class Scene:
    """A label map of infinite resolution over a box of `extent_mm` (z,y,x).

    `shapes` are painted in order, each with a label of its own (the k-th k + 2, later ones win) and bent by the sum of
    the `bends` (displacements, mm). Within `body`, when there is one, what no shape covers has label 1 and all outside
    is background, 0; its outermost part, beyond the share `wall` of its radius, has the last label.
    Values as in anatomix, but that the shapes are these and not organs, that the larger are painted first, so that few
    are hidden, and that background is never covered by chance (there the first organ has its label).
    """

    extent_mm: tuple[float, float, float]
    shapes: tuple[Superellipsoid, ...]
    bends: tuple[SmoothField, ...]
    body: Superellipsoid | None = None
    wall: float | None = None

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        extent_mm: Sequence[float],
        count: tuple[int, int] = COUNT,
        radii: tuple[float, float] = RADII,
    ) -> Scene:
        """A scene of `count` shapes over a box of `extent_mm` (z,y,x), of `radii` in edges of a cube of its volume."""
        extent = np.asarray(extent_mm, dtype=np.float64)
        edge = extent.prod() ** (1 / 3)
        shapes = []
        for _ in range(rng.integers(count[0], count[1] + 1)):
            own = edge * np.exp(rng.uniform(np.log(radii[0]), np.log(radii[1]), 3))
            exponent = int(rng.choice(EXPONENTS))
            shapes.append(Superellipsoid(rng.uniform(0, extent), own, _rotation(rng), exponent))
        shapes.sort(key=lambda s: -float(s.radii.prod()))
        body = wall = None
        if rng.uniform() < P_BODY:
            centre = extent * rng.uniform(0.4, 0.6, 3)
            body = Superellipsoid(centre, extent * rng.uniform(0.375, 0.5625, 3), np.eye(3), 2)
            wall = rng.uniform(0.85, 0.96) if rng.uniform() < P_RIM else None
        bends = tuple(
            SmoothField.draw(rng, 3, extent, extent / steps).scaled([share * edge] * 3) for steps, share in WAVES
        )
        d, h, w = (float(n) for n in extent)
        return cls((d, h, w), tuple(shapes), bends, body, wall)

    @property
    def labels(self) -> int:
        """How many labels there are, background and those that happen to be hidden too."""
        return len(self.shapes) + SIDES

    def label(self, axes_mm: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
        """(D,H,W) int64: the label at all positions whose coordinates along z, y, x are `axes_mm` (ascending)."""
        label = torch.zeros([len(a) for a in axes_mm], dtype=torch.int64, device=device)
        points = torch.zeros((3, *label.shape), dtype=torch.float32, device=device)
        for bend in self.bends:
            points += bend.on(axes_mm, device)
        for axis, a in enumerate(axes_mm):
            shape = [-1 if i == axis else 1 for i in range(3)]
            points[axis] += torch.from_numpy(np.asarray(a, np.float32)).to(device, non_blocking=True).view(shape)
        if self.body is not None:
            label += 1
        margin = sum((bend.largest() for bend in self.bends), np.zeros(3))
        for number, blob in enumerate(self.shapes, start=2):
            box = _box(axes_mm, blob.centre, blob.reach_mm() + margin)
            if label[box].numel():
                label[box].masked_fill_(blob.value([p[box] for p in points]) <= 1, number)
        if self.body is not None:
            value = self.body.value(list(points))
            if self.wall is not None:
                label.masked_fill_(value > self.wall**self.body.exponent, self.labels - 1)
            label.masked_fill_(value > 1, 0)
        return label


def voxel_edges(rng: np.random.Generator) -> np.ndarray:
    """(3,) z, y, x in shortest edges: ones, in half of the draws with a longer one along one axis (thick slices)."""
    edges = np.ones(3)
    if rng.uniform() < P_THICK:
        edges[rng.integers(3)] = rng.uniform(1, THICKEST)
    return edges


def compact(label: Tensor, labels: int) -> Tensor:
    """The label map with its labels renamed to 0, 1, 2, ... without gaps, in their order; 0 stays background.

    `labels`: more than any label is. The device is not waited for.
    """
    present = torch.zeros(labels, dtype=torch.int64, device=label.device)
    present.scatter_(0, label.flatten(), 1)
    present[0] = 1
    return (present.cumsum(0) - 1)[label]


def _box(axes_mm: Sequence[np.ndarray], centre: np.ndarray, reach: np.ndarray) -> tuple[slice, ...]:
    """Where among the positions a shape can lie."""
    return tuple(
        slice(int(np.searchsorted(a, c - r)), int(np.searchsorted(a, c + r, "right")))
        for a, c, r in zip(axes_mm, centre, reach)
    )


def _rotation(rng: np.random.Generator) -> np.ndarray:
    """A random orthonormal basis, in columns."""
    return np.linalg.qr(rng.normal(size=(3, 3)))[0]
