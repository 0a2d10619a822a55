"""The index of a store: one parquet row a volume, derived from the arrays' attributes and rebuildable from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl3d.data import format as fmt
from ssl3d.data.encode import METADATA
from ssl3d.data.format import LabelInfo, VolumeAttributes
from ssl3d.data.objects import Objects, in_parallel, open_objects
from ssl3d.data.thumbnail_file import write_thumbnails

if TYPE_CHECKING:
    import pandas as pd

_BATCH = 1024  # rows that are Python objects at a time
_POOLED = ("count", "mean", "std", "clipped_mean", "clipped_std", "minimum", "maximum", "low", "high")

_ARROW_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "json": pa.string(),
    "list[str]": pa.list_(pa.string()),
    "list[int]": pa.list_(pa.int64()),
    "list[float]": pa.list_(pa.float64()),
}
SCHEMA = pa.schema([(name, _ARROW_TYPES[kind]) for name, kind in fmt.INDEX_COLUMNS.items()])


def build_index(root: str | Path) -> pd.DataFrame:
    """Read the attributes of every committed volume; write thumbnails, pooled statistics and the index, in this order.

    Rows are sorted by id. Whatever an older index said is replaced. Returns the decoded index.
    Raises FileNotFoundError when there is no store at `root`, ValueError naming a volume whose attributes do not parse.
    """
    objects = open_objects(root)
    if not objects.exists(METADATA):
        raise FileNotFoundError(f"{root} is no ssl3d store: there is no {METADATA}; make one with ssl3d convert")
    table, statistics = collect_rows(objects)
    write_index(objects, table, statistics)
    return decode_index(table)


def collect_rows(objects: Objects) -> tuple[pa.Table, dict[str, dict[str, float]]]:
    """(undecoded index of the committed volumes, sorted by id; pooled statistics), from the arrays' attributes.

    Volume after volume, a few read at a time, so that a hundred thousand need no more memory than their index.
    Raises ValueError naming a volume whose attributes do not parse.
    """
    ids = objects.holding(fmt.VOLUMES, METADATA)
    others = {kind: frozenset(objects.holding(kind, METADATA)) for kind in fmt.KINDS if kind != fmt.VOLUMES}
    pool = StatisticsPool()
    batches, rows = [], []

    def read(volume_id: str) -> tuple[str, bytes, bytes | None]:
        label = f"{fmt.LABELS}/{volume_id}/{METADATA}" if volume_id in others[fmt.LABELS] else None
        metadata = objects.get(f"{fmt.VOLUMES}/{volume_id}/{METADATA}")
        return volume_id, metadata, None if label is None else objects.get(label)

    for volume_id, metadata, label in in_parallel(read, ids):
        row = _row(objects, volume_id, metadata, label, others)
        pool.add(row["modality"], row["foreground_stats"])
        rows.append(_to_arrow(row))
        if len(rows) == _BATCH:
            batches.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
            rows = []
    batches.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    return pa.Table.from_batches(batches, schema=SCHEMA).combine_chunks(), pool.result()


def write_index(objects: Objects, table: pa.Table, statistics: Mapping[str, Mapping[str, float]]) -> None:
    """Write thumbnails, pooled statistics and the index, in this order."""
    write_thumbnails(objects, table["id"].to_pylist())
    metadata = json.loads(objects.get(METADATA))
    metadata["attributes"]["statistics"] = statistics
    objects.put(METADATA, json.dumps(metadata, indent=2).encode())
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    objects.put(fmt.INDEX_FILE, sink.getvalue().to_pybytes())


def read_index(objects: Objects) -> pa.Table:
    """The index as an arrow table, undecoded. Raises ValueError when a column of the format is missing."""
    table = pq.read_table(pa.BufferReader(objects.get(fmt.INDEX_FILE)))
    missing = [name for name in fmt.INDEX_COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{objects.root}/{fmt.INDEX_FILE} has no column '{missing[0]}': rebuild it by running ssl3d convert again"
        )
    return table


def decode_index(table: pa.Table, described: bool = True) -> pd.DataFrame:
    """The index with lists and json as Python objects, columns as in `format.INDEX_COLUMNS`.

    `described=False` leaves the json columns out, which take most of the time.
    """
    import pandas as pd  # not above: workers that write volumes need no tables

    columns: dict[str, Any] = {}
    for name, kind in fmt.INDEX_COLUMNS.items():
        if kind == "json" and not described:
            continue
        values = table[name].to_pylist()
        columns[name] = [json.loads(v) for v in values] if kind == "json" else values
    return pd.DataFrame(columns, columns=list(columns))


def keep_rows(table: pa.Table, kept: Callable[[str], bool]) -> tuple[pa.Table, dict[str, dict[str, float]]]:
    """(the rows of an undecoded index whose id is `kept`, their pooled statistics)."""
    chosen = table.filter(pa.array([kept(name) for name in table["id"].to_pylist()], pa.bool_())).combine_chunks()
    pool = StatisticsPool()
    for modalities, stats in zip(chosen["modality"].to_pylist(), chosen["foreground_stats"].to_pylist()):
        pool.add(modalities, json.loads(stats))
    return chosen, pool.result()


class StatisticsPool:
    """{modality: foreground statistics pooled exactly over all volumes and channels of that modality}.

    Means and standard deviations are those of all foreground voxels taken together (Chan, Golub and LeVeque 1983),
    in physical units; `clipped_*` after each volume's own clipping to [low, high] (the CT window for CT).
    """

    def __init__(self) -> None:
        self._channels: dict[str, list[tuple[float, ...]]] = {}

    def add(self, modalities: Iterable[str], stats: Iterable[Mapping[str, float]]) -> None:
        """The channels of one volume."""
        for modality, channel in zip(modalities, stats):
            self._channels.setdefault(modality, []).append(tuple(channel[key] for key in _POOLED))

    def result(self) -> dict[str, dict[str, float]]:
        """The statistics of all that was added."""
        return {modality: _pool(self._channels[modality]) for modality in sorted(self._channels)}


def _pool(channels: list[tuple[float, ...]]) -> dict[str, float]:
    columns = dict(zip(_POOLED, np.array(channels, dtype=np.float64).T))
    count = columns["count"]
    pooled: dict[str, float] = {"channels": len(channels), "count": int(count.sum())}
    weight = count / max(count.sum(), 1.0)
    for mean_key, std_key in (("mean", "std"), ("clipped_mean", "clipped_std")):
        mean, std = columns[mean_key], columns[std_key]
        total = float(weight @ mean)
        pooled[mean_key] = total
        pooled[std_key] = math.sqrt(float(weight @ (std**2 + (mean - total) ** 2)))
    for key, reduce in (("minimum", np.min), ("maximum", np.max), ("low", np.min), ("high", np.max)):
        pooled[key] = float(reduce(columns[key]))
    return pooled


def _row(
    objects: Objects, volume_id: str, volume: bytes, label: bytes | None, others: Mapping[str, frozenset[str]]
) -> dict[str, Any]:
    """The index row of a committed volume, from the metadata of its arrays. `others`: {kind: volumes that have it}."""
    try:
        metadata = json.loads(volume)
        attributes = VolumeAttributes.from_json(metadata["attributes"])
        info = None if label is None else LabelInfo.from_json(json.loads(label)["attributes"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"volume {volume_id} of {objects.root} has damaged metadata ({error}): convert its source again"
        ) from error
    sizes = (objects.size(f"{fmt.VOLUMES}/{volume_id}/{key}") for key in attributes.digest)
    return fmt.index_row(
        volume_id,
        metadata["shape"],
        attributes,
        info,
        volume_id in others[fmt.VALID],
        volume_id in others[fmt.LABELS_ORIGINAL],
        attributes.stored_bytes or sum(sizes),
    )


def _to_arrow(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: json.dumps(v, sort_keys=True) if fmt.INDEX_COLUMNS[k] == "json" else v for k, v in row.items()}
