"""Masked autoencoding: hide most of an image, rebuild it from the rest.

Sources: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (the idea, and the path for tokens);
Wald et al., "Revisiting MAE pre-training for 3D medical image segmentation", arXiv 2410.23132, section 3 (the path for
convolutional networks: hidden voxels are zero after z-normalisation, L2 on what was hidden).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ssl3d.augment import Compose, centre_crop
from ssl3d.losses.masked import masked_mse
from ssl3d.models.backbone import Backbone, TokenBackbone
from ssl3d.regions import RegionBatch, RegionSpec
from ssl3d.tasks.mask_strategies import MaskStrategy
from ssl3d.tasks.masked_result import masked_result
from ssl3d.tasks.masking import BlockMask, as_size3
from ssl3d.tasks.targets import check_whole_blocks, normalised_blocks, own_greys
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import TokenDecoder, freeze_all_but


class MAE(PretextTask):
    """Hides `mask_ratio` of the blocks of `mask_block` voxels and rebuilds them; L2 on hidden, valid voxels only.

    `patch_size`: voxels (D,H,W) the network sees. `augment`: applied before masking (its reach sets what is read).
    `mask_value`: what hidden voxels are set to, in normalised units; 0 is the mean. `mask_strategy`: which blocks are
    hidden (ssl3d.tasks.mask_strategies); uniformly random ones when null. `normalise_target`: rebuild each block with
    its own mean and deviation taken out, instead of the image.

    Convolutional backbones see the whole patch with hidden voxels replaced, and rebuild it with their own decoder and
    a 1x1x1 convolution. Token backbones encode the visible tokens only (`decoder_depth` light transformer layers of
    `decoder_dim` features rebuild the others; the backbone's own decoder is not trained); their patch size must
    divide `mask_block`, and `mask_block` the patch.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        mask_ratio: float = 0.75,
        mask_block: int | tuple[int, int, int] = 16,
        augment: Compose | None = None,
        mask_value: float = 0.0,
        decoder_dim: int = 192,
        decoder_depth: int = 2,
        mask_strategy: MaskStrategy | None = None,
        normalise_target: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_size = as_size3("patch_size", patch_size)
        self.mask = BlockMask(mask_ratio, mask_block, mask_strategy)
        self.mask.check(self.input_size)
        if normalise_target:
            check_whole_blocks(self.input_size, self.mask.block)
        self.normalise_target = normalise_target
        self.augment = augment
        self.mask_value = mask_value
        self.region = RegionSpec(augment.reach(self.input_size) if augment else self.input_size)
        check_takes(backbone, self.input_size, "patch_size")
        self.rebuild: nn.Module
        if isinstance(backbone, TokenBackbone):
            self.needs_decoder = False
            freeze_all_but(backbone, backbone.encoder_parameter_names())
            self.rebuild = TokenDecoder(backbone, self.mask, self.input_size, decoder_dim, decoder_depth)
            self.passes = self.rebuild.visible / math.prod(backbone.grid(self.input_size))
        elif backbone.decoder_channels:
            self.needs_decoder = True
            self.rebuild = nn.Conv3d(backbone.decoder_channels[0], backbone.in_channels, kernel_size=1)
        else:
            raise ValueError(f"task MAE: {type(backbone).__name__} has no decoder to rebuild the image with")

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, `masked_share` and `valid_share` (of voxels); with `preview` also pictures."""
        batch, _ = (self.augment or centre_crop)(batch, self.input_size)
        blocks = self.mask.draw(batch)
        return self.scored(batch, blocks, self.predict(batch.image, blocks), preview)

    def scored(self, batch: RegionBatch, blocks: Tensor, prediction: Tensor, preview: bool) -> dict[str, Tensor]:
        """What `forward` returns for a prediction (B,C,D,H,W) of a batch with hidden `blocks`."""
        hidden = self.mask.voxels(blocks, batch.size)
        valid = batch.valid_mask()
        if not self.normalise_target:
            loss = masked_mse(prediction, batch.image, hidden & valid)
        else:
            loss = masked_mse(prediction, normalised_blocks(batch.image, self.mask.block, valid), hidden & valid)
            if preview:
                prediction = own_greys(prediction, batch.image, self.mask.block, valid)
        return masked_result(loss, batch, hidden, prediction if preview else None)

    def predict(self, image: Tensor, blocks: Tensor) -> Tensor:
        """(B,C,D,H,W) and hidden `blocks` (B,gD,gH,gW) -> (B,C,D,H,W), rebuilt from the visible voxels alone."""
        _, _, d, h, w = image.shape
        # The first thing that happens to the image: nothing behind this line can see what is hidden.
        visible = image.masked_fill(self.mask.voxels(blocks, (d, h, w)), self.mask_value)
        if isinstance(self.rebuild, TokenDecoder):
            return self.rebuild(self.backbone, visible, blocks)
        return self.rebuild(self.backbone.decode(self.backbone.encode(visible))[0])
