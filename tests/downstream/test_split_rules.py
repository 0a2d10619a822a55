"""Splits by name and by rule: the published patients, and nothing else."""

from __future__ import annotations

import json

import pytest
from sklearn.model_selection import KFold

from downstream.split_rules import faults, find_patients
from downstream.splits import load_split
from ssl3d import config
from ssl3d.guard import _places, _test_patients
from ssl3d.recipe import GuardedSuite
from ssl3d.schema import ConfigError

SHIPPED = sorted(config.SPLITS.glob("*.json"))
ROWS = {f"spleen_{n}": (n,) for n in (10, 12, 13, 14, 16, 17, 18, 19, 2, 20, 22, 24)}


def test_the_shipped_splits_are_whole_and_say_where_they_are_from():
    assert {path.stem for path in SHIPPED} >= {"acdc", "btcv_swin_unetr"}
    for path in SHIPPED:
        split = load_split(path)
        assert split.pool and split.validation and split.test
        assert "http" in json.loads(path.read_text())["source"]
    btcv = load_split(config.find_split("btcv_swin_unetr"))
    assert len(btcv.pool) + len(btcv.validation) == 24
    assert btcv.test == tuple(f"img00{n}" for n in range(35, 41))
    acdc = load_split(config.find_split("acdc"))
    assert len(acdc.pool) + len(acdc.validation) == 100 and acdc.test[0] == "patient101" and len(acdc.test) == 50
    blocks = [(int(p[-3:]) - 1) // 20 for p in acdc.validation]
    assert sorted(blocks) == sorted([*range(5)] * 2)  # two patients of each diagnosis


def test_folds_are_nnunets_and_cover_everybody_once():
    """nnU-Net: KFold(5, shuffle=True, random_state=12345) over the sorted case identifiers."""
    names = sorted(ROWS)
    published = [{names[i] for i in test} for _, test in KFold(5, shuffle=True, random_state=12345).split(names)]
    tested = []
    for fold in range(5):
        rule = {"rule": "folds", "fold": fold, "validation": 2, "cases": 12}
        split, notes = find_patients(rule, dict(reversed(ROWS.items())), "a.zarr")
        assert set(split.test) == published[fold] and len(split.validation) == 2 and not notes
        assert sorted((*split.pool, *split.validation, *split.test)) == names
        tested += split.test
    assert sorted(tested) == names
    with pytest.raises(ValueError, match=r"split.cases is 41, .* the store has 12: convert the whole set, or say"):
        find_patients({"rule": "folds", "cases": 41}, ROWS, "a.zarr")
    with pytest.raises(ValueError, match=r"split.validation is 10, but the pool has 9"):
        find_patients({"rule": "folds", "validation": 10}, ROWS, "a.zarr")
    with pytest.raises(ValueError, match=r"split.folds is 20, but the store has 12"):
        find_patients({"rule": "folds", "folds": 20}, ROWS, "a.zarr")


def test_a_table_that_comes_with_the_data(tmp_path):
    path = tmp_path / "meta.csv"
    path.write_text("image_id;age;split\ns0001;3;train\ns0002;4;val\ns0003;5;test\ns0004;5;train\n")
    rule = {"rule": "table", "table": str(path), "id": "image_id", "column": "split"}
    rule |= {"pool": ["train"], "validation": ["val"], "test": ["test"]}
    rows = {"s0001": (0,), "s0002": (1,), "s0003": (2,)}
    with pytest.raises(ValueError, match=r"meta.csv names 1 patient.s. in 'pool' without .* first 's0004'"):
        find_patients(rule, rows, "a.zarr")
    split, (note,) = find_patients(rule | {"absent": "leave_out"}, rows, "a.zarr")
    assert (split.pool, split.validation, split.test) == (("s0001",), ("s0002",), ("s0003",))
    assert "1 patients of the split" in note and "'s0004'" in note
    with pytest.raises(ValueError, match="has no column 'splitt'; did you mean 'split'"):
        find_patients(rule | {"column": "splitt"}, rows, "a.zarr")
    with pytest.raises(FileNotFoundError, match=r"split.table: there is no file gone.csv"):
        find_patients(rule | {"table": "gone.csv"}, rows, "a.zarr")


def test_lists_that_come_with_the_data(tmp_path):
    path = tmp_path / "dataset.json"
    training = [{"image": f"./imagesTr/amos_{n:04d}.nii.gz", "label": ""} for n in (1, 4, 5, 507)]
    validation = [{"image": f"./imagesVa/amos_{n:04d}.nii.gz"} for n in (8, 517)]
    path.write_text(json.dumps({"training": training, "validation": validation}))
    rows = {f"amos_{n:04d}": (n,) for n in (1, 4, 5, 507, 8, 517)}
    rule = {"rule": "lists", "file": str(path), "match": "amos_0[0-4]", "validation": 1}
    split, _ = find_patients(rule, rows, "a.zarr")
    assert len(split.pool) == 2 and len(split.validation) == 1 and split.test == ("amos_0008",)
    assert {*split.pool, *split.validation} == {"amos_0001", "amos_0004", "amos_0005"}
    with pytest.raises(ValueError, match="has no list 'valid'"):
        find_patients(rule | {"test": "valid"}, rows, "a.zarr")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"rule": "fold"}, "split.rule is 'fold'; it must be one of file, folds"),
        ({}, "split.rule is None"),
        ({"rule": "folds", "fold": 5}, "split.fold is 5; it must be one of 0 to 4"),
        ({"rule": "folds", "seeed": 5}, "unknown key 'split.seeed'; did you mean 'seed'"),
        ({"rule": "table", "table": "???"}, "split.table is not set"),
        ({"rule": "file", "file": "acdc", "absent": "skip"}, "split.absent is 'skip'; it must be one of refuse"),
        ({"rule": "lists", "file": "a.json", "match": "("}, "split.match is '.'; it must be a regular expression"),
    ],
)
def test_faults_name_their_key(value, words):
    with pytest.raises(ConfigError, match=words):
        raise ConfigError(faults(value))


def test_a_shipped_split_serves_the_pre_training_too():
    assert "patient101" in (config.subjects("acdc", "data.exclude") or set())
    guarded = GuardedSuite(suite="btcv", store="btcv.zarr")
    store, split = _places(guarded, "guard.suites.0")
    assert store == "btcv.zarr" and "img0035" in _test_patients(split, "guard.suites.0")
    with pytest.raises(ConfigError, match=r"guard.suites.0.split is not set, and the suite draws .* --plan-only"):
        _places(GuardedSuite(suite="msd09_spleen", store="a.zarr"), "guard.suites.0")
