"""Every pretext task with every backbone, found by walking the packages: which pairs work, and why the others do not.

python -m ssl3d.testing.matrix > docs/matrix.md
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from types import ModuleType
from typing import Any

from ssl3d import models, schema, tasks
from ssl3d.models.backbone import Backbone, MaskableBackbone, StagedBackbone, TokenBackbone
from ssl3d.models.nnunet import NNUNetBackbone
from ssl3d.regions import Size3
from ssl3d.tasks.task import PretextTask
from ssl3d.tasks.two_views import TwoViews

ABSTRACT: tuple[type, ...] = (
    Backbone, MaskableBackbone, StagedBackbone, TokenBackbone, NNUNetBackbone, PretextTask, TwoViews,
)  # fmt: skip
# The least a recipe would say to get a network that is made in milliseconds.
SMALL_MODELS: dict[str, dict[str, Any]] = {
    "ResEncUNet": {"arch_kwargs": {"n_stages": 3, "features_per_stage": [8, 16, 16], "n_blocks_per_stage": [1, 1, 1]}},
    "PlainConvUNet": {
        "arch_kwargs": {"n_stages": 3, "features_per_stage": [8, 16, 16], "n_conv_per_stage": [1, 1, 1]},
    },
    "ResNet": {"depth": 10, "width": 0.125},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "UNet3D": {"width": 2},
    "STUNet": {"size": "tiny", "strides": [[1, 2, 2]] * 5},
    "Primus": {"size": "tiny", "input_size": [16, 32, 16]},
    "PrimusV2": {"size": "tiny", "input_size": [16, 32, 16]},
    "DinoViT": {
        "embed_dim": 48, "depth": 2, "heads": 3, "patch_size": [4, 8, 8], "input_size": [8, 16, 16], "registers": 1,
    },
    "ViT": {"size": "tiny", "patch_size": [4, 8, 8]},
}  # fmt: skip
VIEWS = {
    "_target_": "ssl3d.augment.Compose",
    "transforms": [{"_target_": "ssl3d.augment.SpatialTransform", "p_rotation": 0, "p_scale": 0, "shift": 0.2}],
}


def classes(package: ModuleType, base: type) -> list[type]:
    """The concrete subclasses of `base` in the modules of a package, by name."""
    found = set()
    for module in pkgutil.iter_modules(package.__path__):
        members = inspect.getmembers(importlib.import_module(f"{package.__name__}.{module.name}"), inspect.isclass)
        found |= {cls for _, cls in members if issubclass(cls, base) and cls not in ABSTRACT}
    return sorted(found, key=lambda cls: cls.__name__)


def backbone_classes() -> list[type]:
    """Every family of backbones."""
    return classes(models, Backbone)


def task_classes() -> list[type]:
    """Every pretext task."""
    return classes(tasks, PretextTask)


def model_node(cls: type) -> dict[str, Any]:
    """What a recipe says to get a tiny network of a family."""
    return {"_target_": f"{cls.__module__}.{cls.__name__}", **SMALL_MODELS.get(cls.__name__, {"size": "tiny"})}


def small_backbone(cls: type) -> Backbone:
    """A tiny network of a family, built as a recipe builds it."""
    completed, faults = schema.check_value(model_node(cls), Backbone, "model")
    assert not faults, faults
    return schema.build(completed)


def small_size(backbone: Backbone) -> Size3:
    """The least input (D,H,W) that a network takes, not cubic, at least 8 voxels an axis."""
    d, h, w = (s * max(1, -(-8 // s)) for s in backbone.total_stride)
    return (d, h, 2 * w)


def task_node(cls: type, backbone: Backbone) -> dict[str, Any]:
    """What a recipe says to get a task with tiny heads on `backbone`."""
    size = small_size(backbone)
    block = backbone.patch_size if isinstance(backbone, MaskableBackbone) else tuple(max(1, n // 4) for n in size)
    heads = {"hidden_dim": 16, "out_dim": 8}
    crops = {"local_crops": 1, "hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 2}
    values: dict[str, dict[str, Any]] = {
        "CUTS": {"patch_size": size, "local_patch": 3, "anchors": 8, "out_dim": 8},
        "GraphMatching": {"patch_size": size, "augment": VIEWS, "cells": 2, "hidden_dim": 16, "out_dim": 8},
        "DINO": {"global_size": size, "local_size": size, "global_augment": VIEWS, "local_augment": VIEWS} | crops,
        "Distillation": {"patch_size": size, "teacher": model_node(type(backbone))},
        "HiEndMAE": {"patch_size": size, "decoder_dim": 32, "decoder_heads": 2, "decoder_depth": 1},
        "JEPA": {"patch_size": size, "target_scale": (0.2, 0.5), "predictor_dim": 32, "predictor_depth": 1},
        "LeJEPA": {"patch_size": size, "augment": VIEWS, "directions": 16} | heads,
        "JointClustering": {
            "crop_size": size, "augment": VIEWS, "slices": 2, "prototypes": 4, "depth": 1, "heads": 2,
        } | heads,
        "LocalContrast": {"patch_size": size, "augment": VIEWS, "scale": 0, "count": 8, "region": 1} | heads,
        "MAE": {"patch_size": size, "mask_block": block, "decoder_dim": 32, "decoder_depth": 1},
        "ModelsGenesis": {"patch_size": size},
        "PositionRegression": {"patch_size": size, "mask_share": 0.5, "mask_block": block},
        "SimCLR": {"patch_size": size, "augment": VIEWS, "hidden_dim": 16, "out_dim": 8},
        "SimMIM": {"patch_size": size, "mask_block": block},
        "SparseMAE": {"patch_size": size, "mask_block": block},
        "SwinUNETRPretext": {"patch_size": (size[0], size[2], size[2]), "out_dim": 8},
        "Synthesis": {"patch_size": size, "voxels": 64} | heads,
        "VICReg": {"patch_size": size, "augment": VIEWS, "hidden_dim": 16, "out_dim": 8},
        "VoCo": {"crop_size": size, "grid": [1, 2, 1], "hidden_dim": 16},
        "VolumeFusion": {"patch_size": size, "smallest": 2, "largest": 6},
    }  # fmt: skip
    if cls.__name__ == "Combined":
        found = {task.__name__: task for task in task_classes()}
        names = ("MAE" if backbone.decoder_channels else "SimCLR", "LocalContrast")
        parts = {name.lower(): task_node(found[name], backbone) for name in names}
        values["Combined"] = {"tasks": parts, "norms_every": 0}
    if not isinstance(backbone, TokenBackbone):
        values["DINO"] |= {"ibot_weight": 0.0}
    if not backbone.decoder_channels:  # the forms of these tasks that need none
        values["LocalContrast"] |= {"stage": "global"}
        values["PositionRegression"] |= {"target": "crop", "mask_share": 0.0}
    if cls.__name__ not in values:
        raise LookupError(f"{cls.__name__} has no line in task_node of ssl3d/testing/matrix.py: its smallest values")
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values[cls.__name__].items()}
    return {"_target_": f"{cls.__module__}.{cls.__name__}", **plain}


def small_task(cls: type, backbone: Backbone) -> PretextTask:
    """A task on a backbone, with tiny heads. Raises ValueError, one sentence, when the pair makes no sense."""
    completed, faults = schema.check_target(task_node(cls, backbone), PretextTask, "task", given=("backbone",))
    assert not faults, faults
    return schema.build(completed, backbone=backbone)


@functools.cache
def refusal(task: type, family: type) -> str | None:
    """Why a pair makes no sense, in the words a user gets; None when it works."""
    try:
        small_task(task, small_backbone(family))
    except ValueError as error:
        return str(error)
    return None


def page() -> str:
    """The matrix as Markdown."""
    families, lines, reasons = backbone_classes(), [], []
    lines.append("| task | " + " | ".join(f.__name__ for f in families) + " |")
    lines.append("|---|" + "---|" * len(families))
    for task in task_classes():
        cells = []
        for family in families:
            reason = refusal(task, family)
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            cells.append("yes" if reason is None else f"no ({reasons.index(reason) + 1})")
        lines.append(f"| {task.__name__} | " + " | ".join(cells) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    head = "# Which task works with which backbone\n\nMade by `python -m ssl3d.testing.matrix`; a test compares. On a "
    head += "network without a decoder (ResNet)\nLocalContrast contrasts whole crops alone (`stage: global`), "
    head += "Combined has SimCLR in place of MAE beside\nit, "
    head += "and PositionRegression tells where the crop lies (`target: crop`). "
    head += "Where there are\nno tokens to hide, DINO is without iBOT (`ibot_weight: 0`)."
    return "\n".join([head, "", *lines, "", "What `ssl3d check` says of the others:", "", *notes, ""])


if __name__ == "__main__":
    sys.stdout.write(page())
