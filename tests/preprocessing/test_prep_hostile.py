"""Files that lie: a zoo of them in one folder. Each is refused for its own reason, or converted rightly."""

import csv
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
import zoo
from world_prep import assert_every_voxel_is_at_its_place

from preprocessing import convert
from preprocessing.readers import sniff
from preprocessing.refusal import REASONS, Refusal
from ssl3d.data.store import open_store

_DOCUMENT = Path(__file__).parents[2] / "docs" / "conversion.md"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """(reasons by file name, store, folder) of one run over the whole zoo."""
    place = tmp_path_factory.mktemp("hostile")
    folder = place / "zoo"
    folder.mkdir()
    (place / "zoo_secret.raw").write_bytes(bytes(4096))
    for name, item in {**zoo.REFUSED, **zoo.KEPT}.items():
        (folder / name).write_bytes(item.content)
        for other, content in item.others.items():
            (folder / other).write_bytes(content)
    (folder / "folder.nii.gz").mkdir()
    (folder / "link.nii.gz").symlink_to(folder / "nowhere" / "scan.nii.gz")
    (folder / "circle.nii.gz").symlink_to(folder / "circle.nii.gz")
    os.mkfifo(folder / "pipe.nii.gz")
    os.mkfifo(folder / "pipe")
    convert(folder, place / "store", spacing="keep", workers=1, subject_key=place / "key")
    with (place / "store" / "refused.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert not any(str(place) in row["detail"] for row in rows)
    return {Path(row["source"]).name: row["reason"] for row in rows}, open_store(place / "store"), folder


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_a_file_that_lies_is_refused_for_its_own_reason(outcome, name):
    expected = [zoo.REFUSED[name].reason]
    if name == "hdf5.mnc" and importlib.util.find_spec("h5py"):
        expected = ["unreadable", "truncated"]
    assert outcome[0].get(name) in expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder.nii.gz", "not_a_file"),
        ("pipe.nii.gz", "not_a_file"),
        ("link.nii.gz", "dangling_link"),
        ("circle.nii.gz", "dangling_link"),
    ],
)
def test_what_is_no_file_is_refused(outcome, name, reason):
    assert outcome[0].get(name) == reason


@pytest.mark.parametrize("name", zoo.KEPT)
def test_an_odd_file_that_is_right_keeps_every_voxel_at_its_place(outcome, name):
    odd = zoo.KEPT[name]
    refused, store, _ = outcome
    assert name not in refused
    row = list(store.index["source"]).index(name)
    attributes = store.attributes(row)
    shape = store.shape(row)[1:]
    stored = store.read(row, (0, 0, 0), tuple(shape))[0]
    index = np.stack([*np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), np.ones(shape)])
    places = np.einsum("ij,j...->i...", np.linalg.inv(odd.affine) @ np.array(attributes.affine), index)[:3]
    i, j, k = np.rint(places).astype(int)
    np.testing.assert_allclose(places, [i, j, k], atol=2e-3)
    expected = odd.voxels.astype(np.float64)[i, j, k]
    finite = np.isfinite(expected)
    error = np.abs(stored * attributes.scale[0] + attributes.offset[0] - expected)[finite].max()
    assert error <= attributes.quantisation[0]["max_error"] * 1.001 + 1e-6 * np.abs(expected[finite]).max() * (
        odd.voxels.dtype.kind == "f"
    )
    if (odd.voxels == np.rint(odd.voxels)).all():
        assert error == 0
    assert set(odd.flags) <= set(attributes.flags)
    assert set(attributes.flags) - set(odd.flags) <= {"modality_unsure"}
    if not finite.all():
        np.testing.assert_array_equal(store.read(row, (0, 0, 0), tuple(shape), kind="valid")[0] != 0, finite)


def test_nothing_else_came_of_the_zoo(outcome):
    refused, store, _ = outcome
    assert set(store.index["source"]) == set(zoo.KEPT)
    assert set(refused) == {*zoo.REFUSED, "folder.nii.gz", "pipe.nii.gz", "link.nii.gz", "circle.nii.gz"}
    assert len(zoo.REFUSED) >= 100 and len({item.reason for item in zoo.REFUSED.values()}) >= 35


