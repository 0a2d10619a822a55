"""Changes of intensity: noise, blur, brightness, contrast, lower resolution, gamma. Voxels never move."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.augment.transform import Transform, check_probability, check_range
from ssl3d.seeding import device_generator, torch_generators


class IntensityTransform(Transform):
    """A change of normalised values, drawn per sample with probability `p`, then per channel with `p_channel`.

    Invalid voxels keep their value and enter no statistic. Subclasses write `change`.
    Raises ValueError naming the key when a probability lies outside [0, 1]. Defaults of the subclasses after nnU-Net's
    training augmentation (Isensee et al., Nature Methods 2021, supplementary note 4).
    """

    def __init__(self, p: float, p_channel: float = 1.0) -> None:
        self.p = check_probability("p", p)
        self.p_channel = check_probability("p_channel", p_channel)

    def apply_(self, image: Tensor, valid: Tensor | None, seeds: Tensor, position: int = 0, view: int = 0) -> None:
        """Change `image` (B,C,D,H,W) float32 in place. `valid` (B,1,D,H,W) bool; `seeds` (B,) int64 on the CPU.

        `position` and `view` name the random stream, so that two transforms of a kind draw differently.
        """
        stream = (type(self).__name__, position, view)
        for b, generator in enumerate(torch_generators(seeds, *stream)):
            if torch.rand((), generator=generator).item() >= self.p:
                continue
            chosen = torch.rand(image.shape[1], generator=generator) < self.p_channel
            for c in chosen.nonzero().flatten().tolist():
                where = None if valid is None else valid[b, 0]
                new = self.change(image[b, c], where, generator)
                image[b, c] = new if where is None else torch.where(where, new, image[b, c])

    def change(self, x: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
        """One channel (D,H,W) -> its changed values; `generator` is a CPU one."""
        raise NotImplementedError


def uniform(limits: tuple[float, float], generator: torch.Generator) -> float:
    """A number drawn uniformly from [low, high]."""
    return limits[0] + (limits[1] - limits[0]) * torch.rand((), generator=generator, dtype=torch.float64).item()


class GaussianNoise(IntensityTransform):
    """Adds white noise whose standard deviation is drawn from `std` (in units of the normalised image)."""

    def __init__(self, std: tuple[float, float] = (0.0, 0.1), p: float = 0.1, p_channel: float = 1.0) -> None:
        super().__init__(p, p_channel)
        self.std = check_range("std", std, minimum=0)

    def change(self, x: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
        std = uniform(self.std, generator)
        field = device_generator(x, generator)
        return x + std * torch.randn(x.shape, generator=field, device=x.device, dtype=x.dtype)


class GaussianBlur(IntensityTransform):
    """Blurs with a Gaussian whose standard deviation, in voxels, is drawn from `sigma`."""

    def __init__(self, sigma: tuple[float, float] = (0.5, 1.0), p: float = 0.2, p_channel: float = 0.5) -> None:
        super().__init__(p, p_channel)
        self.sigma = check_range("sigma", sigma, minimum=0.05, maximum=20)

    def change(self, x: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
        sigma = uniform(self.sigma, generator)
        weight = torch.ones_like(x) if valid is None else valid.to(x)
        # Dividing by the blurred weight keeps a constant image constant at the borders too.
        return gaussian(x * weight, sigma) / gaussian(weight, sigma).clamp(min=1e-6)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """(D,H,W) convolved with a Gaussian of `sigma` voxels cut at 4 sigma, zeros outside.

    A sum of shifted copies and not a convolution: that would run in TF32 on a GPU, or in bfloat16 under autocast.
    """
    radius = max(1, math.ceil(4 * sigma))
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    for axis in range(3):
        n = x.shape[axis]
        out = x * (taps[0] / total)
        for k in range(1, min(radius, n - 1) + 1):
            out.narrow(axis, 0, n - k).add_(x.narrow(axis, k, n - k), alpha=taps[k] / total)
            out.narrow(axis, k, n - k).add_(x.narrow(axis, 0, n - k), alpha=taps[k] / total)
        x = out
    return x


class Brightness(IntensityTransform):
    """Multiplies by a number drawn from `factor` and adds one drawn from `shift` (normalised units)."""

    def __init__(
        self,
        factor: tuple[float, float] = (0.75, 1.25),
        shift: tuple[float, float] = (0.0, 0.0),
        p: float = 0.15,
        p_channel: float = 1.0,
    ) -> None:
        super().__init__(p, p_channel)
        self.factor = check_range("factor", factor, minimum=0)
        self.shift = check_range("shift", shift, minimum=-100, maximum=100)

    def change(self, x: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
        return x * uniform(self.factor, generator) + uniform(self.shift, generator)


class Contrast(IntensityTransform):
    """Stretches values about their mean by a number drawn from `factor`, clipped to their former range."""

    def __init__(self, factor: tuple[float, float] = (0.75, 1.25), p: float = 0.15, p_channel: float = 1.0) -> None:
        super().__init__(p, p_channel)
        self.factor = check_range("factor", factor, minimum=0)

    def change(self, x: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
        mean, _ = moments(x, valid)
        low, high = extremes(x, valid)
        new = (x - mean) * uniform(self.factor, generator) + mean
        return torch.minimum(torch.maximum(new, low), high)


class Gamma(IntensityTransform):
    """Raises values, scaled to [0, 1], to a power drawn from `gamma`; then restores mean and standard deviation.

    With probability `p_invert` the image is inverted before and after, which acts on the bright end instead.
    """

    def __init__(
        self,
        gamma: tuple[float, float] = (0.7, 1.5),
        p_invert: float = 0.25,
        p: float = 0.4,
        p_channel: float = 1.0,
    ) -> None:
        super().__init__(p, p_channel)
        self.gamma = check_range("gamma", gamma, minimum=0.05, maximum=20)
        self.p_invert = check_probability("p_invert", p_invert)

    def change(self, x: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
        power = uniform(self.gamma, generator)
        invert = torch.rand((), generator=generator).item() < self.p_invert
        mean, std = moments(x, valid)
        low, high = extremes(x, valid)
        unit = ((x - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        unit = 1 - (1 - unit) ** power if invert else unit**power
        new_mean, new_std = moments(unit, valid)
        return (unit - new_mean) / new_std.clamp(min=1e-6) * std + mean


class LowResolution(IntensityTransform):
    """Simulates a coarser scan: keeps every 1/`zoom`-th voxel (nearest), then interpolates back linearly."""

    def __init__(self, zoom: tuple[float, float] = (0.5, 1.0), p: float = 0.25, p_channel: float = 0.5) -> None:
        super().__init__(p, p_channel)
        self.zoom = check_range("zoom", zoom, minimum=0.05, maximum=1)

    def change(self, x: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
        zoom = uniform(self.zoom, generator)
        coarse = [max(1, round(n * zoom)) for n in x.shape]

        def there_and_back(field: Tensor) -> Tensor:
            with torch.autocast(field.device.type, enabled=False):
                small = F.interpolate(field[None, None], size=coarse, mode="nearest-exact")
                return F.interpolate(small, size=list(x.shape), mode="trilinear", align_corners=False)[0, 0]

        if valid is None:
            return there_and_back(x)
        weight = there_and_back(valid.to(x))
        return torch.where(weight > 1e-3, there_and_back(x * valid) / weight.clamp(min=1e-3), x)


def moments(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the valid voxels, without a device synchronisation."""
    weight = torch.ones_like(x) if valid is None else valid.to(x)
    count = weight.sum().clamp(min=1)
    mean = (x * weight).sum() / count
    return mean, (((x - mean) ** 2 * weight).sum() / count).sqrt()


def extremes(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of the valid voxels."""
    if valid is None:
        return x.amin(), x.amax()
    low = torch.where(valid, x, float("inf")).amin()
    high = torch.where(valid, x, -float("inf")).amax()
    return low, high
