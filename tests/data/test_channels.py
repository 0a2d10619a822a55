"""Which channels a sample reads: fixed by its seed, any volume fits any number, and some can be left out."""

import numpy as np
import pytest
import torch

from ssl3d.data.channels import ChannelChoice
from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.store import open_store
from ssl3d.models.resenc import ResEncUNet
from ssl3d.regions import RegionSpec
from ssl3d.weights.inflate import channels as transferred


def test_a_lone_channel_is_repeated_and_many_are_drawn():
    choice = ChannelChoice(3)
    assert choice.of(7, 1) == [0, 0, 0]
    assert choice.of(7, 5) == choice.of(7, 5), "the seed alone decides"
    seen = [choice.of(seed, 5) for seed in range(200)]
    assert all(len(set(one)) == 3 for one in seen), "distinct ones while there are enough"
    np.testing.assert_allclose(np.bincount(np.ravel(seen), minlength=5) / 600, 0.2, atol=0.05)
    both = [choice.of(seed, 2) for seed in range(200)]
    assert {tuple(one) for one in both} == {(0, 1, 0), (1, 0, 1)}, "each stands there in turn"


def test_left_out_channels_leave_one_at_least_and_in_the_share_that_is_asked_for():
    choice = ChannelChoice(4, dropout=0.5)
    kept = [len(set(choice.of(seed, 4))) for seed in range(4_000)]
    expected = np.array([4 + 1, 6, 4, 1]) / 16  # 1 kept of 4 (and where none would be), 2, 3, 4
    np.testing.assert_allclose(np.bincount(kept, minlength=5)[1:] / 4_000, expected, atol=0.025)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"how": 0}, r"^data\.channels is 0"),
        ({"how": "some"}, r"^data\.channels is 'some'"),
        ({"how": 2, "dropout": 1.0}, r"^data\.channel_dropout is 1\.0: it must be"),
        ({"dropout": 0.1}, r"^data\.channel_dropout is 0\.1: .*set data\.channels to a number"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(given, message):
    with pytest.raises(ValueError, match=message):
        ChannelChoice(**given)


def test_volumes_of_one_and_three_channels_share_a_batch(make_store):
    single, triple = make_store(2, name="ct.zarr"), make_store(2, name="mr.zarr", channels=3, modality=["mr"] * 3)
    stores = [open_store(single), open_store(triple)]
    plan = SamplingPlan(stores, RegionSpec((8, 12, 4)), seed=3, balance="modality")
    with pytest.raises(ValueError, match=r"data\.channels=all needs .* \[1, 3\]: set .*=one, or to a number"):
        RegionLoader(plan, 4)
    loader = RegionLoader(plan, 12, channels=2, workers=0)
    batch = loader.read(range(12))
    assert batch.image.shape == (12, 2, 8, 12, 4) and batch.slope.shape == (12, 2)
    for i, sample in enumerate(map(plan.sample, range(12))):
        voxels = stores[sample.store].read(sample.row, sample.start, (8, 12, 4))
        chosen = ChannelChoice(2).of(sample.seed, len(voxels))
        np.testing.assert_array_equal(batch.image[i].numpy(), voxels[chosen])
        slope = np.array(stores[sample.store].cell("scale", sample.row))[chosen]
        np.testing.assert_allclose(batch.slope[i].numpy(), slope, rtol=1e-6)


def test_a_repeated_channel_is_answered_as_by_the_network_transferred_to_one():
    """What the docs promise of `data.channels=N`: the same rule as that of the weights' transfer."""
    torch.manual_seed(0)
    small = {"n_stages": 2, "features_per_stage": [4, 8], "n_blocks_per_stage": [1, 1]}
    many, one = ResEncUNet("S", 4, small), ResEncUNet("S", 1, small)
    state = many.state_dict()
    stem = "encoder.stem.convs.0.conv.weight"
    state[stem] = transferred(state[stem], 1)
    one.load_state_dict({k: v if v.shape == one.state_dict()[k].shape else transferred(v, 1) for k, v in state.items()})
    x = torch.randn(1, 1, 8, 12, 16)
    for a, b in zip(many.encode(x.expand(-1, 4, -1, -1, -1)), one.encode(x)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
