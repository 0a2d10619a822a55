"""What a viewer shows: a scan of eight bits, maps of classes over it, and where its voxels lie."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl3d.viewer.grid import Grid
from ssl3d.viewer.tiles import columns, png, tile

MOST_PAINTS = 254  # of a byte: 0 is transparent


@dataclass(frozen=True)
class Paint:
    """What a label value is called and its colour, "#rrggbb"."""

    value: int
    name: str
    colour: str


@dataclass(frozen=True)
class Scan:
    """`image` and each of `maps` {name: label values} (D,H,W) on `grid`, of a volume of `size` (Z,Y,X) stored voxels.

    z grows to Superior, y to Posterior, x to the patient's Left. `image` is uint8. Values without a Paint are
    transparent. `outline`: the map that is drawn as a line whichever other is filled; `start` (z,y,x) of the copy: the
    voxel that is shown first. Of the values that are there the first MOST_PAINTS are painted. Raises ValueError when a
    map has another shape than the image.
    """

    name: str
    image: NDArray[np.uint8]
    grid: Grid
    size: tuple[int, int, int]
    maps: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    paints: Sequence[Paint] = ()
    outline: str | None = None
    start: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for name, array in self.maps.items():
            if array.shape != self.image.shape:
                raise ValueError(f"{self.name}: '{name}' has the shape {array.shape}, its image {self.image.shape}")

    def to_json(self) -> dict[str, Any]:
        """What viewer.js reads; bytes as base64 of one PNG an array."""
        depth, height, width = self.image.shape
        found = {int(value) for array in self.maps.values() for value in np.unique(array)}
        shown = [paint for paint in self.paints if paint.value in found][:MOST_PAINTS]
        return {
            "name": self.name,
            "shape": [depth, height, width],
            "columns": columns((depth, height, width)),
            "step": list(self.grid.step),
            "spacing": list(self.grid.spacing),
            "origin": list(self.grid.origin),
            "size": list(self.size),
            "start": [int(n) for n in self.start or (depth // 2, height // 2, width // 2)],
            "image": packed(self.image),
            "maps": [{"name": name, **packed(_indices(array, shown))} for name, array in self.maps.items()],
            "outline": self.outline,
            "paints": [[paint.name, paint.colour] for paint in shown],
        }


def packed(volume: NDArray[np.uint8]) -> dict[str, Any]:
    """{png: base64 of the tiles, sum: Adler-32 of the voxels in order}, by which a browser knows that it read them."""
    return {"png": base64.b64encode(png(tile(volume))).decode(), "sum": zlib.adler32(volume.tobytes())}


def _indices(array: NDArray[Any], paints: Sequence[Paint]) -> NDArray[np.uint8]:
    """Label values -> 1 + the place of their paint, 0 for those without."""
    found = np.zeros(array.shape, np.uint8)
    for index, paint in enumerate(paints, start=1):
        found[array == paint.value] = index
    return found
