"""Shapes and textures of the synthetic anatomy, in millimetres: what a phantom is before any scanner sees it.

Everything is a function of world position, so that a scan may lie on any oblique, anisotropic grid without resampling.
A texture is a sum of plane waves whose wave numbers fill one band. The body is coarse grain; a textured part keeps half
the variance of that grain and has the other half from waves of its own, shorter and with directions of their own. All
values are standard normal. So the intensity of a voxel says nothing about its tissue, the mean of its neighbourhood
next to nothing, its place little: what tells is how neighbouring voxels are arranged.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TISSUE_BAND_MM = (10.0, 20.0)  # wavelengths
ORGAN_BANDS_MM = {"sheets": (4.8, 6.2), "fibres": (3.2, 4.0)}  # by kind of texture
LESION_BAND_MM = (3.2, 4.0)
WAVES = 40  # enough for values that are close to normal


def random_rotation(rng: np.random.Generator) -> Array:
    """A uniformly drawn rotation matrix (3,3)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] *= -1
    return q


@dataclass(frozen=True)
class Ellipsoid:
    """`centre` (3,) mm, `radii` (3,) mm along the columns of `axes` (3,3)."""

    centre: Array
    radii: Array
    axes: Array

    def local(self, points: Array) -> Array:
        """Points (...,3) mm in units of the radii, along the ellipsoid's own axes."""
        return (points - self.centre) @ self.axes / self.radii

    def contains(self, points: Array) -> NDArray[np.bool_]:
        """Which points (...,3) mm lie inside."""
        return (self.local(points) ** 2).sum(-1) <= 1

    def grown(self, margin_mm: float) -> Ellipsoid:
        """The ellipsoid with every radius larger by `margin_mm` (smaller when negative)."""
        return Ellipsoid(self.centre, self.radii + margin_mm, self.axes)

    def surface(self, n: int = 64) -> Array:
        """(n,3) points spread over the surface (Fibonacci sphere)."""
        k = np.arange(n) + 0.5
        polar, azimuth = np.arccos(1 - 2 * k / n), np.pi * (1 + 5**0.5) * k
        sphere = np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], axis=-1)
        return self.centre + (sphere * self.radii) @ self.axes.T


@dataclass(frozen=True)
class Texture:
    """A band-limited random field of unit variance: `waves` (n,3) rad/mm, `phases` (n,) rad."""

    waves: Array
    phases: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: str, band_mm: tuple[float, float]) -> Texture:
        """A texture of `kind`: "grain" (waves in all directions), "sheets" (near one axis), "fibres" (near one plane).

        The axis is drawn too, so that a kind is known by its arrangement and never by its orientation.
        """
        axis, n = random_rotation(rng), WAVES
        if kind == "grain":
            along = rng.uniform(-1, 1, n)  # cosine to the axis: uniform on the sphere
        elif kind == "sheets":
            along = rng.uniform(0.94, 1, n)
        elif kind == "fibres":
            along = rng.uniform(-0.15, 0.15, n)
        else:
            raise ValueError(f"texture '{kind}' is unknown: use grain, sheets or fibres")
        azimuth = rng.uniform(0, 2 * np.pi, n)
        across = np.sqrt(1 - along**2)
        directions = np.stack([along, across * np.cos(azimuth), across * np.sin(azimuth)], axis=-1) @ axis.T
        numbers = 2 * np.pi / rng.uniform(*band_mm, n)
        return cls(directions * numbers[:, None], rng.uniform(0, 2 * np.pi, n))

    def __call__(self, points: Array) -> Array:
        """Values (N,) at points (N,3) mm."""
        return np.sqrt(2 / len(self.phases)) * np.cos(points @ self.waves.T + self.phases).sum(-1)


@dataclass
class Part:
    """A region: `texture` None is the body's tissue; `label` 0 is unlabelled; `shift` moves the mean, in deviations."""

    name: str
    shape: Ellipsoid
    texture: Texture | None
    label: int = 0
    shift: float = 0.0


@dataclass
class Anatomy:
    """A patient: a body of coarse grain, and parts painted over it in order (later ones win).

    Labels: 1 `sheet organ` and 2 `fibre organ`, which touch each other. Context decides too: a `decoy` has the texture
    of one of them but lies alone, and is background. `distractors` are tissue of another mean, so that a mean says
    nothing. The pathology is fine grain in a share `lesion_extent` of the body, at the same mean.
    """

    body: Ellipsoid
    tissue: Texture
    parts: list[Part] = field(default_factory=list)
    lesion_extent: float = 0.0

    def paint(self, points: Array) -> tuple[Array, NDArray[np.uint8], NDArray[np.bool_]]:
        """At points (N,3) mm: texture value (N,) with mean 0 and variance 1, label (N,), and inside the body (N,)."""
        inside = self.body.contains(points)
        within = points[inside]
        owner = np.full(len(within), -1)
        for k, part in enumerate(self.parts):
            owner[part.shape.contains(within)] = k
        value, label = self.tissue(within), np.zeros(len(within), np.uint8)
        for k, part in enumerate(self.parts):
            here = owner == k
            if part.texture is not None:
                value[here] = (value[here] + part.texture(within[here])) / np.sqrt(2)
            value[here] += part.shift
            label[here] = part.label
        values, labels = np.zeros(len(points)), np.zeros(len(points), np.uint8)
        values[inside], labels[inside] = value, label
        return values, labels, inside


