"""Slices -> one regular grid: sorted along their normal, checked for gaps, sheared or uneven stacks resampled.

A slice's place is what it states, never its number. Three faults are told apart:
- a missing slice: a gap of a whole number of the usual distances that the slices' thickness does not fill;
- uneven distances: the scan is complete, its steps differ (thin slices through the skull base, thick ones above);
- gantry tilt: the stack is a parallelepiped, each slice displaced within its own plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.interpolate import CubicSpline

from preprocessing.geometry import MIN_SLICES, AxisGrid, Scan
from preprocessing.modality import CT_AIR
from preprocessing.readers.dicom_pixels import Slice
from preprocessing.refusal import Refusal
from preprocessing.resample import apply_operators, resample, resample_mask
from preprocessing.unmeasured import padding

RESAMPLED_UNEVEN, RESAMPLED_TILT, INTERPOLATED_GAPS = "resampled_uneven", "resampled_tilt", "interpolated_gaps"
LARGEST_GAP = 3.0  # times the median distance: beyond it nothing is known of what lies between two slices
PARALLEL = 1e-3  # largest difference of two direction cosines that count as parallel
_EVEN = 0.02  # of the usual distance (or mm): rounded positions differ by that
_TILTED = 0.1  # pixels that the last slice may lie beside the first before the stack counts as tilted
_STEEPEST = 1.0  # mm beside a mm of height: 45 degrees; gantries tilt by 30 at most
_FILLED = 0.9  # share of a gap that the slices' thickness covers when nothing is missing
_THICKER = 1.25  # times the median thickness
_HU_BELOW = -500.0  # a CT whose lowest value lies above it holds no air, so its values are no HU
_LISTED = 8  # missing positions that a sentence names


@dataclass
class Stack:
    """Slices in order: `heights` (n,) mm along the normal, `offsets` (n, 2) mm beside the first along row and column.

    `holes`: (index of the slice below, slices missing above it).
    """

    slices: list[Slice]
    heights: np.ndarray
    offsets: np.ndarray
    holes: list[tuple[int, int]]

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector across the slices, LPS+."""
        return np.cross(self.slices[0].axes[0], self.slices[0].axes[1])

    @property
    def tilted(self) -> bool:
        """Whether slices are displaced within their plane by a part of a pixel that counts."""
        return bool((np.abs(self.offsets[-1]) > _TILTED * np.array(self.slices[0].spacing[::-1])).any())


def order(slices: Sequence[Slice], allow_gaps: bool = False) -> Stack:
    """Slices sorted along their normal; the same slice sent twice counts once.

    Raises Refusal: mixed_orientation, mixed_size, too_few_slices, repeated_positions, missing_slices, uneven_spacing,
    scattered_slices, no_geometry.
    """
    first = slices[0]
    for item in slices:
        if np.abs(item.axes - first.axes).max() > PARALLEL:
            raise Refusal("mixed_orientation")
        if item.values.shape != first.values.shape or not np.allclose(item.spacing, first.spacing, rtol=1e-3):
            raise Refusal("mixed_size")
    normal = np.cross(first.axes[0], first.axes[1])
    lengths = (np.linalg.norm(normal), *np.linalg.norm(first.axes, axis=1))
    if not np.allclose(lengths, 1.0, atol=1e-2):
        raise Refusal("no_geometry", "the orientation of the slices is not two perpendicular directions")
    stack = _once(sorted(slices, key=lambda item: float(item.position @ normal)), normal)
    if len(stack) < MIN_SLICES:
        raise Refusal("too_few_slices", f"the series has {len(stack)} slices, a volume needs at least {MIN_SLICES}")
    heights = np.array([float(item.position @ normal) for item in stack])
    holes = find_holes(heights, [item.thickness for item in stack])
    if holes and not allow_gaps:
        raise Refusal("missing_slices", _missing_sentence(heights, holes))
    _check_gaps(heights, holes)
    return Stack(stack, heights, _offsets(stack, heights), holes)


