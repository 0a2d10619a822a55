"""Models Genesis: undo corruptions of appearance, texture and context.

Source: Zhou et al., "Models Genesis", Medical Image Analysis 2021, sections 3.1 and 3.2 and table 2 (probabilities).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl3d.augment import Compose, centre_crop
from ssl3d.augment.transform import check_probability
from ssl3d.losses.masked import masked_mse
from ssl3d.models.backbone import Backbone
from ssl3d.models.heads import VoxelHead
from ssl3d.regions import RegionBatch, RegionSpec
from ssl3d.seeding import torch_generators
from ssl3d.tasks.corruptions import inpaint, nonlinear, outpaint, shuffle_locally
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.task import PretextTask, check_takes


class ModelsGenesis(PretextTask):
    """Rebuilds a patch from a corrupted copy of it; L2 in [0, 1] on all valid voxels.

    The clipped intensities are mapped to [0, 1] (0 the batch's `low`, 1 its `high`), corrupted there, and mapped back
    to normalised units before the network sees them: unlike the published code, what it is trained on has the range
    of what it is fine-tuned on. `p_shuffle`, `p_nonlinear`, `p_paint`: chance of each corruption; `p_outpaint`: share
    of out-painting among the painted. `augment`: applied before (the paper flips with 0.4).
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        p_nonlinear: float = 0.9,
        p_shuffle: float = 0.5,
        p_paint: float = 0.9,
        p_outpaint: float = 0.8,
        augment: Compose | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_size = as_size3("patch_size", patch_size)
        self.p_nonlinear = check_probability("p_nonlinear", p_nonlinear)
        self.p_shuffle = check_probability("p_shuffle", p_shuffle)
        self.p_paint = check_probability("p_paint", p_paint)
        self.p_outpaint = check_probability("p_outpaint", p_outpaint)
        check_takes(backbone, self.input_size, "patch_size")
        if not backbone.decoder_channels:
            raise ValueError(f"task ModelsGenesis: {type(backbone).__name__} has no decoder to rebuild the image with")
        self.augment = augment
        self.region = RegionSpec(augment.reach(self.input_size) if augment else self.input_size)
        self.needs_decoder = True
        self.rebuild: nn.Module = VoxelHead(backbone.decoder_channels[0], backbone.in_channels)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, `corrupted_error` (that of the corrupted image itself) and `valid_share`."""
        batch, _ = (self.augment or centre_crop)(batch, self.input_size)
        target = to_unit(batch)
        corrupted = self.corrupt(target, batch.seed)
        decoded = self.backbone.decode(self.backbone.encode(from_unit(corrupted, batch)))[:1]
        prediction = self.rebuild(decoded, batch.size).sigmoid()
        valid = batch.valid_mask()
        result = {
            "loss": masked_mse(prediction, target, valid),
            "corrupted_error": masked_mse(corrupted, target, valid),
            "valid_share": valid.float().mean(),
        }
        if preview:
            middle = batch.size[0] // 2
            for name, x in (("input", target), ("corrupted", corrupted), ("rebuilt", prediction.detach())):
                result[f"preview/{name}"] = x[:, 0, middle].float()
        return result

    @torch.no_grad()
    def corrupt(self, image: Tensor, seeds: Tensor) -> Tensor:
        """(B,C,D,H,W) in [0, 1] -> a corrupted copy in [0, 1]; each sample a function of its own seed."""
        out = []
        for sample, generator in zip(image, torch_generators(seeds, "genesis")):
            u = torch.rand(4, generator=generator).tolist()
            if u[0] < self.p_shuffle:
                sample = shuffle_locally(sample, generator)
            if u[1] < self.p_nonlinear:
                sample = nonlinear(sample, generator)
            if u[2] < self.p_paint:
                sample = (outpaint if u[3] < self.p_outpaint else inpaint)(sample, generator)
            out.append(sample)
        return torch.stack(out)


def _columns(batch: RegionBatch) -> tuple[Tensor, Tensor]:
    """(B,C,1,1,1) of the normalised `low`, and of the span from it to `high`."""
    low, high = ((v - batch.mean) / batch.std for v in (batch.low, batch.high))
    low, span = (v.to(batch.image.dtype)[:, :, None, None, None] for v in (low, (high - low).clamp(min=1e-6)))
    return low, span


def to_unit(batch: RegionBatch) -> Tensor:
    """Normalised values -> [0, 1], 0 at the clip's low end and 1 at its high end."""
    low, span = _columns(batch)
    return ((batch.image - low) / span).clamp(0, 1)


def from_unit(x: Tensor, batch: RegionBatch) -> Tensor:
    """[0, 1] -> normalised values, the inverse of `to_unit` within the clip."""
    low, span = _columns(batch)
    return x * span + low
