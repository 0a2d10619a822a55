"""Weights for nnU-Net's `nnUNetv2_train ... -pretrained_weights FILE`.

nnU-Net wants every name of its own network, each tensor under all of its two or four names; it takes NaN, half
precision and names that disagree without a word. So the real network is built, filled, saved, read back and compared.
"""

from __future__ import annotations

import copy
import importlib
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ssl3d.export import nnunet_primus
from ssl3d.export.folder import ExportFolder
from ssl3d.export.nnunet_adapt import differences, fill, first_difference
from ssl3d.export.nnunet_howto import TRAINER, how_to
from ssl3d.export.nnunet_plans import (
    CONFIGURATION,
    PARENT,
    PLANS_NAME,
    Plans,
    Ready,
    configuration,
    plans_like_pretraining,
    read_channels,
)
from ssl3d.export.report import ExportReport
from ssl3d.export.source import Source
from ssl3d.models.backbone import Backbone
from ssl3d.models.init import aliases, check_finite
from ssl3d.models.nnunet import import_op
from ssl3d.models.primus import Primus
from ssl3d.models.transfer import MINIMUM
from ssl3d.seeding import mix

Choice = Literal["own", "planned"]
TRAINERS, TRIAL = (Path(__file__).with_name(name) for name in ("nnunet_trainers.py", "nnunet_trial.py"))
_BASE = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer\n"  # a line of TRIAL


def export_nnunet(
    source: Source | Backbone,
    out: Path,
    *,
    plans: Path | None = None,
    dataset_json: Path | None = None,
    in_channels: int | None = None,
    architecture: Choice = "own",
    minimum: float = MINIMUM,
    strict: bool = False,
) -> ExportReport:
    """Write checkpoint.pth, architecture.json, plans_fragment.json, HOW_TO.md, trainers/ and the report to `out`.

    `plans`: the data set's own plans file; the configuration "3d_fullres_ssl3d" is added to it, the old file is kept
    beside it, and ssl3dPlans.json (whole plans with the spacing and CT window of the pre-training) is written to `out`.
    `architecture`: that configuration holds the run's 'own' network, filled exactly; or the one 'planned' in
    3d_fullres, filled as far as ssl3d.export.nnunet_adapt says, else refused with the first difference.
    Image channels of the data set come from `in_channels`, `dataset_json` or `plans`, which must agree; a network
    pre-trained on one channel is adapted to C by repeating its stem and dividing by C. A Primus is written for
    nnU-Net's Primus trainers, which needs `dataset_json` for the number of classes.
    `minimum`: refuse when less of the encoder's parameters would be filled. `strict`: refuse when any encoder or
    decoder tensor is not copied bit by bit, or works on another grid.
    Raises ValueError, FileNotFoundError naming the file, option or tensor; nothing is written then.
    """
    source = Source(source) if isinstance(source, Backbone) else source
    if architecture == "planned" and plans is None:
        raise ValueError("--architecture planned needs --plans: the plans of your data set")
    user_plans = Plans.read(Path(plans)) if plans else None
    channels = _channels(source.backbone, user_plans, dataset_json, in_channels)
    check_finite(source.backbone.state_dict(), "the run")

    report = ExportReport.of(source, "nnU-Net", in_channels=channels)
    if isinstance(source.backbone, Primus):
        ready = nnunet_primus.prepare(source, channels, user_plans, dataset_json, architecture)
        report.provenance["out_channels"] = ready.out_channels
    else:
        ready = _prepare(source, channels, user_plans, architecture, strict)
    report.tensors, report.notes = ready.tensors, [*ready.notes]
    if strict:
        report.refuse_inexact("--to nnunet")
    report.refuse_below(minimum, "--to nnunet")
    with ExportFolder(out, "nnunet") as folder:
        _write(source, ready, report, user_plans, folder)
    return report


def _prepare(source: Source, channels: int, plans: Plans | None, choice: Choice, strict: bool) -> Ready:
    """The U-Net to write: the run's own, or the planned one filled from it."""
    own = source.backbone.spec().architecture
    if own is None:
        raise ValueError(
            f"nnU-Net has no network like {type(source.backbone).__name__}: "
            "only ResEncUNet, PlainConvUNet, Primus and PrimusV2 can be exported"
        )
    architecture, notes = own, []
    if plans is not None and choice == "planned":
        architecture = plans.architecture
        if (difference := first_difference(own, architecture)) is not None:
            raise ValueError(
                f"'{plans.path}': the network planned in '{PARENT}' cannot be filled from this run: {difference}; "
                f"leave --architecture out: the configuration {CONFIGURATION} then written holds the run's own network"
            )
        notes = differences(own, architecture)
        if strict and notes:
            raise ValueError(f"--to nnunet: --strict: {notes[0]}; leave --strict out to allow it")
    network = build_network(architecture, channels)
    tensors = fill(network, source)
    configured = configuration(source, architecture, plans)
    return Ready(network, tensors, architecture, configured, [*notes, *_notes(source, plans, configured)])


