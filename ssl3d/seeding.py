"""Randomness per sample: every draw is a pure function of (seed, keys), never of order, rank or worker."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def mix(seed: int, *keys: int | str) -> int:
    """Hash a seed and any keys into one non-negative 63-bit integer (fits int64, torch and numpy seeds).

    blake2b rather than arithmetic: neighbouring seeds and keys give unrelated streams, on every platform alike.
    """
    text = "\x1f".join([str(int(seed)), *(str(key) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, *keys: int | str) -> np.random.Generator:
    """A numpy generator for the stream named by `keys`."""
    return np.random.Generator(np.random.Philox(mix(seed, *keys)))


def torch_generators(seeds: Tensor, *keys: int | str, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One torch generator per sample of a batch: `seeds` (B,) int64, `keys` name the stream ("mask", "noise", ...)."""
    import torch  # not above: a conversion draws numbers too, and its workers need no torch

    return [torch.Generator(device=device).manual_seed(mix(seed, *keys)) for seed in seeds.tolist()]


def device_generator(x: Tensor, generator: torch.Generator) -> torch.Generator:
    """A generator on the device of `x`, seeded by the sample's own, which is on the CPU."""
    import torch

    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device=x.device).manual_seed(seed)
