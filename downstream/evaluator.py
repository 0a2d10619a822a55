"""evaluate(runs, suite, out): every arm through every measure of a suite, cell by cell, then the report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from downstream.arms import Arm
from downstream.cases import write_cases
from downstream.context import TEST, WORK, Cell, Context, describe
from downstream.domains import DOMAIN
from downstream.evaluation import SPLIT_FILE
from downstream.jobs import Pool, count_workers
from downstream.measure import Choice, choice_words
from downstream.methods import method_of
from downstream.pace import Pace
from downstream.plan import best_choice, best_choices, final_cells, labels_of, search_cells, subset_numbers
from downstream.planning import describe_plan
from downstream.report import write_report
from downstream.results import read_cell, write_results
from downstream.scoring import done
from downstream.setup import describe_data, prepare
from downstream.splits import Split
from downstream.suite import load_suite
from downstream.times import write_seconds
from downstream.tracking import track
from ssl3d.config import Overrides
from ssl3d.environment import environment
from ssl3d.files import write_json, write_text
from ssl3d.terminal import Meter, progress, say


@dataclass(frozen=True)
class Job:
    """What one process computes at a time: cells of one group of their measure."""

    cells: tuple[Cell, ...]


def evaluate(
    runs: Sequence[str | Path],
    suite: str | Path | Mapping[str, Any],
    out: str | Path,
    overrides: Overrides = (),
    plan_only: bool = False,
) -> Path:
    """Judge runs (or weights files) by a suite against scratch; returns OUT/report.html.

    `plan_only`: say how many cells there are and how long they may take, write and return OUT/split.json, which the
    pre-training can leave out (data.exclude), and train nothing; runs may be left away then.

    Finished cells are kept in OUT/cells: the same call again computes what is missing, and a call with one more run
    computes that run. Raises ValueError (ConfigError, LeakError) or FileNotFoundError, one plain sentence each.
    """
    settings = load_suite(suite, overrides)
    out = Path(out)
    if not runs and not plan_only:
        raise ValueError("no run to evaluate: name a run or a weights file, or say --plan-only")
    context, split, arms, warnings = prepare(runs, settings, out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            split.save(out / SPLIT_FILE)
            if plan_only:
                return _plan(context, split, arms, warnings)
            return _evaluate(context, split, arms, warnings)
    except Timeout:
        raise ValueError(f"{out} is in use by another evaluation: wait for it, or give another --out") from None


def _plan(context: Context, split: Split, arms: list[Arm], warnings: list[str]) -> Path:
    """Say what an evaluation would do; returns the split's path."""
    for warning in warnings:
        say(f"warning: {warning}", error=True)
    search = search_cells(context, split, arms)
    cells = [*_planned(context, split, arms, search), *search]
    workers = count_workers(context.suite.workers, context.suite.threads, len(cells))
    for sentence in describe_plan(context, split, arms, cells, workers):
        say(sentence)
    return context.out / SPLIT_FILE


def _planned(context: Context, split: Split, arms: list[Arm], search: Sequence[Cell]) -> list[Cell]:
    """All cells of the test; those that wait for a search hold its first choice."""
    choices = {(name, arm.name): m.grid()[0] for name, m in context.suite.measures.items() for arm in arms}
    waiting = {(cell.measure, cell.arm.name) for cell in search if not done(context, cell)}
    searched = [cell for cell in search if (cell.measure, cell.arm.name) not in waiting]
    results = _search_results(context, searched)
    for cell in {(cell.measure, cell.arm.name): cell for cell in searched}.values():
        choices[cell.measure, cell.arm.name] = best_choice(context, cell.measure, cell.arm, results)
    return final_cells(context, split, arms, choices)


