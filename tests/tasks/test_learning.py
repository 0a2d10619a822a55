"""Training teaches: frozen features beat random ones, and VoCo finds overlaps on volumes it never saw."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from downstream.splits import load_split

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """benchmarks/bench_learning.py, imported as it imports itself: from its own folder."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_learning

    yield bench_learning
    for name in set(sys.modules) - before:
        if name.startswith(("bench_", "learning_")) or name == "common":
            del sys.modules[name]


@pytest.mark.acceptance
def test_features_of_a_short_training_beat_random_ones(bench: ModuleType, tmp_path: Path) -> None:
    """The benchmark in small: too few seeds for an interval that says much, so the mean is judged."""
    phantom = replace(bench.prepare("phantom", tmp_path / "data", Path(), quick=True), subsets=3)
    bench.train(bench.load("position", phantom, tmp_path, ["run.steps=200"]))
    bench.probe(["position"], phantom, tmp_path, "probe")
    (row,) = bench.collect(tmp_path, "phantom")
    assert row.last < 0.9 * row.first, "the loss falls"
    assert row.point.difference.mean > 0.02, row.difference()


@pytest.mark.acceptance
def test_voco_finds_overlaps_on_patients_it_never_saw(bench: ModuleType, tmp_path: Path, real_data: Path) -> None:
    """Minutes on one core: 600 steps; the published plateau is to predict no overlap at all."""
    from learning_voco import agreement

    hippocampus = bench.prepare("hippocampus", tmp_path / "data", real_data)
    run = bench.train(bench.load("voco", hippocampus, tmp_path, []))
    found = agreement(run, load_split(hippocampus.split).test)
    assert found.spearman > 0.5
    assert found.share_of_plateau < 0.8
