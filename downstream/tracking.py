"""An evaluation in wandb: a run for each arm, one group an evaluation, led back to the pre-training that it judges."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from downstream.arms import Arm
from downstream.comparison import Point, compare
from downstream.context import Context
from downstream.results import read_results
from ssl3d.terminal import say
from ssl3d.trackers.wandb import ID_FILE, run_folder


def track(context: Context, arms: list[Arm]) -> None:
    """Tell wandb the scores of a finished evaluation, where the suite's `wandb.mode` asks for it.

    The same evaluation again goes on in the same runs. What wandb cannot take is said: the report is written by then.
    """
    settings = context.suite.wandb
    if settings.mode in ("auto", "disabled"):
        return
    results = read_results(context.out)
    points = compare(results, {arm.name: arm.baseline for arm in arms}, pool=False)  # a run of wandb an arm
    import wandb

    try:
        for arm in arms:
            own = [point for point in points if point.arm == arm.name]
            _tell(context, arm, own, results[results["arm"] == arm.name])
    except (wandb.Error, OSError, ValueError) as error:
        say(f"the report is written, but wandb did not note it: {' '.join(str(error).split())}", error=True)


def _tell(context: Context, arm: Arm, points: list[Point], results: Any) -> None:
    import wandb

    suite = context.suite
    config = {"suite": suite.to_dict(), "arm": arm.to_json(), "pretrained": _wandb_id(arm)}
    run = wandb.init(
        project=suite.wandb.project,
        group=suite.wandb.group or f"{suite.name}-{suite.dataset_name}",
        tags=suite.wandb.tags,
        name=arm.name,
        id=hashlib.blake2b(f"{context.out.resolve()} {arm.digest} {arm.name}".encode(), digest_size=8).hexdigest(),
        resume="allow",
        mode=suite.wandb.mode,  # type: ignore[arg-type]
        dir=str(context.out),
        config=config,
        job_type="evaluate",
    )
    run.define_metric("*", step_metric="n_labelled")
    for n in sorted({point.n_labelled for point in points}):
        scores = {f"{p.measure}/{p.metric}": p.score.mean for p in points if p.n_labelled == n}
        run.log({"n_labelled": n, **scores})
    columns = ["schedule", "n_labelled", "subset", "seed", "split", "label", "metric", "value"]
    rows = results[columns].astype(object).where(results[columns].notna(), None).values.tolist()
    run.log({"results": wandb.Table(columns=list(columns), data=rows)})
    run.finish()


def _wandb_id(arm: Arm) -> str | None:
    """The wandb run that pre-trained an arm, where it was tracked."""
    folder = run_folder(Path(arm.run)) if arm.run else None
    return None if folder is None else (folder / ID_FILE).read_text().strip()
