"""Networks and the whole loop keep their tensors on a GPU: a pretended one refuses others, as a real one would.

Tasks are held to it by ssl3d.testing.task.TaskTests.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from every_task import recipe

from ssl3d import checkpoint, config
from ssl3d.log import read_metrics
from ssl3d.seeding import device_generator
from ssl3d.tasks.mae import MAE
from ssl3d.testing.matrix import backbone_classes, small_backbone, small_size, task_classes
from ssl3d.testing.pairs import VOLUME
from ssl3d.testing.pretended_gpu import PretendedGPU, on_gpu
from ssl3d.testing.small_store import write_small
from ssl3d.testing.toys import make_batch
from ssl3d.train import train


@pytest.fixture
def gpu():
    with PretendedGPU() as gpu:
        yield gpu


@pytest.mark.parametrize(
    "refused",
    [
        lambda x, y: x + y,
        lambda x, y: torch.nn.functional.linear(x, y),
        lambda x, y: torch.cat([x, y]),
        lambda x, y: x.add_(y),
        lambda x, y: y[x.long()],
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: x.masked_fill(y > 0, 0.0),
        lambda x, y: torch.nn.Linear(3, 3)(x),
    ],
)
def test_operands_on_two_devices_are_refused(gpu, refused):
    x, y = torch.ones((2, 3), device=gpu.device), torch.ones((2, 3))
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
        refused(x, y)
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
        refused(x.clone(), y.clone())


def test_what_a_gpu_takes_is_taken(gpu):
    x, y = torch.ones((2, 3)).to(gpu.device), torch.full((2, 3), 2.0)
    assert x.device == gpu.device and x.is_cuda and not y.is_cuda and y.device.type == "cpu"
    assert on_gpu(x * torch.tensor(2.0)) and on_gpu(x[torch.tensor([1, 0])]) and on_gpu(torch.zeros_like(x))
    assert on_gpu(x.new_zeros(2)) and on_gpu(torch.arange(3, device=x.device)) and not on_gpu(torch.arange(3))
    assert not on_gpu(x.cpu()) and not on_gpu(x.to("cpu")) and on_gpu(y.to(x)) and not on_gpu(x.to(y))
    x.copy_(y)
    assert x.tolist() == y.tolist() and x.cpu().numpy().sum() == 12
    network = torch.nn.Linear(3, 4).to(gpu.device)
    assert all(on_gpu(parameter) for parameter in network.parameters()) and on_gpu(network(x))
    with pytest.raises(TypeError, match="to numpy"):
        x.numpy()
    assert gpu.waits == {"torch.Tensor.tolist": 1, "torch.Tensor.cpu": 2}


def test_a_generator_is_of_the_device_it_draws_on(gpu):
    x, own = torch.ones(3, device=gpu.device), torch.Generator().manual_seed(1)
    drawn = torch.rand(3, generator=device_generator(x, own), device=x.device)
    assert on_gpu(drawn)
    for generator, device in ((own, x.device), (device_generator(x, own), "cpu")):
        with pytest.raises(RuntimeError, match="device type for generator"):
            torch.rand(3, generator=generator, device=device)


@pytest.mark.parametrize("family", backbone_classes(), ids=lambda family: family.__name__)
def test_networks_compute_there_what_they_compute_here(family):
    backbone = small_backbone(family).eval()
    image = make_batch(small_size(backbone), batch=1).image

    def outputs(image):
        with torch.no_grad():
            features = backbone.encode(image)
            decoded = backbone.decode(features) if backbone.decoder_channels else []
            return [*features, *decoded, backbone.pool(features), *backbone.frozen_features(image)]

    expected = outputs(image)
    with PretendedGPU() as gpu:
        backbone.to(gpu.device)
        image = image.to(gpu.device)
        found = outputs(image)
        assert all(on_gpu(x) for x in found) and not gpu.waits
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


OPTIONS = (
    "run.precision=32-true", "run.steps=4", "run.preview_every=2", "run.holdout_every=2", "run.collapse_every=2",
    "run.checkpoint_every=2", "data.holdout=0.3", "data.workers=1", "optim.warmup_steps=1",
)  # fmt: skip


def assert_same(here: Path, there: Path) -> None:
    one, two = (checkpoint.open_run(run)["model"] for run in (here, there))
    assert all(torch.equal(one[key], two[key]) for key in one)
    losses = [[line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] for run in (here, there)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [task.__name__ for task in task_classes()])
def test_the_whole_loop_computes_there_what_it_computes_here(name, tmp_path):
    store = write_small(tmp_path / "store.zarr", 8, VOLUME)
    given = recipe(name, store, tmp_path).to_dict()
    here, there = (config.load(given, [*OPTIONS, f"run.dir={tmp_path / where}"]) for where in ("here", "there"))
    train(here)
    with PretendedGPU():
        train(there)
    assert_same(tmp_path / "here", tmp_path / "there")


def test_a_run_resumes_there(tmp_path, monkeypatch):
    store = write_small(tmp_path / "store.zarr", 8, VOLUME)
    given = recipe("MAE", store, tmp_path).to_dict()
    here, there = (config.load(given, [*OPTIONS, f"run.dir={tmp_path / where}"]) for where in ("here", "there"))
    train(here)
    forward, calls = MAE.forward, []

    def stops(self, batch, preview=False):
        calls.append(1)
        if len(calls) == 8:  # passes for pictures, of held-out regions and for collapse among them
            raise KeyboardInterrupt
        return forward(self, batch, preview)

    with PretendedGPU():
        monkeypatch.setattr(MAE, "forward", stops)
        with pytest.raises(KeyboardInterrupt):
            train(there)
        assert checkpoint.open_run(tmp_path / "there")["step"] == 2
        monkeypatch.setattr(MAE, "forward", forward)
        train(there)
    assert_same(tmp_path / "here", tmp_path / "there")
