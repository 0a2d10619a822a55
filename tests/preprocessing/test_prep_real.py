"""Real scans, and a conversion that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from preprocessing import convert
from ssl3d.data.store import open_store

_CHECKOUT = Path(__file__).parents[2]
_RUN = """
import sys
from preprocessing import convert
if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], workers=2)
"""


def _bytes(root):
    return {
        str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file() and f.name != ".lock"
    }


def _children(pid):
    """Process ids below a process (Linux)."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


@pytest.mark.acceptance
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kill_9_in_the_middle_then_again_gives_the_same_bytes(data, tmp_path):
    task = tmp_path / "Task"
    for folder in ("imagesTr", "labelsTr"):
        (task / folder).mkdir(parents=True)
        for file in sorted((data / "Task04_Hippocampus" / folder).iterdir())[:20]:
            (task / folder / file.name).symlink_to(file)
    description = json.loads((data / "Task04_Hippocampus" / "dataset.json").read_text())
    (task / "dataset.json").write_text(json.dumps({**description, "training": []}))
    (task / "patients.json").symlink_to(data / "Task04_Hippocampus" / "patients.json")
    script = tmp_path / "run.py"
    script.write_text(_RUN)
    environment = {**os.environ, "PYTHONPATH": str(_CHECKOUT)}
    command = [sys.executable, str(script), str(task)]

    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, stdout=subprocess.DEVNULL)
    process = subprocess.Popen([*command, str(tmp_path / "cut")], env=environment, stdout=subprocess.DEVNULL)
    while len(list((tmp_path / "cut").glob("volumes/*/zarr.json"))) < 6 and process.poll() is None:
        time.sleep(0.01)
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    begun = len(list((tmp_path / "cut").glob("volumes/*/zarr.json")))
    assert 6 <= begun < 20
    subprocess.run([*command, str(tmp_path / "cut")], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")


@pytest.mark.slow
def test_every_odd_file_converts_or_is_refused_by_name(data, tmp_path):
    report = convert(data / "odd", tmp_path / "store", spacing="keep", workers=2)
    refused = {Path(shown).name: reason for shown, reason in report.refused}
    broken = "same_anatomy_stored_LPS.nii.gz"
    assert refused.pop(broken) == refused.pop("oblique_affine_28deg.nii.gz") == "duplicate"
    assert refused == {
        "constant.nii.gz": "constant",
        "label_shape_mismatch.nii.gz": "looks_like_labels",
        "single_slice.nii.gz": "too_few_slices",
        "truncated_half.nii.gz": "truncated",
        "zero_bytes.nii.gz": "empty_file",
        "dicom_mixed_orientation": "mixed_orientation",
        "dicom_rle": "duplicate",  # the same instances as in dicom_jpeg2000
        "dicom_uneven_increment": "missing_slices",
    }
    assert report.exit_code == 0  # the others: test_prep_hostile.py, test_prep_dicom_real.py


@pytest.mark.slow
def test_a_whole_ct_at_its_own_grid_and_at_one_millimetre(data, tmp_path):
    path = data / "ct_qin_lung_philips" / "qin_lung_ct_2x.nii.gz"
    image = nib.load(path)
    original = np.asarray(image.dataobj)
    convert(path, tmp_path / "keep", spacing="keep", workers=1)
    kept = open_store(tmp_path / "keep")
    stored = kept.read(0, (0, 0, 0), tuple(kept.shape(0)[1:]))[0]
    np.testing.assert_array_equal(stored, original.transpose(2, 1, 0))  # the file is LPS: only the axes' order differs
    convert(path, tmp_path / "iso", workers=1)
    store = open_store(tmp_path / "iso")
    attributes = store.attributes(0)
    assert attributes.modality == ["ct"] and attributes.scale == [1.0]
    np.testing.assert_allclose(attributes.spacing, 1.0)
    inner = tuple(slice(n // 4, 3 * n // 4, 3) for n in store.shape(0)[1:])
    values = store.read(0, (0, 0, 0), tuple(store.shape(0)[1:]))[0][inner].astype(float)
    grid = np.meshgrid(*[np.arange(n)[part] for n, part in zip(store.shape(0)[1:], inner)], indexing="ij")
    places = np.linalg.inv(image.affine) @ np.array(attributes.affine)
    places = np.einsum("ij,j...->i...", places, np.stack([*grid, np.ones(grid[0].shape)]))[:3]
    from scipy.ndimage import map_coordinates

    sampled = map_coordinates(original.astype(np.float32), places, order=1)
    assert np.corrcoef(values.ravel(), sampled.ravel())[0, 1] > 0.995


@pytest.mark.slow
def test_the_table_is_outside_the_foreground_and_the_circle_is_not_valid(data, tmp_path):
    path = data / "ct_acrin_nsclc_ge" / "acrin_nsclc_042_ct.nii.gz"
    convert(path, tmp_path / "store", spacing=(4, 3, 3), workers=1)
    store = open_store(tmp_path / "store")
    attributes = store.attributes(0)
    image = store.read(0, (0, 0, 0), tuple(store.shape(0)[1:]))[0]
    valid = store.read(0, (0, 0, 0), tuple(store.shape(0)[1:]), kind="valid")[0]
    assert image.min() > -1400 and 0.15 < (valid == 0).mean() < 0.3  # corners of a square around its circle: 21 %
    low, high = attributes.foreground_box
    assert (high[1] - low[1]) * 3 < 330 < (high[2] - low[2]) * 3 < 480  # a chest, arms aside
    assert attributes.foreground_stats[0].percentile_50 == pytest.approx(0, abs=120)


@pytest.mark.slow
def test_many_classes_stay_on_their_anatomy(data, tmp_path):
    folder = data / "ct_mr_totalsegmentator"
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "example_ct_sm.nii.gz").symlink_to(folder / "example_seg.nii.gz")
    convert(folder / "example_ct_sm.nii.gz", tmp_path / "store", labels=tmp_path / "labels", workers=1)
    store = open_store(tmp_path / "store")
    label = store.read(0, (0, 0, 0), tuple(store.shape(0)[1:]), kind="labels")[0]
    original = np.asarray(nib.load(folder / "example_seg.nii.gz").dataobj)
    assert set(np.unique(label)) == set(np.unique(original))
    volumes = [((label == v).sum(), 27 * (original == v).sum()) for v in np.unique(original)[1:]]
    assert np.median([abs(a / b - 1) for a, b in volumes]) < 0.01
    assert max(abs(a / b - 1) for a, b in volumes if b > 27 * 200) < 0.03
    image = store.read(0, (0, 0, 0), tuple(store.shape(0)[1:]))[0]
    bones = (label >= 26) & (label <= 50)  # vertebrae
    assert image[bones].mean() > 100 > image[label == 0].mean()
