"""BlockMask: exact ratios, whole blocks, a set for each seed."""

from __future__ import annotations

import pytest
import torch

from ssl3d.regions import RegionBatch
from ssl3d.tasks.masking import BlockMask
from ssl3d.testing.toys import make_batch


def seeded(seeds, size) -> RegionBatch:
    """One image under many seeds."""
    batch = make_batch(size, batch=1)
    return batch._map(lambda t: t.expand(len(seeds), *t.shape[1:])).replace(seed=seeds)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.6, 0.75, 0.99])
@pytest.mark.parametrize("size, block", [((16, 32, 48), (4, 8, 8)), ((17, 20, 33), 8), ((8, 8, 24), 8)])
def test_ratio_is_exact_for_every_sample(ratio, size, block):
    mask = BlockMask(ratio, block)
    mask.check(size)
    blocks = mask.draw(seeded(torch.arange(20), size))
    d, h, w = mask.block
    total = -(-size[0] // d) * -(-size[1] // h) * -(-size[2] // w)
    expected = min(max(round(ratio * total), 1), total - 1)
    assert blocks.shape == (20, *mask.grid(size)) and (blocks.flatten(1).sum(1) == expected).all()


def test_voxels_are_whole_blocks_and_the_last_is_smaller():
    mask = BlockMask(0.5, (4, 8, 16))
    size = (10, 8, 40)
    blocks = mask.draw(seeded(torch.arange(3), size))
    voxels = mask.voxels(blocks, size)
    assert voxels.shape == (3, 1, *size) and voxels.dtype == torch.bool
    for d in range(10):
        for w in range(40):
            assert torch.equal(voxels[:, 0, d, :, w], blocks[:, d // 4, 0:1, w // 16].expand(3, 8))


def test_a_mask_depends_on_its_seed_alone():
    mask, size = BlockMask(0.6, 4), (16, 8, 12)
    seeds = torch.randint(2**62, (50,))
    together = mask.draw(seeded(seeds, size))
    assert torch.equal(mask.draw(seeded(seeds[[7, 3]], size)), together[[7, 3]])
    assert len({tuple(m.flatten().tolist()) for m in together}) == 50
    share = mask.draw(seeded(torch.arange(2000), size)).float().mean(0)
    assert (share - 14 / 24).abs().max() < 0.06, "every block is hidden equally often"


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -0.1])
def test_refuses_a_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=rf"^mask_ratio={ratio}"):
        BlockMask(ratio, 8)


def test_refuses_blocks_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^mask_block=0"):
        BlockMask(0.5, 0)
    with pytest.raises(ValueError, match=r"^mask_block="):
        BlockMask(0.5, (4, 4))
    with pytest.raises(ValueError, match="axis H of the patch has only 8"):
        BlockMask(0.5, 16).check((32, 8, 32))
    with pytest.raises(ValueError, match="is one block"):
        BlockMask(0.5, 16).check((16, 16, 16))
