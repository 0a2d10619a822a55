"""Few-shot by retrieval: the label of the nearest feature of a labelled volume is carried to every voxel of another.

With one labelled volume (n_labelled: [1]) this is label propagation: nothing is fitted at all, and the labels come from
one patient. Scans of one protocol lie alike, so an optional prior lets near places win: the cosine is reduced by
`position_weight` times the squared distance of two voxels' places, each relative to its volume's foreground box (which
the conversion found from the image alone). It is the same for every arm, a random encoder included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from downstream.knn import Knn
from downstream.measure import faults


@dataclass(kw_only=True)
class Retrieval(Knn):
    """The label of the nearest labelled voxel (k: 1). `position_weight`: 0 compares features alone."""

    voxels_per_class: int = 2000
    k: int = 1
    position_weight: float = 0.0

    TITLE: ClassVar[str] = "Label propagation"

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        own = [(self.position_weight >= 0, "position_weight", self.position_weight, "0 or more")]
        return [*super().check(key), *faults(key, own)]

    def title(self) -> str:
        """See Measure.title."""
        return super().title() + (", near places first" if self.position_weight else "")

    def prior(self) -> float:
        """See Knn.prior."""
        return self.position_weight
