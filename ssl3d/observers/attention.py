"""Whether a transformer's attention still chooses among tokens: the entropy of its attention, block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ssl3d.augment import centre_crop
from ssl3d.training import Training

QUERIES = 64  # of each head: all of them would need a matrix of tokens by tokens
MEAN, LOWEST, BLOCK = "collapse/attention_entropy", "collapse/attention_lowest", "collapse/attention_block"


@dataclass
class Attention:
    """`collapse/attention_entropy`: entropy of the attention of each head over the tokens, relative to its largest:
    1 where a token attends to all alike, 0 where to a single one; the mean over blocks. `collapse/attention_lowest` is
    that of the block where it is lowest, `collapse/attention_block` (0 is the first).

    Of the first region of the plan, unmasked and unaugmented. An entropy that collapses goes with training that becomes
    unstable: Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", ICML 2023.
    """

    every: int

    def observe(self, training: Training) -> Mapping[str, float]:
        group = training.objective.region.group
        with training.data.reader(training.data.plan.with_images()) as reader:
            batch = training.to_device(reader.read(range(group)))
        batch, _ = centre_crop(batch, training.objective.input_size)
        return summary(entropies(training.objective.exported, batch.image[:1]))


def entropies(backbone: Any, image: Tensor) -> list[float]:
    """Relative entropy of the attention of each block, in the order they run, of an image (B,C,D,H,W)."""
    with torch.compiler.set_stance("force_eager"), _Listening() as heard:
        backbone.encode(image)
    return [float(value) for value in heard.entropies]


def summary(values: list[float]) -> dict[str, float]:
    """What is logged of the entropies of all blocks; nothing where none was heard."""
    if not values:
        return {}
    lowest = min(range(len(values)), key=values.__getitem__)
    return {MEAN: sum(values) / len(values), LOWEST: values[lowest], BLOCK: lowest}


class _Listening(TorchFunctionMode):
    """Hears every scaled_dot_product_attention that is called, whatever library calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.entropies: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and args[0].shape[-2] > 1:
            self.entropies.append(_entropy(args[0], args[1], kwargs.get("scale")))
        return function(*args, **kwargs)


def _entropy(queries: Tensor, keys: Tensor, scale: float | None) -> Tensor:
    """The mean relative entropy over evenly spaced queries, of queries and keys (B,heads,N,F), in float32 or wider."""
    wide = torch.promote_types(queries.dtype, torch.float32)
    n = queries.shape[-2]
    chosen = torch.linspace(0, n - 1, min(n, QUERIES), device=queries.device).round().long()
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries[..., chosen, :].to(wide) @ keys.to(wide).transpose(-1, -2)
        shares = (scores * (queries.shape[-1] ** -0.5 if scale is None else scale)).softmax(dim=-1)
    return torch.special.entr(shares).sum(dim=-1).mean() / math.log(keys.shape[-2])
