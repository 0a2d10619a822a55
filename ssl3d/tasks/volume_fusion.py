"""Volume Fusion: two sub-volumes are mixed block by block, and a network tells how much of each is in every voxel.

Source: Wang et al., "MIS-FM: 3D medical image segmentation using foundation models pretrained on a large-scale
unannotated dataset", arXiv 2306.16925, section 3 (the boxes); the sampler of blocks is the one the authors' own
examples use since. Ours differs where published code errs: blocks cover the patch's margin as well, and boxes never
erase an earlier one with background.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.augment import Compose, centre_crop
from ssl3d.losses.dense import dice_ce
from ssl3d.models.backbone import Backbone
from ssl3d.models.heads import VoxelHead
from ssl3d.regions import RegionBatch, RegionSpec, Size3
from ssl3d.seeding import torch_generators
from ssl3d.tasks.draws import between
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.task import PretextTask, check_takes


class VolumeFusion(PretextTask):
    """Segments `levels` + 1 classes: class k holds k/levels of one sub-volume and the rest of another.

    `patch_size`: voxels (D,H,W). `source`: where the two sub-volumes come from, `same` volume (places of their own) or
    `different` ones of one modality. `sampler`: `blocks` (one block size a sample, a share `ratio` of the blocks of a
    lattice get a class) or `boxes` (`count` boxes painted one over the other). `smallest`, `largest`: edges (D,H,W) of
    blocks or boxes in voxels, cut at the patch. `augment` is applied to each sub-volume before they are mixed.
    Loss: half soft Dice over all classes, half cross-entropy, valid voxels only.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        levels: int = 4,
        source: Literal["same", "different"] = "same",
        sampler: Literal["blocks", "boxes"] = "blocks",
        smallest: int | tuple[int, int, int] = 8,
        largest: int | tuple[int, int, int] = 32,
        ratio: float = 0.7,
        count: tuple[int, int] = (10, 40),
        augment: Compose | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_size = as_size3("patch_size", patch_size)
        if levels < 1:
            raise ValueError(f"levels={levels}: at least 1 (levels + 1 classes)")
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio}: a share of blocks, above 0 and at most 1")
        if not 1 <= count[0] <= count[1]:
            raise ValueError(f"count={list(count)}: write [least, most] boxes, at least one")
        self.levels, self.sampler, self.ratio, self.count = levels, sampler, ratio, count
        self.smallest, self.largest = as_size3("smallest", smallest), as_size3("largest", largest)
        if any(a > b for a, b in zip(self.smallest, self.largest)):
            raise ValueError(f"smallest={list(self.smallest)}: larger than largest={list(self.largest)}")
        if any(a > n for a, n in zip(self.smallest, self.input_size)):
            raise ValueError(f"smallest={list(self.smallest)}: larger than the patch {list(self.input_size)}")
        check_takes(backbone, self.input_size, "patch_size")
        if not backbone.decoder_channels:
            raise ValueError(f"task VolumeFusion: {type(backbone).__name__} has no decoder to segment with")
        self.augment = augment
        size = augment.reach(self.input_size) if augment else self.input_size
        same = source == "same"
        self.region = RegionSpec(size, group=2, same_volume=same, same_modality=not same)
        self.needs_decoder = True
        self.classify: nn.Module = VoxelHead(backbone.decoder_channels[0], levels + 1)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch of groups of two -> loss, `dice_loss`, `cross_entropy`, `foreground_share`."""
        batch, _ = (self.augment or centre_crop)(batch, self.input_size)
        label = self.draw(batch).to(batch.image.device, non_blocking=True)
        fused = fuse(batch.image, partner(batch.image), label, self.levels)
        both = batch.valid_mask() & partner(batch.valid_mask())
        decoded = self.backbone.decode(self.backbone.encode(fused))[:1]
        logits = self.classify(decoded, batch.size)
        dice, entropy = dice_ce(logits, label, both)
        result = {
            "loss": 0.5 * dice + 0.5 * entropy,
            "dice_loss": dice.detach(),
            "cross_entropy": entropy.detach(),
            "foreground_share": (label > 0).float().mean(),
        }
        if preview:
            result |= pictures(batch.image, fused, label, logits.detach(), self.levels)
        return result

    def draw(self, batch: RegionBatch) -> Tensor:
        """(B,1,D,H,W) int64 on the CPU: the class of each voxel, a function of each sample's seed."""
        sampler = self.draw_blocks if self.sampler == "blocks" else self.draw_boxes
        return torch.stack([sampler(batch.size, g) for g in torch_generators(batch.seed, "fusion")])[:, None]

    def draw_blocks(self, size: Size3, generator: torch.Generator) -> Tensor:
        """(D,H,W): a lattice of blocks of one size with a random offset, `ratio` of them with classes 1 to levels."""
        edges = [between(lo, min(hi, n), generator) for lo, hi, n in zip(self.smallest, self.largest, size)]
        places = []
        for n, edge in zip(size, edges):
            offset = between(0, edge - 1, generator)
            places.append((torch.arange(n) + offset) // edge)
        cells = [int(p[-1]) + 1 for p in places]
        total = cells[0] * cells[1] * cells[2]
        classes = torch.zeros(total, dtype=torch.int64)
        chosen = torch.randperm(total, generator=generator)[: max(1, int(self.ratio * total))]
        classes[chosen] = torch.randint(1, self.levels + 1, (len(chosen),), generator=generator)
        z, y, x = places
        return classes.view(*cells)[z[:, None, None], y[:, None], x]

    def draw_boxes(self, size: Size3, generator: torch.Generator) -> Tensor:
        """(D,H,W): boxes with classes 1 to levels, painted one over the other; centres anywhere in the patch."""
        label = torch.zeros(size, dtype=torch.int64)
        for _ in range(between(*self.count, generator)):
            box = []
            for lo, hi, n in zip(self.smallest, self.largest, size):
                edge, centre = between(lo, min(hi, n), generator), between(0, n - 1, generator)
                first = centre - edge // 2
                box.append(slice(max(0, first), max(0, first + edge)))
            label[tuple(box)] = between(1, self.levels, generator)
        return label


def partner(x: Tensor) -> Tensor:
    """(B,...) in groups of two -> each sample's partner in its place."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def fuse(first: Tensor, second: Tensor, label: Tensor, levels: int) -> Tensor:
    """alpha * first + (1 - alpha) * second with alpha = label / levels: exactly `second` at 0 and `first` at levels."""
    mixed = torch.lerp(second, first, (label / levels).to(first.dtype))
    return torch.where(label == levels, first, torch.where(label == 0, second, mixed))


def pictures(image: Tensor, fused: Tensor, label: Tensor, logits: Tensor, levels: int) -> dict[str, Tensor]:
    """Middle axial slices (B,H,W) in [0,1]: both sub-volumes, the mixture, the true and the predicted class."""
    middle = image.shape[2] // 2
    shown = {}
    for name, x in (("first", image), ("second", partner(image)), ("fused", fused)):
        shown[f"preview/{name}"] = grey(x[:, 0, middle])
    shown["preview/class"] = label[:, 0, middle].float() / levels
    shown["preview/predicted"] = F.softmax(logits[:, :, middle].float(), 1).argmax(1).float() / levels
    return shown
