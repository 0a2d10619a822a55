"""Sparse masked autoencoding: a convolutional encoder computes visible voxels alone, the decoder rebuilds the rest.

Sources: Tian et al., "Designing BERT for convolutional networks: sparse and hierarchical masked modeling" (SparK), ICLR
2023 (sparse convolution and norm, mask tokens per scale); Wald et al., "Revisiting MAE pre-training for 3D medical
image segmentation" (S3D), arXiv 2410.23132 (the same on nnU-Net's ResEnc U-Net).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ssl3d.augment import Compose, centre_crop
from ssl3d.models.backbone import Backbone, StagedBackbone
from ssl3d.models.sparse import SparseFeatures, encode_visible, encoder_steps, least_active, work_share
from ssl3d.models.sparse_layout import ActiveScales
from ssl3d.models.sparse_ops import normalise
from ssl3d.regions import RegionBatch
from ssl3d.tasks.mae import MAE
from ssl3d.tasks.mask_strategies import MaskStrategy


class SparseMAE(MAE):
    """Hides `mask_ratio` of the blocks of `mask_block` voxels, encodes the others only, and rebuilds what is hidden.

    The encoder runs on visible voxels (`ssl3d.models.sparse`): hidden ones count as zero in every convolution and enter
    no statistic of its norms. At every scale one learned token then stands wherever nothing is visible, and the
    backbone's own decoder and a 1x1x1 convolution rebuild the image; L2 on hidden, valid voxels. The encoder's and
    decoder's parameters are the dense network's, which is exported.

    `mask_block`: the encoder's total stride when null, as in SparK: no coarse voxel is half hidden then, and most work
    is saved. With smaller blocks coarse voxels are computed wherever any visible voxel lies in them; `encoder_work` in
    the log is the share of the dense encoder's multiply-adds that is left.
    `densify`: `tokens`, the tokens alone; `published`: as in SparK and S3D features are normalised before, and the
    filled maps of all scales but the finest convolved (3x3x3) after, by layers that the fine-tuned network lacks.
    `gather`: for each scale, finest first, whether its convolutions run on gathered blocks (true) or on the image put
    together (false); by measured break-even when null. It changes the speed, not the result.
    The other keys are MAE's. Raises ValueError naming the key when a value is out of range or does not fit, and naming
    the backbone when its encoder cannot be run on visible voxels only.
    """

    backbone: StagedBackbone
    reads_weights = True

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        mask_ratio: float = 0.75,
        mask_block: int | tuple[int, int, int] | None = None,
        augment: Compose | None = None,
        mask_strategy: MaskStrategy | None = None,
        normalise_target: bool = False,
        densify: Literal["tokens", "published"] = "tokens",
        gather: list[bool] | None = None,
    ) -> None:
        if not isinstance(backbone, StagedBackbone):
            raise ValueError(
                f"task SparseMAE: {type(backbone).__name__} has no encoder that runs on visible voxels only; use "
                "ResEncUNet, PlainConvUNet or STUNet, or MAE"
            )
        encoder_steps(backbone)  # refuses what cannot be run on visible voxels
        block = backbone.total_stride if mask_block is None else mask_block
        super().__init__(
            backbone, patch_size, mask_ratio, block, augment,
            mask_strategy=mask_strategy, normalise_target=normalise_target,
        )  # fmt: skip
        visible = math.prod(self.mask.grid(self.input_size)) - self.mask.count(self.input_size)
        if least_active(visible, self.mask.block, backbone.total_stride, self.input_size) < 2:
            raise ValueError(
                f"mask_ratio={mask_ratio}: {visible} visible block(s) of {list(self.mask.block)} voxels can leave a "
                "single voxel of the coarsest scale, which instance norm cannot normalise; hide less, or use a larger "
                "patch_size"
            )
        if gather is not None and len(gather) != len(backbone.strides):
            raise ValueError(
                f"gather={gather}: write true or false for each of the encoder's {len(backbone.strides)} scales"
            )
        self.gather = gather
        self.densify = Densify(backbone.channels, published=densify == "published")

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """As MAE's, and `encoder_work`: multiply-adds of the encoder's convolutions, of those of the dense encoder."""
        batch, _ = (self.augment or centre_crop)(batch, self.input_size)
        blocks = self.mask.draw(batch)
        work = work_share(self.backbone, ActiveScales(blocks, self.mask.block, batch.size), self.gather)
        result = self.scored(batch, blocks, self.predict(batch.image, blocks), preview)
        return result | {"encoder_work": torch.tensor(work, device=batch.image.device)}

    def predict(self, image: Tensor, blocks: Tensor) -> Tensor:
        """(B,C,D,H,W) and hidden `blocks` (B,gD,gH,gW) -> (B,C,D,H,W), rebuilt from the visible voxels alone."""
        features = encode_visible(self.backbone, image, blocks, self.mask.block, self.gather)
        return self.rebuild(self.backbone.decode(self.densify(features))[0])


class Densify(nn.Module):
    """Fills a learned token in wherever nothing is visible, at every scale: features -> dense maps, finest first."""

    def __init__(self, channels: Sequence[int], published: bool) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(nn.Parameter(torch.zeros(c)) for c in channels)
        for token in self.tokens:
            nn.init.trunc_normal_(token, std=0.02)
        none = [nn.Identity() for _ in channels]
        self.norms = nn.ModuleList([nn.InstanceNorm3d(c, affine=True) for c in channels] if published else none)
        filled = [nn.Identity(), *(nn.Conv3d(c, c, 3, padding=1) for c in channels[1:])]
        self.projections = nn.ModuleList(filled if published else none)

    def forward(self, features: SparseFeatures) -> list[Tensor]:
        maps = []
        layers = zip(features.rows, features.active, self.tokens, self.norms, self.projections, strict=True)
        for rows, active, token, norm, project in layers:
            normed = normalise(rows, norm, active) if isinstance(norm, nn.InstanceNorm3d) else rows
            maps.append(project(active.spread(normed, fill=token)))
        return maps
