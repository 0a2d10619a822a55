"""Test patients of several sites: the split file, the rows and what a report compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shapes_store import suite_values
from synthetic_evaluation import rows

from downstream.comparison import compare
from downstream.domains import by_domain
from downstream.evaluator import _results
from downstream.plan import final_cells
from downstream.results import COLUMNS, read_results, write_results
from downstream.setup import prepare
from downstream.splits import load_split, resolve
from downstream.suite import load_suite
from ssl3d.config import subjects
from ssl3d.data.subjects import hash_subject, make_key
from ssl3d.guard import _test_patients

SITES = {"pool": ["a", "b"], "validation": ["c"], "test": {"siteB": ["f", "e"], "siteA": ["d"]}}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_domains_are_read_kept_and_follow_the_store(tmp_path, monkeypatch):
    path = write(tmp_path / "split.json", SITES)
    split = load_split(path)
    assert split.test == ("d", "e", "f") and split.domains == {"siteA": ("d",), "siteB": ("e", "f")}
    assert [split.domain_of(p) for p in "defa"] == ["siteA", "siteB", "siteB", ""]
    split.save(tmp_path / "again.json")
    assert load_split(tmp_path / "again.json") == split
    key = make_key(tmp_path / "key")
    monkeypatch.setattr("ssl3d.data.subjects.read_key", lambda path=None: key)
    found = resolve(split, [hash_subject(p, key) for p in "abcdef"], path, "store")
    hashed = {n: tuple(sorted(hash_subject(p, key) for p in own)) for n, own in split.domains.items()}
    assert found.domains == hashed
    old = write(tmp_path / "old.json", SITES | {"test": ["d", "e"]})
    assert load_split(old).domains == {} and load_split(old).domain_of("d") == ""


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ({"a b": ["d"]}, "'a b' in 'test' must be letters"),
        ({"siteA": []}, "'siteA' in 'test' must be a list of patients"),
        ({"siteA": ["d"], "siteB": ["d"]}, "names patient 'd' twice in 'test'"),
        ({"siteA": ["a"]}, "both 'pool' and 'test', first 'a'"),
    ],
)
def test_faults_of_domains_are_named(tmp_path, test, words):
    with pytest.raises(ValueError, match=words):
        load_split(write(tmp_path / "split.json", SITES | {"test": test}))


def test_pretraining_leaves_out_the_test_patients_of_every_domain(tmp_path):
    path = str(write(tmp_path / "split.json", SITES))
    assert subjects(path, "data.exclude") == {"c", "d", "e", "f"} and subjects(path, "data.include") == {"a", "b"}
    assert sorted(_test_patients(path, "guard")) == ["d", "e", "f"]


def test_rows_say_the_domain_of_their_patient(labelled_store, run_folder, tmp_path):
    names = [f"patient_{i:02d}" for i in range(7)]
    content = {"pool": names[:3], "validation": names[3:4], "test": {"x": names[4:5], "y": names[5:]}}
    path = write(tmp_path / "split.json", content)
    values = suite_values(labelled_store, path, pictures=0)
    values["measures"] = {"probe": values["measures"]["probe"] | {"n_labelled": [1], "seeds": 1}}
    context, split, arms, _ = prepare([run_folder], load_suite(values), tmp_path / "out")
    cells = final_cells(context, split, arms[:1], {("probe", arms[0].name): ()})
    context.measure(cells[0]).run(context, cells)
    table = _results(context, split, cells)
    write_results(table, tmp_path)
    read = read_results(tmp_path)
    assert tuple(read.columns) == COLUMNS
    assert dict(read[["patient", "domain"]].drop_duplicates().to_numpy()) == {
        names[4]: "x", names[5]: "y", names[6]: "y",
    }  # fmt: skip
    read.drop(columns="domain").to_csv(tmp_path / "results.csv", index=False)
    assert (read_results(tmp_path)["domain"] == "").all()  # a table that is older than the column


def test_a_report_compares_all_patients_and_those_of_each_domain():
    table = rows({"mae": {1: 0.05, 2: 0.05}}, seeds=(0, 1, 2), patients=8)
    patients = sorted(set(table["patient"]))
    half = set(patients[: len(patients) // 2])
    told = table.assign(domain=np.where(table["patient"].isin(half), "near", "far"))
    results, measures = by_domain(told, {"finetune": {"title": "Fine-tuning", "baseline": "scratch"}})
    assert measures["finetune on far"] == {"title": "Fine-tuning on far", "baseline": "scratch"}
    assert next(iter(measures)) == "finetune"
    points = [p for p in compare(results) if p.metric == "dice"]
    pooled = [p for p in points if p.measure == "finetune"]
    near = [p for p in points if p.measure == "finetune on near"]
    alone = [p for p in compare(table[table["patient"].isin(half)]) if p.metric == "dice"]
    assert [p.score.mean for p in pooled] == [p.score.mean for p in compare(table) if p.metric == "dice"]
    assert [p.score.mean for p in near] == [p.score.mean for p in alone]
    same, _ = by_domain(table, {})
    pd.testing.assert_frame_equal(same, table)
