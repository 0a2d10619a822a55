"""JointClustering: slabs of a scan and the scan as a whole are assigned to the same prototypes, and have to agree.

Sources: Nguyen et al., "Joint self-supervised image-volume representation learning with intra-inter contrastive
clustering", AAAI 2023, arXiv 2212.01893 (slices, attention over them, agreement, masked embeddings); Caron et al.,
"SwAV", NeurIPS 2020 (balanced assignments). Ours differs: slices are slabs, which a 3D backbone encodes one by one;
attention is plain, not deformable; and slabs of two views are matched through the geometry.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.augment import Compose, check_differ
from ssl3d.augment.spatial import on_device
from ssl3d.augment.transform import check_probability
from ssl3d.losses.clusters import LEAST_EPSILON, assignment_cost, mean_of_costs, mean_where
from ssl3d.losses.dense import wide
from ssl3d.losses.sinkhorn import sinkhorn
from ssl3d.losses.standardised import standardised_rows
from ssl3d.models.backbone import Backbone
from ssl3d.models.projector import Projector
from ssl3d.regions import Geometry, RegionBatch, RegionSpec, Size3
from ssl3d.seeding import torch_generators
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.slabs import SlabAttention, cut, draw_hidden, same_slab, usable
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import freeze_all_but

PIXELS = 8  # of a picture, an assignment


class JointClustering(PretextTask):
    """Two views of a stack of `slices` slabs: each slab predicts its other view's assignment, the whole that of all.

    `crop_size`: voxels (D,H,W) of a slab, what the backbone sees; slices * D x H x W are read. `augment` makes views.
    Slabs are embedded one by one (pooled features and a projector) and scored against `prototypes` by cosine. Codes are
    balanced over the slabs of all ranks (`epsilon`, `iterations`: of Sinkhorn's); predictions have a `temperature`.
    Attention of `depth` layers and `heads` over a view's slabs gives the whole stack's embedding: it predicts the mean
    code of the other view's slabs, weighted `agreement_weight`. And `hidden_share` of the slabs' embeddings are hidden
    and predicted from the others, by cosine, weighted `hidden_weight`.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    spans_batch = True

    def __init__(
        self,
        backbone: Backbone,
        crop_size: int | tuple[int, int, int],
        augment: Compose,
        slices: int = 6,
        prototypes: int = 128,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        agreement_weight: float = 1.0,
        hidden_share: float = 0.3,
        hidden_weight: float = 1.0,
        depth: int = 2,
        heads: int = 4,
        hidden_dim: int = 2048,
        out_dim: int = 128,
    ) -> None:
        super().__init__()
        self.backbone, self.augment = backbone, augment
        self.input_size = as_size3("crop_size", crop_size)
        check_takes(backbone, self.input_size, "crop_size")
        at_least = {
            "slices": (slices, 2), "prototypes": (prototypes, 2), "iterations": (iterations, 1), "depth": (depth, 1),
            "heads": (heads, 1), "hidden_dim": (hidden_dim, 1), "agreement_weight": (agreement_weight, 0),
            "hidden_weight": (hidden_weight, 0), "epsilon": (epsilon, LEAST_EPSILON),
        }  # fmt: skip
        for key, (value, low) in at_least.items():
            if value < low:
                raise ValueError(f"{key}={value}: at least {low}")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be positive")
        if out_dim < 1 or out_dim % heads:
            raise ValueError(f"out_dim={out_dim}: must be a multiple of heads={heads}")
        check_differ(augment, "both views")
        self.hidden_share = check_probability("hidden_share", hidden_share)
        self.slices, self.temperature, self.epsilon, self.iterations = slices, temperature, epsilon, iterations
        self.agreement_weight, self.hidden_weight = agreement_weight, hidden_weight
        self.region = RegionSpec(augment.reach(self.placed_size))
        self.passes = 2 * slices
        freeze_all_but(backbone, backbone.pool_parameter_names())
        self.projector = Projector(backbone.pool_channels, hidden_dim, out_dim)
        self.prototypes = nn.Parameter(F.normalize(torch.randn((prototypes, out_dim)), dim=1))
        self.attention = SlabAttention(out_dim, slices, depth, heads)
        self.predict = nn.Linear(out_dim, out_dim)

    @property
    def placed_size(self) -> Size3:
        """The whole stack is what is placed in a volume, not the slab."""
        depth, height, width = self.input_size
        return (self.slices * depth, height, width)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, its three terms, `matched_share` and `prototypes_used`; pictures."""
        views, geometries = zip(*(self.augment(batch, self.placed_size, view) for view in (0, 1)))
        images = torch.cat([cut(view.image, self.slices) for view in views])
        seen = torch.stack([usable(view.valid_mask(), self.slices) for view in views])
        pooled = wide(self.backbone.pool(self.backbone.encode(images))).unflatten(0, seen.shape)
        embedded = F.normalize(wide(self.projector(standardised_rows(pooled, seen))), dim=-1)
        wholes = torch.stack([F.normalize(wide(self.attention(z, s)[0]), dim=-1) for z, s in zip(embedded, seen)])
        hidden = self.hidden_cost(embedded, seen, batch.seed)
        with torch.autocast(images.device.type, enabled=False):
            scores, whole_scores = (self.scores(x) for x in (embedded, wholes))
            codes = [sinkhorn(x.flatten(0, 1), self.epsilon, self.iterations).view_as(x) for x in scores]
            slices, matched = self.slice_cost(scores, codes, seen, geometries)
            agreement = self.agreement_cost(whole_scores, codes, seen)
        result = {
            "loss": slices + self.agreement_weight * agreement + self.hidden_weight * hidden,
            "slices": slices.detach(),
            "agreement": agreement.detach(),
            "hidden": hidden.detach(),
            "matched_share": matched,
            "prototypes_used": self.share_used(scores.detach()),
            "valid_share": torch.cat([view.valid_mask() for view in views]).float().mean(),
        }
        if preview:
            result |= self.pictures(views[0], codes[0], whole_scores[0].detach())
        return result

    def scores(self, embedded: Tensor) -> Tensor:
        """Unit embeddings (...,F) -> cosines (...,K) with the prototypes, which keep no length of their own."""
        return embedded @ F.normalize(self.prototypes.to(embedded.dtype), dim=1).T

    def slice_cost(
        self, scores: Tensor, codes: list[Tensor], seen: Tensor, geometries: tuple[Geometry, ...]
    ) -> tuple[Tensor, Tensor]:
        """Scores (2,B,S,K) and codes -> mean cost of the same slab's code in the other view; matched share."""
        costs, shares = [], []
        for view, other in ((0, 1), (1, 0)):
            index, inside = same_slab(self.input_size, self.slices, geometries[view], geometries[other])
            wanted = codes[other].gather(1, index[..., None].expand_as(codes[other]))
            both = inside & seen[view] & seen[other].gather(1, index)
            costs.append(mean_of_costs(assignment_cost(scores[view], wanted, self.temperature), both))
            shares.append(both.float().mean())
        return torch.stack(costs).mean(), torch.stack(shares).mean()

    def agreement_cost(self, whole_scores: Tensor, codes: list[Tensor], seen: Tensor) -> Tensor:
        """Scores (2,B,K) of the stacks -> mean cost of predicting the mean code of the other view's slabs."""
        costs = []
        for view, other in ((0, 1), (1, 0)):
            wanted = mean_where(codes[other], seen[other])
            some = seen[other].any(1, keepdim=True) & seen[view].any(1, keepdim=True)
            cost = assignment_cost(whole_scores[view], wanted, self.temperature)[:, None]
            costs.append(mean_of_costs(cost, some))
        return torch.stack(costs).mean()

    def hidden_cost(self, embedded: Tensor, seen: Tensor, seeds: Tensor) -> Tensor:
        """Unit embeddings (2,B,S,F) -> mean of 1 - cosine between hidden slabs, held fixed, and their predictions."""
        costs = []
        for view, (unit, whole) in enumerate(zip(embedded, seen)):
            drawn = draw_hidden(self.hidden_share, self.slices, torch_generators(seeds, "hidden", view))
            hidden = on_device(drawn, unit.device)
            predicted = wide(self.predict(self.attention(unit, whole, hidden)[1]))
            with torch.autocast(unit.device.type, enabled=False):
                cosine = (F.normalize(predicted, dim=-1) * unit.detach()).sum(-1)
                costs.append(mean_of_costs(1 - cosine, hidden & whole))
        return torch.stack(costs).mean()

    def share_used(self, scores: Tensor) -> Tensor:
        """Scores (2,B,S,K) -> the share of prototypes that are some slab's nearest; this rank's slabs alone."""
        used = torch.zeros(scores.shape[-1], device=scores.device)
        return used.scatter(0, scores.argmax(-1).flatten(), 1.0).mean()

    def pictures(self, view: RegionBatch, codes: Tensor, whole_scores: Tensor) -> dict[str, Tensor]:
        """(B,H,W) in [0,1]: a coronal slice of the first view, and a row of assignments for each slab and the whole."""
        whole = (whole_scores / self.temperature).softmax(-1)[:, None]
        rows = torch.cat([codes, whole], dim=1)
        rows = rows / rows.amax(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        stack = grey(view.image[:, 0, :, view.size[1] // 2])
        return {
            "preview/stack": stack,
            "preview/assignments": rows.repeat_interleave(PIXELS, 1).repeat_interleave(PIXELS, 2).clamp(0, 1).float(),
        }
