"""Several evaluations as one: those of a data set become one comparison, others stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from downstream.comparison import SCRATCH
from downstream.domains import DOMAIN
from downstream.evaluation import Evaluation
from ssl3d.schema import flat

# May differ: where the labelled store lies and how its split is written decide no score; what they hold is compared.
ANY_VALUE = ("store", "split", "workers", "scheduler", "pictures", "allow_leak", "name", "wandb")


def merge_by_dataset(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """One evaluation a data set, in the order given; scores of two data sets never share a curve.

    Raises ValueError naming the first difference between two evaluations of one data set.
    """
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.dataset, []).append(evaluation)
    return [group[0] if len(group) == 1 else merge(group) for group in groups.values()]


def merge(evaluations: Sequence[Evaluation]) -> Evaluation:
    """One evaluation with the arms of all. Raises ValueError naming the first difference between their suites.

    Every arm stays paired with the baseline of its own evaluation; arms with equal scores are kept once.
    """
    first = evaluations[0]
    tables: list[pd.DataFrame] = []
    arms: dict[str, dict[str, Any]] = {}
    taken: dict[str, pd.DataFrame] = {}
    for evaluation in evaluations:
        require_comparable(first, evaluation)
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
        measures=first.measures,
        data=first.data,
        pool=first.pool,
    )


def require_comparable(first: Evaluation, other: Evaluation) -> None:
    """Raises ValueError naming the first thing that two evaluations must share and do not."""
    one, two = flat(_settings(first)), flat(_settings(other))
    for key in _recorded(first).keys() & _recorded(other).keys():  # an older directory says nothing of them
        one[key], two[key] = _recorded(first)[key], _recorded(other)[key]
    for key in dict.fromkeys([*one, *two]):
        if one.get(key) != two.get(key):
            raise ValueError(
                f"{first.directory} and {other.directory} cannot be compared: {key} is {_short(one.get(key))} in the "
                f"first and {_short(two.get(key))} in the second; evaluate both by one suite"
            )


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    """All that two evaluations must share: data set, test patients, domains, the measures with their meaning, suite."""
    rows = evaluation.results
    test = rows[rows["split"] == "test"]
    domains = sorted(set(test[DOMAIN].astype(str))) if DOMAIN in test else []
    validation = tuple(sorted(set(rows.loc[rows["split"] == "validation", "patient"])))
    suite = {key: value for key, value in evaluation.suite.items() if key not in ANY_VALUE}
    return {
        "the data set": evaluation.dataset,
        "the modality": evaluation.modality,
        "the set of test patients": tuple(sorted(set(test["patient"]))),
        "the set of validation patients": validation or None,
        "the list of domains": ", ".join(domains) or None,
        "the list of measures": ", ".join(sorted(set(test["schedule"]))),
        **suite,
    }


def _recorded(evaluation: Evaluation) -> dict[str, Any]:
    """What else two evaluations must share, where it was kept: whose labels could be drawn, and the voxels behind."""
    found = {"the pool of labelled patients": evaluation.pool, "the labelled store": evaluation.data.get("digest")}
    return {key: value for key, value in found.items() if value}


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} patients ({', '.join(value[:3])}, ...)"
    return "not set" if value is None else str(value)


def _scores(rows: pd.DataFrame) -> pd.DataFrame:
    """What makes two arms one: the method too, since two recipes may by chance score alike."""
    keys = ["method", "schedule", "n_labelled", "subset", "seed", "step", "split", "case", "label", "metric"]
    keys += [DOMAIN] if DOMAIN in rows else []
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
