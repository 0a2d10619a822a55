"""Which tokens JEPA predicts and from which: boxes on the token grid and what is left of another box, per sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl3d.regions import Size3
from ssl3d.seeding import torch_generators


@dataclass
class TokenSplit:
    """Places on a token grid, row-major: K that are seen, and M blocks of at most P that are predicted.

    `context` (B,K) int64, ascending; `targets` (B,M,P) int64; `present` (B,M,P) bool: False where a block is smaller
    than P. No target is in the context.
    """

    context: Tensor
    targets: Tensor
    present: Tensor

    def to(self, device: torch.device) -> TokenSplit:
        """The same on a device, without waiting for it."""
        moved = (x.to(device, non_blocking=True) for x in (self.context, self.targets, self.present))
        return TokenSplit(*moved)


class TokenBlocks:
    """Draws `targets` boxes of a token grid (D,H,W) to predict, and exactly `visible` other tokens of a larger box.

    `target_scale`, `context_scale`: (least, most) share of the grid's tokens in a box. `aspect`: the longest edge of a
    box over its shortest, as shares of the grid's edges, is at most this; where tokens are so few that no box is, the
    boxes with the least are used. `context_share`: of the grid's tokens are seen, whatever the boxes: those of the
    context's box that are in no target, a random part of them. A target that would leave fewer is drawn again, and
    after TRIES times lies where the one before it does.
    Raises ValueError naming the key when no box has the size, or targets may leave too little to see.
    """

    TRIES = 20

    def __init__(
        self,
        grid: Size3,
        targets: int,
        target_scale: tuple[float, float],
        context_scale: tuple[float, float],
        aspect: float,
        context_share: float,
    ) -> None:
        if targets < 1:
            raise ValueError(f"targets={targets}: at least 1")
        if aspect < 1:
            raise ValueError(f"aspect={aspect}: the longest over the shortest edge, so at least 1")
        if not 0 < context_share < 1:
            raise ValueError(f"context_share={context_share}: a share of the tokens, strictly between 0 and 1")
        self.grid, self.targets = grid, targets
        self.target_shapes = box_shapes("target_scale", grid, target_scale, aspect)
        self.context_shapes = box_shapes("context_scale", grid, context_scale, aspect)
        self.largest = max(map(math.prod, self.target_shapes))  # P
        self.visible = max(1, round(context_share * math.prod(grid)))  # K
        sure = min(map(math.prod, self.context_shapes)) - self.largest
        if self.visible > sure:
            raise ValueError(
                f"context_share={context_share}: {self.visible} of the {math.prod(grid)} tokens of {list(grid)}, but a "
                f"context may have only {sure} beside a target: lower it or target_scale={list(target_scale)}, or use "
                "a larger patch_size"
            )

    def draw(self, seeds: Tensor) -> TokenSplit:
        """Seeds (B,) -> the split of each sample, a function of its seed alone; on the CPU."""
        drawn = [self._draw(generator) for generator in torch_generators(seeds, "blocks")]
        return TokenSplit(*(torch.stack(parts) for parts in zip(*drawn)))

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        free = self._box(self.context_shapes, generator)
        boxes: list[Tensor] = []
        for _ in range(self.targets):
            box = self._box(self.target_shapes, generator)
            for _ in range(self.TRIES):
                if (free & ~box).sum() >= self.visible:
                    break
                box = self._box(self.target_shapes, generator)
            else:  # the first never gets here: any one target leaves enough
                box = boxes[-1]
            boxes.append(box)
            free = free & ~box
        places = free.nonzero()[:, 0]
        # A random part: published code keeps the first in reading order, and so never sees the end of the image.
        kept = places[torch.randperm(len(places), generator=generator)[: self.visible]]
        targets = torch.zeros((self.targets, self.largest), dtype=torch.int64)
        present = torch.zeros((self.targets, self.largest), dtype=torch.bool)
        for number, box in enumerate(boxes):
            inside = box.nonzero()[:, 0]
            targets[number, : len(inside)], present[number, : len(inside)] = inside, True
        return kept.sort().values, targets, present

    def _box(self, shapes: Sequence[Size3], generator: torch.Generator) -> Tensor:
        """(N,) bool: the tokens of a box of one of the shapes, anywhere on the grid."""

        def below(n: int) -> int:
            return int(torch.randint(n, (), generator=generator))

        shape = shapes[below(len(shapes))]
        tokens = torch.zeros(self.grid, dtype=torch.bool)
        starts = [below(g - n + 1) for g, n in zip(self.grid, shape)]
        tokens[tuple(slice(s, s + n) for s, n in zip(starts, shape))] = True
        return tokens.flatten()


def box_shapes(key: str, grid: Size3, scale: tuple[float, float], aspect: float) -> list[Size3]:
    """All boxes (D,H,W) of tokens that hold a share of the grid within `scale` and are no longer than `aspect`.

    Those of the least aspect when all are longer. Raises ValueError naming `key` when no box has such a share.
    """
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"{key}={list(scale)}: write [least, most], shares of the tokens above 0 and at most 1")
    total = math.prod(grid)
    every = itertools.product(*(range(1, g + 1) for g in grid))
    slack = 1e-9  # a share like 0.2 of 10 tokens is 2, whatever floating point says
    fitting = [shape for shape in every if low - slack <= math.prod(shape) / total <= high + slack]
    if not fitting:
        raise ValueError(
            f"{key}={list(scale)}: no box of the {list(grid)} tokens of a patch holds such a share; widen it, or use "
            "a larger patch_size"
        )

    def elongation(shape: Sequence[int]) -> float:
        shares = [n / g for n, g in zip(shape, grid)]
        return max(shares) / min(shares)

    limit = max(aspect, min(map(elongation, fitting))) + slack
    return [(d, h, w) for d, h, w in fitting if elongation((d, h, w)) <= limit]
