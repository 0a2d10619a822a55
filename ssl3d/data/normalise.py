"""The numbers that a volume's intensities are clipped and scaled with; applied on the device by RegionBatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssl3d.data.format import CT_WINDOW
from ssl3d.data.source import Source

KEYS = ("low", "high", "mean", "std")
Normalise = str | Mapping[str, Any]


def auto(store: Source, row: int) -> dict[str, list[float]]:
    """{"low", "high", "mean", "std"}: a list over the volume's channels, in physical units.

    CT: clipped to [-1000, 1000] HU, then the mean and std of all foreground voxels of the store after that clipping.
    Everything else: clipped to the volume's own 0.5 and 99.5 percentiles of valid voxels, then their mean and std.
    """
    numbers: dict[str, list[float]] = {key: [] for key in KEYS}
    for modality, stats in zip(store.cell("modality", row), store.cell("valid_stats", row)):
        if modality == "ct":
            pooled = store.statistics.get("ct")
            if pooled is None:
                raise ValueError(
                    f"store {store.path} has no pooled CT statistics: finish it by running ssl3d convert again"
                )
            channel = (*CT_WINDOW, pooled["clipped_mean"], pooled["clipped_std"])
        else:
            channel = (stats["low"], stats["high"], stats["clipped_mean"], stats["clipped_std"])
        _append(numbers, channel)
    return numbers


def resolve(normalise: Normalise, store: Source, row: int) -> dict[str, list[float]]:
    """The numbers of a volume under `data.normalise`.

    `normalise`: "auto"; {low, high, mean, std} for every channel of every volume; or {modality: either of them}.
    Raises ValueError naming `data.normalise` and the key that is missing or wrong.
    """
    if normalise == "auto":
        return auto(store, row)
    check(normalise)
    assert isinstance(normalise, Mapping)
    if set(normalise) == set(KEYS):
        normalise = dict.fromkeys(store.cell("modality", row), normalise)
    by_default = auto(store, row)
    numbers: dict[str, list[float]] = {key: [] for key in KEYS}
    for channel, modality in enumerate(store.cell("modality", row)):
        if modality not in normalise:
            raise ValueError(
                f"data.normalise has no entry for modality '{modality}' of volume {store.volume_id(row)}: "
                f'add "{modality}: auto" or its low, high, mean and std'
            )
        given = normalise[modality]
        source = {key: by_default[key][channel] for key in KEYS} if given == "auto" else given
        _append(numbers, tuple(float(source[key]) for key in KEYS))
    return numbers


def check(normalise: Normalise) -> None:
    """Raises ValueError naming `data.normalise` when it is neither "auto" nor a mapping that `resolve` understands."""
    if normalise == "auto":
        return
    if not isinstance(normalise, Mapping):
        raise ValueError(f"data.normalise is '{normalise}': it must be auto or a mapping with low, high, mean and std")
    entries = {"": normalise} if set(normalise) & set(KEYS) else normalise
    for name, entry in entries.items():
        prefix = f"data.normalise.{name}" if name else "data.normalise"
        if entry == "auto":
            continue
        if not isinstance(entry, Mapping) or set(entry) != set(KEYS):
            raise ValueError(f"{prefix} must be auto or have exactly the keys low, high, mean and std")
        if not (entry["low"] < entry["high"] and entry["std"] > 0):
            raise ValueError(f"{prefix} needs low < high and std > 0")


def describe(stores: Sequence[Source], normalise: Normalise) -> dict[str, Any]:
    """What `normalise` means for these stores, in plain types: recorded in the run and in every export."""
    check(normalise)
    if normalise != "auto":
        return {"normalise": {k: dict(v) if isinstance(v, Mapping) else v for k, v in dict(normalise).items()}}  # type: ignore[arg-type]
    modalities: dict[str, Any] = {}
    for store in stores:
        for modality, pooled in store.statistics.items():
            entry: dict[str, Any]
            if modality == "ct":
                low, high = CT_WINDOW
                entry = {"low": low, "high": high, "mean": pooled["clipped_mean"], "std": pooled["clipped_std"]}
            else:
                entry = {"percentiles": [0.5, 99.5], "of": "each volume's valid voxels", "then": "z-score"}
            modalities.setdefault(modality, {})[store.path] = entry
    return {"normalise": "auto", "modalities": modalities}


def _append(numbers: dict[str, list[float]], channel: Sequence[float]) -> None:
    for key, value in zip(KEYS, channel):
        numbers[key].append(float(value))
    if numbers["std"][-1] <= 0:  # a constant channel normalises to zeros
        numbers["std"][-1] = 1.0
