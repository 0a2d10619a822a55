"""What is left of an evaluation: by measure, because their cells differ a hundredfold in time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from downstream.context import VALIDATION, Cell
from downstream.pace import Pace
from downstream.results import CELLS
from downstream.times import write_seconds
from ssl3d import terminal


def _cell(measure: str, seed: int, choice=()) -> Cell:
    return Cell(measure, SimpleNamespace(name="mae"), 4, seed, (), (), "test", choice)


@pytest.fixture
def context(tmp_path: Path) -> SimpleNamespace:
    grids = {"probe": [()], "finetune": [(("lr", 0.1),), (("lr", 0.2),)]}
    (tmp_path / CELLS).mkdir()
    return SimpleNamespace(
        out=tmp_path,
        key=lambda cell: f"{cell.measure}-{cell.seed}-{cell.choice}",
        measure=lambda cell: SimpleNamespace(grid=lambda: grids[cell.measure]),
    )


def _finish(context: SimpleNamespace, cell: Cell, seconds: float) -> None:
    (context.out / CELLS / f"{context.key(cell)}.csv").write_text("step\n")
    write_seconds(context.out, context.key(cell), seconds)


def test_fast_cells_say_nothing_of_slow_ones(context):
    probes, trainings = [_cell("probe", s) for s in range(10)], [_cell("finetune", s) for s in range(10)]
    pace = Pace.of(context, [*probes, *trainings], workers=2)
    assert pace.left() == "", "nobody knows"
    for probe in probes[:4]:
        _finish(context, probe, 120.0)
        pace.finish([probe])
    assert pace.left() == "more than 6 min left"  # 6 x 2 min on two workers; trainings were not timed yet
    _finish(context, trainings[0], 1200.0)
    pace.finish(trainings[:1])
    assert pace.left() == "about 1 h 36 min left"  # 6 min, and 9 x 20 min on two workers


def test_what_was_finished_before_is_timed_and_not_to_do(context):
    trainings = [_cell("finetune", s, (("lr", 0.1),)) for s in range(3)]
    _finish(context, _cell("finetune", 0, (("lr", 0.2),)), 600.0)  # the choice that the search had made
    assert Pace.of(context, trainings, workers=1).left() == "about 20 min left"
    for training in trainings:
        _finish(context, training, 60.0)
    assert Pace.of(context, trainings, workers=1).left() == ""


def test_a_choice_of_the_search_says_nothing_of_another(context):
    search = [replace(_cell("finetune", 0, choice), split=VALIDATION) for choice in ((("lr", 0.1),), (("lr", 0.2),))]
    _finish(context, search[1], 600.0)
    assert Pace.of(context, search, workers=1).left() == "about 10 min left"


def test_a_meter_says_what_it_is_told(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: False)
    with terminal.progress("evaluate", 3) as bar:
        bar.update(1, "probe", "more than 6 min left")
        bar.update(2, "probe", "")
    assert capsys.readouterr().out.splitlines() == [
        "evaluate: 1 of 3 probe, more than 6 min left",
        "evaluate: 2 of 3 probe",
    ]
