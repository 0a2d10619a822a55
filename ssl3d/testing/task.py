"""TaskTests: what every self-supervised method must do. Inherit it, write `make_task`, and pytest runs it.

class TestMAE(TaskTests):
    def make_task(self):
        return MAE(TinyUNet(), patch_size=(16, 32, 48), mask_block=(4, 8, 8))
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ssl3d.regions import RegionBatch
from ssl3d.tasks.task import PretextTask
from ssl3d.testing.pretended_gpu import PretendedGPU, on_gpu
from ssl3d.testing.toys import make_batch


class TaskTests:
    """Conformance tests of a PretextTask on the CPU, with small inputs that are neither cubic nor isotropic.

    `overfit_steps` of AdamW at `overfit_lr` must halve the loss of one batch (less `loss_floor`, the least the loss
    can reach, for losses that do not go to 0). `tolerance`: relative, where floating point sums are reordered.
    `waits_for_the_gpu`: sizes follow from what the GPU holds, so that a step waits for it (say so in the task's costs).
    """

    overfit_steps = 100
    overfit_lr = 1e-2
    loss_floor = 0.0
    tolerance = 1e-4
    waits_for_the_gpu = False

    def make_task(self) -> PretextTask:
        """A small task of the method under test."""
        raise NotImplementedError

    def make_batch(self, task: PretextTask) -> RegionBatch:
        """Two groups of normalised regions with some padding."""
        channels = task.backbone.in_channels
        return make_batch(task.region.size, batch=2 * task.region.group, channels=channels, padded=2)

    def prepared(self) -> tuple[PretextTask, RegionBatch]:
        """The task with fixed initial weights, in training mode, and its batch."""
        torch.manual_seed(0)
        task = self.make_task()
        return task.train(), self.make_batch(task)

    def loss(self, task: PretextTask, batch: RegionBatch) -> Tensor:
        """The loss, with what a task may draw globally (dropout) held fixed."""
        torch.manual_seed(1)
        return task(batch)["loss"]

    def test_loss_and_logged_values_are_finite_scalars(self) -> None:
        task, batch = self.prepared()
        assert len(task.region.size) == len(task.input_size) == 3
        result = task(batch)
        assert "loss" in result and result["loss"].requires_grad
        for name, value in result.items():
            assert value.dim() == 0, f"{name} has shape {tuple(value.shape)}: pictures only on preview"
            assert torch.isfinite(value), f"{name} is {value}"
            assert value.dtype in (torch.float32, torch.float64), f"{name} is {value.dtype}"

    def test_every_trainable_parameter_gets_a_gradient(self) -> None:
        """A parameter without one makes DDP wait for ever; unused modules are not built, or frozen."""
        task, batch = self.prepared()
        self.loss(task, batch).backward()
        without = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, (
            f"no gradient reaches {without}; of a backbone whose decoder is not used: freeze_all_but(backbone,"
            " backbone.encoder_parameter_names()) in the constructor (ssl3d.tasks.tokens)"
        )
        broken = [n for n, p in task.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        assert not broken, f"the gradient of {broken} is not finite"

    def test_decoder_is_trained_exactly_when_needed(self) -> None:
        task, batch = self.prepared()
        self.loss(task, batch).backward()
        encoder = task.backbone.encoder_parameter_names()
        trained = [n for n, p in task.backbone.named_parameters() if n not in encoder and p.grad is not None]
        has_decoder = any(n not in encoder for n, _ in task.backbone.named_parameters())
        assert bool(trained) == (task.needs_decoder and has_decoder), f"needs_decoder={task.needs_decoder}: {trained}"

    def test_same_seeds_give_the_same_loss(self) -> None:
        task, batch = self.prepared()
        first = self.loss(task, batch)
        assert torch.equal(first, self.loss(task, batch)), "something is not drawn from batch.seed"

    def test_order_of_the_groups_does_not_matter(self) -> None:
        task, batch = self.prepared()
        group = task.region.group
        order = torch.cat([torch.arange(group, 2 * group), torch.arange(group)])
        swapped = batch._map(lambda t: t[order])
        torch.testing.assert_close(
            self.loss(task, swapped), self.loss(task, batch), rtol=self.tolerance, atol=self.tolerance
        )

    def test_batch_is_not_modified(self) -> None:
        task, batch = self.prepared()
        before = batch._map(torch.clone)
        self.loss(task, batch).backward()
        for field in dataclasses.fields(RegionBatch):
            old, new = getattr(before, field.name), getattr(batch, field.name)
            assert old is new is None or torch.equal(old, new), f"forward changed batch.{field.name}"

    def test_state_dict_round_trip(self) -> None:
        """Everything the loss depends on is in state_dict(), so that a run resumes exactly."""
        task, batch = self.prepared()
        self.train_steps(task, batch, 2)
        torch.manual_seed(99)
        other = self.make_task().train()
        other.load_state_dict(task.state_dict())
        assert torch.equal(self.loss(other, batch), self.loss(task, batch))

    def test_runs_in_bfloat16_autocast(self) -> None:
        task, batch = self.prepared()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.loss(task, batch)
        loss.backward()
        assert loss.dtype == torch.float32, "losses are computed in float32"
        torch.testing.assert_close(loss, self.loss(task, batch), rtol=0.1, atol=0.1)

    def test_a_gpu_computes_the_same_and_is_not_waited_for(self) -> None:
        """On a pretended one, which refuses operands on two devices as a real one does."""
        expected = self.loss(*self.prepared())
        task, batch = self.prepared()
        with PretendedGPU() as gpu:
            task, batch = task.to(gpu.device), batch.to(gpu.device)
            loss = self.loss(task, batch)
            loss.backward()
            task.after_step(0, 10)
            gpu.waits.clear()  # what a first step asks once does not count
            self.loss(task, batch).backward()
            waits = dict(gpu.waits)
            task(batch, preview=True)
        assert on_gpu(loss) and torch.equal(loss, expected), "the GPU has another loss"
        assert bool(waits) == self.waits_for_the_gpu, f"the CPU waits for the GPU: {waits}"

    def test_preview_pictures(self) -> None:
        task, batch = self.prepared()
        task.eval()
        with torch.no_grad():
            plain, result = self.loss(task, batch), task(batch, preview=True)
        for name, value in result.items():
            if name.startswith("preview/"):
                assert value.dim() == 3 and value.min() >= 0 and value.max() <= 1, f"{name}: (N,H,W) in [0,1]"
        assert plain.isfinite() and result["loss"].isfinite()

    def test_one_batch_can_be_overfitted(self) -> None:
        task, batch = self.prepared()
        first = self.loss(task, batch).item() - self.loss_floor
        self.train_steps(task, batch, self.overfit_steps)
        last = self.loss(task, batch).item() - self.loss_floor
        assert last < first / 2, f"{self.overfit_steps} steps on one batch took the loss from {first:.4g} to {last:.4g}"

    def train_steps(self, task: PretextTask, batch: RegionBatch, steps: int) -> None:
        """Train on the one batch."""
        trainable = [p for p in task.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.overfit_lr, weight_decay=0.0)
        for step in range(steps):
            optimizer.zero_grad()
            self.loss(task, batch).backward()
            optimizer.step()
            task.after_step(step, steps)
