"""The loop on a GPU: it learns in bfloat16, resumes, and what the loader copies arrives as it was read."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from ssl3d import checkpoint, config, gpus
from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.store import open_store
from ssl3d.log import read_metrics
from ssl3d.regions import RegionSpec
from ssl3d.tasks.mae import MAE
from ssl3d.train import train

pytestmark = pytest.mark.gpu


def test_masked_autoencoding_learns_in_bfloat16(recipe, device):
    run = train(recipe("run.steps=30", "optim.lr=3e-3", "data.batch_size=4"))
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl")]
    assert len(losses) == 30 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    state = checkpoint.open_run(run)["model"]
    assert all(v.device.type == "cpu" and v.isfinite().all() for v in state.values())
    assert all(v.dtype == torch.float32 for v in state.values()), "weights stay in float32"


def test_resume_goes_on_where_it_stopped(recipe, device, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    whole = train(recipe(f"run.dir={tmp_path / 'whole'}"))
    original, calls = MAE.forward, []

    def forward(self, batch, preview=False):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(self, batch, preview)

    monkeypatch.setattr(MAE, "forward", forward)
    broken = recipe(f"run.dir={tmp_path / 'broken'}")
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    assert checkpoint.open_run(tmp_path / "broken")["step"] == 4
    monkeypatch.setattr(MAE, "forward", original)
    train(broken)
    one, two = (checkpoint.open_run(run) for run in (whole, tmp_path / "broken"))
    assert one["step"] == two["step"] == 8
    # Bit-equal on the CPU; a GPU may add gradients in another order.
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    first, second = (
        [line["loss"] for line in read_metrics(run / "metrics.jsonl")] for run in (whole, tmp_path / "broken")
    )
    torch.testing.assert_close(torch.tensor(second), torch.tensor(first), rtol=1e-2, atol=0)


def test_copies_from_pinned_memory_arrive_as_read(store, device):
    """Buffers must not be filled anew while a copy from them is still under way behind a busy GPU."""
    plan = SamplingPlan([open_store(store)], RegionSpec((20, 40, 48)), seed=3)
    expected = RegionLoader(plan, 4, workers=0)
    busy = torch.randn((2048, 2048) if device.type == "cuda" else (8, 8), device=device)
    arrived = []
    with RegionLoader(plan, 4, workers=4, device=device) as loader:
        for batch in islice(iter(loader), 24):
            busy = torch.tanh(busy @ busy @ busy)  # keeps the GPU behind the host
            assert batch.image.device.type == device.type and batch.seed.device.type == "cpu"
            arrived.append(batch.replace(image=batch.image + 1))
    for step, batch in enumerate(arrived):
        wanted = expected.read(range(4 * step, 4 * step + 4))
        assert torch.equal(batch.image.cpu(), wanted.image + 1), f"step {step}"
        for name in ("slope", "mean", "affine", "start", "seed"):
            assert torch.equal(getattr(batch, name).cpu(), getattr(wanted, name)), f"{name} of step {step}"


def test_the_published_network_takes_a_step(recipe, device):
    """ResEnc-L forward and backward in bfloat16, compiled as in its recipe."""
    if device.type != "cuda":
        pytest.skip("102 million parameters: a GPU's work")
    r = recipe(
        "model.size=L",
        "model.arch_kwargs=null",
        "task.patch_size=[64,96,64]",
        "task.mask_block=16",
        "run.compile=true",
        "run.steps=3",
    )
    run = train(r)
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]
    assert config.build_model(r).total_stride == (32, 32, 32)


@pytest.mark.parametrize("override", ["run.recompute=true", "run.channels_last=true"])
def test_layouts_train_alike(recipe, device, override, tmp_path):
    """Recomputed activations and channels last: the same losses up to bfloat16's rounding, and memory is told."""
    plain = train(recipe(f"run.dir={tmp_path / 'plain'}"))
    other = train(recipe(override, f"run.dir={tmp_path / 'other'}"))
    one, two = ([line["loss"] for line in read_metrics(run / "metrics.jsonl")] for run in (plain, other))
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=3e-2, atol=0)
    line = read_metrics(other / "metrics.jsonl")[-1]
    assert line["time/peak_gib"] > 0
    assert ("time/mfu" in line) == (device.type == "cuda" and gpus.find(torch.cuda.get_device_name()) is not None)
