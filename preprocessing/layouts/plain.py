"""A plain tree: no data set's layout. Whose scan a file is and which file is whose mask, told from names alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.layouts.case import Case, stem
from preprocessing.modality import from_name

NAME = "plain files"
LARGEST_SUBJECT = 50  # volumes in a folder from which on it is no single subject's
_MASK_WORDS = frozenset(
    re.findall(r"\w+", "label labels lbl seg segm segmentation segmentations mask masks roi annotation groundtruth gt")
)
_NO_SUBJECT = frozenset(
    re.findall(
        r"\w+",
        "image images img imgs nifti nii nrrd mha mgz dicom data dataset raw scan scans volume volumes case cases train"
        " training val validation test patients subjects anat func perf baseline followup",
    )
)
_VISIT = re.compile(
    r"^(ses|session|visit|timepoint|tp|day|week|month|year|exam|study)[\W_]*\d{0,8}$|^(19|20)\d\d\W?[01]\d\W?[0-3]\d$"
)


@dataclass
class Place:
    """Whose scan a file is: `subject` as found (a folder's or the file's name), `session` likewise; both identify.

    `folder`: the subject's folder, None where files are subjects of their own.
    """

    subject: str
    session: str
    folder: Path | None


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def _says_nothing(text: str) -> bool:
    """Whether a name only says what kind of thing it is ("ct", "T1_scan", "images"), and not whose."""
    words = _words(text)
    known = bool(words) and all(word in _NO_SUBJECT | _MASK_WORDS or from_name(word) for word in words)
    return known or bool(_VISIT.match(text.lower()))


def places(files: Sequence[Path], root: Path) -> dict[Path, Place]:
    """Whose scan each file below `root` is.

    The subject is the outermost folder below `root`, without those whose names say nothing ("images", "ct", "visit2",
    a date), those with over 50 volumes, and those that only wrap others. A file outside any such folder is a subject of
    its own; one whose name says nothing (T1.nii.gz), or only repeats the name of the folder given, belongs to that.
    """
    direct = Counter(file.parent for file in files)
    between = {folder: _between(folder, root) for folder in direct}
    sizes: Counter[Path] = Counter()
    for folder, count in direct.items():
        sizes.update(dict.fromkeys((root, *between[folder]), count))
    owners = {folder: _subject_folder(inner, sizes, direct) for folder, inner in between.items()}
    own = root.resolve().name
    found = {}
    for file in files:
        owner = owners[file.parent]
        name = stem(file)
        if owner is None and len(files) <= LARGEST_SUBJECT and _belongs(name, own):
            owner = root
        if owner is not None:
            subject = own if owner == root else owner.name
            found[file] = Place(subject, file.parent.relative_to(owner).as_posix(), owner)
        else:
            found[file] = Place(name if not _says_nothing(name) else file.relative_to(root).as_posix(), "", None)
    return found


def _between(folder: Path, root: Path) -> list[Path]:
    """The folders below `root` down to `folder`, outermost first."""
    names = folder.relative_to(root).parts
    return [root.joinpath(*names[: n + 1]) for n in range(len(names))]


def _subject_folder(between: Sequence[Path], sizes: Counter[Path], direct: Counter[Path]) -> Path | None:
    """The one of nested folders that is a subject's. `sizes`: volumes below each folder, `direct`: in it."""
    named = [f for f in between if sizes[f] <= LARGEST_SUBJECT and not _says_nothing(f.name)]
    while len(named) > 1 and sizes[named[0]] == sizes[named[0].parent] and not direct[named[0]]:
        named.pop(0)  # it wraps the rest
    return named[0] if named else None


def _belongs(name: str, folder: str) -> bool:
    """Whether a file's name says nothing beyond its folder's."""
    rest = name[len(folder) :] if name.lower().startswith(folder.lower()) else name
    return _says_nothing(rest) or not _words(rest)


def cases(files: Sequence[Path], guess_labels: bool = True) -> list[Case]:
    """Files as cases; a mask beside the one image it can belong to becomes its label, if their grids agree.

    A mask is a file whose name holds a word such as seg, label or mask, or that lies in a folder called so. It belongs
    to the image of the same folder (or of the folder beside) whose name is its own without that word: first literally,
    then with words such as ct, t1 or image left out too. Where several masks claim an image, or several images fit,
    nothing is guessed, and the file goes on as a scan, for its content to be checked. So do all without `guess_labels`.
    """
    masks = {file for file in files if guess_labels and _is_mask(file)}
    images: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        if file not in masks:
            images[file.parent].append(file)
    claims: dict[Path, list[Path]] = defaultdict(list)
    for mask in sorted(masks):
        image = _image_of(mask, images)
        if image is not None:
            claims[image].append(mask)
    labels = {image: found[0] for image, found in claims.items() if len(found) == 1}
    used = set(labels.values())
    return [
        Case(name=stem(file), images=[file], label=labels.get(file), guessed=file in labels)
        for file in files
        if file not in used
    ]


def _is_mask(file: Path) -> bool:
    return bool(_MASK_WORDS & set(_words(stem(file)))) or _is_mask_folder(file.parent)


def _is_mask_folder(folder: Path) -> bool:
    words = _words(folder.name)
    return bool(words) and set(words) <= _MASK_WORDS


def _image_of(mask: Path, images: dict[Path, list[Path]]) -> Path | None:
    """The one image that a mask's name fits, or None."""
    if _is_mask_folder(mask.parent):
        beside = [image for folder, found in images.items() if folder.parent == mask.parent.parent for image in found]
    else:
        beside = images.get(mask.parent, [])
    wanted = [word for word in _words(stem(mask)) if word not in _MASK_WORDS]
    literal = [image for image in beside if _words(stem(image)) == wanted]
    if literal:
        return literal[0] if len(literal) == 1 else None
    loose = [image for image in beside if _essence(stem(image)) == _essence(stem(mask))]
    return loose[0] if len(loose) == 1 else None


def _essence(name: str) -> list[str]:
    """The words of a name that tell scans apart: neither mask words, nor modalities, nor "image"."""
    return [word for word in _words(name) if word not in _MASK_WORDS | _NO_SUBJECT and not from_name(word)]
