"""One scan -> one stored volume: canonical axes, resampling, validity, foreground, int16, statistics, label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocessing import labels as label_steps
from preprocessing import modality as modalities
from preprocessing.fingerprint import fingerprint
from preprocessing.foreground import foreground
from preprocessing.geometry import (
    FEW_SLICES_BELOW,
    MIN_SLICES,
    AxisGrid,
    Canonical,
    Scan,
    canonical,
    orientation_of,
    resampled_grid,
    spacing_of,
    target_spacing,
)
from preprocessing.masks import looks_like_labels
from preprocessing.quantise import Quantised, quantise
from preprocessing.refusal import Refusal
from preprocessing.resample import resample, resample_mask
from preprocessing.source import Source
from preprocessing.stats import channel_stats
from preprocessing.unmeasured import BELOW_AIR, blanked, outside_circle, padding
from ssl3d.data.format import FEW_SLICES, LabelInfo, VolumeAttributes

NOT_FINITE_FLAG = "not_finite"  # some voxels were NaN or infinite; they are air now, and valid=0
MAX_NOT_FINITE = 0.5  # share of the voxels
_AIR_SAMPLE = 1_000_000  # voxels that tell what air is worth
MAX_VOXELS = 1 << 31  # of one channel: 8 GiB as float32

Spacing = str | tuple[float, float, float]


@dataclass
class Volume:
    """What `write_volume` takes."""

    image: np.ndarray
    attributes: VolumeAttributes
    label: np.ndarray | None = None
    label_info: LabelInfo | None = None
    valid: np.ndarray | None = None
    label_original: np.ndarray | None = None


@dataclass
class _Channel:
    """One channel on the stored grid: finite physical values (Z, Y, X) and the voxels that were measured."""

    values: np.ndarray
    valid: np.ndarray | None
    modality: str
    replaced: bool = False  # some voxels were not finite


def build(volume_id: str, source: Source, scan: Scan, label: Scan | None, spacing: Spacing, modality: str) -> Volume:
    """Everything that is stored of one scan. `label`: its label's file as read. Raises Refusal."""
    image = canonical(scan)
    _check_extent(image)
    label_original = None
    if label is not None:
        moved = canonical(label)
        label_steps.check_grid(moved, image)
        label_original = label_steps.as_integers(moved.data[0])
    if label is None and any(looks_like_labels(channel) for channel in image.data):
        raise Refusal("looks_like_labels")
    guesses = modalities.of_channels(image.data, modality, scan.modality or source.modality)
    axes, affine = resampled_grid(
        image.data.shape[1:], image.affine, target_spacing(spacing, list(spacing_of(image.affine)))
    )
    if math.prod(grid.n for grid in axes) > MAX_VOXELS:
        raise Refusal(
            "too_large", f"{[grid.n for grid in axes]} voxels at this spacing: convert it with --spacing keep"
        )
    channels = [_channel(image, c, guess.modality, axes) for c, guess in enumerate(guesses)]
    content, thinnest = fingerprint(image.data), min(image.data.shape[1:])
    del image  # from here on the stored grid is all that is needed
    attributes, stored, valid = _describe(source, scan, content, channels, affine, axes)
    if thinnest < FEW_SLICES_BELOW:
        attributes.flags.append(FEW_SLICES)
    if any(guess.unsure for guess in guesses):
        attributes.flags.append(modalities.UNSURE_FLAG)
    volume = Volume(stored, attributes, valid=valid)
    if label_original is not None:
        on_grid = label_steps.resample_labels(label_original, axes)
        volume.label, volume.label_original = on_grid[None], label_original[None]
        volume.label_info = label_steps.label_info(volume_id, on_grid, source.classes, source.ignore)
    return volume


def _check_extent(image: Canonical) -> None:
    """Raises Refusal `too_few_slices`."""
    thinnest = min(image.data.shape[1:])
    if thinnest < MIN_SLICES:
        raise Refusal(
            "too_few_slices", f"the thinnest axis has {thinnest} voxels, a volume needs at least {MIN_SLICES}"
        )


