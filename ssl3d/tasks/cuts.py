"""CUTS: within one image, a patch is like a similar one near to it and unlike the others; and it can be drawn again.

Source: Liu et al., "CUTS: a deep learning and topological framework for multigranular unsupervised medical image
segmentation", MICCAI 2024, arXiv 2209.11359, on 2D images. Ours differs: patches are 3D and distances in millimetres,
features come from the decoder of any backbone, and every anchor has a cost of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl3d.augment import Compose, centre_crop
from ssl3d.losses.contrast import contrast
from ssl3d.losses.dense import mean_of_samples, wide
from ssl3d.models.backbone import Backbone
from ssl3d.regions import RegionBatch, RegionSpec
from ssl3d.tasks.condensation import coarsest_with, condense
from ssl3d.tasks.grey import grey
from ssl3d.tasks.local_patches import PatchPairs, PatchPairSampler, distances, grid_of, patches_at
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.matched_points import features_at
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.tokens import decoder_parameter_names, freeze_all_but

CLUSTERS = {"fine": 16, "medium": 6, "coarse": 3}  # the least that a picture of that name shows
MOST = 24  # places on an edge of the slice that is clustered


class CUTS(PretextTask):
    """Contrast of patches within an image, weighted `contrast_weight`, and their reconstruction, weighted the rest.

    `anchors` random places of a sample are embedded: the decoder's finest features there, through one linear layer of
    `out_dim`. A place's positive is the first of `candidates` random places up to `near` mm away whose patch of
    `local_patch` voxels (odd) has a structural similarity (SSIM) of at least `similar`; its negatives are the other
    anchors and their positives further away than `near`. Anchors without a positive are only rebuilt: a linear layer
    draws each anchor's patch from its embedding, L2 in normalised units. `temperature`: of the contrast. `augment`:
    applied once, before anything is compared.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    needs_decoder = True

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        local_patch: int | tuple[int, int, int] = 5,
        anchors: int = 32,
        candidates: int = 10,
        near: float = 5.0,
        similar: float = 0.5,
        contrast_weight: float = 0.001,
        temperature: float = 0.5,
        out_dim: int = 128,
        augment: Compose | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.augment = backbone, augment
        self.input_size = as_size3("patch_size", patch_size)
        self.local_patch = as_size3("local_patch", local_patch)
        if any(n % 2 == 0 for n in self.local_patch):
            raise ValueError(f"local_patch={local_patch}: voxels around a centre, so odd: 3, 5, or [3, 5, 5]")
        if any(n > size for n, size in zip(self.local_patch, self.input_size)):
            raise ValueError(f"local_patch={local_patch}: does not fit the patch {list(self.input_size)}")
        for key, value, low in (("anchors", anchors, 2), ("candidates", candidates, 1), ("out_dim", out_dim, 1)):
            if value < low:
                raise ValueError(f"{key}={value}: at least {low}")
        for key, number in (("near", near), ("temperature", temperature)):
            if number <= 0:
                raise ValueError(f"{key}={number}: must be positive")
        if not 0 <= contrast_weight <= 1:
            raise ValueError(f"contrast_weight={contrast_weight}: a share of the loss, 0 to 1")
        if not -1 <= similar <= 1:
            raise ValueError(f"similar={similar}: an SSIM, -1 to 1")
        check_takes(backbone, self.input_size, "patch_size")
        if not backbone.decoder_channels:
            raise ValueError(f"task CUTS: {type(backbone).__name__} has no decoder to embed places with")
        self.region = RegionSpec(augment.reach(self.input_size) if augment else self.input_size)
        self.near, self.contrast_weight, self.temperature = near, contrast_weight, temperature
        self.sampler = PatchPairSampler(self.input_size, self.local_patch, anchors, candidates, near, similar)
        freeze_all_but(backbone, decoder_parameter_names(backbone, self.input_size, 0))
        voxels = self.local_patch[0] * self.local_patch[1] * self.local_patch[2]
        self.embed = nn.Linear(backbone.decoder_channels[0], out_dim)
        self.rebuild = nn.Linear(out_dim, backbone.in_channels * voxels)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, `contrast` and `rebuilt` of it, `paired_share` (of anchors) and `valid_share`."""
        batch, _ = (self.augment or centre_crop)(batch, self.input_size)
        decoded = self.backbone.decode(self.backbone.encode(batch.image))[0]
        pairs = self.sampler.pairs(batch)
        anchors, partners = (self.embed_at(decoded, places) for places in (pairs.anchor, pairs.partner))
        target = patches_at(batch.image, pairs.anchor, self.local_patch).flatten(2)
        rebuilt = wide(self.rebuild(anchors))
        with torch.autocast(decoded.device.type, enabled=False):
            error = mean_of_samples((rebuilt - target).square(), pairs.seen[..., None])
            apart = self.contrast_pairs(anchors, partners, pairs, batch.spacing)
        result = {
            "loss": self.contrast_weight * apart + (1 - self.contrast_weight) * error,
            "contrast": apart.detach(),
            "rebuilt": error.detach(),
            "paired_share": pairs.paired.float().mean(),
            "valid_share": batch.valid_mask().float().mean(),
        }
        if preview:
            result |= self.pictures(batch, decoded)
        return result

    def embed_at(self, decoded: Tensor, places: Tensor) -> Tensor:
        """Decoder features (B,C,d,h,w) and voxels (B,K,3) of the image -> embeddings (B,K,F), at least float32."""
        return wide(self.embed(features_at(decoded, places, self.backbone.decoder_strides[0])))

    def contrast_pairs(self, anchors: Tensor, partners: Tensor, pairs: PatchPairs, spacing: Tensor) -> Tensor:
        """Embeddings (B,K,F) of anchors and partners -> mean over samples of the mean cost of their paired anchors."""
        places = torch.cat([pairs.partner, pairs.anchor], dim=1)
        there = nn.functional.normalize(torch.cat([partners, anchors], dim=1), dim=-1)
        similarity = nn.functional.normalize(anchors, dim=-1) @ there.transpose(1, 2) / self.temperature
        count = anchors.shape[1]
        own = torch.eye(count, 2 * count, dtype=torch.bool, device=anchors.device)
        counted = torch.cat([pairs.paired, pairs.seen], dim=1)[:, None]
        further = distances(pairs.anchor, places, spacing) > self.near  # its own partner and itself never are
        costs = contrast(similarity, own & pairs.paired[..., None], further & counted)
        return (costs.sum(1) / pairs.paired.sum(1).clamp(min=1)).mean()

    @torch.no_grad()
    def pictures(self, batch: RegionBatch, decoded: Tensor) -> dict[str, Tensor]:
        """Middle axial slices (B,H,W) in [0,1]: the image, and its clusters at three scales in their mean greys."""
        _, height, width = batch.size
        level = batch.size[0] // 2
        rows, columns = grid_of((height, width), MOST)
        plane = torch.stack(torch.meshgrid(torch.tensor([level]), rows, columns, indexing="ij"), dim=-1).flatten(0, 2)
        places = plane.to(decoded.device).expand(len(batch), -1, 3)
        embedded = nn.functional.normalize(self.embed_at(decoded, places), dim=-1).double().cpu()
        shown = grey(batch.image[:, 0, level])
        found = {name: shown.clone() for name in CLUSTERS}
        nearest = [(torch.arange(n)[:, None] - at).abs().argmin(1) for n, at in ((height, rows), (width, columns))]
        for sample, points in enumerate(embedded):
            partitions = condense(points.numpy())
            for name, clusters in CLUSTERS.items():
                labels = torch.from_numpy(coarsest_with(partitions, clusters)).unflatten(0, (len(rows), len(columns)))
                label = labels[nearest[0]][:, nearest[1]].flatten().to(shown.device)
                total = torch.zeros(int(labels.max()) + 1, device=shown.device)
                sums = total.scatter_add(0, label, shown[sample].flatten())
                sizes = total.scatter_add(0, label, torch.ones_like(shown[sample]).flatten())
                found[name][sample] = (sums / sizes.clamp(min=1))[label].unflatten(0, (height, width))
        return {"preview/image": shown} | {f"preview/clusters_{name}": x for name, x in found.items()}
