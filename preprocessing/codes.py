"""Names of classes -> numbers that stay the same in all of a store, whatever is added to it later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from preprocessing import readers
from preprocessing.geometry import Scan, same_place
from preprocessing.refusal import Refusal
from preprocessing.source import Source

Codes = dict[str, dict[str, int]]
MASKS = "masks"  # labels that come as a file a class
_TARGET = "target "


def encode(codes: Codes, kind: str, names: Iterable[str], first: int) -> dict[str, int]:
    """The numbers of `names`, sorted, from `first` on; those that `codes` holds of this `kind` keep theirs.

    `codes` is extended.
    """
    known = codes.setdefault(kind, {})
    for name in sorted(set(names) - set(known)):
        known[name] = max(known.values(), default=first - 1) + 1
    return known


def settle_codes(sources: Sequence[Source], codes: Codes) -> None:
    """Number the classes of targets (from 0) and of masks (from 1, sorted by name), in place; extends `codes`.

    Raises ValueError naming a target that is a number in one source and a class in another.
    """
    names: dict[str, set[str]] = {}
    for source in sources:
        for target, text in source.target_classes.items():
            names.setdefault(target, set()).add(text)
    for target in sorted(names):
        if any(target in source.targets for source in sources):
            raise ValueError(f"target '{target}' is a number in one table and a class in another: rename one of them")
        encode(codes, _TARGET + target, names[target], first=0)
    masks = {name for source in sources for name in source.masks}
    numbers = encode(codes, MASKS, masks, first=1) if masks else {}
    for source in sources:
        for target, text in source.target_classes.items():
            source.targets = source.targets | {target: float(codes[_TARGET + target][text])}
        source.target_classes = {}
        if source.masks:
            source.classes = {0: "background"} | {number: name for name, number in numbers.items()}


def merge_masks(source: Source) -> Scan:
    """The masks of a source as one label of `source.classes`; where masks overlap, the later name counts.

    Raises Refusal `label_unreadable`, or a mismatch when the masks do not lie on one grid.
    """
    values = {name: value for value, name in source.classes.items()}
    merged: Scan | None = None
    for name, path in sorted(source.masks.items()):
        try:
            scans = list(readers.read(path))
        except Refusal as refusal:
            raise Refusal("label_unreadable", f"mask {path.name}: {refusal.detail}") from refusal
        mask = scans[0]
        if merged is None:
            merged = Scan(np.zeros(mask.data.shape, np.uint16), mask.affine)
        if len(scans) != 1 or mask.data.shape != merged.data.shape:
            raise Refusal("label_shape_mismatch", f"mask {path.name} has another shape than the masks beside it")
        if not same_place(mask.data.shape[1:], merged.affine, mask.affine):
            raise Refusal("label_affine_mismatch", f"mask {path.name} lies elsewhere than the masks beside it")
        merged.data[mask.data > 0] = values[name]
    assert merged is not None, source.id
    return merged
