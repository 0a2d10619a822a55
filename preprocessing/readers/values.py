"""Voxels as stored -> physical values: integers stay exact, fractions become float32 where that loses nothing."""

from __future__ import annotations

import numpy as np

from preprocessing.refusal import Refusal

_SINGLE = 2.0**-24  # relative error of a float32
_STEPS = 65535 * 8  # an eighth of a step of the int16 that a volume becomes
_ROUGHER = 1.7  # times: neighbours of a volume read in the wrong byte order differ so much more (scans: 2 and up)
_SMOOTH = 0.7  # mean step between neighbours in standard deviations; white noise has 1.1
_PLAUSIBLE = 1e10


def check_byte_order(raw: np.ndarray) -> None:
    """Raises Refusal `byte_order` when the bytes of (X, Y, Z) voxels make an image only in the other order."""
    if raw.dtype.itemsize == 1 or raw.dtype.kind not in "iuf" or min(raw.shape) < 2:
        return
    planes = [np.moveaxis(raw, axis, 0)[raw.shape[axis] // 2] for axis in range(3)]
    swapped = [np.ascontiguousarray(plane).byteswap() for plane in planes]
    with np.errstate(all="ignore"):
        if raw.dtype.kind == "f":
            wrong = not _all_plausible(planes) and _all_plausible(swapped)
        else:
            own, other = _roughness(planes), _roughness(swapped)
            wrong = (other < _SMOOTH and own > _ROUGHER * other) or _only_high_bytes(raw)
    if wrong:
        raise Refusal("byte_order", "the voxels make an image only when their bytes are swapped")


def _all_plausible(planes: list[np.ndarray]) -> bool:
    """Whether all values are numbers that a scan may hold, and not all too small to be anything."""
    peak = max(float(np.abs(plane.astype(np.float64)).max()) for plane in planes)
    return bool(np.isfinite(peak)) and 1e-20 < peak < _PLAUSIBLE


def _roughness(planes: list[np.ndarray]) -> float:
    """Mean absolute step between neighbours in standard deviations."""
    steps, spread = 0.0, 0.0
    for plane in planes:
        exact = plane.astype(np.float64)
        steps += float(np.abs(np.diff(exact, axis=0)).mean() + np.abs(np.diff(exact, axis=1)).mean()) / 2
        spread += float(exact.std())
    return steps / spread if spread else 0.0


def _only_high_bytes(raw: np.ndarray) -> bool:
    """Whether every voxel is a multiple of 256^(bytes - 1): an 8-bit image whose bytes are in the wrong place."""
    unit = 256 ** (raw.dtype.itemsize - 1)
    middle = raw[:, :, raw.shape[2] // 2]
    return bool(middle.any()) and not (middle % unit).any() and not (raw % unit).any()


def physical(raw: np.ndarray, slope: float = 1.0, inter: float = 0.0) -> np.ndarray:
    """slope * raw + inter, in the machine's byte order: integers where all of these are, else float32.

    float64 only where float32 would be off by more than an eighth of the step that the volume is stored with (large
    integers in a narrow range), or would overflow.
    """
    native = raw.dtype.newbyteorder("=")
    if slope == 1.0 and raw.dtype.kind in "iu" and inter == round(inter) and abs(inter) < 2**31:
        if inter == 0.0:
            return raw.astype(native, copy=False)
        wide = np.int32 if raw.dtype.itemsize <= 2 else np.int64
        return np.add(raw.astype(wide), int(inter), dtype=wide)
    if raw.dtype.kind == "f" and raw.dtype.itemsize <= 4 and (slope, inter) == (1.0, 0.0):
        return raw.astype(np.float32, copy=False)
    out = np.empty(raw.shape, _float_for(raw, slope, inter), order="F")
    for k in range(raw.shape[2]):
        out[:, :, k] = raw[:, :, k].astype(np.float64) * slope + inter
    return out


def _float_for(raw: np.ndarray, slope: float, inter: float) -> type[np.floating]:
    """float32 where it is good enough for slope * raw + inter."""
    low, high = np.inf, -np.inf
    for k in range(raw.shape[2]):
        plane = raw[:, :, k]
        finite = plane[np.isfinite(plane)] if plane.dtype.kind == "f" else plane
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if high < low:
        return np.float32
    ends = slope * low + inter, slope * high + inter
    peak, span = max(map(abs, ends)), abs(ends[1] - ends[0])
    return np.float32 if peak < np.finfo(np.float32).max and peak * _SINGLE <= span / _STEPS else np.float64
