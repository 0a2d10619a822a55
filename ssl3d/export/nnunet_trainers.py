"""Trainers for nnU-Net that fine-tune pre-trained weights; found in the folder that nnUNet_extTrainer names:

    export nnUNet_extTrainer="$PWD/trainers"
    nnUNetv2_train DATASET CONFIGURATION FOLD -p PLANS -tr SSL3DWarmup -pretrained_weights checkpoint.pth

`ssl3d export --to nnunet` writes this file beside the weights. It needs nnunetv2 (2.6 or later) and nothing of ssl3d.
"""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

_ENCODER = ("encoder.", "decoder.encoder.")
_EXPONENT = 0.9  # nnU-Net's polynomial decay


class Schedule:
    """Learning rates by epoch alone, so that `--c` goes on where it was: nnU-Net saves no scheduler.

    For `frozen` epochs the encoder is held (rate 0) while the rest warms up; then, over `warmup` epochs, the rates of
    all parameters grow linearly to `rate`; then they decay as nnU-Net's do, to reach 0 at `epochs`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rate: float, epochs: int, frozen: int, warmup: int) -> None:
        if frozen + warmup >= epochs:
            raise ValueError(
                f"{frozen} epochs with the encoder held and {warmup} of warm-up leave none of {epochs} to train: "
                "lower frozen_epochs and warmup_epochs in your trainer"
            )
        self.optimizer, self.rate, self.epochs, self.frozen, self.warmup = optimizer, rate, epochs, frozen, warmup
        self.step(0)

    def factor(self, epoch: int, encoder: bool) -> float:
        """What the rate is multiplied with."""
        if epoch < self.frozen:
            return 0.0 if encoder else (epoch + 1) / self.frozen
        start = self.frozen + self.warmup
        if epoch < start:
            return (epoch - self.frozen + 1) / self.warmup
        return float((1 - (epoch - start) / (self.epochs - start)) ** _EXPONENT)

    def step(self, epoch: int) -> None:
        """Set the rates of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * self.factor(epoch, group["encoder"])

    def get_last_lr(self) -> list[float]:
        """The rates of the parameter groups."""
        return [group["lr"] for group in self.optimizer.param_groups]


class SSL3DWarmup(nnUNetTrainer):
    """nnU-Net's training, its learning rate grown linearly over the first 50 epochs: gentle to trained weights."""

    warmup_epochs = 50
    frozen_epochs = 0

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's SGD with the encoder in a group of its own, and the schedule."""
        parts: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
        for name, parameter in self.network.named_parameters():
            plain = name.removeprefix("module.").removeprefix("_orig_mod.")
            parts[plain.startswith(_ENCODER)].append(parameter)
        groups = [{"params": parameters, "encoder": encoder} for encoder, parameters in parts.items()]
        optimizer = torch.optim.SGD(
            groups, self.initial_lr, weight_decay=self.weight_decay, momentum=0.99, nesterov=True
        )
        schedule = Schedule(optimizer, self.initial_lr, self.num_epochs, self.frozen_epochs, self.warmup_epochs)
        return optimizer, schedule


class SSL3DEncoderFirst(SSL3DWarmup):
    """For weights without a trained decoder: the encoder is held for 50 epochs while the fresh decoder warms up.

    Then both warm up over 50 epochs and train on: the noise of a fresh decoder never reaches the trained encoder.
    """

    frozen_epochs = 50
