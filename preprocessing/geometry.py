"""Where voxels lie: permute and flip scans onto the store's axes, choose the target grid. Never rotates.

World is nibabel's: millimetres, x to the patient's Right, y Anterior, z Superior (RAS+). The store's axes are
z to Superior, y to Posterior, x to Left, so an array (C, Z, Y, X) comes with a 4x4 affine (z, y, x, 1) -> world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from preprocessing.refusal import Refusal

STORE_AXES = ("L", "P", "S")  # x, y, z as stored
MIN_SLICES = 3
FEW_SLICES_BELOW = 8  # along any axis of the source; such volumes are flagged few_slices
PLAUSIBLE_MM = (0.01, 50.0)  # of a voxel's size
FARTHEST_MM = 1e5  # of the first voxel from the world's origin
SAME_SPACING = 1e-3  # relative; a grid this near to the target is kept as it is, so its values stay exact


@dataclass
class Scan:
    """A scan as its file holds it.

    `data` (C, X, Y, Z) in file order, any real dtype, physical values; `affine` 4x4 (x, y, z, 1) -> world mm.
    `modality`: what the file itself says, per channel, or None. `invalid`: (X, Y, Z) bool of voxels the file declares
    as padding, or None.
    """

    data: np.ndarray
    affine: np.ndarray
    modality: list[str] | None = None
    invalid: np.ndarray | None = None
    flags: list[str] = field(default_factory=list)


@dataclass
class Canonical:
    """A scan on the store's axes, original grid: `data` (C, Z, Y, X), `affine` 4x4 (z, y, x, 1) -> world mm."""

    data: np.ndarray
    affine: np.ndarray
    invalid: np.ndarray | None = None


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """(3,) voxel size in mm along each axis of an affine, in the affine's axis order."""
    return np.sqrt((np.asarray(affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))


def orientation_of(affine: np.ndarray) -> str:
    """Nearest anatomical axes of a file-order affine, such as "RAS" or "LPS"."""
    return "".join(str(code) for code in nib.orientations.aff2axcodes(affine))


def check_affine(affine: np.ndarray) -> None:
    """Raises Refusal: affine_not_finite, affine_singular, implausible_spacing, implausible_position."""
    if not np.isfinite(affine).all():
        raise Refusal("affine_not_finite")
    spacing = spacing_of(affine)
    if (spacing < 1e-9).any() or abs(np.linalg.det(affine[:3, :3])) < 1e-6 * spacing.prod():
        raise Refusal("affine_singular")
    low, high = PLAUSIBLE_MM
    if spacing.min() < low * (1 - SAME_SPACING) or spacing.max() > high * (1 + SAME_SPACING):
        raise Refusal("implausible_spacing", f"voxels of {' x '.join(f'{s:.4g}' for s in spacing)} mm are no scan's")
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        raise Refusal("implausible_position", f"the first voxel lies {np.abs(affine[:3, 3]).max():.3g} mm away")


def _to_store(affine: np.ndarray) -> np.ndarray:
    """nibabel orientation array that takes the file's axes to L, P, S."""
    check_affine(affine)
    orientation = io_orientation(affine)
    if np.isnan(orientation).any():
        raise Refusal("affine_singular", "an axis of the affine has no direction")
    return ornt_transform(orientation, axcodes2ornt(STORE_AXES))


def canonical_grid(affine: np.ndarray, shape: Sequence[int]) -> tuple[tuple[int, int, int], np.ndarray]:
    """(shape (Z, Y, X), affine (z, y, x, 1) -> world) of a file-order grid on the store's axes."""
    transform = _to_store(np.asarray(affine, dtype=np.float64))
    moved = np.asarray(affine, dtype=np.float64) @ inv_ornt_aff(transform, tuple(int(n) for n in shape[:3]))
    order = np.empty(3, dtype=int)
    order[transform[:, 0].astype(int)] = np.arange(3)
    x, y, z = (int(shape[i]) for i in order)
    return (z, y, x), moved[:, [2, 1, 0, 3]]


def canonical(scan: Scan) -> Canonical:
    """The scan permuted and flipped onto the store's axes: every voxel keeps its value and its world position.

    Raises Refusal for an affine that is none, see `check_affine`.
    """
    transform = _to_store(scan.affine)
    _, affine = canonical_grid(scan.affine, scan.data.shape[1:])

    def move(volume: np.ndarray) -> np.ndarray:
        return apply_orientation(volume, transform).transpose(2, 1, 0)

    moved = [move(channel) for channel in scan.data]
    data = np.empty((len(moved), *moved[0].shape), moved[0].dtype)  # np.stack would hold every channel twice
    for out, channel in zip(data, moved):
        out[...] = channel
    invalid = None if scan.invalid is None else np.ascontiguousarray(move(scan.invalid))
    return Canonical(data, affine, invalid)


def target_spacing(spacing: str | Sequence[float], own: Sequence[float]) -> tuple[float, float, float]:
    """(z, y, x) mm of the stored grid for a volume of spacing `own`: "keep", "iso1", or three numbers."""
    if isinstance(spacing, str):
        if spacing == "keep":
            z, y, x = (float(s) for s in own)
            return z, y, x
        assert spacing == "iso1", spacing
        return 1.0, 1.0, 1.0
    z, y, x = (float(s) for s in spacing)
    return z, y, x


@dataclass(frozen=True)
class AxisGrid:
    """Samples along one axis: n outputs at input index start + i * step, of n_in inputs."""

    n_in: int
    n: int
    start: float
    step: float

    @property
    def unchanged(self) -> bool:
        """True when outputs and inputs coincide."""
        return self.n == self.n_in and self.step == 1.0


def resampled_grid(
    shape: Sequence[int], affine: np.ndarray, target: Sequence[float]
) -> tuple[list[AxisGrid], np.ndarray]:
    """The grid of spacing `target` (z, y, x) mm that shares its centre and field of view with the given one.

    Returns one AxisGrid an axis and the affine of the new grid (voxel centres exact). An axis whose spacing is within
    0.1 % of the target is left alone.
    """
    axes = []
    matrix = np.eye(4)
    for axis, (n_in, own, wanted) in enumerate(zip(shape, spacing_of(affine), target)):
        step = float(wanted) / float(own)
        if abs(step - 1.0) <= SAME_SPACING:
            axes.append(AxisGrid(int(n_in), int(n_in), 0.0, 1.0))
            continue
        n = max(1, round(int(n_in) / step))
        start = (int(n_in) - 1) / 2 - (n - 1) / 2 * step
        axes.append(AxisGrid(int(n_in), n, start, step))
        matrix[axis, axis] = step
        matrix[axis, 3] = start
    return axes, np.asarray(affine, dtype=np.float64) @ matrix


def corner_distance(shape: Sequence[int], a: np.ndarray, b: np.ndarray) -> float:
    """The farthest in mm that two affines put a corner of a grid of `shape` apart."""
    corners = np.array([[i * (n - 1) for i, n in zip(bits, shape)] + [1] for bits in np.ndindex(2, 2, 2)], dtype=float)
    gap = corners @ np.asarray(a, dtype=float).T - corners @ np.asarray(b, dtype=float).T
    return float(np.linalg.norm(gap[:, :3], axis=1).max())


def same_place(shape: Sequence[int], a: np.ndarray, b: np.ndarray, tolerance_voxels: float = 0.5) -> bool:
    """True when two affines put the corners of a grid of `shape` less than `tolerance_voxels` apart."""
    return corner_distance(shape, a, b) <= tolerance_voxels * float(spacing_of(a).min())
