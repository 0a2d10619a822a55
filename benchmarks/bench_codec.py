"""What a chunk costs under blosc's codecs: bytes, time to compress and to decode; why volumes are stored as they are.

    python benchmarks/bench_codec.py [--store STORE.zarr] [--chunks 200] [--repeats 5] [--out DIR]

Random chunks of a store's volumes (one CT-like volume without --store) are compressed and decoded by numcodecs in one
thread, each codec after the other in every repeat; CPU time, medians over repeats, ratios to the first codec.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
from bench_loader import ct_like
from common import RESULTS, cpu_ms, save
from numcodecs import blosc

from ssl3d.data import format as fmt
from ssl3d.data.store import Store, open_store

MODES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
CODECS = (
    ("lz4", 5, "bitshuffle"), ("lz4", 5, "shuffle"), ("lz4hc", 2, "shuffle"), ("lz4hc", 3, "shuffle"),
    ("lz4hc", 4, "shuffle"), ("lz4hc", 9, "shuffle"), ("zstd", 1, "shuffle"), ("zstd", 1, "bitshuffle"),
)  # fmt: skip


def chunks_of(store: Store, count: int) -> list[np.ndarray]:
    """Random chunks (32, 32, 32) int16 that hold something, of random volumes and channels."""
    rng, found = np.random.default_rng(0), list[np.ndarray]()
    while len(found) < count:
        row = int(rng.integers(len(store)))
        shape = store.shape(row)
        start = tuple(int(rng.integers(-(-n // fmt.CHUNK))) * fmt.CHUNK for n in shape[1:])
        chunk = store.read(row, start, (fmt.CHUNK,) * 3, channel=int(rng.integers(shape[0])))[0]
        if chunk.any():
            found.append(chunk)
    return found


def round_trip(chunks: list[np.ndarray], name: str, level: int, shuffle: str) -> tuple[float, float, float]:
    """(bytes, CPU ms to compress, CPU ms to decode) of all chunks together."""
    made: list[bytes] = []
    out = np.empty(chunks[0].shape, np.int16)
    encode = cpu_ms(lambda: made.extend(blosc.compress(c, name.encode(), level, MODES[shuffle]) for c in chunks))
    decode = cpu_ms(lambda: [blosc.decompress(c, out) for c in made])
    assert (out == chunks[-1]).all()
    return float(sum(map(len, made))), encode, decode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a real store instead of a made volume")
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    o = parser.parse_args()
    if o.store is None:
        volume = ct_like((128, 384, 384), 0)[0]
        grid = volume.reshape(4, 32, 12, 32, 12, 32).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 32, 32, 32)
        chunks = list(np.random.default_rng(0).permutation(grid)[: o.chunks])
    else:
        chunks = chunks_of(open_store(o.store), o.chunks)
    figures: dict[tuple[str, int, str], list[tuple[float, ...]]] = {codec: [] for codec in CODECS}
    for _ in range(o.repeats):
        for codec in CODECS:
            figures[codec].append(round_trip(chunks, *codec))
    medians = {codec: [statistics.median(column) for column in zip(*rows)] for codec, rows in figures.items()}
    first = medians[CODECS[0]]
    rows = [
        {
            "codec": f"{name} {level}, {shuffle}",
            "bytes a chunk": values[0] / len(chunks), "of the first": values[0] / first[0],
            "compressing, us": values[1] * 1e3 / len(chunks), "times the first": values[1] / first[1],
            "decoding, us": values[2] * 1e3 / len(chunks), "times it": values[2] / first[2],
        }
        for (name, level, shuffle), values in medians.items()
    ]  # fmt: skip
    save("bench_codec", f"A chunk of 32^3 int16 under blosc ({len(chunks)} of them)", rows, {}, o.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