def _once(stack: list[Slice], normal: np.ndarray) -> list[Slice]:
    """Sorted slices without repeats of the same picture at the same place. Raises Refusal `repeated_positions`."""
    kept = stack[:1]
    for item in stack[1:]:
        apart = item.position - kept[-1].position
        if abs(float(apart @ normal)) >= 0.01:
            kept.append(item)
        elif np.linalg.norm(apart) >= 0.01 or not np.array_equal(item.values, kept[-1].values):
            at = float(item.position @ normal)
            raise Refusal("repeated_positions", f"several slices lie at {at:.2f} mm along the normal")
    return kept


def find_holes(heights: np.ndarray, thickness: Sequence[float]) -> list[tuple[int, int]]:
    """[(index of the slice below, slices missing)] of sorted `heights` mm.

    No hole: a gap between slices thicker than the others that fill it, or one of three or more equal gaps in a row
    (a section scanned with a larger step). Thick slices alone say nothing: they overlap in many scans.
    """
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    holes = []
    for k in np.flatnonzero(gaps > 1.5 * usual).tolist():
        share = gaps[k] / usual
        near = np.isclose(gaps[max(0, k - 2) : k + 3], gaps[k], rtol=0.05)
        section = any(near[i : i + 3].all() for i in range(len(near) - 2))
        filled = min(thickness[k], thickness[k + 1]) > max(_FILLED * gaps[k], _THICKER * float(np.median(thickness)))
        if abs(share - round(share)) < 0.1 and not section and not filled:
            holes.append((k, round(share) - 1))
    return holes


def _missing_sentence(heights: np.ndarray, holes: Sequence[tuple[int, int]]) -> str:
    usual = float(np.median(np.diff(heights)))
    lost = [
        heights[k] + (heights[k + 1] - heights[k]) * (i + 1) / (count + 1) for k, count in holes for i in range(count)
    ]
    listed = ", ".join(f"{height:.2f}" for height in lost[:_LISTED])
    more = f" and {len(lost) - _LISTED} more places" if len(lost) > _LISTED else ""
    return f"no slice at {listed}{more} mm along the normal, where slices are {usual:.2f} apart"


