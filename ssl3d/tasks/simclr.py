"""SimCLR on volumes: two views of a scan attract, all other scans of the step repel.

Source: Chen et al., "A simple framework for contrastive learning of visual representations", ICML 2020, section 2
(NT-Xent, from lightly).
"""

from __future__ import annotations

from torch import Tensor

from ssl3d.augment import Compose
from ssl3d.models.backbone import Backbone
from ssl3d.tasks.two_views import TwoViews


class SimCLR(TwoViews):
    """NT-Xent between two views, with the scans of all ranks as negatives; see TwoViews for the other keys.

    `temperature`: of the softmax over cosines.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        augment: Compose,
        temperature: float = 0.1,
        hidden_dim: int = 2048,
        out_dim: int = 128,
    ) -> None:
        from lightly.loss import NTXentLoss  # a second of imports that no other method needs

        super().__init__(backbone, patch_size, augment, hidden_dim, out_dim, layers=2)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be positive")
        self.nt_xent = NTXentLoss(temperature=temperature)

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Cross-entropy of finding each view's other half among all views."""
        return self.nt_xent(first, second)
