"""No masked task leaks, on any backbone, under any mask strategy: non-cubic patches, anisotropic blocks and spacing."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from ssl3d import schema
from ssl3d.checkpoint import exported_prefix
from ssl3d.models.backbone import Backbone, MaskableBackbone, TokenBackbone, build_backbone
from ssl3d.models.primus import PrimusV2
from ssl3d.models.vit import ViT
from ssl3d.regions import Size3
from ssl3d.tasks import simmim, tokens
from ssl3d.tasks.mae import MAE
from ssl3d.tasks.mask_strategies import ForegroundBlocks, MultiScale, RandomBlocks, Supervoxels, Tube
from ssl3d.tasks.simmim import SimMIM
from ssl3d.tasks.swin_unetr_pretext import SwinUNETRPretext
from ssl3d.tasks.task import PretextTask
from ssl3d.testing.leaks import check_masked_task
from ssl3d.testing.matrix import SMALL_MODELS, backbone_classes, small_backbone, small_size, task_classes, task_node
from ssl3d.testing.toys import TinyUNet, make_batch

# What hides no voxels that it then asks for (DINO and JEPA ask for features: test_dino.py, test_jepa.py; the tasks of a
# Combined are tested alone). A new task belongs here or, if it has keys about masks, must pass below.
UNMASKED = {
    "Combined", "CUTS", "DINO", "Distillation", "GraphMatching", "JEPA", "JointClustering", "LeJEPA", "LocalContrast",
    "ModelsGenesis", "SimCLR", "Synthesis", "VICReg", "VoCo", "VolumeFusion",
}  # fmt: skip
MASKED = [
    task for task in task_classes()
    if any(key.startswith(("mask_", "cutout")) for key in inspect.signature(task).parameters)
]  # fmt: skip
PAIRS = [(task, family) for task in MASKED for family in backbone_classes()]
STRATEGIES = [RandomBlocks(), Tube(0), Tube(1), ForegroundBlocks(), MultiScale(), Supervoxels(count=6)]


def sizes(backbone: Backbone) -> tuple[Size3, Size3]:
    """(patch, mask block): not cubic, and grids of blocks with a number of their own on every axis."""
    if isinstance(backbone, TokenBackbone):
        d, h, w = backbone.patch_size
        return (3 * d, 2 * h, 4 * w), backbone.patch_size
    d, h, w = small_size(backbone)
    return (d, h, w), (d // 2, h // 4, w // 8)


def make(task: type, family: type) -> PretextTask:
    """A small task in which every sample is masked. Raises ValueError when the pair makes no sense."""
    torch.manual_seed(0)
    backbone = small_backbone(family)
    size, block = sizes(backbone)
    wanted = {"patch_size": list(size), "mask_block": list(block), "mask_share": 1.0, "rotations": 2}
    node = task_node(task, backbone)
    node |= {key: value for key, value in wanted.items() if key in inspect.signature(task).parameters}
    completed, faults = schema.check_target(node, PretextTask, "task", given=("backbone",))
    assert not faults, faults
    return schema.build(completed, backbone=backbone).train()


def check(task: PretextTask) -> None:
    count = 2
    if isinstance(task, SwinUNETRPretext):  # what is given are the views: its own would hide voxels of each other
        task.views = lambda batch: (batch, torch.tensor([0, 1]))  # type: ignore[method-assign]
    elif math.prod(task.input_size) > 50_000:  # a large stride: one sample, for the sake of time
        count = 1
    check_masked_task(task, make_batch(task.input_size, count, task.backbone.in_channels, padded=3))


def named(pair) -> str:
    return f"{pair[0].__name__}-{pair[1].__name__}"


def test_masked_tasks_are_found_by_their_keys():
    """A task with a key about masks or cut-outs is masked, whatever this file says; the others are listed by name."""
    assert {"MAE", "SimMIM", "PositionRegression"} <= {task.__name__ for task in MASKED}
    assert set(SMALL_MODELS) <= {family.__name__ for family in backbone_classes()}
    for name in {task.__name__ for task in task_classes()} - {task.__name__ for task in MASKED} - UNMASKED:
        pytest.fail(
            f"{name} has no key that begins with mask_ or cutout, so nothing here looks whether it leaks: if it hides"
            " voxels and asks for them, begin its keys so; else add its name to UNMASKED in this file"
        )
    listed = UNMASKED & {task.__name__ for task in MASKED}
    assert not listed, f"{listed} have keys about masks: take them from UNMASKED"


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_no_leak(pair):
    """Features, loss and ratio; and what is fine-tuned later computes the same features from the same weights."""
    try:
        task = make(*pair)
    except ValueError as error:
        assert pair[1].__name__ in str(error)
        return
    check(task)
    prefix = exported_prefix(task)
    exported = {k.removeprefix(prefix): v for k, v in task.state_dict().items() if k.startswith(prefix)}
    torch.manual_seed(7)
    finetuned = build_backbone(task.backbone.spec())
    finetuned.load_state_dict(exported)
    image = make_batch(task.input_size, batch=1, seed=3).image
    with torch.no_grad():
        for found, expected in zip(finetuned.eval().encode(image), task.backbone.eval().encode(image), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("make_backbone", [TinyUNet, lambda: ViT("tiny", patch_size=(2, 4, 4))], ids=["CNN", "ViT"])
def test_no_leak_under_any_strategy(strategy, make_backbone):
    backbone = make_backbone()
    size = {"patch_size": (12, 16, 40), "mask_block": (2, 4, 8)}
    small = {"decoder_dim": 32, "decoder_depth": 1}
    check(MAE(backbone, mask_strategy=strategy, normalise_target=True, **size, **small))
    if isinstance(backbone, MaskableBackbone):
        check(SimMIM(backbone, mask_strategy=strategy, **size))


def vit_mae(patch: Size3 = (4, 8, 8), grid: Size3 = (3, 2, 4)) -> MAE:
    d, h, w = (p * g for p, g in zip(patch, grid))
    return MAE(ViT("tiny", patch_size=patch), (d, h, w), mask_block=patch, decoder_dim=32, decoder_depth=1)


@pytest.mark.parametrize("grid", [(3, 2, 4), (3, 3, 2)], ids=["uneven", "two axes alike"])
def test_a_transposed_token_grid_is_found(monkeypatch, grid):
    """The published fault: tokens flattened (h w d), the mask read as (first, second, third)."""

    def transposed(blocks, block, token):
        return blocks.transpose(1, 2).flatten(1)

    check(vit_mae(grid=grid))
    monkeypatch.setattr(tokens, "hidden_tokens", transposed)
    with pytest.raises(AssertionError, match="is made from"):
        check(vit_mae(grid=grid))


def test_a_mask_behind_a_convolutional_stem_is_found():
    """PrimusV2's stem looks beyond its token: replacing tokens alone is too late."""

    class Late(SimMIM):
        def predict(self, image, blocks):
            whole, self.mask.voxels = self.mask.voxels, lambda blocks, size: torch.zeros((), dtype=torch.bool)
            try:
                return super().predict(image, blocks)
            finally:
                self.mask.voxels = whole

    size, block = (24, 16, 32), 8
    check(SimMIM(PrimusV2("tiny", input_size=size), size, mask_block=block))
    with pytest.raises(AssertionError, match="is made from"):
        check(Late(PrimusV2("tiny", input_size=size), size, mask_block=block))


def test_statistics_of_the_whole_image_are_found():
    """No gradient flows through them: only the bits of the features tell."""

    class Peeking(MAE):
        def predict(self, image, blocks):
            self.backbone.get_submodule("fine")(image.detach()[:, :, :1].mean((2, 3, 4), keepdim=True))
            return super().predict(image, blocks)

    with pytest.raises(AssertionError, match=r"hidden voxels change.*backbone\.fine"):
        check(Peeking(TinyUNet(), (8, 16, 24), mask_block=(2, 4, 8)))


def test_a_loss_on_visible_voxels_is_found(monkeypatch):
    """The whole patch counted, padding too, as a wrong mask would."""
    monkeypatch.setattr(simmim, "mean_of_samples", lambda values, where: values.mean())
    with pytest.raises(AssertionError, match="the loss counts predictions at 6080 voxels"):
        check(SimMIM(ViT("tiny", patch_size=(4, 8, 8)), (12, 16, 32), mask_block=(4, 8, 8)))


def test_a_task_that_cannot_be_watched_is_no_pass():
    task = vit_mae()
    task.mask = None  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="BlockMask"):
        check(task)
