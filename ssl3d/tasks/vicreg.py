"""VICReg on volumes: two views agree, while every feature keeps its variance and no two say the same.

Source: Bardes et al., "VICReg: variance-invariance-covariance regularization for self-supervised learning", ICLR 2022,
section 4 (the loss, from lightly).
"""

from __future__ import annotations

from torch import Tensor

from ssl3d.augment import Compose
from ssl3d.losses.gather import world_size
from ssl3d.models.backbone import Backbone
from ssl3d.tasks.two_views import TwoViews


class VICReg(TwoViews):
    """Invariance, variance and covariance over the scans of all ranks; see TwoViews for the other keys.

    `invariance`, `variance`, `covariance`: weights of the three terms. At least two scans a step are needed.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        augment: Compose,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        hidden_dim: int = 2048,
        out_dim: int = 2048,
    ) -> None:
        from lightly.loss import VICRegLoss  # a second of imports that no other method needs

        super().__init__(backbone, patch_size, augment, hidden_dim, out_dim, layers=3)
        self.vicreg = VICRegLoss(lambda_param=invariance, mu_param=variance, nu_param=covariance)

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """The weighted sum of the three terms. Raises ValueError on a step of a single scan."""
        if len(first) < 2:
            raise ValueError(
                f"data.batch_size: VICReg compares the scans of a step, and this one has 1 on {world_size()} rank(s): "
                "use at least 2"
            )
        return self.vicreg(first, second)
