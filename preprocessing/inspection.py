"""inspect: what a store holds, in words and as one self-contained page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from preprocessing.duplicates import Near, read_duplicates
from preprocessing.page import Chart, page
from preprocessing.ranking import Ranked, rank
from preprocessing.refusal import REASONS
from preprocessing.report import Row, read_refused
from ssl3d.data.objects import is_url, open_objects
from ssl3d.data.store import Store, open_store

SHOWN = 12  # volumes of the montage
_NAMED = 5  # volumes and pairs named in the text

_CHARTED = {
    "percentile_00_5": "0.5 percentile",
    "percentile_50": "median",
    "percentile_99_5": "99.5 percentile",
    "std": "standard deviation",
}

Section = tuple[str, list[tuple[str, str]]]


def inspect(store: str | Path, html: str | Path | None = None) -> str:
    """A report of counts, spacings, intensities, flags, refusals, duplicates and the volumes to look at first.

    `html`: a page of the same with histograms and pictures is written there.
    Raises FileNotFoundError naming a store that is not there.
    """
    opened = open_store(store)
    index = opened.index
    refused = read_refused(open_objects(store))
    twins = read_duplicates(store)
    ranked = rank(index, {name for near in twins for name in (near.volume, near.other)})
    sections = [("volumes", _volumes(opened, index))]
    if len(index):
        sections += [("spacing and size", _geometry(index)), ("intensity", _intensity(index))]
    if html is not None:
        name = str(store).rstrip("/").rsplit("/", 1)[-1] if is_url(store) else Path(store).resolve().name
        chosen = ranked[:SHOWN]
        text = page(name, opened, sections, _charts(index), chosen, refused, twins)
        Path(html).write_text(text, encoding="utf-8")
    sections += _findings(index, refused, twins, ranked)
    return "\n".join(line for title, rows in sections for line in [title, *(f"  {k}: {v}" for k, v in rows)])


def _findings(index: pd.DataFrame, refused: list[Row], twins: list[Near], ranked: list[Ranked]) -> list[Section]:
    """What is to be looked at: flags, refusals, pairs, and the worst volumes."""
    flags = Counter(flag for row in index["flags"] for flag in row)
    reasons = Counter(reason for _, reason, _ in refused)
    named = [(reason, f"{n} ({REASONS.get(reason, reason)})") for reason, n in sorted(reasons.items())]
    pairs = [(near.volume, f"{near.other} (correlation {near.correlation:.3f})") for near in twins[:_NAMED]]
    if len(twins) > _NAMED:
        pairs.append(("and more", f"{len(twins) - _NAMED} pairs, in duplicates.csv"))
    worst = [r for r in ranked[:_NAMED] if r.score > 0]
    look = [(index["id"].iloc[r.row], f"{', '.join(r.reasons)} ({r.score:.2f})") for r in worst]
    return [
        ("flags", [(name, str(n)) for name, n in sorted(flags.items())] or [("none", "no volume is flagged")]),
        ("refused", named or [("none", "nothing was refused")]),
        ("pairs that look alike", pairs or [("none", "no two volumes look alike")]),
        ("look at first", look or [("none", "no volume stands out")]),
    ]


def _volumes(store: Store, index: pd.DataFrame) -> list[tuple[str, str]]:
    size = int(index["bytes"].sum()) if len(index) else 0
    modalities = Counter(name for row in index["modality"] for name in row)
    return [
        ("store", store.path),
        ("volumes", str(len(index))),
        ("subjects", str(index["subject"].nunique())),
        ("with labels", str(int(index["has_label"].sum()))),
        ("with targets", str(sum(bool(targets) for targets in index["targets"]))),
        ("with voxels that were not measured", str(int(index["has_valid"].sum()))),
        ("channels by modality", ", ".join(f"{name} {n}" for name, n in sorted(modalities.items())) or "none"),
        ("size of the volumes", f"{size / 2**20:.1f} MiB"),
    ]


def _spread(values: Iterable[float]) -> str:
    numbers = np.asarray(list(values), dtype=float)
    return f"median {np.median(numbers):.4g}, from {numbers.min():.4g} to {numbers.max():.4g}"


def _geometry(index: pd.DataFrame) -> list[tuple[str, str]]:
    spacing = np.array(index["spacing"].tolist())
    shape = np.array(index["shape"].tolist())
    source = np.sort(np.array(index["original_spacing"].tolist()), axis=1)
    rows = [(f"spacing {name} (mm)", _spread(spacing[:, axis])) for axis, name in enumerate("zyx")]
    rows += [("finest spacing of the source (mm)", _spread(source[:, 0]))]
    rows += [("coarsest spacing of the source (mm)", _spread(source[:, 2]))]
    return rows + [(f"size {name} (voxels)", _spread(shape[:, axis])) for axis, name in enumerate("zyx")]


def _by_modality(index: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{modality: foreground statistics, a row a channel}, physical units."""
    found: dict[str, list[dict[str, float]]] = {}
    for modalities, stats in zip(index["modality"], index["foreground_stats"]):
        for modality, channel in zip(modalities, stats):
            found.setdefault(modality, []).append(channel)
    return {modality: pd.DataFrame(found[modality]) for modality in sorted(found)}


def _intensity(index: pd.DataFrame) -> list[tuple[str, str]]:
    """Foreground numbers by modality."""
    keys = ("percentile_00_5", "percentile_50", "percentile_99_5", "mean", "std")
    return [
        (f"{modality} foreground {key}", _spread(stats[key]))
        for modality, stats in _by_modality(index).items()
        for key in keys
    ]


def _charts(index: pd.DataFrame) -> list[tuple[str, list[Chart]]]:
    """The histograms of the page, by heading."""
    if len(index) == 0:
        return []
    spacing, shape = np.array(index["spacing"].tolist()), np.array(index["shape"].tolist())
    source = np.sort(np.array(index["original_spacing"].tolist()), axis=1)
    groups = [
        (
            "Spacing",
            [
                Chart("finest in the source", "mm", source[:, 0]),
                Chart("coarsest in the source", "mm", source[:, 2]),
                *(Chart(f"stored, {name}", "mm", spacing[:, axis]) for axis, name in enumerate("zyx")),
            ],
        ),
        ("Size", [Chart(f"field of view, {n}", "mm", (shape * spacing)[:, a]) for a, n in enumerate("zyx")]),
    ]
    for modality, stats in _by_modality(index).items():
        unit = "HU" if modality == "ct" else ""
        charts = [Chart(f"foreground {name}", unit, stats[key].to_numpy()) for key, name in _CHARTED.items()]
        groups.append((f"Intensity, {modality.upper()}", charts))
    return groups
