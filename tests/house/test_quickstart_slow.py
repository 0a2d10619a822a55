"""The quickstart: users' mistakes in seconds, the whole chain in small, and (acceptance) in full."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from downstream import chain
from downstream.suite import load_suite
from ssl3d import cli, config
from ssl3d.data.phantom import write_phantom
from ssl3d.data.store import open_store

FILES = (
    "raw/dataset.json",
    "split.json",
    "store.zarr/index.parquet",
    "labelled.zarr/index.parquet",
    "run/recipe.yaml",
    "run/metrics.jsonl",
    "run/seen.parquet",
    "export/nnunet/checkpoint.pth",
    "export/nnunet/architecture.json",
    "export/nnunet/plans_fragment.json",
    "evaluate/report.html",
    "evaluate/results.csv",
    "evaluate/curve.png",
)


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a failing quickstart says."""
    assert cli.main(["quickstart", *arguments]) != 0
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") == 1
    return error


def test_a_missing_data_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nowhere"
    assert str(missing) in sentence(capsys, "--data", str(missing), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_labelled_scans_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in sentence(capsys, "--data", str(empty), "--out", str(tmp_path / "out"))
    data = write_phantom(tmp_path / "data", patients=1)
    for label in (data / "labelsTr").iterdir():
        label.unlink()
    assert "labelsTr" in sentence(capsys, "--data", str(data), "--out", str(tmp_path / "out"))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert str(tmp_path) in sentence(capsys, "--out", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("variant", [chain.PHANTOM, chain.REAL], ids=lambda v: v.suite)
def test_the_shipped_sizes_can_carry_a_conclusion(variant: chain.Variant) -> None:
    suite = load_suite(variant.suite, ["store=a.zarr", "split=b.json"])
    probe, finetune = suite.measures["probe"], suite.measures["finetune"]
    assert probe and len(probe.n_labelled) >= 3 and len(probe.seed_numbers()) >= 5
    assert finetune and len(finetune.n_labelled) >= 3 and len(finetune.seed_numbers()) >= 3
    assert chain.MIN_TEST >= 10


def small(folder: Path, variant: chain.Variant, **changes: object) -> chain.Variant:
    """The variant with next to no training."""
    recipe, suite = folder / "recipe.yaml", folder / "suite.yaml"
    values = yaml.safe_load(config.find(variant.recipe).read_text())
    values["run"] |= {"steps": 4, "checkpoint_every": 2}
    recipe.write_text(yaml.safe_dump(values))
    values = yaml.safe_load((config.RECIPES / "downstream" / f"{variant.suite}.yaml").read_text())
    values["measures"]["probe"] |= {"n_labelled": [1], "seeds": 1, "voxels_per_class": 200}
    values["measures"]["finetune"] |= {"n_labelled": [2], "seeds": 1, "steps": 2}
    values["measures"]["finetune"]["optim"]["warmup_steps"] = 0
    values["metrics"] = ["dice"]
    suite.write_text(yaml.safe_dump(values))
    return replace(variant, recipe=str(recipe), suite=str(suite), **changes)


def check(out: Path) -> None:
    """All files are there, and no patient of validation or test was pre-trained on, by name and by content."""
    for name in FILES:
        assert (out / name).is_file(), name
    split = json.loads((out / "split.json").read_text())
    assert set(split) >= {"pool", "validation", "test"} and len(split["test"]) >= 10
    store, labelled = open_store(out / "store.zarr").index, open_store(out / "labelled.zarr").index
    seen = pd.read_parquet(out / "run" / "seen.parquet")
    kept_out = labelled[labelled["subject"].isin([*split["validation"], *split["test"]])]
    for table in (store, seen):
        assert set(table["subject"]) == set(split["pool"])
        assert not set(table["fingerprint"]) & set(kept_out["fingerprint"])
    assert not store["has_label"].any() and labelled["has_label"].all()
    results = pd.read_csv(out / "evaluate" / "results.csv")
    assert set(results["arm"]) >= {"scratch"} and results["arm"].nunique() == 2
    assert set(results.loc[results["split"] == "test", "patient"]) == set(split["test"])


@pytest.mark.slow
def test_the_whole_chain_in_small_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chain, "PHANTOM", small(tmp_path, chain.PHANTOM, patients=18))
    out = tmp_path / "out"
    assert cli.main(["quickstart", "--out", str(out)]) == 0
    check(out)
    assert f"report: {out / 'evaluate' / 'report.html'}" in capsys.readouterr().out
    index = open_store(out / "labelled.zarr").index
    assert all(set(targets) == {"lesion", "lesion_extent"} for targets in index["targets"])

    kept = ("results.csv", "report.html")
    before = {name: (out / "evaluate" / name).read_bytes() for name in kept}
    made = (out / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert cli.main(["quickstart", "--out", str(out)]) == 0  # goes on where it was: nothing is left to do
    assert (out / "run" / "metrics.jsonl").stat().st_mtime_ns == made
    assert (out / "evaluate" / "results.csv").read_bytes() == before["results.csv"]
    assert "begun with" in sentence(capsys, "--data", str(out / "raw"), "--out", str(out))


@pytest.mark.slow
def test_a_data_set_without_patients_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case is a patient then; stopped before pre-training, the split is the same when it begins again."""
    monkeypatch.setattr(chain, "REAL", small(tmp_path, chain.REAL))
    data, out = write_phantom(tmp_path / "data", patients=18, seed=1), tmp_path / "out"
    (data / "patients.json").unlink()
    cases = len(list((data / "imagesTr").iterdir()))
    assert cases >= 18

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "train", killed)
    assert cli.main(["quickstart", "--data", str(data), "--out", str(out)]) == 1
    split = (out / "split.json").read_bytes()
    assert cli.main(["quickstart", "--data", str(data), "--out", str(out)]) == 1
    assert (out / "split.json").read_bytes() == split
    assert sum(len(part) for part in json.loads(split).values()) == cases


@pytest.mark.slow
def test_too_few_patients_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_phantom(tmp_path / "data", patients=3)
    assert "3 labelled patients" in sentence(capsys, "--data", str(data), "--out", str(tmp_path / "out"))


@pytest.mark.acceptance
def test_quickstart_on_hippocampus(tmp_path: Path, real_data: Path) -> None:
    out = tmp_path / "out"
    assert cli.main(["quickstart", "--data", str(real_data / "Task04_Hippocampus"), "--out", str(out)]) == 0
    check(out)
    split = json.loads((out / "split.json").read_text())
    assert len(split["pool"]) + len(split["validation"]) + len(split["test"]) == 113


@pytest.mark.acceptance
def test_quickstart_on_synthetic_anatomy(tmp_path: Path) -> None:
    assert cli.main(["quickstart", "--out", str(tmp_path / "out")]) == 0
    check(tmp_path / "out")
