"""Weights for MONAI: a strict state dict of MONAI's own network, in a bundle that builds, fills and runs it.

The bundle's preprocessing is that of the pre-training: the grid (z to Superior, y to Posterior, x to the patient's
Left), the spacing, the intensities. Its segmentation head is fresh: fine-tune before looking at predictions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
from torch import nn

from ssl3d import __version__
from ssl3d.export.folder import ExportFolder
from ssl3d.export.nnunet_adapt import fit
from ssl3d.export.nnunet_plans import read_channels, read_classes
from ssl3d.export.report import ExportReport
from ssl3d.export.source import Source
from ssl3d.models.backbone import Backbone
from ssl3d.models.init import aliases, check_finite
from ssl3d.models.segresnet import SegResNet
from ssl3d.models.swin import SIZES, SwinUNETR
from ssl3d.models.transfer import Part, TensorOutcome
from ssl3d.seeding import mix

_ROI = [96, 96, 96]  # where the patch of the pre-training is not known
_CLASSES = 2
_README = """# {name}, pre-trained by ssl3d

models/model.pt is the state dict of {target}; it loads with strict=True:

    python -c "
    import torch
    from monai.bundle import ConfigParser
    parser = ConfigParser()
    parser.read_config('configs/inference.json')
    parser['device'] = torch.device('cpu')
    network = parser.get_parsed_content('network')
    network.load_state_dict(torch.load('models/model.pt', weights_only=True), strict=True)
    "

The segmentation head ({heads}) is fresh: fine-tune first, save the state dict as models/finetuned.pt (an export
repeated here replaces model.pt), then (with pip install "monai[fire,ignite,nibabel]")

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir SCANS \\
        --checkpoint models/finetuned.pt

({summary}; {shares}.)
"""


def export_monai(
    source: Source | Backbone,
    out: Path,
    *,
    dataset_json: Path | None = None,
    in_channels: int | None = None,
    strict: bool = False,
) -> ExportReport:
    """Write a bundle to `out`: models/model.pt, configs/{{metadata,inference}}.json, docs/README.md; and the report.

    `dataset_json`: an nnU-Net dataset.json that says how many image channels and classes there are (else 2 classes).
    `in_channels`: image channels; a run of one channel is spread over C, repeated and divided by C.
    `strict`: refuse what is not copied bit by bit. Raises ValueError when MONAI has no such network, or on NaN or Inf.
    """
    source = Source(source) if isinstance(source, Backbone) else source
    backbone = source.backbone
    channels, classes = in_channels or backbone.in_channels, _CLASSES
    if dataset_json is not None:
        channels, classes = read_channels(Path(dataset_json)), read_classes(Path(dataset_json))
        if in_channels not in (None, channels):
            raise ValueError(f"'{dataset_json}' has {channels} image channels, --in-channels says {in_channels}")
    if channels < 1 or (channels != backbone.in_channels and backbone.in_channels != 1):
        raise ValueError(
            f"--to monai: {channels} image channels cannot be made of the run's {backbone.in_channels}; only a run of "
            "one channel can be adapted to another number"
        )
    check_finite(backbone.state_dict(), "the run")
    definition = network_def(backbone, channels, classes)
    network = build(definition)
    report = ExportReport.of(source, "MONAI", in_channels=channels, out_channels=classes)
    report.tensors = _fill(network, source)
    if strict:
        report.refuse_inexact("--to monai")
    if not source.trained_decoder:
        report.notes.append("the decoder is fresh: this run trained the encoder only")
    report.notes.append("the segmentation head is fresh: fine-tune before predicting")
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    readme = _README.format(
        name=type(backbone).__name__,
        target=definition["_target_"],
        heads=", ".join(t.name for t in report.tensors if t.part == "head"),
        summary=report.summary(),
        shares=report.shares(),
    )
    with ExportFolder(out, "monai") as folder:
        folder.write("models/model.pt", lambda path: torch.save(state, path))
        folder.write_json("configs/inference.json", inference(source, definition))
        folder.write_json("configs/metadata.json", _metadata(source, channels, classes))
        folder.write_text("docs/README.md", readme)
        report.write(folder)
    return report


def network_def(backbone: Backbone, channels: int, classes: int) -> dict[str, Any]:
    """MONAI's own network like `backbone`, as a bundle defines it. Raises ValueError when there is none."""
    kwargs = backbone.spec().kwargs
    if isinstance(backbone, SwinUNETR):
        features, window = SIZES[kwargs["size"]]
        return {
            "_target_": "monai.networks.nets.SwinUNETR",
            "in_channels": channels,
            "out_channels": classes,
            "feature_size": features,
            "window_size": window,
            "use_v2": kwargs["use_v2"],
        }
    if isinstance(backbone, SegResNet):
        own = {key: kwargs[key] for key in ("init_filters", "blocks_down", "blocks_up", "upsample_mode")}
        target = "monai.networks.nets.SegResNet"
        return {"_target_": target, "in_channels": channels, "out_channels": classes, **own}
    raise ValueError(
        f"MONAI has no segmentation network like {type(backbone).__name__}: only SwinUNETR and SegResNet can be "
        "exported"
    )


