"""Small draws that several tasks make from a sample's generator."""

from __future__ import annotations

import torch
from torch import Tensor


def between(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def device_generator(x: Tensor, generator: torch.Generator) -> torch.Generator:
    """A generator on the device of `x`, seeded by the sample's own (a CPU one)."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device=x.device).manual_seed(seed)
