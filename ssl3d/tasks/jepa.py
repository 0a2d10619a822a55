"""JEPA: predict what a teacher says of hidden blocks of an image from the tokens that are left; no voxel is rebuilt.

Source: Assran et al., "Self-supervised learning from images with a joint-embedding predictive architecture" (I-JEPA),
CVPR 2023, section 3, and what its published code does: targets are normalised per token, the loss is smooth L1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.augment import Compose, centre_crop
from ssl3d.augment.transform import check_probability
from ssl3d.losses.dense import mean_of_samples, wide
from ssl3d.models.backbone import Backbone, TokenBackbone
from ssl3d.regions import RegionBatch, RegionSpec
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3, block_voxels
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.teacher import FollowingTeacher, follow, linear_ramp, make_teacher
from ssl3d.tasks.token_blocks import TokenBlocks, TokenSplit
from ssl3d.tasks.tokens import freeze_all_but, take, valid_tokens


class JEPA(FollowingTeacher, PretextTask):
    """Encodes a context of visible tokens and predicts the teacher's features of `targets` blocks; smooth L1.

    The teacher sees the whole image; it follows the encoder with `momentum`, which rises linearly to 1 at the last
    step. `target_scale`, `context_scale` (least and most share of the tokens), `aspect` and `context_share`: the
    blocks, see TokenBlocks. 0.06 to 0.09 of a volume has the edges that the published 0.15 to 0.2 of an image has; a
    block of 0.15 of a volume would hold its centre in every sample. `predictor_dim`, `predictor_depth`: width and
    layers of the predictor, which knows the places of what it reads and of what it is asked for. `patch_size`: voxels
    (D,H,W) the network sees. `augment`: applied before anything is hidden.

    Tokens without a valid voxel are no targets. For token backbones; what is exported is the encoder, not its teacher.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        targets: int = 4,
        target_scale: tuple[float, float] = (0.06, 0.09),
        context_scale: tuple[float, float] = (0.85, 1.0),
        aspect: float = 1.5,
        context_share: float = 0.4,
        momentum: float = 0.996,
        predictor_dim: int = 384,
        predictor_depth: int = 6,
        augment: Compose | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, TokenBackbone):
            raise ValueError(
                f"task JEPA: {type(backbone).__name__} has no tokens to leave out; use a ViT or Primus, or LeJEPA"
            )
        self.backbone: TokenBackbone = backbone
        self.input_size = as_size3("patch_size", patch_size)
        check_takes(backbone, self.input_size, "patch_size")
        grid = backbone.grid(self.input_size)
        self.blocks = TokenBlocks(grid, targets, target_scale, context_scale, aspect, context_share)
        self.momentum = check_probability("momentum", momentum)
        self.augment = augment
        self.region = RegionSpec(augment.reach(self.input_size) if augment else self.input_size)
        self.passes = self.blocks.visible / math.prod(grid)
        self.teacher_passes = 1
        freeze_all_but(backbone, backbone.encoder_parameter_names())
        self.predictor = LatentPredictor(backbone.embed_dim, predictor_dim, predictor_depth)
        self.teacher = make_teacher(backbone)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss; `feature_std`: of the targets, 0 when the teacher says the same of every token.

        Also `context_share` (of tokens) and `valid_share` (of voxels); with `preview` pictures.
        """
        batch, _ = (self.augment or centre_crop)(batch, self.input_size)
        split = self.blocks.draw(batch.seed).to(batch.image.device)
        features = self.describe(batch.image)
        predicted = wide(self.predict(batch.image, split))
        target = take(features, split.targets.flatten(1)).to(predicted.dtype).view_as(predicted)
        valid = valid_tokens(batch, self.backbone.patch_size).gather(1, split.targets.flatten(1))
        counted = split.present & valid.view_as(split.present)
        loss = mean_of_samples(F.smooth_l1_loss(predicted, target, reduction="none"), counted[..., None])
        result = {
            "loss": loss,
            "feature_std": features.flatten(0, 1).std(0, correction=0).mean(),
            "context_share": torch.tensor(self.passes, device=batch.image.device),
            "valid_share": batch.valid_mask().float().mean(),
        }
        if preview:
            result |= self.pictures(batch.image, split)
        return result

    def describe(self, image: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,N,F): what the teacher says of every token of the whole image, each normalised. No grad."""
        with torch.no_grad():
            features = wide(self.teacher.encode(image)[0].flatten(2).transpose(1, 2))
            with torch.autocast(image.device.type, enabled=False):
                return F.layer_norm(features, features.shape[-1:])

    def predict(self, image: Tensor, split: TokenSplit) -> Tensor:
        """(B,C,D,H,W) -> (B,M,P,F): the features of the targets, from the tokens of the context alone."""
        hidden = torch.ones((len(image), math.prod(self.blocks.grid)), dtype=torch.bool, device=image.device)
        hidden.scatter_(1, split.context, False)
        # Emptied before the embedding: a convolutional stem looks beyond its own token.
        visible = image.masked_fill(self.voxels(hidden), 0.0)
        tokens = take(self.backbone.embed(visible), split.context)
        seen = self.backbone.blocks(tokens, self.blocks.grid, index=split.context)[-1]
        return self.predictor(seen, self.backbone.positions(self.blocks.grid), split)

    def voxels(self, tokens: Tensor) -> Tensor:
        """(B,N) -> (B,1,D,H,W): each voxel has the value of its token."""
        return block_voxels(tokens.unflatten(1, self.blocks.grid), self.backbone.patch_size, self.input_size)

    def pictures(self, image: Tensor, split: TokenSplit) -> dict[str, Tensor]:
        """Middle axial slices (B,H,W) in [0,1]: input, context (the rest grey), and how many blocks ask for a place."""
        middle, shown = image.shape[2] // 2, grey(image[:, 0, image.shape[2] // 2])
        seen = torch.zeros((len(image), math.prod(self.blocks.grid)), device=image.device)
        asked = seen.scatter_add(1, split.targets.flatten(1), split.present.flatten(1).to(seen.dtype))
        seen = seen.scatter(1, split.context, 1.0)
        return {
            "preview/input": shown,
            "preview/context": shown.masked_fill(self.voxels(seen)[:, 0, middle] == 0, 0.5),
            "preview/targets": self.voxels(asked)[:, 0, middle] / self.blocks.targets,
        }

    def after_step(self, step: int, steps: int) -> None:
        """The teacher follows."""
        follow(self.teacher, self.backbone, linear_ramp(step + 1, steps, self.momentum, 1.0))