def _channel(image: Canonical, index: int, modality: str, axes: list[AxisGrid]) -> _Channel:
    """One channel on the stored grid. Not finite: replaced by air. Padding: air to the resampler, untouched if kept.

    Raises Refusal `not_finite` or `constant`.
    """
    where = f"channel {index}: " if len(image.data) > 1 else ""
    values, missing = _finite(image.data[index], where)
    invalid, (low, high) = _unmeasured(values, missing, image, modality, where)
    if invalid is None:
        kept = all(grid.unchanged for grid in axes)
        return _Channel(values if kept else resample(values, axes), None, modality)
    step = max(1, values.size // _AIR_SAMPLE)
    air = modalities.air_value(values.reshape(-1)[::step][~invalid.reshape(-1)[::step]], modality)
    if missing is not None:
        values = np.where(missing, np.float32(air), values)
    if all(grid.unchanged for grid in axes):
        return _Channel(values, ~invalid, modality, missing is not None)
    low, high = _plausible(low, high, modality)
    hidden = invalid.copy()  # those of them that would ring into what was measured
    for mask, plane in zip(hidden, values):
        mask &= (plane < low) | (plane > high)
    moved = resample(values, axes, hidden=hidden if hidden.any() else None, fill=air)
    del hidden
    return _Channel(moved, ~resample_mask(invalid, axes), modality, missing is not None)


def _finite(values: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(values, voxels that are not finite or None). Raises Refusal `not_finite` or `mostly_not_finite`."""
    if values.dtype.kind != "f":
        return values, None
    missing = ~np.isfinite(values)
    share = float(missing.mean())
    if share == 1.0:
        raise Refusal("not_finite", f"{where}no voxel holds a finite value")
    if share > MAX_NOT_FINITE:
        raise Refusal("mostly_not_finite", f"{where}{share:.0%} of the voxels are not finite, at most half may be")
    return values, missing if share > 0 else None


def _unmeasured(
    values: np.ndarray, missing: np.ndarray | None, image: Canonical, modality: str, where: str
) -> tuple[np.ndarray | None, tuple[float, float]]:
    """(voxels without a measured value, the range of all others).

    Not finite, declared by the file, outside the circle, padded, blanked. A blanked surrounding of a single value is no
    reason to call the scan constant. Raises Refusal `constant`.
    """
    spacing = spacing_of(image.affine).tolist()
    masks = [missing, image.invalid, *(find(values, spacing) for find in (padding, outside_circle) if modality == "ct")]
    invalid = _union(masks)
    span = _range(values, invalid)
    if span is None or span[0] == span[1]:
        held = "padding" if span is None else f"{span[0]:g}"
        raise Refusal("constant", f"{where}all voxels hold one value ({held})")
    both = _union([invalid, blanked(values, modality)])
    if both is None or both is invalid:
        return invalid, span
    inside = _range(values, both)
    return (invalid, span) if inside is None or inside[0] == inside[1] else (both, inside)


def _range(values: np.ndarray, invalid: np.ndarray | None) -> tuple[float, float] | None:
    """(minimum, maximum) of the other voxels, None when there are none; plane by plane, so that nothing is copied."""
    seen = (plane if invalid is None else plane[~invalid[k]] for k, plane in enumerate(values))
    ends = [(float(part.min()), float(part.max())) for part in seen if part.size]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def _union(masks: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The union of those masks that are there and hold something."""
    found = [mask for mask in masks if mask is not None and mask.any()]
    if len(found) < 2:
        return found[0] if found else None
    return np.logical_or.reduce(found)


def _plausible(low: float, high: float, modality: str) -> tuple[float, float]:
    """The range that unmeasured voxels may hold without ringing into the scan: its own and a tenth more."""
    margin = 0.1 * (high - low)
    return (BELOW_AIR if modality == "ct" else low - margin), high + margin


def _joint_valid(channels: list[_Channel]) -> np.ndarray | None:
    """(Z, Y, X) bool of voxels that every channel measured; None when that is all of them."""
    masks = [channel.valid for channel in channels if channel.valid is not None]
    if not masks:
        return None
    joint = masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)
    return None if joint.all() else joint


def _describe(
    source: Source, scan: Scan, content: str, channels: list[_Channel], affine: np.ndarray, axes: list[AxisGrid]
) -> tuple[VolumeAttributes, np.ndarray, np.ndarray | None]:
    """(attributes, stored image (C, Z, Y, X), valid (1, Z, Y, X) or None). `content`: the fingerprint."""
    valid = _joint_valid(channels)
    kept = all(grid.unchanged for grid in axes)
    spacing = [float(s) for s in spacing_of(affine)]
    quantised: list[Quantised] = [quantise(c.values, valid, c.modality, kept_grid=kept) for c in channels]
    leading = next((c for c in channels if c.modality == "ct"), channels[0])
    mask, box = foreground(leading.values, spacing, leading.modality, valid)
    stats = [channel_stats(q.stored, valid, mask, q.scale, q.offset, c.modality) for q, c in zip(quantised, channels)]
    flags = list(scan.flags)
    if any(channel.replaced for channel in channels):
        flags.append(NOT_FINITE_FLAG)
    attributes = VolumeAttributes(
        spacing=spacing,
        affine=affine.tolist(),
        scale=[q.scale for q in quantised],
        offset=[q.offset for q in quantised],
        modality=[c.modality for c in channels],
        original_affine=np.asarray(scan.affine, dtype=np.float64).tolist(),
        original_shape=[int(n) for n in scan.data.shape[1:]],
        original_spacing=[float(s) for s in spacing_of(scan.affine)],
        original_orientation=orientation_of(scan.affine),
        foreground_box=box,
        foreground_stats=[inside for inside, _ in stats],
        valid_stats=[everywhere for _, everywhere in stats],
        subject=source.subject,
        session=source.session,
        fingerprint=content,
        source=source.public,
        targets=dict(source.targets),
        flags=flags,
        quantisation=[{"max_error": q.max_error, "saturated_share": q.saturated_share} for q in quantised],
    )
    stored = quantised[0].stored[None] if len(quantised) == 1 else np.stack([q.stored for q in quantised])
    return attributes, stored, None if valid is None else valid[None].view(np.uint8)
