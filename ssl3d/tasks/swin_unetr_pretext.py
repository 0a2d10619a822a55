"""Swin UNETR's pretext tasks: fill in cut-outs, tell by which angle a view was turned, and tell scans apart.

Source: Tang et al., "Self-supervised pre-training of Swin transformers for 3D medical image analysis", CVPR 2022 (the
three losses, weighed alike), and what its published code (MONAI's research contributions) does.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.augment import Compose, centre_crop
from ssl3d.losses.dense import mean_of_samples, wide
from ssl3d.losses.gather import gather
from ssl3d.models.backbone import Backbone, MaskableBackbone
from ssl3d.models.heads import VoxelHead, upsample
from ssl3d.regions import RegionBatch, RegionSpec, Size3
from ssl3d.seeding import device_generator, mix, torch_generators
from ssl3d.tasks.cut_out import CutOut
from ssl3d.tasks.draws import between
from ssl3d.tasks.masked_result import masked_pictures
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.models_genesis import from_unit
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import freeze_all_but

EVEN = 0.01  # in-plane spacings that differ by less than this share count as equal


class SwinUNETRPretext(PretextTask):
    """Two views of each region, each turned about z by a multiple of 90 degrees and cut out; three losses.

    Rebuilding: L1 on the voxels that were cut out (their own value before), from the backbone's decoder, or where it
    has none from its coarsest scale by a light one of ours. Rotation: cross-entropy of the angle from the pooled
    features. Contrast: NT-Xent of the two views among those of all ranks. Padded voxels enter no loss.

    `augment`: applied to each view before; null makes both views of the same voxels. It must not undo the angle: no
    flips of both in-plane axes, no rotation by 45 degrees or more about z. `cutout`: share of voxels that are hidden;
    `cutout_edges`: least and largest edge of a box, as shares of the patch's. `rotations`: 4, or 2 for half turns
    alone, which patches with unlike in-plane sizes need. Samples whose in-plane spacings differ are turned by half
    turns in any case: a quarter turn would stretch the anatomy, and the stretch would give the angle away.
    `temperature` and `out_dim` of the contrast; `rebuild_weight`, `rotation_weight`, `contrast_weight`.
    `parity`: as the published code does, L1 on all voxels, rebuilt from the coarsest scale alone; boxes filled with
    noise, up to `cutout` of the voxels; angle and contrast read from the first two cells of the coarsest scale
    instead of its average. (It then also pastes boxes of the batch's other scans, which we never do.)

    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    spans_batch = True
    passes = 2
    mask: CutOut

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int] = 96,
        augment: Compose | None = None,
        cutout: float = 0.3,
        cutout_edges: tuple[float, float] = (0.05, 0.25),
        rotations: Literal[2, 4] = 4,
        temperature: float = 0.5,
        out_dim: int = 512,
        rebuild_weight: float = 1.0,
        rotation_weight: float = 1.0,
        contrast_weight: float = 1.0,
        parity: bool = False,
    ) -> None:
        from lightly.loss import NTXentLoss  # a second of imports that no other method needs

        super().__init__()
        self.weights = {"rebuild": rebuild_weight, "rotation": rotation_weight, "contrast": contrast_weight}
        for name, weight in self.weights.items():
            if weight < 0:
                raise ValueError(f"{name}_weight={weight}: at least 0")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be positive")
        if out_dim < 1:
            raise ValueError(f"out_dim={out_dim}: at least 1")
        self.backbone = backbone
        self.input_size = as_size3("patch_size", patch_size)
        check_takes(backbone, self.input_size, "patch_size")
        check_turns(self.input_size, rotations, augment)
        self.augment, self.rotations, self.parity = augment, rotations, parity
        self.region = RegionSpec(augment.reach(self.input_size) if augment else self.input_size)
        self.mask = CutOut(cutout, cutout_edges, published=parity)
        self.nt_xent = NTXentLoss(temperature=temperature)
        self.needs_decoder = bool(backbone.decoder_channels) and not parity
        self.rebuild: nn.Module
        if self.needs_decoder:
            self.rebuild = VoxelHead(backbone.decoder_channels[0], backbone.in_channels)
        else:
            self.rebuild = CoarseDecoder(backbone.channels[-1], backbone.total_stride, backbone.in_channels)
            used = backbone.pool_parameter_names()
            if parity and isinstance(backbone, MaskableBackbone):
                used = backbone.embedded_parameter_names(coarsest=True)
            freeze_all_but(backbone, used)
        width = backbone.channels[-1] if parity else backbone.pool_channels
        self.tell_angle = nn.Linear(width, rotations)
        self.embed = nn.Linear(width, out_dim)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, its three parts, `angle_accuracy`, `cut_share`, `valid_share`; pictures."""
        views, angle = self.views(batch)
        hidden = self.mask.voxels(self.mask.draw(views), views.size)
        features = self.backbone.encode(self.fill(views, hidden))
        decoded = self.backbone.decode(features)[:1] if self.needs_decoder else features[-1:]
        prediction = self.rebuild(decoded, views.size)
        valid = views.valid_mask()
        error = (wide(prediction) - views.image).abs()
        seen, known = self.summaries(features)
        logits, embedded = wide(self.tell_angle(seen)), wide(self.embed(known))
        first, second = (gather(half.contiguous()) for half in embedded.chunk(2))
        with torch.autocast(embedded.device.type, enabled=False):
            parts = {
                "rebuild": mean_of_samples(error, valid if self.parity else hidden & valid),
                "rotation": F.cross_entropy(logits, angle),
                "contrast": self.nt_xent(first, second),
            }
        result = {
            "loss": torch.stack([self.weights[name] * part for name, part in parts.items()]).sum(),
            "angle_accuracy": (logits.argmax(1) == angle).float().mean(),
            "cut_share": hidden.float().mean(),
            "valid_share": valid.float().mean(),
        } | {name: part.detach() for name, part in parts.items()}
        if preview:
            result |= masked_pictures(views.image, hidden, prediction.detach())
        return result

    @torch.no_grad()
    def views(self, batch: RegionBatch) -> tuple[RegionBatch, Tensor]:
        """(2B turned views, the first of every sample and then the second; (2B,) int64 angles, 0 is none)."""
        crops = [self.augment(batch, self.input_size, v)[0] if self.augment else centre_crop(batch, self.input_size)[0]
                 for v in (0, 1)]  # fmt: skip
        seed = torch.tensor([mix(s, "view", v) for v in (0, 1) for s in batch.seed.tolist()])
        quarters = self.draw_turns(seed, torch.cat([batch.spacing, batch.spacing]))
        image = torch.cat([crop.image for crop in crops])
        valid = torch.cat([crop.valid_mask() for crop in crops])
        turned = crops[0].replace(label=None)._map(lambda t: torch.cat([t, t]))
        quarters = self.draw_turns(seed, torch.cat([batch.spacing, batch.spacing]))
        turned = turned.replace(image=turn(image, quarters), valid=turn(valid, quarters), seed=seed)
        return turned, quarters // (4 // self.rotations)

    def draw_turns(self, seed: Tensor, spacing: Tensor) -> Tensor:
        """(B,) quarter turns about z, 0 to 3; even where a quarter turn would change the shape of a sample in mm."""
        drawn = torch.tensor([between(0, 3, generator) for generator in torch_generators(seed, "turn")])
        drawn = drawn.to(spacing.device, non_blocking=True)
        uneven = (spacing[:, 1] / spacing[:, 2]).log().abs() > EVEN
        return torch.where(uneven | (self.rotations == 2), drawn // 2 * 2, drawn)

    def fill(self, views: RegionBatch, hidden: Tensor) -> Tensor:
        """The views with cut-outs set to the mean; published: to noise over the range of intensities."""
        if not self.parity:
            return views.image.masked_fill(hidden, 0.0)
        noise = torch.empty_like(views.image)
        for sample, generator in zip(noise, torch_generators(views.seed, "noise")):
            sample.normal_(generator=device_generator(sample, generator))
        low, high = noise.flatten(1).aminmax(dim=1)
        column = (-1, 1, 1, 1, 1)
        noise = (noise - low.view(column)) / (high - low).view(column)
        return torch.where(hidden, from_unit(noise, views), views.image)

    def summaries(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What angle and contrast are read from, each (2B,F): the pooled features; published: one cell each."""
        if self.parity:
            cells = features[-1].flatten(2)
            return cells[..., 0], cells[..., 1 % cells.shape[2]]
        pooled = self.backbone.pool(features)
        return pooled, pooled


