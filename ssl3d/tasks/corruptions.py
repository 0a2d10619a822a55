"""Models Genesis' corruptions of images in [0, 1]: non-linear intensity, local shuffling, in- and out-painting.

Each takes one sample (C,D,H,W) in [0, 1] and a CPU generator, and returns a new tensor of its shape. Source: Zhou et
al., "Models Genesis", Medical Image Analysis 2021, section 3.2. Fields of random voxels are drawn on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl3d.regions import Size3
from ssl3d.seeding import device_generator
from ssl3d.tasks.draws import between

CURVE = 512  # points at which a Bezier curve is tabulated
STOP = 0.05  # chance that no further window is painted
MOST_WINDOWS = 5


def bezier_curve(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x, y) float64 of a random cubic Bezier curve from (0, 0) to (1, 1), x not decreasing; y falls half of the time.

    x and y of the two inner control points are uniform in [0, 1].
    """
    controls = torch.rand((2, 2), generator=generator, dtype=torch.float64)
    falls = torch.rand((), generator=generator).item() < 0.5
    t = torch.linspace(0, 1, CURVE, dtype=torch.float64)[:, None]
    points = 3 * (1 - t) ** 2 * t * controls[0] + 3 * (1 - t) * t**2 * controls[1] + t**3
    x, y = points[:, 0].sort().values, points[:, 1].sort().values
    return x, (1 - y if falls else y)


def nonlinear(image: Tensor, generator: torch.Generator) -> Tensor:
    """Every intensity mapped by one random monotone curve of [0, 1] onto itself."""
    x, y = (v.to(image.device, image.dtype) for v in bezier_curve(generator))
    right = torch.searchsorted(x, image.contiguous().clamp(0, 1)).clamp(1, CURVE - 1)
    x0, x1, y0, y1 = x[right - 1], x[right], y[right - 1], y[right]
    share = ((image.clamp(0, 1) - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)
    return y0 + share * (y1 - y0)


def shuffle_locally(image: Tensor, generator: torch.Generator, share: float = 0.85) -> Tensor:
    """Voxels permuted inside small windows: texture is destroyed, the arrangement of organs stays.

    Window edges are drawn up to a tenth of the image, at least 2 voxels. The published code visits 10,000 windows one
    by one; here the windows are the cells of a lattice with a random offset, a `share` of them shuffled, in one pass.
    All channels move alike.
    """
    size: Size3 = (image.shape[1], image.shape[2], image.shape[3])
    cell = torch.zeros((1, 1, 1), dtype=torch.int64, device=image.device)
    total = 1
    for axis, n in enumerate(size):
        edge = between(2, max(2, n // 10), generator)
        place = (torch.arange(n, device=image.device) + between(0, edge - 1, generator)) // edge
        cells = int((n + edge - 1) // edge) + 1
        cell = cell * cells + place.view([-1 if a == axis else 1 for a in range(3)])
        total *= cells
    field = device_generator(image, generator)
    key = torch.rand(size, generator=field, device=image.device).flatten()
    still = torch.rand(total, generator=field, device=image.device) >= share
    cell = cell.expand(size).flatten()
    # Sorting by (cell, key) gives each cell's voxels in random order; sorting by (cell, place) gives them in theirs.
    shuffled = key.argsort()
    shuffled = shuffled[cell[shuffled].argsort(stable=True)]
    ordered = cell.argsort(stable=True)
    source = torch.empty_like(ordered)
    source[ordered] = torch.where(still[cell[ordered]], ordered, shuffled)
    return image.flatten(1)[:, source].view_as(image)


def inpaint(image: Tensor, generator: torch.Generator) -> Tensor:
    """Up to five windows of a sixth to a third of each edge filled with a uniform random value a voxel."""
    noise = torch.rand(image.shape, generator=device_generator(image, generator), device=image.device).to(image.dtype)
    return torch.where(windows(image, 1 / 6, 1 / 3, generator), noise, image)


def outpaint(image: Tensor, generator: torch.Generator) -> Tensor:
    """All but up to five windows of three to four sevenths of each edge filled with a uniform random value a voxel."""
    noise = torch.rand(image.shape, generator=device_generator(image, generator), device=image.device).to(image.dtype)
    return torch.where(windows(image, 3 / 7, 4 / 7, generator), image, noise)


def windows(image: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(1,D,H,W) bool: 1 to 5 random boxes whose edges are `low` to `high` of the image's, wholly inside."""
    inside = torch.zeros((1, *image.shape[1:]), dtype=torch.bool)
    for number in range(MOST_WINDOWS):
        if number and torch.rand((), generator=generator).item() < STOP:
            break
        box = []
        for n in image.shape[1:]:
            edge = between(max(1, int(low * n)), max(1, int(high * n)), generator)
            first = between(0, n - edge, generator)
            box.append(slice(first, first + edge))
        inside[(slice(None), *box)] = True
    return inside.to(image.device, non_blocking=True)
