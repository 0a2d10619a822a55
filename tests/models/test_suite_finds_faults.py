"""The conformance suite must fail where a backbone is wrong: one known fault each."""

import pytest
import torch
from torch import nn

from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT
from ssl3d.testing.backbone import TokenBackboneTests


class TransposedTokens(ViT):
    """Flattens (H, D, W): the fault of nnssl's ViT."""

    def embed(self, x):
        return self.patch_embed(x).transpose(2, 3).flatten(2).transpose(1, 2)


class IgnoresPlaces(ViT):
    """Gives kept tokens the first positions instead of their own."""

    def blocks(self, tokens, grid, index=None, prefix=None, layers=None):
        first = None if index is None else torch.arange(tokens.shape[1]).expand(index.shape)
        return super().blocks(tokens, grid, first, prefix, layers)


class KeepsAHead(ResEncUNet):
    """Has a parameter that nothing uses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.decoder.seg_layers = nn.Conv3d(4, 1, 1)


class Suite(TokenBackboneTests):
    def __init__(self, cls):
        self.cls = cls

    def make(self, in_channels=1):
        if issubclass(self.cls, ViT):
            return self.cls("tiny", in_channels, (4, 4, 4))
        return self.cls("S", in_channels, {"features_per_stage": [4, 4, 4, 4]})

    def build(self, in_channels=1):
        return super(TokenBackboneTests, self).build(in_channels)


@pytest.mark.parametrize(
    ("cls", "test"),
    [
        (TransposedTokens, "test_tokens_stand_in_row_major_order"),
        (IgnoresPlaces, "test_index_keeps_places"),
        (IgnoresPlaces, "test_index_runs_on_the_kept_tokens_alone"),
        (KeepsAHead, "test_gradient_reaches_every_parameter"),
        (KeepsAHead, "test_spec_rebuilds_the_network"),
    ],
)
def test_fault_is_found(cls, test):
    with pytest.raises(AssertionError):
        getattr(Suite(cls), test)()