def _write(source: Source, ready: Ready, report: ExportReport, plans: Plans | None, folder: ExportFolder) -> None:
    """All files of an export, the user's plans last but for the report, which names their backup."""
    names, configured = aliases(ready.network), ready.configured
    state = dict(ready.network.state_dict())
    content = {"network_weights": state, "ssl3d": {**report.provenance, "architecture": ready.architecture}}
    folder.write("checkpoint.pth", lambda path: save_and_compare(content, names, path))
    folder.write_json("architecture.json", ready.architecture)
    folder.write_json("plans_fragment.json", {CONFIGURATION: configured})
    folder.write_text("trainers/ssl3d_trial.py", trial(ready.trainer))
    if ready.trainer == TRAINER:
        folder.write_text("trainers/ssl3d_trainers.py", TRAINERS.read_text(encoding="utf-8"))
    whole = plans_like_pretraining(source, configured, plans) if plans else None
    if whole:
        folder.write_json(f"{PLANS_NAME}.json", whole)
    folder.write_text("HOW_TO.md", how_to(report, plans, ready.trainer, whole is not None))
    if plans:
        folder.check()  # before the user's plans are touched
        backup = plans.add(configured)
        report.changed = [plans.path] if backup else []
        kept = f"the old file is {backup.name}" if backup else "which it held already"
        report.notes.append(f"{plans.path.name}: configuration {CONFIGURATION} added, {kept}")
    report.write(folder)


def trial(trainer: str) -> str:
    """The text of TRIAL on top of a class of nnU-Net's, `trainer`: of a Primus, or the one of all U-Nets."""
    text = TRIAL.read_text(encoding="utf-8")
    assert _BASE in text, "the trial imports another trainer"
    own = f"from {nnunet_primus.TRAINERS} import {trainer} as Trainer\n"
    return text if trainer == TRAINER else text.replace(_BASE, own)


def build_network(architecture: dict[str, Any], in_channels: int) -> nn.Module:
    """nnU-Net's own network of an architecture block, one class, initialised as nnU-Net does from a fixed seed."""
    module, _, name = architecture["network_class_name"].rpartition(".")
    network_class = getattr(importlib.import_module(module), name)
    kwargs = copy.deepcopy(architecture["arch_kwargs"])
    kwargs |= {key: import_op(key, kwargs[key]) for key in architecture["_kw_requires_import"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(0, "nnU-Net export"))  # the heads are new, but every export has the same
        network = network_class(input_channels=in_channels, num_classes=1, deep_supervision=False, **kwargs)
        network.apply(network.initialize)
    return network.float().eval()


def _channels(backbone: Backbone, plans: Plans | None, dataset_json: Path | None, in_channels: int | None) -> int:
    said = {}
    if in_channels is not None:
        said["--in-channels"] = in_channels
    if dataset_json is not None:
        said[f"'{dataset_json}'"] = read_channels(Path(dataset_json))
    if plans is not None and plans.channels is not None:
        said[f"'{plans.path}'"] = plans.channels
    if len(set(said.values())) > 1:
        words = ", ".join(f"{name} says {count}" for name, count in said.items())
        raise ValueError(f"the number of image channels is contradictory: {words}; give one of them only")
    channels = next(iter(said.values()), backbone.in_channels)
    if channels < 1:
        raise ValueError(f"--in-channels is {channels}; it must be at least 1")
    if channels != backbone.in_channels and backbone.in_channels != 1:
        raise ValueError(
            f"{next(iter(said))}: the data set has {channels} channels and the run {backbone.in_channels}; "
            "only a run of one channel can be adapted to another number"
        )
    return channels


def save_and_compare(content: dict[str, Any], groups: dict[str, list[str]], path: Path) -> None:
    """Write the checkpoint and read it back as a stranger would; what differs is a fault of ours, not the user's."""
    torch.save(content, path)
    wanted = content["network_weights"]
    found = torch.load(path, map_location="cpu", weights_only=True)["network_weights"]
    assert list(found) == list(wanted), "the checkpoint holds other names than nnU-Net's network"
    for names in groups.values():
        for name in names:
            value = found[name]
            assert value.dtype == torch.float32 and value.device.type == "cpu", f"{name} is {value.dtype}"
            assert torch.equal(value, wanted[names[0]]), f"{name} differs from {names[0]}"
            assert value.data_ptr() == found[names[0]].data_ptr(), f"{name} is stored apart from {names[0]}"


def _notes(source: Source, plans: Plans | None, configured: dict[str, Any]) -> list[str]:
    notes = _old_nnunet(plans)
    if not source.trained_decoder:
        notes.append("the decoder is fresh: this run trained the encoder only")
    if plans is None:
        return notes
    planned, patch = list(plans.parent["patch_size"]), configured["patch_size"]
    if planned != patch:
        notes.append(f"patch {planned} became {patch}: this network needs multiples of {source.backbone.total_stride}")
    order = plans.content.get("transpose_forward", [0, 1, 2])
    if list(order) != [0, 1, 2]:
        notes.append(f"nnU-Net transposes this data set's axes to {order}; the pre-training saw (z, y, x)")
    own, theirs = source.provenance.get("spacing"), plans.parent.get("spacing")
    if own and theirs:
        seen = [own[axis] for axis in order]
        if any(abs(a - b) > 0.05 * b for a, b in zip(seen, theirs)):
            words = [", ".join(f"{v:.3g}" for v in values) for values in (seen, theirs)]
            notes.append(f"pre-trained at {words[0]} mm, this configuration resamples to {words[1]} mm (see HOW_TO.md)")
    return notes


def _old_nnunet(plans: Plans | None) -> list[str]:
    """What an nnU-Net that is too old for HOW_TO.md's commands left here: its plans, or itself."""
    notes = []
    if plans is not None and "architecture" not in plans.parent:
        notes.append(
            f"{plans.path.name} was planned by an old nnU-Net, which would not read the network of {CONFIGURATION}: "
            "train with 2.6 or later"
        )
    try:
        installed = metadata.version("nnunetv2")
    except metadata.PackageNotFoundError:
        return notes
    if tuple(map(int, re.findall(r"\d+", installed)[:2])) < (2, 6):
        notes.append(f"nnU-Net {installed} is installed here: HOW_TO.md needs 2.6 or later: pip install -U nnunetv2")
    return notes
