"""DINO and iBOT on volumes: a student tells from small or masked crops what its moving average says of whole ones.

Sources: Caron et al., "Emerging properties in self-supervised vision transformers" (DINO), ICCV 2021; Zhou et al.,
"iBOT", ICLR 2022; Oquab et al., "DINOv2", arXiv 2304.07193, section 4 (Sinkhorn-Knopp, KoLeo, two heads); 3DINO's
published values for volumes (crop sizes, ratios of masks, temperatures). Ours differs: what a sample hides depends on
no other one, KoLeo and Sinkhorn see the samples of all ranks, one process is enough, and the volume's embedding is the
backbone's own `pool`, since that is what is exported, where published code trains a class token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl3d.augment import Compose
from ssl3d.augment.transform import check_probability
from ssl3d.losses.dense import wide
from ssl3d.losses.distillation import token_cross_entropy, view_cross_entropy
from ssl3d.losses.gather import gather, world_size
from ssl3d.losses.sinkhorn import TargetKind, Targets
from ssl3d.losses.standardised import standardised_rows
from ssl3d.models.backbone import Backbone, TokenBackbone
from ssl3d.models.prototypes import PrototypeHead
from ssl3d.regions import RegionBatch, RegionSpec, Size3
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3, block_voxels
from ssl3d.tasks.multi_crop import GLOBAL, MultiCrop
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.teacher import FollowingTeacher, cosine_ramp, follow, linear_ramp, make_teacher
from ssl3d.tasks.token_mask import TokenMask, token_weights
from ssl3d.tasks.tokens import freeze_all_but, valid_tokens


class DINO(FollowingTeacher, PretextTask):
    """Two global crops and `local_crops` local ones; every crop predicts what the teacher says of the other globals.

    `global_size`, `local_size`: voxels (D,H,W); `global_augment`, `local_augment`: give their SpatialTransforms a
    `shift`, so that crops lie at places of their own. `targets`: how the teacher is kept from collapsing, `sinkhorn`
    (over the whole step) or `centre` (a moving one, with `centre_momentum`). `student_temperature`;
    `teacher_temperature`: from, to, over the first `temperature_steps` steps. `momentum`: of the teacher, from, to,
    along a cosine over the run; the teacher is what is exported. `prototypes`, `hidden_dim`, `bottleneck_dim`: of the
    heads. `koleo_weight`: spreads pooled features of different samples. `ibot_weight`: the student also predicts what
    the teacher says of tokens that are hidden from it, in `ibot_share` of the global views, a share of the tokens of
    each between the two of `ibot_ratio`; 0 for networks without tokens.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    temperature: Tensor

    def __init__(
        self,
        backbone: Backbone,
        global_size: int | tuple[int, int, int],
        local_size: int | tuple[int, int, int],
        global_augment: Compose,
        local_augment: Compose,
        local_crops: int = 8,
        targets: TargetKind = "sinkhorn",
        centre_momentum: float = 0.9,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        temperature_steps: int = 0,
        momentum: tuple[float, float] = (0.992, 1.0),
        prototypes: int = 65_536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        koleo_weight: float = 0.1,
        ibot_weight: float = 1.0,
        ibot_share: float = 0.5,
        ibot_ratio: tuple[float, float] = (0.2, 0.75),
    ) -> None:
        super().__init__()
        least = {"koleo_weight": koleo_weight, "ibot_weight": ibot_weight, "temperature_steps": temperature_steps}
        for key, value in least.items():
            if value < 0:
                raise ValueError(f"{key}={value}: at least 0")
        for key, value in (("student", student_temperature), ("teacher", min(teacher_temperature))):
            if value <= 0:
                raise ValueError(f"{key}_temperature: {value} is not positive; the papers have 0.1 and 0.04 to 0.07")
        self.momentum = tuple(check_probability("momentum", m) for m in momentum)
        self.backbone = backbone
        self.input_size, self.local_size = as_size3("global_size", global_size), as_size3("local_size", local_size)
        check_takes(backbone, self.input_size, "global_size")
        check_takes(backbone, self.local_size, "local_size")
        self.crops = MultiCrop(self.input_size, self.local_size, global_augment, local_augment, local_crops)
        self.region = RegionSpec(self.crops.reach())
        # What batch norm does in the paper's ResNet: instance norm pools almost the same from any crop.
        self.standardise = not isinstance(backbone, TokenBackbone)
        self.spans_batch = targets == "sinkhorn" or koleo_weight > 0 or self.standardise
        self.passes = GLOBAL + local_crops * math.prod(self.local_size) / math.prod(self.input_size)
        self.teacher_passes = GLOBAL
        self.student_temperature = student_temperature
        self.teacher_temperature, self.temperature_steps = tuple(teacher_temperature), temperature_steps
        start = linear_ramp(0, temperature_steps, *teacher_temperature)
        self.register_buffer("temperature", torch.tensor(start))  # a resume goes on with the step's
        self.weights = {"koleo": koleo_weight, "ibot": ibot_weight}
        self.mask, self.mask_token = self._masking(ibot_share, ibot_ratio)
        freeze_all_but(backbone, backbone.pool_parameter_names())

        def head(width: int) -> PrototypeHead:
            return PrototypeHead(width, hidden_dim, bottleneck_dim, prototypes)

        self.heads = nn.ModuleDict({"dino": head(backbone.pool_channels)})
        if self.mask is not None:
            self.heads["ibot"] = head(backbone.channels[-1])
        self.targets = nn.ModuleDict({name: Targets(prototypes, targets, centre_momentum) for name in self.heads})
        self.teacher, self.teacher_heads = make_teacher(backbone), make_teacher(self.heads)
        self.train()

    def _masking(self, share: float, ratio: tuple[float, float]) -> tuple[TokenMask | None, nn.Parameter | None]:
        """What hides tokens, and what stands in for them; nothing where iBOT's weight is 0."""
        if self.weights["ibot"] == 0:
            return None, None
        backbone = self.backbone
        if not isinstance(backbone, TokenBackbone):
            raise ValueError(
                f"task DINO: {type(backbone).__name__} has no tokens to hide for iBOT; set ibot_weight: 0, or use a "
                "ViT or Primus"
            )
        if math.prod(backbone.grid(self.input_size)) < 2:
            raise ValueError(f"global_size={list(self.input_size)}: one token leaves nothing to predict it from")
        token = nn.Parameter(torch.zeros(backbone.embed_dim))
        nn.init.trunc_normal_(token, std=0.02)
        return TokenMask(share, ratio, backbone.patch_size), token

    @property
    def seen_sizes(self) -> frozenset[Size3]:
        """Global and local crops."""
        return frozenset({self.input_size, self.local_size})

    @property
    def exported(self) -> Backbone:
        """The teacher: it is what the papers evaluate."""
        return self.teacher

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, its terms, `target_entropy` (nats) and `valid_share` (of the crops' voxels)."""
        crops = self.crops(batch)
        views, smaller = crops[:GLOBAL], crops[GLOBAL:]
        images, hidden = torch.cat([view.image for view in views]), self.draw_hidden(batch)
        pooled, tokens = self.student(images, hidden)
        if smaller:
            local = self.backbone.pool(self.backbone.encode(torch.cat([view.image for view in smaller])))
            pooled = torch.cat([pooled, local])
        seen = torch.stack([crop.valid_mask().flatten(1).any(1) for crop in crops])
        with torch.no_grad():
            taught = self.teacher.encode(images)
        with torch.autocast(images.device.type, enabled=False):
            terms, entropy = self.compare_views(pooled.unflatten(0, (-1, len(batch))), self.teacher.pool(taught), seen)
            if self.weights["koleo"] > 0:
                terms["koleo"] = self.spread(pooled[: len(images)].unflatten(0, (GLOBAL, -1)))
            if self.mask is not None and hidden is not None and tokens is not None:
                shown = torch.cat([valid_tokens(view, self.mask.token) for view in views])
                terms["ibot"] = self.compare_tokens(tokens, flat(taught[-1]), hidden.flatten(1), shown)
            loss = sum((self.weights.get(k, 1.0) * term for k, term in terms.items()), pooled.new_zeros(()).float())
        result = {"loss": loss} | {name: term.detach() for name, term in terms.items()}
        valid = torch.cat([crop.valid_mask().flatten().float() for crop in crops]).mean()
        result |= {"target_entropy": entropy, "valid_share": valid}
        return result | (self.pictures(crops, hidden) if preview else {})

    def draw_hidden(self, batch: RegionBatch) -> Tensor | None:
        """(2B,gD,gH,gW) bool on the CPU, global view by global view: tokens that the student does not see."""
        if self.mask is None or not isinstance(self.backbone, TokenBackbone):
            return None
        grid = self.backbone.grid(self.input_size)
        return torch.cat([self.mask.draw(batch.seed, grid, view) for view in range(GLOBAL)])

    def student(self, images: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(V,C,D,H,W), and tokens (V,gD,gH,gW) to hide -> pooled (V,P), and where any are hidden tokens (V,N,C)."""
        backbone = self.backbone
        if hidden is None or not isinstance(backbone, TokenBackbone) or self.mask_token is None:
            return backbone.pool(backbone.encode(images)), None
        hidden = hidden.to(images.device, non_blocking=True)
        size = (images.shape[2], images.shape[3], images.shape[4])
        # Emptied before the embedding: a convolutional stem looks beyond its own token.
        content = backbone.embed(images.masked_fill(block_voxels(hidden, backbone.patch_size, size), 0.0))
        content = torch.where(hidden.flatten(1)[..., None], self.mask_token.to(content.dtype), content)
        features = backbone.encode_embedded(content, backbone.grid(size))
        return backbone.pool(features), flat(features[-1])

    def compare_views(self, pooled: Tensor, taught: Tensor, seen: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Pooled features (S,B,P) of all crops, the teacher's (2B,P) of global ones -> DINO's term, targets' entropy.

        `seen` (S,B) bool: crops that show anything but padding.
        """
        if self.standardise:
            pooled, taught = standardised_rows(wide(pooled), seen), standardised_rows(wide(taught), seen[:GLOBAL])
        with torch.no_grad():
            logits = self.teacher_heads["dino"](taught)
            targets = self.targets["dino"](logits, self.temperature, seen[:GLOBAL].flatten())
            entropy = torch.special.entr(targets).sum(-1).mean()
        targets = targets.unflatten(0, (GLOBAL, -1))
        return {
            "dino": view_cross_entropy(self.heads["dino"](pooled), targets, self.student_temperature, seen)
        }, entropy

    def spread(self, pooled: Tensor) -> Tensor:
        """KoLeo of the global views (2,B,P), each among the samples of all ranks; the views' terms are added.

        Raises ValueError on a step of a single sample.
        """
        from lightly.loss import KoLeoLoss  # a second of imports that few methods need

        everyone = [gather(wide(view).contiguous()) for view in pooled]
        if len(everyone[0]) < 2:
            raise ValueError(
                f"data.batch_size: KoLeo spreads the samples of a step, and this one has 1 on {world_size()} rank(s): "
                "use at least 2, or task.koleo_weight: 0"
            )
        koleo = KoLeoLoss()
        return torch.stack([koleo(view) for view in everyone]).sum()

    def compare_tokens(self, tokens: Tensor, taught: Tensor, hidden: Tensor, shown: Tensor) -> Tensor:
        """Both networks' tokens (V,N,C), `hidden` (V,N) on the CPU and `shown` (V,N), not padding -> iBOT's term."""
        # On the CPU, where how many are hidden is known without waiting for the device.
        index = hidden.flatten().nonzero()[:, 0].to(tokens.device, non_blocking=True)
        counted = hidden.to(tokens.device, non_blocking=True) & shown
        weight = token_weights(counted).flatten()[index]
        student = self.heads["ibot"](tokens.flatten(0, 1)[index])
        with torch.no_grad():
            logits = self.teacher_heads["ibot"](taught.flatten(0, 1)[index])
            targets = self.targets["ibot"](logits, self.temperature, weight > 0)
        return token_cross_entropy(student, targets, self.student_temperature, weight, len(hidden))

    def after_step(self, step: int, steps: int) -> None:
        """The teacher follows, centres move, and the temperature becomes the next step's."""
        momentum = cosine_ramp(step, steps, *self.momentum)
        follow(self.teacher, self.backbone, momentum)
        follow(self.teacher_heads, self.heads, momentum)
        for targets in self.targets.values():
            assert isinstance(targets, Targets)
            targets.after_step()
        self.temperature.fill_(linear_ramp(step + 1, self.temperature_steps, *self.teacher_temperature))

    def pictures(self, crops: list[RegionBatch], hidden: Tensor | None) -> dict[str, Tensor]:
        """Middle axial slices (B,H,W) in [0,1]: both global crops, the first as the student sees it, a local crop."""
        shown = {"first": crops[0].image, "second": crops[1].image}
        if hidden is not None and self.mask is not None:
            first = hidden[: len(crops[0])].to(crops[0].image.device)
            shown["masked"] = crops[0].image.masked_fill(block_voxels(first, self.mask.token, self.input_size), 0.0)
        if len(crops) > GLOBAL:
            shown["local"] = crops[GLOBAL].image
        return {f"preview/{name}": grey(image[:, 0, image.shape[2] // 2]) for name, image in shown.items()}


def flat(features: Tensor) -> Tensor:
    """(B,C,D,H,W) -> (B,N,C), row-major over (D,H,W)."""
    return features.flatten(2).transpose(1, 2)
