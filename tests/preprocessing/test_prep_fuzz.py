"""Flipped and missing bytes, seeded: whatever the file, it is read or refused; a checksum is never outlived."""

import gzip
import zlib

import numpy as np
import pytest
import zoo

from preprocessing import isolation, readers
from preprocessing.geometry import canonical
from preprocessing.plausible import check_values
from preprocessing.refusal import Refusal

_MUTATIONS = 80


def _formats():
    """{file name: (content, where its bytes begin to be covered by a checksum, or None, other files)}."""
    array, single = zoo.anatomy(), zoo.anatomy(np.float32)
    pair = zoo.KEPT["pair.hdr"]
    zipped, deflated = zoo.nrrd(array, encoding="gzip"), zoo.meta(single, compressed=True)
    return {
        "plain.nii": (zoo.nifti(array), None, {}),
        "packed.nii.gz": (zoo.pack(zoo.nifti(single)), 0, {}),
        "frames.nii.gz": (zoo.pack(zoo.nifti(np.stack([array] * 3, -1))), 0, {}),
        "pair.hdr": (pair.content, None, pair.others),
        "plain.mgh": (zoo.mgh(array), None, {}),
        "packed.mgz": (zoo.pack(zoo.mgh(single)), 0, {}),
        "raw.nrrd": (zoo.nrrd(array), None, {}),
        "gz.nrrd": (zipped, zipped.index(b"\x1f\x8b"), {}),
        "list.nhdr": (zoo.KEPT["list.nhdr"].content, None, zoo.KEPT["list.nhdr"].others),
        "raw.mha": (zoo.meta(array), None, {}),
        "zlib.mha": (deflated, deflated.index(b"\x78\x9c"), {}),
        "slices.mhd": (zoo.KEPT["slices.mhd"].content, None, zoo.KEPT["slices.mhd"].others),
    }


FORMATS = _formats()


def _mutations(content: bytes, seed: int):
    """(position of the first change, changed content)"""
    generator = np.random.default_rng(seed)
    for number in range(_MUTATIONS):
        head = number % 2 == 0  # half of them near the start, where the header is
        reach = min(len(content), 400) if head else len(content)
        changed = bytearray(content)
        places = generator.integers(0, reach, generator.integers(1, 5))
        if number % 8 == 7:
            del changed[int(places[0]) :]
        else:
            for place in places:
                changed[place] = int(generator.integers(0, 256))
        yield int(min(places)), bytes(changed)


def _read(path):
    """All frames and the affine, after every check that does not need a store. Raises Refusal."""
    header = readers.header(path)
    scans = list(readers.read(path))
    for scan in scans:
        check_values(scan)
        canonical(scan)
    assert len(scans) == header.frames and scans[0].data.shape[1:] == header.shape
    return np.stack([scan.data[0] for scan in scans]), scans[0].affine


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused_and_no_checksum_is_outlived(tmp_path, name):
    content, covered_from, others = FORMATS[name]
    path = tmp_path / name
    for other, data in others.items():
        (tmp_path / other).write_bytes(data)
    path.write_bytes(content)
    voxels, affine = _read(path)
    refused = 0
    for first, changed in _mutations(content, sum(name.encode())):
        path.write_bytes(changed)
        try:
            read, place = _read(path)
        except Refusal:
            refused += 1
            continue
        if covered_from is not None and first >= covered_from:
            np.testing.assert_array_equal(read, voxels)
            np.testing.assert_array_equal(place, affine)
    assert refused > _MUTATIONS // 10


def test_every_flipped_bit_of_compressed_voxels_is_seen(tmp_path):
    voxels = zoo.anatomy()
    content = zoo.nifti(voxels)
    for name, whole in (
        ("deflated.nii.gz", zoo.pack(content)),
        ("stored.nii.gz", gzip.compress(content, 0, mtime=0)),
    ):
        path = tmp_path / name
        refused = 0
        for place in np.linspace(30, len(whole) - 1, 60).astype(int):
            changed = bytearray(whole)
            changed[place] ^= 1 << (place % 8)
            path.write_bytes(bytes(changed))
            try:  # some codes of deflate stand for the same bytes
                np.testing.assert_array_equal(_read(path)[0][0], voxels)
            except Refusal:
                refused += 1
        assert refused >= 58


def test_every_cut_is_seen(tmp_path):
    for name in (
        "plain.nii",
        "packed.nii.gz",
        "frames.nii.gz",
        "gz.nrrd",
        "raw.nrrd",
        "zlib.mha",
        "raw.mha",
        "packed.mgz",
    ):
        content = FORMATS[name][0]
        path = tmp_path / name
        for end in np.linspace(1, len(content) - 1, 15).astype(int):
            path.write_bytes(content[:end])
            with pytest.raises(Refusal):
                _read(path)


def _read_minc(path):
    return len(list(readers.read(path)))


@pytest.mark.slow
def test_damaged_minc_is_read_or_refused_in_a_child(tmp_path):
    content = zoo.minc(zoo.anatomy())
    path = tmp_path / "scan.mnc"
    for _, changed in list(_mutations(content, 5))[:12]:
        path.write_bytes(changed)
        try:
            readers.header(path)
            isolation.run(_read_minc, path, timeout_s=60, memory_bytes=1 << 30)
        except Refusal:
            continue


def test_a_stream_that_unpacks_to_far_too_much_is_stopped_at_once(tmp_path):
    bomb = zoo.pack(zoo.nifti(zoo.anatomy()))[:-1] + zlib.compress(bytes(1 << 20))
    path = tmp_path / "bomb.nii.gz"
    header = zoo.patched((zoo.DIM, "<4h", 3, 20000, 20000, 20000))
    path.write_bytes(zoo.pack(header + bytes(1 << 22)))
    with pytest.raises(Refusal, match="impossible_size"):
        readers.header(path)
    path.write_bytes(bomb)
    with pytest.raises(Refusal):
        _read(path)
