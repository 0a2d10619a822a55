"""What one scan takes in a worker: every array and buffer counted by the interpreter, on real CTs."""

from __future__ import annotations

import math
import tracemalloc

import pytest

from preprocessing.job import Settings
from preprocessing.source import Source
from preprocessing.work import convert_here
from ssl3d.data.store import open_store
from ssl3d.data.write import build_index, create_store

pytestmark = pytest.mark.slow

MOST = 6  # times a float32 array of the larger of the two grids, the one that is read and the one that is stored
QIN, ACRIN = "ct_qin_lung_philips/qin_lung_ct_2x.nii.gz", "ct_acrin_nsclc_ge/acrin_nsclc_042_ct.nii.gz"


@pytest.mark.parametrize("scan,spacing", [(QIN, "iso1"), (QIN, "keep"), (QIN, (4.0, 2.0, 2.0)), (ACRIN, "iso1")])
def test_a_scan_takes_at_most_six_times_its_volume(data, tmp_path, scan, spacing):
    root = tmp_path / "store"
    create_store(root)
    source = Source("scan", "scan", "scan", "scan", [data / scan], "subject", "session", "")
    tracemalloc.start()
    try:
        (outcome,) = convert_here(source, Settings(str(root), spacing, "auto"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome.refusal is None
    build_index(root)
    store = open_store(root)
    voxels = max(math.prod(store.shape(0)[1:]), math.prod(store.attributes(0).original_shape))
    assert peak <= MOST * 4 * voxels, peak / (4 * voxels)
