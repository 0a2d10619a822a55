"""Which arithmetic a run uses: bfloat16 where there are instructions for it and they are right, else float32."""

from __future__ import annotations

import functools
from collections.abc import Collection

import torch
from torch.nn import functional as F

from ssl3d.config import ConfigError
from ssl3d.tasks.task import Objective

FAULTY_DEPTH = 2  # voxels


def choose_precision(wanted: str, scales: Collection[int] = ()) -> str:
    """`auto`: bf16-mixed with bfloat16 instructions (half the time of a step, measured on one CPU), else 32-true.

    `scales`: voxels along the first axis at each scale of what is to be trained (`depths`).
    Raises ConfigError when bf16-mixed is asked for and its gradients would be wrong.
    """
    if wanted not in ("auto", "bf16-mixed") or torch.cuda.is_available():
        if wanted != "auto":
            return wanted
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    faulty = FAULTY_DEPTH in scales and bf16_conv3d_is_faulty()
    if wanted == "bf16-mixed" and faulty:
        raise ConfigError(
            [f"run.precision is bf16-mixed, but on this processor and torch {torch.__version__} the gradients of a "
             f"convolution over {FAULTY_DEPTH} slices are wrong in bfloat16, and this patch has so few at a coarse "
             "scale: use 32-true, or a deeper patch"]
        )  # fmt: skip
    if wanted == "bf16-mixed":
        return wanted
    has = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return "bf16-mixed" if any(f is not None and f() for f in has) and not faulty else "32-true"


def depths(objective: Objective) -> set[int]:
    """Voxels along the first axis at each scale of the backbone."""
    return {size[0] // stride[0] for size in objective.seen_sizes for stride in objective.backbone.strides}


@functools.cache
def bf16_conv3d_is_faulty() -> bool:
    """Whether the CPU's weight gradient of a bfloat16 conv3d over 2 slices is wrong.

    Found with torch 2.15 on a processor with avx512_bf16: finite but wrong, or NaN, in every trial at this depth and at
    no other. Tried at run time rather than listed by version: it depends on the library's kernels and the processor.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 32, FAULTY_DEPTH, 4, 3), generator=generator)
    w = torch.randn((32, 32, 3, 3, 3), generator=generator)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        weight = w.to(dtype, copy=True).requires_grad_()
        with torch.enable_grad():
            F.conv3d(x.to(dtype), weight, padding=1).float().square().sum().backward()
        assert weight.grad is not None
        return weight.grad.float()

    expected = gradient(torch.float32)
    error = (gradient(torch.bfloat16) - expected).abs().max() / expected.abs().max()
    return not bool(error < 0.05)  # NaN is faulty too
