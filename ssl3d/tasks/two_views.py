"""What SimCLR and VICReg share: two augmented views of every sample, embedded by the backbone and a projector."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl3d.augment import Compose
from ssl3d.losses.dense import wide
from ssl3d.losses.gather import gather
from ssl3d.models.backbone import Backbone
from ssl3d.models.projector import Projector
from ssl3d.regions import RegionBatch, RegionSpec
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import freeze_all_but


class TwoViews(PretextTask):
    """Draws two views of each sample and embeds both; subclasses write `compare`.

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
        if augment.spatial is None and not augment.intensity:
            raise ValueError("augment: without a transform both views are the same image; list some transforms")
        self.augment = augment
        self.region = RegionSpec(augment.reach(self.input_size))
        freeze_all_but(backbone, backbone.pool_parameter_names())
        self.projector = Projector(backbone.pool_channels, hidden_dim, out_dim, layers)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, `similarity` (mean cosine of the two views), `valid_share`."""
        views = [self.augment(batch, self.input_size, view)[0] for view in (0, 1)]
        # One pass for both views: half the launches, and the same statistics for both in networks that keep any.
        images = torch.cat([view.image for view in views])
        embedded = wide(self.projector(self.backbone.pool(self.backbone.encode(images))))
        first, second = (gather(half.contiguous()) for half in embedded.chunk(2))
        with torch.autocast(embedded.device.type, enabled=False):
            loss = self.compare(first, second)
            similarity = torch.cosine_similarity(first.detach(), second.detach()).mean()
        valid = torch.cat([view.valid_mask() for view in views]).float().mean()
        result = {"loss": loss, "similarity": similarity, "valid_share": valid}
        if preview:
            for name, view in zip(("first", "second"), views):
                result[f"preview/{name}"] = grey(view.image[:, 0, view.size[0] // 2])
        return result

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Embeddings (B, out_dim) of the two views, of all ranks -> loss."""
        raise NotImplementedError
