"""Pictures of the study's runs, for the pages of methods of which bench_learning.py has drawn none."""

from __future__ import annotations

from pathlib import Path

from learning_data import DATA
from learning_pictures import curve, preview
from learning_tasks import ENTRIES
from study_arms import DATA_OF, METHODS, RUNS, Arm
from study_methods import drawn

from ssl3d import checkpoint


def draw_missing(out: Path, pictures: Path) -> None:
    """What the first run of a method sees and predicts, and its loss, where its recipe has no picture yet.

    Runs that are gone leave the pictures that were drawn of them.
    """
    have = {entry.recipe for task, entry in ENTRIES.items() if (pictures / f"{task}.png").exists()}
    for study, wanted in RUNS.items():
        data = DATA_OF.get(study, study)
        for method, network in wanted:
            run = out / data / Arm(data, method, network, 0).name
            if METHODS[method, network].recipe not in have and (run / checkpoint.FOLDER).is_dir():
                name = drawn(method, network)
                title = DATA.get(data, data) if METHODS[method, network].reads else "made by itself"
                curve({title: run}, pictures / f"{name}_curve.png")
                preview(run, pictures / f"{name}.png")
                have.add(METHODS[method, network].recipe)
