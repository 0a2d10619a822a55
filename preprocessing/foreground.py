"""Where the patient is: a mask for statistics and a box for sampling. It never changes a voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

BODY_HU = -500.0
_SOLID_HU = -250.0  # tissue and fat; the foam of a mattress is lighter
_COARSE_MM = 3.0
_OPENING_MM = 6.0  # thinner than a body, thicker than a table top or a blanket
_SMALLEST_PART = 0.02  # of the largest component; smaller islands are noise


def _block_means(values: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Means over blocks of `steps` voxels; the last block of an axis may be smaller."""
    out: np.ndarray = values
    for axis, step in enumerate(steps):
        if step == 1:
            continue
        out = np.moveaxis(out, axis, 0)
        whole = len(out) // step
        blocks = out[0 : whole * step : step].astype(np.float32)
        for k in range(1, step):
            blocks += out[k : whole * step : step]
        blocks /= np.float32(step)
        rest = out[whole * step :]
        if len(rest):
            blocks = np.concatenate([blocks, rest.mean(axis=0, keepdims=True, dtype=np.float32)])
        out = np.moveaxis(blocks, 0, axis)
    return out.astype(np.float32, copy=False)


def _block_centres(mask: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """The voxel in the middle of each of those blocks."""
    picks = [np.minimum(np.arange(0, n, step) + step // 2, n - 1) for n, step in zip(mask.shape, steps)]
    return mask[np.ix_(*picks)]


def otsu(values: np.ndarray) -> float:
    """Otsu's threshold (1979) between the 0.5 and 99.5 percentiles, 256 bins."""
    low, high = np.percentile(values, [0.5, 99.5])
    if high <= low:
        return float(low)
    counts, edges = np.histogram(np.clip(values, low, high), bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts).astype(np.float64)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    between[~np.isfinite(between)] = -1.0
    return float(centres[int(np.argmax(between))])


def _ball(spacing: np.ndarray, radius_mm: float) -> np.ndarray:
    """Voxels within radius_mm of the centre, on a grid of `spacing`."""
    reach = [int(radius_mm / s) for s in spacing]
    grid = np.meshgrid(*[np.arange(-r, r + 1) * s for r, s in zip(reach, spacing)], indexing="ij")
    return sum(g**2 for g in grid) <= radius_mm**2 + 1e-6


def _opened(mask: np.ndarray, ball: np.ndarray) -> np.ndarray:
    """Opening that takes what leaves the volume for body, so that slabs of few slices survive."""
    pad = [n // 2 for n in ball.shape]
    padded = np.pad(mask, [(p, p) for p in pad], mode="edge")
    opened = ndimage.binary_dilation(ndimage.binary_erosion(padded, ball, border_value=1), ball)
    return opened[tuple(slice(p, p + n) for p, n in zip(pad, mask.shape))]


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask that holds something."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == int(np.argmax(sizes))


def _body(coarse: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """CT: the largest part of solid tissue, table and clothes opened away, and what is dense around it.

    The padding of a table is denser than -500 HU in places, tissue and fat are denser than any padding. Cavities of air
    are filled slice by slice.
    """
    dense = coarse > BODY_HU
    if not dense.any():
        return dense
    ball = _ball(spacing, _OPENING_MM)
    core = next((c for c in (_opened(coarse > _SOLID_HU, ball), _opened(dense, ball)) if c.any()), dense)
    body = _largest(core)
    body = ndimage.binary_dilation(body) & dense | body
    return np.stack([ndimage.binary_fill_holes(plane) for plane in body])


def _bright(coarse: np.ndarray, spacing: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """MR and others: above Otsu's threshold, without islands, holes filled.

    What is not valid counts as dark: without its background a head would be split into bright and dark tissue.
    """
    if not valid.any():
        return valid
    filled = np.where(valid, coarse, np.float32(coarse[valid].min()))
    mask = (filled > otsu(filled)) & valid
    parts, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        mask = (sizes >= _SMALLEST_PART * sizes.max())[parts]
    return ndimage.binary_fill_holes(mask)


def foreground(
    values: np.ndarray, spacing: Sequence[float], modality: str, valid: np.ndarray | None
) -> tuple[np.ndarray, list[list[int]]]:
    """(mask (Z, Y, X) bool, box [[z0, y0, x0], [z1, y1, x1]) of one channel; neither is ever empty.

    `values` physical, `spacing` (z, y, x) mm. Found on blocks of about 3 mm, so the box is true to about that.
    Falls back to the box of all valid voxels, then to the whole volume.
    """
    steps = [max(1, min(int(_COARSE_MM / s + 0.5), n // 16)) for s, n in zip(spacing, values.shape)]
    own = np.array([s * k for s, k in zip(spacing, steps)])
    coarse = _block_means(values, steps)
    usable = np.ones(coarse.shape, bool) if valid is None else _block_centres(valid, steps)
    small = (_body(coarse, own) & usable) if modality == "ct" else _bright(coarse, own, usable)
    if not small.any():
        mask = np.ones(values.shape, bool) if valid is None or not valid.any() else valid
        return mask, bounding_box(mask)
    mask = small
    for axis in (2, 1, 0):  # planes last: those are copied whole
        if steps[axis] > 1:
            mask = np.repeat(mask, steps[axis], axis=axis)
        mask = mask[(slice(None),) * axis + (slice(0, values.shape[axis]),)]
    low, high = np.array(bounding_box(small)) * steps
    return mask, [low.tolist(), np.minimum(high, values.shape).tolist()]


def bounding_box(mask: np.ndarray) -> list[list[int]]:
    """[[z0, y0, x0], [z1, y1, x1]) of the true voxels of a mask that has some."""
    low, high = [], []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        low.append(int(inside[0]))
        high.append(int(inside[-1]) + 1)
    return [low, high]
