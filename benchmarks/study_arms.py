"""What the study of docs/results/protocol.md pre-trains: its data sets, and on each the methods with their seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from learning_data import Data
from learning_tasks import COMMON, DISTILLED, VIEWS
from learning_tasks import VIT as TOKENS

from ssl3d import config

STEPS = 2_500
RESENC, VIT = "resenc", "vit"
# Of a study that is not called as its data.
DATA_OF = dict.fromkeys(("beyond", "onward", "matched", "longer", "speed"), "hippocampus")
CROP = (24, 32, 24)
PATCH = {"hippocampus": CROP} | dict.fromkeys(("phantom", "pathology", "pathology_many", "ct"), (32, 32, 32))
SHARED = (
    f"run.steps={STEPS}", "run.log_every=50", "run.checkpoint_every=500", "optim.name=adamw", "optim.lr=2e-3",
    "optim.schedule=cosine", "optim.warmup_steps=100", "data.batch_size=2",
)  # fmt: skip
RATE = "optim.lr=5e-4"
LONGER = (f"run.steps={STEPS}",)  # where the settings of learning_tasks.py say less
VIT_MODEL = "model={_target_: ssl3d.models.vit.ViT, size: tiny, in_channels: 1, patch_size: [4, 4, 4]}"


@dataclass(frozen=True)
class Method:
    """A method on a network: its shipped recipe, what is overridden in it, and whether it has a patch_size to fit.

    `reads`: it learns from the data set; else from what it makes itself. `beside`: data sets it reads besides.
    `teacher`, `init`: runs on the same data, which it learns from or goes on with.
    """

    recipe: str
    settings: tuple[str, ...] = ()
    patch: bool = True
    reads: bool = True
    teacher: str | None = None
    init: str | None = None
    beside: tuple[str, ...] = ()

    @property
    def after(self) -> str | None:
        """The run that must be finished before this one begins."""
        return self.teacher or self.init


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
    # From here on at the rates of their recipes and benchmarks/learning_tasks.py, for 2e-3 was chosen for none of them.
    ("dino", RESENC): Method(
        "dino_resenc_s",
        (*DISTILLED, "task.global_size=[24, 32, 24]", "task.local_size=[8, 16, 16]", *LONGER, RATE),
        patch=False,
    ),
    ("dino", VIT): Method(
        "dino_vit_s",
        (*TOKENS, *DISTILLED, "task.global_size=[24, 32, 24]", "task.local_size=[8, 16, 12]", *LONGER, RATE),
        patch=False,
    ),
    ("jepa", VIT): Method("jepa_vit_s", (*TOKENS, RATE)),
    ("lejepa", RESENC): Method("lejepa_resenc_s", (*VIEWS, *LONGER), patch=False),
    ("graph_matching", RESENC): Method(
        "graph_matching_resenc_s", (*VIEWS, *LONGER, "data.batch_size=8"), patch=False
    ),
    # With epsilon 0.05 and 5e-4 two uniform codes agreed for 215 steps; with these the loss left chance after 120.
    ("joint_clustering", RESENC): Method(
        "joint_clustering_resenc_s",
        ("task.crop_size=[8, 24, 24]", "task.epsilon=0.03", "data.batch_size=8"),
        patch=False,
    ),
    ("cuts", RESENC): Method("cuts_resenc_s", ("optim.lr=1e-3",)),
    ("synthesis", RESENC): Method(
        "synthesis_resenc_s", ("task.patch_size=[32, 32, 32]", RATE), patch=False, reads=False
    ),
    ("mae_local_contrast", RESENC): Method(
        "combined_mae_local_contrast_resenc_s",
        (
            "task.tasks.mae.patch_size=[24, 32, 24]",
            "task.tasks.mae.mask_block=4",
            "task.tasks.places.patch_size=[24, 32, 24]",
            RATE,
        ),
        patch=False,
    ),
    # Half as wide as its teacher.
    ("distillation", RESENC): Method("distillation_resenc_s", ("optim.lr=1e-3",), teacher="position_mae_resenc_0"),
    # MAE on the data set, from weights that have seen no scan, and distilled to them all the while.
    ("continual_mae", RESENC): Method(
        "continual_mae_resenc_s",
        (
            "task.tasks.mae.patch_size=[24, 32, 24]",
            "task.tasks.mae.mask_block=4",
            "task.tasks.keep.patch_size=[24, 32, 24]",
            RATE,
        ),
        patch=False,
        init="synthesis_resenc_0",
    ),
    # One network of four channels for MR and CT, each as often as the other.
    ("multimodal_mae", RESENC): Method("multimodal_mae_resenc_s", ("task.mask_block=4",), beside=("ct",)),
}  # fmt: skip

# {study: {(method, network): pre-training runs}}; a study is called as its data set, or DATA_OF says which that is
RUNS: dict[str, dict[tuple[str, str], int]] = {
    "hippocampus": {
        ("position_mae", RESENC): 3, ("mae", RESENC): 3, ("position", RESENC): 1, ("volume_fusion", RESENC): 1,
        ("voco", RESENC): 1, ("local_contrast", RESENC): 1, ("position_mae", VIT): 1, ("mae", VIT): 1,
    },
    "beyond": {
        ("position_mae", RESENC): 1, ("dino", RESENC): 1, ("dino", VIT): 1, ("jepa", VIT): 1, ("lejepa", RESENC): 1,
        ("graph_matching", RESENC): 1, ("joint_clustering", RESENC): 1, ("cuts", RESENC): 1, ("synthesis", RESENC): 1,
        ("mae_local_contrast", RESENC): 1, ("distillation", RESENC): 1,
    },
    "onward": {
        ("synthesis", RESENC): 3, ("joint_clustering", RESENC): 3, ("position_mae", RESENC): 1,
        ("continual_mae", RESENC): 1, ("multimodal_mae", RESENC): 1,
    },
    "matched": {("position_mae", RESENC): 3, ("mae", RESENC): 3},
    "longer": {("position_mae", RESENC): 3},
    "speed": {("position_mae", RESENC): 3, ("mae", RESENC): 3},
    "phantom": {
        ("position_mae", RESENC): 1, ("mae", RESENC): 1, ("volume_fusion", RESENC): 1, ("mae", VIT): 1,
    },
    "pathology": {("position_mae", RESENC): 1, ("mae", RESENC): 1, ("mae", VIT): 1},
    "pathology_many": {("mae", RESENC): 3, ("position_mae", RESENC): 1, ("mae", VIT): 1},
    "ct": {("position_mae", RESENC): 1, ("mae", RESENC): 1},
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One pre-training run, shared by the studies on its data."""

    data: str
    method: str
    network: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder: "mae_resenc_0"."""
        return f"{self.method}_{self.network}_{self.seed}"


def arms(study: str) -> list[Arm]:
    """The runs of a study, those with several seeds seed by seed."""
    wanted = RUNS[study]
    every = [Arm(DATA_OF.get(study, study), m, n, seed) for (m, n), count in wanted.items() for seed in range(count)]
    return sorted(every, key=lambda arm: arm.seed)


def recipe(arm: Arm, data: Data, out: Path) -> config.Recipe:
    """The completed recipe of a run, in out/<data>/<name>; of the data set it reads no patient that others need.

    What is read beside it lies next to its store (learning_data.prepare).
    """
    method, folder = METHODS[arm.method, arm.network], out / arm.data
    given = [*COMMON, *SHARED, f"run.seed={arm.seed}", f"run.dir={folder / arm.name}"]
    stores = [data.store, *(data.store.with_name(f"{name}.zarr") for name in method.beside)]
    given += [f"data.store=[{','.join(str(store) for store in stores)}]"] if method.reads else []
    if method.reads and data.only_pool:  # of several stores the pool of one cannot be all that is included
        given += [f"data.{'exclude' if method.beside else 'include'}={data.split}"]
    given += [f"task.patch_size={list(PATCH[arm.data])}"] if method.patch else []
    given += [f"task.teacher.init={folder / method.teacher}"] if method.teacher else []
    given += [f"model.init={folder / method.init}"] if method.init else []
    return config.load(method.recipe, [*given, *method.settings])
