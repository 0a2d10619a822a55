"""SimMIM: hidden tokens become a learned mask token, the encoder sees all places, one linear layer rebuilds voxels.

Source: Xie et al., "SimMIM: a simple framework for masked image modeling", CVPR 2022, sections 3.1 to 3.4 (learned mask
token, linear head, L1 on what was hidden).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl3d.augment import Compose, centre_crop
from ssl3d.losses.dense import mean_of_samples, wide
from ssl3d.models.backbone import Backbone, MaskableBackbone
from ssl3d.regions import RegionBatch, RegionSpec, Size3
from ssl3d.tasks.mask_strategies import MaskStrategy
from ssl3d.tasks.masked_result import masked_result
from ssl3d.tasks.masking import BlockMask, as_size3
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import check_whole_tokens, freeze_all_but, hidden_tokens, unpatchify


class SimMIM(PretextTask):
    """Hides `mask_ratio` of the blocks of `mask_block` voxels behind one mask token; L1 on hidden, valid voxels only.

    For backbones whose patch embeddings can be replaced: ViTs and Swin. Each cell of the encoder's coarsest scale
    rebuilds the voxels it covers by a linear layer (a 1x1x1 convolution and a pixel shuffle), so that the encoder does
    the work; the backbone's own decoder is not trained. `mask_block` must be a multiple of the token.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        mask_ratio: float = 0.6,
        mask_block: int | tuple[int, int, int] = 16,
        mask_strategy: MaskStrategy | None = None,
        augment: Compose | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, MaskableBackbone):
            raise ValueError(
                f"task SimMIM: {type(backbone).__name__} has no patch embedding to replace; use a ViT or Swin, or MAE"
            )
        self.backbone: MaskableBackbone = backbone
        self.input_size = as_size3("patch_size", patch_size)
        self.mask = BlockMask(mask_ratio, mask_block, mask_strategy)
        self.mask.check(self.input_size)
        check_takes(backbone, self.input_size, "patch_size")
        check_whole_tokens(self.mask.block, backbone.patch_size, self.input_size)
        self.augment = augment
        self.region = RegionSpec(augment.reach(self.input_size) if augment else self.input_size)
        freeze_all_but(backbone, backbone.embedded_parameter_names(coarsest=True))
        self.mask_token = nn.Parameter(torch.zeros(backbone.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.stride: Size3 = backbone.strides[-1]
        self.rebuild = nn.Conv3d(backbone.channels[-1], backbone.in_channels * math.prod(self.stride), 1)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, `masked_share` and `valid_share` (of voxels); with `preview` also pictures."""
        batch, _ = (self.augment or centre_crop)(batch, self.input_size)
        blocks = self.mask.draw(batch)
        hidden = self.mask.voxels(blocks, batch.size)
        prediction = self.predict(batch.image, blocks)
        valid = batch.valid_mask()
        predicted = wide(prediction)
        loss = mean_of_samples((predicted - batch.image.to(predicted.dtype)).abs(), hidden & valid)
        return masked_result(loss, batch, hidden, prediction if preview else None)

    def predict(self, image: Tensor, blocks: Tensor) -> Tensor:
        """(B,C,D,H,W) and hidden `blocks` (B,gD,gH,gW) -> (B,C,D,H,W), rebuilt from the visible voxels alone."""
        _, _, d, h, w = image.shape
        grid = self.backbone.grid((d, h, w))
        # Emptied before the embedding: a convolutional stem looks beyond its own token.
        tokens = self.backbone.embed(image.masked_fill(self.mask.voxels(blocks, (d, h, w)), 0.0))
        hidden = hidden_tokens(blocks, self.mask.block, self.backbone.patch_size)
        tokens = torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens)
        x = self.rebuild(self.backbone.encode_embedded(tokens, grid, coarsest=True)[-1])
        coarse: Size3 = (x.shape[2], x.shape[3], x.shape[4])
        return unpatchify(x.flatten(2).transpose(1, 2), coarse, self.stride)
