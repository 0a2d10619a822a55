"""inspect --verify names what is damaged; converting again makes it again, to the byte."""

import json
import shutil

import numpy as np
import pytest
from tests_prep import save, smooth

from preprocessing import convert, verify
from ssl3d.cli import main
from ssl3d.data.damage import noted_damage


def _sources(root, n=4):
    for number in range(n):
        image = smooth((20, 17, 18), number)
        image[:4] = np.nan
        save(root / "imagesTr" / f"c{number}.nii.gz", image)
        save(root / "labelsTr" / f"c{number}.nii.gz", (np.nan_to_num(image) > 600).astype(np.uint8))
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": {"0": "b", "1": "t"}}))
    return root


def _bytes(root):
    files = sorted(f for f in root.rglob("*") if f.is_file() and f.name[0] != ".")
    return {str(f.relative_to(root)): f.read_bytes() for f in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("verify")
    convert(_sources(root / "Task"), root / "store", workers=1)
    return root


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


DAMAGE = {
    "a bit of a volume": ("volumes/c1/c/0/0/0/0", _flip),
    "a bit of a label": ("labels/c1/c/0/0/0/0", _flip),
    "a bit of valid": ("valid/c1/c/0/0/0/0", _flip),
    "a bit of the original label": ("labels_original/c1/c/0/0/0/0", _flip),
    "a cut shard": ("volumes/c1/c/0/0/0/0", lambda f: f.write_bytes(f.read_bytes()[:-100])),
    "a lost shard": ("volumes/c1/c/0/0/0/0", lambda f: f.unlink()),
    "a lost label": ("labels/c1/zarr.json", lambda f: shutil.rmtree(f.parent)),
    "a lost volume": ("volumes/c1/zarr.json", lambda f: shutil.rmtree(f.parent)),
    "metadata of zeros": ("volumes/c1/zarr.json", lambda f: f.write_bytes(bytes(f.stat().st_size))),
    "a label's metadata": ("labels/c1/zarr.json", lambda f: f.write_text('{"half')),
    "a lost thumbnail": ("volumes/c1/thumbnail.npy", lambda f: f.unlink()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_noted_and_made_again(whole, tmp_path, kind, capsys):
    key, harm = DAMAGE[kind]
    store = tmp_path / "store"
    shutil.copytree(whole / "store", store)
    harm(store / key)
    assert main(["inspect", str(store), "--verify"]) == 1
    said = capsys.readouterr().out
    assert f"damaged: {key}" in said and "1 damaged" in said
    assert list(noted_damage(store)) == ["c1"]
    assert convert(whole / "Task", store, workers=1).summary.startswith("converted 4")
    assert main(["inspect", str(store), "--verify"]) == 0
    assert "verified 4 volumes: every object is what was written" in capsys.readouterr().out
    assert _bytes(store) == _bytes(whole / "store")


@pytest.mark.parametrize("key", ["index.parquet", "thumbnails.npy"])
def test_derived_files_are_checked_too(whole, tmp_path, key):
    store = tmp_path / "store"
    shutil.copytree(whole / "store", store)
    (store / key).write_bytes((store / key).read_bytes()[:500])
    report = verify(store)
    assert (report.exit_code, report.damaged, report.derived) == (1, {}, [key])
    convert(whole / "Task", store, workers=1)
    assert verify(store).exit_code == 0


def test_a_store_that_cannot_be_written_is_verified_all_the_same(whole, tmp_path, monkeypatch):
    from ssl3d.data.objects import LocalObjects, StoreError

    store = tmp_path / "store"
    shutil.copytree(whole / "store", store)
    _flip(store / "volumes/c1/c/0/0/0/0")

    def closed(self, key, data):
        raise StoreError("read-only")

    monkeypatch.setattr(LocalObjects, "put", closed)
    report = verify(store)
    assert report.damaged == {"c1": ["volumes/c1/c/0/0/0/0"]} and not report.noted
    assert "could not be noted" in report.text


def test_users_mistakes(whole, tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "nowhere"), "--verify"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(["inspect", str(whole / "store"), "--verify", "--html", "x.html"]) == 2
