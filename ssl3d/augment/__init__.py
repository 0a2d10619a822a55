"""Batched, on-device augmentation: image, label and valid moved by one geometry, everything drawn per sample."""

from ssl3d.augment.compose import Compose, centre_crop, check_differ
from ssl3d.augment.intensity import (
    Brightness,
    Contrast,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    IntensityTransform,
    LowResolution,
)
from ssl3d.augment.spatial import SpatialTransform
from ssl3d.augment.transform import Transform

__all__ = [
    "Brightness",
    "Compose",
    "Contrast",
    "Gamma",
    "GaussianBlur",
    "GaussianNoise",
    "IntensityTransform",
    "LowResolution",
    "SpatialTransform",
    "Transform",
    "centre_crop",
    "check_differ",
]
