"""Separable resampling of images: cubic spline interpolation, low-passed on the axes that shrink.

One linear operator an axis. Its kernel is the cardinal cubic spline (Unser, "Splines: a perfect fit for signal and
image processing", 1999): exactly what a prefiltered order-3 B-spline interpolates with. On an axis that shrinks by
s > 1 the kernel is stretched by s, which moves its cut-off to the new grid's Nyquist frequency (below 1 % from 1.5
times that frequency on), so no alias is left; an axis that grows is interpolated without blur. Beyond the edge the
signal is mirrored about the face of the last voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from preprocessing.geometry import AxisGrid

_POLE = np.sqrt(3.0) - 2.0  # of the cubic B-spline's inverse filter
_RADIUS = 10  # samples; the kernel has decayed to |pole|^10 = 2e-6 there


def _cubic_b_spline(x: np.ndarray) -> np.ndarray:
    """Centred cubic B-spline."""
    x = np.abs(x)
    near = 2.0 / 3.0 - x**2 + x**3 / 2.0
    far = np.clip(2.0 - x, 0.0, None) ** 3 / 6.0
    return np.where(x < 1.0, near, far)


def cardinal_cubic(x: np.ndarray) -> np.ndarray:
    """Cardinal cubic spline: 1 at 0, 0 at every other integer; cut off at 10 samples."""
    total = np.zeros_like(x, dtype=np.float64)
    gain = -6.0 * _POLE / (1.0 - _POLE**2)
    for k in range(-_RADIUS - 2, _RADIUS + 3):
        total += gain * _POLE ** abs(k) * _cubic_b_spline(x - k)
    return np.where(np.abs(x) <= _RADIUS, total, 0.0)


def triangle(x: np.ndarray) -> np.ndarray:
    """The linear interpolation kernel."""
    return np.clip(1.0 - np.abs(x), 0.0, None)


def operator(grid: AxisGrid, kernel: str = "cubic") -> sparse.csr_array:
    """(n, n_in) float32 matrix that resamples one axis; rows sum to 1. `kernel`: "cubic" or "linear"."""
    function, radius = {"cubic": (cardinal_cubic, _RADIUS), "linear": (triangle, 1)}[kernel]
    stretch = max(1.0, grid.step)
    centres = grid.start + grid.step * np.arange(grid.n)
    reach = int(np.ceil(radius * stretch)) + 1
    taps = np.floor(centres).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)[None]
    weights = function((taps - centres[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    period = np.mod(taps, 2 * grid.n_in)
    folded = np.where(period < grid.n_in, period, 2 * grid.n_in - 1 - period)
    kept = np.abs(weights) > 1e-7
    rows = np.broadcast_to(np.arange(grid.n)[:, None], taps.shape)[kept]
    matrix = sparse.coo_array((weights[kept], (rows, folded[kept])), shape=(grid.n, grid.n_in))
    return matrix.tocsr().astype(np.float32)


def _along(matrix: sparse.csr_array, volume: np.ndarray, axis: int) -> np.ndarray:
    """Apply an operator to one axis of (Z, Y, X) float32, slab by slab so that the working set stays in the cache."""
    z, y, x = volume.shape
    n = matrix.shape[0]
    if axis == 0:
        out = np.empty((n, y, x), np.float32)
        for j in range(y):
            out[:, j] = matrix @ np.ascontiguousarray(volume[:, j])
    elif axis == 1:
        out = np.empty((z, n, x), np.float32)
        for k in range(z):
            out[k] = matrix @ volume[k]
    else:
        out = np.empty((z, y, n), np.float32)
        for k in range(z):
            out[k] = (matrix @ np.ascontiguousarray(volume[k].T)).T
    return out


def resample(volume: np.ndarray, axes: Sequence[AxisGrid], kernel: str = "cubic") -> np.ndarray:
    """(Z, Y, X) -> the grid of `axes`, float32. Shrinking axes go first, so the rest is done on fewer voxels."""
    return apply_operators(volume, [None if g.unchanged else operator(g, kernel) for g in axes])


def apply_operators(volume: np.ndarray, operators: Sequence[sparse.csr_array | None]) -> np.ndarray:
    """Apply one operator an axis (None leaves the axis alone) to (Z, Y, X); float32."""
    out = np.asarray(volume, dtype=np.float32)
    growth = [1.0 if m is None else m.shape[0] / m.shape[1] for m in operators]
    for axis in np.argsort(growth, kind="stable"):
        matrix = operators[int(axis)]
        if matrix is not None:
            out = _along(matrix, out, int(axis))
    return out
