"""What masked tasks rebuild: the image itself, or each block normalised by its own mean and deviation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.regions import Size3


def check_whole_blocks(size: Size3, block: Size3) -> None:
    """Raise ValueError naming `normalise_target` when blocks do not tile the patch."""
    if any(n % b for n, b in zip(size, block)):
        raise ValueError(
            f"normalise_target: the patch {list(size)} must be a multiple of mask_block {list(block)} on every axis"
        )


def normalised_blocks(image: Tensor, block: Size3, valid: Tensor, eps: float = 1e-6) -> Tensor:
    """(B,C,D,H,W) -> the same in float32, each block of each channel with mean 0 and variance 1 over its valid voxels.

    `valid` (B,1,D,H,W) bool. The size is a multiple of `block`. A constant block becomes 0. After He et al., CVPR 2022,
    section 4.1 ("reconstruction target"), per mask block.
    """
    mean, deviation = block_moments(image, block, valid, eps)
    return (image.to(mean.dtype) - mean) / deviation


def block_moments(image: Tensor, block: Size3, valid: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean and deviation, both (B,C,D,H,W), by which `normalised_blocks` normalises each voxel: those of its block."""
    weight = valid.to(image.dtype) if image.dtype == torch.float64 else valid.float()
    image = image.to(weight.dtype)
    share = F.avg_pool3d(weight, block).clamp(min=1e-12)

    def spread(x: Tensor) -> Tensor:
        for axis, b in enumerate(block, start=2):
            x = x.repeat_interleave(b, dim=axis)
        return x

    mean = spread(F.avg_pool3d(image * weight, block) / share)
    variance = F.avg_pool3d((image - mean).square() * weight, block) / share
    return mean, spread((variance + eps).sqrt())


def own_greys(prediction: Tensor, image: Tensor, block: Size3, valid: Tensor) -> Tensor:
    """A prediction of `normalised_blocks` with each block's own mean and deviation put back, or it were a mosaic."""
    mean, deviation = block_moments(image, block, valid)
    return prediction.detach() * deviation + mean
