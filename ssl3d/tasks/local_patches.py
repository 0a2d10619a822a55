"""Small patches of voxels around places of an image: drawing places, reading patches, and how alike two patches are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl3d.augment.spatial import on_device
from ssl3d.regions import RegionBatch, Size3
from ssl3d.seeding import torch_generators

LUMINANCE, STRUCTURE = 0.01**2, 0.03**2  # Wang et al.'s constants for intensities of range 1


@dataclass
class PatchPairs:
    """K anchors of a sample and a partner for each: places (B,K,3) int64, voxels (d,h,w) of the image.

    `seen` (B,K) bool: all voxels of the anchor's patch are valid; `paired` (B,K) bool: and its partner is near and
    similar. Where they are False, the places mean nothing.
    """

    anchor: Tensor
    partner: Tensor
    seen: Tensor
    paired: Tensor


def patch_offsets(size: Size3) -> Tensor:
    """(P,3) int64: voxels (d,h,w) of an odd patch relative to its centre, row-major."""
    return torch.tensor(list(itertools.product(*(range(-(n // 2), n // 2 + 1) for n in size))))


def patches_at(image: Tensor, centres: Tensor, size: Size3) -> Tensor:
    """Image (B,C,D,H,W) and voxels (B,...,3), half a patch inside -> (B,...,C,P) of patches of `size`, row-major."""
    _, height, width = image.shape[2:]
    places = centres[..., None, :] + on_device(patch_offsets(size), image.device)
    d, h, w = places.unbind(-1)
    index = (d * height + h) * width + w  # (B,...,P)
    flat = image.flatten(2)
    found = flat.gather(2, index.flatten(1)[:, None].expand(-1, flat.shape[1], -1))
    return found.unflatten(2, index.shape[1:]).movedim(1, -2)


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Patches (...,C,P) in about [0, 1] -> (...): SSIM over the whole patch, mean over channels, -1 to 1.

    Source: Wang et al., "Image quality assessment", IEEE Transactions on Image Processing 2004.
    """
    means = first.mean(-1), second.mean(-1)
    centred = first - means[0][..., None], second - means[1][..., None]
    variances = [x.square().mean(-1) for x in centred]
    covariance = (centred[0] * centred[1]).mean(-1)
    light = (2 * means[0] * means[1] + LUMINANCE) / (means[0] ** 2 + means[1] ** 2 + LUMINANCE)
    shape = (2 * covariance + STRUCTURE) / (variances[0] + variances[1] + STRUCTURE)
    return (light * shape).mean(-1)


def in_clip_window(batch: RegionBatch) -> Tensor:
    """The image (B,C,D,H,W) of a normalised batch, 0 at `low` and 1 at `high`: SSIM's means must not change sign."""
    low, high = ((x - batch.mean) / batch.std for x in (batch.low, batch.high))
    span = (high - low).clamp(min=torch.finfo(torch.float32).eps)
    return (batch.image - low[:, :, None, None, None]) / span[:, :, None, None, None]


class PatchPairSampler:
    """Draws `count` anchors a sample and, for each, looks for a partner among `candidates` places up to `near` mm away.

    The partner is the first of them whose patch of `size` voxels (D,H,W) has an SSIM of at least `similar`.
    """

    SPARE = 4  # times as many anchors are drawn: the first whose patches are all valid are taken

    def __init__(self, image: Size3, size: Size3, count: int, candidates: int, near: float, similar: float) -> None:
        self.size, self.count, self.candidates = size, count, candidates
        self.near, self.similar = near, similar
        self.low = torch.tensor([n // 2 for n in size])
        self.high = torch.tensor(image) - 1 - self.low

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """On the CPU, from each sample's seed: anchors (B,spare,3) int64, and shifts (B,K,M,3) in -1 to 1."""
        generators = torch_generators(seeds, "patches")
        shares = torch.stack([torch.rand((self.SPARE * self.count, 3), generator=g) for g in generators])
        shifts = torch.stack([torch.rand((self.count, self.candidates, 3), generator=g) for g in generators])
        anchors = self.low + (shares * (self.high - self.low + 1)).long()
        return torch.minimum(anchors, self.high), 2 * shifts - 1

    @torch.no_grad()
    def pairs(self, batch: RegionBatch) -> PatchPairs:
        """A normalised batch -> its anchors and their partners."""
        device = batch.image.device
        anchors, shifts = (on_device(x, device) for x in self.draw(batch.seed))
        low, high = (on_device(x, device) for x in (self.low, self.high))
        valid = batch.valid_mask()
        whole = patches_at(valid, anchors, self.size).all(-1).all(-1)
        kept = (~whole).to(torch.uint8).argsort(dim=1, stable=True)[:, : self.count]
        anchor = anchors.gather(1, kept[..., None].expand(-1, -1, 3))
        seen = whole.gather(1, kept)
        spacing = batch.spacing[:, None, None]
        place = (anchor[:, :, None] + (shifts * self.near / spacing).round().long()).clamp(low, high)
        moved = (place - anchor[:, :, None]) * spacing
        distance = moved.square().sum(-1).sqrt()
        fits = (distance > 0) & (distance <= self.near) & patches_at(valid, place, self.size).all(-1).all(-1)
        image = in_clip_window(batch)
        here, there = (patches_at(image, x, self.size) for x in (anchor[:, :, None], place))
        fits &= seen[..., None] & (structural_similarity(here, there) >= self.similar)
        order = torch.arange(self.candidates, 0, -1, device=device)  # no ties, whose winner devices choose differently
        first = (fits * order).argmax(-1)
        partner = place.gather(2, first[..., None, None].expand(-1, -1, 1, 3)).squeeze(2)
        return PatchPairs(anchor, partner, seen, fits.any(-1))


def distances(first: Tensor, second: Tensor, spacing: Tensor) -> Tensor:
    """Voxels (B,N,3) and (B,M,3), `spacing` (B,3) mm -> (B,N,M) mm."""
    apart = (first[:, :, None] - second[:, None]) * spacing[:, None, None]
    return apart.square().sum(-1).sqrt()


def grid_of(size: Sequence[int], most: int) -> list[Tensor]:
    """For each axis of `size`, at most `most` voxels spread evenly over it."""
    return [torch.linspace(0, n - 1, min(n, most)).round().long() for n in size]
