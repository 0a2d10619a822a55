"""Complete and build a recipe without data or GPU: its faults, or its size."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from ssl3d import config
from ssl3d.config import ConfigError, Overrides, Recipe
from ssl3d.devices import refuse_combinations
from ssl3d.gpus import GPUS, RESERVED_GIB, UTILISATION, Gpu
from ssl3d.models.backbone import Backbone
from ssl3d.schema import did_you_mean
from ssl3d.setup_run import store_paths
from ssl3d.sharding import backbones
from ssl3d.tasks.task import Objective
from ssl3d.tasks.trained_network import Trained

GIB = 2**30
MANY_VOXELS = 2_000_000  # of a step: what has fewer fits any machine, and is not worth the seconds that counting takes


def check(name: str | Mapping[str, Any], overrides: Overrides = (), gpu: str | None = None) -> str:
    """The completed recipe (a name, a file or its content) and what it costs, on a `gpu` of ssl3d.gpus if one is named.

    Raises ConfigError with ALL faults, a sentence each.
    """
    if gpu is not None and gpu not in GPUS:
        raise ConfigError([f"--gpu is '{gpu}'{did_you_mean(gpu, list(GPUS))} (known are {', '.join(GPUS)})"])
    recipe = config.load(name, overrides, unset=("data.store",))
    store_paths(recipe)
    objective = config.build_task(recipe, _shapes(recipe))
    refuse_combinations(recipe, objective)
    return OmegaConf.to_yaml(OmegaConf.create(recipe.to_dict())) + "\n" + summary(recipe, objective, gpu)


def summary(recipe: Recipe, objective: Objective, gpu: str | None = None) -> str:
    """Parameters, memory, FLOPs of a step, regions read; on a `gpu` also whether it fits and how long it may take."""
    backbone = objective.backbone
    encoder = backbone.encoder_parameter_names()
    in_encoder = sum(p.numel() for n, p in backbone.named_parameters() if n in encoder)
    total = sum(p.numel() for p in objective.parameters())
    regions = recipe.run.steps * recipe.data.batch_size
    each = f", {objective.passes:.3g} a region" if objective.passes != 1 else ""
    each += f" and {objective.teacher_passes:.3g} through the teacher" if objective.teacher_passes else ""
    each += "".join(f", 1 through {key}" for key in objective.trained_networks())
    weights, activations = weight_bytes(recipe, objective), activation_bytes(recipe, objective)
    at_once = regions_at_once(recipe)
    flops = step_flops(recipe, objective)
    lines = [
        f"parameters   {total / 1e6:.2f} M ({in_encoder / 1e6:.2f} M in the encoder)",
        f"memory       {weights / GIB:.2f} GiB for weights, gradients and {recipe.optim.name} state",
        f"             {activations * at_once / GIB:.2f} GiB for the backbone's activations of {at_once} regions at a "
        f"time ({'bfloat16' if _is_mixed(recipe) else 'float32'}, counted on shapes)",
        f"input        {'x'.join(map(str, objective.input_size))} voxels{each}, "
        f"read as {'x'.join(map(str, objective.region.size))}",
        f"FLOPs        {flops / 1e12:.3g} T for the backbone, forward and backward of a step of "
        f"{recipe.data.batch_size} regions",
        f"regions      {regions:,} in {recipe.run.steps:,} steps",
    ]
    lines += [f"note         {sentence}" for sentence in recipe.warnings()]
    if gpu is not None:
        lines += on_gpu(recipe, GPUS[gpu], weights, activations, flops)
    return "\n".join(lines)


def on_gpu(recipe: Recipe, gpu: Gpu, weights: float, activations: float, flops: float) -> list[str]:
    """Whether a recipe fits a GPU, what to change if not, and a range for its time. All of it an estimate."""
    count = devices(recipe)
    free = (gpu.gib - RESERVED_GIB) * GIB - weights
    at_once, fitting = regions_at_once(recipe), int(max(free, 0) // activations)
    need = (weights + activations * at_once) / GIB + RESERVED_GIB
    takes = f"{need:.1f} of {gpu.gib:.0f} GiB (estimate)"
    if fitting >= at_once:
        lines = [f"fits         {gpu.name}: {takes}"]
    elif fitting == 0:
        recompute = "" if recipe.run.recompute else "set run.recompute=true, or "
        lines = [f"too large    {gpu.name}: {takes}, one region alone {activations / GIB:.1f}: {recompute}take a "
                 "smaller patch or model"]  # fmt: skip
    else:
        size = recipe.data.batch_size // count
        parts = next(n for n in range(1, size + 1) if size % n == 0 and size // n <= fitting)
        lines = [f"too large    {gpu.name}: {takes}: set run.accumulate={parts}, or use {-(-at_once // fitting)} times "
                 "as many devices"]  # fmt: skip
    slow, fast = (flops / count / (gpu.tflops * 1e12 * share) for share in UTILISATION)
    hours = [seconds * recipe.run.steps / 3600 for seconds in (fast, slow)]
    lines.append(
        f"time         {fast:.3g} to {slow:.3g} s a step, {hours[0]:.3g} to {hours[1]:.3g} hours on {count} device(s); "
        f"an estimate, counted operations at {UTILISATION[1]:.0%} to {UTILISATION[0]:.0%} of the data sheet's peak"
    )
    return lines


def refuse_beyond_memory(recipe: Recipe, objective: Objective) -> None:
    """Raise ConfigError where a step on the CPU needs more memory than the machine has, swap included.

    Where the system runs out it kills whom it likes, with no word of ours.
    """
    regions = max(1, recipe.data.batch_size // recipe.run.accumulate)  # all ranks of a machine share its memory
    if regions * math.prod(objective.input_size) < MANY_VOXELS:
        return
    needed = weight_bytes(recipe, objective) + regions * activation_bytes(recipe, objective)
    there = psutil.virtual_memory().total + psutil.swap_memory().total
    if needed > there:
        size = "x".join(map(str, objective.input_size))
        raise ConfigError(
            [f"without a GPU a step of {regions} regions of {size} voxels needs about {needed / GIB:.0f} GiB, and this "
             f"machine has {there / GIB:.0f}: take a recipe that ends in _s, a smaller task.patch_size, or a larger "
             "run.accumulate"]
        )  # fmt: skip


def devices(recipe: Recipe) -> int:
    """How many devices an estimate is for: those of the recipe, one when it says auto."""
    return recipe.run.devices if isinstance(recipe.run.devices, int) else 1


def regions_at_once(recipe: Recipe) -> int:
    """Regions that one device has in its memory."""
    return max(1, recipe.data.batch_size // (devices(recipe) * recipe.run.accumulate))


def weight_bytes(recipe: Recipe, objective: Objective) -> int:
    """Bytes of weights, gradients, optimiser state and moving average in float32; a teacher has weights alone.

    Sharded, each device holds its part of all that, and for a while the whole weights of what lies in no segment, of
    the segment it computes and of the next.
    """
    states = {"sgd": 1 if recipe.optim.momentum else 0, "adamw": 2}[recipe.optim.name]
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    total = sum(p.numel() for p in objective.parameters())
    kept = 4 * (total * (1 + (recipe.optim.ema is not None)) + trained * (1 + states))
    if recipe.run.strategy != "fsdp" or devices(recipe) == 1:
        return kept
    segments = [sum(p.numel() for p in s.parameters()) for b in backbones(objective) for s in b.segments()]
    return kept // devices(recipe) + 4 * (total - sum(segments) + 2 * max(segments, default=0))


def activation_bytes(recipe: Recipe, objective: Objective) -> float:
    """Bytes that autograd keeps of one region until its backward pass: measured on fake tensors, no memory is used.

    Tensors that the backbone's operations save, once each, times the inputs that a region sends through it. Heads and
    losses come on top. With run.recompute the inputs of the segments, and what the largest of them saves while it is
    computed again.
    """
    backbone = _shapes(recipe).to_empty(device="cpu")  # real to torch, but never written to
    one, two = (_kept_bytes(recipe, objective, copy.deepcopy(backbone), inputs) for inputs in (1, 2))
    return max(two - one, 1) * objective.passes  # the difference: weights, and their casts, are kept once


def _kept_bytes(recipe: Recipe, objective: Objective, backbone: Backbone, inputs: int) -> int:
    kept = dict[int, torch.UntypedStorage]()  # until the backward pass
    within: dict[nn.Module, dict[int, torch.UntypedStorage]] = {}  # what each segment saves, when it is recomputed
    current: list[dict[int, torch.UntypedStorage]] = [kept]

    def keep(tensor: Tensor) -> None:
        """In the place of the tensor nothing is saved: one that its own graph holds would never be freed."""
        storage = tensor.untyped_storage()
        current[-1][StorageWeakRef(storage).cdata] = storage

    def enter(segment: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        for value in (*given, *named.values()):
            if isinstance(value, Tensor):
                keep(value)
        current.append(within.setdefault(segment, {}))

    def leave(*_: Any) -> None:
        current.pop()

    if recipe.run.recompute:
        for segment in backbone.segments():
            segment.register_forward_pre_hook(enter, with_kwargs=True)
            segment.register_forward_hook(leave)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty((inputs, backbone.in_channels, *objective.input_size))
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=_is_mixed(recipe)):
            features = backbone.encode(x)
            if objective.needs_decoder:
                backbone.decode(features)
            else:
                backbone.pool(features)
        again = [sum(s.nbytes() for key, s in saved.items() if key not in kept) for saved in within.values()]
        return sum(storage.nbytes() for storage in kept.values()) + max(again, default=0)


def _is_mixed(recipe: Recipe) -> bool:
    return recipe.run.precision in ("auto", "bf16-mixed", "16-mixed")


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
    for trained in objective.trained_networks().values():
        total += _forward_flops(trained)
    return round(total * recipe.data.batch_size)


def _forward_flops(trained: Trained) -> int:
    """Of a trained network that every region is sent through, forward alone."""
    shapes = copy.deepcopy(trained.network).to("meta")
    x = torch.empty((1, shapes.in_channels, *trained.size), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = shapes.encode(x)
        if trained.decoder:
            shapes.decode(features)
    return counter.get_total_flops()


def _shapes(recipe: Recipe) -> Backbone:
    """The backbone on the meta device: names and shapes in no memory and no time, whatever its size."""
    with torch.device("meta"):
        return config.build_model(recipe).to("meta")
