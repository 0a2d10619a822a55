"""Labels on the store's axes and grid: no value that was not there before, no class lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage, sparse

from preprocessing.geometry import AxisGrid, Canonical, same_place
from preprocessing.refusal import Refusal
from preprocessing.resample import apply_operators, operator
from ssl3d.data.format import MAX_LABEL_COORDINATES, LabelInfo
from ssl3d.seeding import numpy_generator

BACKGROUND = 0
_NO_SHARE = 1e-2
_REACH = 2.5  # source voxels: within about this far, a class keeps its volume
_ROUNDS = 4  # of moving volume back to where it was
_LARGEST_LEVELLED = 1 << 25  # voxels of a class's box; in larger ones the volume that moves is nothing to the whole
_TIE_BREAK = 1e-3  # weight of the neighbourhood's share: at whole-number ratios many voxels share one value
_GAP = 0.1  # share of background below which a voxel between touching classes belongs to one of them


def as_integers(values: np.ndarray) -> np.ndarray:
    """Label values as uint8, or uint16 where needed. Raises Refusal `label_not_integer`."""
    if values.dtype.kind not in "iu":
        if not np.isfinite(values).all():
            raise Refusal("label_not_integer", "the label holds values that are not finite")
        rounded = np.rint(values)
        if np.abs(values - rounded).max() > 1e-3:
            raise Refusal("label_not_integer", "the label holds fractions")
        values = rounded.astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise Refusal("label_not_integer", f"the label's values span {low} to {high}, allowed are 0 to 65535")
    return values.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)


def check_grid(label: Canonical, image: Canonical) -> None:
    """Raises Refusal when label and image do not lie on one grid, both on the store's axes."""
    shape = image.data.shape[1:]
    if label.data.shape[1:] != shape:
        raise Refusal(
            "label_shape_mismatch", f"the label has {label.data.shape[1:]} voxels (z, y, x), its image has {shape}"
        )
    if not same_place(shape, image.affine, label.affine):
        raise Refusal("label_affine_mismatch", "the affines of the label and its image put them at different places")


def resample_labels(label: np.ndarray, axes: Sequence[AxisGrid]) -> np.ndarray:
    """(Z, Y, X) labels on the grid of `axes`, same dtype, only values that were there.

    Every class is interpolated linearly, in its own box only, so that a hundred classes cost little more than one. A
    class claims the voxels where its share is largest, as many as its volume in mm3 asks for: a fixed threshold of one
    half would shrink thin and small structures. The same is asked of its parts (_levelled), else what is thick would
    take from what is thin. Where claims meet, the share relative to the class's own threshold decides; what lies
    between touching classes is given to one of them. A class that would vanish keeps one voxel.
    """
    if all(grid.unchanged for grid in axes):
        return label.copy()
    operators = [None if grid.unchanged else operator(grid, "linear") for grid in axes]
    per_voxel = float(np.prod([1.0 / grid.step for grid in axes]))  # stored voxels that one source voxel fills
    sizes = [max(3, 2 * round(_REACH / grid.step) + 1) for grid in axes]
    shape = tuple(grid.n for grid in axes)
    out = np.zeros(shape, label.dtype)
    best = np.zeros(shape, np.float32)
    covered = np.zeros(shape, np.float32)
    for value, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        members = label[box] == value
        cut, where = _window(operators, box)
        share = apply_operators(members, cut)
        level = _levelled(share, float(members.sum()) * per_voxel, sizes)
        score = level / _claim_threshold(level, members.sum() * per_voxel)
        wins = score > best[where]
        out[where][wins] = value
        np.maximum(best[where], score, out=best[where])
        covered[where] += share
    out[(best < 1.0) & (covered < 1.0 - _GAP)] = BACKGROUND
    return _restore_lost(out, label, axes)


