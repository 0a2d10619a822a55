"""nnU-Net's plans: read a user's, add our configuration to it, or write a whole plans file like the pre-training."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ssl3d.export.source import Source
from ssl3d.files import write_json
from ssl3d.models.transfer import TensorOutcome
from ssl3d.regions import Size3

PARENT = "3d_fullres"
CONFIGURATION = "3d_fullres_ssl3d"
PLANS_NAME = "ssl3dPlans"
_NEAR = 8  # names that a sentence lists


@dataclass
class Ready:
    """What is written for nnU-Net: a filled `network`, the record of its `tensors`, its `architecture` block and the
    `configured` entry of the plans; `trainer`: nnU-Net's class that builds it; `out_channels` where they are fixed."""

    network: nn.Module
    tensors: list[TensorOutcome]
    architecture: dict[str, Any]
    configured: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    trainer: str = "nnUNetTrainer"
    out_channels: int | None = None


@dataclass
class Plans:
    """A user's plans file: `path`, its whole `content`, and the resolved configuration `parent` (3d_fullres)."""

    path: Path
    content: dict[str, Any]
    parent: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Plans:
        """Raises FileNotFoundError or ValueError, naming the file, when it is no plans file of a 3D data set."""
        wanted = "the plans of your data set, such as nnUNet_preprocessed/DATASET/nnUNetResEncUNetLPlans.json"
        content = read_json(path, wanted)
        configurations = content.get("configurations")
        if not isinstance(configurations, dict) or "dataset_name" not in content:
            raise ValueError(f"'{path}' is not an nnU-Net plans file (no dataset_name, configurations); give {wanted}")
        parent: dict[str, Any] = {}
        name, visited = PARENT, set()
        while name and name not in visited:
            visited.add(name)
            parent = {**configurations.get(name, {}), **parent}
            name = configurations.get(name, {}).get("inherits_from", "")
        if len(parent.get("patch_size", ())) != 3:
            raise ValueError(f"'{path}' has no configuration '{PARENT}': plan the data set in 3D first")
        return cls(path, content, parent)

    @property
    def identifier(self) -> str:
        """What nnU-Net's -p wants: the file's name without .json."""
        return self.path.stem

    @property
    def dataset(self) -> str:
        """The data set's name, as DatasetXXX_Name."""
        return str(self.content["dataset_name"])

    @property
    def channels(self) -> int | None:
        """How many image channels were planned for: one normalisation each."""
        schemes = self.parent.get("normalization_schemes")
        return len(schemes) if isinstance(schemes, list) and schemes else None

    @property
    def architecture(self) -> dict[str, Any]:
        """The network that was planned. Raises ValueError when these plans say none (older nnU-Net)."""
        block = self.parent.get("architecture")
        if not isinstance(block, dict) or not {"network_class_name", "arch_kwargs"} <= set(block):
            raise ValueError(
                f"'{self.path}' has no architecture in '{PARENT}': plan the data set with nnU-Net 2.6 or later, or "
                "leave --architecture out"
            )
        return {"_kw_requires_import": [], **block}

    def add(self, configuration: dict[str, Any]) -> Path | None:
        """Add our configuration to the file, atomically; returns the backup of the old file, None if it was equal."""
        content = copy.deepcopy(self.content)
        content["configurations"][CONFIGURATION] = configuration
        if content == self.content:
            return None
        backup = keep_backup(self.path)
        write_json(self.path, content, indent=4)  # as nnU-Net writes them
        return backup


def read_channels(dataset_json: Path) -> int:
    """Image channels of a data set, from its dataset.json. Raises FileNotFoundError, ValueError naming the file."""
    wanted = "the dataset.json of your data set"
    content = read_json(dataset_json, wanted)
    names = content.get("channel_names") or content.get("modality")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"'{dataset_json}' names no channel_names and no modality; give {wanted}")
    return len(names)


def fit_patch(patch: Sequence[int], stride: Size3) -> list[int]:
    """The nearest patch that the network can take: multiples of its stride, more than one voxel at the bottleneck."""
    cells = [max(1, round(n / s)) for n, s in zip(patch, stride)]
    if cells == [1, 1, 1]:
        cells[max(range(3), key=lambda axis: patch[axis] / stride[axis])] = 2
    return [c * s for c, s in zip(cells, stride)]


