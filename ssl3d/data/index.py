"""The index of a store: one parquet row a volume, derived from the arrays' attributes and rebuildable from them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ssl3d.data import format as fmt
from ssl3d.data.format import LabelInfo, VolumeAttributes
from ssl3d.data.objects import Objects, open_objects

THUMBNAIL_OBJECT = "thumbnail.npy"  # inside volumes/<id>/, so that it comes and goes with its volume
METADATA = "zarr.json"

_ARROW_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
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
    ids = [name for name in objects.names(fmt.VOLUMES) if objects.exists(f"{fmt.VOLUMES}/{name}/{METADATA}")]
    rows = [_row(objects, volume_id) for volume_id in ids]
    thumbnails = np.zeros((len(ids), 32, 32, 32), dtype=np.float16)
    for i, volume_id in enumerate(ids):
        thumbnails[i] = np.load(io.BytesIO(objects.get(f"{fmt.VOLUMES}/{volume_id}/{THUMBNAIL_OBJECT}")))
    file = io.BytesIO()
    np.save(file, thumbnails)
    objects.put(fmt.THUMBNAILS_FILE, file.getvalue())

    metadata = json.loads(objects.get(METADATA))
    metadata["attributes"]["statistics"] = pool_statistics(rows)
    objects.put(METADATA, json.dumps(metadata, indent=2).encode())

    table = pa.Table.from_pylist([_to_arrow(row) for row in rows], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    objects.put(fmt.INDEX_FILE, sink.getvalue().to_pybytes())
    return decode_index(table)


def read_index(objects: Objects) -> pa.Table:
    """The index as an arrow table, undecoded. Raises ValueError when a column of the format is missing."""
    table = pq.read_table(pa.BufferReader(objects.get(fmt.INDEX_FILE)))
    missing = [name for name in fmt.INDEX_COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{objects.root}/{fmt.INDEX_FILE} has no column '{missing[0]}': rebuild it by running ssl3d convert again"
        )
    return table


def decode_index(table: pa.Table) -> pd.DataFrame:
    """The index with lists and json as Python objects, columns as in `format.INDEX_COLUMNS`."""
    columns: dict[str, Any] = {}
    for name, kind in fmt.INDEX_COLUMNS.items():
        values = table[name].to_pylist()
        columns[name] = [json.loads(v) for v in values] if kind == "json" else values
    return pd.DataFrame(columns, columns=list(fmt.INDEX_COLUMNS))


def pool_statistics(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """{modality: foreground statistics pooled exactly over all volumes and channels of that modality}.

    Means and standard deviations are those of all foreground voxels taken together (Chan, Golub and LeVeque 1983),
    in physical units; `clipped_*` after each volume's own clipping to [low, high] (the CT window for CT).
    """
    by_modality: dict[str, list[Mapping[str, float]]] = {}
    for row in rows:
        for modality, stats in zip(row["modality"], row["foreground_stats"]):
            by_modality.setdefault(modality, []).append(stats)
    return {modality: _pool(by_modality[modality]) for modality in sorted(by_modality)}


def _pool(stats: list[Mapping[str, float]]) -> dict[str, float]:
    count = np.array([s["count"] for s in stats], dtype=np.float64)
    pooled: dict[str, float] = {"channels": len(stats), "count": int(count.sum())}
    weight = count / max(count.sum(), 1.0)
    for mean_key, std_key in (("mean", "std"), ("clipped_mean", "clipped_std")):
        mean = np.array([s[mean_key] for s in stats], dtype=np.float64)
        std = np.array([s[std_key] for s in stats], dtype=np.float64)
        total = float(weight @ mean)
        pooled[mean_key] = total
        pooled[std_key] = math.sqrt(float(weight @ (std**2 + (mean - total) ** 2)))
    for key, reduce in (("minimum", min), ("maximum", max), ("low", min), ("high", max)):
        pooled[key] = float(reduce(s[key] for s in stats))
    return pooled


def _row(objects: Objects, volume_id: str) -> dict[str, Any]:
    """The index row of a committed volume, from its arrays' metadata."""
    folder = f"{fmt.VOLUMES}/{volume_id}"
    metadata = json.loads(objects.get(f"{folder}/{METADATA}"))
    try:
        attributes = VolumeAttributes.from_json(metadata["attributes"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"volume {volume_id} of {objects.root}: {error}") from error
    label = None
    if objects.exists(f"{fmt.LABELS}/{volume_id}/{METADATA}"):
        label = LabelInfo.from_json(json.loads(objects.get(f"{fmt.LABELS}/{volume_id}/{METADATA}"))["attributes"])
    return fmt.index_row(
        volume_id,
        metadata["shape"],
        attributes,
        label,
        objects.exists(f"{fmt.VALID}/{volume_id}/{METADATA}"),
        objects.exists(f"{fmt.LABELS_ORIGINAL}/{volume_id}/{METADATA}"),
        sum(objects.size(f"{folder}/{key}") for key in attributes.digest),
    )


def _to_arrow(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: json.dumps(v, sort_keys=True) if fmt.INDEX_COLUMNS[k] == "json" else v for k, v in row.items()}
