"""How a run is fed: several crops of a volume in a row, and voxels kept in memory, leave its bits to the seed alone."""

from __future__ import annotations

import pytest
import torch

from ssl3d import checkpoint
from ssl3d.config import ConfigError
from ssl3d.interruption import Interruption
from ssl3d.log import read_metrics
from ssl3d.signals import Interrupted
from ssl3d.train import train


def test_a_cache_and_workers_may_change_within_a_run_and_change_nothing(tiny, tmp_path, monkeypatch):
    common = ("data.crops_per_volume=3", "data.batch_size=4", "run.steps=6", "run.log_every=1")
    whole = train(tiny(*common, f"run.dir={tmp_path / 'whole'}"))
    seen = Interruption.seen
    monkeypatch.setattr(Interruption, "seen", lambda self: 15 if not (tmp_path / "told").exists() else seen(self))
    with pytest.raises(Interrupted):
        train(tiny(*common, "data.cache_gb=0.001"))
    (tmp_path / "told").touch()
    fed = train(tiny(*common, "data.cache_gb=0.1", "data.workers=2"))
    one, two = (checkpoint.open_run(run) for run in (whole, fed))
    assert one["step"] == two["step"] == 6
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    losses = [[line["loss"] for line in read_metrics(run / "metrics.jsonl")] for run in (whole, fed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    with pytest.raises(ConfigError, match=r"data\.crops_per_volume is 2, but .* with 3"):
        train(tiny("data.crops_per_volume=2", *common[1:3], "run.steps=7", "run.log_every=1"))


@pytest.mark.parametrize("wrong", ["data.crops_per_volume=0", "data.cache_gb=-1", "data.crops_per_volume=1.5"])
def test_wrong_values_are_named(tiny, wrong):
    with pytest.raises(ConfigError, match=wrong.split("=")[0].replace(".", r"\.")):
        tiny(wrong)


def test_a_cache_larger_than_the_memory_is_named(tiny):
    with pytest.raises(ValueError, match=r"data\.cache_gb is 900000.*take less"):
        train(tiny("data.cache_gb=900000"))
