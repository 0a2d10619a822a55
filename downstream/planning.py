"""`ssl3d evaluate --plan-only`: how many cells a suite has, and how long they may take, before any is run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from downstream.arms import Arm
from downstream.comparison import METRICS
from downstream.context import VALIDATION, Cell, Context
from downstream.finetune import Training
from downstream.jobs import limited_threads
from downstream.measure import Measure
from downstream.methods import method_of
from downstream.power import USUAL, Design, components_of, sentence
from downstream.results import RESULTS_FILE, read_results
from downstream.scoring import done
from downstream.splits import Split, labelled_subset
from downstream.statistics import Components
from downstream.times import read_seconds
from ssl3d.terminal import duration

TRIAL_STEPS = (2, 6)  # the first steps of a training are slower: what is between the two counts


def describe_plan(
    context: Context, split: Split, arms: Sequence[Arm], cells: Sequence[Cell], workers: int
) -> list[str]:
    """What `cells` (those of the search included) are, a sentence a measure, and the hours of all of them.

    Hours come from finished cells of the same measure in OUT; else from a trial of a few steps on pool patients, which
    are a part of what is trained on anyway. Without an arm there are the numbers of an arm alone.
    """
    sizes = ", ".join(f"{len(getattr(split, part))} {part}" for part in ("pool", "validation", "test"))
    sentences = [f"patients: {sizes}"]
    if not arms:
        sentences += [f"{name}: {_an_arm(m)} cells an arm" for name, m in context.suite.measures.items()]
        return [*sentences, "name a RUN for an estimate of the hours"]
    left = 0.0
    for name, measure in context.suite.measures.items():
        own = [cell for cell in cells if cell.measure == name]
        finished = [cell for cell in own if done(context, cell)]
        times = [s for cell in finished if (s := read_seconds(context.out, context.key(cell))) is not None]
        to_do = len(own) - len(finished)
        seconds = sum(times) / len(times) if times else None
        how = "mean of the finished"
        if seconds is None and to_do:
            seconds, how = trial(context, split, measure, own[0]), "estimate from a trial"
        hours = "" if not to_do or seconds is None else f", about {duration(to_do * seconds)} of one worker ({how})"
        left += to_do * (seconds or 0.0)
        sentences.append(f"{name}: {len(own)} cells, {len(finished)} finished{hours}")
    sentences += power_sentences(context, split, arms)
    total = f"{len(cells)} cells of {len(arms)} arms"
    return [*sentences, f"{total}: about {duration(left / workers)} left with {workers} worker(s), an estimate"]


def power_sentences(context: Context, split: Split, arms: Sequence[Arm]) -> list[str]:
    """The least difference that each measure finds (downstream.power), from the spread of an earlier evaluation in OUT.

    Without one nobody knows how much patients and seeds differ here: then as they did in the studies of docs/results.
    """
    methods = Counter(method_of(arm.provenance, arm.digest) for arm in arms if not arm.is_scratch)
    earlier = read_results(context.out) if (context.out / RESULTS_FILE).exists() else None
    baselines = {arm.name: arm.baseline for arm in arms}
    found = []
    for name, measure in context.suite.measures.items():
        design = Design(len(measure.seed_numbers()), len(split.test), min(methods.values(), default=1))
        metric = "dice" if context.target is None else "mae" if context.target.kind == "regression" else "auroc"
        try:
            if earlier is None:
                known = _usual(measure, metric)
            else:
                known = {"": components_of(earlier, name, metric, baselines=baselines)}
        except ValueError as error:
            found.append(f"power, {name}: not known: {error}")
            continue
        for where, components in known.items():
            guess = f", if scores vary as those of the {where} in docs/results" if where else ""
            found.append(f"power, {name}: {sentence(design, components, METRICS[metric].unit)}{guess}")
    if earlier is None:
        found.append("power: to know how scores vary here, evaluate few seeds into this --out, and plan again")
    return found


def _usual(measure: Measure, metric: str) -> Mapping[str, Components]:
    """{data set: variance components}. Raises ValueError for a metric that was measured nowhere."""
    if metric == "mae":
        raise ValueError("errors have the unit of their target, and no target was measured before")
    return USUAL["classification" if metric == "auroc" else "training" if measure.TRAINS else "frozen features"]


def _an_arm(measure: Measure) -> int:
    """Cells of one arm."""
    search = len(measure.grid()) * measure.tune.seeds if measure.searches() else 0
    return len(measure.n_labelled) * len(measure.seed_numbers()) + search


def trial(context: Context, split: Split, measure: Measure, cell: Cell) -> float:
    """Seconds that a cell of the measure may take: a few steps timed, scored on a pool patient, and scaled up.

    No validation or test patient is read.
    """
    labelled = labelled_subset(split.pool, 1, context.suite.seed, "trial")
    short = dataclasses.replace(cell, n_labelled=1, labelled=labelled, scored=labelled, split=VALIDATION, pictures=())
    images = len(context.rows_of(cell.scored)) / len(context.rows_of(labelled))
    if not hasattr(measure, "steps"):
        return _seconds(context, measure, short) * images
    few, more = (_seconds(context, dataclasses.replace(measure, **_steps(measure, n)), short) for n in TRIAL_STEPS)
    step = max(0.0, more - few) / (TRIAL_STEPS[1] - TRIAL_STEPS[0])
    scoring = max(0.0, few - TRIAL_STEPS[0] * step)
    steps = measure.steps_of(cell.arm) if isinstance(measure, Training) else measure.last_step()
    return step * steps + scoring * images


def _steps(measure: Measure, steps: int) -> dict[str, Any]:
    """The fields of a training cut to so many steps, as far as the measure has them."""
    names = {field.name for field in dataclasses.fields(measure)}
    changes: dict[str, Any] = {"steps": steps} | ({"score_at": []} if "score_at" in names else {})
    optim = getattr(measure, "optim", None)
    if optim is not None:
        changes["optim"] = dataclasses.replace(optim, warmup_steps=[0], freeze_steps=[0])
    return changes


def _seconds(context: Context, measure: Measure, cell: Cell) -> float:
    with tempfile.TemporaryDirectory() as folder:
        suite = dataclasses.replace(context.suite, measures={cell.measure: measure})
        own = dataclasses.replace(context, suite=suite, out=Path(folder))
        cell = dataclasses.replace(cell, choice=measure.grid()[0])
        started = time.perf_counter()
        with limited_threads(suite.threads), contextlib.redirect_stdout(io.StringIO()):
            measure.run(own, [cell])
        return time.perf_counter() - started
