"""TaskTests must fail where a task is wrong: one known fault each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl3d.tasks.mae import MAE
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet


class DrawsGlobally(MAE):
    """Draws from a generator of its own, not from batch.seed."""

    def predict(self, image, blocks):
        return super().predict(image, blocks) + torch.rand((), generator=self.generator)

    generator = torch.Generator()


class MixesSamples(MAE):
    """Weighs samples by their place in the batch."""

    def forward(self, batch, preview=False):
        weight = torch.arange(1.0, len(batch) + 1).view(-1, 1, 1, 1, 1)
        return super().forward(batch.replace(image=batch.image * weight), preview)


class ChangesTheBatch(MAE):
    def forward(self, batch, preview=False):
        batch.image.mul_(0.5)
        return super().forward(batch, preview)


class KeepsAHead(MAE):
    """Has a parameter that nothing uses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.unused = nn.Linear(2, 2)


class HidesState(MAE):
    """Its loss depends on a number that is not in state_dict()."""

    calls = 0

    def after_step(self, step, steps):
        self.calls += 1

    def predict(self, image, blocks):
        return super().predict(image, blocks) + 0.01 * self.calls


class StaysBehind(MAE):
    """Makes a tensor on the CPU, wherever the image is."""

    def predict(self, image, blocks):
        return super().predict(image, blocks) * torch.ones(image.shape[1:])


class Waits(MAE):
    """Reads a number from the device in every step."""

    def predict(self, image, blocks):
        return super().predict(image, blocks) * (1.0 if image.max().item() > -9 else 2.0)


class LosesPrecision(MAE):
    def forward(self, batch, preview=False):
        return {"loss": super().forward(batch, preview)["loss"].bfloat16()}


class SaysItNeedsNoDecoder(MAE):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.needs_decoder = False


class LearnsNothing(MAE):
    def predict(self, image, blocks):
        return super().predict(image, blocks) * 1e-6


class DrawsAPictureOutOfRange(MAE):
    def forward(self, batch, preview=False):
        result = super().forward(batch, preview)
        return result | ({"preview/raw": 2 + batch.image[:, 0, 0]} if preview else {})


FAULTS = {
    DrawsGlobally: "test_same_seeds_give_the_same_loss",
    MixesSamples: "test_order_of_the_groups_does_not_matter",
    ChangesTheBatch: "test_batch_is_not_modified",
    KeepsAHead: "test_every_trainable_parameter_gets_a_gradient",
    HidesState: "test_state_dict_round_trip",
    LosesPrecision: "test_runs_in_bfloat16_autocast",
    SaysItNeedsNoDecoder: "test_decoder_is_trained_exactly_when_needed",
    LearnsNothing: "test_one_batch_can_be_overfitted",
    DrawsAPictureOutOfRange: "test_preview_pictures",
    StaysBehind: "test_a_gpu_computes_the_same_and_is_not_waited_for",
    Waits: "test_a_gpu_computes_the_same_and_is_not_waited_for",
}


@pytest.mark.parametrize("task, test", FAULTS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_suite_finds(task, test):
    class Suite(TaskTests):
        overfit_steps = 10

        def make_task(self):
            return task(TinyUNet(), patch_size=(4, 8, 12), mask_block=(2, 4, 4))

    # a tensor left on the CPU is refused by the operation that it meets
    with pytest.raises(RuntimeError if task is StaysBehind else AssertionError):
        getattr(Suite(), test)()
