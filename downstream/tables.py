"""From rows of results.csv to score tables: cases -> patient -> classes, a row a training replicate, a table a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from downstream.names import shown
from downstream.results import MEAN_FOREGROUND
from downstream.statistics import FEWEST_RUNS, Array, complete_block

TEST, VALIDATION = "test", "validation"
SCRATCH = "scratch"
SEARCH = r" \S+="  # "finetune lr=0.01" marks a row of a search on validation patients
MEMBER = "member"  # column: the arm a row came from, where `arm` became the name of its method


@dataclass(frozen=True)
class Scores:
    """One arm at one point: a table (replicates x (patient, label)) for each of its pre-training runs.

    `runs`: how many, where they are a random factor (a method); None for one checkpoint or scratch. `subsets`: distinct
    labelled subsets; `seeds`: distinct training seeds.
    """

    tables: tuple[pd.DataFrame, ...]
    runs: int | None
    subsets: int
    seeds: int

    def minus(self, other: Scores, factor: float = 1.0) -> Scores:
        """Each run's table minus `factor` times that of `other`, which has no runs, cell by cell."""
        (baseline,) = other.tables
        return Scores(tuple(t - factor * baseline for t in self.tables), self.runs, self.subsets, self.seeds)

    def patients(self) -> list[pd.DataFrame]:
        """The tables (replicates x patients), classes averaged."""
        return [patient_means(table) for table in self.tables]


