"""What GPUs can do at best, from their makers' data sheets; a step takes several times as long."""

from __future__ import annotations

import re
from typing import NamedTuple


class Gpu(NamedTuple):
    """`tflops`: dense bfloat16 (float16 where there is none) matrix products with float32 sums; `gib` of memory."""

    name: str
    tflops: float
    gib: float


GPUS = {
    "b200": Gpu("NVIDIA B200", 2250, 180),
    "h200": Gpu("NVIDIA H200 SXM", 989, 141),
    "h100": Gpu("NVIDIA H100 SXM", 989, 80),
    "a100": Gpu("NVIDIA A100 80 GB", 312, 80),
    "a100-40": Gpu("NVIDIA A100 40 GB", 312, 40),
    "l40s": Gpu("NVIDIA L40S", 362, 48),
    "a6000": Gpu("NVIDIA RTX A6000", 155, 48),
    "4090": Gpu("NVIDIA GeForce RTX 4090", 165, 24),
    "3090": Gpu("NVIDIA GeForce RTX 3090", 71, 24),
    "v100": Gpu("NVIDIA V100 32 GB", 125, 32),
}
UTILISATION = (0.1, 0.4)  # of the peak, from memory-bound to well-fed 3D networks; an assumption, not a measurement
RESERVED_GIB = 2.0  # context, libraries and workspaces of convolutions; an assumption too


def find(device: str) -> Gpu | None:
    """The GPU that a driver calls `device` ("NVIDIA H100 80GB HBM3"); None when it is not listed.

    The longest listed model whose words all occur: an A100 of 40 GB is told from one of 80 GB, an H100 PCIe is none.
    """
    words = set(re.sub(r"(\d) ?gb", r"\1gb", re.sub(r"[-_]", " ", device.lower())).split())
    known = [(key, gpu) for key, gpu in GPUS.items() if key.split("-")[0] in words]
    if "pcie" in words and words & {"h100", "h200"}:
        return None  # the figures above are the SXM module's
    known = [(key, gpu) for key, gpu in known if key != "a100-40" or "40gb" in words]
    return max(known, key=lambda pair: len(pair[0]))[1] if known else None
