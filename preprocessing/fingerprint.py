"""Identity of a scan's content: equal voxels have equal fingerprints, however they were stored."""

from __future__ import annotations

import hashlib

import numpy as np


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
