"""A random contrast: what each label of a map looks like in one acquisition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl3d.synth.fields import SmoothField

MEAN, DEVIATION = (25.0, 255.0), (5.0, 20.0)  # of a label, as anatomix draws them
P_DARK = 0.25  # acquisitions whose background is 0
GRAIN = (0.0, 20.0)  # deviation of a label's smooth texture
GRAIN_STEP = (0.015, 0.06)  # of the edge of a cube of the box's volume, between control points: the texture's size
FINEST_MM = 2.0  # control points: finer ones would be lost between voxels
SHADE = (0.0, 0.15)  # deviation of the receive field about 1
BRIGHTEST = 320.0  # what values are cut at


@dataclass(frozen=True)
class Look:
    """Per label a mean, white noise, and a share of one smooth texture; all under a receive field.

    `mean`, `deviation`, `grain` (labels,) float32; `texture` and `shade` are fields of one channel.
    Values as in anatomix; its Perlin texture (a fiftieth, common to all labels) is here a share of each label's own, so
    that labels differ in texture as well as in brightness.
    """

    mean: np.ndarray
    deviation: np.ndarray
    grain: np.ndarray
    texture: SmoothField
    shade: SmoothField

    @classmethod
    def draw(cls, rng: np.random.Generator, labels: int, extent_mm: Sequence[float]) -> Look:
        """A look of `labels` labels over a box of `extent_mm` (z,y,x)."""
        numbers = [rng.uniform(*limits, labels).astype(np.float32) for limits in (MEAN, DEVIATION, GRAIN)]
        if rng.uniform() < P_DARK:
            for own in numbers:
                own[0] = 0
        edge = float(np.prod(extent_mm)) ** (1 / 3)
        step = max(FINEST_MM, edge * np.exp(rng.uniform(*np.log(GRAIN_STEP))))
        texture = SmoothField.draw(rng, 1, extent_mm, (step,) * 3)
        shade = SmoothField.draw(rng, 1, extent_mm, np.asarray(extent_mm) / 3).scaled([rng.uniform(*SHADE)])
        return cls(numbers[0], numbers[1], numbers[2], texture, shade)

    def paint(self, label: Tensor, axes_mm: Sequence[np.ndarray], white: Tensor) -> Tensor:
        """Labels (D,H,W) at `axes_mm` and standard normal noise `white` -> values in [0, BRIGHTEST], float32."""
        device = label.device
        mean, deviation, grain = (
            torch.from_numpy(own).to(device, non_blocking=True)[label]
            for own in (self.mean, self.deviation, self.grain)
        )
        value = mean + deviation * white + grain * self.texture.on(axes_mm, device)[0]
        return (value * (1 + self.shade.on(axes_mm, device)[0])).clamp_(0, BRIGHTEST)
