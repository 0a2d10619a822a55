"""An evaluation's directory as the report sees it, and several merged into one comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from downstream.comparison import SCRATCH
from downstream.results import RESULTS_FILE, read_results

SUITE_FILE, ARMS_FILE, ENVIRONMENT_FILE = "suite.yaml", "arms.json", "environment.json"
WARNINGS_FILE, CASES = "warnings.json", "cases"
ANY_VALUE = ("store", "split", "workers", "pictures", "allow_leak", "name", "wandb")  # may differ: they decide no score


@dataclass(frozen=True)
class Evaluation:
    """What lies in a directory written by `ssl3d evaluate`; parts that are missing are empty.

    `arms` {name: what arms.json says}; `cases`: npz files; `warnings`: sentences the reader must see.
    """

    directory: Path
    results: pd.DataFrame
    suite: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    cases: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

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


def is_evaluation(directory: Path) -> bool:
    return (directory / RESULTS_FILE).is_file()


def load_evaluation(directory: Path) -> Evaluation:
    """Read a directory. Raises FileNotFoundError or ValueError naming the file (results.read_results)."""
    results = read_results(directory)
    arms = _json(directory / ARMS_FILE, {})
    suite_file = directory / SUITE_FILE
    suite: Any = OmegaConf.to_container(OmegaConf.load(suite_file)) if suite_file.is_file() else {}
    return Evaluation(
        directory,
        results,
        suite if isinstance(suite, dict) else {},
        {str(name): arm for name, arm in arms.items() if isinstance(arm, dict)},
        _json(directory / ENVIRONMENT_FILE, {}),
        tuple(sorted((directory / CASES).glob("*.npz"))),
        tuple(str(warning) for warning in _json(directory / WARNINGS_FILE, [])),
    )


def merge(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation with the arms of all. Raises ValueError naming the first difference between their suites.

    Every arm stays paired with the baseline of its own evaluation; arms with equal scores are kept once.
    """
    first = evaluations[0]
    tables: list[pd.DataFrame] = []
    arms: dict[str, dict[str, Any]] = {}
    taken: dict[str, pd.DataFrame] = {}
    for evaluation in evaluations:
        _require_comparable(first, evaluation)
        names = {}
        for arm, rows in evaluation.results.groupby("arm"):
            name = str(arm)
            scores = _scores(rows)
            names[name] = name
            if name in taken and not _equal(taken[name], scores):
                names[name] = _free(f"{name} ({evaluation.directory.name})", taken)
            if names[name] not in taken:
                taken[names[name]] = scores
                tables.append(rows.assign(arm=names[name]))
        for name, arm in names.items():
            content = evaluation.arms.get(name, {})
            baseline = evaluation.baselines.get(name, SCRATCH)
            arms.setdefault(arm, {**content, "baseline": names.get(baseline, baseline)})
    return Evaluation(
        first.directory,
        pd.concat(tables, ignore_index=True),
        first.suite,
        arms,
        first.environment,
        warnings=tuple(dict.fromkeys(w for e in evaluations for w in e.warnings)),
    )


def _require_comparable(first: Evaluation, other: Evaluation) -> None:
    one, two = _flat(_settings(first)), _flat(_settings(other))
    for key in dict.fromkeys([*one, *two]):
        if one.get(key) != two.get(key):
            raise ValueError(
                f"{first.directory} and {other.directory} cannot be compared: {key} is {_short(one.get(key))} in the "
                f"first and {_short(two.get(key))} in the second; evaluate both by one suite"
            )


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    """All that two evaluations must share: the suite, the data set, the test patients."""
    rows = evaluation.results
    patients = sorted(set(rows.loc[rows["split"] == "test", "patient"]))
    suite = {key: value for key, value in evaluation.suite.items() if key not in ANY_VALUE}
    return {"the data set": evaluation.dataset, "the set of test patients": tuple(patients), **suite}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} patients ({', '.join(value[:3])}, ...)"
    return "not set" if value is None else str(value)


def _scores(rows: pd.DataFrame) -> pd.DataFrame:
    keys = ["schedule", "n_labelled", "subset", "seed", "step", "split", "case", "label", "metric"]
    return rows[[*keys, "value"]].sort_values(keys, ignore_index=True)


def _equal(one: pd.DataFrame, two: pd.DataFrame) -> bool:
    if len(one) != len(two) or not one.drop(columns="value").equals(two.drop(columns="value")):
        return False
    return bool(np.allclose(one["value"].astype(float), two["value"].astype(float), atol=1e-9, equal_nan=True))


def _free(name: str, taken: Mapping[str, object]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free


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
