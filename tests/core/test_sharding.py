"""Sharded runs (FSDP2): the arithmetic of DDP, checkpoints that go on under any number of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ssl3d import checkpoint, sharding
from ssl3d.config import ConfigError
from ssl3d.log import read_metrics
from ssl3d.models.vit import ViT
from ssl3d.testing.matrix import backbone_classes
from ssl3d.train import train

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_families_train_as_under_ddp(tmp_path):
    assert_trained_as_under_ddp(tmp_path, ["ResEncUNet", "Primus"])


@pytest.mark.acceptance
def test_every_family_trains_as_under_ddp(tmp_path):
    assert_trained_as_under_ddp(tmp_path, [family.__name__ for family in backbone_classes()])


def assert_trained_as_under_ddp(tmp_path, families):
    """Two families sharded, and `families` sharded and recomputed besides."""
    script = Path(__file__).with_name("sharded_ranks.py")
    command = [sys.executable, script, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(i), *families], env=ENVIRONMENT) for i in range(2)]
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    files = sorted(tmp_path.glob("* torch.float*.pt"))
    assert len(files) == 4 + len(families)
    for file in files:
        results = torch.load(file)
        tolerance = 1e-9 if "float64" in file.name else 1e-3
        expected = results.pop("ddp")
        assert results
        for kind, found in results.items():
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                scale = max(float(value.abs().max()), 1e-3) if value.numel() else 1.0
                difference = float((found[name].double() - value.double()).abs().max()) if value.numel() else 0.0
                assert difference <= tolerance * scale, f"{file.name}, {kind}, {name}: {difference} of {scale}"
    once, each = torch.load(tmp_path / "accumulated.pt")
    torch.testing.assert_close(once, each, rtol=1e-12, atol=1e-15)


@pytest.mark.acceptance
def test_a_sharded_run_is_one_rank_s_and_goes_on_under_any_number(tiny, tmp_path):
    """8 steps on one rank; 3 sharded, 3 on one rank, 2 sharded: the same weights, pictures and held-out losses."""
    options = [
        "run.precision=64-true", "optim.name=sgd", "optim.ema=0.9", "optim.clip_norm=1.0", "data.batch_size=4",
        "run.accumulate=2", "run.checkpoint_every=1", "run.log_every=1", "run.preview_every=2", "run.holdout_every=2",
        "run.collapse_every=4", "data.holdout=0.2",
    ]  # fmt: skip
    whole = train(tiny(*options, f"run.dir={tmp_path / 'whole'}"))
    file = tmp_path / "recipe.yaml"
    OmegaConf.save(OmegaConf.create(tiny(*options).to_dict()), file)
    broken = tmp_path / "run"
    script = tmp_path / "stopped.py"
    script.write_text(
        "import sys\nfrom ssl3d import config\nfrom ssl3d.train import train\nfrom ssl3d.tasks.mae import MAE\n"
        "class Stop(Exception):\n    pass\n"
        "def after_step(self, step, steps):\n"
        "    if step == int(sys.argv[2]):\n        raise Stop\n"
        "MAE.after_step = after_step\n"
        "try:\n    train(config.load(sys.argv[1], sys.argv[3:]))\n"
        "except Stop:\n    pass\n"
    )
    for ranks, stop in ((2, 3), (1, 6), (2, 99)):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
        command = [sys.executable, *launcher, str(script), str(file), str(stop), "run.strategy=fsdp"]
        subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT, timeout=300)
        assert checkpoint.open_run(broken)["step"] == min(stop, 8)
    one, two = checkpoint.open_run(whole), checkpoint.open_run(broken)
    for part in ("model", "average"):
        assert one[part].keys() == two[part].keys()
        assert max(float((one[part][k] - two[part][k]).abs().max()) for k in one[part]) < 1e-9
    for x, y in zip(read_metrics(whole / "metrics.jsonl"), read_metrics(broken / "metrics.jsonl"), strict=True):
        assert x.keys() == y.keys()
        assert all(y[k] == pytest.approx(x[k], rel=1e-6, abs=1e-9) for k in x if not k.startswith("time/"))
    names = [sorted(p.name for p in (run / "previews").iterdir()) for run in (whole, broken)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task._target_=ssl3d.tasks.sparse_mae.SparseMAE"], "SparseMAE reads single weights"),
        (["run.channels_last=true"], "run.channels_last is true"),
        (["run.precision=16-mixed"], "run.precision is 16-mixed"),
    ],
)
def test_what_cannot_be_sharded_is_refused(tiny, overrides, said):
    with pytest.raises(ConfigError, match=said):
        train(tiny("run.strategy=fsdp", *overrides))


def test_one_rank_needs_no_sharding(tiny, tmp_path):
    one, two = (train(tiny(f"run.strategy={s}", f"run.dir={tmp_path / s}")) for s in ("ddp", "fsdp"))
    a, b = (checkpoint.open_run(run)["model"] for run in (one, two))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_trees_without_shards_stay_as_they_are():
    x = nn.Parameter(torch.ones(2))
    found = sharding.whole({"a": [x, (1, None)], "b": x}, keep=True)
    assert found["a"][0].data_ptr() == x.data_ptr() and not found["a"][0].requires_grad
    assert found["a"][1] == (1, None)


def test_a_module_must_be_sharded_before_it_is_set_up():
    with pytest.raises(RuntimeError, match="before it is set up"):
        sharding.ShardedStrategy().setup_module(nn.Linear(1, 1))


def test_teachers_are_found():
    inner = nn.ModuleDict({"student": ViT("tiny", patch_size=(2, 4, 4)), "teacher": ViT("tiny", patch_size=(2, 4, 4))})
    assert sharding.backbones(inner) == [inner["student"], inner["teacher"]]
