"""How the hidden blocks of a masked task are chosen: small objects that any of them takes as `mask_strategy`.

A strategy ranks the blocks of each sample; the task hides the first ones until its ratio is reached exactly. So every
strategy works on convolutional and token backbones alike, and a ratio means the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.regions import RegionBatch, Size3


class MaskStrategy:
    """Ranks blocks. `order` must be a function of the sample and its generator alone, never of its neighbours."""

    def order(self, batch: RegionBatch, grid: Size3, block: Size3, generators: Sequence[torch.Generator]) -> Tensor:
        """Normalised batch, blocks (D,H,W) that tile it, voxels a block, a CPU generator a sample -> (B,N) int64.

        Row b is a permutation of the N = prod(grid) blocks (row-major): the order in which they are hidden.
        """
        raise NotImplementedError


def _uniform(count: int, generators: Sequence[torch.Generator]) -> Tensor:
    """(B, count) float64 in [0, 1), on the CPU."""
    return torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators])


def _pooled(image: Tensor, grid: Size3, block: Size3) -> Tensor:
    """(B,C,D,H,W) -> (B,C,*grid): the mean of each block; blocks that reach beyond the image repeat its border."""
    padding = [p for n, g, b in zip(image.shape[:1:-1], grid[::-1], block[::-1]) for p in (0, g * b - n)]
    return F.avg_pool3d(F.pad(image.float(), padding, mode="replicate"), block, block)


class RandomBlocks(MaskStrategy):
    """Uniformly random blocks (He et al., CVPR 2022)."""

    def order(self, batch: RegionBatch, grid: Size3, block: Size3, generators: Sequence[torch.Generator]) -> Tensor:
        count = grid[0] * grid[1] * grid[2]
        return torch.stack([torch.randperm(count, generator=g) for g in generators])


class Tube(MaskStrategy):
    """Whole columns of blocks along one axis (Tong et al., "VideoMAE", NeurIPS 2022, section 3.3).

    With columns hidden, a voxel cannot be copied from the neighbouring slices. `axis`: 0 z, 1 y, 2 x. Where the ratio
    does not fall on whole columns, a part of the last one is hidden.
    Raises ValueError naming `axis` when there is no such axis.
    """

    def __init__(self, axis: int = 0) -> None:
        if axis not in (0, 1, 2):
            raise ValueError(f"axis={axis}: write 0 (z), 1 (y) or 2 (x)")
        self.axis = axis

    def order(self, batch: RegionBatch, grid: Size3, block: Size3, generators: Sequence[torch.Generator]) -> Tensor:
        columns = [n for axis, n in enumerate(grid) if axis != self.axis]
        draws = _uniform(columns[0] * columns[1], generators).view(-1, *columns)
        return draws.unsqueeze(1 + self.axis).expand(-1, *grid).flatten(1).argsort(dim=1, stable=True)


class ForegroundBlocks(MaskStrategy):
    """Random blocks, those with more in them `strength` times as likely as empty ones.

    What is in a block is the share of its voxels that are brighter than the sample's mean over valid voxels: air and
    padding are easily rebuilt and teach little. Weighted sampling without replacement by Gumbel's trick (Efraimidis and
    Spirakis, 2006). Raises ValueError naming `strength` unless it is at least 1.
    """

    def __init__(self, strength: float = 4.0) -> None:
        if strength < 1:
            raise ValueError(f"strength={strength}: at least 1 (1 is uniform)")
        self.strength = float(strength)

    def order(self, batch: RegionBatch, grid: Size3, block: Size3, generators: Sequence[torch.Generator]) -> Tensor:
        valid = batch.valid_mask()
        image = batch.image[:, :1].float()
        mean = (image * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
        share = _pooled(((image > mean[:, None, None, None, None]) & valid).float(), grid, block).flatten(1).double()
        weight = 1 + (self.strength - 1) * share
        gumbel = -(-_uniform(share.shape[1], generators).clamp(min=1e-300).log()).log()
        return (weight.log() + gumbel.to(weight.device)).argsort(dim=1, descending=True, stable=True)


class MultiScale(MaskStrategy):
    """Blocks hidden in clusters of one of several sizes, drawn per sample.

    `factors`: edge lengths of a cluster in blocks; a sample draws one of them, so that a batch asks for fine texture
    and for whole structures. Clusters lie on a lattice with a random offset; a part of the last one is hidden.
    Raises ValueError naming `factors` when it is empty or holds a number below 1.
    """

    def __init__(self, factors: tuple[int, ...] = (1, 2, 4)) -> None:
        if not factors or any(f < 1 for f in factors):
            raise ValueError(f"factors={list(factors)}: write edge lengths of at least one block")
        self.factors = tuple(factors)

    def order(self, batch: RegionBatch, grid: Size3, block: Size3, generators: Sequence[torch.Generator]) -> Tensor:
        rows = []
        for generator in generators:
            factor = self.factors[int(torch.randint(len(self.factors), (), generator=generator))]
            places = []
            for n in grid:
                offset = int(torch.randint(factor, (), generator=generator))
                places.append((torch.arange(n) + offset) // factor)
            z, y, x = torch.meshgrid(*places, indexing="ij")
            _, cluster = torch.stack([z, y, x], -1).flatten(0, 2).unique(dim=0, return_inverse=True)
            draws = torch.rand(int(cluster.max()) + 1, generator=generator, dtype=torch.float64)
            rows.append(draws[cluster].argsort(stable=True))
        return torch.stack(rows)


class Supervoxels(MaskStrategy):
    """Whole supervoxels, so that what is hidden has the shape of anatomy rather than of a block.

    Supervoxels are found on the block means by SLIC (Achanta et al., TPAMI 2012) with distances in millimetres;
    `count` of them in a patch; `compactness` weighs distance against intensity. The last one is hidden in part, so
    that the ratio stays exact. Runs on the CPU: a thumbnail of the patch is copied from the device.
    Raises ValueError naming the key on values out of range.
    """

    def __init__(self, count: int = 64, compactness: float = 0.1) -> None:
        if count < 2:
            raise ValueError(f"count={count}: at least 2 supervoxels")
        if compactness <= 0:
            raise ValueError(f"compactness={compactness}: must be positive")
        self.count, self.compactness = count, float(compactness)

    def order(self, batch: RegionBatch, grid: Size3, block: Size3, generators: Sequence[torch.Generator]) -> Tensor:
        from skimage.segmentation import slic  # a quarter of a second that other strategies need not spend

        small = _pooled(batch.image, grid, block).cpu().numpy()
        rows = []
        for sample, spacing, generator in zip(small, batch.spacing.tolist(), generators):
            edges = np.multiply(spacing, block)  # mm between block centres
            span = max(float(np.ptp(sample)), 1e-6)
            regions = slic(
                ((sample - sample.min()) / span).astype(np.float64), n_segments=self.count,
                compactness=self.compactness, spacing=(edges / edges.min()).tolist(), channel_axis=0,
                start_label=0, enforce_connectivity=False,
            ).ravel()  # fmt: skip
            draws = torch.rand(int(regions.max()) + 1, generator=generator, dtype=torch.float64)
            rows.append(draws[torch.from_numpy(regions.astype(np.int64))].argsort(stable=True))
        return torch.stack(rows)
