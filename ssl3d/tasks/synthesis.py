"""Randomised synthesis: random anatomy painted in two random contrasts, in which the same tissue is to look the same.

Source: Dey et al., "Learning general-purpose biomedical volume representations using randomized synthesis" (anatomix),
ICLR 2025, section 3. Ours differs: label maps are drawn anew for every step and on its device instead of 120,000 kept
ones, heads have LayerNorm instead of BatchNorm, so that samples and ranks do not mix, and rare labels are compared more
often than their volume says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ssl3d.augment import Compose, centre_crop
from ssl3d.losses.voxel_contrast import voxel_contrast
from ssl3d.models.backbone import Backbone
from ssl3d.models.projector import Projector
from ssl3d.regions import RegionBatch, RegionSpec, Size3
from ssl3d.seeding import device_generator, numpy_generator, torch_generators
from ssl3d.synth import Look, Scene
from ssl3d.synth.scene import COUNT, SIDES, compact, voxel_edges
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.task import PretextTask, check_takes

MOST_LABELS = COUNT[1] + SIDES


class Synthesis(PretextTask):
    """Contrasts voxels of two images of one label map, by label, at every scale of the decoder and the scales below.

    `labels`: `shapes` draws a random map for every sample, and needs no data (whatever data.store names, nothing of it
    is read; `synthetic` needs none); `store` paints the label maps of a labelled store. `artefacts`: intensity
    transforms of each view; with `labels: store` its SpatialTransform moves the map, once for both views.
    `voxels`: compared at each scale, drawn alike for both views; `balance`: a label is drawn in proportion to its
    number of voxels to the power of 1 - balance, so that 0 is as published and with 1 all labels are as likely: what
    keeps the background from being most of what is compared. `temperature`; `hidden_dim`, `out_dim`: of the heads, a
    perceptron of three layers for each scale.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    passes = 2
    needs_decoder = True

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        labels: Literal["shapes", "store"] = "shapes",
        artefacts: Compose | None = None,
        voxels: int = 512,
        balance: float = 0.5,
        temperature: float = 0.33,
        hidden_dim: int = 256,
        out_dim: int = 256,
    ) -> None:
        super().__init__()
        for key, value, least in (("voxels", voxels, 2), ("hidden_dim", hidden_dim, 1), ("out_dim", out_dim, 1)):
            if value < least:
                raise ValueError(f"{key}={value}: at least {least}")
        if not 0 <= balance <= 1:
            raise ValueError(f"balance={balance}: from 0 (as often as its voxels) to 1 (all labels alike)")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be positive")
        self.backbone, self.artefacts = backbone, artefacts or Compose()
        self.input_size = as_size3("patch_size", patch_size)
        check_takes(backbone, self.input_size, "patch_size")
        if labels == "shapes" and self.artefacts.spatial is not None:
            raise ValueError("artefacts: labels=shapes are random as they are; leave the SpatialTransform out")
        self.labels, self.voxels, self.balance, self.temperature = labels, voxels, balance, temperature
        size = self.artefacts.reach(self.input_size)
        self.region = RegionSpec(size, images=False, labels=labels == "store")
        self.channels, self.strides = compared_scales(backbone)
        self.heads = nn.ModuleList(Projector(c, hidden_dim, out_dim, layers=3) for c in self.channels)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss (mean over the scales), `loss_0` of each scale and so on, `matched`, `labels`."""
        label, valid, counts = self.label_maps(batch)
        views = [self.view(batch, label, valid, counts, number) for number in (0, 1)]
        features = self.features(torch.cat(views))
        found = []
        for scale, (x, stride, head) in enumerate(zip(features, self.strides, self.heads)):
            named, usable = at_centres(label, stride), at_centres(valid, stride)
            where, chosen = self.draw(batch.seed, named, usable, max(counts), scale)
            halves = [take(half, where) for half in x.chunk(2)]
            embedded = torch.stack([head(half) for half in halves], dim=1)
            found.append(voxel_contrast(embedded, named.gather(1, where), chosen, self.temperature))
        result = {"loss": torch.stack([f.loss for f in found]).mean()}
        result |= {f"loss_{scale}": f.loss.detach() for scale, f in enumerate(found)}
        result["matched"] = torch.stack([f.matched for f in found]).mean()
        result["labels"] = (label.flatten(1).amax(1) + 1).float().mean()
        if preview:
            result |= pictures(label, views)
        return result

    @torch.no_grad()
    def label_maps(self, batch: RegionBatch) -> tuple[Tensor, Tensor, list[int]]:
        """(label (B,1,D,H,W) int64, numbered from 0 without gaps in each sample; where it is valid; least bounds).

        The bounds (B,) are numbers that the labels of a sample do not reach. `store` waits for the device to know them.
        Raises ValueError when the maps of the store are asked for and the batch has none.
        """
        if self.labels == "store":
            if batch.label is None:
                raise ValueError("labels=store: the data has no labels; take a labelled store, or labels=shapes")
            moved, _ = (self.artefacts.spatial or centre_crop)(batch, self.input_size)
            assert moved.label is not None
            found = [torch.unique(own, return_inverse=True) for own in moved.label]
            return torch.stack([own for _, own in found]), moved.valid_mask(), [len(values) for values, _ in found]
        maps = []
        for seed in batch.seed.tolist():
            axes = positions(seed, self.input_size)
            scene = Scene.draw(numpy_generator(seed, "scene"), extent(axes))
            maps.append(compact(scene.label(axes, batch.image.device), scene.labels)[None])
        return torch.stack(maps), batch.valid_mask(), [MOST_LABELS] * len(batch)

    @torch.no_grad()
    def view(self, batch: RegionBatch, label: Tensor, valid: Tensor, counts: Sequence[int], number: int) -> Tensor:
        """(B,C,D,H,W): the label maps in random contrasts, each channel in one of its own, with artefacts."""
        channels = batch.image.shape[1]
        # float32 whatever the precision of the run: the same images in all
        image = torch.empty((len(batch), channels, *self.input_size), dtype=torch.float32, device=label.device)
        for b, (seed, noise) in enumerate(zip(batch.seed.tolist(), torch_generators(batch.seed, "white", number))):
            axes = positions(seed, self.input_size)
            for channel in range(channels):
                look = Look.draw(numpy_generator(seed, "look", number, channel), counts[b], extent(axes))
                on_device = device_generator(image, noise)
                white = torch.randn(self.input_size, generator=on_device, dtype=torch.float32, device=label.device)
                image[b, channel] = standardised(look.paint(label[b, 0], axes, white), valid[b, 0])
        for position, transform in enumerate(self.artefacts.intensity):
            transform.apply_(image, valid, batch.seed, position, number)
        return image.to(batch.image.dtype)

    def features(self, images: Tensor) -> list[Tensor]:
        """(2B,C,D,H,W) -> what is compared: the decoder's scales, and the encoder's that are coarser."""
        encoded = self.backbone.encode(images)
        decoded = self.backbone.decode(encoded) if self.backbone.decoder_channels else []
        return [*decoded, *encoded[len(encoded) - (len(self.strides) - len(decoded)) :]]

    @torch.no_grad()
    def draw(self, seeds: Tensor, label: Tensor, valid: Tensor, labels: int, scale: int) -> tuple[Tensor, Tensor]:
        """Labels (B,N) below `labels`, validity (B,N) -> (compared cells (B,K) int64, whether each is valid (B,K)).

        Without replacement, in proportion to (number of cells of the label)^-balance: the least of exponential keys
        (Efraimidis and Spirakis, Information Processing Letters 2006).
        """
        keys = torch.empty(label.shape, dtype=torch.float32, device=label.device)
        for b, generator in enumerate(torch_generators(seeds, "voxels", scale)):
            keys[b].exponential_(generator=device_generator(keys, generator))
        counts = keys.new_zeros((len(label), labels)).scatter_add_(1, label, valid.to(keys.dtype))
        weight = counts.gather(1, label).clamp(min=1) ** -self.balance
        keys = torch.where(valid, keys / weight, torch.inf)
        where = keys.topk(min(self.voxels, label.shape[1]), dim=1, largest=False).indices
        return where, valid.gather(1, where)


def compared_scales(backbone: Backbone) -> tuple[list[int], list[Size3]]:
    """Channels and strides of the decoder's scales, finest first, and of the encoder's that are coarser than these."""
    channels, strides = list(backbone.decoder_channels), list(backbone.decoder_strides)
    coarsest = strides[-1] if strides else (0, 0, 0)
    for c, stride in zip(backbone.channels, backbone.strides):
        if all(s >= t for s, t in zip(stride, coarsest)) and stride != coarsest:
            channels.append(c)
            strides.append(stride)
    return channels, strides


def positions(seed: int, size: Size3) -> list[np.ndarray]:
    """Coordinates of the voxels along z, y, x, in shortest edges: half of the maps have longer ones along one axis."""
    edges = voxel_edges(numpy_generator(seed, "thickness"))
    return [(np.arange(n) + 0.5) * edge for n, edge in zip(size, edges)]


def extent(axes: Sequence[np.ndarray]) -> list[float]:
    """The edges of the box that the voxels at these positions fill."""
    return [float(a[0] + a[-1]) for a in axes]


def at_centres(field: Tensor, stride: Size3) -> Tensor:
    """(B,1,D,H,W) -> (B,N): at the central voxel of each cell of `stride`."""
    d, h, w = stride
    return field[:, 0, d // 2 :: d, h // 2 :: h, w // 2 :: w].flatten(1)


def take(features: Tensor, where: Tensor) -> Tensor:
    """Features (B,C,d,h,w) and cells (B,K) -> (B,K,C)."""
    flat = features.flatten(2)
    return flat.gather(2, where[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)


def standardised(x: Tensor, valid: Tensor) -> Tensor:
    """(D,H,W) with mean 0 and deviation 1 over the valid voxels; the darkest of them where it is not valid."""
    count = valid.sum().clamp(min=1)
    mean = torch.where(valid, x, 0).sum() / count
    deviation = (torch.where(valid, x - mean, 0).square().sum() / count).sqrt().clamp(min=1e-6)
    x = (x - mean) / deviation
    return torch.where(valid, x, torch.where(valid, x, torch.inf).amin().clamp(max=0))


def pictures(label: Tensor, views: Sequence[Tensor]) -> dict[str, Tensor]:
    """Middle axial slices (B,H,W) in [0,1]: the label map, both views."""
    middle = label.shape[2] // 2
    plane = label[:, 0, middle]
    shown = {"preview/labels": grey(plane, label)}
    for name, view in zip(("first", "second"), views):
        shown[f"preview/{name}"] = grey(view[:, 0, middle])
    return shown
