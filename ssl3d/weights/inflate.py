"""2D kernels as 3D ones: how weights of photographs start a network of volumes."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl3d.weights.recognised import Inflation

WORDS = {
    "mean": "the 2D kernel at every depth, divided by the depth: a volume that is constant along its depth gives what "
    "the slice gave",
    "centre": "the 2D kernel in the central slice, zeros around it: every slice for itself",
    "rotation": "the 2D kernel in the central plane, rotated: outputs 0, 3, 6, ... axial, 1, 4, ... coronal, 2, 5, "
    "... sagittal",
}


def inflate(kernel: Tensor, depth: int, how: Inflation) -> Tensor:
    """(O, I, H, W) -> (O, I, depth, H, W).

    `mean`: I3D's, Carreira and Zisserman, arXiv 1705.07750. `centre`: only the middle slice is not zero. `rotation`:
    Cross-D's idea with fixed orientations: each output looks along one of the three planes; needs depth = H = W.
    Raises ValueError when a rotated kernel would not fit.
    """
    o, i, h, w = kernel.shape
    if depth == 1:
        return kernel.unsqueeze(2)
    if how == "mean":
        return (kernel / depth).unsqueeze(2).expand(o, i, depth, h, w).contiguous()
    out = kernel.new_zeros(o, i, depth, h, w)
    middle = depth // 2
    if how == "centre":
        out[:, :, middle] = kernel
        return out
    if not depth == h == w:
        raise ValueError(f"a kernel of {[depth, h, w]} cannot be rotated into the other planes: it is no cube")
    out[0::3, :, middle, :, :] = kernel[0::3]  # rows along H, columns along W
    out[1::3, :, :, middle, :] = kernel[1::3]  # rows along D, columns along W
    out[2::3, :, :, :, middle] = kernel[2::3]  # rows along D, columns along H
    return out


def channels(weight: Tensor, count: int) -> Tensor:
    """(O, I, ...) -> (O, count, ...): `count` equal image channels give what `I` equal ones gave.

    The sum over the channels, repeated and divided by their new number: nnU-Net's rule for 1 -> C, and RGB -> 1.
    """
    total = weight.sum(1, keepdim=True) if weight.shape[1] > 1 else weight
    return torch.cat([total] * count, dim=1) / count