def test_an_img_named_alone_is_its_pair(outcome, tmp_path):
    report = convert(outcome[2] / "pair.img", tmp_path / "store", workers=1)
    assert (report.converted, report.exit_code) == (1, 0)
    assert list(open_store(tmp_path / "store").index["id"]) == ["pair"]


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"x")
    monkeypatch.setattr(sniff.os, "access", lambda *_: False)  # root may read anything
    with pytest.raises(Refusal, match="no_permission"):
        sniff.check_is_file(path)


# What must become of every file of ../shared/data/odd that is no DICOM (those: test_prep_dicom_real.py): its reason, or
# the number of volumes and the flags that they carry.
ODD = {
    "nifti/anatomical_big_endian_int16.nii": (1, {}),
    "nifti/avg152T1_nifti2.nii.gz": (1, {}),
    "nifti/example4d.nii.gz": (2, {}),
    "nifti/pcasl_4d.nii.gz": (10, {}),
    "nifti/spinal_t2s_aniso_0.5x0.5x7.5.nii.gz": (1, {}),
    "nifti/zstat_big_endian.nii.gz": (1, {"qform_used"}),
    "nrrd_mha/LIDC2_uint8.mha": (1, {}),
    "nrrd_mha/fetal_template_T2.nrrd": (1, {}),
    "derived_broken/constant.nii.gz": "constant",
    "derived_broken/image_for_label_shape_mismatch.nii.gz": (1, {}),
    "derived_broken/int16_slope0.5_inter-1024.nii.gz": (1, {}),
    "derived_broken/label_shape_mismatch.nii.gz": "looks_like_labels",
    "derived_broken/nan_block.nii.gz": (1, {"not_finite"}),
    "derived_broken/oblique_affine_28deg.nii.gz": "duplicate",  # of image_for_label_shape_mismatch, turned
    "derived_broken/same_anatomy_stored_LPS.nii.gz": "duplicate",
    "derived_broken/single_slice.nii.gz": "too_few_slices",
    "derived_broken/truncated_half.nii.gz": "truncated",
    "derived_broken/zero_bytes.nii.gz": "empty_file",
}


@pytest.mark.slow
def test_every_odd_file_is_decided_as_the_table_says(data, tmp_path):
    assert set(ODD) == {
        str(path.relative_to(data / "odd"))
        for folder in ("nifti", "nrrd_mha", "derived_broken")
        for path in (data / "odd" / folder).iterdir()
    }
    folders = [data / "odd" / name for name in ("nifti", "nrrd_mha", "derived_broken")]
    convert(folders, tmp_path / "store", spacing="keep", workers=1)
    with (tmp_path / "store" / "refused.csv").open() as file:
        refused = {row["source"]: row["reason"] for row in csv.DictReader(file)}
    assert refused == {name: verdict for name, verdict in ODD.items() if isinstance(verdict, str)}
    store = open_store(tmp_path / "store")
    for name, verdict in ODD.items():
        rows = np.flatnonzero(store.index["source"] == Path(name).name)
        assert len(rows) == (0 if isinstance(verdict, str) else verdict[0]), name
        for row in rows:
            assert set(verdict[1]) <= set(store.attributes(row).flags), name
            assert_every_voxel_is_at_its_place(store, int(row), data / "odd" / name)


@pytest.mark.slow
def test_a_label_of_another_shape_refuses_its_image(data, tmp_path):
    broken = data / "odd" / "derived_broken"
    (tmp_path / "labels").mkdir()
    name = "image_for_label_shape_mismatch.nii.gz"
    (tmp_path / "labels" / name).symlink_to(broken / "label_shape_mismatch.nii.gz")
    report = convert(broken / name, tmp_path / "store", labels=tmp_path / "labels", workers=1)
    assert [reason for _, reason in report.refused] == ["label_shape_mismatch"]


def test_the_page_lists_every_reason_and_no_other():
    table = _DOCUMENT.read_text(encoding="utf-8").split("| code | what it means |")[1].split("\n\n")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)) == REASONS
