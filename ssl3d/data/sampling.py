"""Which regions are read: a plan that maps a sample index to a volume and a place, and nothing else decides.

Volumes are drawn as a hierarchy, store (by weight), subject, session, volume, each uniformly, so that one subject with
many scans does not swamp a store. Every draw is a pure function of (seed, group number): neither ranks, workers,
accumulation nor a resume can change it.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from ssl3d.data.fit import require_fit
from ssl3d.data.format import FEW_SLICES, LABELS
from ssl3d.data.lru import LRU
from ssl3d.data.order import VisitOrder
from ssl3d.data.source import Source
from ssl3d.data.subjects import matching
from ssl3d.regions import RegionSpec, Size3, size3
from ssl3d.seeding import mix, numpy_generator

_log = logging.getLogger(__name__)
DRAWS = 32  # hierarchical draws for a further volume of a group, before it is drawn from the remaining ones directly
LABEL_COORDINATES = 512  # volumes whose label coordinates are kept in memory


class Sample(NamedTuple):
    """One region to read: the global sample `number`; `volume` counts all rows of all stores; `start` (z,y,x) voxels,
    may be negative."""

    number: int
    store: int
    row: int
    volume: int
    start: tuple[int, int, int]
    seed: int


class _Hierarchy:
    """Eligible volumes of one store as subject -> session -> volume, flat arrays with offsets."""

    def __init__(self, volumes: Sequence[int], subjects: Sequence[str], sessions: Sequence[str]) -> None:
        order = sorted(range(len(volumes)), key=lambda i: (subjects[i], sessions[i], volumes[i]))
        self.volumes = [int(volumes[i]) for i in order]
        self.session_first: list[int] = []  # first volume of each session
        self.subject_first: list[int] = []  # first session of each subject
        before: tuple[str, str] | None = None
        for position, i in enumerate(order):
            key = (subjects[i], sessions[i])
            if before is None or key[0] != before[0]:
                self.subject_first.append(len(self.session_first))
            if key != before:
                self.session_first.append(position)
            before = key
        self.n_subjects = len(self.subject_first)
        self.subject_first.append(len(self.session_first))
        self.session_first.append(len(self.volumes))

    def draw(self, u: Sequence[float]) -> int:
        """A volume from three uniform numbers in [0, 1)."""
        subject = int(u[0] * self.n_subjects)
        a, b = self.subject_first[subject], self.subject_first[subject + 1]
        session = a + int(u[1] * (b - a))
        a, b = self.session_first[session], self.session_first[session + 1]
        return self.volumes[a + int(u[2] * (b - a))]

    def divisors(self) -> list[int]:
        """For each volume, one over the probability that `draw` gives it."""
        found = []
        for a, b in zip(self.subject_first, self.subject_first[1:]):
            for c, d in zip(self.session_first[a:b], self.session_first[a + 1 : b + 1]):
                found += [self.n_subjects * (b - a) * (d - c)] * (d - c)
        return found


class _Forest:
    """Hierarchies of several stores, one of them chosen by weight."""

    def __init__(self, hierarchies: Sequence[_Hierarchy], weights: Sequence[float]) -> None:
        pairs = [(h, w) for h, w in zip(hierarchies, weights) if h.n_subjects and w > 0]
        self.hierarchies = [h for h, _ in pairs]
        self.weights = [w for _, w in pairs]
        total = sum(self.weights)
        self.cumulative = np.cumsum([w / total for _, w in pairs]).tolist() if pairs else []
        self.n_volumes = sum(len(h.volumes) for h in self.hierarchies)

    def draw(self, u: Sequence[float]) -> int:
        """A volume from four uniform numbers in [0, 1)."""
        store = min(bisect_right(self.cumulative, u[0]), len(self.hierarchies) - 1)
        return self.hierarchies[store].draw(u[1:])

    def order(self, seed: int) -> VisitOrder:
        """Visits of all volumes, in expectation as often as `draw` gives them."""
        volumes = [v for h in self.hierarchies for v in h.volumes]
        total = sum(self.weights)
        # one division of products: shares that are equal come out equal, and as ones
        shares = [len(volumes) * w / (total * d) for h, w in zip(self.hierarchies, self.weights) for d in h.divisors()]
        return VisitOrder(volumes, shares, seed)

    def remaining(self, taken: Collection[int], u: float) -> int:
        """Uniformly one of the volumes that are not taken."""
        rest = sorted(v for h in self.hierarchies for v in h.volumes if v not in taken)
        return rest[int(u * len(rest))]


class SamplingPlan:
    """Sample index -> Sample, over one or several stores.

    `spec`: size, group, same_modality, labels and labelled_share of what is read. `weights`: share of samples of each
    store; by default in proportion to its subjects. `balance` "modality": each modality (of a volume's channels) is
    drawn as often as the others, and within it the stores by their weights. `include`, `exclude`: subjects, raw or
    hashed. `few_slices`: also volumes flagged so. `patch_size`: what is placed in the volume and must fit one on every
    axis, default `spec.size`; a task that reads more than its input, for its augmentation to reach into, names its
    input.
    `crops_per_volume`: with more than one, so many consecutive groups are crops of the same volumes, and volumes follow
    one another as `ssl3d.data.order` says; of groups of one modality, the first volume does, and the others are drawn.
    Raises ValueError when nothing is left to sample, when every volume is too small on some axis (naming the largest
    usable patch, a `multiple` on each axis), and when a group needs more distinct volumes than there are.
    """

    def __init__(
        self,
        stores: Sequence[Source],
        spec: RegionSpec,
        seed: int,
        *,
        weights: Sequence[float] | None = None,
        balance: Literal["stores", "modality"] = "stores",
        include: Collection[str] | None = None,
        exclude: Collection[str] = (),
        few_slices: bool = False,
        patch_size: Size3 | None = None,
        multiple: Size3 = (1, 1, 1),
        crops_per_volume: int = 1,
    ) -> None:
        if crops_per_volume < 1:
            raise ValueError(f"data.crops_per_volume is {crops_per_volume}: it must be 1 or more")
        self.stores, self.spec, self.seed = list(stores), spec, int(seed)
        self._offsets = np.cumsum([0, *(len(s) for s in self.stores)]).tolist()
        self._shape = _stacked([s.column("shape") for s in self.stores], 3)
        self._box = _stacked([s.column("foreground_box") for s in self.stores], 6)
        subjects = [str(v) for s in self.stores for v in s.column("subject")]
        sessions = [str(v) for s in self.stores for v in s.column("session")]
        modality = [" ".join(m) for s in self.stores for m in s.column("modality")]
        self._patch = tuple(patch_size or spec.size)
        weights = self._checked(weights)
        eligible = self._eligible(subjects, include, exclude, few_slices)
        if weights is not None:
            eligible = [v for v in eligible if weights[self.locate(v)[0]] > 0]
        if spec.same_modality:
            eligible = _enough_of_modality(eligible, modality, spec.group)
        self._check(eligible, patch_size or spec.size, multiple)
        self.volumes: list[int] = eligible

        def forests(of: Sequence[str]) -> dict[str, _Forest]:
            rows = {m: [v for v in eligible if of[v] == m] for m in sorted({of[v] for v in eligible})}
            return {m: self._forest(volumes, subjects, sessions, weights) for m, volumes in rows.items()}

        self._modality = modality if spec.same_modality else None
        self._by_modality = forests(modality) if spec.same_modality else {}
        if balance == "modality":  # four channels of MR are as much MR as one
            self._all = _joined(forests([" ".join(sorted(set(m.split()))) for m in modality]).values())
        else:
            self._all = self._forest(eligible, subjects, sessions, weights)
        self.crops_per_volume = crops_per_volume
        self._order = self._all.order(self.seed) if crops_per_volume > 1 else None
        self._coordinates: LRU[int, list[np.ndarray]] = LRU(LABEL_COORDINATES)

    def __repr__(self) -> str:
        return f"SamplingPlan({len(self.volumes)} volumes of {len(self.stores)} stores, seed {self.seed})"

    def with_images(self) -> SamplingPlan:
        """The same plan for who needs the images, also where the task makes its own and its regions have none."""
        plan = copy(self)
        plan.spec = replace(self.spec, images=True)
        return plan

    def locate(self, volume: int) -> tuple[int, int]:
        """(store, row) of a volume number, as in `Sample.volume` and `RegionBatch.volume`."""
        store = bisect_right(self._offsets, volume) - 1
        return store, volume - self._offsets[store]

    @cached_property
    def channels(self) -> set[int]:
        """The numbers of channels that volumes which may be sampled have."""
        columns = [store.column("channels") for store in self.stores]
        return {int(columns[store][row]) for store, row in map(self.locate, self.volumes)}

    def rows(self, store: int) -> list[int]:
        """Sorted rows of a store that may be sampled."""
        return [row for s, row in map(self.locate, self.volumes) if s == store]

    def sample(self, index: int) -> Sample:
        """The sample of a global index: a pure function of (seed, index)."""
        group, position = divmod(index, self.spec.group)
        return self.group(group)[position]

    def group(self, g: int, attempt: int = 0) -> list[Sample]:
        """The samples [g * group, (g + 1) * group), from distinct volumes, or from one.

        `attempt` > 0: other ones in their place, for when a volume of these cannot be read.
        """
        rng = numpy_generator(self.seed, "group", g, *([attempt] if attempt else []))
        numbers = rng.random((self.spec.group, 8)).tolist()
        if self._order is None or attempt:
            volumes = self._draw(rng, numbers)
        else:
            volumes = self._visit(self._order, g // self.crops_per_volume)
        samples = []
        for position, (volume, u) in enumerate(zip(volumes, numbers)):
            store, row = self.locate(volume)
            number = g * self.spec.group + position
            start = self._start(volume, store, row, u[4:])
            samples.append(Sample(number, store, row, volume, start, mix(self.seed, "sample", number)))
        return samples

    def _draw(
        self, rng: np.random.Generator, numbers: Sequence[Sequence[float]], wanted: Sequence[int] = ()
    ) -> list[int]:
        """The volumes of a group by chance, but for the `wanted` first ones, as far as those are distinct."""
        volumes = list[int]()
        forest = self._all
        for position, u in enumerate(numbers):
            if volumes and self.spec.same_volume:
                volumes.append(volumes[0])
                continue
            volume = wanted[position] if position < len(wanted) else forest.draw(u)
            tries = 0
            while volume in volumes:
                tries += 1
                v = rng.random(4).tolist()
                volume = forest.draw(v) if tries < DRAWS else forest.remaining(volumes, v[0])
            volumes.append(volume)
            if self._modality is not None:
                forest = self._by_modality[self._modality[volume]]
        return volumes

    def _visit(self, order: VisitOrder, visit: int) -> list[int]:
        """The volumes that the groups of a visit share."""
        rng = numpy_generator(self.seed, "visit", visit)
        numbers = rng.random((self.spec.group, 4)).tolist()
        n = 1 if self.spec.same_volume or self._modality is not None else self.spec.group
        return self._draw(rng, numbers, [order.volume(visit * n + k) for k in range(n)])

    def _start(self, volume: int, store: int, row: int, u: Sequence[float]) -> tuple[int, int, int]:
        """First voxel of the region: the patch's centre uniform in the foreground box, or on a labelled voxel.

        On an axis where the volume is at least as large as the patch, the patch is shifted inside; where it is
        smaller, the volume lies in the middle of the patch. The region reaches beyond the patch equally on both sides.
        """
        shape, box = self._shape[volume], self._box[volume]
        centre = [lo + int(f * (hi - lo)) for f, lo, hi in zip(u[:3], box[:3], box[3:])]
        share = self.spec.labelled_share
        if share > 0 and u[3] < share:
            classes = self._coordinates.get(volume, lambda: self._labelled(volume, store, row))
            if classes:
                points = classes[int(u[3] / share * len(classes))]  # u3 / share is uniform again
                centre = points[int(u[0] * len(points))].tolist()
        start = []
        for c, patch, region, n in zip(centre, self._patch, self.spec.size, shape):
            first = -((patch - n) // 2) if n < patch else min(max(c - patch // 2, 0), n - patch)
            start.append(first - (region - patch) // 2)
        return (start[0], start[1], start[2])

    def _labelled(self, volume: int, store: int, row: int) -> list[np.ndarray]:
        """Voxels (k,3) of each class but background and ignore, by class value: recorded ones, or of the slices."""
        info = self.stores[store].label_info(row)
        leave_out = {0, info.ignore}
        if self.spec.labelled_slices is not None:
            return self._on_slices(store, row, *self.spec.labelled_slices[volume], leave_out)
        return [np.array(p) for value, p in sorted(info.coordinates.items()) if value not in leave_out and p]

    def _on_slices(
        self, store: int, row: int, axis: int, slices: Sequence[int], leave_out: set[int | None]
    ) -> list[np.ndarray]:
        """The classes' voxels (k,3) on some slices across an axis, read from the stored labels."""
        opened, found = self.stores[store], dict[int, list[np.ndarray]]()
        shape = opened.shape(row, LABELS)[1:]
        for at in slices:
            start = size3(at if a == axis else 0 for a in range(3))
            size = size3(1 if a == axis else n for a, n in enumerate(shape))
            label = opened.read(row, start, size, kind=LABELS)[0]
            for value in set(np.unique(label).tolist()) - leave_out:
                found.setdefault(int(value), []).append(np.argwhere(label == value) + start)
        return [np.concatenate(points) for _, points in sorted(found.items())]

    def _eligible(
        self, subjects: list[str], include: Collection[str] | None, exclude: Collection[str], few_slices: bool
    ) -> list[int]:
        keep = np.ones(len(subjects), dtype=bool)
        if not few_slices:
            keep &= [FEW_SLICES not in flags for s in self.stores for flags in s.column("flags")]
        if self.spec.labels:
            keep &= np.concatenate([s.column("has_label") for s in self.stores]).astype(bool)
        distinct = set(subjects)
        if include is not None:
            wanted = matching(distinct, include)
            keep &= [s in wanted for s in subjects]
        if exclude:
            unwanted = matching(distinct, exclude)
            keep &= [s not in unwanted for s in subjects]
        return np.flatnonzero(keep).tolist()

    def _check(self, eligible: list[int], patch_size: Size3, multiple: Size3) -> None:
        names = ", ".join(s.path for s in self.stores)
        if not eligible:
            what = "labelled volume" if self.spec.labels else "volume"
            raise ValueError(
                f"no {what} of {names} is left to sample ({len(self._shape)} in all): "
                "loosen data.include, data.exclude or data.holdout, or set data.few_slices=true"
            )
        # of all volumes, not of the eligible ones: one labelled patient smaller than the patch is padded, not refused
        require_fit(patch_size, self._shape, multiple, names)
        if self.spec.group > len(eligible) and not self.spec.same_volume:
            raise ValueError(
                f"the task draws groups of {self.spec.group} distinct volumes, but {names} has {len(eligible)} to "
                "sample: add volumes or make the group smaller"
            )

    def _checked(self, weights: Sequence[float] | None) -> Sequence[float] | None:
        if weights is not None:
            fits = len(weights) == len(self.stores) and all(math.isfinite(w) and w >= 0 for w in weights)
            if not fits or sum(weights) == 0:
                raise ValueError(
                    f"data.weights must be {len(self.stores)} numbers >= 0, one per store and not all 0, "
                    f"got {list(weights)}"
                )
        return weights

    def _forest(
        self, volumes: Sequence[int], subjects: list[str], sessions: list[str], weights: Sequence[float] | None
    ) -> _Forest:
        parts: list[list[int]] = [[] for _ in self.stores]
        for volume in volumes:
            parts[self.locate(volume)[0]].append(volume)
        trees = [_Hierarchy(p, [subjects[v] for v in p], [sessions[v] for v in p]) for p in parts]
        return _Forest(trees, [float(tree.n_subjects) for tree in trees] if weights is None else weights)


def _joined(forests: Iterable[_Forest]) -> _Forest:
    """One forest in which each of these is drawn as often as the others."""
    parts = [
        (tree, w / sum(forest.weights)) for forest in forests for tree, w in zip(forest.hierarchies, forest.weights)
    ]
    return _Forest([tree for tree, _ in parts], [w for _, w in parts])


def split_holdout(stores: Sequence[Source], share: float, seed: int) -> set[str]:
    """Subjects kept out of pre-training: round(share * subjects), at least one when share > 0.

    A subject's rank is a hash of (seed, subject), so that a store that grows keeps most of its held-out subjects.
    Raises ValueError when `share` is not in [0, 1) or nothing would be left to train on.
    """
    if not 0 <= share < 1:
        raise ValueError(f"data.holdout is {share}: it must be a share of subjects in [0, 1)")
    if share == 0:
        return set()
    subjects = {str(v) for store in stores for v in store.column("subject")}
    n = max(1, round(share * len(subjects)))
    if n >= len(subjects):
        raise ValueError(
            f"data.holdout={share} leaves none of {len(subjects)} subjects to train on: set data.holdout=0"
        )
    return set(sorted(subjects, key=lambda s: (mix(seed, "holdout", s), s))[:n])


def _stacked(columns: Sequence[np.ndarray], width: int) -> list[list[int]]:
    return [row for column in columns for row in column.reshape(-1, width).tolist()]


def _enough_of_modality(eligible: list[int], modality: list[str], group: int) -> list[int]:
    """Leave out volumes whose modality has fewer volumes than a group needs, and say so."""
    counts: dict[str, int] = {}
    for volume in eligible:
        counts[modality[volume]] = counts.get(modality[volume], 0) + 1
    few = sorted(m for m, n in counts.items() if n < group)
    if few and len(few) < len(counts):
        _log.warning("volumes of modality %s are not sampled: fewer than a group of %d", ", ".join(few), group)
        return [v for v in eligible if modality[v] not in few]
    if few:
        raise ValueError(
            f"the task draws groups of {group} volumes of one modality, but no modality has more than "
            f"{max(counts.values())}: add volumes or make the group smaller"
        )
    return eligible
