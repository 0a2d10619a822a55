"""The pictures of a DICOM series -> the volumes they make: by orientation and size, then by what tells repeats apart.

What must differ between two volumes splits at once: orientation, rows and columns, pixel spacing. Everything else
(image type, stack, echo, b-value, time, acquisition, kernel) splits only where it explains why pictures lie at the same
place, or why a stack is not even: scanners also write such tags differently along one and the same volume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocessing.geometry import MIN_SLICES
from preprocessing.readers.dicom_header import Picture
from preprocessing.readers.dicom_stack import PARALLEL

_APART = 0.01  # mm along the normal below which two pictures lie at one place
_EVEN = 0.1  # of the median gap: rougher than the reader's own check, which has the last word
Key = Callable[[Picture], Any]

# Letter of the volume's id, what is compared. The first key that explains the repeats is used first.
_KEYS: tuple[tuple[str, Key], ...] = (
    ("i", lambda picture: picture.image_type),
    ("s", lambda picture: picture.stack),
    ("e", lambda picture: picture.echo),
    ("b", lambda picture: picture.b_value),
    ("g", lambda picture: picture.gradient),
    ("t", lambda picture: picture.time),
    ("p", lambda picture: picture.trigger),
    ("a", lambda picture: picture.acquisition),
    ("k", lambda picture: picture.kernel),
    ("f", lambda picture: str(picture.file.parent)),
)


@dataclass
class Stack:
    """The pictures of one volume. `suffix`: what tells it from the others of its series, "" for the only one."""

    pictures: list[Picture]
    suffix: str = ""


def split(pictures: Sequence[Picture]) -> list[Stack]:
    """The volumes of a series, in a stable order that does not depend on the order of the files.

    Pictures without a place (position, orientation or spacing not stated) stay together: the reader refuses them.
    """
    mosaics = [picture for picture in pictures if picture.mosaic]
    placed = [picture for picture in pictures if not picture.mosaic and picture.axes and picture.position]
    lost = [picture for picture in pictures if not picture.mosaic and not (picture.axes and picture.position)]
    found = [stack for k, part in enumerate(_alike(placed)) for stack in _named(f"o{k}", _divide(part, _KEYS))]
    found += _named("m", [("", [picture]) for picture in sorted(mosaics, key=_sequence)], digits=4)
    found += [Stack(lost, "x")] if lost else []
    if len(found) == 1:
        found[0].suffix = ""
    elif len({stack.suffix.split("_")[0] for stack in found}) == 1:  # one orientation need not be named
        for stack in found:
            stack.suffix = stack.suffix.partition("_")[2] or stack.suffix
    return found


def _named(prefix: str, parts: Sequence[tuple[str, list[Picture]]], digits: int = 0) -> list[Stack]:
    """Stacks whose suffixes begin with `prefix`; nameless parts are numbered when there are several."""
    if digits:
        return [Stack(part, f"{prefix}_t{k:0{digits}d}") for k, (_, part) in enumerate(parts)]
    return [Stack(part, f"{prefix}_{name}" if name else prefix) for name, part in parts]


def _sequence(picture: Picture) -> tuple[Any, ...]:
    """The order in which pictures were taken, as far as they say."""
    return (picture.acquisition, picture.time, picture.trigger, picture.number, picture.frame, str(picture.file))


def _alike(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Parallel pictures of one size and pixel spacing, groups in a stable order."""
    groups: list[list[Picture]] = []
    for picture in sorted(pictures, key=_sequence):
        for group in groups:
            if _same_grid(picture, group[0]):
                group.append(picture)
                break
        else:
            groups.append([picture])
    return sorted(groups, key=lambda group: (group[0].shape, group[0].axes, group[0].spacing or ()))


def _same_grid(a: Picture, b: Picture) -> bool:
    """Whether two pictures may lie in one volume."""
    assert a.axes is not None and b.axes is not None
    if a.shape != b.shape or max(abs(p - q) for p, q in zip(a.axes, b.axes)) > PARALLEL:
        return False
    if a.spacing is None or b.spacing is None:
        return a.spacing == b.spacing
    return all(abs(p - q) <= 1e-3 * max(p, q) for p, q in zip(a.spacing, b.spacing))


def _heights(pictures: Sequence[Picture]) -> np.ndarray:
    """(n,) mm along the normal, in the pictures' order."""
    positions = np.array([picture.position for picture in pictures], dtype=np.float64)
    return positions @ pictures[0].normal


def _repeats(pictures: Sequence[Picture]) -> int:
    """The largest number of pictures at one place."""
    places = np.sort(_heights(pictures))
    return max(Counter(np.cumsum(np.diff(places, prepend=places[0]) >= _APART).tolist()).values())


def _complete(pictures: Sequence[Picture]) -> bool:
    """Whether pictures make an evenly spaced volume by themselves."""
    if len(pictures) < MIN_SLICES:
        return False
    gaps = np.diff(np.sort(_heights(pictures)))
    usual = float(np.median(gaps))
    return usual >= _APART and bool(np.abs(gaps - usual).max() <= _EVEN * usual)


def _divide(pictures: list[Picture], keys: Sequence[tuple[str, Key]]) -> list[tuple[str, list[Picture]]]:
    """(name, pictures) of the volumes among parallel pictures."""
    if _complete(pictures):
        return [("", pictures)]
    repeats = _repeats(pictures)
    for k, (letter, key) in enumerate(keys):
        parts: dict[Any, list[Picture]] = {}
        for picture in pictures:
            parts.setdefault(key(picture), []).append(picture)
        if not _explains(list(parts.values()), repeats):
            continue
        width = 4 if letter in "tpg" else 1
        return [
            (f"{letter}{number:0{width}d}{'_' if name else ''}{name}", part)
            for number, value in enumerate(sorted(parts))
            for name, part in _divide(parts[value], keys[k + 1 :])
        ]
    return _by_rank(pictures, repeats)


def _explains(parts: Sequence[Sequence[Picture]], repeats: int) -> bool:
    """Whether a tag's values make better volumes: complete ones, or each place taken up by fewer pictures.

    As many values as pictures at one place, at most: a time of acquisition differs in every slice and explains nothing.
    """
    if len(parts) < 2:
        return False
    if all(_complete(part) for part in parts):
        return True
    return len(parts) <= repeats and max(_repeats(part) for part in parts) < repeats


def _by_rank(pictures: list[Picture], repeats: int) -> list[tuple[str, list[Picture]]]:
    """Equally many pictures at each place and no tag that tells them apart: the first of each place, the second, ..."""
    ranked = sorted(pictures, key=lambda picture: (round(float(_heights([picture])[0]) / _APART), _sequence(picture)))
    if repeats < 2 or len(pictures) % repeats or len(pictures) // repeats < MIN_SLICES:
        return [("", pictures)]
    places = _heights(ranked).reshape(-1, repeats)
    if np.ptp(places, axis=1).max() >= _APART:
        return [("", pictures)]
    return [(f"t{k:04d}", ranked[k::repeats]) for k in range(repeats)]
