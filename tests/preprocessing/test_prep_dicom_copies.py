"""DICOM files that lie there more than once: stored differently, cut short, under a pseudonym, under new UIDs."""

from __future__ import annotations

import shutil

import dicom_prep as files
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from preprocessing import convert


def test_the_same_instance_counts_once_however_it_is_stored(tmp_path):
    values = files.body(5)
    files.series(tmp_path / "a", values)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in sorted((tmp_path / "b").iterdir())[:3]:
        item = pydicom.dcmread(path)
        item.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)  # RLE
        item.save_as(path)
    sources = files.sources_of(tmp_path)
    assert [source.problem and source.problem.reason for source in sources] == [None, "duplicate"]
    assert len(sources[0].paths) == 5 and "found before, by their SOP instance: 5 files" in sources[1].problem.detail
    np.testing.assert_array_equal(next(iter(files.volumes(sources[:1]).values())), values)


def test_of_two_copies_the_one_that_is_cut_short_is_left_out(tmp_path):
    """Pixels are not looked at when files are grouped: the series would be refused for a file that is there twice."""
    paths = files.series(tmp_path / "b", files.body(5))
    shutil.copytree(tmp_path / "b", tmp_path / "a")
    cut = tmp_path / "a" / paths[2].name
    cut.write_bytes(cut.read_bytes()[:-40])
    kept, copied = files.sources_of(tmp_path)
    assert kept.problem is None and copied.problem.reason == "duplicate" and cut in copied.paths
    (found,) = files.volumes([kept]).values()
    np.testing.assert_array_equal(found, files.body(5))


def test_a_scan_that_lies_there_under_a_pseudonym_as_well_counts_once(tmp_path):
    paths = files.series(tmp_path / "a", files.body(5))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in sorted((tmp_path / "b").iterdir()):
        item = pydicom.dcmread(path)
        item.PatientID = item.PatientName = "ANON01"
        item.save_as(path)
    kept, copied = files.sources_of(tmp_path)
    assert kept.problem is None and kept.paths == paths
    assert copied.problem.reason == "duplicate" and "of another patient or series" in copied.problem.detail
    assert copied.name != kept.name and copied.shown.endswith("b")


def test_instances_that_share_a_uid_by_mistake_are_all_kept(tmp_path):
    values = files.body(5)
    files.series(tmp_path, values, SOPInstanceUID="1.2.3.4")
    (found,) = files.volumes(files.sources_of(tmp_path)).values()
    np.testing.assert_array_equal(found, values)


def test_copies_under_new_uids_in_another_folder_do_not_merge(tmp_path):
    for name in "ab":
        files.series(tmp_path / name, files.body(5), each=[{"SOPInstanceUID": generate_uid()} for _ in range(5)])
    sources = files.sources_of(tmp_path)
    found = files.volumes(sources)
    assert set(found) == {"f0", "f1"}
    np.testing.assert_array_equal(found["f0"], found["f1"])
    assert len({source.public[:26] for source in sources}) == 2  # other series: the conversion keeps one of them


@pytest.mark.slow
def test_of_copies_under_new_uids_one_is_kept_and_frames_all(tmp_path):
    for name in "ab":
        files.series(tmp_path / "in" / name, files.body(5), each=[{"SOPInstanceUID": generate_uid()} for _ in range(5)])
    for k in range(2):
        files.series(tmp_path / "in" / "c", files.body(5, seed=2), start=10 * k, SeriesInstanceUID="1.2.9",
                     TemporalPositionIdentifier=k + 1)  # fmt: skip
    report = convert(tmp_path / "in", tmp_path / "store", workers=1)
    assert report.converted == 3 and [reason for _, reason in report.refused] == ["duplicate"]