def _check_gaps(heights: np.ndarray, holes: Sequence[tuple[int, int]]) -> None:
    """Raises Refusal `uneven_spacing` when what lies between two slices cannot be known."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    lost = sum(count for _, count in holes)
    if lost > len(heights):
        raise Refusal("missing_slices", f"{lost} slices are missing, more than the {len(heights)} that are there")
    known = {k for k, _ in holes}
    for k, gap in enumerate(gaps):
        if k not in known and gap > LARGEST_GAP * usual:
            raise Refusal(
                "uneven_spacing",
                f"slices at {heights[k]:.2f} and {heights[k + 1]:.2f} mm along the normal are {gap:.2f} apart, more"
                f" than {LARGEST_GAP:g} times the usual {usual:.2f}",
            )


def _offsets(stack: Sequence[Slice], heights: np.ndarray) -> np.ndarray:
    """(n, 2) mm beside the first slice along row and column. Raises Refusal `scattered_slices`."""
    offsets = np.array([item.position - stack[0].position for item in stack]) @ stack[0].axes.T
    centred = heights - heights.mean()
    drift, *_ = np.linalg.lstsq(centred[:, None], offsets - offsets.mean(axis=0), rcond=None)
    beside = offsets - offsets.mean(axis=0) - centred[:, None] * drift
    worst = float(np.linalg.norm(beside, axis=1).max())
    if worst > max(0.1, 0.5 * min(stack[0].spacing)):
        raise Refusal("scattered_slices", f"a slice lies {worst:.2f} mm beside the line of the others")
    steepest = float(np.linalg.norm(drift))
    if steepest > _STEEPEST:
        raise Refusal("scattered_slices", f"each mm of height moves a slice {steepest:.2f} mm aside: no tilt does")
    return offsets


def _even(heights: np.ndarray) -> bool:
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    return bool(np.abs(gaps - usual).max() <= max(_EVEN, _EVEN * usual))


def target_heights(stack: Stack) -> tuple[np.ndarray, np.ndarray]:
    """((n,) evenly spaced heights, (n,) bool of those inside holes).

    Both ends stay. The step is the smallest of the stack, so that nothing is lost, but at least half the median.
    """
    heights = stack.heights
    filled = [heights]
    for k, count in stack.holes:
        filled.append(heights[k] + (heights[k + 1] - heights[k]) * np.arange(1, count + 1) / (count + 1))
    complete = np.sort(np.concatenate(filled))
    if _even(complete):
        targets = np.linspace(heights[0], heights[-1], len(complete))
    else:
        gaps = np.diff(complete)
        step = max(float(gaps.min()), float(np.median(gaps)) / 2)
        targets = np.linspace(heights[0], heights[-1], 1 + round((heights[-1] - heights[0]) / step))
    inside = np.zeros(len(targets), bool)
    for k, _ in stack.holes:
        edge = 0.01 * (heights[k + 1] - heights[k])
        inside |= (targets > heights[k] + edge) & (targets < heights[k + 1] - edge)
    return targets, inside


def grid(stack: Stack) -> tuple[tuple[int, int, int], np.ndarray]:
    """((columns, rows, slices), affine RAS+) of the regular grid that a stack is brought to."""
    targets, _ = target_heights(stack)
    rows, columns = stack.slices[0].values.shape
    first = stack.slices[0]
    step = stack.normal * (targets[-1] - targets[0]) / (len(targets) - 1)
    corner = first.position
    if stack.tilted:
        low, extra = _field_of_view(stack)
        rows, columns = rows + extra[1], columns + extra[0]
        corner = corner + low @ first.axes
    else:
        step = step + stack.offsets[-1] @ first.axes / (len(targets) - 1)
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * first.spacing[1]
    affine[:3, 1] = first.axes[1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = corner
    return (columns, rows, len(targets)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _field_of_view(stack: Stack) -> tuple[np.ndarray, tuple[int, int]]:
    """((2,) mm from the first slice's corner to the field's, (columns, rows) to add) that hold every slice."""
    low = stack.offsets.min(axis=0)
    extra = np.ceil((stack.offsets.max(axis=0) - low) / np.array(stack.slices[0].spacing[::-1]) - 1e-6).astype(int)
    return low, (int(extra[0]), int(extra[1]))


def assemble(stack: Stack, modality: str) -> Scan:
    """The stack as a scan (1, columns, rows, slices), resampled where its grid is not regular.

    Raises Refusal `bad_rescale`.
    """
    lowest = float(min(item.values.min() for item in stack.slices))
    if modality == "ct" and lowest > _HU_BELOW and not any(item.rescaled for item in stack.slices):
        raise Refusal("bad_rescale", "a CT that does not state how its values become HU")
    (columns, rows, count), affine = grid(stack)
    targets, inside = target_heights(stack)
    even = count == len(stack.slices) and _even(stack.heights)
    if modality == "ct" and (stack.tilted or not even):
        _mark_padding(stack)
    air = CT_AIR if modality == "ct" else lowest
    volume, invalid = _stacked(stack)
    flags = []
    offsets = stack.offsets
    if not even:  # along the line through the slices, on which a tilted stack is smooth too
        flags += [INTERPOLATED_GAPS] if stack.holes else []
        flags += [] if _on_knots(stack, targets, inside) else [RESAMPLED_UNEVEN]
        volume, invalid = _along(volume, invalid, stack.heights, targets, inside, air)
        offsets = np.stack([np.interp(targets, stack.heights, beside) for beside in offsets.T], axis=1)
        if inside.any():
            invalid = np.zeros(volume.shape, bool) if invalid is None else invalid
            invalid[inside] = True
    if stack.tilted:
        flags.insert(0, RESAMPLED_TILT)
        volume, invalid = _upright(volume, invalid, offsets, stack.slices[0].spacing, (rows, columns), air)
    moved = None if invalid is None or not invalid.any() else invalid.transpose(2, 1, 0)
    return Scan(volume.transpose(2, 1, 0)[None], affine, [modality], moved, flags)


def _mark_padding(stack: Stack) -> None:
    """Constants outside the scan circle of a CT become invalid before they could be interpolated into the body."""
    for item in stack.slices:
        mask = padding(item.values)
        if mask is not None:
            item.invalid = mask if item.invalid is None else mask | item.invalid


def _on_knots(stack: Stack, targets: np.ndarray, inside: np.ndarray) -> bool:
    """Whether every measured slice of the grid is one that was there: only holes were filled."""
    measured = targets[~inside]
    tolerance = max(_EVEN, _EVEN * float(np.median(np.diff(stack.heights))))
    return len(measured) == len(stack.heights) and bool(np.abs(measured - stack.heights).max() <= tolerance)


def _stacked(stack: Stack) -> tuple[np.ndarray, np.ndarray | None]:
    """(values (slices, rows, columns), declared padding or None)."""
    volume = np.empty((len(stack.slices), *stack.slices[0].values.shape), _common_type(stack))
    invalid = None
    for k, item in enumerate(stack.slices):
        volume[k] = item.values
        if item.invalid is not None:
            invalid = np.zeros(volume.shape, bool) if invalid is None else invalid
            invalid[k] = item.invalid
        item.values, item.invalid = np.broadcast_to(item.values.flat[:1], item.values.shape), None  # frees the slice
    return volume, invalid


def _common_type(stack: Stack) -> np.dtype:
    return np.result_type(*{item.values.dtype for item in stack.slices})


def _upright(
    volume: np.ndarray,
    invalid: np.ndarray | None,
    offsets: np.ndarray,
    spacing: tuple[float, float],
    shape: tuple[int, int],
    air: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Each slice moved by its offset (mm along row, column) within its plane, cubic, onto a field of `shape` pixels.

    Returns (values float32, what lies outside the slices or was invalid).
    """
    low = offsets.min(axis=0)
    out = np.empty((len(volume), *shape), np.float32)
    mask = np.empty(out.shape, bool)
    for k, moved in enumerate(offsets):
        along_v = AxisGrid(volume.shape[1], shape[0], float(low[1] - moved[1]) / spacing[0], 1.0)
        along_u = AxisGrid(volume.shape[2], shape[1], float(low[0] - moved[0]) / spacing[1], 1.0)
        axes = (AxisGrid(1, 1, 0.0, 1.0), along_v, along_u)
        hidden = None if invalid is None else invalid[k : k + 1]
        outside = _beyond(along_v)[:, None] | _beyond(along_u)[None, :]
        out[k] = resample(volume[k : k + 1], axes, hidden=hidden, fill=air)[0]
        out[k][outside] = air
        mask[k] = outside if hidden is None else outside | resample_mask(hidden, axes)[0]
    return out, mask


