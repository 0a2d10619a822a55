"""Sources of any kind together: order and company do not matter, patterns, ids, keys, and what is said of it all."""

import itertools
import json
import os
import random

import pytest
import trees_prep as trees
from test_prep_sources_archives import pack
from test_prep_sources_layouts import KEY, find, good, refused

from preprocessing import convert
from preprocessing.ids import settle_ids
from ssl3d.cli import main
from ssl3d.data.store import open_store
from ssl3d.data.subjects import hash_subject, matching


def _bytes(root):
    return {
        str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file() and f.name != ".lock"
    }


def _everything(root):
    """A source of every kind, names that collide among them."""
    trees.flare(root / "flare")
    trees.plain_tree(root / "plain")
    trees.image(root / "other" / "T1.nii.gz", 31)
    trees.image(root / "other" / "FLARE22_Tr_0001.nii.gz", 32)
    pack(trees.nnunet(root / "packed"), root / "packed.zip")
    (root / "broken.tar.gz").write_bytes(b"no archive")
    trees.image(root / "listed" / "x.nii.gz", 33)
    (root / "listed" / "list.csv").write_text("path,subject,grade\nx.nii.gz,anna,low\ngone.nii.gz,bert,high\n")
    return [root / name for name in ("flare", "plain", "other", "packed.zip", "broken.tar.gz", "listed/list.csv")]


def _described(source):
    return (source.id, source.subject, source.session, source.name, source.public, source.raw_subject, source.frames,
            source.labelled, str(source.problem), source.shown.replace("./", ""))  # fmt: skip


def test_the_order_of_sources_changes_nothing(tmp_path):
    arguments = _everything(tmp_path)
    found = [_described(source) for source in find(*arguments)]
    assert len(found) == 14
    for seed in range(6):
        shuffled = [*arguments, *arguments[:2]]
        random.Random(seed).shuffle(shuffled)
        assert [_described(source) for source in find(*shuffled)] == found


def test_a_shuffled_conversion_is_the_same_store(tmp_path):
    key = tmp_path / "key"
    arguments = _everything(tmp_path / "in")
    convert(arguments, tmp_path / "one", spacing="keep", workers=1, subject_key=key)
    convert(arguments[::-1], tmp_path / "two", spacing="keep", workers=1, subject_key=key)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
    report = convert(arguments[2:] + arguments[:2], tmp_path / "one", spacing="keep", workers=1, subject_key=key)
    assert report.converted == len(open_store(tmp_path / "one").index) == 9
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")


def test_volumes_keep_their_ids_when_a_store_grows(tmp_path):
    parts = [trees.image(tmp_path / f"p{number}" / "T1.nii.gz", number).parent for number in range(3)]
    ids = {}
    for order in itertools.permutations(parts):
        store = tmp_path / "-".join(part.name for part in order)
        for part in order:
            before = [] if not store.exists() else open_store(store).index["id"].tolist()
            convert(part, store, spacing="keep", workers=1)
            assert set(before) <= set(open_store(store).index["id"])
        index = open_store(store).index
        assert convert(parts, store, spacing="keep", workers=1).converted == 3  # together, later: no new ids
        assert open_store(store).index["id"].tolist() == index["id"].tolist()
        ids[order] = index["id"].tolist()
        if len(ids) == 2:  # two histories are enough
            break
    assert all(len(set(names)) == 3 for names in ids.values())


def test_ids_of_copies_collisions_and_frames(tmp_path):
    trees.image(tmp_path / "a" / "bold.nii.gz", 1, frames=2)
    trees.image(tmp_path / "b" / "bold_t0001.nii.gz", 2)
    for folder in ("c", "d"):
        trees.image(tmp_path / folder / "Scan.nii.gz", 3)
    trees.image(tmp_path / "e" / "scan.nii.gz", 4)
    for name in ("one", "two"):
        trees.flare(tmp_path / name / "set")
    sources = find(*(tmp_path / name for name in "abcde"))
    settle_ids(sources, [f"{source.paths[0].stat().st_size:08d}x" for source in sources], {}, frozenset())
    names = [volume.lower() for source in sources for volume in source.volume_ids()]
    assert len(set(names)) == len(names) == 6
    twins = find(tmp_path / "one", tmp_path / "two")
    settle_ids(twins, [f"{number:08d}" for number in range(len(twins))], {}, frozenset())
    assert len({source.id for source in twins}) == 4


