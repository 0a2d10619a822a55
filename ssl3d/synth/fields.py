"""Smooth random fields, known in closed form at every position: what bends shapes, shades images and grains tissue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DEVIATION = 3.0  # of the control points, so that the field between them has a deviation near 1 (0.48 ** -1.5)


@dataclass(frozen=True)
class SmoothField:
    """Uniform cubic B-splines over a lattice of random control points.

    `control` (C,gD,gH,gW) float32; `step_mm` (z,y,x): between control points. The field nowhere exceeds its control
    points. Sums of products alone, in one order: a position has the same value whatever box it is asked for in.
    """

    control: np.ndarray
    step_mm: tuple[float, float, float]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        channels: int,
        extent_mm: Sequence[float] | np.ndarray,
        step_mm: Sequence[float] | np.ndarray,
    ) -> SmoothField:
        """A field over a box of `extent_mm`, normal control points `step_mm` apart: mean 0, deviation near 1."""
        lattice = [math.floor(n / s) + 4 for n, s in zip(extent_mm, step_mm)]
        control = DEVIATION * rng.standard_normal((channels, *lattice), dtype=np.float32)
        d, h, w = (float(s) for s in step_mm)
        return cls(control, (d, h, w))

    def scaled(self, amplitude: Sequence[float]) -> SmoothField:
        """The field with every channel multiplied by its number."""
        factors = np.asarray(amplitude, dtype=np.float32)[:, None, None, None]
        return SmoothField(self.control * factors, self.step_mm)

    def largest(self) -> np.ndarray:
        """(C,): what no value of a channel exceeds."""
        return np.abs(self.control).max(axis=(1, 2, 3))

    def on(self, axes_mm: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
        """(C,D,H,W) float32 at all positions whose coordinates along z, y, x are `axes_mm`."""
        field = torch.from_numpy(self.control).to(device, non_blocking=True)
        for axis, (x, step) in enumerate(zip(axes_mm, self.step_mm), start=1):
            first, weights = _taps(x, step, field.shape[axis])
            at = torch.from_numpy(first).to(device, non_blocking=True)
            factor = torch.from_numpy(weights).to(device, non_blocking=True)
            shape = [len(x) if i == axis else 1 for i in range(4)]
            parts = [field.index_select(axis, at + k) * factor[:, k].view(shape) for k in range(4)]
            field = ((parts[0] + parts[1]) + parts[2]) + parts[3]
        return field


def _taps(x_mm: np.ndarray, step_mm: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n,) -> the first of four control points (n,), and their weights (n,4); beyond the lattice it stays."""
    place = np.clip(np.asarray(x_mm, dtype=np.float64) / step_mm, 0, count - 3)
    first = np.minimum(np.floor(place), count - 4)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=-1) / 6
    return first.astype(np.int64), weights.astype(np.float32)
