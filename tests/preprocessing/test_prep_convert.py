"""The whole conversion on small files: places, layouts, refusals, resume."""

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock
from tests_prep import oblique, save, smooth

from preprocessing import convert, inspect
from ssl3d.data.store import open_store


def _refused(store):
    with (store / "refused.csv").open() as file:
        return {row["source"]: row["reason"] for row in csv.DictReader(file)}


def _values(store, row, kind="volumes"):
    shape = store.shape(row, kind)
    stored = store.read(row, (0, 0, 0), tuple(shape[1:]), kind=kind)
    if kind != "volumes":
        return stored
    a = store.attributes(row)
    return stored * np.array(a.scale)[:, None, None, None] + np.array(a.offset)[:, None, None, None]


def _bytes(root):
    return {
        str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file() and f.name != ".lock"
    }


FRAMES = {
    "RAS": np.diag([1.0, 1.4, 2.5, 1]),
    "LPS": np.diag([-0.8, -1.4, 3.0, 1]),
    "PIR": np.array([[0, 0, 1.5, 3], [-0.9, 0, 0, 5], [0, -2.0, 0, 7], [0, 0, 0, 1.0]]),
    "oblique": oblique((0.9, 1.3, 2.2), 28),
}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_keep_holds_at_every_world_place_what_the_file_holds(tmp_path, frame, dtype):
    affine = FRAMES[frame].copy()
    affine[:3, 3] += (11, -7, 3)
    path = save(tmp_path / "scan.nii.gz", smooth((12, 17, 9)).astype(dtype), affine)
    convert(path, tmp_path / "store", spacing="keep", workers=1)
    store = open_store(tmp_path / "store")
    attributes = store.attributes(0)
    values = _values(store, 0)[0]
    image = nib.load(path)
    index = np.stack([*np.meshgrid(*[np.arange(n) for n in values.shape], indexing="ij"), np.ones(values.shape)])
    places = np.linalg.inv(image.affine) @ np.array(attributes.affine) @ index.reshape(4, -1)
    i, j, k = np.rint(places[:3]).astype(int)
    np.testing.assert_allclose(places[:3], [i, j, k], atol=1e-4)
    gap = np.abs(values.ravel() - np.asarray(image.dataobj)[i, j, k]).max()
    assert gap <= attributes.quantisation[0]["max_error"] * 1.0001 + 1e-9
    if dtype == np.int16:
        assert gap == 0 and attributes.scale == [1.0]


def test_iso1_agrees_with_linear_sampling_of_the_original(tmp_path):
    from scipy.ndimage import map_coordinates

    path = save(tmp_path / "scan.nii.gz", smooth((40, 30, 24), sigma=3), oblique((0.7, 1.3, 2.0), 25))
    convert(path, tmp_path / "store", workers=1)
    store = open_store(tmp_path / "store")
    values, attributes = _values(store, 0)[0], store.attributes(0)
    np.testing.assert_allclose(attributes.spacing, 1.0)
    image = nib.load(path)
    index = np.stack([*np.meshgrid(*[np.arange(n) for n in values.shape], indexing="ij"), np.ones(values.shape)])
    places = np.einsum("ij,j...->i...", np.linalg.inv(image.affine) @ np.array(attributes.affine), index)[:3]
    sampled = map_coordinates(image.get_fdata(), places, order=1, mode="nearest")
    inner = tuple(slice(4, -4) for _ in range(3))
    assert np.corrcoef(values[inner].ravel(), sampled[inner].ravel())[0, 1] > 0.995


def _msd(root, names=("case_1", "case_2", "case_3"), channels=1):
    """An MSD folder; returns {case: label (x, y, z)}."""
    labels = {}
    for number, name in enumerate(names):
        image = np.stack([smooth((14, 11, 8), seed=10 * number + c) for c in range(channels)], -1)
        labels[name] = (image[..., 0] > 600).astype(np.uint8) + (image[..., 0] > 800)
        affine = oblique((1.0, 1.0, 1.0), 10 * number)
        save(root / "imagesTr" / f"{name}.nii.gz", image if channels > 1 else image[..., 0], affine)
        save(root / "labelsTr" / f"{name}.nii.gz", labels[name], affine)
    (root / "imagesTr" / "._case_1.nii.gz").write_bytes(b"\0")
    modality = {str(c): name for c, name in zip(range(channels), ("T2", "CT"))}
    (root / "dataset.json").write_text(
        json.dumps({"modality": modality, "labels": {"0": "background", "1": "edge", "2": "core"}})
    )
    (root / "patients.json").write_text(json.dumps({"p1": ["case_1", "case_2"]}))
    return labels


