"""The cache of decoded voxels: the same bits with and without it, a budget that is kept, and what it saves."""

from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from ssl3d.data import cache as cache_module
from ssl3d.data.cache import VoxelCache, cache_for
from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.shard import ShardedArray
from ssl3d.data.store import Store, open_store
from ssl3d.regions import RegionBatch, RegionSpec

SIZE = (16, 40, 24)


def same(a: RegionBatch, b: RegionBatch) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__]
    return all((x is None and y is None) or torch.equal(x.nan_to_num(-7.5), y.nan_to_num(-7.5)) for x, y in pairs)


def total_bytes(store: Store) -> int:
    """What all arrays of a store take decoded."""
    kinds = [("volumes", range(len(store)))]
    kinds += [(k, np.flatnonzero(store.column(f"has_{k.rstrip('s')}")).tolist()) for k in ("labels", "valid")]
    return sum(store._array(row, kind).dtype.itemsize * int(np.prod(store.shape(row, kind)))
               for kind, rows in kinds for row in rows)  # fmt: skip


@pytest.mark.parametrize(
    "workers,backend,share", [(0, "threads", 0.4), (3, "threads", 0.4), (3, "threads", 1.0), (2, "processes", 0.4)]
)
def test_batches_are_the_same_with_and_without_a_cache(make_store, workers, backend, share):
    store = open_store(make_store(labels=True, valid=True, channels=2))
    plan = SamplingPlan([store], RegionSpec(SIZE, labels=True), seed=1)
    expected = list(islice(RegionLoader(plan, 4, workers=0), 12))
    budget = share * total_bytes(store) / 1e9
    with RegionLoader(plan, 4, workers=workers, backend=backend, cache_gb=budget) as loader:
        assert all(same(a, b) for a, b in zip(expected, islice(loader, 12), strict=True))
        if backend == "threads":
            assert all(same(a, b) for a, b in zip(expected, islice(loader, 12), strict=True)), "out of the cache"
            assert 0 < loader.cache.used <= loader.cache.capacity
            assert (len(loader.cache) == 3 * len(store)) == (share == 1)


def test_one_channel_of_many_fills_the_cache_with_what_is_read(make_store):
    plan = SamplingPlan([open_store(make_store(2, channels=3))], RegionSpec((10, 12, 14)), seed=0)
    alone = RegionLoader(plan, 16, workers=0, channels="one").read(range(16))
    kept = RegionLoader(plan, 16, workers=2, channels="one", cache_gb=0.1)
    assert all(same(alone, kept.read(range(16))) for _ in range(3))


def test_a_chunk_is_decoded_once(make_store, monkeypatch):
    """What was read before is copied, a region that overlaps it decodes its new chunks, and nothing else is decoded."""
    store, kept, boxes = open_store(make_store(1, shape=(70, 66, 97))), VoxelCache(10**8), []
    read_into = ShardedArray.read_into

    def watched(self, out, low, channels):
        boxes.append((low, out.shape[1:]))
        read_into(self, out, low, channels)

    monkeypatch.setattr(ShardedArray, "read_into", watched)
    for start, size, decoded in [
        ((3, 5, 7), (20, 20, 20), [((0, 0, 0), (32, 32, 32))]),
        ((9, 8, 11), (20, 20, 20), []),
        ((0, 0, 20), (30, 31, 30), [((0, 0, 32), (32, 32, 32))]),
        ((60, 60, 90), (10, 6, 7), [((32, 32, 64), (38, 34, 33))]),  # up to the volume's end, not the chunk's
        ((-5, 40, 80), (50, 40, 30), [((0, 32, 64), (32, 34, 33))]),  # leaves the volume
        ((0, 0, 0), (70, 66, 97), [((0, 0, 0), (70, 66, 97))]),
        ((0, 0, 0), (70, 66, 97), []),
    ]:
        expected = store.read(0, start, size)
        boxes.clear()
        assert (store.read(0, start, size, cache=kept) == expected).all()
        assert boxes == decoded


def test_the_budget_is_kept_and_the_first_volumes_stay(make_store):
    store = open_store(make_store(4))
    sizes = [2 * int(np.prod(store.shape(row))) for row in range(4)]
    kept = VoxelCache(sizes[0] + sizes[2])
    for row in (0, 1, 2, 3, 2, 0):
        store.read(row, (0, 0, 0), (8, 8, 8), cache=kept)
        assert kept.used <= kept.capacity
    wanted, room = [], kept.capacity
    for row in range(4):
        if sizes[row] <= room:
            wanted.append(row)
            room -= sizes[row]
    assert [row for row in range(4) if (store.path, row, "volumes") in kept] == wanted
    assert kept.used == kept.capacity - room
    nothing = VoxelCache(0)
    store.read(0, (0, 0, 0), (8, 8, 8), cache=nothing)
    assert len(nothing) == nothing.used == 0


def test_a_damaged_chunk_is_the_same_error_as_without_a_cache(make_store):
    root = make_store(1)
    shard = root / "volumes/volume0/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[20:4000] = bytes(3980)
    shard.write_bytes(data)
    store, kept, said = open_store(root), VoxelCache(10**8), []
    for cache in (None, kept, kept):
        with pytest.raises(ValueError, match="damaged") as caught:
            store.read(0, (0, 0, 0), (40, 70, 33), cache=cache)
        said.append(str(caught.value))
    assert len(set(said)) == 1


def test_a_cache_travels_empty_and_is_divided(make_store):
    store, kept = open_store(make_store(1)), VoxelCache(10**8)
    store.read(0, (0, 0, 0), (8, 8, 8), cache=kept)
    other = pickle.loads(pickle.dumps(kept))
    assert len(other) == other.used == 0 and other.capacity == 10**8
    assert kept.share(4).capacity == 10**8 // 4 and len(kept.share(4)) == 0
    assert cache_for(0.004, 2).capacity == 2 * 10**6 and cache_for(0, 2) is None


def test_a_budget_larger_than_the_memory_is_refused(make_store, monkeypatch):
    monkeypatch.setattr(cache_module, "available_memory", lambda: 3 * 10**9)
    plan = SamplingPlan([open_store(make_store(1))], RegionSpec((4, 4, 4)), seed=0)
    assert RegionLoader(plan, 1, cache_gb=2.9).cache.capacity == int(2.9e9)
    for wrong, words in ((3.1, "3.1, but this machine has 3.0 GB"), (-1, "0 or more")):
        with pytest.raises(ValueError, match=rf"data\.cache_gb is {wrong}.*|{words}"):
            RegionLoader(plan, 1, cache_gb=wrong)


def test_workers_are_counted_by_rank(make_store, monkeypatch):
    """A machine's cores are shared by its ranks, but not those that SLURM has bound a rank to."""
    plan = SamplingPlan([open_store(make_store(1))], RegionSpec((4, 4, 4)), seed=0)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for cores, ranks, bound, workers in ((8, 1, "", 7), (16, 2, "", 7), (16, 4, "", 3), (4, 8, "", 1), (64, 1, "", 8),
                                         (6, 4, "6", 5), (24, 4, "6", 5), (1, 1, "", 1)):  # fmt: skip
        monkeypatch.setattr("ssl3d.data.loader.available_cores", lambda n=cores: n)
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", bound)
        assert RegionLoader(plan, 8, local_ranks=ranks).workers == workers
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun says so
    monkeypatch.setattr("ssl3d.data.loader.available_cores", lambda: 16)
    assert RegionLoader(plan, 8).workers == 3
