"""No test patient may have been seen; what cannot be checked says so."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from shapes_store import suite_values, write_run, write_seen

import downstream
from downstream.guard import LeakError, check_leak, check_sets
from downstream.setup import prepare
from downstream.suite import load_suite
from preprocessing import convert
from ssl3d import checkpoint, leaks
from ssl3d.data.near import volume_table
from ssl3d.data.store import open_store
from ssl3d.data.subjects import hash_subject
from ssl3d.data.write import build_index

TEST = pd.DataFrame(
    {"volume": ["v1", "v2", "v3"], "fingerprint": ["f1", "f2", "f3"], "subject": ["anna", "bert", "bert"]}
)


def test_a_clean_run_passes(tmp_path):
    write_seen(tmp_path, ["g1", ""], ["carl", ""])
    assert check_leak(tmp_path, TEST.assign(fingerprint=["f1", "", "f3"], subject=["", "bert", "x"]), False) == []


@pytest.mark.parametrize(
    ("fingerprints", "subjects", "words"),
    [
        (["f2"], ["someone"], "1 of 2 test patients .* first 'bert' .volume v2: this very scan"),
        (["g"], ["anna"], "1 of 2 test patients .* first 'anna' .volume v1: a scan of this patient"),
        (["f3", "f1"], ["x", "y"], "2 of 2 test patients .* first 'anna'"),
    ],
)
def test_a_leak_is_refused(tmp_path, fingerprints, subjects, words):
    write_seen(tmp_path, fingerprints, subjects)
    with pytest.raises(LeakError, match=words) as error:
        check_leak(tmp_path, TEST, allow_leak=False)
    assert str(tmp_path) in str(error.value) and "allow_leak=true" in str(error.value)
    (warning,) = check_leak(tmp_path, TEST, allow_leak=True)
    assert warning.startswith("Leak allowed")


def test_hashed_subjects_leak_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ssl3d").mkdir()
    (tmp_path / "ssl3d" / "subject.key").write_bytes(b"0123456789abcdef")
    write_seen(tmp_path, ["g"], [hash_subject("bert", b"0123456789abcdef")])
    with pytest.raises(LeakError, match="first 'bert'"):
        check_leak(tmp_path, TEST, allow_leak=False)


def test_a_checkpoint_file_finds_its_run_and_a_bare_file_warns(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    write_seen(run, ["f1"], ["x"])
    file = run / "checkpoints" / "last.pt"
    file.touch()
    with pytest.raises(LeakError):
        check_leak(file, TEST, allow_leak=False)
    bare = tmp_path / "elsewhere" / "deep" / "weights.pt"
    bare.parent.mkdir(parents=True)
    bare.touch()
    (warning,) = check_leak(bare, TEST, allow_leak=False)
    assert "could not be checked" in warning and str(bare) in warning


def test_a_planted_leak_stops_an_evaluation_before_it_writes(labelled_store, split_file, run_folder, tmp_path):
    write_seen(run_folder, ["print-case_05_0"], ["renamed"])
    with pytest.raises(LeakError, match="first 'patient_05'"):
        downstream.evaluate([run_folder], suite_values(labelled_store, split_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SETS = {
    "pool": pd.DataFrame({"volume": ["p1", "p2"], "fingerprint": ["a", "b"], "subject": ["anna", "bert"]}),
    "validation": pd.DataFrame({"volume": ["v1"], "fingerprint": ["c"], "subject": ["carl"]}),
    "test": pd.DataFrame({"volume": ["t1"], "fingerprint": ["d"], "subject": ["dora"]}),
}


def test_sets_without_a_leak_pass():
    assert check_sets(SETS, allow_leak=False) == []
    assert check_sets(SETS | {"validation": SETS["validation"].iloc[:0]}, allow_leak=False) == []


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("test", {"fingerprint": ["b"]}, "1 pool patients of the split are test patients too, first 'bert' .volume p2: "
         "the very scan"),
        ("test", {"fingerprint": ["c"]}, "1 validation patients .* are test patients too, first 'carl'"),
        ("validation", {"fingerprint": ["a"]}, "1 pool patients .* are validation patients too, first 'anna'"),
    ],
)  # fmt: skip
def test_one_scan_in_two_sets_is_refused(part, change, words):
    planted = SETS | {part: SETS[part].assign(**change)}
    with pytest.raises(LeakError, match=words) as error:
        check_sets(planted, allow_leak=False)
    assert "allow_leak=true" in str(error.value)
    (warning,) = check_sets(planted, allow_leak=True)
    assert warning.startswith("Leak allowed")


def test_a_subject_hashed_in_one_set_and_raw_in_the_other_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ssl3d").mkdir()
    (tmp_path / "ssl3d" / "subject.key").write_bytes(b"0123456789abcdef")
    hashed = SETS["test"].assign(subject=[hash_subject("bert", b"0123456789abcdef")])
    with pytest.raises(LeakError, match="the same subject"):
        check_sets(SETS | {"test": hashed}, allow_leak=False)


def test_a_near_duplicate_in_two_sets_is_refused(tmp_path):
    """The same anatomy again with a little noise, as another patient."""
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 34, 30)), 4)
    field = 1000 * field / field.std()
    for number, noise in enumerate((0, 5)):
        scan = field + np.random.default_rng(number).normal(0, noise, field.shape)
        path = tmp_path / "in" / f"scan_{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(scan.astype(np.float32), np.diag([1.0, 1.0, 1.2, 1.0])), path)
    convert(tmp_path / "in", tmp_path / "store", workers=1, modality="mr")
    store = open_store(tmp_path / "store")
    tables = {part: volume_table(store, [row]) for part, row in (("pool", 0), ("test", 1))}
    with pytest.raises(LeakError, match="a near duplicate"):
        check_sets(tables | {"validation": tables["pool"].iloc[:0]}, allow_leak=False)


def test_a_leak_within_the_split_stops_an_evaluation_before_it_writes(labelled_store, split_file, run_folder, tmp_path):
    """One scan twice in the store, under two names: in the pool and in the test set."""
    store = tmp_path / "twice.zarr"
    shutil.copytree(labelled_store, store)
    shutil.copytree(store / "volumes" / "case_00_0", store / "volumes" / "case_04_1")
    shutil.copytree(store / "labels" / "case_00_0", store / "labels" / "case_04_1")
    meta = store / "volumes" / "case_04_1" / "zarr.json"
    meta.write_text(meta.read_text().replace("patient_00", "patient_04"))
    build_index(store)
    with pytest.raises(LeakError, match=r"1 pool patients .* first 'patient_00' .volume case_00_0: the very scan"):
        downstream.evaluate([run_folder], suite_values(store, split_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_list_of_what_was_seen_must_be_the_weights_own(tmp_path):
    """seen.parquet of another run laid beside a checkpoint: what it says is not believed."""
    run = write_run(tmp_path / "run", 1)
    own = leaks.seen_digest(pd.read_parquet(run / "seen.parquet"))
    assert check_leak(run, TEST, allow_leak=False, card=own) == []
    (warning,) = check_leak(run, TEST, allow_leak=False, card="another")
    assert "is not the list that the weights of" in warning and "another" in warning
    (run / "seen.parquet").unlink()
    (warning,) = check_leak(run, TEST, allow_leak=False, card=own)
    assert own in warning and "lay that seen.parquet beside it" in warning


def test_the_card_of_a_checkpoint_is_read(labelled_store, split_file, tmp_path):
    run = write_run(tmp_path / "run", 1)
    content = checkpoint.read(run / "checkpoints" / "last.pt")
    checkpoint.save(run, content | {"seen_digest": "another"})
    context, _, _, warnings = prepare([run], load_suite(suite_values(labelled_store, split_file)), tmp_path / "out")
    assert context and any("(another)" in warning for warning in warnings)
