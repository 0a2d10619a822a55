"""The leak guard: whatever test volumes are called and however they were rewritten, they are not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from downstream.guard import LeakError, check_leak
from ssl3d.config import ConfigError, load
from ssl3d.data.near import COLUMNS, near_duplicates, volume_table
from ssl3d.data.store import open_store
from ssl3d.data.write import build_index, channel_stats, create_store, write_volume
from ssl3d.guard import guard
from ssl3d.testing.store import plain_attributes
from ssl3d.train import train

SHAPE = (20, 26, 30)


def scan(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A smooth volume (Z,Y,X) that looks like no other seed's."""
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    smooth = ndimage.gaussian_filter(noise, 2.5)
    return ndimage.zoom(1000 * smooth / smooth.std(), [a / b for a, b in zip(shape, SHAPE)], order=1)


def write_scans(root: Path, scans: dict[str, tuple[str, str, np.ndarray]]) -> Path:
    """A store of {volume: (subject, fingerprint, image (Z,Y,X))}; every volume shows the same box of the world."""
    create_store(root)
    for name, (subject, fingerprint, image) in scans.items():
        spacing = [2.0 * 20 / image.shape[0], 1.5 * 26 / image.shape[1], 1.0 * 30 / image.shape[2]]
        affine = [[0, 0, -spacing[2], 0], [0, -spacing[1], 0, 0], [spacing[0], 0, 0, 0], [0, 0, 0, 1]]
        stats = [channel_stats(image)]
        own = {
            "spacing": spacing, "affine": affine, "modality": ["mr"], "foreground_stats": stats, "valid_stats": stats,
            "subject": subject, "session": "", "fingerprint": fingerprint, "source": f"{name}.nii.gz",
        }  # fmt: skip
        stored = image[None].round().astype(np.int16)
        write_volume(root, name, stored, plain_attributes(stored, **own))
    build_index(root)
    return root


def table(path: Path) -> pd.DataFrame:
    store = open_store(path)
    return volume_table(store, np.arange(len(store)))


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Path, Path]:
    """A store to train on and an evaluation's: of its test patients t0 to t2 the first holds the very scan under
    another name, another scan, and a resampled and rescaled copy under another name; the fourth patient is clean."""
    folder = tmp_path_factory.mktemp("stores")
    rewritten = 0.5 * scan(12, (23, 30, 34)) + 7
    mine = {
        "a": ("anna", "same", scan(10)),
        "b": ("t1", "f1", scan(21)),
        "c": ("carl", "f2", rewritten),
        "c2": ("carl", "f3", scan(22)),
        **{f"free{i}": (f"free{i}", f"g{i}", scan(30 + i)) for i in range(4)},
    }
    test = {f"v{i}": (f"t{i}", "same" if i == 0 else f"e{i}", scan(10 + i)) for i in range(4)}
    test["pool"] = ("free0", "g0", scan(30))
    return write_scans(folder / "mine.zarr", mine), write_scans(folder / "suite.zarr", test)


@pytest.fixture
def guarded(tiny, stores, tmp_path):
    """guarded(*overrides) -> the tiny recipe over the leaking store, guarding the suite."""
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"pool": ["free0"], "validation": [], "test": ["t0", "t1", "t2", "t3"]}))
    suite = f"guard.suites=[{{store: {stores[1]}, split: {split}}}]"

    def make(*overrides: str):
        return tiny(f"data.store={stores[0]}", "run.steps=2", suite, *overrides)

    return make


def test_copies_are_found_by_their_looks_and_nothing_else_is(stores):
    mine, test = (table(path) for path in stores)
    found, unsure = near_duplicates(mine, test)
    assert set(mine["volume"][found]) == {"a", "c", "free0"} and not unsure.any()
    back, _ = near_duplicates(test, mine)
    assert set(test["volume"][back]) == {"v0", "v2", "pool"}


def test_what_cannot_be_looked_at_is_unsure(stores):
    mine, test = (table(path) for path in stores)
    gone = mine.assign(store="/moved/away.zarr")
    found, unsure = near_duplicates(test, gone)
    assert not found.any() and {"v0", "v2", "pool"} <= set(test["volume"][unsure])
    old = mine[["fingerprint", "perceptual_hash", "subject"]]
    assert np.array_equal(near_duplicates(test, old)[1], unsure)
    replaced = mine.assign(fingerprint=[f"other{i}" for i in range(len(mine))])
    assert not near_duplicates(test, replaced)[0].any(), "a store that now holds other volumes of these names"
    for empty in (mine[:0], mine.assign(perceptual_hash="")):
        assert not np.any(near_duplicates(test, empty))


def test_all_that_leaks_is_left_out_and_said(guarded, capsys):
    run = train(guarded())
    seen = pd.read_parquet(run / "seen.parquet")
    assert list(seen.columns) == list(COLUMNS)
    assert set(seen["subject"]) == {f"free{i}" for i in range(4)}
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("guard.suites")]
    assert said == [
        "guard.suites: 4 of 8 volumes (3 subjects) belong to test volumes of 'suite' (1 the very scan, 1 another scan "
        "of the patient, 1 a near duplicate, 1 another scan of these subjects); they are left out"
    ]
    assert json.loads((run / "environment.json").read_text())["guard"] == said
    train(guarded("run.steps=2"))  # finished: nothing to do


