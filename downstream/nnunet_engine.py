"""The real nnU-Net as a measure: its planning, training and prediction, with and without the exported weights.

Isensee et al., nnU-Net (Nature Methods 2021) and nnU-Net revisited (MICCAI 2024). Every arm trains the network of its
run in nnU-Net's own configuration, on the labelled patients of the cell, by nnU-Net's loss, augmentation and schedule;
a pre-trained arm starts from `ssl3d export --to nnunet`, scratch from nnU-Net's own initial weights. Its program is
called as a user calls it, in folders below OUT/work, so that it may live in an environment of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np

from downstream.arms import Arm
from downstream.context import WORK, Cell, Context
from downstream.inference import read_classes, read_whole
from downstream.measure import Measure, faults, positive
from downstream.nnunet_client import Client, version
from downstream.scoring import finish, keep_picture, score_case
from ssl3d.export.nnunet import export_nnunet
from ssl3d.export.nnunet_plans import CONFIGURATION, PARENT
from ssl3d.export.source import Source
from ssl3d.regions import Size3
from ssl3d.seeding import mix

DATASET, NUMBER = "Dataset501_Cell", 501
TRAINER = "SSL3DCell"
NETWORKS = ("ssl3d.models.resenc.ResEncUNet", "ssl3d.models.plain_unet.PlainConvUNet")
_CHANNELS = {"ct": "CT"}  # what nnU-Net normalises by a window; all else by z-score


@dataclass(kw_only=True)
class NnUNet(Measure):
    """Fine-tuning by nnU-Net.

    `epochs` of `iterations` steps (nnU-Net's own are 1000 of 250); `planner`: nnU-Net's; `patch_size` and `batch_size`
    replace what it plans; `mirroring`: predictions are averaged over flips, as nnU-Net does. `environment`: folder of
    the virtual environment that holds nnunetv2 (null: that of ssl3d); `loaders`: processes that augment. Repeats are as
    equal as nnU-Net makes them, not to the bit.
    """

    epochs: int = 1000
    iterations: int = 250
    seeds: int | list[int] = 3
    planner: str = "nnUNetPlannerResEncL"
    patch_size: Size3 | None = None
    batch_size: int | None = None
    mirroring: bool = True
    environment: str | None = None
    loaders: int = 4

    TITLE: ClassVar[str] = "nnU-Net"
    PICTURES: ClassVar[bool] = True

    def last_step(self) -> int:
        """See Measure.last_step."""
        return self.epochs * self.iterations

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        own = [
            (self.epochs > 0, "epochs", self.epochs, "above 0"),
            (self.iterations > 0, "iterations", self.iterations, "above 0"),
            (self.batch_size is None or self.batch_size > 1, "batch_size", self.batch_size, "null or above 1"),
            (self.loaders >= 0, "loaders", self.loaders, "0 or more"),
        ]
        return [*super().check(key), *positive(key, "patch_size", self.patch_size), *faults(key, own)]

    def settings(self) -> dict[str, Any]:
        """See Measure.settings; of the environment, nnU-Net's version counts."""
        values = {k: v for k, v in super().settings().items() if k not in ("environment", "loaders")}
        return values | {"nnunetv2": version(self._environment)}

    def sizes(self) -> dict[str, Size3]:
        """See Measure.sizes."""
        return {} if self.patch_size is None else {"patch_size": self.patch_size}

    def init(self, arm: Arm) -> str:
        """See Measure.init."""
        if arm.is_scratch:
            return "random"
        return "encoder+decoder" if _source(arm.run).trained_decoder else "encoder"

    def refuse(self, arm: Arm, key: str) -> None:
        """See Measure.refuse."""
        if version(self._environment) is None:
            where = self.environment or "the environment of ssl3d"
            raise ValueError(
                f"{key}: nnU-Net is not installed in {where}: pip install 'ssl3d[nnunet]', or name the folder of an "
                f"environment that has it as {key}.environment=DIR"
            )
        if arm.spec.target not in NETWORKS:
            raise ValueError(
                f"{key}: {arm.run or arm.name} is a {arm.spec.target.rpartition('.')[2]}, nnU-Net trains "
                f"{' and '.join(name.rpartition('.')[2] for name in NETWORKS)} here: leave it or the measure out"
            )

    def group(self, context: Context, cell: Cell) -> tuple[Any, ...]:
        """Cells of the same labelled and scored patients: they share what nnU-Net plans and preprocesses."""
        return (cell.measure, cell.labelled, cell.scored)

    def run(self, context: Context, cells: Sequence[Cell]) -> None:
        """Plan and preprocess once, then train, predict and score cell by cell."""
        base = context.out / WORK / f"nnunet-{context.key(cells[0])}"
        shutil.rmtree(base, ignore_errors=True)  # left by a kill
        client = Client(self._environment, base.resolve(), DATASET, self.loaders)
        write_dataset(context, cells[0], client.raw)
        client.call("nnUNetv2_plan_and_preprocess", "-d", str(NUMBER), "-pl", self.planner, "-c", PARENT,
                    "--verify_dataset_integrity", "-npfp", "1", "-np", "1")  # fmt: skip
        for cell in cells:
            _run_cell(context, self, cell, client)
        shutil.rmtree(base)

    @property
    def _environment(self) -> Path | None:
        return None if self.environment is None else Path(self.environment)


@lru_cache(maxsize=4)
def _source(run: str) -> Source:
    return Source.open(Path(run))


def write_dataset(context: Context, cell: Cell, raw: Path) -> None:
    """The cell's patients on the stored grid as nnU-Net's raw data: physical values, labels 1 to K, the scored as test.

    Labels that are no class of the suite are background; the ignore value becomes nnU-Net's ignore label.
    """
    channels = context.store.cell("modality", context.rows_of(cell.labelled)[0])
    for row in context.rows_of(cell.labelled):
        _write_image(context, row, raw / "imagesTr")
        _save(raw / "labelsTr" / f"{context.store.volume_id(row)}.nii.gz", _label(context, row), context, row)
    for row in context.rows_of(cell.scored):
        _write_image(context, row, raw / "imagesTs")
    labels = {"background": 0} | {name: i for i, name in enumerate(context.classes.values(), start=1)}
    if context.ignore is not None:
        labels["ignore"] = len(labels)
    content = {
        "channel_names": {str(c): _CHANNELS.get(kind, "MR") for c, kind in enumerate(channels)},
        "labels": labels,
        "numTraining": len(context.rows_of(cell.labelled)),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIO",
    }
    (raw / "dataset.json").write_text(json.dumps(content, indent=1))


def _write_image(context: Context, row: int, folder: Path) -> None:
    store = context.store
    stored = read_whole(store, row, "volumes").astype(np.float32)
    for channel, (values, scale, offset) in enumerate(zip(stored, store.cell("scale", row), store.cell("offset", row))):
        _save(folder / f"{store.volume_id(row)}_{channel:04d}.nii.gz", values * scale + offset, context, row)


def _label(context: Context, row: int) -> np.ndarray:
    count = len(context.classes)
    index = read_classes(context.store, row, context.classes, context.ignore, unknown=count + 1)
    return index.astype(np.uint8 if count < 255 else np.uint16)


def _save(path: Path, array: np.ndarray, context: Context, row: int) -> None:
    """A (Z,Y,X) array of the stored grid as NIfTI, whose axes are (x,y,z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.asarray(context.store.attributes(row).affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array.T), affine), path)


def _run_cell(context: Context, measure: NnUNet, cell: Cell, client: Client) -> None:
    """Train, predict and score one cell, and store it."""
    _prepare(context, measure, cell, client)
    weights = [] if cell.arm.is_scratch else ["-pretrained_weights", str(client.base / "export" / "checkpoint.pth")]
    device = ["-device", context.device.type]
    numbers = {
        "SSL3D_EPOCHS": str(measure.epochs),
        "SSL3D_ITERATIONS": str(measure.iterations),
        "SSL3D_SEED": str(mix(cell.seed, "nnU-Net") % 2**31),
    } | ({} if context.device.type == "cuda" else {"nnUNet_compile": "f"})
    setting = ["-p", client.plans.stem, "-tr", TRAINER]
    client.call("nnUNetv2_train", str(NUMBER), CONFIGURATION, "all", *setting, *weights, *device, **numbers)
    predictions = client.base / "predictions"
    flips = [] if measure.mirroring else ["--disable_tta"]
    client.call(
        "nnUNetv2_predict", "-d", str(NUMBER), "-i", str(client.raw / "imagesTs"), "-o", str(predictions),
        "-c", CONFIGURATION, "-f", "all", "-npp", "1", "-nps", "1", "--save_probabilities", *setting, *flips, *device,
        **numbers,
    )  # fmt: skip
    rows = []
    for patient in cell.scored:
        for row in context.rows[patient]:
            with np.load(predictions / f"{context.store.volume_id(row)}.npz") as content:
                probabilities = content["probabilities"].astype(np.float32)
            keep_picture(context, cell, row, probabilities)
            rows += score_case(context, patient, row, probabilities)
    finish(context, cell, rows)


def _prepare(context: Context, measure: NnUNet, cell: Cell, client: Client) -> None:
    """Put the arm's network into the plans, export its weights, lay our trainer where nnU-Net looks for it."""
    for name in ("export", "results", "predictions"):
        shutil.rmtree(client.base / name, ignore_errors=True)
    (client.base / "trainer").mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("nnunet_trainer.py"), client.base / "trainer" / "ssl3d_cell.py")
    content: dict[str, Any] = json.loads(client.plans.read_text())
    planned: Mapping[str, Any] = content["configurations"][PARENT]
    content["configurations"] = {PARENT: dict(planned) | _overrides(measure)}
    client.plans.write_text(json.dumps(content))
    source = Source(cell.arm.backbone(0)) if cell.arm.is_scratch else _source(cell.arm.run)
    export_nnunet(source, client.base / "export", plans=client.plans, dataset_json=client.raw / "dataset.json")
    content = json.loads(client.plans.read_text())
    content["configurations"][CONFIGURATION] |= _overrides(measure)
    client.plans.write_text(json.dumps(content))


def _overrides(measure: NnUNet) -> dict[str, Any]:
    chosen = {"patch_size": measure.patch_size, "batch_size": measure.batch_size}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in chosen.items() if v is not None}
