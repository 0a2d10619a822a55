"""What a masked task returns for a batch: loss, shares and pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl3d.regions import RegionBatch
from ssl3d.tasks.grey import grey


def masked_result(loss: Tensor, batch: RegionBatch, hidden: Tensor, prediction: Tensor | None) -> dict[str, Tensor]:
    """`loss`, `masked_share` and `valid_share` (of voxels), and pictures when there is a `prediction` (B,C,D,H,W).

    `hidden` (B,1,D,H,W) bool.
    """
    result = {"loss": loss, "masked_share": hidden.float().mean(), "valid_share": batch.valid_mask().float().mean()}
    if prediction is not None:
        result |= masked_pictures(batch.image, hidden, prediction.detach())
    return result


def masked_pictures(image: Tensor, hidden: Tensor, prediction: Tensor) -> dict[str, Tensor]:
    """Middle axial slices of the first channel, (B,H,W) in [0,1]: input, masked, and rebuilt with the visible pasted.

    One grey scale a sample, from the darkest to the brightest voxel of its input.
    """
    middle = image.shape[2] // 2
    covered = hidden[:, 0, middle]
    original, rebuilt = (x[:, 0, middle].float() for x in (image, prediction))
    return {
        "preview/input": grey(original, image[:, 0]),
        "preview/masked": grey(original, image[:, 0]).masked_fill(covered, 0.5),
        "preview/rebuilt": grey(torch.where(covered, rebuilt, original), image[:, 0]),
    }
