"""Split files, subsets that nest, subjects in either form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from downstream.splits import Split, draw_split, labelled_subset, load_split, resolve
from ssl3d.data.subjects import hash_subject

POOL = tuple(f"p{i}" for i in range(12))


def test_subsets_nest_and_depend_on_nothing_but_their_seed():
    for seed in range(5):
        four = labelled_subset(POOL, 4, 7, seed)
        assert labelled_subset(POOL, 2, 7, seed) == four[:2]
        assert labelled_subset(tuple(reversed(POOL)), 4, 7, seed) == four
        assert len(set(four)) == 4
    assert len({labelled_subset(POOL, 4, 7, seed) for seed in range(8)}) > 1
    assert labelled_subset(POOL, 4, 8, 0) != labelled_subset(POOL, 4, 7, 0)
    with pytest.raises(ValueError, match="pool has 12"):
        labelled_subset(POOL, 13, 7, 0)


def test_every_patient_is_drawn_about_equally_often():
    counts = [sum(p in labelled_subset(POOL, 3, 0, s) for s in range(600)) for p in POOL]
    assert min(counts) > 100 and max(counts) < 200  # expected 150


def test_draw_split_is_a_partition(tmp_path):
    split = draw_split(POOL, 2, 3, seed=5)
    parts = split.pool + split.validation + split.test
    assert sorted(parts) == sorted(POOL) and (len(split.validation), len(split.test)) == (2, 3)
    assert draw_split(reversed(POOL), 2, 3, seed=5) == split  # type: ignore[arg-type]
    split.save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    with pytest.raises(ValueError, match="leave none"):
        draw_split(POOL, 6, 6, seed=0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ('{"pool": ["a"], "test": ["b"]}', "needs a field 'validation'"),
        ('{"pool": "a", "validation": [], "test": ["b"]}', "needs a field 'pool'"),
        ('["a"]', "needs a field 'pool'"),
        ('{"pool": ["a", "b"], "validation": [], "test": ["b"]}', "1 patient.s. in both 'pool' and 'test', first 'b'"),
        ('{"pool": ["a", "a"], "validation": [], "test": ["b"]}', "names patient 'a' twice"),
    ],
)
def test_bad_split_files_are_named(tmp_path, content, words):
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        load_split(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_split_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nosuch\.json"):
        load_split(tmp_path / "nosuch.json")


def test_patients_are_found_raw_or_hashed(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ssl3d").mkdir()
    key = b"0123456789abcdef"
    (tmp_path / "ssl3d" / "subject.key").write_bytes(key)
    hashed = hash_subject("c", key)
    split = Split(("a",), ("b",), ("c",))
    where = Path("split.json"), Path("my.zarr")
    assert resolve(split, {"a", "b", hashed}, *where) == Split(("a",), ("b",), (hashed,))
    with pytest.raises(ValueError, match=r"'test' without a labelled volume in my.zarr, first 'c'"):
        resolve(split, {"a", "b"}, *where)
    with pytest.raises(ValueError, match="names one subject twice"):
        resolve(Split(("a",), (hashed,), ("c",)), {"a", hashed}, *where)


def test_further_fields_are_allowed(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"pool": ["b", "a"], "validation": [], "test": ["c"], "seed": 3}))
    assert load_split(path) == Split(("a", "b"), (), ("c",))
