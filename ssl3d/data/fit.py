"""Whether patches fit into the volumes they are cut from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ssl3d.regions import Size3


def require_fit(
    patch_size: Size3, shapes: Iterable[Sequence[int]], multiple: Size3, names: str, what: str = "patch size"
) -> None:
    """Raise ValueError when on some axis all of `shapes` are smaller than the patch, naming the largest usable one.

    That is a `multiple` on each axis, the network's stride, where there is one; `names`: of the stores, `what`: the key
    of the patch.
    """
    largest = np.array(list(shapes)).max(axis=0)
    if any(size > n for size, n in zip(patch_size, largest)):
        usable = (largest // multiple * multiple).tolist()
        remedy = (
            f"the largest usable patch is {usable}"
            if all(usable)
            else f"they have at most {largest.tolist()} voxels, less than the network's stride of {list(multiple)}: "
            "convert them at a finer spacing, or take a network with fewer stages"
        )
        raise ValueError(
            f"{what} {list(patch_size)} does not fit: on some axis every volume of {names} is smaller; {remedy}"
        )
