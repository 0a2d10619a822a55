"""Values that no scan holds: what damaged bytes, a wrong type or an empty export look like once they are read."""

from __future__ import annotations

import numpy as np

from preprocessing.geometry import Scan
from preprocessing.refusal import Refusal

HIGHEST = 1e10  # PET in Bq/ml stays below 1e8, MR below 1e6
LOWEST = 1e-20  # of a volume's largest magnitude; maps in SI units hold 1e-9
HIGHEST_SHARE = 1e6  # largest magnitude over the 99th percentile of those that are not zero
_SAMPLE = 1_000_000


def check_values(scan: Scan) -> None:
    """Raises Refusal `all_zero` or `implausible_values`; voxels that are not finite are not its matter."""
    for number, channel in enumerate(scan.data):
        where = f"channel {number}: " if len(scan.data) > 1 else ""
        peak = _peak(channel)
        if peak == 0.0:
            raise Refusal("all_zero", f"{where}all voxels are zero")
        if peak is None:
            continue
        if peak > HIGHEST or peak < LOWEST:
            raise Refusal("implausible_values", f"{where}the largest magnitude is {peak:.3g}, which no scan holds")
        if channel.dtype.kind == "f" and peak > HIGHEST_SHARE * _usual(channel):
            raise Refusal(
                "implausible_values", f"{where}a voxel of {peak:.3g} among voxels of {_usual(channel):.3g} is damage"
            )


def _peak(channel: np.ndarray) -> float | None:
    """Largest magnitude of the finite voxels of (X, Y, Z); None where nothing can be said."""
    peak: float | None = None
    missing = False
    for k in range(channel.shape[2]):
        plane = channel[:, :, k]
        if plane.dtype.kind == "f":
            finite = np.isfinite(plane)
            if not finite.all():
                plane, missing = plane[finite], True
        if plane.size:
            peak = max(peak or 0.0, float(plane.max()), -float(plane.min()))
    return None if missing and not peak else peak


def _usual(channel: np.ndarray) -> float:
    """99th percentile of the magnitudes that are neither zero nor infinite, of a million voxels evenly spread."""
    sample = np.abs(channel.ravel(order="K")[:: max(1, channel.size // _SAMPLE)].astype(np.float64))
    sample = sample[np.isfinite(sample) & (sample > 0)]
    return float(np.percentile(sample, 99)) if sample.size else np.inf
