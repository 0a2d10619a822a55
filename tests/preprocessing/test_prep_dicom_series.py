"""DICOM files as hospitals ship them: mixed, nameless, repeated. What they become, and what is turned away and why."""


import dicom_prep as files
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet

from preprocessing import convert, headers, readers
from ssl3d.data.store import open_store


def test_two_series_in_one_folder_and_one_in_two_folders(tmp_path):
    a, b = files.body(7, seed=1), files.body(5, 12, 16, seed=2)
    files.series(tmp_path / "x", a, SeriesInstanceUID="1.2.1")
    files.series(tmp_path / "x", b[:2], start=50, SeriesInstanceUID="1.2.2")
    files.series(tmp_path / "y", b[2:], [4.0, 6.0, 8.0], SeriesInstanceUID="1.2.2")
    sources = files.sources_of(tmp_path)
    found = sorted((files.scan(source).data[0].transpose(2, 1, 0) for source in sources), key=len)
    np.testing.assert_array_equal(found[0], b)
    np.testing.assert_array_equal(found[1], a)
    assert len({source.session for source in sources}) == 1 and len({source.subject for source in sources}) == 1


def test_names_say_nothing_and_the_order_of_files_neither(tmp_path):
    values = files.body(6)
    for k, path in enumerate(files.series(tmp_path / "s", values)):
        path.rename(path.with_name(["a", "b.1", "IMG 3", "d.dcm", "e.IMA", "1.2.840.6"][k]))
    one, two = files.sources_of(tmp_path), files.sources_of(tmp_path, np.random.default_rng(5))
    assert [source.id for source in one] == [source.id for source in two]
    assert one[0].paths == two[0].paths
    np.testing.assert_array_equal(files.scan(one[0]).data, values.transpose(2, 1, 0)[None])


