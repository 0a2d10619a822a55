"""Synthetic scans with labels and targets, written as a Medical Segmentation Decathlon folder of NIfTI files.

For the quickstart and the tests: real enough to need the whole conversion (oblique and anisotropic affines, permuted
and flipped axes, int16 and float32, intensity scales orders of magnitude apart), and hard in the way that matters:
organs differ from their surroundings by texture and context only (see phantom_shapes).
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ssl3d.data.phantom_shapes import Anatomy, Array, draw_anatomy, random_rotation
from ssl3d.seeding import mix, numpy_generator

CLASSES = {0: "background", 1: "sheet organ", 2: "fibre organ"}
TARGETS_FILE = "targets.csv"
FIELD_OF_VIEW_MM = 50.0
SPACINGS_MM = ((1.0, 1.0, 1.0), (1.1, 1.1, 1.1), (1.0, 1.0, 1.3), (0.9, 0.9, 1.3), (1.2, 1.0, 1.2))
CONTRASTS = ("linear", "inverted", "gamma", "s-curve", "folded")


@dataclass
class Scan:
    """One acquisition: `image` and `label` (X,Y,Z) in file order, `affine` (4,4) voxel -> world mm, RAS+."""

    image: NDArray[np.generic]
    label: NDArray[np.uint8]
    affine: Array


def contrast(value: Array, kind: str, rng: np.random.Generator) -> Array:
    """Texture values (standard normal) -> tissue signal of mean near 0 and spread near 1; "folded" is not monotone."""
    if kind == "linear":
        return value
    if kind == "inverted":
        return -value
    if kind == "gamma":
        return 2.5 * np.expm1(rng.uniform(0.25, 0.45) * value)
    if kind == "s-curve":
        return 1.3 * np.tanh(rng.uniform(0.7, 1.2) * value)
    if kind == "folded":
        peak = rng.uniform(1.2, 1.8)
        return np.where(value < peak, value, 2 * peak - value)
    raise ValueError(f"contrast '{kind}' is unknown: use one of {', '.join(CONTRASTS)}")


def _affine(shape: tuple[int, ...], spacing_mm: tuple[float, ...], rng: np.random.Generator) -> Array:
    """A voxel -> world affine around the origin: tilted by up to 15 degrees, axes permuted and flipped at random."""
    permutation = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)[:, None]
    axis, angle = random_rotation(rng)[:, 0], np.deg2rad(rng.uniform(0, 15))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    tilt = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = tilt @ permutation @ np.diag(spacing_mm)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2 + rng.uniform(-1, 1, 3)
    return affine


def bias_field(points: Array, rng: np.random.Generator) -> Array:
    """A smooth multiplicative field (N,) around 1: a linear and a quadratic term of position."""
    u = points / (FIELD_OF_VIEW_MM / 2)
    linear, quadratic = rng.normal(0, 0.12, 3), rng.normal(0, 0.08, (3, 3))
    return np.exp(u @ linear + np.einsum("ni,ij,nj->n", u, quadratic, u))


def scan(anatomy: Anatomy, rng: np.random.Generator) -> Scan:
    """Image an anatomy: pose, grid, contrast, bias field, noise, intensity scale and file type are drawn from `rng`."""
    spacing = SPACINGS_MM[rng.integers(len(SPACINGS_MM))]
    shape = tuple(int(np.ceil(FIELD_OF_VIEW_MM / s)) for s in spacing)
    affine = _affine(shape, spacing, rng)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = index @ affine[:3, :3].T + affine[:3, 3]

    value, label, inside = anatomy.paint(points)
    signal = contrast(value, CONTRASTS[rng.integers(len(CONTRASTS))], rng)
    signal = np.where(inside, np.maximum(3 + signal, 0.2) * bias_field(points, rng), 0)
    real, imaginary = rng.normal(0, rng.uniform(0.1, 0.2), (2, len(points)))
    signal = np.hypot(signal + real, imaginary)  # Rician, as in magnitude MRI
    signal *= 10 ** rng.uniform(1.5, 3)
    image = np.round(signal).astype(np.int16) if rng.random() < 0.5 else signal.astype(np.float32)
    return Scan(image.reshape(shape), label.reshape(shape), affine)


def patient_scans(seed: int, patient: int) -> tuple[list[Scan], bool, float]:
    """Patient number `patient` of the data set `seed`: one or two scans of one anatomy, lesion present, its extent."""
    rng = numpy_generator(seed, "anatomy", patient)
    lesion = bool(rng.random() < 0.5)
    anatomy = draw_anatomy(rng, lesion)
    n = 2 if mix(seed, "number of scans", patient) % 3 == 0 else 1
    scans = [scan(anatomy, numpy_generator(seed, "scan", patient, k)) for k in range(n)]
    return scans, lesion, anatomy.lesion_extent


def write_phantom(out: Path | str, patients: int, seed: int = 0) -> Path:
    """Write `patients` synthetic patients into the folder `out`, in the MSD layout, and return it.

    `imagesTr/`, `labelsTr/` (int16 or float32 NIfTI, uint8 labels), `dataset.json`, `patients.json` ({patient: [case]})
    and `targets.csv` (case, lesion 0|1, lesion_extent: share of the body). The same arguments give the same
    voxels. Raises ValueError when `patients` is below 1.
    """
    if patients < 1:
        raise ValueError(f"patients is {patients}: a phantom data set needs at least 1")
    out = Path(out)
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    grouped: dict[str, list[str]] = {}
    targets: list[dict[str, object]] = []
    for number in range(patients):
        scans, lesion, extent = patient_scans(seed, number)
        for item in scans:
            case, patient = f"phantom_{len(targets) + 1:03d}", f"patient_{number + 1:03d}"
            nib.save(_nifti(item.image, item.affine), out / "imagesTr" / f"{case}.nii.gz")
            nib.save(_nifti(item.label, item.affine), out / "labelsTr" / f"{case}.nii.gz")
            grouped.setdefault(patient, []).append(case)
            targets.append({"case": case, "lesion": int(lesion), "lesion_extent": round(extent, 4)})
    with (out / TARGETS_FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, ["case", "lesion", "lesion_extent"])
        writer.writeheader()
        writer.writerows(targets)
    (out / "patients.json").write_text(json.dumps(grouped, indent=1))
    (out / "dataset.json").write_text(json.dumps(_dataset_json([str(t["case"]) for t in targets]), indent=1))
    return out


def _nifti(voxels: NDArray[np.generic], affine: Array) -> nib.nifti1.Nifti1Image:
    image = nib.nifti1.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def _dataset_json(cases: list[str]) -> dict[str, object]:
    """MSD's dataset.json, with nnU-Net's `channel_names` and `file_ending` beside it."""
    return {
        "name": "Phantom",
        "description": "Synthetic anatomy: organs that differ by texture and context only (ssl3d.data.phantom)",
        "licence": "Apache-2.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "channel_names": {"0": "MRI"},
        "labels": {str(value): name for value, name in CLASSES.items()},
        "file_ending": ".nii.gz",
        "numTraining": len(cases),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases],
        "test": [],
    }
