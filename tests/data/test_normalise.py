"""Normalisation numbers: CT by the store's pooled statistics, everything else by its own, or as the user says."""

from __future__ import annotations

import pytest
from random_volumes import add_volume

from ssl3d.data import normalise
from ssl3d.data.store import Store, open_store
from ssl3d.data.write import build_index, create_store

GIVEN = {"low": -200.0, "high": 300.0, "mean": 40.0, "std": 80.0}


@pytest.fixture
def store(tmp_path) -> Store:
    root = tmp_path / "s.zarr"
    create_store(root)
    add_volume(root, "ct0", 0, (20, 30, 25))
    add_volume(root, "ct1", 1, (33, 20, 25), offset=[50.0])
    add_volume(root, "mr", 2, (20, 30, 25), channels=2, modality=["mr", "mr"], scale=[2.0, 0.1])
    build_index(root)
    return open_store(root)


def test_ct_shares_the_stores_numbers_and_mr_has_its_own(store):
    pooled = store.statistics["ct"]
    expected = {"low": [-1000], "high": [1000], "mean": [pooled["clipped_mean"]], "std": [pooled["clipped_std"]]}
    assert normalise.auto(store, 0) == normalise.auto(store, 1) == expected
    stats = store.attributes(2).valid_stats
    assert normalise.auto(store, 2) == {
        "low": [s.percentile_00_5 for s in stats],
        "high": [s.percentile_99_5 for s in stats],
        "mean": [s.clipped_mean for s in stats],
        "std": [s.clipped_std for s in stats],
    }
    assert normalise.describe([store], "auto")["modalities"]["ct"][store.path]["mean"] == pooled["clipped_mean"]


def test_explicit_numbers_for_all_or_by_modality(store):
    assert normalise.resolve(GIVEN, store, 2) == {key: [value] * 2 for key, value in GIVEN.items()}
    by_modality = {"ct": GIVEN, "mr": "auto"}
    assert normalise.resolve(by_modality, store, 0) == {key: [value] for key, value in GIVEN.items()}
    assert normalise.resolve(by_modality, store, 2) == normalise.auto(store, 2)
    with pytest.raises(ValueError, match=r"data\.normalise has no entry for modality 'mr' of volume mr"):
        normalise.resolve({"ct": GIVEN}, store, 2)


@pytest.mark.parametrize(
    "wrong,words",
    [
        ("zscore", "must be auto"),
        ({"low": 0, "high": 1}, "exactly the keys"),
        ({"ct": {**GIVEN, "std": 0}}, r"data\.normalise\.ct needs low < high and std > 0"),
        ({**GIVEN, "low": 400}, "low < high"),
        ({"ct": "minmax"}, r"data\.normalise\.ct must be auto"),
    ],
)
def test_mistakes_name_the_key(store, wrong, words):
    with pytest.raises(ValueError, match=words):
        normalise.check(wrong)
