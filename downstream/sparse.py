"""Sparse annotation: a few labelled slices a volume, everything else unknown; drawn from the seed, nested in number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from downstream.inference import read_whole
from ssl3d.data.format import LABELS
from ssl3d.regions import RegionBatch
from ssl3d.seeding import numpy_generator

if TYPE_CHECKING:
    from downstream.context import Context

UNLABELLED = 2**16  # ignore value of a store that has none: above every value a stored label can take
Slices = Mapping[int, tuple[int, tuple[int, ...]]]  # {store row: (axis, indices of the annotated slices)}


def draw_slices(context: Context, row: int, n: int, seed: int) -> tuple[int, tuple[int, ...]]:
    """(axis, n slices) that are annotated of a volume: a pure function of (suite.seed, `seed`, row), nested in n.

    Across the axis of the largest stored spacing (of equals the first: axial slices), where annotators draw. Only
    slices that show a class are drawn, as an annotator would leave out those that show none; all of them when the
    volume has no more than n.
    """
    store = context.store
    axis = int(np.argmax(store.cell("spacing", row)))
    shown = np.isin(read_whole(store, row, LABELS)[0], list(context.classes))
    candidates = np.flatnonzero(shown.any(axis=tuple(a for a in range(3) if a != axis)))
    order = numpy_generator(context.suite.seed, "labelled slices", seed, row).permutation(len(candidates))
    return axis, tuple(sorted(int(candidates[i]) for i in order[:n]))


def slice_mask(shape: tuple[int, ...], axis: int, indices: tuple[int, ...]) -> NDArray[np.bool_]:
    """(Z,Y,X) or broadcastable to it: True on the annotated slices of a volume of `shape`."""
    line = np.zeros(shape[axis], dtype=bool)
    line[list(indices)] = True
    return line.reshape([-1 if a == axis else 1 for a in range(3)])


def on_slices(batch: RegionBatch, slices: Slices, ignore: int) -> RegionBatch:
    """The batch as it was read, with the label `ignore` wherever no annotated slice of its volume lies."""
    assert batch.label is not None
    label = batch.label.clone()
    for b, (volume, start) in enumerate(zip(batch.volume.tolist(), batch.start.tolist())):
        axis, indices = slices[volume]
        places = torch.arange(batch.size[axis], device=label.device) + start[axis]
        known = torch.isin(places, torch.tensor(indices, device=label.device, dtype=places.dtype))
        label[b, 0].movedim(axis, 0)[~known] = ignore
    return batch.replace(label=label)
