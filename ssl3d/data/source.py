"""What a loader reads from: volumes described by a table, and boxes of their voxels. A store is one, or synthesis."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ssl3d.data import format as fmt
from ssl3d.data.cache import VoxelCache
from ssl3d.data.format import LabelInfo
from ssl3d.data.index import decode_index
from ssl3d.regions import Size3


class Source:
    """Volumes that can be sampled: a table with the columns of `format.INDEX_COLUMNS`, a row a volume, and `read`.

    `path`: what a recipe calls it; `statistics`: {modality: pooled foreground statistics}. Rows are positions in the
    table. Sampling, normalisation, the leak guard and the record of what a run has seen use nothing else, so that
    volumes may come from anywhere. Cheap to pickle: workers get a copy.
    """

    def __init__(self, path: str, table: pa.Table, statistics: Mapping[str, dict[str, float]]) -> None:
        self.path, self.table, self.statistics = path, table, dict(statistics)

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {len(self)} volumes)"

    @cached_property
    def index(self) -> pd.DataFrame:
        """The index, columns of `format.INDEX_COLUMNS`, lists and json decoded. Slow (seconds) at 100,000 volumes."""
        return decode_index(self.table)

    def column(self, name: str) -> np.ndarray:
        """One index column as a numpy array: (n,) for scalars, (n, k) for lists of equal length, else (n,) objects."""
        values = self.table[name].combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = values.chunk(0) if values.num_chunks else pa.array([], type=values.type)
        if not pa.types.is_list(values.type):
            return values.to_numpy(zero_copy_only=False)
        lengths = np.diff(values.offsets.to_numpy())
        if len(lengths) and (lengths == lengths[0]).all():
            return values.flatten().to_numpy(zero_copy_only=False).reshape(len(lengths), lengths[0])
        ragged = np.empty(len(lengths), dtype=object)
        ragged[:] = values.to_pylist()
        return ragged

    def cell(self, name: str, row: int) -> Any:
        """One index entry, lists and json decoded."""
        value = self.table[name][row].as_py()
        return json.loads(value) if fmt.INDEX_COLUMNS[name] == "json" else value

    def volume_id(self, row: int) -> str:
        """The id of a row."""
        return self.table["id"][row].as_py()

    def label_info(self, row: int) -> LabelInfo:
        """Classes, ignore value and sampled coordinates of a labelled volume. Raises FileNotFoundError without one."""
        raise NotImplementedError

    def shape(self, row: int, kind: str = fmt.VOLUMES) -> tuple[int, ...]:
        """(C,Z,Y,X) of an array."""
        raise NotImplementedError

    def read(
        self,
        row: int,
        start: Size3,
        size: Size3,
        kind: str = fmt.VOLUMES,
        out: np.ndarray | None = None,
        channel: int | None = None,
        cache: VoxelCache | None = None,
    ) -> np.ndarray:
        """The box of `size` (D,H,W) voxels that begins at `start` (z,y,x), which may lie outside the volume.

        Returns (C,D,H,W) as stored, or (1,D,H,W) of one `channel` (and of labels); written into `out` when given.
        Outside the volume: the stored value of `low` for volumes, 0 otherwise. `cache` keeps what was decoded.
        """
        raise NotImplementedError