def _place(
    rng: np.random.Generator, body: Ellipsoid, radii: Array, taken: list[Ellipsoid], gap_mm: float
) -> Ellipsoid | None:
    """An ellipsoid at a random place and orientation in the body, `gap_mm` from those taken; None if none was found."""
    inner = body.grown(-1.0)
    for _ in range(400):
        centre = body.centre + rng.uniform(-1, 1, 3) * body.radii
        shape = Ellipsoid(centre, radii, random_rotation(rng))
        surface = np.concatenate([shape.surface(), shape.grown(-0.5 * float(radii.min())).surface(32)])
        if inner.contains(surface).all() and not any(o.grown(gap_mm).contains(surface).any() for o in taken):
            return shape
    return None


def _pair(rng: np.random.Generator, body: Ellipsoid) -> tuple[Ellipsoid, Ellipsoid]:
    """Two organs that touch at a random place of their surfaces."""
    inner = body.grown(-1.0)
    for _ in range(10_000):
        centre = body.centre + rng.uniform(-0.7, 0.7, 3) * body.radii
        first = Ellipsoid(centre, rng.uniform((9.5, 7, 6.5), (12, 8.5, 7.5)), random_rotation(rng))
        if not inner.contains(first.surface()).all():
            continue
        radii = rng.uniform((8, 7, 6.5), (10, 8.5, 7.5))
        touch = first.surface()[rng.integers(64)]
        outward = (touch - first.centre) / np.linalg.norm(touch - first.centre)
        second = Ellipsoid(touch + outward * radii.mean() * 0.8, radii, random_rotation(rng))
        if inner.contains(second.surface()).all():
            return first, second
    raise RuntimeError("no place was found for two organs in a body of these radii")


def _organ_texture(rng: np.random.Generator, kind: str) -> Texture:
    return Texture.draw(rng, kind, ORGAN_BANDS_MM[kind])


def draw_anatomy(rng: np.random.Generator, lesion: bool) -> Anatomy:
    """A patient's anatomy around the origin, in a body of about 46 x 42 x 44 mm."""
    body = Ellipsoid(np.zeros(3), rng.uniform((21, 19, 20), (24, 22, 23)), np.eye(3))
    anatomy = Anatomy(body, Texture.draw(rng, "grain", TISSUE_BAND_MM))
    first, second = _pair(rng, body)
    taken = [first, second]
    under: list[Part] = []
    decoy = _place(rng, body, rng.uniform(4.5, 6, 3), taken, 2.0)
    if decoy is not None:
        taken.append(decoy)
        under.append(Part("decoy", decoy, _organ_texture(rng, str(rng.choice(["sheets", "fibres"])))))
    for _ in range(rng.integers(1, 4)):
        blob = _place(rng, body, rng.uniform(3, 5, 3), taken, 0.0)
        if blob is not None:
            taken.append(blob)
            under.append(Part("distractor", blob, None, shift=float(rng.choice([-1.5, 1.5]))))
    if lesion:
        centre = body.centre + rng.uniform(-0.6, 0.6, 3) * body.radii
        shape = Ellipsoid(centre, rng.uniform(7, 14, 3), random_rotation(rng))
        anatomy.parts.append(Part("lesion", shape, Texture.draw(rng, "grain", LESION_BAND_MM)))
    anatomy.parts += under
    anatomy.parts.append(Part("sheet organ", first, _organ_texture(rng, "sheets"), 1))
    anatomy.parts.append(Part("fibre organ", second, _organ_texture(rng, "fibres"), 2))
    anatomy.lesion_extent = _extent(anatomy)
    return anatomy


def _extent(anatomy: Anatomy) -> float:
    """Share of the body that shows the lesion's texture, by a 1.5 mm grid."""
    lesions = [k for k, part in enumerate(anatomy.parts) if part.name == "lesion"]
    if not lesions:
        return 0.0
    axis = np.arange(-25.5, 26, 1.5)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    points = points[anatomy.body.contains(points)]
    shown = anatomy.parts[lesions[0]].shape.contains(points)
    for part in anatomy.parts[lesions[0] + 1 :]:
        shown &= ~part.shape.contains(points)
    return float(shown.mean())
