"""A loader that runs for weeks: neither memory nor open files grow with the batches it has read."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest

from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.shard import MAX_OPEN_SHARDS
from ssl3d.data.store import open_store
from ssl3d.data.write import build_index
from ssl3d.memory import keep_freed_memory
from ssl3d.regions import RegionSpec
from ssl3d.testing.many import write_many

VOLUMES, BATCHES = 500, 2000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
@pytest.mark.parametrize("workers,cache_gb", [(0, 0.0), (2, 0.0), (2, 0.06)])
def test_memory_and_open_files_stay_where_they_are(tmp_path, workers, cache_gb):
    """Once every volume has been opened, 2,000 batches of 500 volumes add less than 2 % to the resident memory.

    With a cache too, which holds half of them: its volumes fill up with what is read of them, and then it is full.
    """
    root = tmp_path / "store.zarr"
    write_many(root, VOLUMES)
    build_index(root)
    keep_freed_memory()
    plan = SamplingPlan([open_store(root)], RegionSpec((16, 24, 20)), seed=0)
    process, files = psutil.Process(), []
    with RegionLoader(plan, 4, workers=workers, cache_gb=cache_gb) as loader:
        seen: set[int] = set()
        before = 0
        for step, batch in enumerate(loader):
            seen.update(batch.volume.tolist())
            if step == BATCHES:
                gc.collect()
                before = process.memory_info().rss
            if step >= BATCHES:
                files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
            if step == 2 * BATCHES:
                break
        gc.collect()
        after = process.memory_info().rss
        if loader.cache is not None:
            assert 0.95 * loader.cache.capacity < loader.cache.used <= loader.cache.capacity
            assert VOLUMES / 4 < len(loader.cache) < VOLUMES
    assert len(seen) == VOLUMES
    assert after < 1.02 * before
    assert max(files) < MAX_OPEN_SHARDS + 100
