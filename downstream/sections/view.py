"""What every section of a report looks at: an evaluation, its points, and how its arms are named and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from downstream.comparison import METRICS, Point, Trial, compare, prepare, search
from downstream.drawing import Look, looks
from downstream.efficiency import Reached
from downstream.evaluation import Evaluation, readable
from downstream.jackknife import pseudo_rows
from downstream.tables import MEMBER, SCRATCH, last_step, pooled_baselines, rows_of_test
from downstream.volume_metrics import PREDICTION, TRUTH

MARKS = ("better", "worse")  # texts of a table's cells that are coloured
LEADING = ("dice", "auroc", "mae")  # the metric that figures and conclusions of a measure are about: the first it has


@dataclass(frozen=True)
class View:
    """An evaluation and what was computed from its results.csv.

    `rows`: of the test patients, with metrics of a whole set as pseudo-values; `points`: methods with at least three
    pre-training runs pooled; `runs`: those of pooled methods by themselves; `trials`: of the search on validation
    patients; `members` {method: its runs' arms}; `baselines` {arm or method: the arm it is compared with}.
    """

    evaluation: Evaluation
    rows: pd.DataFrame
    points: tuple[Point, ...]
    runs: tuple[Point, ...]
    trials: tuple[Trial, ...]
    members: Mapping[str, tuple[str, ...]]
    baselines: Mapping[str, str]

    @cached_property
    def measures(self) -> list[str]:
        """In the order of the suite, those it does not name last."""
        found = list(dict.fromkeys(p.measure for p in self.points))
        order = [m for m in self.evaluation.measures if m in found]
        return order + [m for m in found if m not in order]

    @cached_property
    def looks(self) -> dict[str, Look]:
        """{arm or method: how it is drawn}, the same in every figure; a method's runs look like it."""
        chosen = looks(self.arms(self.points, True), self.arms(self.points, False))
        runs = {run: chosen[method] for method, own in self.members.items() for run in own if method in chosen}
        return runs | chosen

    def title(self, measure: str, network: str = "") -> str:
        """ "Fine-tuning", or "Fine-tuning, ViT"."""
        title = str(self.evaluation.measures.get(measure, {}).get("title", measure))
        return f"{title}, {network}" if network else title

    def baseline(self, measure: str) -> str:
        """The arm without pre-training, in words: "scratch", "a random encoder"."""
        return str(self.evaluation.measures.get(measure, {}).get("baseline", "scratch"))

    def name(self, measure: str, arm: str) -> str:
        """An arm in a legend or table: a baseline by what it is, and its network where there are several."""
        baselines = self.arms(self.points, True)
        if arm not in baselines:
            return arm
        what = self.baseline(measure).removeprefix("a ")
        return what if len(baselines) == 1 else f"{what}, {arm.removeprefix(f'{SCRATCH}-')}"

    def leading(self, measure: str) -> str:
        """The metric that figures and conclusions of a measure are about."""
        found = list(dict.fromkeys(p.metric for p in self.points if p.measure == measure))
        return next((m for m in LEADING if m in found), found[0])

    def arms(self, points: Iterable[Point], baseline: bool | None = None) -> list[str]:
        """Arms of some points, baselines first, then by name; with `baseline` only those that are, or are not."""
        kinds = {p.arm: p.is_baseline for p in points}
        chosen = [arm for arm, kind in kinds.items() if baseline is None or kind == baseline]
        return sorted(chosen, key=lambda arm: (not kinds[arm], arm))

    def pictured(self, arms: Iterable[str]) -> list[str]:
        """Of some arms those of which single predictions are shown: baselines first, a method by its first run."""
        others = {run for own in self.members.values() for run in own[1:]}
        return sorted({*arms} - others, key=lambda arm: (self.baselines.get(arm, SCRATCH) != arm, arm))

    def select(self, measure: str, metric: str | None = None) -> list[Point]:
        """Points of a measure, by its leading metric unless another is named."""
        metric = metric or self.leading(measure)
        return [p for p in self.points if p.measure == measure and p.metric == metric]

    def networks(self, arms: Iterable[str]) -> dict[str, set[str]]:
        """{network: those of some arms that have it, its baseline too}; of a single network the name is empty.

        What one network scores says nothing of another: they share no panel.
        """
        found: dict[str, set[str]] = {}
        for arm in arms:
            found.setdefault(self.baselines.get(arm, SCRATCH), set()).add(arm)
        if len(found) == 1:
            return {"": next(iter(found.values()))}
        return {baseline.removeprefix(f"{SCRATCH}-"): found[baseline] for baseline in sorted(found)}

    def groups(self) -> dict[tuple[str, str], list[Point]]:
        """{(measure, arm): its compared points by the measure's leading metric}, in the order of the report."""
        found: dict[tuple[str, str], list[Point]] = {}
        for measure in self.measures:
            for point in self.select(measure):
                if point.difference is not None:
                    found.setdefault((measure, point.arm), []).append(point)
        return found

    def middle(self, measure: str) -> int:
        """The amount of labels in the middle of a measure's curve, where pictures and patients are shown."""
        amounts = sorted({p.n_labelled for p in self.points if p.measure == measure})
        return amounts[(len(amounts) - 1) // 2]


def view(evaluation: Evaluation, beside: Sequence[Evaluation] = ()) -> View:
    """Compute all that a report says of an evaluation, `beside` others.

    Raises ValueError when there is no row of the test patients.
    """
    evaluation = readable(evaluation, beside)
    baselines = evaluation.baselines
    tested = scored(evaluation.results)
    last = last_step(tested)
    points = named(evaluation, compare(last, baselines))
    rows = prepare(last, baselines)
    pooled = rows.loc[rows["arm"] != rows[MEMBER], ["arm", MEMBER]].drop_duplicates()
    members = {str(method): tuple(sorted(own[MEMBER])) for method, own in pooled.groupby("arm")}
    single = last[last["arm"].isin({run for own in members.values() for run in own} | {*baselines.values()})]
    runs = named(evaluation, compare(single, baselines, pool=False)) if members else []
    trials, paired = tuple(search(evaluation.results)), pooled_baselines(rows, baselines)
    return View(evaluation, tested, tuple(points), tuple(runs), trials, members, paired)


def scored(results: pd.DataFrame) -> pd.DataFrame:
    """Rows of the test patients in which metrics of a whole set stand beside those of patients: computed once."""
    rows = rows_of_test(results, [*METRICS, PREDICTION, TRUTH])
    given = rows["metric"].isin([PREDICTION, TRUTH])
    parts = [rows[~given], pseudo_rows(rows[given])] if given.any() else [rows]
    return pd.concat(parts, ignore_index=True)


def named(evaluation: Evaluation, points: Sequence[Point]) -> list[Point]:
    """Points that know how their measure and its baseline are called."""
    known = evaluation.measures
    return [
        replace(p, title=str(known[p.measure]["title"]), without=str(known[p.measure]["baseline"]))
        if {"title", "baseline"} <= known.get(p.measure, {}).keys()
        else p
        for p in points
    ]


def files(*parts: str) -> str:
    """A file name from names of measures, metrics, networks and arms; empty ones are left out."""
    return "_".join("".join(c if c.isalnum() or c in "-_" else "-" for c in part) for part in parts if part)


def metric_axis(metric: str) -> str:
    """The label of an axis: "Dice", "HD95 (mm)"."""
    about = METRICS[metric]
    return f"{about.name} (mm)" if about.unit.startswith("mm ") else about.name


def prepared(found: View) -> pd.DataFrame:
    """The rows behind the points, methods pooled."""
    return prepare(last_step(found.rows), found.evaluation.baselines)


def grouped(found: Iterable[Reached]) -> dict[str, list[Reached]]:
    """{arm: its places}, in their order."""
    groups: dict[str, list[Reached]] = {}
    for reached in found:
        groups.setdefault(reached.arm, []).append(reached)
    return groups


def reached_words(low: str, high: str) -> str:
    """The two ends of an interval in words: "3.1 to 9", "5 to more than 16"; empty without one."""
    return "" if not low or not high else low if low == high else f"{low} to {high}"


def spell(values: Sequence[int]) -> str:
    """ "5", or "3 to 5"."""
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)}"