class LatentPredictor(nn.Module):
    """A narrow transformer from the context's features to those at other places: one block of targets at a time.

    `features`: of the encoder; `dim`, `depth`: of the layers. Raises ValueError naming the key on values out of range.
    """

    def __init__(self, features: int, dim: int, depth: int) -> None:
        super().__init__()
        if dim < 32 or dim % 32:
            raise ValueError(f"predictor_dim={dim}: must be a multiple of 32 (the width of an attention head)")
        if depth < 1:
            raise ValueError(f"predictor_depth={depth}: at least 1")
        self.enter = nn.Linear(features, dim)
        self.place = nn.Linear(features, dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, dim // 32, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.leave = nn.Linear(dim, features)

    def forward(self, context: Tensor, positions: Tensor, split: TokenSplit) -> Tensor:
        """Encoded context (B,K,F) and the places of all tokens (N,F) -> (B,M,P,F)."""
        places = self.place(positions)
        seen = self.enter(context) + places[split.context]
        asked = self.mask_token[0] + places[split.targets]  # (B,M,P,dim)
        _, blocks, size, _ = asked.shape
        # A block knows nothing of the others: they are further samples.
        joined = torch.cat([seen.repeat_interleave(blocks, 0), asked.flatten(0, 1).to(seen.dtype)], dim=1)
        filler = F.pad(~split.present.flatten(0, 1), (split.context.shape[1], 0))  # the context is never left out
        answered = self.layers(joined, src_key_padding_mask=filler)[:, -size:]
        return self.leave(answered).unflatten(0, (-1, blocks))
