"""evaluate(): mistakes in one sentence, and (slow) whole evaluations that resume, repeat and do not depend on order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from shapes_store import CLASSES, suite_values, write_run, write_store
from synthetic_evaluation import rows, write_evaluation

import downstream
from downstream.context import VALIDATION, Cell, store_digest
from downstream.finetune import Finetune, recipe
from downstream.plan import best_choices, final_cells, labels_of, picture_rows, search_cells, subset_numbers
from downstream.planning import power_sentences
from downstream.results import COLUMNS, MEAN_FOREGROUND, read_results
from downstream.schedule import FinetuneOptim
from downstream.setup import _image_channels, prepare
from downstream.splits import Split
from downstream.suite import load_suite
from ssl3d.checkpoint import load_backbone
from ssl3d.config import load
from ssl3d.data.store import open_store
from ssl3d.initial import initialise
from ssl3d.models.backbone import build_backbone


def refused(values: dict, runs: list, out: Path, words: str) -> None:
    """One plain sentence, before anything is written."""
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        downstream.evaluate(runs, values, out)
    assert "\n" not in str(error.value) and not out.exists()


def test_mistakes_are_named_before_anything_is_written(labelled_store, split_file, run_folder, tmp_path):
    out, values = tmp_path / "out", suite_values(labelled_store, split_file)
    refused(values, ["nosuch/run"], out, "no run or weights file 'nosuch/run'")
    refused(values | {"store": "nosuch.zarr"}, [run_folder], out, "nosuch.zarr")
    refused(values | {"split": "nosuch.json"}, [run_folder], out, "nosuch.json")
    refused(values | {"classes": ["bal"]}, [run_folder], out, "no class 'bal'; did you mean 'ball'")
    content = json.loads(split_file.read_text())
    for name, change, words in (
        ("absent", {"test": ["patient_99"]}, "first 'patient_99'"),
        ("overlap", {"test": ["patient_00"]}, "both 'pool' and 'test', first 'patient_00'"),
        ("small", {"pool": ["patient_00"]}, "asks for 2 labelled patients, but the pool .* has 1"),
        ("no_test", {"test": []}, "names no test patient"),
        ("no_validation", {"validation": []}, "names no validation patient"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content | change))
        refused(values | {"split": str(path)}, [run_folder], out, words)
    probe = {"probe": {"n_labelled": [1], "patch_size": [16, 32, 25]}}
    refused(values | {"measures": probe}, [run_folder], out, r"measures.probe.patch_size: .* axis W is 25")
    large = values["measures"] | {"finetune": values["measures"]["finetune"] | {"patch_size": [320, 32, 32]}}
    words = r"measures\.finetune\.patch_size \[320, 32, 32\] does not fit: .* largest usable patch is \[\d+, \d+, \d+\]"
    refused(values | {"measures": large}, [run_folder], out, words)


def test_a_run_of_other_channels_is_transferred(split_file, tmp_path, labelled_store):
    """Its first layer, in probes as where it is trained; it shares scratch with runs that were trained so."""
    runs = [_channels(write_run(tmp_path / "four"), 4), write_run(tmp_path / "one")]
    suite = load_suite(suite_values(labelled_store, split_file))
    context, split, arms, notes = prepare(runs, suite, tmp_path / "out")
    (note,) = notes
    assert note.startswith("four was trained on images of 4 channel(s), those of ")
    assert [arm.name for arm in arms] == ["scratch", "four", "one"] and arms[1].baseline == arms[2].baseline
    image = torch.randn(1, 1, 16, 24, 32)
    with torch.no_grad():
        expected = load_backbone(runs[0]).encode(image.expand(-1, 4, -1, -1, -1))
        found = arms[1].backbone(0).encode(image)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    choices = {("finetune", arm.name): (("lr", 0.01),) for arm in arms}
    cells = final_cells(context, split, arms, choices, ["finetune"])
    settings = load(recipe(context, suite.measures["finetune"], next(c for c in cells if c.arm is arms[1])))
    filled = build_backbone(arms[1].spec)
    initialise(filled, settings.model)
    state = arms[1].backbone(0).state_dict()
    encoder = filled.encoder_parameter_names()
    assert all(torch.equal(value, state[name]) for name, value in filled.state_dict().items() if name in encoder)


def test_volumes_of_several_numbers_of_channels_are_refused():
    store = SimpleNamespace(cell=lambda name, row: {0: 1, 1: 1, 2: 3}[row])
    suite = SimpleNamespace(store="my.zarr")
    assert _image_channels(suite, store, {"a": [0], "b": [1]}) == 1
    with pytest.raises(ValueError, match=r"labelled volumes of my\.zarr have 1 and 3 channels, .* store of their own"):
        _image_channels(suite, store, {"a": [0, 2], "b": [1]})


def _channels(run: Path, channels: int) -> Path:
    """The same run with a network of other input channels."""
    from ssl3d import checkpoint, checkpoint_file
    from ssl3d.models.resenc import ResEncUNet

    file = run / "checkpoints" / "last.pt"
    content = checkpoint.read(file)
    backbone = ResEncUNet("S", channels, content["backbone_spec"]["kwargs"]["arch_kwargs"])
    content["backbone_spec"] = checkpoint.spec_to_dict(backbone.spec())
    content["model"] = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    checkpoint_file.write(file, content)
    return run


def test_the_plan_gives_every_arm_the_same(labelled_store, split_file, run_folder, tmp_path):
    suite = load_suite(suite_values(labelled_store, split_file))
    context, split, arms, warnings = prepare([run_folder], suite, tmp_path / "out")
    assert not warnings and list(context.classes.values()) == [n for v, n in CLASSES.items() if v]
    choices = {(measure, arm.name): (("lr", 0.01),) for measure in suite.measures for arm in arms}
    cells = search_cells(context, split, arms) + final_cells(context, split, arms, choices)
    assert len({context.key(c) for c in cells}) == len(cells) == 8 + 4 + 8

    def told(cell: Cell) -> tuple:
        which = cell.measure, cell.n_labelled, cell.seed, cell.split, cell.choice
        return *which, cell.labelled, cell.scored, cell.pictures

    by_arm = [[told(c) for c in cells if c.arm is arm] for arm in arms]
    assert by_arm[0] == by_arm[1]
    assert all(set(c.scored) == set(split.validation) for c in cells if c.split == VALIDATION)
    assert all(set(c.labelled) <= set(split.pool) for c in cells)
    for measure in suite.measures:
        own = {(c.n_labelled, c.seed): c.labelled for c in cells if c.measure == measure and c.split != VALIDATION}
        assert all(own[2, s][:1] == own[1, s] for s in (0, 1))
    shown = [c for c in cells if c.pictures]
    assert [c.arm.name for c in shown] == ["scratch", "mae"] and shown[0].pictures == picture_rows(context, split)


def test_seeds_that_draw_the_same_patients_are_one_subset():
    def cell(seed: int, labelled: str, split: str = "test") -> Cell:
        return cast(Cell, SimpleNamespace(seed=seed, labelled=tuple(labelled), split=split))

    cells = [cell(2, "ab"), cell(0, "ba"), cell(1, "ac"), cell(3, "a"), cell(4, "ab", VALIDATION)]
    numbers = subset_numbers(cells)
    assert [numbers[labels_of(c)] for c in cells] == [0, 0, 1, 3, 4]


def test_the_best_rate_counts_patients_once(labelled_store, split_file, run_folder, tmp_path):
    suite = load_suite(suite_values(labelled_store, split_file))
    context, _, arms, _ = prepare([run_folder], suite, tmp_path / "out")
    rows = [
        ("finetune", arm.name, choice, 2, patient, MEAN_FOREGROUND, "dice", value)
        for arm in arms
        for choice, values in ((1, [("a", 0.9), ("a", 0.9), ("a", 0.9), ("b", 0.1)]), (0, [("a", 0.6), ("b", 0.6)]))
        for patient, value in values
    ]
    table = pd.DataFrame(
        rows, columns=["measure", "arm", "choice", "step", "patient", "label", "metric", "value"]
    )  # choice 0 is the smaller rate
    best = best_choices(context, arms, table)
    assert best == {(m, arm.name): (("lr", 0.001),) if m == "finetune" else () for m in suite.measures for arm in arms}
    one = load_suite(suite_values(labelled_store, split_file), ["measures.finetune.optim.lr=0.1"])
    context, _, arms, _ = prepare([run_folder], one, tmp_path / "out")
    assert best_choices(context, arms, pd.DataFrame())["finetune", "mae"] == (("lr", 0.1),)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, dict, list[Path]]:
    """One whole evaluation of two runs, in this process: (OUT, suite, runs)."""
    root = tmp_path_factory.mktemp("evaluated")
    store = write_store(root / "shapes.zarr", 6)
    names = [f"patient_{i:02d}" for i in range(6)]
    split = root / "split.json"
    split.write_text(json.dumps({"pool": names[:3], "validation": names[3:4], "test": names[4:]}))
    runs = [write_run(root / "runs" / "mae", 1), write_run(root / "copy" / "mae", 1)]
    values = suite_values(store, split)
    report = downstream.evaluate(runs, values, root / "out")
    assert report == root / "out" / "report.html" and report.stat().st_size > 1000
    return root / "out", values, runs


@pytest.mark.slow
def test_everything_is_written(evaluated):
    out, _, runs = evaluated
    table = read_results(out)
    assert tuple(table.columns) == COLUMNS and np.isfinite(table["value"]).all()
    names = {"scratch", "runs/mae", "copy/mae"}
    assert set(table["arm"]) == names and set(json.loads((out / "arms.json").read_text())) == names
    test = table[table["split"] == "test"]
    assert set(test["patient"]) == {"patient_04", "patient_05"} and set(test["schedule"]) == {"probe", "finetune"}
    search = table[table["split"] == "validation"]
    assert set(search["patient"]) == {"patient_03"}
    assert set(search["schedule"]) == {"finetune lr=0.01", "finetune lr=0.001"}
    counts = test.groupby(["arm", "schedule", "n_labelled", "subset", "seed"]).size()
    assert len(counts) == 3 * 2 * 2 * 2 and counts.nunique() == 1
    assert (test[test["arm"] == "copy/mae"]["run"] == str(runs[1])).all()
    assert load_suite(OmegaConf.to_container(OmegaConf.load(out / "suite.yaml"))).name == "tiny"
    assert not (out / "work").exists()
    with np.load(sorted((out / "cases").glob("*.npz"))[0]) as case:
        assert case["image"].dtype == np.float32 and case["image"].shape == case["reference"].shape
        assert all(case[f"prediction__{arm}"].shape == case["image"].shape for arm in names)


@pytest.mark.slow
def test_the_same_weights_twice_give_identical_rows(evaluated):
    table = read_results(evaluated[0]).drop(columns=["run"])
    one, two = (table[table["arm"] == a].drop(columns="arm").reset_index(drop=True) for a in ("runs/mae", "copy/mae"))
    pd.testing.assert_frame_equal(one, two)


@pytest.mark.slow
def test_order_of_runs_workers_and_a_kill_change_nothing(evaluated, tmp_path):
    """Some cells are lost, the runs come in another order, and two processes finish the rest."""
    out, values, runs = evaluated
    again = tmp_path / "again"
    shutil.copytree(out, again)
    cells = sorted((again / "cells").glob("*.csv"))
    for path in cells[::3]:
        path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in cells if p.exists()}
    downstream.evaluate(runs[::-1], values | {"workers": 2}, again)
    assert (again / "results.csv").read_bytes() == (out / "results.csv").read_bytes()
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in kept.items())  # finished cells are not computed again
    assert set((again / "cells").glob("*.csv")) == set(cells)


@pytest.mark.slow
def test_another_arm_changes_no_row_of_the_first(evaluated, tmp_path):
    out, values, runs = evaluated
    single = tmp_path / "single"
    shutil.copytree(out / "cells", single / "cells")
    one = dict(values, measures={"probe": values["measures"]["probe"]})
    downstream.evaluate(runs[:1], one, single)
    table, whole = read_results(single), read_results(out)
    whole = whole[(whole["schedule"] == "probe") & (whole["arm"] == "scratch")].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[table["arm"] == "scratch"].reset_index(drop=True), whole)


def test_a_plan_counts_cells_and_trains_nothing(labelled_store, split_file, run_folder, tmp_path, capsys):
    values = suite_values(labelled_store, split_file)
    values["measures"].pop("probe")
    values["measures"]["finetune"]["optim"]["warmup_steps"] = 1
    path = downstream.evaluate([run_folder], values, tmp_path / "out", plan_only=True)
    said = capsys.readouterr().out
    assert "patients: 3 pool, 1 validation, 3 test" in said
    assert "finetune: 12 cells, 0 finished, about" in said and "estimate from a trial" in said
    assert "12 cells of 2 arms: about" in said and "if scores vary as those of the hippocampus in docs/results" in said
    assert "power: to know how scores vary here" in said
    assert json.loads(path.read_text())["test"] == ["patient_04", "patient_05", "patient_06"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".lock", "split.json"]
    with pytest.raises(ValueError, match="no run to evaluate: name a run"):
        downstream.evaluate([], values, tmp_path / "none")
    assert downstream.evaluate([], values, tmp_path / "none", plan_only=True).exists()
    assert "finetune: 6 cells an arm" in capsys.readouterr().out


@pytest.mark.slow
def test_the_plan_of_a_finished_evaluation_has_nothing_left(evaluated, tmp_path, capsys):
    """Also where the search took another value than the first, scratch and runs differing."""
    out, values, runs = evaluated
    shutil.copytree(out, tmp_path / "out")
    measure = values["measures"]["finetune"]
    assert len(measure["optim"]["lr"]) > 1
    choices = {arm["chosen"]["finetune"]["lr"] for arm in json.loads((out / "arms.json").read_text()).values()}
    downstream.evaluate(runs, values, tmp_path / "out", plan_only=True)
    said = capsys.readouterr().out
    assert "about 0 s left" in said, (choices, said)


def test_a_plan_in_the_folder_of_an_evaluation_states_its_power(tmp_path):
    """Synthetic results of the planned measure, as an earlier evaluation left them."""
    earlier = rows({"mae": {1: 0.05}})
    write_evaluation(tmp_path / "out", earlier)
    measure = next(m for m in earlier["schedule"].unique() if "=" not in m)
    suite = SimpleNamespace(measures={measure: Finetune(
        n_labelled=[1], seeds=5, steps=1, batch_size=1, patch_size=(8, 8, 8), optim=FinetuneOptim(lr=[0.1])
    )})  # fmt: skip
    context = SimpleNamespace(out=tmp_path / "out", suite=suite, target=None)
    split = Split((), (), tuple("abcdefgh"))
    (found,) = power_sentences(context, split, [])  # type: ignore[arg-type]
    assert found.startswith(f"power, {measure}: 5 training seeds, 8 test patients, one pre-training run: a difference")


def test_a_changed_label_is_another_store(labelled_store, tmp_path):
    store = tmp_path / "changed.zarr"
    shutil.copytree(labelled_store, store)
    before = store_digest(open_store(store))
    assert before == store_digest(open_store(labelled_store))
    meta = store / "labels" / "case_00_0" / "zarr.json"
    content = json.loads(meta.read_text())
    key = next(iter(content["attributes"]["digest"]))
    content["attributes"]["digest"][key] = "0" * 32
    meta.write_text(json.dumps(content))
    assert store_digest(open_store(store)) != before
