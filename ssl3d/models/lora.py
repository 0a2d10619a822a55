"""LoRA: trained low-rank terms beside the frozen projections of a transformer's attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERIES = ("qkv", "q_proj")  # a module that holds one of these is an attention
PROJECTIONS = ("qkv", "q_proj", "k_proj", "v_proj", "proj")


class LoRALinear(nn.Module):
    """weight x + bias + (alpha / rank) b a x, of which `a` (rank, in) and `b` (out, rank) alone learn.

    `base`: the layer it stands for, whose parameters it keeps under their names, frozen. `b` begins at zero, so that
    nothing changes before the first step; `a` is drawn from torch's global generator. Hu et al., arXiv 2106.09685.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features).to(base.weight))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank).to(base.weight))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        for own in (self.weight, self.bias):
            if own is not None:
                own.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


def add_lora(network: nn.Module, rank: int, alpha: float) -> int:
    """Put a LoRALinear in the place of every attention projection of `network`; returns how many.

    Attentions are found by their names in ViT, DinoViT, Primus and Swin (timm's and MONAI's): a module with a linear
    layer `qkv` or `q_proj`; its output projection `proj` is adapted too. Raises ValueError naming what is out of range.
    """
    if rank < 1 or alpha <= 0:
        raise ValueError(f"LoRA of rank {rank} and alpha {alpha}: both must be above 0")
    count = 0
    for module in list(network.modules()):
        own = dict(module.named_children())
        if not any(isinstance(own.get(name), nn.Linear) for name in QUERIES):
            continue
        for name in PROJECTIONS:
            linear = own.get(name)
            if isinstance(linear, nn.Linear):
                setattr(module, name, LoRALinear(linear, rank, alpha))
                count += 1
    return count