def read_classes(dataset_json: Path) -> int:
    """Output channels of nnU-Net's network: a class a label with the background, or one a region.

    Raises FileNotFoundError, ValueError naming the file.
    """
    content = read_json(dataset_json, "the dataset.json of your data set")
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise ValueError(f"'{dataset_json}' names no labels; give the dataset.json of your data set")
    values = [value for name, value in labels.items() if name != "ignore"]
    if any(isinstance(value, list) and len(value) > 1 for value in values):  # regions: a sigmoid each
        return sum(value not in (0, [0]) for value in values)
    return len({value[0] if isinstance(value, list) else value for value in values})


def configuration(source: Source, architecture: dict[str, Any], plans: Plans | None) -> dict[str, Any]:
    """The configuration "3d_fullres_ssl3d": the data of 3d_fullres, `architecture`, a patch that it can take.

    With `plans` patch and batch are those that nnU-Net planned for the data; else the patch of the pre-training. The
    architecture that nnU-Net planned itself takes the planned patch.
    """
    if plans and architecture == plans.parent.get("architecture"):
        return {
            "inherits_from": PARENT,
            "architecture": architecture,
            "patch_size": list(plans.parent["patch_size"]),
            "batch_size": plans.parent.get("batch_size", 2),
        }
    recommended = getattr(source.backbone, "recommended", {"patch_size": (128, 128, 128), "batch_size": 2})
    patch = plans.parent["patch_size"] if plans else source.patch_size or recommended["patch_size"]
    batch = plans.parent.get("batch_size", 2) if plans else recommended["batch_size"]
    return {
        "inherits_from": PARENT,
        "architecture": architecture,
        "patch_size": fit_patch(patch, source.backbone.total_stride),
        "batch_size": batch,
    }


def plans_like_pretraining(source: Source, configured: dict[str, Any], plans: Plans) -> dict[str, Any] | None:
    """Whole plans that also resample and normalise as the pre-training did; None when its spacing is not known.

    Spacings follow the plans' transpose_forward. CT channels get the clip, mean and std of the pre-training; other
    channels keep nnU-Net's z-score.
    """
    spacing = source.provenance.get("spacing")
    if not spacing:
        return None
    parent = copy.deepcopy(plans.parent)
    order = plans.content.get("transpose_forward", [0, 1, 2])
    own = [float(spacing[axis]) for axis in order]
    old = parent.get("spacing", own)
    median = parent.get("median_image_size_in_voxels")
    if median:
        parent["median_image_size_in_voxels"] = [n * a / b for n, a, b in zip(median, old, own)]
    parent.update({k: v for k, v in configured.items() if k != "inherits_from"})
    parent.update(spacing=own, data_identifier=f"{PLANS_NAME}_{PARENT}")
    parent.pop("inherits_from", None)
    content = copy.deepcopy(plans.content)
    content.update(plans_name=PLANS_NAME, configurations={PARENT: parent})
    window = (source.provenance.get("normalisation") or {}).get("modalities", {}).get("ct") or []
    properties = content.get("foreground_intensity_properties_per_channel", {})
    for channel, scheme in enumerate(parent.get("normalization_schemes", [])):
        if scheme == "CTNormalization" and len(window) == 1 and str(channel) in properties:
            w = window[0]
            properties[str(channel)].update(
                mean=w["mean"], std=w["std"], percentile_00_5=w["low"], percentile_99_5=w["high"]
            )
    return content


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError, or ValueError saying that `path` is not `what`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file '{path}'{_near(path)}; give {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"'{path}' is not readable as JSON ({error}); give {what}") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a JSON {type(content).__name__}, not an object; give {what}")
    return content


def _near(path: Path) -> str:
    """What may have been meant with nnU-Net's file `path`, which is not there: half a sentence, or nothing."""
    if path.is_absolute() and path.parts[1].startswith("Dataset"):  # "$nnUNet_preprocessed/Dataset..."
        return " (is nnUNet_preprocessed set in this terminal?)"
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:
        return ""
    found = folder.glob("*Plans*.json" if folder == path.parent else "Dataset*")
    names = sorted(one.name for one in found if not any(s.startswith(".bak") for s in one.suffixes))
    more = ", ..." if len(names) > _NEAR else ""
    return f"; '{folder}' holds {', '.join(names[:_NEAR])}{more}" if names else ""


def keep_backup(path: Path) -> Path:
    """Copy `path` beside itself as <stem>.bak<suffix>, .bak2, .bak3, ...: the first name that is free."""
    number = 1
    while True:
        backup = path.with_name(f"{path.stem}.bak{number if number > 1 else ''}{path.suffix}")
        try:
            with backup.open("xb") as file:  # 'x': an older backup is never overwritten
                file.write(path.read_bytes())
            return backup
        except FileExistsError:
            number += 1