def build(definition: dict[str, Any]) -> nn.Module:
    """The network of a definition, initialised from a fixed seed."""
    kwargs = {key: value for key, value in definition.items() if key != "_target_"}
    network_class = MonaiSwinUNETR if definition["_target_"].endswith("SwinUNETR") else MonaiSegResNet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(0, "MONAI export"))
        return network_class(**kwargs).float().eval()


def inference(source: Source, definition: dict[str, Any]) -> dict[str, Any]:
    """configs/inference.json: scans of `dataset_dir` through the network in sliding windows, back on their own grid."""
    spacing = source.provenance.get("spacing")
    keys: dict[str, Any] = {"keys": "image"}
    steps: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", **keys},
        {"_target_": "EnsureChannelFirstd", **keys},
        {"_target_": "Orientationd", **keys, "axcodes": "SPL", "labels": None},
    ]
    if spacing:
        steps.append({"_target_": "Spacingd", **keys, "pixdim": list(spacing), "mode": "bilinear"})
    steps += [{**step, **keys} for step in _intensities(source)]
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/predictions'",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": definition,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "scans": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': scan} for scan in @scans]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(source.patch_size or _ROI),
            "sw_batch_size": 1,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "Invertd", "keys": "pred", "orig_keys": "image", "transform": "@preprocessing",
                 "nearest_interp": False, "to_tensor": True},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "pred"},
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "initialize": [
            "$@network.load_state_dict(torch.load(@checkpoint, map_location=@device, weights_only=True), strict=True)",
        ],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def _modality(source: Source) -> tuple[str, list[dict[str, float]]]:
    """The modality that the run saw ('ct' only when it saw no other), and its numbers where they are one set."""
    modalities = (source.provenance.get("normalisation") or {}).get("modalities") or {}
    return ("ct", modalities["ct"]) if list(modalities) == ["ct"] else ("mr", [])


def _intensities(source: Source) -> list[dict[str, Any]]:
    """What the run did to intensities: CT by its window, mean and std; others by the volume's percentiles and z-score.

    The run took a volume's numbers from its valid voxels, a bundle has all of the image's.
    """
    modality, numbers = _modality(source)
    if modality == "ct" and len(numbers) == 1 and {"low", "high", "mean", "std"} <= set(numbers[0]):
        n = numbers[0]
        window = {"a_min": n["low"], "a_max": n["high"], "b_min": n["low"], "b_max": n["high"], "clip": True}
        return [
            {"_target_": "ScaleIntensityRanged", **window},
            {"_target_": "NormalizeIntensityd", "subtrahend": n["mean"], "divisor": n["std"]},
        ]
    return [
        {"_target_": "ClipIntensityPercentilesd", "lower": 0.5, "upper": 99.5, "channel_wise": True},
        {"_target_": "NormalizeIntensityd", "channel_wise": True},
    ]


def _fill(network: nn.Module, source: Source) -> list[TensorOutcome]:
    """Copy the backbone into MONAI's network; one outcome a tensor of the latter."""
    given, target = source.backbone.state_dict(), network.state_dict()
    encoder = source.backbone.encoder_parameter_names()
    outcomes = []
    for name in aliases(network):
        shape = tuple(target[name].shape)
        part: Part = "encoder" if name in encoder else "decoder" if name in given else "head"
        if part == "head":
            outcomes.append(TensorOutcome(name, "fresh", shape, "the segmentation head", part))
        elif part == "decoder" and not source.trained_decoder:
            outcomes.append(TensorOutcome(name, "fresh", shape, "the run did not train its decoder", part))
        else:
            value, how = fit(given[name], shape)
            with torch.no_grad():
                target[name].copy_(value)
            outcomes.append(TensorOutcome(name, "adapted" if how else "copied", shape, how, part))
    return outcomes


def _metadata(source: Source, channels: int, classes: int) -> dict[str, Any]:
    """configs/metadata.json."""
    modality, _ = _modality(source)
    roi = list(source.patch_size or _ROI)
    image = {
        "type": "image",
        "format": "hounsfield" if modality == "ct" else "magnitude",
        "modality": modality.upper(),
        "num_channels": channels,
        "spatial_shape": roi,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(c): f"image {c}" for c in range(channels)},
    }
    prediction = {
        "type": "image",
        "format": "segmentation",
        "num_channels": classes,
        "spatial_shape": roi,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {"0": "background", **{str(c): f"class {c}" for c in range(1, classes)}},
    }
    name = type(source.backbone).__name__
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "pre-trained weights, segmentation head fresh"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.2", "pytorch-ignite": "0.4.11", "fire": "0.4"},
        "name": f"{name} pre-trained by ssl3d",
        "task": "starting weights for 3D segmentation",
        "description": f"{name} pre-trained without labels by ssl3d {__version__}; the head is fresh",
        "authors": "the user of ssl3d who trained it",
        "copyright": "see the licence of the data it was trained on",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}},
    }
