"""Whether a stored volume agrees with its file, voxel by voxel in world coordinates; files read by nibabel and ITK."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy.ndimage import binary_erosion, map_coordinates


def original(path: Path, frame: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """((x, y, z) values float64, affine to RAS+ mm) of a file, by libraries that the conversion does not use so."""
    if ".nii" in path.name:
        image = nib.load(path)
        values = image.get_fdata()
        return (values[..., frame] if values.ndim == 4 else values), image.affine
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(float), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def places(attributes, affine: np.ndarray, shape: tuple[int, ...], part: tuple[slice, ...]) -> np.ndarray:
    """(3, ...) index in the file of the stored voxels in `part`."""
    axes = [np.arange(n)[p] for n, p in zip(shape, part)]
    index = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones([len(axis) for axis in axes])])
    return np.einsum("ij,j...->i...", np.linalg.inv(affine) @ np.array(attributes.affine), index)[:3]


def stored(store, row: int, kind: str = "volumes") -> np.ndarray:
    """(Z, Y, X) of the first channel: physical values, or what is stored of another kind."""
    values = store.read(row, (0, 0, 0), tuple(store.shape(row, kind)[1:]), kind=kind)[0]
    if kind != "volumes":
        return values
    attributes = store.attributes(row)
    return values * attributes.scale[0] + attributes.offset[0]


def assert_every_voxel_is_at_its_place(store, row: int, path: Path) -> None:
    """A volume kept on its grid holds what the file holds, within the recorded error, at every world position."""
    identifier = store.index["id"][row]
    frame = int(identifier.rsplit("_t", 1)[1]) if "_t" in identifier and identifier[-4:].isdigit() else 0
    values, affine = original(path, frame)
    attributes = store.attributes(row)
    mine = stored(store, row)
    assert sorted(mine.shape) == sorted(values.shape)
    where = places(attributes, affine, mine.shape, (slice(None),) * 3)
    i, j, k = np.rint(where).astype(int)
    assert np.abs(where - [i, j, k]).max() < 1e-3
    expected = values[i, j, k]
    finite = np.isfinite(expected)
    error = np.abs(mine - expected)[finite].max()
    assert error <= attributes.quantisation[0]["max_error"] * 1.001 + 2e-7 * np.abs(expected[finite]).max(), path.name
    if not finite.all():
        np.testing.assert_array_equal(stored(store, row, "valid") != 0, finite)


def interior_correlation(store, row: int, path: Path, order: int = 1, margin: int = 4, stride: int = 3) -> float:
    """Of a resampled volume with scipy's samples of the original (order 1: trilinear), away from what is no voxel."""
    values, affine = original(path)
    attributes = store.attributes(row)
    mine = stored(store, row)
    inside = np.ones(mine.shape, bool)
    if (Path(store.path) / "valid" / store.volume_id(row) / "zarr.json").exists():
        inside = binary_erosion(stored(store, row, "valid") != 0, iterations=margin)
    part = tuple(slice(min(margin, n // 4), -min(margin, n // 4), stride) for n in mine.shape)
    sampled = map_coordinates(values, places(attributes, affine, mine.shape, part), order=order)
    chosen = inside[part]
    return float(np.corrcoef(mine[part][chosen], sampled[chosen])[0, 1])
