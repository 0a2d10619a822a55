"""Mask strategies: exact ratios, a function of the sample alone, and each with the property it is named for."""

from __future__ import annotations

import pytest
import torch

from ssl3d.tasks.mae import MAE
from ssl3d.tasks.mask_strategies import ForegroundBlocks, MultiScale, RandomBlocks, Supervoxels, Tube
from ssl3d.tasks.masking import BlockMask
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE, BLOCK = (12, 18, 40), (2, 3, 5)  # 6 x 6 x 8 blocks
STRATEGIES = [
    RandomBlocks(), Tube(0), Tube(2), ForegroundBlocks(), MultiScale(), MultiScale((3,)), Supervoxels(count=12),
]  # fmt: skip


def id_of(strategy) -> str:
    return type(strategy).__name__


@pytest.mark.parametrize("strategy", STRATEGIES, ids=id_of)
@pytest.mark.parametrize("ratio", [0.1, 0.6, 0.75])
def test_ratio_is_exact_and_a_mask_depends_on_its_sample_alone(strategy, ratio):
    batch = make_batch(SIZE, batch=4, channels=2, padded=7)
    mask = BlockMask(ratio, BLOCK, strategy)
    blocks = mask.draw(batch)
    assert blocks.shape == (4, 6, 6, 8) and (blocks.flatten(1).sum(1) == round(ratio * 288)).all()
    assert torch.equal(mask.draw(batch[2:3])[0], blocks[2])
    other = mask.draw(batch.replace(seed=batch.seed + 1))
    assert not torch.equal(other, blocks)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=id_of)
def test_images_that_are_no_multiple_of_the_block(strategy):
    mask = BlockMask(0.5, BLOCK, strategy)
    batch = make_batch((11, 17, 38), batch=2)
    blocks = mask.draw(batch)
    assert blocks.shape == (2, 6, 6, 8) and mask.voxels(blocks, batch.size).shape == (2, 1, 11, 17, 38)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tubes_run_through_the_whole_patch(axis):
    grid = (6, 6, 8)
    columns = 288 // grid[axis]
    mask = BlockMask(0.5, BLOCK, Tube(axis))  # half of the columns exactly
    hidden = mask.draw(make_batch(SIZE, batch=3)).sum(1 + axis)
    assert set(hidden.unique().tolist()) == {0, grid[axis]}
    assert ((hidden > 0).flatten(1).sum(1) == columns // 2).all()


def test_blocks_with_foreground_are_hidden_more_often():
    batch = make_batch(SIZE, batch=1)
    image = torch.zeros_like(batch.image)
    image[..., 20:] = 1.0  # the right half
    batch = batch.replace(image=image)._map(lambda t: t.expand(600, *t.shape[1:]))
    batch = batch.replace(seed=torch.arange(600))
    share = BlockMask(0.1, BLOCK, ForegroundBlocks(4.0)).draw(batch).float().mean(0)
    assert 3.2 < share[..., 4:].mean() / share[..., :4].mean() < 4.2, "nearly 4: drawing without replacement evens out"
    uniform = BlockMask(0.1, BLOCK, ForegroundBlocks(1.0)).draw(batch).float().mean(0)
    assert 0.9 < uniform[..., 4:].mean() / uniform[..., :4].mean() < 1.1


def test_clusters_of_several_sizes():
    def neighbours(factor: int) -> float:
        """How often a hidden block's neighbour in x is hidden too."""
        hidden = BlockMask(0.5, BLOCK, MultiScale((factor,))).draw(make_batch(SIZE, batch=40))
        return float((hidden[..., 1:] & hidden[..., :-1]).sum() / hidden[..., :-1].sum())

    assert neighbours(1) < 0.55 < 0.65 < neighbours(2) < neighbours(4)


def test_supervoxels_keep_to_structures():
    """Bars of one intensity, one block wide: their blocks are hidden together, random ones are not."""
    batch = make_batch(SIZE, batch=8)
    image = torch.zeros_like(batch.image)
    image[:, :, :, 6:9], image[:, :, :, 12:15] = 4.0, -4.0
    mask = BlockMask(0.5, BLOCK, Supervoxels(count=24, compactness=1e-3))
    hidden = mask.draw(batch.replace(image=image))

    same = (hidden[:, :, 2, 1:] == hidden[:, :, 2, :-1]).float().mean()
    random = BlockMask(0.5, BLOCK).draw(batch)
    assert same > (random[:, :, 2, 1:] == random[:, :, 2, :-1]).float().mean() + 0.15


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Tube(3), "axis=3"), (lambda: ForegroundBlocks(0.5), "strength=0.5"),
        (lambda: MultiScale(()), "factors"), (lambda: MultiScale((0,)), "factors"),
        (lambda: Supervoxels(count=1), "count=1"),
        (lambda: Supervoxels(compactness=0), "compactness"),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(make, key):
    with pytest.raises(ValueError, match=f"^{key}"):
        make()


class TestMAEWithTubes(TaskTests):
    overfit_steps = 200

    def make_task(self) -> MAE:
        return MAE(TinyUNet(), (8, 16, 24), mask_block=(2, 4, 4), mask_strategy=Tube(), normalise_target=True)

