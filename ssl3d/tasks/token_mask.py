"""iBOT's masks: some samples with a random share of their tokens hidden, the others whole.

Source: Zhou et al., "iBOT: image BERT pre-training with online tokenizer", ICLR 2022, section 4.1; uniformly random
tokens of volumes as in 3DINO. Published code masks exactly half of a GPU's batch, at ratios spread over it: what
a sample hides depends on its neighbours. Ours is drawn for each sample by itself, with the same expectation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl3d.augment.transform import check_probability
from ssl3d.regions import Size3
from ssl3d.seeding import torch_generators


class TokenMask:
    """Hides tokens of a view: of a share of the samples, and of each of these a ratio drawn between two bounds.

    `share`: probability that a view of a sample is masked. `ratio`: least and largest share of its tokens that are
    hidden, uniform in between; at least one token is hidden and one left. `token`: voxels (D,H,W).
    Raises ValueError naming `ibot_share` or `ibot_ratio` when out of range.
    """

    def __init__(self, share: float, ratio: tuple[float, float], token: Size3) -> None:
        self.share = check_probability("ibot_share", share)
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < 1:
            raise ValueError(
                f"ibot_ratio={list(ratio)}: write the least and the largest share, 0 < least <= largest < 1"
            )
        self.ratio = (float(ratio[0]), float(ratio[1]))
        self.token = token

    def draw(self, seeds: Tensor, grid: Size3, view: int) -> Tensor:
        """Seeds (B,) -> (B,gD,gH,gW) bool on the CPU, True where a token of the view is hidden."""
        count = math.prod(grid)
        low, high = self.ratio
        rows = []
        for generator in torch_generators(seeds, "hidden tokens", view):
            masked, at = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            order = torch.randperm(count, generator=generator)
            hidden = min(max(round((low + at * (high - low)) * count), 1), count - 1)
            row = torch.zeros(count, dtype=torch.bool)
            row[order[: hidden if masked < self.share else 0]] = True
            rows.append(row)
        return torch.stack(rows).view(-1, *grid)


def token_weights(counted: Tensor) -> Tensor:
    """(V,N) bool tokens of V views that enter the loss -> (V,N): 1 / their number in the view.

    The weights sum up to the number of views that have any.
    """
    return counted.float() / counted.sum(1, keepdim=True).clamp(min=1)
