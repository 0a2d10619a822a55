"""LeJEPA: views of a scan agree, and embeddings of all scans look like one Gaussian; no teacher, no negatives, no mask.

Source: Balestriero and LeCun, "LeJEPA: provable and scalable self-supervised learning without the heuristics", arXiv
2511.08544 (both terms from lightly: SIGReg and the distance from the mean of the views). Its projector has batch norm;
ours standardises what enters it over all views and scans of all ranks, so that the loss is the same on any number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl3d.augment import Compose, check_differ
from ssl3d.losses.dense import wide
from ssl3d.losses.gather import gather, world_size
from ssl3d.losses.standardised import standardised
from ssl3d.models.backbone import Backbone
from ssl3d.models.projector import Projector
from ssl3d.regions import RegionBatch, RegionSpec
from ssl3d.seeding import global_stream, mix
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import freeze_all_but


class LeJEPA(PretextTask):
    """Distance of `views` embeddings of a scan from their mean, and SIGReg over the scans of all ranks.

    SIGReg projects the embeddings of a view on `directions` random directions and compares each with a standard normal
    by its characteristic function, at `knots` frequencies up to `highest`. Loss: `sigreg_weight` of SIGReg and the
    rest of the distance. `augment` makes the views, crops of their own when its SpatialTransform has a `shift`; all are
    of `patch_size` (the source adds smaller ones). The backbone's decoder is not trained. `hidden_dim`, `out_dim`: of
    the projector. At least two scans a step are needed; with few, directions are compared with few points.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    spans_batch = True

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        augment: Compose,
        views: int = 2,
        sigreg_weight: float = 0.05,
        directions: int = 1024,
        knots: int = 17,
        highest: float = 3.0,
        hidden_dim: int = 2048,
        out_dim: int = 128,
    ) -> None:
        from lightly.loss.lejepa_loss import SIGReg  # a second of imports that no other method needs

        super().__init__()
        at_least = {"views": (views, 2), "directions": (directions, 1), "knots": (knots, 2)}
        for key, (value, low) in (at_least | {"hidden_dim": (hidden_dim, 1), "out_dim": (out_dim, 1)}).items():
            if value < low:
                raise ValueError(f"{key}={value}: at least {low}")
        if not 0 <= sigreg_weight <= 1:
            raise ValueError(f"sigreg_weight={sigreg_weight}: the share of SIGReg in the loss, from 0 to 1")
        if highest <= 0:
            raise ValueError(f"highest={highest}: must be positive")
        self.backbone, self.augment = backbone, augment
        self.input_size = as_size3("patch_size", patch_size)
        check_takes(backbone, self.input_size, "patch_size")
        check_differ(augment, "all views")
        self.region = RegionSpec(augment.reach(self.input_size))
        self.views, self.weight, self.passes = views, sigreg_weight, views
        freeze_all_but(backbone, backbone.pool_parameter_names())
        self.projector = Projector(backbone.pool_channels, hidden_dim, out_dim, layers=3)
        self.sigreg = SIGReg(knots=knots, t_max=highest, num_vectors=directions)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, `sigreg` and `distance` of it, `feature_std`, `valid_share`.

        `feature_std`: of an embedding's features over the scans of the step, 1 when they are as asked, 0 collapsed.
        Raises ValueError on a step of a single scan.
        """
        views = [self.augment(batch, self.input_size, view)[0] for view in range(self.views)]
        images = torch.cat([view.image for view in views])
        pooled = wide(self.backbone.pool(self.backbone.encode(images)))
        # (all ranks' B, V, F): a rank's rows of every view together, so that they are gathered at once
        everyone = gather(pooled.unflatten(0, (self.views, -1)).transpose(0, 1).contiguous())
        embedded = wide(self.projector(standardised(everyone, (0, 1)))).transpose(0, 1)
        # From the device they come back by waiting for it: on one rank they stay where they are.
        seeds = batch.seed if world_size() == 1 else gather(batch.seed.to(embedded.device))
        with torch.autocast(embedded.device.type, enabled=False):
            regularity, distance = self.terms(embedded, seeds)
        valid = torch.cat([view.valid_mask() for view in views]).float().mean()
        result = {
            "loss": self.weight * regularity + (1 - self.weight) * distance,
            "sigreg": regularity.detach(),
            "distance": distance.detach(),
            "feature_std": embedded.detach().std(1, correction=0).mean(),
            "valid_share": valid,
        }
        if preview:
            for number, view in enumerate(views):
                result[f"preview/view {number + 1}"] = grey(view.image[:, 0, view.size[0] // 2])
        return result

    def terms(self, embedded: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (V,B,F) and seeds (B,) of all ranks -> SIGReg, and the mean squared distance from their mean."""
        from lightly.loss.lejepa_loss import lejepa_invariance_loss

        if embedded.shape[1] < 2:
            raise ValueError(
                f"data.batch_size: LeJEPA compares the scans of a step, and this one has 1 on {world_size()} rank(s): "
                "use at least 2"
            )
        # lightly draws its directions globally: here from the samples, whatever their order, so that all ranks agree.
        seed = mix(sum(seeds.tolist()), "directions")
        with global_stream(embedded.device, seed):
            regularity = self.sigreg(embedded)
        return regularity, lejepa_invariance_loss(all_proj=embedded, global_proj=embedded)
