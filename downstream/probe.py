"""The frozen-feature linear probe: multinomial logistic regression on frozen features, voxel by voxel.

Features are standardised on the training voxels and mapped to classes by one linear layer, which is folded into 1x1x1
convolutions (heads.StageHead) and run over whole test volumes, all cells of an arm in one pass of the encoder. Classes
are sampled equally often and keep these priors: on validation patients, shifting the intercepts to the true ones won at
4 labelled patients what it lost at 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from downstream.context import Context
from downstream.frozen_features import FrozenFeatures, Voxels
from downstream.inference import predict
from downstream.measure import faults
from ssl3d.models.backbone import Backbone
from ssl3d.models.heads import StageHead
from ssl3d.moments import moments

IMPOSSIBLE = -1e4  # logit of a class no training voxel has


@dataclass
class LinearClassifier:
    """Fitted on standardised features, in the units of the raw ones: logits = weight (K, F) @ feature + bias (K,)."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


@dataclass(kw_only=True)
class Probe(FrozenFeatures):
    """Logistic regression on frozen features. `l2`: weight penalty relative to the mean loss, equal for every arm."""

    l2: float = 1e-3

    TITLE: ClassVar[str] = "Linear probe"

    def check(self, key: str) -> list[str]:
        """See Measure.check."""
        return [*super().check(key), *faults(key, [(self.l2 > 0, "l2", self.l2, "above 0")])]

    def learn(self, voxels: Voxels, n_classes: int) -> LinearClassifier:
        """See FrozenFeatures.learn."""
        return fit(voxels.features, voxels.classes, n_classes, self.l2)

    def probabilities(
        self, context: Context, backbone: Backbone, learned: Sequence[LinearClassifier], image: Tensor, row: int
    ) -> NDArray[np.float32]:
        """See FrozenFeatures.probabilities: the logits of overlapping windows are averaged, then softmax."""
        head = stack(learned, backbone.frozen_channels).to(context.device)

        def network(x: Tensor) -> Tensor:
            return head(backbone.frozen_features(x), x.shape[2:])

        logits = predict(network, image, self.patch_size, context.suite.overlap, context.device)
        return logits.unflatten(0, (len(learned), -1)).softmax(dim=1).numpy()


def fit(x: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, l2: float) -> LinearClassifier:
    """Multinomial logistic regression: mean cross-entropy + l2/2 |weight|^2 on standardised features, by L-BFGS.

    Deterministic; float64. A class without a training voxel is never predicted.
    """
    present = np.unique(y)
    mean, std = moments(x)
    weight = np.zeros((n_classes, x.shape[1]))
    bias = np.full(n_classes, IMPOSSIBLE)
    if len(present) == 1:
        bias[present] = 0.0
        return LinearClassifier(weight, bias)
    model = LogisticRegression(C=1 / (l2 * len(x)), max_iter=1000, tol=1e-4)
    model.fit((x - mean) / std, y)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(present) == 2:  # sklearn keeps the second class's row only
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    weight[present] = coefficients / std
    bias[present] = intercepts - weight[present] @ mean
    return LinearClassifier(weight, bias)


def stack(classifiers: Sequence[LinearClassifier], channels: Sequence[int]) -> StageHead:
    """One head (cells * K channels) that computes all classifiers at once."""
    head = StageHead(channels, sum(len(c.bias) for c in classifiers))
    weight = torch.from_numpy(np.concatenate([c.weight for c in classifiers])).float()
    parts = weight.split(list(channels), dim=1)
    state = {f"projections.{i}.weight": part[:, :, None, None, None] for i, part in enumerate(parts)}
    state["projections.0.bias"] = torch.from_numpy(np.concatenate([c.bias for c in classifiers])).float()
    head.load_state_dict(state)
    return head.requires_grad_(False).eval()