def turn(x: Tensor, quarters: Tensor) -> Tensor:
    """(B,C,D,H,W) -> each sample turned about z by its quarters (B,) as torch.rot90 does: voxels move, none is mixed.

    All samples in one gather, so that nobody waits for a device to say by how much.
    """
    h, w = x.shape[3:]
    down, across = (2 * torch.arange(n, device=x.device) - (n - 1) for n in (h, w))  # from the centre, in half voxels
    down, k = down[:, None], quarters[:, None, None]
    cos, sin = (1 - k) * (k != 3), (2 - k) * (k % 2)  # of 0, 90, 180 and 270 degrees
    rows, columns = (cos * down + sin * across + h - 1) // 2, (cos * across - sin * down + w - 1) // 2
    index = (rows * w + columns).flatten(1)[:, None, None]
    return x.flatten(3).gather(3, index.expand(*x.shape[:3], -1)).view_as(x)


def check_turns(size: Size3, rotations: int, augment: Compose | None) -> None:
    """Raise ValueError when a view cannot be turned, or when `augment` would hide by how much it was."""
    if rotations == 4 and size[1] != size[2]:
        raise ValueError(
            f"patch_size={list(size)}: a quarter turn about z needs as many rows as columns; use equal ones, or "
            "rotations: 2"
        )
    spatial = augment.spatial if augment else None
    if spatial is not None and spatial.p_flip > 0 and {1, 2} <= set(spatial.flip_axes):
        raise ValueError("augment: flips of both in-plane axes are a half turn; use flip_axes: [0, 2] or p_flip: 0")
    if spatial is not None and spatial.p_rotation > 0 and spatial.rotation[0] >= math.pi / 4:
        raise ValueError("augment: rotations by 45 degrees or more about z hide the angle; use rotation: [30, 30, 30]")


class CoarseDecoder(nn.Module):
    """The coarsest scale to voxels, without skips: convolutions, each followed by a doubling of the grid.

    `channels` and `stride` of the scale; as in the published network, features are halved with every doubling.
    """

    def __init__(self, channels: int, stride: Size3, out_channels: int) -> None:
        super().__init__()
        steps = math.ceil(math.log2(max(stride)))
        widths = [max(channels >> i, 8) for i in range(steps + 1)]
        self.scales = [tuple(min(2 ** (i + 1), s) for s in stride) for i in range(steps)]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 3, padding=1), nn.GroupNorm(1, b), nn.LeakyReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.leave = nn.Conv3d(widths[-1], out_channels, 1)

    def forward(self, features: list[Tensor], size: Size3) -> Tensor:
        """[(B,C,d,h,w)] -> (B,out_channels,*size)."""
        x = features[-1]
        grid = x.shape[2:]
        for stage, scale in zip(self.stages, self.scales):
            x = upsample(stage(x), [n * s for n, s in zip(grid, scale)])
        return upsample(self.leave(x), size)