def test_a_leak_can_stop_the_training(guarded, tmp_path):
    with pytest.raises(ConfigError, match=r"4 of 8 volumes .*: set guard\.on_leak=exclude, or name them"):
        train(guarded("guard.on_leak=stop"))
    assert not (tmp_path / "run" / "seen.parquet").exists()


def test_a_clean_training_says_so(guarded, capsys):
    train(guarded("guard.on_leak=stop", "data.exclude=[anna,t1,carl]"))
    assert "guard.suites: none of 4 volumes is a test volume of 'suite'" in capsys.readouterr().out


def test_the_probe_looks_at_no_test_patient(guarded, stores, tmp_path):
    probe = [f"probe.store={stores[1]}", "probe.every=1"]
    with pytest.raises(ConfigError, match=r"4 subjects of probe\.store .* belong to test volumes of 'suite'"):
        train(guarded("guard.on_leak=stop", "data.exclude=[anna,t1,carl]", *probe))
    mine = [open_store(stores[0])]
    found = guard(guarded(*probe), mine)
    assert found.probe == {"t0", "t1", "t2", "t3"}
    assert "4 subjects of probe.store belong to test volumes of 'suite'; the probe" in found.sentences[-1]
    assert not guard(guarded(*probe, "probe.exclude=[t0,t1,t2,t3]"), mine).probe


def test_weights_that_have_seen_a_test_patient_are_refused(guarded, stores, tmp_path):
    first = train(guarded("guard.suites=[]", f"run.dir={tmp_path / 'first'}"))
    for init in (first, first / "checkpoints" / "last.pt"):
        with pytest.raises(ConfigError, match=r"model\.init: .* were trained on 3 volumes that belong to test volumes"):
            train(guarded(f"model.init={init}", "data.include=[free1]"))


def test_the_evaluation_finds_near_duplicates_too(guarded, stores, tmp_path):
    run = train(guarded("guard.suites=[]", "data.include=[carl,free1]"))
    test = table(stores[1])
    test = test[test["subject"] == "t2"]
    with pytest.raises(LeakError, match=r"first 't2' .volume v2: a near duplicate of it"):
        check_leak(run, test, allow_leak=False)
    seen = pd.read_parquet(run / "seen.parquet")
    seen.assign(store="/moved/away.zarr").to_parquet(run / "seen.parquet")
    (warning,) = check_leak(run, test, allow_leak=False)
    assert warning.startswith("1 of 1 test volumes may be near duplicates") and str(run) in warning


@pytest.mark.parametrize(
    ("suites", "words"),
    [
        ("[{suite: phantom}]", r"guard\.suites\.0\.store is not set, and the suite 'phantom' leaves it open"),
        ("[phantom]", r"guard\.suites\.0\.store is not set"),
        ("[{store: x.zarr}]", r"guard\.suites\.0\.split is not set, and no suite is named"),
        ("[{suit: phantom}]", r"unknown key 'guard\.suites\.0\.suit'; did you mean 'suite'\?"),
        ("[{store: STORE, split: nowhere.json}]", r"guard\.suites\.0\.split: there is no file 'nowhere\.json'"),
        ("[nosuch]", "there is no suite 'nosuch'"),
    ],
)
def test_faults_are_named(tiny, stores, suites, words):
    with pytest.raises((ConfigError, FileNotFoundError), match=words):
        train(tiny(f"guard.suites={suites.replace('STORE', str(stores[1]))}"))


def test_a_finished_evaluations_suite_names_store_and_split(tiny, stores, tmp_path, capsys):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"test": ["t1"]}))
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"name: mine\nstore: {stores[1]}\nsplit: {split}\n")
    recipe = tiny(f"data.store={stores[0]}", "run.steps=1", f"guard.suites=[{suite}]")
    assert load(recipe.to_dict()) == recipe
    train(recipe)
    assert "1 of 8 volumes (1 subject)" in capsys.readouterr().out


def test_of_a_drawn_split_the_one_that_the_evaluation_left_counts(tiny, stores, tmp_path, capsys):
    values = f"name: mine\nstore: {stores[1]}\nsplit: {{rule: folds, folds: 2}}\n"
    suite, planned = tmp_path / "suite.yaml", tmp_path / "mine.yaml"
    suite.write_text(values)
    planned.write_text(values)
    (tmp_path / "split.json").write_text(json.dumps({"test": ["t1"]}))
    with pytest.raises(ConfigError, match=r"--suite \S+mine\.yaml --out OUT --plan-only") as refused:
        train(tiny(f"guard.suites=[{planned}]"))
    remedy = str(refused.value).partition("name both: ")[2].replace("'", "").replace("OUT", str(tmp_path))
    for number, given in enumerate((f"guard.suites=[{suite}]", remedy)):  # the remedy is taken at its word
        train(tiny(f"data.store={stores[0]}", "run.steps=1", f"run.dir={tmp_path / str(number)}", given))
        assert "1 of 8 volumes (1 subject)" in capsys.readouterr().out
