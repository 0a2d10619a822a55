"""Fully sharded training (FSDP2): every rank keeps a part of each weight, gradient and optimiser state.

Zhao et al., "PyTorch FSDP", arXiv 2304.11277, by `torch.distributed.fsdp.fully_shard`: the weights of a segment are
gathered for its forward pass and again for its backward pass, all others when a step begins. The arithmetic is DDP's;
checkpoints hold whole tensors, so that a run goes on under any number of ranks, sharded or not.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ssl3d import config
from ssl3d.fabric import BackwardSyncControl, DDPStrategy, Fabric
from ssl3d.models.backbone import Backbone
from ssl3d.tasks.task import Objective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ssl3d.training import Training


class _GradientsLater(BackwardSyncControl):
    """Gradients of all but the last micro-batch of a step are summed without telling the other ranks."""

    @contextmanager
    def _paused(self, module: nn.Module) -> Iterator[None]:
        assert isinstance(module, FSDPModule)
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)

    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[None]:
        return self._paused(module) if enabled else _nothing()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class ShardedStrategy(DDPStrategy):
    """Fabric's processes and collectives as for DDP; the module comes sharded, before its optimiser is made."""

    def __init__(self) -> None:
        super().__init__()
        self._backward_sync_control = _GradientsLater()

    def setup_module(self, module: nn.Module) -> Any:
        """The module as it is. Raises RuntimeError when it has not been sharded."""
        if not isinstance(module, FSDPModule):
            raise RuntimeError("the module must be sharded before it is set up")
        return module

    def clip_gradients_norm(self, *arguments: Any, **named: Any) -> Tensor:
        """The norm over all ranks, as a plain tensor."""
        return plain(super().clip_gradients_norm(*arguments, **named))


def is_sharded(fabric: Fabric) -> bool:
    """Whether the ranks of a run hold parts of its weights."""
    return isinstance(fabric.strategy, ShardedStrategy)


def backbones(objective: nn.Module) -> list[Backbone]:
    """The backbone of an objective, and those of its teachers."""
    return [module for module in objective.modules() if isinstance(module, Backbone)]


def shard(trained: nn.Module, device: torch.device) -> None:
    """Shard a module over all ranks, in place: each segment of its backbones by itself, the rest together.

    Must be called before the optimiser is made: parameters are replaced. Buffers stay whole and, as under DDP, become
    those of the first rank before every forward pass.
    """
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    segments = {id(s): s for backbone in backbones(trained) for s in backbone.segments()}
    # torch warns that a segment's output might be changed in place behind it; no family does that
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for segment in segments.values():
        fully_shard(segment, mesh=mesh)
    fully_shard(trained, mesh=mesh)
    persistent = trained.state_dict(keep_vars=True)
    buffers = [b for name, b in trained.named_buffers() if name in persistent]

    def share(*_: Any) -> None:
        for buffer in buffers:
            distributed.broadcast(buffer, 0)

    if buffers:
        trained.register_forward_pre_hook(share)


def plain(tensor: Tensor) -> Tensor:
    """A sharded tensor whole (all ranks must ask for it), any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole(content: Any, keep: bool, seen: dict[int, Tensor] | None = None) -> Any:
    """The same tree with sharded tensors whole, on the CPU. All ranks must call it; those without `keep` get nothing.

    What is one tensor by several names stays one.
    """
    seen = {} if seen is None else seen
    if isinstance(content, DTensor):
        if id(content) not in seen:
            gathered = content.full_tensor().detach()
            seen[id(content)] = gathered.cpu() if keep else gathered.new_empty(0)
        return seen[id(content)]
    if isinstance(content, Mapping):
        return {key: whole(value, keep, seen) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(whole(value, keep, seen) for value in content)
    return content.detach() if isinstance(content, Tensor) else content


def part(value: Any, like: Any) -> Any:
    """This rank's part of a whole tensor where `like` is sharded; `value` on the device of `like` else."""
    if not isinstance(like, Tensor):
        return value
    value = value.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


def load_model(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`module.load_state_dict` of whole tensors, sharded or not."""
    own = module.state_dict()
    module.load_state_dict({name: part(value, own.get(name)) for name, value in state.items()})


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict` of whole tensors, sharded or not."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def entry(value: Any, like: Tensor) -> Any:
        return part(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value

    states = {
        number: {name: entry(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": states})


def with_whole_weights(training: Training) -> Training:
    """The run with an objective that the first rank can use by itself; all ranks must call it.

    The very same run unless it is sharded. Other ranks get it as it is.
    """
    if not is_sharded(training.fabric):
        return training
    first = training.fabric.is_global_zero
    state = whole(training.objective.state_dict(keep_vars=True), first)
    if not first:
        return training
    objective: Objective = config.build_task(training.recipe, config.build_model(training.recipe))
    if training.recipe.run.precision == "64-true":
        objective.double()
    objective.load_state_dict(state)
    return dataclasses.replace(training, objective=objective.to(training.fabric.device))
