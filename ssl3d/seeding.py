"""Randomness per sample: every draw is a pure function of (seed, keys), never of order, rank or worker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def global_stream(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Within it torch's global generators start from `seed`, or go on when None; after it they are as before it.

    For libraries that draw from nothing else.
    """
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def device_generator(x: Tensor, generator: torch.Generator) -> torch.Generator:
    """A generator on the device of `x`, seeded by the sample's own, which is on the CPU."""
    import torch

    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device=x.device).manual_seed(seed)