def _levelled(share: np.ndarray, wanted: float, sizes: Sequence[int]) -> np.ndarray:
    """The share, raised where claiming the `wanted` largest of it takes less than its mass nearby, lowered where more.

    `sizes`: of the box in voxels that "nearby" means.
    """
    level = share + _TIE_BREAK * ndimage.uniform_filter(share, 3, mode="nearest")
    if share.size > _LARGEST_LEVELLED:
        return level

    def nearby(values: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(values.astype(np.float32, copy=False), sizes, mode="constant")

    mass, edge = nearby(share), (share > _NO_SHARE) & (share < 1.0 - _NO_SHARE)
    room = nearby(edge) + _NO_SHARE
    for _ in range(_ROUNDS):
        claimed = level >= _claim_threshold(level, wanted)
        level += np.where(edge, (mass - nearby(claimed)) / room, 0.0).astype(np.float32)
        np.minimum(level, 1.0 + _TIE_BREAK * share, out=level)  # what is wholly inside is claimed first
    return level


def _window(
    operators: Sequence[sparse.csr_array | None], box: tuple[slice, ...]
) -> tuple[list[sparse.csr_array | None], tuple[slice, ...]]:
    """The part of the operators that sees a box of the source, and the box of the output it reaches."""
    cut: list[sparse.csr_array | None] = []
    window: list[slice] = []
    for matrix, extent in zip(operators, box):
        if matrix is None:
            cut.append(None)
            window.append(extent)
            continue
        part = matrix[:, extent]
        rows = np.flatnonzero(np.diff(part.indptr))
        cut.append(part[rows[0] : rows[-1] + 1])
        window.append(slice(int(rows[0]), int(rows[-1]) + 1))
    return cut, tuple(window)


def _claim_threshold(share: np.ndarray, wanted: float) -> float:
    """The share from which on about `wanted` voxels lie; of two thresholds around it, the nearer in volume."""
    positive = share[share > _NO_SHARE]
    if positive.size == 0:
        return 1.0
    count = int(np.clip(round(wanted), 1, positive.size))
    threshold = float(np.partition(positive, positive.size - count)[positive.size - count])
    above = positive[positive > threshold]
    from_on = int((positive >= threshold).sum())
    return float(above.min()) if above.size and count - above.size < from_on - count else threshold


def _restore_lost(out: np.ndarray, label: np.ndarray, axes: Sequence[AxisGrid]) -> np.ndarray:
    """Give every class that vanished the one output voxel that holds its centre of mass' nearest member."""
    before = np.unique(label)
    lost = np.setdiff1d(before, np.unique(out))
    taken: set[tuple[int, ...]] = set()
    for value in lost:
        members = np.argwhere(label == value)
        member = members[np.argmin(((members - members.mean(axis=0)) ** 2).sum(axis=1))]
        index = [int(np.clip(round((m - g.start) / g.step), 0, g.n - 1)) for m, g in zip(member, axes)]
        while tuple(index) in taken and index[-1] + 1 < out.shape[-1]:
            index[-1] += 1
        taken.add(tuple(index))
        out[tuple(index)] = value
    return out


def label_info(volume_id: str, label: np.ndarray, names: Mapping[int, str], ignore: int | None) -> LabelInfo:
    """Names of all classes known or present, and up to 1,000 voxels of each class, drawn from the volume's id.

    Background and the ignore value are no classes to centre a region on: they get no coordinates.
    """
    counts = np.bincount(label.ravel())
    present = [int(v) for v in np.flatnonzero(counts)]
    classes = dict(names) or {BACKGROUND: "background"}
    for value in present:
        classes.setdefault(value, f"class_{value}" if value != BACKGROUND else "background")
    coordinates: dict[int, list[list[int]]] = {}
    boxes = ndimage.find_objects(label)
    for value in present:
        if value in (BACKGROUND, ignore):
            continue
        box = boxes[value - 1]
        members = np.flatnonzero(label[box] == value)
        if len(members) > MAX_LABEL_COORDINATES:
            generator = numpy_generator(0, "label_coordinates", volume_id, value)
            members = np.sort(generator.choice(members, MAX_LABEL_COORDINATES, replace=False))
        local = np.stack(np.unravel_index(members, label[box].shape), axis=1)
        coordinates[value] = (local + [s.start for s in box]).tolist()
    return LabelInfo({k: classes[k] for k in sorted(classes)}, ignore, coordinates)
