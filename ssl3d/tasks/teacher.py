"""Teachers: copies of a module that follow it by an exponential moving average."""

from __future__ import annotations

import copy
import math
from typing import Self, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl3d.models.backbone import Backbone

Module = TypeVar("Module", bound=nn.Module)


class TrainedTeacher(nn.Module):
    """Of a task: its `teacher` is in evaluation always, so what it says of an image is the same whatever the batch."""

    teacher: Backbone

    def train(self, mode: bool = True) -> Self:
        """All but the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self


class FollowingTeacher(nn.Module):
    """Of a task: its `teacher`, which follows the student, drops nothing; its batch norms read their batch, as his do.

    Their running statistics, at first far from the features', would let the teacher say the same of all samples for as
    long as it takes the student to collapse. The code of Caron et al. (DINO, ICCV 2021) leaves them in training, too.
    """

    teacher: Backbone

    def train(self, mode: bool = True) -> Self:
        """All but the teacher's dropout and drop path."""
        super().train(mode)
        self.teacher.eval()
        for module in self.teacher.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self


def make_teacher(student: Module) -> Module:
    """A copy with the student's weights and buffers that no gradient reaches."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student for parameters; buffers are copied.

    The running statistics of batch norms are not: they belong to features of the teacher's own weights.
    """
    for parameter, target in zip(teacher.parameters(), student.parameters(), strict=True):
        parameter.lerp_(target, 1 - momentum)
    for mine, theirs in zip(teacher.modules(), student.modules(), strict=True):
        if not isinstance(mine, _BatchNorm):
            for buffer, value in zip(mine.buffers(recurse=False), theirs.buffers(recurse=False), strict=True):
                buffer.copy_(value)


def cosine_ramp(step: int, steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `steps` - 1 along half a period of a cosine: a teacher's momentum."""
    share = min(step / max(1, steps - 1), 1.0)
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * share))


def linear_ramp(step: int, steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `steps`, and `end` from then on: a warm-up."""
    return end if step >= steps else start + (end - start) * step / steps
