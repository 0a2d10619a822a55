"""Supervised segmentation as one more objective of the training loop: backbone, head, Dice + cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from downstream.freezing import Frozen, Train
from downstream.sparse import UNLABELLED, Slices, on_slices
from ssl3d.augment import Compose
from ssl3d.models.backbone import Backbone
from ssl3d.models.heads import make_head
from ssl3d.regions import RegionBatch, RegionSpec, Size3
from ssl3d.tasks.task import Objective

SMOOTH = 1e-5  # nnU-Net's; a class absent from batch and prediction then scores 1, and never divides by zero


def dice_ce(logits: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """(soft Dice loss over the foreground classes, cross-entropy) of logits (B,K,D,H,W) and target (B,D,H,W) in 0..K-1.

    Only voxels where `known` (B,D,H,W) is True enter either term (padding, invalid and unlabelled voxels do not); a
    batch without any gives 0. Dice is taken over the whole batch ("batch Dice"): with two small patches a step a class
    is often absent from one of them, and a Dice per sample would then punish every stray probability as a total miss.
    Computed in at least float32.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    weight = known.to(logits.dtype)
    target = torch.where(known, target, 0)
    nll = F.cross_entropy(logits, target, reduction="none")
    cross_entropy = (nll * weight).sum() / weight.sum().clamp(min=1)
    probability = logits.softmax(dim=1)[:, 1:] * weight[:, None]
    reference = F.one_hot(target, logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype) * weight[:, None]
    axes = (0, 2, 3, 4)
    overlap = (probability * reference).sum(axes)
    total = probability.sum(axes) + reference.sum(axes)
    dice = 1 - (2 * overlap + SMOOTH) / (total + SMOOTH)
    return dice.mean() * (weight.sum() > 0), cross_entropy


class Segmentation(Objective):
    """A backbone and a 1x1x1 head trained with Dice + cross-entropy, weighted equally (nnU-Net's loss).

    `patch_size` voxels (D,H,W) the network sees; `classes`: label values that are told apart, every other value is
    background; `ignore`: label value of voxels nobody annotated, left out of the loss; `labelled_share` of the patches
    are centred on a class. `train`: what of the network learns (downstream.freezing), with `lora_rank` and `lora_alpha`
    of train: lora. `slices`: the annotated slices of each volume (downstream.sparse), null: all; no other voxel enters
    the loss, and classes are centred on in these slices alone. The head is drawn like every fresh weight, from the
    run's seed: equal in every arm. Raises ValueError naming the key that is out of range.
    """

    needs_decoder = True

    def __init__(
        self,
        backbone: Backbone,
        patch_size: Size3,
        classes: list[int],
        ignore: int | None = None,
        labelled_share: float = 0.33,
        augment: Compose | None = None,
        train: Train = "all",
        lora_rank: int = 4,
        lora_alpha: float = 8.0,
        slices: list[list[int]] | None = None,
    ) -> None:
        super().__init__()
        if not classes or len(set(classes)) < len(classes) or min(classes) < 1:
            raise ValueError(f"classes is {classes}; it must be a list of different label values above 0")
        if ignore in classes:
            raise ValueError(f"ignore is {ignore}, which is one of the classes; the ignore value marks no class")
        if not 0 <= labelled_share <= 1:
            raise ValueError(f"labelled_share is {labelled_share}; it must lie between 0 and 1")
        backbone.check_size(patch_size)
        self.backbone = backbone
        self.head = make_head(backbone, len(classes) + 1)
        self._frozen = Frozen(backbone, train, lora_rank, lora_alpha)  # after the head: it is drawn the same whatever
        self.classes = list(classes)
        self.slices: Slices | None = None if slices is None else {v: (axis, tuple(at)) for v, axis, *at in slices}
        self.ignore = UNLABELLED if ignore is None and slices is not None else ignore
        self.augment = augment or Compose()
        self.input_size = patch_size
        self.region = RegionSpec(
            self.augment.reach(patch_size), labels=True, labelled_share=labelled_share, labelled_slices=self.slices
        )

    def train(self, mode: bool = True) -> Segmentation:
        """See nn.Module.train; what is frozen with its statistics stays in eval mode."""
        super().train(mode)
        self._frozen.hold()
        return self

    def logits(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) normalised -> (B,K,D,H,W) in x's float type or better; channel 0 is background."""
        features = self.backbone.encode(x)
        if self.backbone.decoder_channels:
            features = self.backbone.decode(features)
        return self.head(features, x.shape[2:])

    def target(self, label: Tensor) -> Tensor:
        """Label values (B,1,D,H,W) -> class indices (B,D,H,W), 0 for every value that is no class."""
        table = torch.zeros(max(self.classes) + 1, dtype=torch.long, device=label.device)
        table[torch.tensor(self.classes, device=label.device)] = torch.arange(
            1, len(self.classes) + 1, device=label.device
        )
        value = label[:, 0].long()
        return table[torch.where(value < len(table), value, 0)]

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised labelled batch -> loss, dice_loss, cross_entropy; raises ValueError when it carries no label."""
        if batch.label is None:
            raise ValueError("Segmentation needs labels: the store has no labels/ for these volumes")
        if self.slices is not None:
            assert self.ignore is not None
            batch = on_slices(batch, self.slices, self.ignore)
        batch, _ = self.augment(batch, self.input_size)
        assert batch.label is not None
        known = batch.valid_mask()[:, 0]
        if self.ignore is not None:
            known = known & (batch.label[:, 0] != self.ignore)
        target = self.target(batch.label)
        logits = self.logits(batch.image)
        with torch.autocast(logits.device.type, enabled=False):
            dice, cross_entropy = dice_ce(logits, target, known)
        out = {"loss": dice + cross_entropy, "dice_loss": dice.detach(), "cross_entropy": cross_entropy.detach()}
        if preview:
            out |= _pictures(batch.image, target, logits.argmax(dim=1))
        return out


def _pictures(image: Tensor, target: Tensor, prediction: Tensor) -> dict[str, Tensor]:
    """Middle slices (N,H,W) in [0,1] of input, reference and prediction."""
    middle = image.shape[2] // 2
    x = image[:, 0, middle].float()
    low, high = x.amin(dim=(1, 2), keepdim=True), x.amax(dim=(1, 2), keepdim=True)
    last = max(1, int(target.max()))
    pictures: Sequence[tuple[str, Tensor]] = (
        ("input", (x - low) / (high - low).clamp(min=1e-6)),
        ("reference", (target[:, middle].float() / last).clamp(0, 1)),
        ("prediction", (prediction[:, middle].float() / last).clamp(0, 1)),
    )
    return {f"preview/{name}": picture for name, picture in pictures}
