"""Where a run computes, and how its network is laid out there: ranks, memory format, recomputation, compilation."""

from __future__ import annotations

import logging
import os
import warnings

import torch

from ssl3d.config import ConfigError, Recipe
from ssl3d.fabric import Fabric, SLURMEnvironment
from ssl3d.memory import keep_freed_memory
from ssl3d.models.recompute import recompute_segments
from ssl3d.sharding import ShardedStrategy, backbones
from ssl3d.tasks.task import Objective


def make_fabric(recipe: Recipe, precision: str) -> Fabric:
    """Fabric on the GPUs there are, else on the CPU; DDP or FSDP as soon as there is more than one device."""
    on_gpu = torch.cuda.is_available()
    devices = recipe.run.devices
    if on_gpu and isinstance(devices, int) and devices > torch.cuda.device_count():
        raise ConfigError([f"run.devices is {devices}, but this machine has {torch.cuda.device_count()} GPU(s)"])
    count = devices if isinstance(devices, int) else (torch.cuda.device_count() if on_gpu else 1)
    # by torchrun, which has said how many there are, if only one
    launched = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if launched:
        count = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    slurm = not launched and SLURMEnvironment.detect()  # srun has started a process a device
    nodes = int(os.environ.get("SLURM_NNODES", "1")) if slurm else int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    several = count * nodes > 1 or launched
    if on_gpu and torch.__version__.startswith("2.9."):
        warnings.warn("torch 2.9 has a slow conv3d under AMP: use 2.8 or 2.10 and later", stacklevel=2)
    if not on_gpu:
        keep_freed_memory()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # environment.json says which precision it is
    with warnings.catch_warnings():  # hints about SLURM's srun and CPU counts are for interactive use
        warnings.filterwarnings("ignore", module="lightning_fabric")
        fabric = Fabric(
            accelerator="cuda" if on_gpu else "cpu",
            devices=count,
            num_nodes=nodes,
            strategy=("auto" if not several else ShardedStrategy() if recipe.run.strategy == "fsdp" else "ddp"),
            precision=precision,  # type: ignore[arg-type]
        )
        fabric.launch()
    return fabric


def refuse_combinations(recipe: Recipe, objective: Objective) -> None:
    """Raise ConfigError, a sentence each, when keys of `run` exclude each other or do not fit the objective."""
    run, name, faults = recipe.run, type(objective).__name__, []
    if objective.spans_batch and run.accumulate > 1:
        faults.append(f"run.accumulate is {run.accumulate}, but the loss of {name} pairs all samples of a step: set "
                      "run.accumulate=1")  # fmt: skip
    if run.strategy == "fsdp":
        if objective.reads_weights:
            faults.append(f"run.strategy is fsdp, but {name} reads single weights of the encoder, which would be "
                          "scattered: set run.strategy=ddp")  # fmt: skip
        if run.channels_last:
            faults.append("run.channels_last is true, but weights are sharded in their usual layout only: set it to "
                          "false, or run.strategy=ddp")  # fmt: skip
        if run.precision == "16-mixed":
            faults.append("run.precision is 16-mixed, whose loss scaling does not know sharded gradients: use "
                          "bf16-mixed, or run.strategy=ddp")  # fmt: skip
    if run.recompute and not objective.backbone.segments():
        family = type(objective.backbone).__name__
        faults.append(f"run.recompute is true, but {family} names no segments to recompute: set it to false")
    if faults:
        raise ConfigError(faults)


def lay_out(objective: Objective, recipe: Recipe, device: torch.device) -> None:
    """Set memory format, recomputation and compilation of an objective's backbones, in place; names stay."""
    if recipe.run.channels_last:
        channels_last(objective)
    compile_backbones(objective, recipe, device)
    if recipe.run.recompute:
        for backbone in backbones(objective):
            recompute_segments(backbone)


def channels_last(objective: Objective) -> None:
    """Store kernels with their input channels last; convolutions then give their outputs in this layout too."""
    for parameter in objective.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)


def compile_backbones(objective: Objective, recipe: Recipe, device: torch.device) -> None:
    """Compile the backbones' passes, never the task; `auto` compiles on a GPU only.

    Segment by segment where they are recomputed or sharded: what happens between them is not for the compiler.
    """
    wanted = recipe.run.compile
    if wanted is False or (wanted == "auto" and device.type != "cuda"):
        return
    by_segment = recipe.run.recompute or recipe.run.strategy == "fsdp"
    for backbone in backbones(objective):
        if by_segment and backbone.segments():
            for segment in backbone.segments():
                segment.forward = torch.compile(segment.forward, dynamic=False)
            continue
        for name in ("encode", "decode", "blocks"):
            if hasattr(backbone, name):
                setattr(backbone, name, torch.compile(getattr(backbone, name), dynamic=False))
