"""What kind of scan it is, what its air is worth, and which voxels the scanner never measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CT_AIR = -1000.0  # HU
_PADDING_CONSTANTS = (-2000, -2048, -3000, -3024, -3071, -4096)  # outside the scan circle, by vendor
_BELOW_AIR = -1100.0  # HU; a constant below it that fills a share of the volume is padding, noise is no constant
_PADDING_SHARE = 1e-3
_SPIKE = 10.0  # times as frequent as the values around it
_WORDS = {
    "ct": ("ct", "computed tomography", "hu"),
    "pet": ("pet", "pt", "suv"),
    "mr": ("mr", "mri", "t1", "t1w", "t1gd", "t1ce", "t1c", "t2", "t2w", "t2f", "flair", "adc", "dwi", "pd", "bold",
           "fmri", "mra", "swi", "lge"),
}  # fmt: skip


def from_name(name: str) -> str | None:
    """Modality that a data set's channel name states ("MRI", "T1w", "CT"); None when it states none."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    for modality, known in _WORDS.items():
        if any(word in known for word in words) or name.lower() in known:
            return modality
    return None


def infer(values: np.ndarray) -> str:
    """Whether one channel (any shape, physical values) looks like HU: "ct", else "mr".

    HU: a peak of air or lung (-1200 to -700) and one of soft tissue (-150 to 150), with less between them, where hardly
    any tissue lies; all inside what scanners can store.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.reshape(-1)
    sample = finite[:: max(1, finite.size // 1_000_000)].astype(np.float64)
    if sample.size == 0 or sample.min() < -32768 or sample.max() > 32767 or sample.min() > -700:
        return "mr"
    air = np.mean((sample >= -1200) & (sample <= -700))
    between = np.mean((sample > -600) & (sample < -300))
    tissue = np.mean((sample >= -150) & (sample <= 150))
    return "ct" if air >= 0.005 and tissue >= 0.02 and tissue > between else "mr"


def of_channels(data: np.ndarray, requested: str, stated: Sequence[str | None] | None) -> list[str]:
    """Modality per channel of (C, Z, Y, X): what the user requested, else what the source states, else inferred."""
    if requested != "auto":
        return [requested] * len(data)
    given = list(stated or [None] * len(data))
    return [name if name is not None else infer(channel) for name, channel in zip(given, data)]


def padding(values: np.ndarray, modality: str) -> np.ndarray | None:
    """Voxels outside a CT's scan circle (Z, Y, X) bool, or None when there are none.

    Known padding constants, and any constant below air that fills at least 0.1 % of the volume and is ten times as
    frequent as the values around it: noise below air is neither.
    """
    if modality != "ct":
        return None
    low = values < _BELOW_AIR
    if not low.any():
        return None
    candidates, counts = np.unique(values[low], return_counts=True)
    spike = counts >= _SPIKE * _typical_around(candidates, counts)
    constant = (spike & (counts >= _PADDING_SHARE * values.size)) | np.isin(candidates, _PADDING_CONSTANTS)
    if not constant.any():
        return None
    return np.isin(values, candidates[constant]) if constant.sum() > 1 else values == candidates[constant][0]


def _typical_around(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Voxels per HU within 5 HU of each of the sorted `values`, itself left out."""
    cumulative = np.concatenate([[0], np.cumsum(counts)])
    low, high = np.searchsorted(values, values - 5, "left"), np.searchsorted(values, values + 5, "right")
    return (cumulative[high] - cumulative[low] - counts) / 10.0


def air_value(values: np.ndarray, modality: str) -> float:
    """What an empty voxel holds: -1000 HU for CT, the 0.5 percentile of the given (finite) values otherwise."""
    if modality == "ct":
        return CT_AIR
    return float(np.percentile(values[:: max(1, values.size // 1_000_000)], 0.5))
