"""Tensors of all ranks, differentiably: the only way a task knows of other ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Within it this rank is the only one: what one rank computes by itself would wait for the others for ever."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def _distributed() -> bool:
    return not _alone and distributed.is_available() and distributed.is_initialized()


def gather(x: Tensor) -> Tensor:
    """(B, ...) on each rank -> (ranks * B, ...) on all, in the order of the ranks; `x` itself on one rank.

    Every rank must give the same shape. Gradients flow back to the rank each row came from, summed over the ranks:
    a loss that every rank computes over all rows gives, after DDP's mean, the gradient of one process with all rows.
    """
    return x if world_size() == 1 else _Gather.apply(x)


def world_size() -> int:
    """How many ranks there are; 1 when not distributed, or `alone`."""
    return distributed.get_world_size() if _distributed() else 1


def rank() -> int:
    """This rank's number; 0 when not distributed. Its rows of gather(x) are [rank * B, (rank + 1) * B)."""
    return distributed.get_rank() if _distributed() else 0


@torch.no_grad()
def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x`, of one shape on all ranks, over these, without a gradient; `x` itself on one rank."""
    if world_size() == 1:
        return x
    total = x.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]
