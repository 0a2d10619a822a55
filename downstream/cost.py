"""What a training step costs, counted on shapes alone: the same number on every machine, unlike a measured time."""

from __future__ import annotations

import json
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from downstream.freezing import Frozen, Train
from ssl3d.models.backbone import BackboneSpec, build_backbone
from ssl3d.regions import Size3


def step_cost(spec: BackboneSpec, patch_size: Size3, train: Train, lora_rank: int = 4) -> int:
    """Floating point operations of a network for one patch, forward and backward, where only `train` of it learns.

    Convolutions, matrix products and attention are counted (torch.utils.flop_counter); norms, activations, the head and
    the reading of data, which is the same for all, are not.
    """
    return _count(json.dumps([spec.target, spec.kwargs], sort_keys=True), tuple(patch_size), train, lora_rank)


@lru_cache(maxsize=64)
def _count(network: str, patch_size: Size3, train: Train, lora_rank: int) -> int:
    target, kwargs = json.loads(network)
    with torch.device("meta"):
        backbone = build_backbone(BackboneSpec(target, kwargs)).to("meta")
        Frozen(backbone, train, lora_rank)
    x = torch.empty((1, backbone.in_channels, *patch_size), device="meta")
    with FlopCounterMode(display=False) as counter:
        features = backbone.encode(x)
        outputs = backbone.decode(features)[:1] if backbone.decoder_channels else features
        loss = torch.stack([output.sum() for output in outputs]).sum()
        if loss.requires_grad:  # a frozen encoder without a decoder: the head alone learns
            loss.backward()
    return counter.get_total_flops()
