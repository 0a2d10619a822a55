"""Copied beside nnU-Net's folders and run in nnU-Net's environment: its trainer with a budget and a seed.

nnU-Net's loss, optimiser, schedule and augmentation are untouched. It reads its numbers from the environment, since
nnU-Net makes its trainers without arguments.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class SSL3DCell(nnUNetTrainer):
    """Trains SSL3D_EPOCHS epochs of SSL3D_ITERATIONS steps from the seed SSL3D_SEED."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")) -> None:  # noqa: B008 - nnU-Net's signature
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["SSL3D_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["SSL3D_ITERATIONS"])
        self.num_val_iterations_per_epoch = 1  # there are no validation patients: the value is looked at by nobody
        self.save_every = self.num_epochs
        seed = int(os.environ["SSL3D_SEED"])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def perform_actual_validation(self, *args, **kwargs) -> None:
        """Nothing: the training patients would be predicted."""
