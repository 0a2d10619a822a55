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


VIEWS = ("task.patch_size=[16, 16, 16]",)
CROPS = ("task.crop_size=[16, 16, 16]", "task.grid=[2, 3, 2]", "data.batch_size=2")
ENTRIES: dict[str, Entry] = {
    "mae": Entry("mae", "mae_resenc_s", patch("task.mask_block=4")),
    "simmim": Entry("simmim", "simmim_vit_s", patch(*VIT)),
    "position": Entry("position", "position_mae_resenc_s", patch("task.mask_share=0")),
    "position_mae": Entry("position", "position_mae_resenc_s", patch()),
    "volume_fusion": Entry("volume_fusion", "volume_fusion_resenc_s", patch()),
    "models_genesis": Entry("models_genesis", "models_genesis_resenc_s", patch()),
    "simclr": Entry("two_views", "simclr_resenc_s", VIEWS),
    "vicreg": Entry("two_views", "vicreg_resenc_s", VIEWS),
    "voco": Entry("voco", "voco_resenc_s", CROPS),
}


def load(name: str, data: Data, out: Path, more: list[str]) -> config.Recipe:
    """The recipe of a task on a data set, its run below `out`; `more`: further overrides."""
    entry = ENTRIES[name]
    given = [*COMMON, f"run.steps={STEPS}", *entry.settings, *entry.by_data.get(data.name, ())]
    given += [f"run.dir={out / data.name / name}", f"data.store={data.store}"]
    given += [f"data.exclude={data.split}"] if data.exclude else []
    return config.load(entry.recipe, [*given, *more])
