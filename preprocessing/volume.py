"""One scan -> one stored volume: canonical axes, resampling, validity, foreground, int16, statistics, label."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from preprocessing import labels as label_steps
from preprocessing import modality as modalities
from preprocessing.fingerprint import fingerprint, perceptual_hash
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
from preprocessing.quantise import Quantised, quantise
from preprocessing.refusal import Refusal
from preprocessing.resample import resample, resample_mask
from preprocessing.source import Source
from preprocessing.stats import channel_stats
from ssl3d.data.format import FEW_SLICES, LabelInfo, VolumeAttributes

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


def build(volume_id: str, source: Source, scan: Scan, label: Scan | None, spacing: Spacing, modality: str) -> Volume:
    """Everything that is stored of one scan. `label`: its label's file as read. Raises Refusal."""
    image = canonical(scan)
    _check_extent(image)
    label_original = None
    if label is not None:
        moved = canonical(label)
        label_steps.check_grid(moved, image)
        label_original = label_steps.as_integers(moved.data[0])
    names = modalities.of_channels(image.data, modality, scan.modality or source.modality)
    axes, affine = resampled_grid(
        image.data.shape[1:], image.affine, target_spacing(spacing, list(spacing_of(image.affine)))
    )
    if math.prod(grid.n for grid in axes) > MAX_VOXELS:
        raise Refusal(
            "too_large", f"{[grid.n for grid in axes]} voxels at this spacing: convert it with --spacing keep"
        )
    channels = [_channel(image, c, name, axes) for c, name in enumerate(names)]
    attributes, stored, valid = _describe(source, scan, image, channels, affine, axes)
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
    values = image.data[index]
    where = f"channel {index}: " if len(image.data) > 1 else ""
    invalid = np.zeros(values.shape, bool)
    if values.dtype.kind == "f":
        invalid = ~np.isfinite(values)
        if invalid.all():
            raise Refusal("not_finite", f"{where}no voxel holds a finite value")
    missing = invalid
    for mask in (modalities.padding(values, modality), image.invalid if modality == "ct" else None):
        if mask is not None:
            invalid = invalid | mask
    measured = values[~invalid]
    if measured.size == 0 or measured.min() == measured.max():
        held = f"{float(measured[0]):g}" if measured.size else "padding"
        raise Refusal("constant", f"{where}all voxels hold one value ({held})")
    air = modalities.air_value(measured, modality)
    if missing.any():
        values = np.where(missing, np.float32(air), values)
    some = bool(invalid.any())
    if all(grid.unchanged for grid in axes):
        return _Channel(values, ~invalid if some else None, modality)
    if not some:
        return _Channel(resample(values, axes), None, modality)
    return _Channel(resample(values, axes, hidden=invalid, fill=air), ~resample_mask(invalid, axes), modality)


def _joint_valid(channels: list[_Channel]) -> np.ndarray | None:
    """(Z, Y, X) bool of voxels that every channel measured; None when that is all of them."""
    masks = [channel.valid for channel in channels if channel.valid is not None]
    if not masks:
        return None
    joint = np.logical_and.reduce(masks)
    return None if joint.all() else joint


def _describe(
    source: Source, scan: Scan, image: Canonical, channels: list[_Channel], affine: np.ndarray, axes: list[AxisGrid]
) -> tuple[VolumeAttributes, np.ndarray, np.ndarray | None]:
    """(attributes, stored image (C, Z, Y, X), valid (1, Z, Y, X) or None)."""
    valid = _joint_valid(channels)
    kept = all(grid.unchanged for grid in axes)
    spacing = [float(s) for s in spacing_of(affine)]
    quantised: list[Quantised] = [quantise(c.values, valid, c.modality, kept_grid=kept) for c in channels]
    leading = next((c for c in channels if c.modality == "ct"), channels[0])
    mask, box = foreground(leading.values, spacing, leading.modality, valid)
    stats = [channel_stats(q.stored, valid, mask, q.scale, q.offset, c.modality) for q, c in zip(quantised, channels)]
    flags = list(scan.flags)
    if min(image.data.shape[1:]) < FEW_SLICES_BELOW:
        flags.append(FEW_SLICES)
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
        fingerprint=fingerprint(image.data),
        source=source.public,
        perceptual_hash=perceptual_hash(channels[0].values, stats[0][1].low, stats[0][1].high),
        targets=dict(source.targets),
        flags=flags,
        quantisation=[{"max_error": q.max_error, "saturated_share": q.saturated_share} for q in quantised],
    )
    return attributes, np.stack([q.stored for q in quantised]), None if valid is None else valid[None].astype(np.uint8)
