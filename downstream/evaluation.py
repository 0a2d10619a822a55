"""An evaluation's directory as the report sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from downstream.comparison import SCRATCH
from downstream.domains import by_domain
from downstream.results import RESULTS_FILE, read_results

SUITE_FILE, ARMS_FILE, ENVIRONMENT_FILE = "suite.yaml", "arms.json", "environment.json"
MEASURES_FILE, DATA_FILE, WARNINGS_FILE, CASES = "measures.json", "data.json", "warnings.json", "cases"
# What measures.json says, for directories written before there was one.
USUAL_MEASURES: dict[str, dict[str, Any]] = {
    "finetune": {"title": "Fine-tuning", "baseline": "scratch", "trains": True},
    "probe": {"title": "Linear probe", "baseline": "a random encoder", "trains": False},
}


@dataclass(frozen=True)
class Evaluation:
    """What lies in a directory written by `ssl3d evaluate`; parts that are missing are empty.

    `arms` {name: what arms.json says}; `cases`: npz files; `warnings`: sentences the reader must see; `measures` {name:
    {title, baseline (the arm without pre-training, in words), trains (the network itself)}}; `data`: what the labelled
    store is (modality, patients by purpose).
    """

    directory: Path
    results: pd.DataFrame
    suite: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    cases: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return ", ".join(sorted(set(self.results["dataset"])))

    @property
    def suite_name(self) -> str:
        return ", ".join(sorted(set(self.results["suite"])))

    @property
    def baselines(self) -> dict[str, str]:
        """{arm: the arm it is compared with}."""
        return {name: str(arm.get("baseline") or SCRATCH) for name, arm in self.arms.items()}

    @property
    def modality(self) -> str:
        """ "CT", "MR", "CT and MR"; "not recorded" in directories written before it was kept."""
        return " and ".join(str(m).upper() for m in self.data.get("modality", ())) or "not recorded"


def is_evaluation(directory: Path) -> bool:
    return (directory / RESULTS_FILE).is_file()


def load_evaluation(directory: Path) -> Evaluation:
    """Read a directory. Raises FileNotFoundError or ValueError naming the file (results.read_results)."""
    results = read_results(directory)
    arms = _json(directory / ARMS_FILE, {})
    suite_file = directory / SUITE_FILE
    suite: Any = OmegaConf.to_container(OmegaConf.load(suite_file)) if suite_file.is_file() else {}
    told = _json(directory / MEASURES_FILE, {})
    measures = {str(name): about for name, about in told.items() if isinstance(about, dict)} or dict(USUAL_MEASURES)
    results, measures = by_domain(results, measures)
    return Evaluation(
        directory,
        results,
        suite if isinstance(suite, dict) else {},
        {str(name): arm for name, arm in arms.items() if isinstance(arm, dict)},
        _json(directory / ENVIRONMENT_FILE, {}),
        tuple(sorted((directory / CASES).glob("*.npz"))),
        tuple(str(warning) for warning in _json(directory / WARNINGS_FILE, [])),
        measures,
        _json(directory / DATA_FILE, {}),
    )


def _json(path: Path, empty: Any) -> Any:
    """A JSON file's content, or `empty` when there is no file. Raises ValueError naming a broken one."""
    if not path.is_file():
        return empty
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): run ssl3d evaluate again") from None
    if type(content) is not type(empty):
        raise ValueError(f"{path} holds no {type(empty).__name__}: run ssl3d evaluate again")
    return content
