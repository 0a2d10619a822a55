"""What the study of docs/results/protocol.md pre-trains: its data sets, and on each the methods with their seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from learning_data import Data
from learning_tasks import COMMON
from learning_tasks import VIT as TOKENS

from ssl3d import config

STEPS = 2_500
RESENC, VIT = "resenc", "vit"
PATCH = {"hippocampus": (24, 32, 24), "phantom": (32, 32, 32), "pathology": (32, 32, 32), "ct": (32, 32, 32)}
SHARED = (
    f"run.steps={STEPS}", "run.log_every=50", "run.checkpoint_every=500", "optim.name=adamw", "optim.lr=2e-3",
    "optim.schedule=cosine", "optim.warmup_steps=100", "data.batch_size=2",
)  # fmt: skip
VIT_MODEL = "model={_target_: ssl3d.models.vit.ViT, size: tiny, in_channels: 1, patch_size: [4, 4, 4]}"


@dataclass(frozen=True)
class Method:
    """A method on a network: its shipped recipe, what is overridden in it, and whether it has a patch_size to fit."""

    recipe: str
    settings: tuple[str, ...] = ()
    patch: bool = True


METHODS: dict[tuple[str, str], Method] = {
    ("mae", RESENC): Method("mae_resenc_s", ("task.mask_block=4",)),
    ("position_mae", RESENC): Method("position_mae_resenc_s"),
    ("position", RESENC): Method("position_mae_resenc_s", ("task.mask_share=0",)),
    ("sparse_mae", RESENC): Method("sparse_mae_resenc_s"),
    ("volume_fusion", RESENC): Method("volume_fusion_resenc_s"),
    ("local_contrast", RESENC): Method("local_contrast_resenc_s", ("task.pairs=GR", "data.batch_size=4")),
    # Crops of half a scan: two along each axis, of which two more are drawn at random.
    ("voco", RESENC): Method(
        "voco_resenc_s",
        ("task.crop_size=[16, 24, 16]", "task.grid=[2, 2, 2]", "task.crops=4", "task.augment=null",
         "data.batch_size=1"),
        patch=False,
    ),
    # Of blocks of 4 voxels less their own mean and deviation nothing was predicted: the loss stayed at 1.
    ("mae", VIT): Method("mae_vit_s", (*TOKENS, "task.mask_block=4", "task.normalise_target=false", "optim.lr=1e-3")),
    ("position_mae", VIT): Method("position_mae_resenc_s", (VIT_MODEL,)),
}  # fmt: skip

# {data set: {(method, network): pre-training runs}}
RUNS: dict[str, dict[tuple[str, str], int]] = {
    "hippocampus": {
        ("position_mae", RESENC): 3, ("mae", RESENC): 3, ("position", RESENC): 1, ("volume_fusion", RESENC): 1,
        ("voco", RESENC): 1, ("local_contrast", RESENC): 1, ("position_mae", VIT): 1, ("mae", VIT): 1,
    },
    "phantom": {
        ("position_mae", RESENC): 1, ("mae", RESENC): 1, ("volume_fusion", RESENC): 1, ("mae", VIT): 1,
    },
    "pathology": {("position_mae", RESENC): 1, ("mae", RESENC): 1, ("mae", VIT): 1},
    "ct": {("position_mae", RESENC): 1, ("mae", RESENC): 1},
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One pre-training run."""

    data: str
    method: str
    network: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder: "mae_resenc_0"."""
        return f"{self.method}_{self.network}_{self.seed}"


def arms(data: str) -> list[Arm]:
    """The runs of a data set, those with several seeds seed by seed."""
    wanted = RUNS[data]
    every = [Arm(data, m, n, seed) for (m, n), count in wanted.items() for seed in range(count)]
    return sorted(every, key=lambda arm: arm.seed)


def recipe(arm: Arm, data: Data, out: Path) -> config.Recipe:
    """The completed recipe of a run, in out/<data>/<name>; it reads the pool of the split alone."""
    method = METHODS[arm.method, arm.network]
    given = [*COMMON, *SHARED, f"run.seed={arm.seed}", f"run.dir={out / arm.data / arm.name}"]
    given += [f"data.store={data.store}"] + ([f"data.include={data.split}"] if data.only_pool else [])
    given += [f"task.patch_size={list(PATCH[arm.data])}"] if method.patch else []
    return config.load(method.recipe, [*given, *method.settings])
