"""Which volume a visit goes to, when several crops of a volume are read in a row.

A volume's file is then read once for all of them, whatever the page cache can hold. Visits go through epochs: each is
a shuffled systematic sample (Madow, Annals of Mathematical Statistics 1949) of all volumes, which takes a volume as
often as its share says, rounded up or down by chance; volumes of equal shares exactly once each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from ssl3d.data.lru import LRU
from ssl3d.seeding import numpy_generator

EPOCHS = 4  # orders kept in memory: reading ahead crosses the end of one at most


class VisitOrder:
    """Visit number -> volume, a pure function of (seed, number).

    `volumes`, and `shares` of visits that each may expect in an epoch of len(volumes), summing to that.
    """

    def __init__(self, volumes: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self.volumes, self.seed = list(volumes), seed
        self._ends = np.cumsum(shares).tolist()
        self._epochs: LRU[int, tuple[list[int], float]] = LRU(EPOCHS)

    def volume(self, visit: int) -> int:
        """The volume of a visit."""
        n = len(self.volumes)
        epoch, position = divmod(visit, n)
        order, offset = self._epochs.get(epoch, lambda: self._shuffled(epoch))
        return self.volumes[min(bisect_right(self._ends, order[position] + offset), n - 1)]

    def _shuffled(self, epoch: int) -> tuple[list[int], float]:
        """(order of the points of an epoch, where each lies between its number and the next)."""
        rng = numpy_generator(self.seed, "epoch", epoch)
        return rng.permutation(len(self.volumes)).tolist(), float(rng.uniform(0.001, 0.999))  # clear of rounded sums
