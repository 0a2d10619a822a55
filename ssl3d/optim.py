"""Optimiser, parameter groups and schedules: pure functions of the step, so that a resume needs no scheduler state."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ssl3d.config import ConfigError, OptimConfig

NOT_DECAYED = re.compile(r"(^|[._])(pos|pos_embed|positions?|.*_token|.*_tokens|prefix)$")
# "encoder.stages.2.", "layers.7.", "layer3.", "layers1c.0.", "conv_blocks_context.4.", "down_tr128.": a step in depth
LAYER = re.compile(
    r"(?P<kind>(?:^|.*?\.)(?:stages|blocks|conv_blocks_context|down_layers|layers)\.|(?:^|.*?\.)(?:layers?|down_tr"
    r"|convtrans_e|down|encoder))(?P<number>\d+)c?\."
)


def parameter_groups(module: nn.Module, config: OptimConfig, encoder: set[str]) -> list[dict[str, Any]]:
    """One group per distinct (lr_scale, weight_decay, freeze_until). `encoder`: names of the encoder's parameters.

    `layer_decay` and `encoder_freeze_until` apply to those, `rest_freeze_until` to all others.

    Norms, biases (one axis), positions and tokens get no weight decay unless a `groups` entry says otherwise.
    Raises ConfigError when an entry of optim.groups matches no parameter.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    layers = encoder_layers([n for n, _ in module.named_parameters() if n in encoder])
    depth = 1 + max(layers.values(), default=0)
    matched = [0] * len(config.groups)
    groups: dict[tuple[float, bool, float, int], dict[str, Any]] = {}
    for name, parameter in named:
        lr_scale = 1.0
        freeze_until = config.encoder_freeze_until if name in encoder else config.rest_freeze_until
        decayed = parameter.ndim > 1 and not NOT_DECAYED.search(name)
        weight_decay = config.weight_decay if decayed else 0.0
        if config.layer_decay is not None and name in encoder:
            lr_scale = config.layer_decay ** (depth - layers[name])
        for i, group in enumerate(config.groups):
            if re.search(group.match, name):
                matched[i] += 1
                lr_scale *= group.lr_scale
                freeze_until = max(freeze_until, group.freeze_until)
                weight_decay = weight_decay if group.weight_decay is None else group.weight_decay
        key = (lr_scale, decayed, weight_decay, freeze_until)
        entry = {"lr_scale": lr_scale, "base_decay": weight_decay, "decayed": decayed, "freeze": freeze_until}
        groups.setdefault(key, {"params": [], **entry})["params"].append(parameter)
    unmatched = [config.groups[i].match for i, n in enumerate(matched) if n == 0]
    if unmatched:
        raise ConfigError([f"optim.groups: '{m}' matches no parameter" for m in unmatched])
    return list(groups.values())


def encoder_layers(names: Sequence[str]) -> dict[str, int]:
    """{name: depth} of an encoder's parameters, given in the order of their registration.

    Stages, blocks and layers are numbered from 1 in the order in which they come. What has no number belongs with what
    came before it (a transformer's last norm with its last block); stem and embedding, before all, are 0.
    """
    steps: dict[tuple[str, int], int] = {}
    found, last = {}, 0
    for name in names:
        match = LAYER.match(name)
        if match:
            last = steps.setdefault((match["kind"], int(match["number"])), len(steps) + 1)
        found[name] = last
    return found


def build_optimizer(module: nn.Module, config: OptimConfig, encoder: set[str]) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameter groups; learning rates are set by `set_step` before each step."""
    groups = parameter_groups(module, config, encoder)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=0.0)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of step `step` (0-based) of `steps`: linear warm-up, then poly, cosine or constant.

    poly: lr * (1 - t)^power (nnU-Net's); cosine: half a period; both end at lr_end after the last step.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    t = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "poly":
        factor = (1 - t) ** config.poly_power
    elif config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * t))
    else:
        return config.lr
    return config.lr_end + (config.lr - config.lr_end) * factor


def set_step(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> float:
    """Set the rates and decays of step `step` and return the base learning rate.

    weight_decay_end: cosine from weight_decay (DINO's schedule), on decayed parameters only.
    """
    lr = lr_at(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = group["base_decay"]
        if config.weight_decay_end is not None and group["decayed"]:
            mix = 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
            group["weight_decay"] = config.weight_decay_end + (group["base_decay"] - config.weight_decay_end) * mix
    return lr


def drop_frozen_gradients(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Parameters frozen at this step lose their gradient: no step, no momentum, no decay, on one rank as on many."""
    for group in optimizer.param_groups:
        if step < group["freeze"]:
            for parameter in group["params"]:
                parameter.grad = None


class WeightAverage:
    """Exponential moving average of a module's weights: starts as a copy, buffers are copied as they are."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """average = decay * average + (1 - decay) * weights, for floating point tensors."""
        for name, value in module.state_dict().items():
            if value.dtype.is_floating_point:
                self.state[name].lerp_(value.detach().to(self.state[name].dtype), 1 - self.decay)
            else:
                self.state[name].copy_(value)
