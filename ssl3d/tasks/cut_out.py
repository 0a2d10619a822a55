"""Cut-outs: boxes of random places and sizes that are hidden until a share of the voxels is."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl3d.regions import RegionBatch, Size3
from ssl3d.seeding import torch_generators


class CutOut:
    """Hides boxes until at least `share` of a sample's voxels are hidden; a different set for each seed.

    `edges`: least and largest edge of a box, as shares of the image's, uniform in between on every axis. The last box
    brings the share above `share`, by a box at most. `published`: instead hide a share drawn uniformly between 0 and
    `share`, counting voxels that two boxes hide twice, as Swin UNETR's code does.
    Raises ValueError naming `cutout` unless 0 < share < 1, and `cutout_edges` unless 0 < least <= largest <= 1.
    """

    def __init__(self, share: float, edges: tuple[float, float], published: bool = False) -> None:
        if not 0 < share < 1:
            raise ValueError(f"cutout={share}: the share of hidden voxels must lie strictly between 0 and 1")
        if len(edges) != 2 or not 0 < edges[0] <= edges[1] <= 1:
            raise ValueError(f"cutout_edges={list(edges)}: write [least, largest], shares of the patch's edge up to 1")
        self.share, self.edges, self.published = float(share), edges, published

    def draw(self, batch: RegionBatch) -> Tensor:
        """A normalised batch -> (B,1,D,H,W) bool on its device, True where the voxel is hidden."""
        drawn = [self._boxes(batch.size, generator) for generator in torch_generators(batch.seed, "cut-out")]
        return torch.stack(drawn).to(batch.image.device, non_blocking=True)

    def voxels(self, hidden: Tensor, size: Size3) -> Tensor:
        """What `draw` gives, as it is: the boxes are voxels already."""
        return hidden

    def _boxes(self, size: Size3, generator: torch.Generator) -> Tensor:
        """(1,D,H,W) bool on the CPU."""
        hidden = torch.zeros((1, *size), dtype=torch.bool)
        share = self.share * torch.rand((), generator=generator).item() if self.published else self.share
        covered, wanted = 0, share * hidden.numel()
        least, largest = self.edges
        while covered < wanted:
            draws = torch.rand((3, 2), generator=generator, dtype=torch.float64).tolist()
            box = [slice(None)]
            for n, (edge, place) in zip(size, draws):
                edge = min(n, max(1, round(n * (least + edge * (largest - least)))))
                first = int(place * (n - edge + 1))
                box.append(slice(first, first + edge))
            inside = hidden[tuple(box)]
            covered += inside.numel() if self.published else int((~inside).sum())
            inside.fill_(True)
        return hidden