def test_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.plain_tree(tmp_path / "tree")
    (tmp_path / "tree" / "notes.txt").write_text("no scan")
    by_pattern = {s.shown: s.subject for s in find("tree/**/*.nii.gz")}
    whole = {s.shown: s.subject for s in find("tree")}
    assert by_pattern.keys() == whole.keys()
    assert {s.shown for s in find("tree/*/T?.nii.gz")} == {"tree/ROE_RICHARD/T1.nii.gz", "tree/ROE_RICHARD/T2.nii.gz"}
    assert {s.shown for s in find("tree/*")} == whole.keys()
    assert not refused(find("tree/**"))
    with pytest.raises(FileNotFoundError, match=r"no file fits the pattern tree/\*.mha"):
        find("tree/*.mha")
    with pytest.raises(ValueError, match=r"tree/\*.txt holds no volume"):
        find("tree/*.txt")


def test_a_pattern_over_a_data_set_finds_its_cases(tmp_path):
    root = trees.nnunet(tmp_path / "D")
    whole = good(find(root))
    for pattern in (f"{root}/imagesTr/*", f"{tmp_path}/*/imagesTr", f"{root}/imagesTr/*_000[01].nii.gz"):
        found = good(find(pattern))
        assert {n: (s.subject, s.label, s.paths) for n, s in found.items()} == {
            n: (s.subject, s.label, s.paths) for n, s in whole.items()
        }
    assert good(find(f"{root}/imagesTr/*_0000.nii.gz")).keys() == {"case_a_0000", "case_b_0000"}  # one channel only


def test_refused_items_are_named_as_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "p1").mkdir(parents=True)
    (tmp_path / "in" / "p1" / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "in" / "x.zip").write_bytes(b"no zip")
    trees.image(tmp_path / "in" / "fine.nii.gz")
    for typed in ("in", "./in", "in/../in", str(tmp_path / "in")):
        report = convert(typed, "store", spacing="keep", workers=1)
        assert {shown for shown, _ in report.refused} == {f"{typed}/{name}" for name in ("p1/empty.nii.gz", "x.zip")}
    out = capsys.readouterr().out
    assert "refused in/p1/empty.nii.gz: empty_file" in out
    report = convert("./in/p1/empty.nii.gz", "other", spacing="keep", workers=1)
    assert report.refused == [("./in/p1/empty.nii.gz", "empty_file")] and report.exit_code == 1


def test_a_dry_run_writes_nothing_and_says_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    arguments = [str(path.relative_to(tmp_path)) for path in _everything(tmp_path)]
    before = _bytes(tmp_path), sorted(tmp_path.rglob("*"))
    assert main(["convert", *arguments, "new/store.zarr", "--dry-run"]) == 1  # a named archive is broken
    assert (_bytes(tmp_path), sorted(tmp_path.rglob("*"))) == before
    out = capsys.readouterr().out
    assert "found 2 volumes in flare (FLARE): 2 subjects, 1 labelled" in out
    assert "would make case_a from packed.zip/packed/imagesTr/case_a_0000.nii.gz (labelled, subject case_a, 2 ch" in out
    assert "would refuse listed/list.csv row 3 (gone.nii.gz): missing_file: row 3 names gone.nii.gz, which is" in out
    assert "would refuse broken.tar.gz: archive_damaged" in out
    assert "voxels were not read: a run may refuse more" in out and "there is no subject key yet" in out
    assert out.strip().splitlines()[-2:] == [
        "would be refused: archive_damaged 1, missing_file 1",
        "would convert 12, refuse 2",
    ]


def test_a_dry_run_tells_the_ids_of_the_run(tmp_path, capsys):
    arguments = [path for path in _everything(tmp_path / "in") if path.suffix != ".zip"]
    for held in (False, True):  # a new store, then one that holds it all
        convert(arguments, tmp_path / "store", spacing="keep", workers=1, dry_run=True, subject_key=tmp_path / "key")
        lines = capsys.readouterr().out.splitlines()
        told = {line.split()[2] for line in lines if line.startswith(("would make", "would keep"))}
        assert any(line.startswith("would keep") for line in lines) == held
        convert(arguments, tmp_path / "store", spacing="keep", workers=1, subject_key=tmp_path / "key")
        capsys.readouterr()
        entries = json.loads((tmp_path / "store" / "conversion.json").read_text())["entries"]
        assert told == {name for name, entry in entries.items() if not (held and entry["duplicate_of"])}