def test_files_without_preamble_or_meta_information(tmp_path):
    values = files.body(4)
    for k, path in enumerate(files.series(tmp_path, values)):
        content = path.read_bytes()
        dataset = content[132:] if k % 2 else content[144 + int.from_bytes(content[140:144], "little") :]
        path.write_bytes(dataset)
        assert readers.dicom.is_dicom(path)
    sources = files.sources_of(tmp_path)
    np.testing.assert_array_equal(files.scan(sources[0]).data[0], values.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("letter", "tags"),
    [
        ("i", [{"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in "MPR"]),
        ("e", [{"EchoNumbers": k + 1, "EchoTime": 10.0 + 40 * k} for k in range(3)]),
        ("b", [{"DiffusionBValue": 500.0 * k} for k in range(3)]),
        ("g", [{"DiffusionGradientOrientation": list(unit)} for unit in np.eye(3)]),
        ("t", [{"TemporalPositionIdentifier": k + 1} for k in range(3)]),
        ("p", [{"TriggerTime": 40.0 * k} for k in range(3)]),
        ("a", [{"AcquisitionNumber": k + 1} for k in range(3)]),
        ("k", [{"ConvolutionKernel": kernel} for kernel in ("B30f", "B60f", "B70f")]),
    ],
)
def test_what_tells_repeated_places_apart_makes_volumes(tmp_path, letter, tags):
    volumes = [files.body(5, seed=k) for k in range(3)]
    for k, (values, own) in enumerate(zip(volumes, tags)):
        files.series(tmp_path, values, start=10 * k, **own, each=[{"InstanceNumber": 10 * k + i} for i in range(5)])
    one, two = files.sources_of(tmp_path), files.sources_of(tmp_path, np.random.default_rng(5))
    assert [source.id for source in one] == [source.id for source in two]
    found = files.volumes(one)
    width = 4 if letter in "gtp" else 1
    assert set(found) == {f"{letter}{k:0{width}d}" for k in range(3)}
    if letter not in "gi":
        for k, values in enumerate(volumes):
            np.testing.assert_array_equal(found[f"{letter}{k:0{width}d}"], values)
    assert len({source.session for source in one}) == 1 and not files.reasons(one)


def test_echoes_of_time_points(tmp_path):
    expected = {}
    for echo in range(2):
        for time in range(3):
            values = expected[f"e{echo}_t{time:04d}"] = files.body(4, seed=10 * echo + time)
            files.series(tmp_path, values, start=20 * echo + 5 * time, EchoTime=10.0 + echo,
                         TemporalPositionIdentifier=time + 1)  # fmt: skip
    found = files.volumes(files.sources_of(tmp_path))
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("slice_major", [False, True])
def test_repeats_that_no_tag_tells_apart_go_by_their_number(tmp_path, slice_major):
    volumes = [files.body(5, seed=k) for k in range(3)]
    for k, values in enumerate(volumes):
        numbers = [3 * i + k if slice_major else 5 * k + i for i in range(5)]
        files.series(tmp_path, values, start=10 * k, each=[{"InstanceNumber": n + 1, "AcquisitionTime": f"1200{n:02d}"}
                                                           for n in numbers])  # fmt: skip
    found = files.volumes(files.sources_of(tmp_path))
    for k, values in enumerate(volumes):
        np.testing.assert_array_equal(found[f"t{k:04d}"], values)


def test_tags_that_vary_along_one_volume_do_not_split_it(tmp_path):
    each = [{"AcquisitionNumber": k // 3, "EchoTime": 5.0 + 0.01 * k, "AcquisitionTime": f"12000{k}",
             "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"] if k % 2 else ["DERIVED", "PRIMARY", "AXIAL"]}
            for k in range(9)]  # fmt: skip
    values = files.body(9)
    files.series(tmp_path, values, each=each)
    (found,) = files.volumes(files.sources_of(tmp_path)).values()
    np.testing.assert_array_equal(found, values)


def test_two_acquisitions_with_a_gap_between_them_are_two_volumes(tmp_path):
    files.series(tmp_path, files.body(6), AcquisitionNumber=1)
    files.series(tmp_path, files.body(5, seed=3), 40 + 2.0 * np.arange(5), start=20, AcquisitionNumber=2)
    assert {len(values) for values in files.volumes(files.sources_of(tmp_path)).values()} == {5, 6}


def test_two_directions_in_one_series_are_two_volumes(tmp_path):
    axial, sagittal = files.body(6), files.body(5, seed=1)
    files.series(tmp_path, axial)
    files.series(tmp_path, sagittal, start=20, axes=files.SAGITTAL)
    found = files.volumes(files.sources_of(tmp_path))
    assert sorted(map(len, found.values())) == [5, 6]
    assert set(found) == {"o0", "o1"}


def _report(path, sop_class, modality="SR"):
    files.blank(path, sop_class, modality).save_as(path, enforce_file_format=True)


def test_objects_without_pixels_pass_without_harm(tmp_path):
    values = files.body(5)
    files.series(tmp_path / "s", values, StudyDate="20200101", StudyTime="1200", StudyID="1", SeriesNumber=1)
    _report(tmp_path / "report", "1.2.840.10008.5.1.4.1.1.88.33")
    _report(tmp_path / "dose.dcm", "1.2.840.10008.5.1.4.1.1.88.67")
    _report(tmp_path / "presentation", "1.2.840.10008.5.1.4.1.1.11.1", "PR")
    _report(tmp_path / "siemens", "1.3.12.2.1107.5.9.1", "MR")
    _report(tmp_path / "ge_private", "1.2.840.113619.4.27", "CT")
    archive = FileSet()
    for path in (tmp_path / "s").iterdir():
        archive.add(path)
    archive.write(tmp_path / "media")
    assert (tmp_path / "media" / "DICOMDIR").is_file()
    sources = files.sources_of(tmp_path)
    assert [source.problem and source.problem.reason for source in sources] == [None, "duplicate"]


def _few(path, count=6, **tags):
    files.series(path, files.body(count), **tags)


@pytest.mark.parametrize(
    ("reason", "tags"),
    [
        ("localiser", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("localiser", {"SeriesDescription": "AAHead_Scout_MPR"}),
        ("localiser", {"ProtocolName": "3-Plane Loc"}),
        ("screenshot", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("screenshot", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}),
        ("screenshot", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        ("burned_in", {"BurnedInAnnotation": "YES"}),
        ("derived", {"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP"]}),
        ("derived", {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
        ("derived", {"RescaleType": "MGML"}),
        ("colour", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("inverted", {"PhotometricInterpretation": "MONOCHROME1"}),
        ("no_geometry", {"ImagePositionPatient": None}),
        ("no_geometry", {"ImageOrientationPatient": None}),
        ("no_geometry", {"ImageOrientationPatient": [1, 0, 0, 0, 0, 0]}),
        ("no_geometry", {"PixelSpacing": [0.0, 1.0]}),
        ("bad_rescale", {"RescaleSlope": 0}),
        ("mosaic", {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}),
    ],
)
def test_what_is_no_scan_is_refused_by_its_own_reason(tmp_path, reason, tags):
    files.series(tmp_path, files.body(6), **tags)
    found = set()
    for source in files.sources_of(tmp_path):
        try:
            assert source.problem is not None or files.scan(source) is None
            found.add(source.problem.reason)
        except readers.Refusal as refusal:
            found.add(refusal.reason)
    assert found == {reason}


def test_a_scout_in_the_series_of_the_scan_does_not_spoil_it(tmp_path):
    values = files.body(7)
    files.series(tmp_path, values)
    files.series(tmp_path, files.body(1, 20, 30), start=30, axes=files.CORONAL,
                 ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])  # fmt: skip
    sources = files.sources_of(tmp_path)
    assert files.reasons(sources) == ["localiser"]
    np.testing.assert_array_equal(files.volumes(sources)[""], values)


def test_three_planes_of_few_slices_are_a_localiser(tmp_path):
    for k, axes in enumerate((files.AXIAL, files.SAGITTAL, files.CORONAL)):
        files.series(tmp_path, files.body(5, seed=k), start=10 * k, axes=axes)
    assert files.reasons(files.sources_of(tmp_path)) == ["localiser"]


@pytest.mark.slow
def test_gaps_are_filled_by_a_conversion_that_is_told_to(tmp_path):
    files.series(tmp_path / "in", files.body(19, 20, 22), np.delete(2.0 * np.arange(20), 8))
    report = convert(tmp_path / "in", tmp_path / "no", spacing="keep", workers=1)
    assert [reason for _, reason in report.refused] == ["missing_slices"]
    report = convert(tmp_path / "in", tmp_path / "yes", spacing="keep", workers=1, allow_gaps=True)
    store = open_store(tmp_path / "yes")
    assert report.converted == 1 and store.attributes(0).flags == ["interpolated_gaps"]
    valid = store.read(0, (0, 0, 0), (20, 20, 22), kind="valid")[0]
    np.testing.assert_array_equal(valid.all(axis=(1, 2)), np.arange(20) != 8)
    convert(tmp_path / "in", tmp_path / "fine", workers=1, allow_gaps=True)  # resampled over the gap
    store = open_store(tmp_path / "fine")
    shape = tuple(store.shape(0)[1:])
    image = store.read(0, (0, 0, 0), shape)[0]
    valid = store.read(0, (0, 0, 0), shape, kind="valid")[0] != 0
    assert 0.04 < 1 - valid.mean() < 0.06 and image[~valid].min() > -900 < image[valid].min()  # filled, not air


def test_a_reformatted_stack_of_many_slices_is_a_volume(tmp_path):
    files.series(tmp_path, files.body(20), ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert files.reasons(files.sources_of(tmp_path)) == []


def test_two_directions_too_thin_for_a_volume_are_one_refusal(tmp_path):
    files.series(tmp_path, files.body(2))
    files.series(tmp_path, files.body(2, seed=1), start=20, axes=files.SAGITTAL)
    (source,) = files.sources_of(tmp_path)
    assert source.problem.reason == "mixed_orientation" and "(2, 2)" in source.problem.detail


def test_colour_pictures_are_refused(tmp_path):
    files.series(tmp_path, files.body(4), SamplesPerPixel=3, PhotometricInterpretation="RGB")
    assert files.reasons(files.sources_of(tmp_path)) == ["colour"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", "web_page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git_lfs_pointer"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 400, "unreadable"),
        (bytes(range(256)) * 8, "unreadable"),
        (b"\0" * 4096, "blank_file"),
    ],
)
def test_files_that_only_claim_to_be_dicom(tmp_path, content, reason):
    (tmp_path / "DOE_JOHN.dcm").write_bytes(content)
    (source,) = files.sources_of(tmp_path)
    assert source.problem.reason == reason
    assert "DOE" not in source.problem.detail + source.name + source.public


def test_frames_of_one_enhanced_object(tmp_path):
    volumes = {
        (stack, time): np.random.default_rng(10 * stack + time).integers(0, 900, (4, 9, 12)).astype(np.uint16)
        for stack in range(2)
        for time in range(3)
    }
    axes = (files.AXIAL, files.SAGITTAL)
    frames, values = [], []
    for k in np.random.default_rng(0).permutation(24):
        stack, time, z = int(k) // 12, int(k) % 12 // 4, int(k) % 4
        normal = np.cross(axes[stack][:3], axes[stack][3:])
        frames.append({"position": files.CORNER + 3 * z * normal, "axes": axes[stack], "stack": stack, "time": time + 1,
                       "slope": 2.0 if time == 1 else 1.0})  # fmt: skip
        values.append(volumes[stack, time][z])
    files.enhanced(tmp_path / "object", np.array(values), frames)
    sources = files.sources_of(tmp_path)
    assert len(sources) == 6 and all(len(source.paths) == 1 and len(source.selection[0]) == 4 for source in sources)
    found = files.volumes(sources)
    order = [0, 1] if "o0_t0000" in found and found["o0_t0000"][0, 0, 0] == volumes[0, 0][0, 0, 0] else [1, 0]
    for (stack, time), expected in volumes.items():
        slope = 2 if time == 1 else 1
        np.testing.assert_array_equal(found[f"o{order[stack]}_t{time:04d}"], expected.astype(int) * slope)


@pytest.mark.parametrize("stated", [5, 2**31 - 1])
def test_a_multi_frame_object_without_places_is_refused(tmp_path, stated):
    item = files.slice_file(tmp_path / "x", np.zeros((9, 8), np.int16), (0, 0, 0), modality="MR",
                            ImagePositionPatient=None)  # fmt: skip
    files.set_pixels(item, np.zeros((5, 9, 8), np.int16))
    item.NumberOfFrames, item.ImagePositionPatient = stated, [0, 0, 0]
    item.save_as(tmp_path / "x", enforce_file_format=True)
    (source,) = files.sources_of(tmp_path)
    with pytest.raises(readers.Refusal, match="no_geometry"):
        files.scan(source)


def test_a_private_b_value_tells_volumes_apart(tmp_path):
    for k in range(2):
        for path in files.series(tmp_path, files.body(4, seed=k), start=10 * k):
            item = _with_private(path, k)
            item.save_as(path)
    found = files.volumes(files.sources_of(tmp_path))
    assert set(found) == {"b0", "b1"}


def _with_private(path, k) -> Dataset:

    item = pydicom.dcmread(path)
    item.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0C, "IS", str(1000 * k))
    return item


@pytest.mark.slow
def test_headers_read_by_several_processes_are_the_same(tmp_path, monkeypatch):
    files.series(tmp_path / "a", files.body(9))
    (tmp_path / "a" / "bad.dcm").write_bytes(b"no DICOM at all" * 40)
    found = sorted((tmp_path / "a").iterdir())
    monkeypatch.setattr(headers, "_CHUNK", 4)
    here, there = list(headers.describe_all(found)), list(headers.describe_all(found, few=0))
    assert [getattr(item, "reason", item) for item in here] == [getattr(item, "reason", item) for item in there]
    monkeypatch.setattr(headers.isolation, "run", _dies_of("bad.dcm"))
    there = list(headers.describe_all(found, few=0))
    assert [str(item) for item in there if isinstance(item, readers.Refusal)] == ["worker_died: it died"]
    assert len(there) == len(here)


def _dies_of(name):
    def run(function, paths, **_):
        if any(path.name == name for path in paths):
            raise readers.Refusal("worker_died", "it died")
        return function(paths)

    return run
