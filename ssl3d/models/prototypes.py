"""The head of DINO, iBOT and their kin: a multilayer perceptron, and cosines with prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrototypeHead(nn.Module):
    """(..., in_dim) -> (..., prototypes) cosines in the weights' own precision, whatever the autocast.

    Three layers of `hidden_dim` with GELU down to `bottleneck_dim` (lightly's ProjectionHead), without norms, so that
    no sample depends on another. Prototypes have length 1: weight norm with its scale fixed, as in DINO. lightly's
    DINOProjectionHead is the same function; torch's old weight norm in it cannot be copied, which a teacher needs.
    Raises ValueError naming the key on sizes that are too small. Caron et al. (DINO), ICCV 2021, appendix C.
    """

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck_dim: int, prototypes: int) -> None:
        from lightly.models.modules.heads import ProjectionHead  # a second of imports that few methods need

        super().__init__()
        sizes = {"hidden_dim": (hidden_dim, 1), "bottleneck_dim": (bottleneck_dim, 1), "prototypes": (prototypes, 2)}
        for key, (size, least) in sizes.items():
            if size < least:
                raise ValueError(f"{key}={size}: at least {least}")
        widths = [(in_dim, hidden_dim, None, nn.GELU()), (hidden_dim, hidden_dim, None, nn.GELU())]
        self.project = ProjectionHead([*widths, (hidden_dim, bottleneck_dim, None, None)])
        for module in self.project.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck_dim))
        nn.init.normal_(self.prototypes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., prototypes) in [-1, 1]."""
        with torch.autocast(x.device.type, enabled=False):
            # A cosine in bfloat16 is off by 0.004, which a temperature of 0.04 makes a tenth of a logit.
            unit = F.normalize(self.project(x.to(self.prototypes.dtype)), dim=-1)
            return F.linear(unit, F.normalize(self.prototypes, dim=-1))
