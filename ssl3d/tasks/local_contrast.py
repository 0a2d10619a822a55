"""LocalContrast: scans agree where they show the same height of the body, and places agree with themselves.

Source: Chaitanya et al., "Contrastive learning of global and local features for medical image segmentation with limited
annotations", NeurIPS 2020, brought from slices to volumes. Ours differs: heights are compared softly, local features
are matched through the geometry of really moved views, and the scans of all ranks take part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ssl3d.augment import Compose, centre_crop, check_differ
from ssl3d.losses.contrast import GlobalPairs, alike, other_samples, place_contrast, position_contrast, same_part
from ssl3d.losses.dense import wide
from ssl3d.losses.gather import gather, world_size
from ssl3d.models.backbone import Backbone
from ssl3d.models.projector import Projector
from ssl3d.regions import Geometry, RegionBatch, RegionSpec
from ssl3d.tasks.marks import pictures
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.matched_points import MatchedPoints, PointSampler, features_at
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import decoder_parameter_names, freeze_all_but


class LocalContrast(PretextTask):
    """Two views of each sample: contrast of pooled features by height, of decoder features by place, or of both.

    `augment` makes the views. `stage`: `global`, `local` or `joint` (their sum, the local one times `local_weight`);
    published are the first two in turn: train `global`, then `local` with model.init the first run. `freeze_encoder`:
    in the local stage train the decoder alone.
    Global: `pairs` GR (a sample's views), GD- (and scans of the same height are no negatives) or GD (but positives).
    `partition` of heights, normalised in the volume: `soft`, the same by exp(-dz^2 / 2 sigma^2), or the published
    `hard`, in `parts` equal parts. `plain_view`: the first view is the crop itself, as published for GD.
    Local: `scale` of the decoder, 0 the finest (2, stride 4 of a U-Net, is published). `points` are `random` places,
    `count` of them, or the published `lattice` (here 35). Features of `region`^3 cells a place are compared. Negatives
    are the other places of both views at least `min_distance` mm away, the `nearest` of these when not 0 (published: 5
    and 0 mm). `local_pairs` LR (a place itself), or LD: also in other samples, by how alike their normalised positions
    are, or with `hard`, for one lattice place and one part. `hidden_dim`, `out_dim`: of the projectors.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        augment: Compose,
        stage: Literal["global", "local", "joint"] = "joint",
        freeze_encoder: bool = False,
        pairs: GlobalPairs = "GD",
        partition: Literal["soft", "hard"] = "soft",
        sigma: float = 0.1,
        parts: int = 4,
        plain_view: bool = False,
        scale: int = 2,
        points: Literal["random", "lattice"] = "random",
        count: int = 32,
        region: int = 3,
        nearest: int = 0,
        min_distance: float = 8.0,
        local_pairs: Literal["LR", "LD"] = "LR",
        local_weight: float = 1.0,
        temperature: float = 0.1,
        hidden_dim: int = 1024,
        out_dim: int = 128,
    ) -> None:
        super().__init__()
        at_least = {
            "parts": (parts, 1),
            "count": (count, 2),
            "nearest": (nearest, 0),
            "min_distance": (min_distance, 0),
            "local_weight": (local_weight, 0),
            "hidden_dim": (hidden_dim, 1),
            "out_dim": (out_dim, 1),
        }
        check_values({"sigma": sigma, "temperature": temperature}, at_least, region)
        if freeze_encoder and stage != "local":
            raise ValueError(f"freeze_encoder=True: stage {stage} trains the encoder; only stage local can do without")
        check_differ(augment, "both views")
        if stage != "global" and local_pairs == "LD" and partition == "hard" and points == "random":
            raise ValueError("points=random: local_pairs LD with partition hard pairs places by lattice; use lattice")
        self.backbone, self.augment = backbone, augment
        self.input_size = as_size3("patch_size", patch_size)
        check_takes(backbone, self.input_size, "patch_size")
        self.region = RegionSpec(augment.reach(self.input_size))
        self.stage, self.freeze_encoder, self.plain_view = stage, freeze_encoder, plain_view
        self.pairs, self.sigma, self.parts = pairs, sigma, parts if partition == "hard" else None
        self.local_pairs, self.nearest, self.min_distance = local_pairs, nearest, min_distance
        self.local_weight, self.temperature = local_weight, temperature
        self.needs_decoder = stage != "global"
        self.passes = 2
        self.spans_batch = stage != "local" or local_pairs == "LD"
        trained = set() if freeze_encoder else backbone.pool_parameter_names()
        if stage != "local":
            self.global_head = Projector(backbone.pool_channels, hidden_dim, out_dim)
        if stage != "global":
            self._build_local(scale, points == "lattice", count, region, hidden_dim, out_dim)
            decoding = decoder_parameter_names(backbone, self.input_size, scale)
            trained = decoding - backbone.encoder_parameter_names() if freeze_encoder else trained | decoding
        freeze_all_but(backbone, trained)

    def _build_local(self, scale: int, lattice: bool, count: int, region: int, hidden: int, out: int) -> None:
        """The places and their head: features of a place's cells side by side, then a projector."""
        decodable = len(self.backbone.decoder_channels)
        name = type(self.backbone).__name__
        if not decodable:
            raise ValueError(f"task LocalContrast: {name} has no decoder to compare places with; use stage: global")
        if not 0 <= scale < decodable:
            raise ValueError(f"scale={scale}: the decoder of {name} has scales 0 to {decodable - 1}")
        self.scale, self.stride = scale, self.backbone.decoder_strides[scale]
        self.sampler = PointSampler(self.input_size, self.stride, region, count, lattice)
        self.local_head = Projector(self.backbone.decoder_channels[scale] * region**3, hidden, out)

    def train(self, mode: bool = True) -> LocalContrast:
        """A frozen encoder stays in evaluation: its statistics do not follow what it is not trained on."""
        super().train(mode)
        if self.freeze_encoder:
            encoder, names = self.backbone.encoder_parameter_names(), list(self.backbone.state_dict())
            for prefix, module in self.backbone.named_modules():
                own = {name for name in names if name.startswith(prefix + ".")}
                if own and own <= encoder:
                    module.eval()
        return self

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, `global` and `local` of it, `negatives`, `similarity`, `matched_share`."""
        views, geometries = self.views(batch)
        images = torch.cat([view.image for view in views])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            features = self.backbone.encode(images)
        result: dict[str, Tensor] = {"loss": torch.zeros((), device=images.device)}
        if self.stage != "local":
            result |= self.compare_heights(self.backbone.pool(features), batch, geometries)
            result["loss"] = result["global"]
        if self.stage != "global":
            decoded = self.backbone.decode(features, down_to=self.scale)[0]
            result |= self.compare_places(decoded, batch, views, geometries)
            weight = self.local_weight if self.stage == "joint" else 1.0
            result["loss"] = result["loss"] + weight * result["local"]
        result |= {name: result[name].detach() for name in ("global", "local") if name in result}
        result["valid_share"] = torch.cat([view.valid_mask() for view in views]).float().mean()
        if preview:
            result |= pictures(views, geometries)
        return result

    def views(self, batch: RegionBatch) -> tuple[list[RegionBatch], list[Geometry]]:
        """Both views, and where they lie in the batch."""
        first = centre_crop(batch, self.input_size) if self.plain_view else self.augment(batch, self.input_size, 0)
        second = self.augment(batch, self.input_size, 1)
        return [first[0], second[0]], [first[1], second[1]]

    def compare_heights(self, pooled: Tensor, batch: RegionBatch, geometries: Sequence[Geometry]) -> dict[str, Tensor]:
        """Pooled features (2B,C), view by view -> `global`, `negatives` and `similarity`.

        Raises ValueError when the step holds a single scan.
        """
        if len(batch) * world_size() < 2:
            raise ValueError("data.batch_size: LocalContrast compares the scans of a step, and this one has 1; use 2")
        embedded = wide(self.global_head(pooled)).unflatten(0, (2, -1)).transpose(0, 1)
        z = torch.stack([centre_height(batch, geometry) for geometry in geometries], dim=1)
        with torch.autocast(embedded.device.type, enabled=False):
            found = position_contrast(embedded, z, self.pairs, self.temperature, self.sigma, self.parts)
        return {"global": found["loss"], "negatives": found["negatives"], "similarity": found["similarity"]}

    def compare_places(
        self, decoded: Tensor, batch: RegionBatch, views: Sequence[RegionBatch], geometries: Sequence[Geometry]
    ) -> dict[str, Tensor]:
        """Decoder features (2B,C,d,h,w), view by view -> `local` and `matched_share`."""
        points = self.sampler.match(views, geometries)
        halves = zip(decoded.chunk(2), (points.first, points.second))
        regions = torch.stack([features_at(half, where, self.stride).flatten(2) for half, where in halves], dim=1)
        embedded = wide(self.local_head(regions))  # (B,2,K,F)
        across = self.across(batch, points, geometries) if self.local_pairs == "LD" else None
        with torch.autocast(embedded.device.type, enabled=False):
            loss = place_contrast(
                embedded, points.matched, points.source * batch.spacing[:, None], self.temperature, self.nearest,
                self.min_distance, across,
            )  # fmt: skip
        return {"local": loss, "matched_share": points.matched.float().mean()}

    def across(self, batch: RegionBatch, points: MatchedPoints, geometries: Sequence[Geometry]) -> Tensor:
        """(B, 2K, all ranks' B*2K): how much a place is also that place of another sample (LD)."""
        size, count = points.matched.shape
        matched = gather(points.matched.float())
        weight = points.matched.float()[:, :, None, None] * matched  # (B,K,all B,K)
        weight *= other_samples(size, matched.device)[:, None, :, None]
        if self.parts:
            z = centre_height(batch, geometries[0])
            weight *= same_part(z, gather(z), self.parts)[:, None, :, None]
            weight *= torch.eye(count, device=weight.device)[None, :, None, :]
        else:
            place = normalised(batch, points.source)
            weight *= alike(place.flatten(0, 1), gather(place).flatten(0, 1), self.sigma).view(weight.shape)
        # Published pairs are of one view; soft ones of any.
        views = torch.eye(2, device=weight.device) if self.parts else torch.ones((2, 2), device=weight.device)
        both = weight[:, None, :, :, None, :] * views[None, :, None, None, :, None]
        return both.flatten(3).flatten(1, 2)


def check_values(positive: Mapping[str, float], at_least: Mapping[str, tuple[float, float]], region: int) -> None:
    """Raise ValueError naming the key of a number out of its range."""
    for key, value in positive.items():
        if value <= 0:
            raise ValueError(f"{key}={value}: must be positive")
    for key, (value, low) in at_least.items():
        if value < low:
            raise ValueError(f"{key}={value}: at least {low}")
    if region < 1 or region % 2 == 0:
        raise ValueError(f"region={region}: cells on an edge around a centre, so odd: 1 or 3")


def normalised(batch: RegionBatch, points: Tensor) -> Tensor:
    """(B,K,3) voxels of the batch's regions -> 0 to 1 between the outer faces of their volumes (beyond in padding)."""
    return (points + batch.start[:, None].to(points) + 0.5) / batch.volume_shape[:, None].to(points)


def centre_height(batch: RegionBatch, geometry: Geometry) -> Tensor:
    """(B,): where along its volume's first axis (inferior to superior) the centre of a view lies, 0 to 1."""
    centre = torch.tensor([[(n - 1) / 2 for n in geometry.size]]).expand(len(batch), 1, 3)
    source = geometry.to_source(centre.to(geometry.matrix.device, non_blocking=True))
    return normalised(batch, source)[:, 0, 0].clamp(0, 1)
