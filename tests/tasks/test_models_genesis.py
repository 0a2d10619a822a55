"""Models Genesis: every corruption has the property it is named for, and the suite."""

from __future__ import annotations

import pytest
import torch

from ssl3d.augment import Compose, SpatialTransform
from ssl3d.tasks.corruptions import bezier_curve, inpaint, nonlinear, outpaint, shuffle_locally
from ssl3d.tasks.models_genesis import ModelsGenesis, from_unit, to_unit
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestModelsGenesis(TaskTests):
    overfit_steps = 200

    def make_task(self):
        augment = Compose([SpatialTransform(p_flip=0.4, p_rotation=0, p_scale=0)])
        return ModelsGenesis(TinyUNet(2), SIZE, augment=augment)


def test_curves_map_the_unit_interval_onto_itself_and_are_monotone():
    falling = 0
    for seed in range(40):
        x, y = bezier_curve(generator(seed))
        assert x[0] == 0 and x[-1] == 1 and (x.diff() >= 0).all()
        assert sorted((y[0].item(), y[-1].item())) == [0, 1]
        assert (y.diff() >= 0).all() or (y.diff() <= 0).all()
        falling += y[0].item() == 1
        values = torch.linspace(-0.1, 1.1, 60).view(1, 3, 4, 5)
        mapped = nonlinear(values, generator(seed))
        assert mapped.min() >= 0 and mapped.max() <= 1
        steps = mapped.flatten().diff()
        assert (steps >= 0).all() or (steps <= 0).all()
    assert 8 < falling < 32


def test_a_curve_is_the_same_for_all_voxels_and_interpolates():
    x, y = bezier_curve(generator(3))
    mapped = nonlinear(x.view(1, 8, 8, 8), generator(3)).flatten()
    distinct = torch.cat([torch.tensor([True]), x.diff() > 1e-9])
    torch.testing.assert_close(mapped[distinct], y[distinct], atol=1e-6, rtol=0)


def test_shuffling_permutes_voxels_locally_and_channels_alike():
    size = (20, 30, 41)
    place = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij"))
    for seed in range(5):
        shuffled = shuffle_locally(place, generator(seed))
        moved = (shuffled - place).flatten(1)
        number = (shuffled[0] * 10_000 + shuffled[1] * 100 + shuffled[2]).flatten()
        assert number.unique().numel() == number.numel(), "every voxel is still there, once, in all channels"
        assert (moved.abs().amax(1) <= torch.tensor([1.0, 2.0, 3.0])).all(), "no further than its window"
        assert 0.5 < (moved != 0).any(0).float().mean() < 0.95


def test_painting_keeps_what_it_does_not_paint():
    image = torch.full((2, 14, 21, 28), 2.0)  # outside of what noise can be
    kept = []
    for seed in range(20):
        kept.append([(f(image, generator(seed)) == 2).float().mean().item() for f in (inpaint, outpaint)])
        assert ((inpaint(image, generator(seed)) == 2).all(0) == (inpaint(image, generator(seed)) == 2).any(0)).all()
    inner, outer = torch.tensor(kept).mean(0)
    assert 0.85 < inner < 0.97, "up to five windows of an average 1/64 of the volume"
    assert 0.3 < outer < 0.65, "up to five windows of an average 1/8 of it stay"


def test_the_network_sees_normalised_units():
    batch = make_batch(SIZE)
    batch = batch.replace(low=batch.low - 1, high=batch.high + 3, mean=batch.mean + 0.5, std=batch.std * 2)
    unit = to_unit(batch)
    assert unit.min() >= 0 and unit.max() <= 1
    inside = (unit > 0) & (unit < 1)
    torch.testing.assert_close(from_unit(unit, batch)[inside], batch.image[inside])
    task = ModelsGenesis(TinyUNet(), SIZE, p_nonlinear=0, p_shuffle=0, p_paint=0)
    seen = []
    encode = task.backbone.encode
    task.backbone.encode = lambda x: seen.append(x) or encode(x)  # type: ignore[func-returns-value, method-assign]
    result = task(batch)
    torch.testing.assert_close(seen[0], batch.image.clamp(*_limits(batch)))
    assert result["corrupted_error"] == 0


def _limits(batch) -> tuple[float, float]:
    return tuple(((v - batch.mean) / batch.std)[0, 0].item() for v in (batch.low, batch.high))


def test_corruption_depends_on_the_sample_alone():
    task = ModelsGenesis(TinyUNet(), SIZE)
    image = torch.rand((6, 1, *SIZE), generator=generator())
    seeds = torch.arange(6)
    together = task.corrupt(image, seeds)
    assert torch.equal(task.corrupt(image[4:5], seeds[4:5])[0], together[4])
    assert not torch.equal(task.corrupt(image, seeds + 1), together)


@pytest.mark.parametrize("key", ["p_nonlinear", "p_shuffle", "p_paint", "p_outpaint"])
def test_chances_out_of_range_name_their_key(key):
    with pytest.raises(ValueError, match=f"^{key}=1.5"):
        ModelsGenesis(TinyUNet(), SIZE, **{key: 1.5})
