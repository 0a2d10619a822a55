"""Teachers: copies of a module that follow it by an exponential moving average."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """A copy with the student's weights and buffers that no gradient reaches."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student for parameters; buffers are copied."""
    for parameter, target in zip(teacher.parameters(), student.parameters(), strict=True):
        parameter.lerp_(target, 1 - momentum)
    for buffer, value in zip(teacher.buffers(), student.buffers(), strict=True):
        buffer.copy_(value)