def test_a_dry_run_over_a_store_knows_its_duplicates(tmp_path, capsys):
    trees.image(tmp_path / "in" / "a.nii.gz", 31)
    (tmp_path / "in" / "b.nii.gz").write_bytes((tmp_path / "in" / "a.nii.gz").read_bytes())
    given = {"spacing": "keep", "workers": 1}
    convert(tmp_path / "in", tmp_path / "store", **given)
    capsys.readouterr()
    report = convert(tmp_path / "in", tmp_path / "store", **given, dry_run=True)
    assert (report.converted, [reason for _, reason in report.refused]) == (1, ["duplicate"])
    said = capsys.readouterr().out
    assert f"would keep a from {tmp_path}/in/a.nii.gz" in said and "would make" not in said
    assert f"would refuse {tmp_path}/in/b.nii.gz: duplicate: holds the same voxels as a" in said


def test_a_run_says_what_it_passed_over_and_what_key_it_made(tmp_path, capsys):
    trees.image(tmp_path / "in" / "a.nii.gz")
    for name in ("report.pdf", "readme.txt", "viewer.exe"):
        (tmp_path / "in" / name).write_bytes(b"%PDF-1.4 no image")
    for times in (1, 0):
        convert(tmp_path / "in", tmp_path / "store", spacing="keep", workers=1, subject_key=tmp_path / "key")
        out = capsys.readouterr().out
        assert "passed over 3 files without an image" in out
        assert out.count(f"hashed with: {tmp_path / 'key'}") == times, "said when it is made"


def test_split_files_match_either_form(tmp_path):
    root = trees.plain_tree(tmp_path / "archive")
    trees.bids(tmp_path / "ds")
    subjects = {source.subject for source in find(root, tmp_path / "ds")}
    assert matching(subjects, ["DOE_JANE"], KEY) == {hash_subject("DOE_JANE", KEY)}
    assert matching(subjects, ["sub-01", hash_subject("ROE_RICHARD", KEY)], KEY) == {
        "sub-01", hash_subject("ROE_RICHARD", KEY),
    }  # fmt: skip
    assert matching(subjects, [hash_subject("sub-02", KEY)], KEY) == {"sub-02"}


def test_labels_and_targets_find_sources_of_every_layout(tmp_path):
    trees.image(tmp_path / "in" / "p1" / "ct.nii.gz", 1)
    trees.image(tmp_path / "in" / "p2" / "ct.nii.gz", 2)
    trees.mask(tmp_path / "masks" / "p1.nii.gz")
    (tmp_path / "targets.csv").write_text("subject,age\np1,50\np2,60\n")
    convert(tmp_path / "in", tmp_path / "store", labels=tmp_path / "masks", targets=tmp_path / "targets.csv",
            spacing="keep", workers=1)  # fmt: skip
    index = open_store(tmp_path / "store").index
    assert sorted(index["has_label"]) == [False, True]
    assert sorted(targets["age"] for targets in index["targets"]) == [50.0, 60.0]


def test_dicom_files_named_one_by_one_are_one_series(tmp_path, ct_series, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).normal(0, 200, size=(6, 14, 10)).round()
    ct_series(tmp_path / "s", values, [2.0 * k for k in range(6)])
    said = []
    (source,) = find("s/IM*", said=said)
    assert len(source.paths) == 6 and source.problem is None
    assert said == ["found 1 volume in s (DICOM): 1 subject, 0 labelled"]
    (again,) = find(*(f"s/{path.name}" for path in (tmp_path / "s").iterdir()))
    assert again.id == source.id and again.subject == source.subject


def test_names_that_are_no_text(tmp_path, capsys):
    for name in (b"caf\xe9.nii.gz", b"two\nlines.nii.gz", "gr\u00fc\u00df.nii.gz".encode(), b"emp\xfety.nii.gz"):
        path = tmp_path / "in" / b"P\xe4tient".decode("utf-8", "surrogateescape") / os.fsdecode(name)
        trees.image(path, len(name))
        if b"emp" in name:
            path.write_bytes(b"")
    report = convert(tmp_path / "in", tmp_path / "store", spacing="keep", workers=1)
    assert (report.converted, [reason for _, reason in report.refused]) == (3, ["empty_file"])
    assert open_store(tmp_path / "store").index["id"].tolist() == ["caf", "gr", "two-lines"]
    for line in capsys.readouterr().out.splitlines():
        assert line.isprintable()
    convert(tmp_path / "in", tmp_path / "store", spacing="keep", workers=1, dry_run=True)
