"""Synthetic patients for classification: an organ with or without a lesion that is told by its texture's arrangement.

The healthy organ is woven of fibres, the lesion within it of sheets (phantom_shapes.Texture): waves of the same
lengths, in other directions. The values of each organ are then replaced, rank by rank, by the quantiles of the normal
distribution, so that every organ holds the same histogram whatever is in it. What scanner and patient add after that
(contrast, bias field, noise, scale) is drawn without knowing the class. So nothing that forgets where voxels lie can
tell the classes apart: tests/data/test_phantom_pathology.py holds that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ssl3d.data.format import LabelInfo, VolumeAttributes
from ssl3d.data.phantom import CONTRASTS, bias_field, contrast
from ssl3d.data.phantom_shapes import TISSUE_BAND_MM, Array, Ellipsoid, Texture, random_rotation
from ssl3d.data.write import build_index, channel_stats, create_store, write_volume
from ssl3d.seeding import mix, numpy_generator

SHAPE = (32, 40, 40)  # voxels (z,y,x)
SPACING_MM = (1.25, 1.0, 1.0)
CLASSES = {0: "background", 1: "organ"}
BAND_MM = (4.0, 5.5)  # wavelengths of both textures
LESION_SHARE = (0.5, 0.9)  # of the organ's voxels
GREY = 100.0  # int16 steps a deviation of tissue


@dataclass
class Patient:
    """One scan: `image` (Z,Y,X) int16, `organ` and `lesion` (Z,Y,X) bool."""

    image: NDArray[np.int16]
    organ: NDArray[np.bool_]
    lesion: NDArray[np.bool_]

    @property
    def lesion_share(self) -> float:
        """Of the organ's voxels."""
        return float(self.lesion.sum() / self.organ.sum())


def is_diseased(seed: int, patient: int) -> bool:
    """Whether patient number `patient` of the data set `seed` has a lesion: one of every two consecutive patients."""
    return (mix(seed, "pathology", patient // 2) + patient) % 2 == 1


def draw_patient(seed: int, patient: int, diseased: bool | None = None) -> Patient:
    """Patient number `patient` of the data set `seed`; `diseased` overrides the class, all else is drawn as before."""
    rng = numpy_generator(seed, "pathology", patient)
    points = _grid()
    body = Ellipsoid(rng.uniform(-0.5, 0.5, 3), rng.uniform((17, 17, 17), (18.5, 18.5, 18.5)), np.eye(3))
    organ = Ellipsoid(rng.uniform(-4, 4, 3), rng.uniform((9, 8, 7), (11, 10, 9)), random_rotation(rng))
    inside, within = body.contains(points), organ.contains(points) & body.contains(points)
    focus, share = points[rng.choice(np.flatnonzero(within))], rng.uniform(*LESION_SHARE)
    tissue = Texture.draw(rng, "grain", TISSUE_BAND_MM)
    fibres, sheets = (Texture.draw(rng, kind, BAND_MM) for kind in ("fibres", "sheets"))

    own = points[within]
    distance = np.linalg.norm(own - focus, axis=1)
    ill = is_diseased(seed, patient) if diseased is None else diseased
    lesion = distance < (np.quantile(distance, share) if ill else 0)
    value = np.zeros(len(points))
    value[inside] = tissue(points[inside])
    value[within] = same_histogram(np.where(lesion, sheets(own), fibres(own)))
    spread = np.zeros(len(points), dtype=bool)
    spread[within] = lesion
    image = _image(value, inside, points, numpy_generator(seed, "pathology scan", patient))
    return Patient(image.reshape(SHAPE), within.reshape(SHAPE), spread.reshape(SHAPE))


def same_histogram(values: Array) -> Array:
    """Values (N,) replaced, rank by rank, by the N quantiles of the standard normal distribution."""
    quantiles = ndtri((np.arange(len(values)) + 0.5) / len(values))
    result = np.empty(len(values))
    result[np.argsort(values, kind="stable")] = quantiles
    return result


def write_pathology(root: Path | str, patients: int, seed: int = 0) -> Path:
    """Write a store of `patients` patients, a volume each, and return its path.

    Labels: the organ. Targets: `pathology` (0 healthy, 1 lesion; one of every two patients) and `lesion_share` of the
    organ. The same arguments give the same voxels. Raises ValueError when `patients` is below 1, and as create_store.
    """
    if patients < 1:
        raise ValueError(f"patients is {patients}: a phantom data set needs at least 1")
    root = Path(root)
    create_store(root)
    for number in range(patients):
        _write(root, f"pathology_{number + 1:04d}", f"patient_{number + 1:04d}", draw_patient(seed, number))
    build_index(root)
    return root


def _write(root: Path, name: str, subject: str, patient: Patient) -> None:
    image, label = patient.image[None], patient.organ[None].astype(np.uint8)
    affine = np.diag([*SPACING_MM, 1.0])[[2, 1, 0, 3]] * [[-1], [-1], [1], [1]]  # to Superior, Posterior, Left
    stats = [channel_stats(patient.image.astype(np.float64))]
    foreground = [channel_stats(patient.image[patient.image > 0].astype(np.float64))]
    attributes = VolumeAttributes(
        spacing=list(SPACING_MM), affine=affine.tolist(), scale=[1.0], offset=[0.0], modality=["mr"],
        original_affine=affine.tolist(), original_shape=list(SHAPE), original_spacing=list(SPACING_MM),
        original_orientation="SPL", foreground_box=[[0, 0, 0], list(SHAPE)], foreground_stats=foreground,
        valid_stats=stats, subject=subject, session="",
        fingerprint=hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest(), source=f"{name} (synthetic)",
        targets={"pathology": float(patient.lesion.any()), "lesion_share": patient.lesion_share},
    )  # fmt: skip
    where = {1: np.argwhere(patient.organ)[:: max(1, int(patient.organ.sum()) // 500)].tolist()}
    info = LabelInfo(CLASSES, None, where)
    write_volume(root, name, image, attributes, label=label, label_info=info)


def _grid() -> Array:
    """(N,3) mm of the voxel centres, z y x, around the origin."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING_MM)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _image(value: Array, inside: NDArray[np.bool_], points: Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """What a scanner makes of texture values (N,): contrast, bias field, Rician noise, scale, whatever the class."""
    signal = contrast(value, CONTRASTS[rng.integers(len(CONTRASTS))], rng)
    signal = np.where(inside, np.maximum(3 + signal, 0.2) * bias_field(points, rng), 0)
    real, imaginary = rng.normal(0, rng.uniform(0.1, 0.2), (2, len(points)))
    return np.round(np.hypot(signal + real, imaginary) * GREY * rng.uniform(0.5, 2)).astype(np.int16)
