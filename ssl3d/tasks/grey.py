"""Grey pictures of what a task sees."""

from __future__ import annotations

from torch import Tensor


def grey(plane: Tensor, scale: Tensor | None = None) -> Tensor:
    """(B,H,W) -> float32 in [0, 1], each sample between the extremes of `scale` (B,...), or its own when None."""
    plane = plane.float()
    low, high = (plane if scale is None else scale.float()).flatten(1).aminmax(dim=1)
    low, span = low[:, None, None], (high - low).clamp(min=1e-6)[:, None, None]
    return ((plane - low) / span).clamp(0, 1)
