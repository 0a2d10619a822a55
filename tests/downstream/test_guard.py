"""No test patient may have been seen; what cannot be checked says so."""

from __future__ import annotations

import pandas as pd
import pytest
from shapes_store import suite_values, write_seen

import downstream
from downstream.guard import LeakError, check_leak
from ssl3d.data.subjects import hash_subject

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
