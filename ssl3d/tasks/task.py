"""What the training loop trains: Objective, and its self-supervised kind, PretextTask."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ssl3d.models.backbone import Backbone
from ssl3d.regions import RegionBatch, RegionSpec, Size3
from ssl3d.tasks.trained_network import Trained


class Objective(nn.Module):
    """A module that turns a batch of regions into a loss. Owns its heads; knows nothing of files or optimisers.

    Subclasses set `backbone` (what learns, and is saved as the result unless `exported` says otherwise), `region` (what
    is read), `input_size` (what the backbone sees) and `needs_decoder`, and write `forward`. Everything random is drawn
    from `batch.seed`.
    """

    backbone: Backbone
    region: RegionSpec
    input_size: Size3
    needs_decoder: bool = False
    passes: float = 1  # inputs a sample sends through the backbone, forward and back; below 1: a share of its tokens
    teacher_passes: float = 0  # inputs a sample sends through a teacher, forward only
    reads_weights: bool = False  # uses weights of the backbone's modules without calling these: cannot be sharded
    spans_batch: bool = False  # the loss pairs samples over the whole optimiser step: accumulation > 1 is refused

    @property
    def exported(self) -> Backbone:
        """What is saved as the result and looked at on the way: the backbone, or a teacher where the method says so."""
        return self.backbone

    @property
    def seen_sizes(self) -> frozenset[Size3]:
        """Voxels (D,H,W) of everything the backbone sees: the input, and what else a task cuts."""
        return frozenset({self.input_size})

    @property
    def placed_size(self) -> Size3:
        """Voxels (D,H,W) that are placed inside a volume when a region is drawn: the input, unless a task says more."""
        return self.input_size

    def trained_networks(self) -> Mapping[str, Trained]:
        """Networks that must hold trained weights before the first step, by their keys of the recipe's task section.

        None by default. The training loop fills them, as a task reads no files.
        """
        return {}

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> {"loss": scalar, ...}: "loss" is optimised, other scalars are logged.

        With `preview` the dict also holds `preview/<name>` tensors (N,H,W) in [0,1]: pictures to save.
        """
        raise NotImplementedError

    def after_step(self, step: int, steps: int) -> None:
        """Called after optimiser step `step` (0 is the first) of `steps`: EMA teachers, queues. Nothing by default."""


class PretextTask(Objective):
    """A self-supervised method: an Objective that never sees a label. Owns its heads, teacher and queue."""


def check_takes(backbone: Backbone, size: Size3, key: str) -> None:
    """Raise ValueError naming the recipe's `key` when `backbone` cannot take inputs of `size` (D,H,W)."""
    try:
        backbone.check_size(size)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
