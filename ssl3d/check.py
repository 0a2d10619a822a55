"""Complete and build a recipe without data or GPU: its faults, or its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from ssl3d import config
from ssl3d.config import Recipe
from ssl3d.models.backbone import Backbone
from ssl3d.tasks.task import Objective


def check(name: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> str:
    """The completed recipe (a name, a file or its content) and what it costs.

    Raises ConfigError with ALL faults, a sentence each.
    """
    recipe = config.load(name, overrides, unset=("data.store",))
    objective = config.build_task(recipe, _shapes(recipe))
    return OmegaConf.to_yaml(OmegaConf.create(recipe.to_dict())) + "\n" + summary(recipe, objective)


def summary(recipe: Recipe, objective: Objective) -> str:
    """Parameters, memory of weights and optimiser, FLOPs of a step, regions read."""
    backbone = objective.backbone
    encoder = backbone.encoder_parameter_names()
    in_encoder = sum(p.numel() for n, p in backbone.named_parameters() if n in encoder)
    total = sum(p.numel() for p in objective.parameters())
    states = {"sgd": 1 if recipe.optim.momentum else 0, "adamw": 2}[recipe.optim.name]
    copies = 2 + states + (recipe.optim.ema is not None)
    flops = step_flops(recipe, objective)
    regions = recipe.run.steps * recipe.data.batch_size
    each = f", {objective.passes:.3g} a region" if objective.passes != 1 else ""
    each += f" and {objective.teacher_passes:.3g} through the teacher" if objective.teacher_passes else ""
    return "\n".join(
        [
            f"parameters   {total / 1e6:.2f} M ({in_encoder / 1e6:.2f} M in the encoder)",
            f"memory       {total * 4 * copies / 2**30:.2f} GiB for weights, gradients and {recipe.optim.name} state; "
            "activations come on top",
            f"input        {'x'.join(map(str, objective.input_size))} voxels{each}, "
            f"read as {'x'.join(map(str, objective.region.size))}",
            f"FLOPs        {flops / 1e12:.3g} T for the backbone, forward and backward of a step of "
            f"{recipe.data.batch_size} regions",
            f"regions      {regions:,} in {recipe.run.steps:,} steps",
        ]
    )


def step_flops(recipe: Recipe, objective: Objective) -> int:
    """Floating point operations of the backbone in one optimiser step, counted on shapes alone (meta tensors).

    One input is counted, forward and back, and taken as often as the objective says that a sample passes.
    """
    backbone = _shapes(recipe)
    x = torch.empty((1, backbone.in_channels, *objective.input_size), device="meta")
    with FlopCounterMode(display=False) as counter:
        features = backbone.encode(x)
        forward = counter.get_total_flops()  # a teacher has no decoder
        outputs = backbone.decode(features)[:1] if objective.needs_decoder else [backbone.pool(features)]
        outputs[0].sum().backward()
    total = objective.passes * counter.get_total_flops() + objective.teacher_passes * forward
    return round(total * recipe.data.batch_size)


def _shapes(recipe: Recipe) -> Backbone:
    """The backbone on the meta device: names and shapes in no memory and no time, whatever its size."""
    with torch.device("meta"):
        return config.build_model(recipe).to("meta")
