"""A finished evaluation made of random numbers with known effects: what the statistics and the report are tested on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from downstream.results import COLUMNS, MEAN_FOREGROUND
from ssl3d.seeding import numpy_generator

CLASSES = {1: "head", 2: "body"}
BASE = {1: 0.62, 2: 0.70, 4: 0.76}


@cache
def _normal(seed: int, *keys: int | str) -> float:
    return float(numpy_generator(seed, *keys).normal())


def rows(
    effects: Mapping[str, Mapping[int, float]],
    *,
    measure: str = "finetune",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    patients: int = 12,
    noise: float = 0.02,
    seed: int = 0,
) -> pd.DataFrame:
    """Test rows: scratch, and each arm = scratch + its effect at each n + effects of seed, patient and their mix.

    The first patient has two cases.
    """
    found = []
    base = {n: v - 0.35 * (measure == "probe") for n, v in BASE.items()}
    for arm in ("scratch", *effects):
        for n in effects.get(arm, base):
            effect = effects.get(arm, {}).get(n, 0.0)
            for s in seeds:
                for p in range(patients):
                    for case in range(2 if p == 0 else 1):
                        for label, name in CLASSES.items():
                            draw = (
                                numpy_generator(seed, "shared", n, s).normal() + numpy_generator(seed, "p", p).normal()
                            )
                            own = (
                                numpy_generator(seed, arm, n, s).normal() * 0.3
                                + numpy_generator(seed, arm, n, s, p, case, label).normal()
                            )
                            dice = base[n] + effect + noise * (draw + own) + 0.02 * (label - 1)
                            for metric, value in (("dice", dice), ("hd95", 8 * (1 - dice)), ("assd", 2 * (1 - dice))):
                                found.append((arm, n, s, f"p{p:02d}", f"p{p:02d}_{case}", name, metric, value))
    table = pd.DataFrame(found, columns=["arm", "n_labelled", "seed", "patient", "case", "label", "metric", "value"])
    keys = ["arm", "n_labelled", "seed", "patient", "case", "metric"]
    mean = table.groupby(keys, as_index=False, sort=False)["value"].mean().assign(label=MEAN_FOREGROUND)
    table = pd.concat([table, mean], ignore_index=True)
    scratch = table["arm"] == "scratch"
    return table.assign(
        suite="phantom", dataset="phantom <organs>", run=np.where(scratch, "", "runs/" + table["arm"]),
        pretrain_seed=np.where(scratch, np.nan, 0.0), domain="", method=np.where(scratch, "", table["arm"] + "-000000"),
        init=np.where(scratch, "random", "encoder"), schedule=measure, subset=table["seed"],
        step=0 if measure == "probe" else 200, split="test",
    )[list(COLUMNS)]  # fmt: skip


def search_rows(
    arms: Sequence[str] = ("scratch", "mae"), rates: Sequence[float] = (0.001, 0.003, 0.01)
) -> pd.DataFrame:
    """Validation rows of a learning-rate search in which the middle rate is best."""
    parts = []
    for i, rate in enumerate(rates):
        part = rows({"mae": {4: 0.02}}, seeds=[0], patients=4, seed=7)
        part = part[part["arm"].isin(arms) & (part["n_labelled"] == 4)]
        value = part["value"] - 0.03 * abs(i - 1)
        parts.append(part.assign(schedule=f"finetune lr={rate:g}", split="validation", value=value,
                                 patient="v" + part["patient"]))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def write_evaluation(out: Path, results: pd.DataFrame, *, pictures: int = 3, steps: int = 200) -> Path:
    """The directory that `ssl3d evaluate` leaves, before its report."""
    out.mkdir(parents=True)
    results.to_csv(out / "results.csv", index=False)
    about = {"baseline": "scratch", "parameters": 123456, "recipe": {"run": {"steps": 1000}}, "lr": 0.01}
    arms = {arm: {"run": run, **about}
            for arm, run in results[["arm", "run"]].drop_duplicates().itertuples(index=False)}  # fmt: skip
    suite = {"name": "phantom", "measures": {"finetune": {"steps": steps, "patch_size": [32, 48, 40]}}, "workers": 2}
    (out / "arms.json").write_text(json.dumps(arms))
    (out / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2"}}))
    (out / "warnings.json").write_text("[]")
    (out / "suite.yaml").write_text(yaml.safe_dump(suite))
    (out / "cases").mkdir()
    names = sorted(results.loc[results["arm"] != "scratch", "arm"].unique())
    for i in range(pictures):
        _write_case(out / "cases" / f"p{3 * i:02d}_0.npz", f"p{3 * i:02d}", ["scratch", *names])
    return out


def _write_case(path: Path, patient: str, arms: Sequence[str]) -> None:
    z, y, x = np.ogrid[:20, :60, :48]
    generator = numpy_generator(3, patient)

    def organs(dy: float, dx: float, scale: float) -> np.ndarray:
        label = np.zeros((20, 60, 48), dtype=np.int32)
        label[((z - 10) / 8) ** 2 + ((y - 24 - dy) / (9 * scale)) ** 2 + ((x - 24 - dx) / 11) ** 2 < 1] = 1
        label[((z - 10) / 7) ** 2 + ((y - 39 - dy) / 8) ** 2 + ((x - 26 - dx) / (8 * scale)) ** 2 < 1] = 2
        return label

    reference = organs(0, 0, 1)
    image = 0.8 * (reference == 1) - 0.5 * (reference == 2) + generator.normal(0, 0.35, reference.shape)
    predictions = {
        f"prediction__{arm}": organs(*generator.uniform(-3, 3, 2), generator.uniform(0.8, 1.2)) for arm in arms
    }
    np.savez_compressed(
        path, image=image.astype(np.float32), reference=reference, **predictions, arms=np.array(arms),
        dice=np.linspace(0.6, 0.8, len(arms)), patient=np.array(patient), measure=np.array("finetune"),
        n_labelled=np.array(2), spacing=np.array([2.0, 1.0, 1.25]), class_values=np.array(list(CLASSES)),
        class_names=np.array(list(CLASSES.values())),
    )  # fmt: skip
