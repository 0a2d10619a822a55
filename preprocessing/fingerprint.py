"""Identity of a scan's content: an exact fingerprint, and a hash that proposes near duplicates."""

from __future__ import annotations

import hashlib

import numpy as np
from scipy import fft

from preprocessing.geometry import AxisGrid
from preprocessing.resample import apply_operators, operator

_HASH_SIDE = 16


def fingerprint(data: np.ndarray) -> str:
    """blake2b (16 bytes, hex) of canonical source voxels (C, Z, Y, X): before resampling and quantising.

    Canonical: on the store's axes, physical values as float32, one NaN and one zero. So the same voxels stored
    int16 or float32, LPS or RAS, compressed or not, have one fingerprint; the affine does not enter.
    """
    digest = hashlib.blake2b(np.asarray(data.shape, dtype="<i8").tobytes(), digest_size=16)
    for channel in data:
        for plane in channel:
            values = plane.astype("<f4") + np.float32(0.0)
            if not np.isfinite(values).all():
                values[np.isnan(values)] = np.nan
            digest.update(values.tobytes())
    return digest.hexdigest()


def perceptual_hash(values: np.ndarray, low: float, high: float) -> str:
    """64-bit hash (16 hex digits) of the look of a volume (Z, Y, X) clipped to [low, high].

    Signs of the lowest 4x4x4 cosine coefficients of a 16^3 picture of the whole volume against their median (Zauner
    2010, in 3D). It only proposes candidates: a near duplicate is declared on thumbnails.
    """
    steps = [max(1, n // (4 * _HASH_SIDE)) for n in values.shape]
    sample = np.clip(values[:: steps[0], :: steps[1], :: steps[2]].astype(np.float32), low, high)
    grids = [AxisGrid(n, _HASH_SIDE, n / _HASH_SIDE / 2 - 0.5, n / _HASH_SIDE) for n in sample.shape]
    picture = apply_operators(sample, [operator(g, "linear") for g in grids]).astype(np.float64)
    low_frequencies = fft.dctn(picture, norm="ortho")[:4, :4, :4].ravel()
    bits = low_frequencies > np.median(low_frequencies[1:])
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"
