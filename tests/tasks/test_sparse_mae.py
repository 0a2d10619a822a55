"""SparseMAE: mask tokens at every scale, the dense network's parameters, and the conformance suite."""

from __future__ import annotations

import pytest
import torch

from ssl3d.models.plain_unet import PlainConvUNet
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT
from ssl3d.tasks.mae import MAE
from ssl3d.tasks.mask_strategies import Tube
from ssl3d.tasks.sparse_mae import SparseMAE
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

KWARGS = {
    "features_per_stage": [8, 16, 16],
    "n_blocks_per_stage": [1, 1, 1],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
}
PATCH = (8, 16, 24)  # 4 x 4 x 6 blocks of the total stride (2, 4, 4)


def resenc(in_channels: int = 1) -> ResEncUNet:
    return ResEncUNet("S", in_channels, KWARGS)


class TestSparseMAE(TaskTests):
    overfit_lr = 3e-3
    waits_for_the_gpu = True

    def make_task(self) -> SparseMAE:
        return SparseMAE(resenc(), PATCH)


class TestSparseMAEAsPublished(TaskTests):
    """Blocks smaller than the stride, tubes, two channels, layers between encoder and decoder."""

    overfit_lr = 6e-3
    overfit_steps = 50
    waits_for_the_gpu = True

    def make_task(self) -> SparseMAE:
        return SparseMAE(
            resenc(2), PATCH, 0.6, (2, 2, 4), mask_strategy=Tube(), normalise_target=True, densify="published"
        )


def test_the_default_block_is_the_total_stride():
    assert SparseMAE(resenc(), PATCH).mask.block == (2, 4, 4)
    assert SparseMAE(resenc(), PATCH, mask_block=4).mask.block == (4, 4, 4)


def test_parameters_are_the_dense_networks():
    """Names and values: what was trained sparse is what a dense network with these weights computes with."""
    backbone = resenc()
    names = set(backbone.state_dict())
    task = SparseMAE(backbone, PATCH)
    assert set(task.backbone.state_dict()) == names and task.backbone is backbone
    own = {n for n, _ in task.named_parameters() if not n.startswith("backbone.")}
    assert own == {"rebuild.weight", "rebuild.bias", "densify.tokens.0", "densify.tokens.1", "densify.tokens.2"}
    before = backbone.encode(make_batch(PATCH).image)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    task(make_batch(PATCH))["loss"].backward()
    optimizer.step()
    after = backbone.encode(make_batch(PATCH).image)
    assert all(not torch.equal(a, b) for a, b in zip(before, after))
    fresh = resenc()
    fresh.load_state_dict(backbone.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fresh.encode(make_batch(PATCH).image), after))


def test_the_decoder_sees_tokens_exactly_where_nothing_is_visible():
    task = SparseMAE(resenc(), PATCH)
    with torch.no_grad():
        for i, token in enumerate(task.densify.tokens):
            token.fill_(100.0 + i)
    seen: list[list[torch.Tensor]] = []
    decode = task.backbone.decode
    task.backbone.decode = lambda features, down_to=0: seen.append(features) or decode(features)  # type: ignore
    batch = make_batch(PATCH)
    task(batch)
    hidden = task.mask.voxels(task.mask.draw(batch), PATCH)
    for i, (features, (d, h, w)) in enumerate(zip(seen[0], task.backbone.strides, strict=True)):
        filled = features == 100.0 + i
        assert torch.equal(filled.all(1), hidden[:, 0, ::d, ::h, ::w]) and torch.equal(filled.all(1), filled.any(1))


def test_how_it_is_computed_does_not_matter():
    batch, losses = make_batch(PATCH, padded=3), []
    backbone = resenc()
    for gather in (None, [True] * 3, [False] * 3, [True, False, True]):
        torch.manual_seed(0)
        task = SparseMAE(backbone, PATCH, gather=gather)
        result = task(batch)
        losses.append(result["loss"].item())
        assert 0 < result["encoder_work"] <= 1
    assert max(losses) - min(losses) < 1e-5 * losses[0]


def test_the_work_is_logged():
    batch = make_batch(PATCH)
    work = {block: SparseMAE(resenc(), PATCH, mask_block=block, gather=[True] * 3)(batch)["encoder_work"].item()
            for block in ((2, 4, 4), (4, 8, 8), (1, 2, 2))}  # fmt: skip
    assert work[2, 4, 4] == work[4, 8, 8] == pytest.approx(0.25)
    assert 0.25 < work[1, 2, 2] < 0.6, "coarse voxels in which anything is visible are computed"


def test_masks_and_loss_are_those_of_mae():
    batch = make_batch(PATCH, padded=3)
    sparse, plain = SparseMAE(resenc(), PATCH), MAE(resenc(), PATCH, mask_block=(2, 4, 4))
    assert torch.equal(sparse.mask.draw(batch), plain.mask.draw(batch))
    prediction = torch.randn(batch.image.shape)
    for task in (sparse, plain):
        task.predict = lambda image, blocks: prediction  # type: ignore[method-assign]
    assert torch.equal(sparse(batch)["loss"], plain(batch)["loss"])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"mask_ratio": 1.5}, "mask_ratio=1.5"),
        ({"mask_block": 64}, "mask_block="),
        ({"patch_size": (8, 16, 23)}, "patch_size: .*axis W is 23"),
        ({"gather": [True]}, "gather="),
        ({"mask_ratio": 0.95, "patch_size": (4, 8, 8)}, "mask_ratio=0.95: 1 visible"),
        ({"mask_ratio": 0.9, "mask_block": (1, 2, 2), "patch_size": (4, 8, 8)}, "mask_ratio=0.9: 6 visible"),
        ({"backbone": TinyUNet()}, "task SparseMAE: TinyUNet has no encoder"),
        ({"backbone": ViT("tiny", patch_size=(2, 4, 4))}, "task SparseMAE: ViT has no encoder"),
        (
            {"backbone": PlainConvUNet("S", arch_kwargs={"norm_op": "torch.nn.BatchNorm3d"})},
            "PlainConvUNet: its encoder holds BatchNorm3d",
        ),
    ],
)
def test_mistakes_name_their_key(values, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        SparseMAE(**{"backbone": resenc(), "patch_size": PATCH} | values)
    assert "\n" not in str(caught.value)
