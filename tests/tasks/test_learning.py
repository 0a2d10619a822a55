"""Training teaches: frozen features beat random ones, and VoCo finds overlaps on volumes it never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from downstream.splits import load_split


@pytest.fixture
def bench(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("bench_learning")


@pytest.mark.acceptance
def test_features_of_a_short_training_beat_random_ones(bench: ModuleType, tmp_path: Path) -> None:
    """The benchmark in small: too few seeds for an interval that says much, so the mean is judged."""
    phantom = replace(bench.prepare("phantom", tmp_path / "data", Path(), quick=True), subsets=3)
    bench.train(bench.load("position", phantom, tmp_path, ["run.steps=200"]))
    bench.probe(["position"], phantom, tmp_path, "probe")
    (row,) = bench.collect(tmp_path, "phantom")
    assert row.last < 0.9 * row.first, "the loss falls"
    assert row.probe.mean > 0.02, row.probe


@pytest.mark.acceptance
def test_voco_finds_overlaps_on_patients_it_never_saw(bench: ModuleType, tmp_path: Path, real_data: Path) -> None:
    """Minutes on one core: 600 steps; the published plateau is to predict no overlap at all."""
    from learning_voco import agreement

    hippocampus = bench.prepare("hippocampus", tmp_path / "data", real_data)
    run = bench.train(bench.load("voco", hippocampus, tmp_path, []))
    found = agreement(run, load_split(hippocampus.split).test)
    assert found.spearman > 0.5
    assert found.share_of_plateau < 0.8


def test_a_round_on_one_task_leaves_the_figures_of_the_others(bench: ModuleType, tmp_path: Path) -> None:
    from learning_report import write
    from learning_rows import Difference, Kept, Row

    mae, voco = (
        Row(task, "phantom", "test", 300, 0.9, 0.1, 8, 0.3, 0.25, Difference(0.05, low, 0.07), None)
        for task, low in (("mae", 0.03), ("voco", -0.01))
    )
    price = {"recipe": "mae_resenc_s", "input": "48x48x48", "passes": "1", "time of plain": 1.5, "memory of plain": 2.0}
    kept = Kept([mae, voco], {}, [price])
    kept.write(tmp_path / "learning.json")
    again = Kept.read(tmp_path / "learning.json")
    tuned = Difference(-0.02, -0.03, -0.01)
    again.renew([replace(mae, data="hippocampus", tuned=tuned), replace(voco, dice=0.4)])
    assert again.rows == [mae, replace(voco, dice=0.4), replace(mae, data="hippocampus", tuned=tuned)]
    for page in ("methods/README", "methods/mae", "methods/voco"):
        (tmp_path / "docs" / page).with_suffix(".md").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / page).with_suffix(".md").write_text("# A page\n")
    (tmp_path / "docs" / "acceptance").mkdir()
    write(again, tmp_path / "docs")
    table = (tmp_path / "docs" / "methods" / "README.md").read_text()
    better = "**+0.050 (0.030 to 0.070)**"
    assert f"| mae | {better} | {better} | not run | -0.020 (-0.030 to -0.010) | 1.50 | 2.00 |" in table
    assert "| voco | +0.050 (-0.010 to 0.070) | not run | not run | not run | not measured | not measured |" in table
    assert "do **not** beat" in (tmp_path / "docs" / "methods" / "voco.md").read_text()
