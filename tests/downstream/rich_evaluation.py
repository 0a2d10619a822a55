"""A realistic evaluation made of random numbers: methods with several runs, steps, a probe, a classified volume target.

Unlike synthetic_evaluation.py it has everything a report can show at once; its effects are known and plausible.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from synthetic_evaluation import write_evaluation

from downstream.results import COLUMNS, MEAN_FOREGROUND
from ssl3d.seeding import numpy_generator

CLASSES = ("anterior", "posterior")
BASE = {1: 0.60, 2: 0.69, 4: 0.76, 8: 0.81, 16: 0.84}  # scratch, fine-tuned
# {method: (pre-training runs, gain at one label when fine-tuned, gain of the probe)}
METHODS = {
    "PositionMAE": (3, 0.07, 0.30),
    "MAE": (3, 0.04, 0.22),
    "VolumeFusion": (1, 0.01, 0.05),
    "VoCo": (1, -0.02, 0.12),
}
MEASURES = {
    "finetune": {"title": "Fine-tuning", "baseline": "scratch", "trains": True},
    "probe": {"title": "Linear probe", "baseline": "a random encoder", "trains": False},
    "classify": {"title": "Pathology, fine-tuned", "baseline": "scratch", "trains": True},
}


def arms() -> dict[str, tuple[str, int | None]]:
    """{arm: (method, run's seed)}, scratch first."""
    found: dict[str, tuple[str, int | None]] = {"scratch": ("", None)}
    for method, (runs, *_) in METHODS.items():
        for run in range(runs):
            found[f"{method.lower()}-{run}" if runs > 1 else method.lower()] = (f"{method}-0a1b2c", run)
    return found


def _gain(method: str, n: int, probe: bool) -> float:
    name = method.split("-")[0]
    if not name:
        return 0.0
    _, tuned, probed = METHODS[name]
    return probed if probe else tuned / n**0.6


def segmentation(
    measure: str, amounts: Sequence[int], seeds: int, patients: int, steps: Sequence[int] = (0,), seed: int = 0
) -> pd.DataFrame:
    """Test rows of Dice and HD95: luck of runs, subsets, patients; classes of unequal difficulty; a learning curve."""
    probe = measure == "probe"
    patient = numpy_generator(seed, "patients").normal(0, 0.03, patients)
    parts = []
    for arm, (method, run) in arms().items():
        luck = numpy_generator(seed, "run", method, run or 0).normal(0, 0.01) if method else 0.0
        for n in amounts:
            for s in range(seeds):
                shared = numpy_generator(seed, "subset", n, s).normal(0, 0.03 / n**0.5)
                own = numpy_generator(seed, measure, arm, n, s)
                final = BASE[n] - 0.3 * probe + _gain(method, n, probe) + luck + shared + own.normal(0, 0.008)
                noise = own.normal(0, 0.02, (patients, len(CLASSES)))
                for step in steps:
                    rise = 1 - 0.45 * np.exp(-step / (60 - 25 * bool(method))) if step else 1.0
                    dice = np.clip(final * rise + patient[:, None] + noise - 0.03 * np.arange(2), 0, 1)
                    for i, label in enumerate((*CLASSES, MEAN_FOREGROUND)):
                        value = dice[:, i] if i < len(CLASSES) else dice.mean(1)
                        for metric, scores in (("dice", value), ("hd95", 9 * (1 - value))):
                            parts.append(_rows(arm, method, run, measure, n, s, step, label, metric, scores))
    return pd.concat(parts, ignore_index=True)


def classification(amounts: Sequence[int], seeds: int, patients: int, seed: int = 0) -> pd.DataFrame:
    """Test rows of a volume target with two classes: probabilities and truth."""
    truth = np.arange(patients) % 2
    parts = []
    for arm, (method, run) in arms().items():
        for n in amounts:
            for s in range(seeds):
                own = numpy_generator(seed, "classify", arm, n, s)
                signal = 0.5 + 0.35 * np.log2(n) + 8 * _gain(method, n, False)
                logit = signal * (2 * truth - 1) + own.normal(0, 1.6, patients)
                positive = 1 / (1 + np.exp(-1.3 * logit))
                given = [
                    ("healthy", "prediction", 1 - positive),
                    ("lesion", "prediction", positive),
                    ("", "truth", truth),
                ]
                for label, metric, scores in given:
                    parts.append(_rows(arm, method, run, "classify", n, s, 100, label, metric, scores))
    return pd.concat(parts, ignore_index=True)


def _rows(
    arm: str,
    method: str,
    run: int | None,
    measure: str,
    n: int,
    s: int,
    step: int,
    label: str,
    metric: str,
    values: np.ndarray,
) -> pd.DataFrame:
    names = [f"p{i:02d}" for i in range(len(values))]
    return pd.DataFrame({
        "suite": "hippocampus", "dataset": "Hippocampus", "arm": arm, "run": f"runs/{arm}" if method else "",
        "pretrain_seed": np.nan if run is None else float(run), "method": method,
        "init": "encoder" if method else "random", "schedule": measure, "n_labelled": n, "subset": s, "seed": s,
        "step": step, "split": "test", "domain": "", "patient": names,
        "case": [f"{name}_0" for name in names], "label": label,
        "metric": metric, "value": np.asarray(values, dtype=float),
    })[list(COLUMNS)]  # fmt: skip


def write_rich(
    out: Path,
    *,
    amounts: Sequence[int] = (1, 2, 4, 8, 16),
    seeds: int = 5,
    patients: int = 16,
    steps: Sequence[int] = (25, 50, 100, 200),
    dataset: str = "Hippocampus",
    modality: str = "mr",
    seed: int = 0,
    classify: bool = True,
) -> Path:
    """The directory that `ssl3d evaluate` leaves, before its report."""
    results = pd.concat(
        [
            segmentation("finetune", amounts, seeds, patients, steps, seed),
            segmentation("probe", amounts, seeds, patients, seed=seed),
            *([classification(amounts, seeds, 24, seed)] if classify else []),
        ],
        ignore_index=True,
    ).assign(dataset=dataset, suite=dataset.lower())
    write_evaluation(out, results, pictures=4)
    (out / "measures.json").write_text(json.dumps(MEASURES))
    (out / "data.json").write_text(json.dumps({"modality": [modality]}))
    suite = {"name": dataset.lower(), "measures": {name: {"steps": 200} for name in MEASURES}}
    (out / "suite.yaml").write_text(yaml.safe_dump(suite))
    return out
