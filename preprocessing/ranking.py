"""Which volumes of a store deserve a look first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from preprocessing.modality import UNSURE_FLAG
from preprocessing.quantise import MAX_SATURATED
from ssl3d.data.format import FEW_SLICES

_LEAST_FOREGROUND = 0.05  # share of the valid voxels
_LEAST_VALID = 0.1  # share of the volume
_OUTLYING = 3.5  # robust standard deviations (Iglewicz and Hoaglin 1993)
_FEWEST = 8  # volumes of a modality from which on outliers are told

RULES = (
    "1 point for few slices; up to 1 each for saturated voxels, for a foreground below 5 % of the valid voxels, for"
    " less than 10 % valid voxels, and for a spacing or intensities that lie more than 3.5 robust standard deviations"
    " from the median of their modality; half a point for an unsure modality and for a volume that looks like another;"
    " a quarter for any other flag"
)


@dataclass(frozen=True)
class Ranked:
    """A volume (`row` of the index), its points, and what they were given for."""

    row: int
    score: float
    reasons: list[str]


def rank(index: pd.DataFrame, twins: Collection[str]) -> list[Ranked]:
    """All volumes, the most suspicious first, as RULES says. `twins`: ids of volumes that look like another."""
    if len(index) == 0:
        return []
    points: dict[str, np.ndarray] = {
        "few slices": _has_flag(index, FEW_SLICES) * 1.0,
        "saturated voxels": np.minimum(1.0, index["saturated_share"].to_numpy(float) / MAX_SATURATED),
        "small foreground": _shortfall(_foreground_share(index), _LEAST_FOREGROUND),
        "few valid voxels": _shortfall(_valid_share(index), _LEAST_VALID),
        "outlying spacing": _outlying_spacing(index),
        "outlying intensity": _outlying_intensity(index),
        "modality unsure": _has_flag(index, UNSURE_FLAG) * 0.5,
        "looks like another": index["id"].isin(list(twins)).to_numpy() * 0.5,
    }
    others = [[flag for flag in flags if flag not in (FEW_SLICES, UNSURE_FLAG)] for flags in index["flags"]]
    score = sum(points.values()) + 0.25 * np.array([len(flags) for flags in others])
    ranked = []
    for row in np.lexsort((index["id"].to_numpy(str), -score)).tolist():
        reasons = [name for name, given in points.items() if given[row] > 0] + others[row]
        ranked.append(Ranked(row, float(score[row]), reasons))
    return ranked


def _has_flag(index: pd.DataFrame, flag: str) -> np.ndarray:
    return np.array([flag in flags for flags in index["flags"]], dtype=bool)


def _shortfall(share: np.ndarray, least: float) -> np.ndarray:
    """0 from `least` on, growing to 1 at nothing."""
    return np.clip(1.0 - share / least, 0.0, 1.0)


def _counts(column: pd.Series) -> np.ndarray:
    return np.array([channels[0]["count"] for channels in column], dtype=float)


def _foreground_share(index: pd.DataFrame) -> np.ndarray:
    return _counts(index["foreground_stats"]) / np.maximum(_counts(index["valid_stats"]), 1.0)


def _valid_share(index: pd.DataFrame) -> np.ndarray:
    return _counts(index["valid_stats"]) / np.array([np.prod(shape) for shape in index["shape"]], dtype=float)


def _outlying_spacing(index: pd.DataFrame) -> np.ndarray:
    """Of the source's finest and coarsest voxel size, on a logarithmic scale."""
    spacing = np.log(np.sort(np.array(index["original_spacing"].tolist(), dtype=float), axis=1))
    return _outlying(index, spacing[:, [0, 2]], np.full((len(index), 2), 0.05))


def _outlying_intensity(index: pd.DataFrame) -> np.ndarray:
    """Foreground median and spread of the first channel: HU for CT, relative to the volume's own range otherwise."""
    first = pd.DataFrame([channels[0] for channels in index["foreground_stats"]])
    low, high, middle, std = (first[key].to_numpy(float) for key in ("low", "high", "percentile_50", "clipped_std"))
    ct = np.array([names[0] == "ct" for names in index["modality"]])
    extent = np.where(ct, 1.0, np.maximum(high - low, 1e-12))
    median, spread = (middle - np.where(ct, 0.0, low)) / extent, std / extent
    floor = np.where(ct, 20.0, 0.02)  # HU, and shares of the range: less is no difference
    return _outlying(index, np.stack([median, spread], axis=1), np.stack([floor, floor], axis=1))


def _outlying(index: pd.DataFrame, values: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Points 0..1 of (n, k) values: the worst robust z-score within the modality, from 3.5 on; full points at twice."""
    points = np.zeros(len(values))
    modality = np.array([names[0] for names in index["modality"]])
    for name in np.unique(modality):
        members = np.flatnonzero(modality == name)
        if len(members) < _FEWEST:
            continue
        gap = np.abs(values[members] - np.median(values[members], axis=0))
        scale = np.maximum(1.4826 * np.median(gap, axis=0), floor[members])
        points[members] = np.clip((gap / scale).max(axis=1) / _OUTLYING - 1.0, 0.0, 1.0)
    return points
