"""Teachers: copies of a module that follow it by an exponential moving average."""

from __future__ import annotations

import copy
import math
from typing import Self, TypeVar

import torch
from torch import nn

from ssl3d.models.backbone import Backbone

Module = TypeVar("Module", bound=nn.Module)


class TeacherInEvaluation(nn.Module):
    """Of a task: its `teacher` stays in evaluation. It drops nothing and reads no statistics of its batch, so what it
    says of an image is the same whoever is being trained."""

    teacher: Backbone

    def train(self, mode: bool = True) -> Self:
        """All but the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self


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


def cosine_ramp(step: int, steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `steps` - 1 along half a period of a cosine: a teacher's momentum."""
    share = min(step / max(1, steps - 1), 1.0)
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * share))


def linear_ramp(step: int, steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `steps`, and `end` from then on: a warm-up."""
    return end if step >= steps else start + (end - start) * step / steps
