"""What SimCLR, VICReg and GraphMatching share: two augmented views of every sample, through backbone and projector."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl3d.augment import Compose, check_differ
from ssl3d.losses.dense import wide
from ssl3d.losses.gather import gather
from ssl3d.losses.standardised import standardised_rows
from ssl3d.models.backbone import Backbone
from ssl3d.models.projector import Projector
from ssl3d.regions import RegionBatch, RegionSpec
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import freeze_all_but


class TwoViews(PretextTask):
    """Draws two views of each sample and embeds both; subclasses write `compare`, or `scores` where they need more.

    `augment` must differ from one view to the next: give its SpatialTransform a `shift`, so that views are crops of
    their own. The backbone's decoder is not trained.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    spans_batch = True
    passes = 2

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        augment: Compose,
        hidden_dim: int,
        out_dim: int,
        layers: int,
    ) -> None:
        super().__init__()
        for key, value in (("hidden_dim", hidden_dim), ("out_dim", out_dim)):
            if value < 1:
                raise ValueError(f"{key}={value}: at least 1")
        self.backbone = backbone
        self.input_size = as_size3("patch_size", patch_size)
        check_takes(backbone, self.input_size, "patch_size")
        check_differ(augment, "both views")
        self.augment = augment
        self.region = RegionSpec(augment.reach(self.input_size))
        freeze_all_but(backbone, backbone.pool_parameter_names())
        self.projector = Projector(backbone.pool_channels, hidden_dim, out_dim, layers)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> what `scores` says, and `valid_share`; with `preview` also a slice of both views."""
        views = [self.augment(batch, self.input_size, view)[0] for view in (0, 1)]
        # One pass for both views: half the launches, and the same statistics for both in networks that keep any.
        features = self.backbone.encode(torch.cat([view.image for view in views]))
        result = self.scores(views, features)
        result["valid_share"] = torch.cat([view.valid_mask() for view in views]).float().mean()
        if preview:
            for name, view in zip(("first", "second"), views):
                result[f"preview/{name}"] = grey(view.image[:, 0, view.size[0] // 2])
        return result

    def scores(self, views: list[RegionBatch], features: list[Tensor]) -> dict[str, Tensor]:
        """Encoder features of both views, the first view's samples first -> loss, `similarity` (mean cosine)."""
        embedded = self.embed(features)
        first, second = (gather(half.contiguous()) for half in embedded.chunk(2))
        with torch.autocast(embedded.device.type, enabled=False):
            loss = self.compare(first, second)
            similarity = torch.cosine_similarity(first.detach(), second.detach()).mean()
        return {"loss": loss, "similarity": similarity}

    def embed(self, features: list[Tensor]) -> Tensor:
        """Encoder features (rows: views of scans) -> (rows, out_dim), from pooled features standardised over all."""
        return wide(self.projector(standardised_rows(wide(self.backbone.pool(features)))))

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Embeddings (B, out_dim) of the two views, of all ranks -> loss."""
        raise NotImplementedError
