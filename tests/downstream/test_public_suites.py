"""Every suite of a public data set, from files in the data set's own layout to the report."""

from __future__ import annotations

import json

import pytest
from public_layouts import MSD, write
from shapes_store import write_run

import downstream
from downstream import evaluator
from downstream.results import read_results
from downstream.suite import SUITES, load_suite
from preprocessing import convert
from ssl3d.config import names
from ssl3d.data.store import open_store

PUBLIC = (*MSD, "totalsegmentator", "flare22", "btcv", "amos22", "acdc")
QUICK = ("msd05_prostate", "acdc")  # two channels; two scans a patient, and a shipped split
TINY = [
    "workers=1", "pictures=0", "metrics=[dice]", "overlap=0.0", "precision=32-true",
    "measures.probe.n_labelled=[1]", "measures.probe.seeds=2", "measures.probe.patch_size=[24,24,24]",
    "measures.probe.voxels_per_class=20", "measures.probe.l2=0.1",
    "measures.finetune.n_labelled=[1]", "measures.finetune.seeds=2", "measures.finetune.steps=2",
    "measures.finetune.patch_size=[16,16,16]", "measures.finetune.window=[24,24,24]", "measures.finetune.batch_size=2",
    "measures.finetune.optim.lr=0.01", "measures.finetune.optim.warmup_steps=0", "measures.finetune.augment=null",
]  # fmt: skip


def evaluate(name: str, root) -> None:
    """Convert the data set's files, evaluate a run by its suite, and look at what came out."""
    layout = write(name, root)
    store = root / "data.zarr"
    report = convert(layout.sources, store, workers=1)
    assert {reason for _, reason in report.refused} == ({"duplicate"} if name == "acdc" else set())
    run = write_run(root / "run", 1, channels=layout.channels)
    out = root / "out"
    downstream.evaluate([run], name, out, [f"store={store}", *TINY, *layout.overrides])
    table = read_results(out)
    test = table[table["split"] == "test"]
    assert set(test["arm"]) == {"scratch", "run"} and set(test["schedule"]) == {"probe", "finetune"}
    assert set(layout.classes) <= set(test["label"]), name
    assert "background" not in set(test["label"]) and not any(label.startswith("class_") for label in test["label"])
    if layout.test:
        assert set(test["patient"]) == set(layout.test)
    opened = open_store(store)
    modality = {opened.volume_id(row): opened.cell("modality", row) for row in range(len(opened))}
    if name == "amos22":
        assert modality["amos_0004"] == ["ct"] and modality["amos_0507"] == ["mr"]
    if name == "acdc":
        assert set(test["case"]) == {f"patient{p}_frame{f}" for p in (101, 150) for f in ("01", "12")}
        assert len(opened) == 6 * 3  # the segmented frames, and the one frame of the cine that is none of them
        assert opened.cell("targets", 0).keys() == {"group", "height", "weight"}
    left_out = "split.absent=leave_out" in layout.overrides
    assert any("have no labels" in w for w in json.loads((out / "warnings.json").read_text())) == left_out


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_public_suite_runs_on_the_data_sets_layout(name, tmp_path):
    evaluate(name, tmp_path)


@pytest.mark.acceptance
@pytest.mark.parametrize("name", [n for n in PUBLIC if n not in QUICK])
def test_every_public_suite_runs_on_its_data_sets_layout(name, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "write_report", lambda out: out / "report.html")  # drawn by the slow tests
    evaluate(name, tmp_path)


def test_every_public_suite_is_here_and_states_its_split():
    shipped = {n for n in names(SUITES) if n not in ("hippocampus", "phantom") and not n.startswith("quickstart")}
    known = {n for n in shipped if n in PUBLIC}
    assert known == set(PUBLIC)
    own = {"totalsegmentator": "split.table=meta.csv", "amos22": "split.file=dataset.json"}
    for name in PUBLIC:
        suite = load_suite(name, ["store=a.zarr", *([own[name]] if name in own else [])])
        assert isinstance(suite.split, dict) and load_suite(suite.to_dict()) == suite
