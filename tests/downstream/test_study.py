"""The study of docs/results/protocol.md: all it would run can begin, before any hour is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from downstream.suite import load_suite
from ssl3d import config


@pytest.fixture
def study(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("study_arms")


def test_every_run_can_begin(study: ModuleType, tmp_path: Path) -> None:
    from learning_data import Data

    for name in study.RUNS:
        kind = study.DATA_OF.get(name, name)
        data = Data(kind, tmp_path / "s.zarr", tmp_path / "s.zarr", tmp_path / "split.json", True, 4, (40, 56, 40))
        assert len({arm.name for arm in study.arms(name)}) == sum(study.RUNS[name].values())
        for arm in study.arms(name):
            recipe = study.recipe(arm, data, tmp_path)
            assert recipe.run.steps == study.STEPS and recipe.run.seed == arm.seed, arm
            assert Path(recipe.run.dir) == tmp_path / kind / arm.name
            method = study.METHODS[arm.method, arm.network]
            guarded = recipe.data.exclude if method.beside else recipe.data.include
            assert (guarded == str(data.split)) == method.reads, arm
            assert len(recipe.data.store) == 1 + len(method.beside) or not method.reads
            if method.after is None:
                config.build_task(recipe, config.build_model(recipe))
            else:
                assert method.after in {other.name for other in study.arms(name)}, "trained in the same study"


def test_the_pages_of_methods_say_what_the_reports_say(benchmark_module, tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    shutil.copytree(docs / "methods", tmp_path / "methods")
    (tmp_path / "acceptance").mkdir()
    shutil.copy(docs / "acceptance" / "learning.json", tmp_path / "acceptance")
    (tmp_path / "results").symlink_to(docs / "results")
    benchmark_module("study_methods").write_methods(tmp_path)
    pages = sorted((docs / "methods").glob("*.md"))
    assert sum("study: made by" in page.read_text() for page in pages) > 12
    for page in pages:
        again = (tmp_path / "methods" / page.name).read_text()
        assert again == page.read_text(), f"{page.name}: make it anew, python benchmarks/study.py --only pages"


def test_a_data_set_stopped_half_way_is_finished(benchmark_module, tmp_path: Path, monkeypatch) -> None:
    from ssl3d.data import phantom_pathology
    from ssl3d.data.store import open_store

    data = benchmark_module("learning_data")
    monkeypatch.setitem(data.PATHOLOGY, "pathology", (3, (6, 1, 2)))
    write, numbers = phantom_pathology._write, iter(range(4))

    def stopped(*args: Any) -> None:
        if next(numbers, None) is None:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(phantom_pathology, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        data.prepare("pathology", tmp_path, tmp_path)
    monkeypatch.setattr(phantom_pathology, "_write", write)
    whole = data.prepare("pathology", tmp_path, tmp_path)
    assert len(open_store(whole.store).index) == 6
    monkeypatch.setattr(data, "write_pathology", None)
    assert data.prepare("pathology", tmp_path, tmp_path) == whole, "what is whole is not written again"


def test_every_study_has_its_suite(study: ModuleType, tmp_path: Path) -> None:
    for name in study.RUNS:
        suite = load_suite(f"study_{name}", [f"store={tmp_path}", f"split={tmp_path / 'split.json'}"])
        assert suite.name == f"study_{name}"
        assert {measure.seeds for measure in suite.measures.values()} == {5}


def test_a_run_that_fails_is_said_while_others_go_on(
    benchmark_module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study, began = benchmark_module("study"), []

    def pretrain(arm, data, out) -> float:
        began.append(arm.name)
        if arm.method == "jepa":
            raise ValueError("the loss became NaN")
        return 1.0

    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(study, "pretrain", pretrain)
    with pytest.raises(RuntimeError, match=r"^beyond: jepa_vit_0 failed, nothing is judged"):
        study.pretrain_all("beyond", None, tmp_path, 2)
    said = capsys.readouterr().out.splitlines()
    assert "jepa_vit_0 of beyond: failed: the loss became NaN" in said
    assert "cuts_resenc_0 of beyond: 1 s" in said and len(said) == len(began) == len(study.arms("beyond")) - 1
    assert "distillation_resenc_0" not in began, "learns from another run, so it comes after all of them"
