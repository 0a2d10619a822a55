"""Read one sample: its voxels, label and valid mask, straight into the arrays of a batch. What a worker does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssl3d.data.cache import VoxelCache
from ssl3d.data.channels import ChannelChoice
from ssl3d.data.format import LABELS, VALID, VOLUMES
from ssl3d.data.sampling import Sample
from ssl3d.data.source import Source
from ssl3d.regions import Size3


class RegionReader:
    """Reads samples of `stores`; picklable, and opens nothing before its first read.

    `size` (D,H,W): voxels of a region. `channels`: which of a volume's.
    `cache`: where decoded voxels are kept; None decodes anew for each sample. `images`: False makes images of zeros.
    `labels_alone`: labels are read and images are not: then voxels of a volume's ignore value are not valid.
    """

    def __init__(
        self,
        stores: Sequence[Source],
        size: Size3,
        channels: ChannelChoice,
        cache: VoxelCache | None = None,
        images: bool = True,
        labels_alone: bool = False,
    ) -> None:
        self.stores, self.size, self.choice, self.cache = list(stores), size, channels, cache
        self.images, self.labels_alone = images, labels_alone
        self._shape = [s.column("shape").reshape(-1, 3) for s in self.stores]
        self._channels = [s.column("channels") for s in self.stores]
        self._has_valid = [s.column("has_valid").astype(bool) for s in self.stores]

    def channels(self, sample: Sample) -> list[int] | None:
        """The channels that this sample reads, in order; None for all."""
        return self.choice.of(sample.seed, int(self._channels[sample.store][sample.row]))

    def may_be_invalid(self, sample: Sample) -> bool:
        """Whether some voxel may have valid=0: one outside the volume, or of its valid array or ignore value."""
        has_valid = bool(self._has_valid[sample.store][sample.row])
        return has_valid or self._leaves(sample) or self._ignored(sample) is not None

    def read(self, sample: Sample, image: np.ndarray, label: np.ndarray | None, valid: np.ndarray | None) -> None:
        """Fill `image` (C,D,H,W) int16, `label` (1,D,H,W) any integer and `valid` (1,D,H,W) bool, those that are given.

        Outside the volume: image is its air value, label its ignore value (0 without one), valid False.
        Raises ValueError, FileNotFoundError or RuntimeError naming the volume.
        """
        store, row, start = self.stores[sample.store], sample.row, sample.start
        try:
            self._read_image(sample, image)
            if label is not None:
                label[...] = store.read(row, start, self.size, LABELS, cache=self.cache)
            if valid is not None:
                has_valid = self._has_valid[sample.store][row]
                valid[...] = store.read(row, start, self.size, VALID, cache=self.cache) if has_valid else True
                if label is not None and (ignored := self._ignored(sample)) is not None:
                    valid &= label != ignored
            if self._leaves(sample):
                self._mark_outside(sample, label, valid)
        except (ValueError, FileNotFoundError):
            raise  # these name the volume and the file already
        except Exception as error:
            raise RuntimeError(f"volume {store.volume_id(row)} of {store.path} cannot be read: {error!r}") from error

    def _read_image(self, sample: Sample, image: np.ndarray) -> None:
        store, row, start = self.stores[sample.store], sample.row, sample.start
        if not self.images:
            image[...] = 0
            return
        channels = self.channels(sample)
        if channels is None:
            store.read(row, start, self.size, VOLUMES, image, cache=self.cache)
            return
        first = dict[int, int]()  # where each channel stands already: it is decoded once
        for place, channel in enumerate(channels):
            if channel in first:
                image[place] = image[first[channel]]
            else:
                first[channel] = place
                store.read(row, start, self.size, VOLUMES, image[place : place + 1], channel, self.cache)

    def _ignored(self, sample: Sample) -> int | None:
        """The label value whose voxels are not valid."""
        return self.stores[sample.store].label_info(sample.row).ignore if self.labels_alone else None

    def _leaves(self, sample: Sample) -> bool:
        shape = self._shape[sample.store][sample.row]
        return any(s < 0 or s + d > n for s, d, n in zip(sample.start, self.size, shape.tolist()))

    def _mark_outside(self, sample: Sample, label: np.ndarray | None, valid: np.ndarray | None) -> None:
        outside = np.ones((1, *self.size), dtype=bool)
        shape = self._shape[sample.store][sample.row].tolist()
        outside[(slice(None), *(slice(max(0, -s), max(0, n - s)) for s, n in zip(sample.start, shape)))] = False
        if valid is not None:
            valid[outside] = False
        if label is not None:
            ignore = self.stores[sample.store].label_info(sample.row).ignore
            label[outside] = 0 if ignore is None else ignore
