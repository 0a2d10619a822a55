"""Domain shift: test patients of several sites, scanners or contrasts, each scored and compared by itself too.

The labelled patients come from wherever the pool of the split does, usually one domain; what is told apart is where the
test patients come from: {"test": {"siteA": [...], "siteB": [...]}} in the split file (downstream.splits).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

DOMAIN = "domain"  # column of results.csv: where a test patient comes from, empty where nothing is told apart


def by_domain(
    results: pd.DataFrame, measures: Mapping[str, dict[str, Any]]
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """(results, measures) with a measure more for every measure and domain, "finetune on siteB"; as given without any.

    The rows of a domain are repeated under its measure, so that every figure, test and sentence of a report is about
    all test patients first, and then about those of each domain, in the order of their names.
    """
    domains = sorted(set(results[DOMAIN]) - {""})
    if not domains:
        return results, dict(measures)
    parts = [results]
    told = dict(measures)
    names = [*measures, *sorted(set(results.loc[results[DOMAIN] != "", "schedule"]) - set(measures))]
    for domain in domains:
        rows = results[results[DOMAIN] == domain]
        parts.append(rows.assign(schedule=rows["schedule"] + f" on {domain}"))
        for name in names:
            about = measures.get(name, {})
            told[f"{name} on {domain}"] = about | {"title": f"{about.get('title', name)} on {domain}"}
    return pd.concat(parts, ignore_index=True), told