def test_msd_labels_subjects_classes_and_targets(tmp_path):
    labels = _msd(tmp_path / "Task")
    (tmp_path / "targets.csv").write_text("id,age,grade\ncase_1,61.5,\ncase_3.nii.gz,,2\nother,1,1\n")
    report = convert(tmp_path / "Task", tmp_path / "store", targets=tmp_path / "targets.csv", workers=1)
    assert (report.converted, report.refused, report.exit_code) == (3, [], 0)
    store = open_store(tmp_path / "store")
    assert store.index["id"].tolist() == ["case_1", "case_2", "case_3"]
    assert store.index["subject"].tolist() == ["p1", "p1", "case_3"]
    assert store.index["modality"].tolist() == [["mr"]] * 3
    assert store.index["targets"].tolist() == [{"age": 61.5}, {}, {"grade": 2.0}]
    assert store.label_info(0).classes == {0: "background", 1: "edge", 2: "core"}
    for row, name in enumerate(labels):
        image = nib.load(tmp_path / "Task" / "imagesTr" / f"{name}.nii.gz")
        to_file = np.linalg.inv(image.affine) @ np.array(store.attributes(row).affine)
        label = _values(store, row, "labels")[0]
        index = np.stack([*np.meshgrid(*[np.arange(n) for n in label.shape], indexing="ij"), np.ones(label.shape)])
        i, j, k = np.rint(np.einsum("ij,j...->i...", to_file, index)[:3]).astype(int)
        np.testing.assert_array_equal(label, labels[name][i, j, k])
        np.testing.assert_array_equal(_values(store, row, "labels_original")[0], label)  # 1 mm: the same grid
    text = inspect(tmp_path / "store", html=tmp_path / "page.html")
    assert "volumes: 3" in text and "with labels: 3" in text and "few_slices" not in text
    assert "data:image/png;base64," in (tmp_path / "page.html").read_text()


def test_frames_of_an_msd_file_are_channels_and_of_a_bare_file_a_session(tmp_path):
    _msd(tmp_path / "Task", names=("a", "b"), channels=2)
    convert(tmp_path / "Task", tmp_path / "s1", workers=1)
    index = open_store(tmp_path / "s1").index
    assert index["channels"].tolist() == [2, 2] and index["modality"].tolist() == [["mr", "ct"]] * 2
    same = np.repeat(smooth((9, 8, 7))[..., None], 3, -1)  # equal frames are no duplicates of each other
    convert(save(tmp_path / "bold.nii.gz", same), tmp_path / "s2", workers=1)
    index = open_store(tmp_path / "s2").index
    assert index["id"].tolist() == [f"bold_t000{t}" for t in range(3)]
    assert index["session"].nunique() == index["subject"].nunique() == 1


