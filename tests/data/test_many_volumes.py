"""A store of thousands of volumes: what is indexed, what is held in memory, what a first batch touches."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssl3d.data import format as fmt
from ssl3d.data.index import build_index
from ssl3d.data.loader import RegionLoader
from ssl3d.data.objects import LocalObjects
from ssl3d.data.sampling import SamplingPlan, split_holdout
from ssl3d.data.store import open_store
from ssl3d.data.thumbnail_file import ThumbnailFile
from ssl3d.regions import RegionSpec
from ssl3d.testing.many import MODELS, SCANS_PER_SUBJECT, volume_id, write_many

COUNT = 3000
PATCH = (16, 24, 20)
BENCH = Path(__file__).parents[2] / "benchmarks" / "bench_scale.py"


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("many") / "store.zarr"
    write_many(root, COUNT)
    build_index(root)
    return root


@pytest.mark.slow
def test_every_volume_is_in_the_index_once_with_its_own_metadata(many):
    store = open_store(many)
    assert len(store) == COUNT
    assert store.column("id").tolist() == [volume_id(n) for n in range(COUNT)]
    assert len(set(store.column("fingerprint"))) == COUNT
    assert len(set(store.column("subject"))) == -(-COUNT // SCANS_PER_SUBJECT)
    for row in (0, 1234, COUNT - 1):
        assert store.column("shape")[row].tolist() == list(MODELS[row % len(MODELS)])
        assert store.attributes(row).fingerprint == store.cell("fingerprint", row)
    assert sum(int(pooled["channels"]) for pooled in store.statistics.values()) == COUNT
    own = np.load(many / f"volumes/{volume_id(COUNT - 1)}/thumbnail.npy")
    np.testing.assert_array_equal(ThumbnailFile(many)[COUNT - 1], own)


@pytest.mark.slow
def test_opening_reads_one_table_and_a_batch_its_volumes_only(many, monkeypatch):
    asked: list[str] = []
    get = LocalObjects.get
    monkeypatch.setattr(LocalObjects, "get", lambda self, key: asked.append(key) or get(self, key))
    store = open_store(many)
    assert set(asked) == {"zarr.json", fmt.INDEX_FILE}
    asked.clear()
    with RegionLoader(SamplingPlan([store], RegionSpec(PATCH), seed=3), 8, workers=0) as loader:
        batch = next(iter(loader))
    assert batch.image.shape == (8, 1, *PATCH)
    assert sorted(asked) == sorted({f"volumes/{store.volume_id(int(row))}/zarr.json" for row in batch.volume})
    for image, row, start in zip(batch.image.numpy(), batch.volume.tolist(), batch.start.tolist()):
        np.testing.assert_array_equal(image, store.read(row, tuple(start), PATCH))


_MEASURED = """
import gc, sys, tracemalloc
from ssl3d.data.index import collect_rows
from ssl3d.data.objects import open_objects
collect_rows(open_objects(sys.argv[1]))  # what is imported and cached once
tracemalloc.start()
table, _ = collect_rows(open_objects(sys.argv[1]))
peak = tracemalloc.get_traced_memory()[1]
gc.collect()
print(table.num_rows, tracemalloc.get_traced_memory()[0], peak)
"""


@pytest.mark.slow
def test_the_index_is_made_in_the_memory_of_its_table(many):
    # In a process of its own: pathlib interns names, and in one of many tests that table grows by 15 MB at a time.
    measured = subprocess.run([sys.executable, "-c", _MEASURED, many], capture_output=True, text=True, check=True)
    rows, held, peak = (int(n) for n in measured.stdout.split())
    assert rows == COUNT
    assert peak < 60e6 and held < 5e6  # Python objects of 1,024 rows and of what is being read; the table is Arrow's


@pytest.mark.slow
def test_held_out_subjects_are_never_sampled(many):
    store = open_store(many)
    held_out = split_holdout([store], 0.1, seed=1)
    plan = SamplingPlan([store], RegionSpec(PATCH), seed=1, exclude=held_out)
    subjects = store.column("subject")
    assert not {str(subjects[plan.sample(i).row]) for i in range(2000)} & held_out
    assert len(plan.volumes) == COUNT - sum(str(s) in held_out for s in subjects)


@pytest.mark.acceptance
def test_a_hundred_thousand_volumes_open_and_give_a_batch(tmp_path):
    """The goals of benchmarks/bench_scale.py: open in 2 s, first batch in 5 s."""
    if shutil.disk_usage(tmp_path).free < 12 << 30:
        pytest.skip("the thumbnails and metadata of 100,000 volumes take about 10 GiB")
    done = subprocess.run(
        [sys.executable, BENCH, "--check", "--store", tmp_path / "many.zarr", "--out", tmp_path / "results"],
        capture_output=True, text=True,
    )  # fmt: skip
    shutil.rmtree(tmp_path / "many.zarr", ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
