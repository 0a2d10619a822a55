"""Position regression: tell where in its volume each voxel (or the whole crop) lies, alone or while rebuilding.

Anatomy stands in a fixed order, so that a network that knows where it is has learnt what it sees. Dense coordinate
targets after "voxel-wise position" pretext tasks (Lei et al., "Contrastive learning of relative position regression",
MICCAI 2021, give the crop-wise form); the combination with masked autoencoding in one step is ours.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ssl3d.augment import Compose, centre_crop
from ssl3d.losses.dense import smooth_l1
from ssl3d.losses.masked import masked_mse
from ssl3d.models.backbone import Backbone
from ssl3d.models.heads import VoxelHead
from ssl3d.regions import Geometry, RegionBatch, RegionSpec
from ssl3d.seeding import torch_generators
from ssl3d.tasks.grey import grey
from ssl3d.tasks.mask_strategies import MaskStrategy
from ssl3d.tasks.masking import BlockMask, as_size3
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import freeze_all_but


class PositionRegression(PretextTask):
    """Regresses normalised coordinates in the volume, -1 at its first face and 1 at its last on every axis.

    `target`: `voxel` (a coordinate for every voxel, from the decoder) or `crop` (that of the crop's centre, from the
    pooled encoder features). The coordinates come from the augmentation's geometry, so they follow every flip,
    rotation, scaling and deformation. Huber's loss with its corner at `beta`; padded voxels enter no loss.
    `mask_share`: share of samples that are masked besides (whole blocks, as in MAE): on their hidden voxels the image
    is rebuilt as well, with weight `mask_weight`; 0 turns masking off. Masked samples regress positions too.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        target: Literal["voxel", "crop"] = "voxel",
        beta: float = 0.1,
        mask_share: float = 0.0,
        mask_weight: float = 0.3,
        mask_ratio: float = 0.6,
        mask_block: int | tuple[int, int, int] = 4,
        mask_strategy: MaskStrategy | None = None,
        augment: Compose | None = None,
    ) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta={beta}: must be positive")
        if not 0 <= mask_share <= 1:
            raise ValueError(f"mask_share={mask_share}: a share lies between 0 and 1")
        self.backbone = backbone
        self.input_size = as_size3("patch_size", patch_size)
        self.target, self.beta, self.mask_share, self.mask_weight = target, beta, mask_share, mask_weight
        self.augment = augment
        self.region = RegionSpec(augment.reach(self.input_size) if augment else self.input_size)
        self.mask = BlockMask(mask_ratio, mask_block, mask_strategy)
        check_takes(backbone, self.input_size, "patch_size")
        self.needs_decoder = target == "voxel" or mask_share > 0
        if self.needs_decoder and not backbone.decoder_channels:
            raise ValueError(
                f"task PositionRegression: {type(backbone).__name__} has no decoder: use target: crop, mask_share: 0"
            )
        self.locate: nn.Module
        if target == "voxel":
            self.locate = VoxelHead(backbone.decoder_channels[0], 3)
        else:
            self.locate = nn.Linear(backbone.pool_channels, 3)
        if mask_share > 0:
            self.mask.check(self.input_size)
            self.rebuild = VoxelHead(backbone.decoder_channels[0], backbone.in_channels)
        if not self.needs_decoder:
            freeze_all_but(backbone, backbone.pool_parameter_names())

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, `position_error` (mean distance in half edges of the volume) and the parts."""
        whole = batch
        batch, geometry = (self.augment or centre_crop)(whole, self.input_size)
        valid = batch.valid_mask()
        image, hidden = self.masked(batch)
        features = self.backbone.encode(image)
        decoded = self.backbone.decode(features)[:1] if self.needs_decoder else []
        coordinates = normalised_coordinates(whole, geometry)
        if self.target == "voxel":
            predicted, truth, where = self.locate(decoded, batch.size), coordinates, valid
        else:
            # pooled features are at least float32 already; the head's own numbers stay in the autocast type
            predicted = self.locate(self.backbone.pool(features))[:, :, None, None, None]
            truth = coordinates.mean(dim=(2, 3, 4), keepdim=True)
            where = torch.ones_like(truth[:, :1], dtype=torch.bool)
        position = smooth_l1(predicted, truth, where, self.beta)
        error = smooth_l1(predicted.detach(), truth, where, 1e-12)  # beta towards 0: the mean absolute error
        result = {"loss": position, "position_error": error, "valid_share": valid.float().mean()}
        if self.mask_share > 0:
            rebuilt = self.rebuild(decoded, batch.size)
            rebuilding = masked_mse(rebuilt, batch.image, hidden & valid)
            # Each masked sample weighs the same however many a rank happened to draw: one rank equals several.
            share = hidden.flatten(1).any(1).to(rebuilding.dtype).mean() / self.mask_share
            result["loss"] = position + self.mask_weight * share * rebuilding
            result |= {"position": position.detach(), "rebuilding": rebuilding.detach()}
        if preview:
            result |= pictures(image, truth, predicted.detach())
        return result

    def masked(self, batch: RegionBatch) -> tuple[Tensor, Tensor]:
        """The image as the network sees it, and the hidden voxels (B,1,D,H,W): of a share of the samples."""
        if self.mask_share == 0:
            return batch.image, torch.zeros_like(batch.image[:, :1], dtype=torch.bool)
        chosen = [torch.rand((), generator=g).item() < self.mask_share for g in torch_generators(batch.seed, "masked")]
        chosen_here = torch.tensor(chosen).to(batch.image.device, non_blocking=True)
        hidden = self.mask.voxels(self.mask.draw(batch), batch.size) & chosen_here[:, None, None, None, None]
        return batch.image.masked_fill(hidden, 0.0), hidden


def normalised_coordinates(source: RegionBatch, geometry: Geometry) -> Tensor:
    """(B,3,D,H,W) float32: where each voxel of an output lies in its stored volume, -1 and 1 at the outer faces.

    `source`: the batch the geometry points into. Axes z, y, x.
    """
    points = geometry.source_points() + source.start[:, None, None, None].to(geometry.matrix.dtype)
    shape = source.volume_shape[:, None, None, None].to(points.dtype)
    return ((points + 0.5) / shape * 2 - 1).movedim(-1, 1)


def pictures(image: Tensor, truth: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """Middle axial slices (B,H,W) in [0,1]: the input, and the true and the predicted y coordinate."""
    middle = image.shape[2] // 2
    shown = {"preview/input": grey(image[:, 0, middle], image[:, 0])}
    for name, coordinates in (("true_y", truth), ("predicted_y", predicted)):
        plane = coordinates[:, 1].float()
        plane = plane[:, middle] if plane.shape[1] > 1 else plane[:, 0].expand(-1, *image.shape[3:])
        shown[f"preview/{name}"] = ((plane + 1) / 2).clamp(0, 1)
    return shown
