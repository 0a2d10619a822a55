"""Pictures of two views with numbers drawn into them, to show which places belong together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.regions import Geometry, RegionBatch
from ssl3d.tasks.grey import grey
from ssl3d.tasks.matched_points import features_at

LEAST = 128  # pixels on the longer edge, so that numbers do not hide a small patch
# Rows of 3 x 5 dots.
DIGITS = (
    "010110010010111", "110001010100111", "110001010001110", "101101111001001", "111100110001110",
    "011100111101111", "111001010010010", "111101111101111", "111101111001110",
)  # fmt: skip


def number(digit: int) -> Tensor:
    """1 to 9 -> (7,5): white dots in a black box."""
    dots = torch.tensor([float(dot) for dot in DIGITS[digit - 1]]).view(5, 3)
    return F.pad(dots, (1, 1, 1, 1))


def enlarged(picture: Tensor) -> tuple[Tensor, int]:
    """(B,H,W) -> the picture with every pixel repeated until an edge has LEAST, and how often it was."""
    times = max(1, -(-LEAST // max(picture.shape[1:])))
    return picture.repeat_interleave(times, 1).repeat_interleave(times, 2), times


def mark(picture: Tensor, places: Tensor, shown: Tensor) -> Tensor:
    """(B,H,W) in [0,1], enlarged, with the numbers 1 to K <= 9 at `places` (B,K,2) pixels (row, column) of `picture`.

    `shown` (B,K) bool: which of them. Numbers stay inside; a picture too flat for them is returned without.
    """
    out, times = enlarged(picture)
    height, width = out.shape[1:]
    if height < 7 or width < 5:
        return out
    for b, k in shown.nonzero().tolist():
        row, column = ((places[b, k] + 0.5) * times - 0.5).round().long().tolist()
        top, left = min(max(row - 3, 0), height - 7), min(max(column - 2, 0), width - 5)
        out[b, top : top + 7, left : left + 5] = number(k + 1).to(out)
    return out


def pictures(views: Sequence[RegionBatch], geometries: Sequence[Geometry]) -> dict[str, Tensor]:
    """Slices (B,H,W) in [0,1]: the first view's middle one, the second's nearest to it, and the second seen from there.

    Numbers mark the same nine places in both, where the second shows them (projected onto its slice).
    """
    first, second = (view.image[:, :1] for view in views)
    batch, (depth, height, width) = len(first), first.shape[2:]

    def matched(shares: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        rows, columns = torch.meshgrid(shares[0] * (height - 1), shares[1] * (width - 1), indexing="ij")
        plane = torch.stack([torch.full_like(rows, depth // 2), rows, columns], dim=-1).to(first.device)
        plane = plane.flatten(0, 1).expand(batch, -1, 3)
        return plane, geometries[1].to_output(geometries[0].to_source(plane))

    quarters = torch.tensor([0.25, 0.5, 0.75])
    here, there = matched((quarters, quarters))
    pixels = matched((torch.linspace(0, 1, height), torch.linspace(0, 1, width)))[1]
    limit = torch.tensor([depth, height, width], device=first.device)
    inside, seen = (((x >= -0.5) & (x <= limit - 0.5)).all(-1) for x in (there, pixels))
    level = there[:, 4, 0].round().long().clamp(0, depth - 1)
    slices = (grey(first[:, 0, depth // 2]), grey(second[torch.arange(batch), 0, level]))
    moved = features_at(second, pixels)[..., 0].unflatten(1, (height, width))
    return {
        "preview/first": mark(slices[0], here[..., 1:], inside),
        "preview/second": mark(slices[1], there[..., 1:], inside),
        "preview/second_seen_from_first": enlarged(grey(moved) * seen.unflatten(1, (height, width)))[0],
    }