def test_nnunet_channels_regions_and_a_missing_channel(tmp_path):
    root = tmp_path / "Dataset001_X"
    for case in ("p_01", "p_02"):
        for channel in range(2):
            if (case, channel) != ("p_02", 1):
                save(root / "imagesTr" / f"{case}_000{channel}.nii.gz", smooth((9, 8, 7), channel), oblique((1, 1, 2)))
        save(
            root / "labelsTr" / f"{case}.nii.gz",
            np.eye(9, 8, dtype=np.uint8)[..., None].repeat(7, 2),
            oblique((1, 1, 2)),
        )
    (root / "dataset.json").write_text(
        json.dumps({
            "channel_names": {"0": "T1", "1": "PET"}, "file_ending": ".nii.gz",
            "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        })
    )  # fmt: skip
    report = convert(root, tmp_path / "store", workers=1)
    assert (report.converted, [reason for _, reason in report.refused]) == (1, ["missing_channel"])
    store = open_store(tmp_path / "store")
    assert store.index["modality"][0] == ["mr", "pet"] and store.index["id"][0] == "p_01"
    info = store.label_info(0)
    assert info.classes == {0: "background", 1: "whole", 2: "core", 3: "ignore"} and info.ignore == 3


def test_labels_of_another_folder_and_those_that_do_not_fit(tmp_path):
    for name in ("a", "b", "c", "d"):
        save(tmp_path / "in" / f"{name}.nii.gz", smooth((9, 8, 7), ord(name)))
    save(tmp_path / "masks" / "a.nii.gz", np.ones((9, 8, 7), np.uint8))
    save(tmp_path / "masks" / "b.nii.gz", np.ones((8, 8, 7), np.uint8))
    save(tmp_path / "masks" / "c.nii.gz", np.ones((9, 8, 7), np.uint8), np.diag([1, 1, 1.5, 1.0]))
    report = convert(tmp_path / "in", tmp_path / "store", labels=tmp_path / "masks", workers=1)
    assert report.converted == 2 and report.exit_code == 0
    assert _refused(tmp_path / "store") == {
        "in/b.nii.gz": "label_shape_mismatch", "in/c.nii.gz": "label_affine_mismatch",
    }  # fmt: skip
    assert open_store(tmp_path / "store").index["has_label"].tolist() == [True, False]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="--labels"):
        convert(tmp_path / "in", tmp_path / "other", labels=tmp_path / "none", workers=1)


def _bad_files(root):
    save(root / "good.nii.gz", smooth((9, 8, 7)))
    save(root / "constant.nii.gz", np.full((9, 8, 7), 7.0))
    save(root / "nan.nii.gz", np.full((9, 8, 7), np.nan, np.float32))
    save(root / "thin.nii.gz", smooth((9, 8, 2)))
    (root / "empty.nii.gz").write_bytes(b"")
    (root / "half.nii.gz").write_bytes((root / "good.nii.gz").read_bytes()[:900])
    (root / "noise.nii").write_bytes(b"no image at all" * 99)
    (root / "notes.txt").write_text("not an image")
    (root / "SOURCE.md").write_text("not an image")


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    _bad_files(tmp_path / "in")
    report = convert(tmp_path / "in", tmp_path / "store", workers=1)
    assert report.summary == "converted 1, refused 6" and report.exit_code == 0
    assert _refused(tmp_path / "store") == {
        "in/constant.nii.gz": "constant", "in/nan.nii.gz": "not_finite", "in/thin.nii.gz": "too_few_slices",
        "in/empty.nii.gz": "empty_file", "in/half.nii.gz": "truncated", "in/noise.nii": "plain_text",
    }  # fmt: skip
    assert str(tmp_path) not in (tmp_path / "store" / "refused.csv").read_text()


def test_exit_codes_and_last_lines(tmp_path, capsys):
    _bad_files(tmp_path / "in")
    good, bad = tmp_path / "in" / "good.nii.gz", tmp_path / "in" / "constant.nii.gz"
    assert convert([good, bad], tmp_path / "s1", workers=1).exit_code == 1  # a named file was refused
    assert capsys.readouterr().out.strip().splitlines()[-1] == "converted 1, refused 1"
    assert convert([bad], tmp_path / "s2", workers=1).exit_code == 1
    assert convert([good], tmp_path / "s3", workers=1).exit_code == 0
    assert convert([good], tmp_path / "s3", workers=1).summary == "converted 1, refused 0"
    notes = convert([good, tmp_path / "in" / "notes.txt"], tmp_path / "s4", workers=1)
    assert notes.exit_code == 1 and notes.refused[0][1] == "unreadable"


def test_not_finite_voxels_become_air_and_are_not_valid(tmp_path):
    array = smooth((12, 11, 10))
    array[3:5, 4:6, 2:4] = np.nan
    convert(save(tmp_path / "scan.nii.gz", array), tmp_path / "store", spacing="keep", workers=1)
    store = open_store(tmp_path / "store")
    valid, values = _values(store, 0, "valid")[0], _values(store, 0)[0]
    assert (valid == 0).sum() == 8 and store.attributes(0).valid_stats[0].count == array.size - 8
    assert values[valid == 0].max() <= np.nanpercentile(array, 1)


def test_outside_the_circle_ct_is_kept_but_not_valid_and_does_not_ring(tmp_path):
    array = np.full((40, 40, 8), -1000.0, np.float32)
    array[10:30, 10:30] = np.random.default_rng(0).normal(40, 20, (20, 20, 8))
    array[:9] = -3024
    path = save(tmp_path / "scan.nii.gz", array.astype(np.int16), np.diag([0.8, 0.8, 2.5, 1]))
    convert(path, tmp_path / "keep", spacing="keep", workers=1)
    store = open_store(tmp_path / "keep")
    values, valid = _values(store, 0)[0], _values(store, 0, "valid")[0]
    assert store.index["modality"][0] == ["ct"]
    np.testing.assert_array_equal(valid == 0, values == -3024)
    convert(path, tmp_path / "iso", workers=1)
    assert _values(open_store(tmp_path / "iso"), 0)[0].min() > -1250


def test_equal_content_is_kept_once_whatever_its_axes(tmp_path):
    array = smooth((9, 8, 7))
    save(tmp_path / "in" / "a.nii.gz", array)
    save(tmp_path / "in" / "b.nii.gz", array[::-1, ::-1], np.diag([-1.0, -1, 1, 1]))
    save(tmp_path / "in" / "c.nii.gz", smooth((9, 8, 7), 5))
    for _ in range(2):  # a second run knows it without converting again
        report = convert(tmp_path / "in", tmp_path / "store", workers=1)
        assert report.converted == 2
        assert _refused(tmp_path / "store") == {"in/b.nii.gz": "duplicate"}
    assert open_store(tmp_path / "store").index["id"].tolist() == ["a", "c"]


def test_same_names_in_two_folders_become_two_volumes(tmp_path):
    for number, folder in enumerate(("left", "right")):
        save(tmp_path / "in" / folder / "my scan(1).nii.gz", smooth((9, 8, 7), number))
    convert(tmp_path / "in", tmp_path / "store", workers=1)
    index = open_store(tmp_path / "store").index
    assert all(re.fullmatch("my-scan-1-[0-9a-f]{8}", name) for name in index["id"])
    assert index["id"].nunique() == index["subject"].nunique() == 2


def test_a_store_grows_and_another_file_of_the_same_name_is_another_volume(tmp_path):
    for number, folder in enumerate(("one", "two")):
        save(tmp_path / folder / "scan.nii.gz", smooth((9, 8, 7), number))
        convert(tmp_path / folder, tmp_path / "store", workers=1)
    first, second = open_store(tmp_path / "store").index["id"]
    assert first == "scan" and re.fullmatch("scan-[0-9a-f]{8}", second)


def test_a_resumed_store_equals_an_uninterrupted_one(tmp_path):
    _msd(tmp_path / "Task")
    convert(tmp_path / "Task", tmp_path / "whole", workers=1)
    convert(tmp_path / "Task", tmp_path / "cut", workers=1)
    (tmp_path / "cut" / "volumes" / "case_2" / "zarr.json").unlink()  # as if killed before the commit
    (tmp_path / "cut" / "index.parquet").unlink()
    convert(tmp_path / "Task", tmp_path / "cut", workers=1)
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")


def test_users_mistakes_are_one_sentence(tmp_path):
    scan = save(tmp_path / "in" / "scan.nii.gz", smooth((9, 8, 7)))
    (tmp_path / "empty").mkdir()
    store = tmp_path / "store"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convert(tmp_path / "nowhere", store)
    with pytest.raises(ValueError, match="empty holds no volume"):
        convert(tmp_path / "empty", store)
    for options, named in (
        ({"spacing": "iso2"}, "iso2"),
        ({"spacing": "1,0,1"}, "1,0,1"),
        ({"modality": "us"}, "us"),
        ({"workers": 0}, "0"),
        ({"subject_key": store / "key"}, "inside the store"),
        ({"targets": tmp_path / "no.csv"}, "no.csv"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=named):
            convert(scan, store, **options)
    assert not store.exists()
    with pytest.raises(ValueError, match="is not an ssl3d store"):
        convert(scan, tmp_path / "in")
    assert [f.name for f in (tmp_path / "in").iterdir()] == ["scan.nii.gz"]
    (tmp_path / "bad.csv").write_text("id,age\nscan,old\n")
    with pytest.raises(ValueError, match="'old' in column 'age', row 'scan'"):
        convert(scan, store, targets=tmp_path / "bad.csv")
    convert(scan, store, workers=1)
    with pytest.raises(ValueError, match="--spacing iso1"):
        convert(scan, store, spacing="keep")
    with pytest.raises(ValueError, match="scan is in store"):
        convert(scan, store, modality="ct")
    with FileLock(store / ".lock"), pytest.raises(ValueError, match="another ssl3d convert"):
        convert(scan, store)


def test_dry_run_makes_nothing(tmp_path, capsys):
    _msd(tmp_path / "Task")
    report = convert(tmp_path / "Task", tmp_path / "store", dry_run=True)
    assert report.converted == 3 and not (tmp_path / "store").exists()
    assert capsys.readouterr().out.strip().endswith("would convert 3, refuse 0")


def test_median_spacing_is_that_of_the_sources(tmp_path):
    for number, z in enumerate((1.0, 2.5, 4.0)):
        save(tmp_path / "in" / f"s{number}.nii.gz", smooth((9, 8, 12), number), np.diag([0.5, 0.75, z, 1]))
    convert(tmp_path / "in", tmp_path / "store", spacing="median", workers=1)
    for spacing in open_store(tmp_path / "store").index["spacing"]:
        np.testing.assert_allclose(spacing, (2.5, 0.75, 0.5))
