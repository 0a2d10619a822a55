"""Primus for nnU-Net's Primus trainers.

They build the network themselves, from the patch of the configuration, and load every name of it: no segmentation head
is left out by name. So the checkpoint is made for the data set's patch and classes. The positions are resized by
trilinear interpolation as nnU-Net's fine-tuning does it. The last transposed convolution gives classes and is fresh;
the widths of those before it follow from the number of classes too, so that a trained decoder seldom fits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from dynamic_network_architectures.architectures import primus as dna
from torch import nn

from ssl3d.export.nnunet_adapt import fit
from ssl3d.export.nnunet_plans import PARENT, Plans, Ready, fit_patch, read_classes
from ssl3d.export.source import Source
from ssl3d.models.init import aliases
from ssl3d.models.primus import SIZES, Primus, PrimusV2
from ssl3d.models.transfer import Part, TensorOutcome
from ssl3d.seeding import mix

PATCH = (8, 8, 8)
POSITIONS = "eva.pos_embed"
SIZES_BUILT = ("S", "B", "M", "L")
TRAINERS = "nnunetv2.training.nnUNetTrainer.primus.primus_trainers"  # where nnU-Net has them


def prepare(source: Source, channels: int, plans: Plans | None, dataset_json: Path | None, architecture: str) -> Ready:
    """The Primus to write for a data set.

    Raises ValueError when nnU-Net has no trainer for it, or the number of classes is not known.
    """
    backbone = source.backbone
    assert isinstance(backbone, Primus)
    if backbone.size not in SIZES_BUILT or backbone.patch_size != PATCH:
        raise ValueError(
            f"nnU-Net's Primus trainers build sizes {', '.join(SIZES_BUILT)} with 8-voxel patches; this run has size "
            f"{backbone.size} with patches of {list(backbone.patch_size)}"
        )
    if architecture == "planned":
        raise ValueError("--architecture planned is for U-Nets: nnU-Net plans none for a Primus; leave it out")
    if dataset_json is None:
        raise ValueError(
            "--to nnunet needs --dataset-json for a Primus: nnU-Net loads its last layer too, one output a class"
        )
    classes = read_classes(Path(dataset_json))
    planned = plans.parent["patch_size"] if plans else source.patch_size or backbone.input_size
    patch = fit_patch(planned, PATCH)
    kwargs = network_kwargs(backbone, patch)
    network = build(backbone, channels, classes, kwargs)
    kind = "PrimusV2" if isinstance(backbone, PrimusV2) else "Primus"
    configured = {
        "inherits_from": PARENT,
        "patch_size": patch,
        "batch_size": plans.parent.get("batch_size", 2) if plans else 2,
    }
    notes = []
    if list(planned) != patch:
        notes.append(f"patch {list(planned)} became {patch}: Primus needs multiples of 8")
    if not source.trained_decoder:
        notes.append("the decoder is fresh: this run trained the encoder only")
    tensors = fill(network, source, patch)
    if source.trained_decoder and not any(t.filled for t in tensors if t.part == "decoder"):
        notes.append(f"the decoder is fresh: for {classes} classes nnU-Net builds one of other widths than the run's")
    name = f"dynamic_network_architectures.architectures.primus.{kind}"
    return Ready(
        network=network,
        tensors=tensors,
        architecture={"network_class_name": name, "arch_kwargs": kwargs, "_kw_requires_import": []},
        configured=configured,
        notes=notes,
        trainer=f"nnUNet_PrimusV2{backbone.size}_Trainer"
        if kind == "PrimusV2"
        else f"nnUNet_Primus_{backbone.size}_Trainer",
        out_channels=classes,
    )


def network_kwargs(backbone: Primus, patch: list[int]) -> dict[str, Any]:
    """What nnU-Net's trainers build this network with, but for channels and classes; `patch` (D, H, W) voxels."""
    return {
        "embed_dim": backbone.embed_dim,
        "patch_embed_size": list(PATCH if isinstance(backbone, PrimusV2) else backbone.patch_size),
        "eva_depth": backbone.depth,
        "eva_numheads": SIZES[backbone.size][2],
        "input_shape": patch,
        "drop_path_rate": 0.2,
        "scale_attn_inner": True,
        "init_values": 0.1,
    }


def build(backbone: Primus, channels: int, classes: int, kwargs: dict[str, Any]) -> nn.Module:
    """nnU-Net's own Primus, initialised from a fixed seed."""
    network_class = dna.PrimusV2 if isinstance(backbone, PrimusV2) else dna.Primus
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(0, "nnU-Net export"))
        return network_class(input_channels=channels, num_classes=classes, **kwargs).float().eval()


def fill(network: nn.Module, source: Source, patch: list[int], classes: bool = True) -> list[TensorOutcome]:
    """Copy a Primus into nnU-Net's, positions resized to `patch` and the stem to its channels; one outcome a tensor.

    `classes`: the last layer gives those of a data set and is fresh; else the features that the run's own gives.
    """
    backbone = source.backbone
    assert isinstance(backbone, Primus)
    given, target = backbone.state_dict(), network.state_dict()
    decoder = [name for name in target if name.startswith("up_projection.")]
    last = decoder[-1].rpartition(".")[0] if classes else "none"
    fits = all(given[name].shape == target[name].shape for name in decoder if not name.startswith(last))
    d, h, w = (n // p for n, p in zip(patch, backbone.patch_size))
    outcomes = []
    for name in aliases(network):
        shape, how = tuple(target[name].shape), ""
        part: Part = "decoder" if name.startswith("up_projection.") else "encoder"
        if name.startswith(last):
            outcomes.append(TensorOutcome(name, "fresh", shape, "one output a class", "head"))
            continue
        if name not in given:  # the mask token, zeros that only pre-training replaces
            outcomes.append(TensorOutcome(name, "fresh", shape, "not used to fine-tune", "head"))
            continue
        if part == "decoder" and not source.trained_decoder:
            outcomes.append(TensorOutcome(name, "fresh", shape, "the run did not train its decoder", part))
            continue
        if part == "decoder" and not fits:
            outcomes.append(TensorOutcome(name, "fresh", shape, "its widths follow from the number of classes", part))
            continue
        value = given[name]
        if name == POSITIONS and tuple(value.shape) != shape:
            value = backbone.positions((d, h, w)).unsqueeze(0)
            how = f"resized to {d} x {h} x {w} tokens by trilinear interpolation"
        else:
            value, how = fit(value, shape)
        with torch.no_grad():
            target[name].copy_(value)
        outcomes.append(TensorOutcome(name, "adapted" if how else "copied", shape, how, part))
    return outcomes
