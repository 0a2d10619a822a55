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


# The phantom's organs differ by texture and context alone: with smaller patches, or fewer steps of a ViT, the features
# of these tasks were no better than random ones on its validation patients.
WIDE = {"phantom": ("task.patch_size=[32, 32, 32]",)}
LONG = {"phantom": ("run.steps=2_000", "optim.lr=1e-3")}


@dataclass(frozen=True)
class Entry:
    """A task: its page in docs/methods, its small recipe, what is overridden for all data sets, and for single ones.

    `window`: voxels (z,y,x) it is probed in, for a ViT its training crops, as it has learnt no positions beyond them;
    None: the data set's. `reads`: it is trained on the data set; else on what it makes itself. `teacher`: the task
    whose run on the same data it learns from.
    """

    page: str
    recipe: str
    settings: tuple[str, ...]
    by_data: dict[str, tuple[str, ...]] = field(default_factory=dict)
    window: tuple[int, int, int] | None = None
    reads: bool = True
    teacher: str | None = None


CROP = (16, 32, 24)


def patch(*more: str) -> tuple[str, ...]:
    """Two patches a step."""
    return (f"task.patch_size={list(CROP)}", "data.batch_size=2", *more)


FINE = (
    "task.mask_block=4",
    "model.arch_kwargs={n_stages: 3, features_per_stage: [16, 32, 64], n_blocks_per_stage: [1, 1, 1]}",
)
SQUARE = ("task.patch_size=[16, 24, 24]",)  # quarter turns about z
VIEWS = ("task.patch_size=[16, 24, 24]", "data.batch_size=4", "optim.lr=1e-3")
# Crops of a few voxels in a small scan: three stages, no flips, and more random crops for each region that is read.
CROPS = (
    "task.crop_size=[16, 24, 16]", "task.grid=[2, 2, 2]", "task.crops=4", "task.augment=null", "data.batch_size=1",
    "optim.lr=2e-3", "run.steps=200",
    "model.arch_kwargs={n_stages: 3, features_per_stage: [16, 32, 64], n_blocks_per_stage: [1, 1, 1]}",
)  # fmt: skip
TEACHER = ("run.steps=1_000", "task.momentum=0.99")  # a ViT that learns from a teacher takes longer
DISTILLED = (
    "run.steps=1_000", f"task.global_size={list(CROP)}", "task.prototypes=256", "task.temperature_steps=300",
)  # fmt: skip
ENTRIES: dict[str, Entry] = {
    "mae": Entry("mae", "mae_resenc_s", patch("task.mask_block=4"), WIDE),
    # Hidden blocks of the recipe's 8 voxels are too coarse for the phantom's textures: three stages take blocks of 4.
    "sparse_mae": Entry("sparse_mae", "sparse_mae_resenc_s", patch(), {"phantom": (*WIDE["phantom"], *FINE)}),
    "simmim": Entry("simmim", "simmim_vit_s", patch(*VIT), LONG, CROP),
    "hi_end_mae": Entry("hi_end_mae", "hi_end_mae_vit_s", patch(*VIT), window=CROP),
    "position": Entry("position", "position_mae_resenc_s", patch("task.mask_share=0")),
    "position_mae": Entry("position", "position_mae_resenc_s", patch()),
    "volume_fusion": Entry("volume_fusion", "volume_fusion_resenc_s", patch()),
    "models_genesis": Entry("models_genesis", "models_genesis_resenc_s", patch(), WIDE),
    "local_contrast": Entry("local_contrast", "local_contrast_resenc_s", patch("task.pairs=GR", "data.batch_size=4")),
    "swin_unetr_pretext": Entry("swin_unetr_pretext", "swin_unetr_pretext_resenc_s", patch(*SQUARE), WIDE),
    "simclr": Entry("two_views", "simclr_resenc_s", VIEWS),
    "vicreg": Entry("two_views", "vicreg_resenc_s", VIEWS),
    # After 200 steps predicted and true overlap correlated by 0.498 on the validation patients, after 600 by 0.613.
    "voco": Entry("voco", "voco_resenc_s", CROPS, {"hippocampus": ("run.steps=600",)}),
    "dino": Entry("dino", "dino_vit_s", (*VIT, *DISTILLED, "task.local_size=[8, 16, 12]"), window=CROP),
    "dino_resenc": Entry("dino", "dino_resenc_s", (*DISTILLED, "task.local_size=[8, 16, 16]")),
    "jepa": Entry("jepa", "jepa_vit_s", patch(*VIT, *TEACHER), window=CROP),
    "lejepa": Entry("lejepa", "lejepa_resenc_s", VIEWS),
    "graph_matching": Entry("graph_matching", "graph_matching_resenc_s", (*VIEWS, "data.batch_size=8")),
    "joint_clustering": Entry("joint_clustering", "joint_clustering_resenc_s", ("task.crop_size=[8, 24, 24]",)),
    "cuts": Entry("cuts", "cuts_resenc_s", patch(), WIDE),
    "synthesis": Entry("synthesis", "synthesis_resenc_s", ("task.patch_size=[32, 32, 32]",), reads=False),
    "mae_local_contrast": Entry(
        "combined",
        "combined_mae_local_contrast_resenc_s",
        (
            f"task.tasks.mae.patch_size={list(CROP)}",
            "task.tasks.mae.mask_block=4",
            f"task.tasks.places.patch_size={list(CROP)}",
        ),
    ),
    # Half as wide as its teacher, whose features beat random ones on the phantom and the hippocampus.
    "distillation": Entry("distillation", "distillation_resenc_s", patch(), teacher="position_mae"),
}


def load(name: str, data: Data, out: Path, more: list[str]) -> config.Recipe:
    """The recipe of a task on a data set, its run below `out`; `more`: further overrides."""
    entry = ENTRIES[name]
    given = [*COMMON, f"run.steps={STEPS}", *entry.settings, *entry.by_data.get(data.name, ())]
    given += [f"run.dir={out / data.name / name}"]
    given += [f"data.store={data.store}"] if entry.reads else []
    given += [f"data.include={data.split}"] if entry.reads and data.only_pool else []  # the pool of a split
    given += [f"task.teacher.init={out / data.name / entry.teacher}"] if entry.teacher else []
    return config.load(entry.recipe, [*given, *more])