def _beyond(grid: AxisGrid) -> np.ndarray:
    """(n,) outputs that lie outside the first and the last input."""
    at = grid.start + grid.step * np.arange(grid.n)
    return (at < -1e-3) | (at > grid.n_in - 1 + 1e-3)


def _along(
    volume: np.ndarray,
    invalid: np.ndarray | None,
    heights: np.ndarray,
    targets: np.ndarray,
    inside: np.ndarray,
    air: float,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Slices at `heights` resampled to `targets` along the first axis: cubic spline, linear inside holes."""
    linear = np.stack([np.interp(targets, heights, unit) for unit in np.eye(len(heights))], axis=1)
    cubic = operator_between(heights, targets).toarray()
    matrix = sparse.csr_array(np.where(inside[:, None], linear, cubic)).astype(np.float32)
    out = apply_operators(volume, [matrix, None, None], hidden=invalid, fill=air)
    if invalid is None:
        return out, None
    return out, apply_operators(invalid, [sparse.csr_array(linear).astype(np.float32), None, None]) >= 0.5


def operator_between(heights: np.ndarray, targets: np.ndarray) -> sparse.csr_array:
    """(m, n) float32 matrix of the interpolating cubic spline through n knots, at m targets; rows sum to 1."""
    ends = "not-a-knot" if len(heights) > 3 else "natural"
    matrix = CubicSpline(heights, np.eye(len(heights)), bc_type=ends)(targets)
    matrix[np.abs(matrix) < 1e-7] = 0.0
    return sparse.csr_array(matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)
