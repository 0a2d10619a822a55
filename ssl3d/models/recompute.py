"""Activation checkpointing: a segment of a backbone keeps its input alone, and is run again on the way back.

Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174, with torch's non-reentrant checkpoint:
loss and gradients have the bits they have without it, random numbers and running statistics included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from ssl3d.models.backbone import Backbone


def recompute_segments(backbone: Backbone) -> None:
    """Let every segment of `backbone` be computed again going backward, in place; names and weights stay.

    Raises ValueError when the family names no segments.
    """
    segments = backbone.segments()
    if not segments:
        raise ValueError(f"run.recompute is true, but {type(backbone).__name__} names no segments: set it to false")
    for segment in segments:
        segment.forward = again(segment.forward, [segment])
    backbone.recomputes = True


def again(function: Callable[..., Any], modules: Sequence[nn.Module]) -> Callable[..., Any]:
    """`function`, keeping nothing but its arguments until it is run again for its gradient.

    `modules`: those it runs, whose running statistics are to be counted once.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*arguments, **named)
        contexts = functools.partial(_contexts, modules)
        return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts, **named)

    return call


def _contexts(modules: Sequence[nn.Module]) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _statistics_kept(modules)


@contextmanager
def _statistics_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Running statistics, which have seen this batch already, are copies until the end."""
    norms = {m: dict(m._buffers) for module in modules for m in module.modules() if isinstance(m, _NormBase)}
    for norm, buffers in norms.items():
        norm._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in norms.items():
            norm._buffers.update(buffers)
