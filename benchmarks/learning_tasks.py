"""The table of what bench_learning.py trains: a small recipe a task, and the keys that fit it to small scans."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from learning_data import Data

from ssl3d import config

STEPS = 300
COMMON = (
    "run.seed=0", "run.compile=false", "run.log_every=5", "run.checkpoint_every=0", "run.preview_every=0",
    "run.holdout_every=0", "data.holdout=0", "data.workers=0", "optim.warmup_steps=30", "wandb.mode=disabled",
)  # fmt: skip
VIT = ("model.size=tiny", "model.patch_size=[4, 4, 4]")  # tokens as fine as the structures of these small scans


# The phantom's organs differ by texture and context alone: smaller patches taught no better than random features.
WIDE = {"phantom": ("task.patch_size=[32, 32, 32]",)}


@dataclass(frozen=True)
class Entry:
    """A task: its page in docs/methods, its small recipe, what is overridden for all data sets, and for single ones."""

    page: str
    recipe: str
    settings: tuple[str, ...]
    by_data: dict[str, tuple[str, ...]] = field(default_factory=dict)


def patch(*more: str) -> tuple[str, ...]:
    """Two patches a step."""
    return ("task.patch_size=[16, 32, 24]", "data.batch_size=2", *more)


VIEWS = ("task.patch_size=[24, 24, 24]", "data.batch_size=6")
CROPS = ("task.crop_size=[16, 24, 16]", "task.grid=[2, 2, 2]", "data.batch_size=2")
ENTRIES: dict[str, Entry] = {
    "mae": Entry("mae", "mae_resenc_s", patch("task.mask_block=4"), WIDE),
    "sparse_mae": Entry("sparse_mae", "sparse_mae_resenc_s", patch(), WIDE),
    "simmim": Entry("simmim", "simmim_vit_s", patch(*VIT), WIDE),
    "hi_end_mae": Entry("hi_end_mae", "hi_end_mae_vit_s", patch(*VIT), WIDE),
    "position": Entry("position", "position_mae_resenc_s", patch("task.mask_share=0"), WIDE),
    "position_mae": Entry("position", "position_mae_resenc_s", patch(), WIDE),
    "volume_fusion": Entry("volume_fusion", "volume_fusion_resenc_s", patch(), WIDE),
    "models_genesis": Entry("models_genesis", "models_genesis_resenc_s", patch(), WIDE),
    "simclr": Entry("two_views", "simclr_resenc_s", VIEWS),
    "vicreg": Entry("two_views", "vicreg_resenc_s", VIEWS),
    "voco": Entry("voco", "voco_resenc_s", CROPS),
}


def load(name: str, data: Data, out: Path, more: list[str]) -> config.Recipe:
    """The recipe of a task on a data set, its run below `out`; `more`: further overrides."""
    entry = ENTRIES[name]
    given = [*COMMON, f"run.steps={STEPS}", *entry.settings, *entry.by_data.get(data.name, ())]
    given += [f"run.dir={out / data.name / name}", f"data.store={data.store}"]
    given += [f"data.include={data.split}"] if data.only_pool else []  # the pool of a split
    return config.load(entry.recipe, [*given, *more])
