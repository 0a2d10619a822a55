"""Teachers: how they follow, and which of their modules are in training while a student is."""

from __future__ import annotations

import torch
from torch import nn

from ssl3d.tasks.teacher import FollowingTeacher, TrainedTeacher, follow, make_teacher


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4), nn.Dropout(0.5))


class Following(FollowingTeacher):
    def __init__(self) -> None:
        super().__init__()
        self.student = network()
        self.teacher = make_teacher(self.student)


class Trained(TrainedTeacher):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = make_teacher(network())


def test_a_teacher_drops_nothing_and_one_that_follows_reads_its_batch():
    task, image = Following().train(), 5 + torch.randn(2, 1, 2, 3, 4)
    assert task.student[2].training and not task.teacher[2].training
    said = task.teacher(image)
    torch.testing.assert_close(said.mean((0, 2, 3, 4)), torch.zeros(4), rtol=0, atol=1e-5)
    assert not any(module.training for module in task.eval().modules())
    assert not any(module.training for module in Trained().train().teacher.modules())


def test_parameters_follow_and_running_statistics_are_the_teachers_own():
    task = Following().train()
    nn.init.constant_(task.student[0].weight, 3.0)
    before = task.teacher[0].weight.clone()
    task.student(torch.randn(2, 1, 2, 3, 4)), task.teacher(9 + torch.randn(2, 1, 2, 3, 4))
    mine = task.teacher[1].running_mean.clone()
    follow(task.teacher, task.student, 0.75)
    torch.testing.assert_close(task.teacher[0].weight, 0.75 * before + 0.25 * 3.0)
    assert torch.equal(task.teacher[1].running_mean, mine)
    assert not torch.equal(mine, task.student[1].running_mean)


def test_other_buffers_are_copied():
    student, teacher = nn.Module(), nn.Module()
    student.register_buffer("table", torch.ones(2))
    teacher.register_buffer("table", torch.zeros(2))
    follow(teacher, student, 0.9)
    assert torch.equal(teacher.table, torch.ones(2))
