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
_NEAREST_BELOW = 1.25  # an axis that shrinks by less is sampled at the nearest voxel: unbiased, keeps thin structures


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

    Axes that grow (or hardly shrink) take the nearest voxel, which keeps volumes and thin structures. On axes that
    shrink the class with the largest linearly interpolated share wins, each class worked on in its own box only, so
    that a hundred classes cost little more than one. A class that would vanish keeps the voxel where its share peaks.
    """
    shrinking = [not g.unchanged and g.step >= _NEAREST_BELOW for g in axes]
    out = label
    if any(shrinking):
        out = _majority(label, [operator(g, "linear") if shrinks else None for g, shrinks in zip(axes, shrinking)])
    for axis, (grid, shrinks) in enumerate(zip(axes, shrinking)):
        if not grid.unchanged and not shrinks:
            nearest = np.floor(grid.start + grid.step * np.arange(grid.n) + 0.5).astype(np.int64)
            out = np.take(out, np.clip(nearest, 0, grid.n_in - 1), axis=axis)
    return _restore_lost(out, label, axes)


def _majority(label: np.ndarray, operators: Sequence[sparse.csr_array | None]) -> np.ndarray:
    """The class with the largest share at every output voxel; background only where it outweighs every class."""
    shape = tuple(n if m is None else m.shape[0] for n, m in zip(label.shape, operators))
    out = np.zeros(shape, label.dtype)
    best = np.zeros(shape, np.float32)
    covered = np.zeros(shape, np.float32)
    for value, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        cut: list[sparse.csr_array | None] = []
        window: list[slice] = []
        for axis, matrix in enumerate(operators):
            if matrix is None:
                cut.append(None)
                window.append(box[axis])
                continue
            part = matrix[:, box[axis]]
            rows = np.flatnonzero(np.diff(part.indptr))
            cut.append(part[rows[0] : rows[-1] + 1])
            window.append(slice(int(rows[0]), int(rows[-1]) + 1))
        where = tuple(window)
        share = apply_operators(label[box] == value, cut)
        wins = share > best[where]
        out[where][wins] = value
        np.maximum(best[where], share, out=best[where])
        covered[where] += share
    out[best < 1.0 - covered - 1e-5] = BACKGROUND
    return out


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