def rows_of_test(results: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Rows of these metrics on the test patients; none of a search."""
    rows = results[(results["split"] == TEST) & results["metric"].isin(list(metrics))]
    return rows[~rows["schedule"].str.contains(SEARCH, regex=True)]


def scores_by_arm(rows: pd.DataFrame) -> dict[tuple[int, str], Scores]:
    """{(n_labelled, arm): scores} of rows that share measure, metric and step (pool_runs has named the arms)."""
    return {(int(n), str(arm)): scores(cell) for (n, arm), cell in groups(rows, ["n_labelled", "arm"])}


def scores(cell: pd.DataFrame) -> Scores:
    """One arm's rows at one point."""
    members = [table_of(own) for _, own in groups(cell, [MEMBER])]
    runs = len(members) if len(members) > 1 else None
    return Scores(tuple(members), runs, int(cell["subset"].nunique()), int(cell["seed"].nunique()))


def groups(rows: pd.DataFrame, by: list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """groupby in the order of the rows, its keys typed as pandas delivers them: plain values."""
    yield from rows.groupby(by, sort=False)


def last_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Only the end of each training: earlier steps belong to learning speed."""
    last = rows.groupby(["arm", "schedule", "n_labelled"])["step"].transform("max")
    return rows[rows["step"] == last]


def split_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Give every pre-training run its own arm, where several came under one name."""
    runs = rows.groupby("arm")["run"].nunique()
    several = rows["arm"].isin(runs[runs > 1].index)
    if not several.any():
        return rows
    names = rows["arm"].where(~several, rows["arm"] + " (" + rows["run"].astype(str) + ")")
    return rows.assign(arm=names)


def pool_runs(rows: pd.DataFrame, baselines: Mapping[str, str], fewest: int | None = FEWEST_RUNS) -> pd.DataFrame:
    """Give the runs of a method its name as their arm (their own goes to MEMBER), wherever there are `fewest` or more.

    Measure by measure and amount by amount of labels, among arms of equal method and baseline. A second arm of the same
    pre-training seed is the same run and stays an arm of its own: counting it twice would feign repetition. `fewest`
    None: no arm is renamed.
    """
    rows = split_runs(rows)
    rows = rows.assign(**{MEMBER: rows["arm"]})
    arms = rows[["arm", "method", "pretrain_seed", "schedule", "n_labelled"]].drop_duplicates().sort_values("arm")
    arms = arms[(arms["method"] != "") & arms["pretrain_seed"].notna()]
    arms = arms.assign(baseline=[baselines.get(arm, SCRATCH) for arm in arms["arm"]])
    point = ["schedule", "n_labelled"]
    arms = arms.drop_duplicates(["method", "baseline", "pretrain_seed", *point])
    count = arms.groupby(["method", "baseline", *point])["arm"].transform("size")
    arms = arms[count >= (math.inf if fewest is None else fewest)]
    if arms.empty:
        return rows
    names = shown(arms["method"])
    taken = set(rows["arm"])
    names = {method: f"{name} (runs)" if name in taken else name for method, name in names.items()}
    pooled: dict[tuple[Any, ...], str] = {}
    for (method,), own in groups(arms, ["method"]):
        for (baseline,), alike in groups(own, ["baseline"]):
            network = f", {baseline.removeprefix(f'{SCRATCH}-')}" if baseline != SCRATCH else ""
            name = names[method] + (network if own["baseline"].nunique() > 1 else "")
            pooled |= dict.fromkeys(zip(alike["arm"], alike["schedule"], alike["n_labelled"]), name)
    keys = zip(rows["arm"], rows["schedule"], rows["n_labelled"])
    return rows.assign(arm=[pooled.get(key, key[0]) for key in keys])


def pooled_baselines(rows: pd.DataFrame, baselines: Mapping[str, str]) -> dict[str, str]:
    """`baselines` {arm: its scratch arm} with the methods that pool_runs named."""
    members = rows[["arm", MEMBER]].drop_duplicates().astype(str)
    return dict(baselines) | {arm: baselines.get(member, SCRATCH) for arm, member in members.to_numpy()}


def table_of(cell: pd.DataFrame) -> pd.DataFrame:
    """One checkpoint and point: scores with a row a replicate and a column a (patient, label), averaged over cases.

    A replicate is a labelled subset when several were drawn (its seeds averaged: they share its labels, so they are no
    independent repetitions), otherwise a seed.
    """
    classes = cell[cell["label"] != MEAN_FOREGROUND]
    cell = cell if classes.empty else classes
    by = "subset" if cell["subset"].nunique() > 1 else "seed"
    per_case = cell.assign(value=cell["value"].astype(float)).groupby(
        [by, "seed" if by == "subset" else "subset", "patient", "label"]
    )["value"]
    per_patient = _strict_mean(per_case)
    table: pd.DataFrame = _strict_mean(per_patient.groupby([by, "patient", "label"])).unstack(["patient", "label"])
    return table


def joined_subsets(rows: pd.DataFrame) -> pd.DataFrame:
    """Seeds that share a labelled subset at one amount of labels are one replicate at every amount.

    What compares amounts needs the same replicates at all of them, and leaving such seeds out would lose what they
    measured. An amount of which all seeds share the subset, the whole pool, joins none.
    """
    drawn = rows[["n_labelled", "subset", "seed"]].drop_duplicates()
    joined = {seed: seed for seed in sorted(drawn["seed"])}
    for _, at in groups(drawn, ["n_labelled"]):
        for _, own in groups(at, ["subset"]) if at["subset"].nunique() > 1 else ():
            together = {joined[seed] for seed in own["seed"]}
            joined = {seed: min(together) if first in together else first for seed, first in joined.items()}
    whole = rows.groupby("n_labelled")["subset"].transform("nunique") == 1
    return rows.assign(subset=rows["subset"].where(whole, rows["seed"].map(joined)))


def patient_means(table: pd.DataFrame) -> pd.DataFrame:
    """Average the classes of each patient; a patient with one class missing in a replicate has no score there."""
    known = table.dropna(axis=1, how="all")  # a class the patient has not got
    means: pd.DataFrame = _strict_mean(known.T.groupby(level="patient")).T
    return means


def complete_stack(tables: Sequence[pd.DataFrame]) -> Array:
    """(L, S, P) values of the replicates and patients that are complete in all L tables."""
    rows = sorted(set().union(*(table.index for table in tables)))
    columns = sorted(set().union(*(table.columns for table in tables)))
    values = np.stack([table.reindex(index=rows, columns=columns).to_numpy(dtype=np.float64) for table in tables])
    whole = pd.DataFrame(np.where(np.isfinite(values).all(0), 0.0, np.nan))
    block = complete_block(whole)
    return values[:, block.index.to_numpy(dtype=int)][:, :, block.columns.to_numpy(dtype=int)]


def _strict_mean(grouped: Any) -> Any:
    """Means of a groupby, missing where a value is: averaging what is left would change what is compared."""
    means, counts = grouped.mean(), grouped.count()
    return means.where(counts.eq(grouped.size(), axis=0))
