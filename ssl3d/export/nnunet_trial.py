"""A trainer for nnU-Net that tries pre-trained weights; found in the folder that nnUNet_extTrainer names:

    export nnUNet_extTrainer="$PWD/trainers"
    nnUNetv2_train DATASET CONFIGURATION FOLD -p PLANS -tr SSL3DTrial -pretrained_weights checkpoint.pth

`ssl3d export --to nnunet` writes this file beside the weights, on top of the trainer that builds their network. It
needs nnunetv2 (2.6 or later) and nothing of ssl3d.
"""

from __future__ import annotations

from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer


class SSL3DTrial(Trainer):
    """One epoch of ten steps, no validation: do data, plans and weights fit? It says how many weights were loaded."""

    def initialize(self) -> None:
        """nnU-Net's, of the shorter training."""
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 10, 1
        super().initialize()

    def on_train_start(self) -> None:
        """Compare before anything is trained."""
        if not self.was_initialized:  # nnU-Net builds the network here where no weights were given
            self.initialize()
        self.print_to_log_file(compared(self.network.state_dict(), Path(__file__).parents[1] / "checkpoint.pth"))
        super().on_train_start()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """None."""


def compared(state: dict[str, torch.Tensor], file: Path) -> str:
    """A sentence: how many tensors of a network are those of `file`. Heads are left out, which nnU-Net never loads."""
    if not file.is_file():
        return f"SSL3DTrial: there is no '{file}' to compare the network with"
    weights = torch.load(file, map_location="cpu", weights_only=True)["network_weights"]
    equal: dict[int, bool] = {}  # by where a tensor lies: nnU-Net has it under two or four names
    for name, value in state.items():
        plain = name.removeprefix("module.").removeprefix("_orig_mod.")
        if ".seg_layers." not in plain:
            same = plain in weights and torch.equal(weights[plain], value.cpu())
            equal[value.data_ptr()] = same and equal.get(value.data_ptr(), True)
    count = sum(equal.values())
    remedy = "" if count == len(equal) else "; was -pretrained_weights given, with this file and its configuration?"
    return f"SSL3DTrial: {count} of {len(equal)} tensors of encoder and decoder are those of '{file}'{remedy}"