def _evaluate(context: Context, split: Split, arms: list[Arm], warnings: list[str]) -> Path:
    out, suite = context.out, context.suite
    for warning in warnings:
        say(f"warning: {warning}", error=True)
    searching = [name for name, m in suite.measures.items() if m.searches()]
    search = search_cells(context, split, arms)
    planned = _planned(context, split, arms, search)
    now = [cell for cell in planned if cell.measure not in searching]
    first = _jobs(context, [*now, *search])
    workers = count_workers(suite.workers, suite.threads, max(len(first), len(planned) - len(now)))
    total = len(planned) + len(search)
    crew = Pool(run_job, context, workers, suite.threads, suite.scheduler)
    with crew as pool, progress(f"evaluate {suite.name}", total) as bar:
        meter = _Meter(bar, total, Pace.of(context, [*planned, *search], workers))
        _run(pool, first, meter, len(now) + len(search))
        choices = best_choices(context, arms, _search_results(context, search))
        tests = final_cells(context, split, arms, choices)
        _run(pool, _jobs(context, [cell for cell in tests if cell.measure in searching]), meter, total)
    shutil.rmtree(out / WORK, ignore_errors=True)
    results = _results(context, split, [*search, *tests])
    write_results(results, out)
    described = {
        "arms.json": {arm.name: arm.to_json() | _chosen(arm, choices) for arm in arms},
        "measures.json": {name: m.describe(context, arms) for name, m in suite.measures.items()},
        "environment.json": environment() | {"workers": workers, "threads": suite.threads},
        "warnings.json": warnings,
        "data.json": describe_data(context, split),
    }
    for name, content in described.items():
        write_json(out / name, content, indent=1)
    write_text(out / "suite.yaml", OmegaConf.to_yaml(OmegaConf.create(suite.to_dict())))
    write_cases(context, [c for c in tests if c.pictures], results)
    report = write_report(out)
    track(context, arms)
    return report


def run_job(context: Context, job: Job) -> None:
    """Compute and store the cells of a job, in this process."""
    started = time.perf_counter()
    context.measure(job.cells[0]).run(context, job.cells)
    for cell in job.cells:
        write_seconds(context.out, context.key(cell), (time.perf_counter() - started) / len(job.cells))


def _jobs(context: Context, cells: Sequence[Cell]) -> list[Job]:
    """The cells that are not stored yet, those of a group together.

    Two arms of equal weights share their cells: they are computed once.
    """
    groups: dict[tuple[Any, ...], dict[str, Cell]] = {}
    for cell in cells:
        if done(context, cell):
            continue
        group = context.measure(cell).group(context, cell)
        groups.setdefault(group, {})[context.key(cell)] = cell
    jobs = [Job(tuple(group.values())) for group in groups.values()]
    return sorted(jobs, key=lambda job: -len(job.cells))  # the longest first, so that no process idles at the end


@dataclass
class _Meter:
    """Progress in cells."""

    bar: Meter
    total: int
    pace: Pace
    count: int = 0

    def add(self, job: Job) -> None:
        self.count += len(job.cells)
        self.pace.finish(job.cells)
        self.bar.update(min(self.count, self.total), describe(job.cells[-1]), self.pace.left())


def _run(pool: Pool, jobs: Sequence[Job], meter: _Meter, end: int) -> None:
    """Run the jobs of a stage; `end`: cells done after it, those found finished included."""
    meter.count = end - sum(len(job.cells) for job in jobs)
    for job in pool.run(jobs):
        meter.add(job)


def _search_results(context: Context, search: Sequence[Cell]) -> pd.DataFrame:
    tables = [
        read_cell(context.out, context.key(cell)).assign(
            measure=cell.measure,
            arm=cell.arm.name,
            seed=cell.seed,
            choice=context.measure(cell).grid().index(cell.choice),
        )
        for cell in search
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _chosen(arm: Arm, choices: Mapping[tuple[str, str], Choice]) -> dict[str, Any]:
    chosen = {measure: dict(choice) for (measure, name), choice in choices.items() if name == arm.name and choice}
    return {"chosen": chosen} if chosen else {}


def _results(context: Context, split: Split, cells: Sequence[Cell]) -> pd.DataFrame:
    """results.csv from the stored cells, in the order of the plan, which no process and no order of runs changes."""
    suite = context.suite
    subsets = subset_numbers(cells)
    tables = []
    for cell in cells:
        arm, measure = cell.arm, context.measure(cell)
        columns: dict[str, Any] = {
            "suite": suite.name,
            "dataset": suite.dataset_name,
            "arm": arm.name,
            "run": arm.run,
            "pretrain_seed": arm.pretrain_seed,
            "method": "" if arm.is_scratch else method_of(arm.provenance, arm.digest),
            "init": measure.init(arm),
            "schedule": cell.measure if cell.split == TEST else f"{cell.measure} {choice_words(cell.choice)}",
            "n_labelled": cell.n_labelled,
            "subset": subsets[labels_of(cell)],
            "seed": cell.seed,
            "split": cell.split,
        }
        tables.append(read_cell(context.out, context.key(cell)).assign(**columns))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(**{DOMAIN: table["patient"].map({p: split.domain_of(p) for p in set(table["patient"])})})
