"""Damaged DICOM files: every one is read or refused, by name, whatever byte is wrong."""

import random

import dicom_prep as files
import numpy as np
import pydicom
import pytest

from preprocessing import readers
from preprocessing.refusal import REASONS, Refusal


def _originals(folder):
    """One of each kind of object, some compressed: {path: bytes}."""
    for path, syntax in zip(files.series(folder / "a", files.body(5, 40, 42)), ("4.80", "4.90", "5")):
        item = pydicom.dcmread(path)
        item.compress(f"1.2.840.10008.1.2.{syntax}", generate_instance_uid=False)
        item.save_as(path)
    files.mosaic(folder / "m", np.ones((4, 8, 10), np.int16), (0, 0, 1), 3.5, SeriesInstanceUID="1.7")
    frames = [{"position": files.CORNER + [0, 0, 2.0 * (k % 4)], "time": k // 4 + 1} for k in range(8)]
    files.enhanced(folder / "e", np.zeros((8, 20, 21), np.uint16), frames, SeriesInstanceUID="1.8")
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _damaged(content, rng):
    """Some bytes changed, most of them in the header, or the end cut off."""
    damaged = bytearray(content)
    if rng.random() < 0.3:
        return bytes(damaged[: rng.randrange(len(damaged))])
    for _ in range(rng.choice([1, 3, 10])):
        reach = len(damaged) if rng.random() < 0.3 else min(len(damaged), 1500)
        damaged[rng.randrange(reach)] = rng.randrange(256)
    return bytes(damaged)


@pytest.mark.parametrize("seed", [0, pytest.param(range(1, 12), marks=pytest.mark.slow)])
def test_every_damaged_file_is_read_or_refused(tmp_path, seed):
    originals = _originals(tmp_path / "in")
    seen = set()
    for number in [seed] if isinstance(seed, int) else seed:
        rng = random.Random(number)
        for _ in range(5):
            for path, content in originals.items():
                path.write_bytes(_damaged(content, rng) if rng.random() < 0.8 else content)
            for source in files.sources_of(tmp_path / "in"):
                try:
                    if source.problem is not None:
                        raise source.problem
                    scan = readers.read_series(source.paths, source.selection, allow_gaps=rng.random() < 0.5)
                except Refusal as refusal:
                    seen.add(refusal.reason)
                else:
                    seen.add("read")
                    assert min(scan.data.shape[1:]) >= 1 and scan.affine.shape == (4, 4)
    assert seen <= {*REASONS, "read"} and len(seen) >= 3
