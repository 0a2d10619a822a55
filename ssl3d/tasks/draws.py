"""Small draws that several tasks make from a sample's generator."""

from __future__ import annotations

import torch


def between(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
