"""The loader: the same samples in the same order whatever reads them, and an end without leftovers."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.store import open_store
from ssl3d.regions import RegionBatch, RegionSpec

SIZE = (16, 40, 24)


def same(a: RegionBatch, b: RegionBatch) -> bool:
    def equal(x, y):
        return (x is None and y is None) or torch.equal(x.nan_to_num(-7.5), y.nan_to_num(-7.5))

    return all(equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


@pytest.mark.parametrize("backend,workers", [("threads", 1), ("threads", 3), ("processes", 1), ("processes", 2)])
@pytest.mark.parametrize("labels", [False, True])
def test_workers_do_not_change_batches(make_store, backend, workers, labels):
    plan = SamplingPlan([open_store(make_store(labels=True, valid=True))], RegionSpec(SIZE, labels=labels), seed=1)
    expected = list(islice(RegionLoader(plan, 4, workers=0), 4))
    with RegionLoader(plan, 4, workers=workers, backend=backend) as loader:
        assert all(same(a, b) for a, b in zip(expected, islice(loader, 4), strict=True))
