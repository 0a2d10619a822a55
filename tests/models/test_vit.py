"""ViT: the conformance suite for tokens, and what is particular to this family."""

import pytest
import torch

from ssl3d.models.vit import ViT
from ssl3d.testing.backbone import TokenBackboneTests


class TestViTTiny(TokenBackboneTests):
    def make(self, in_channels=1):
        return ViT("tiny", in_channels, (4, 8, 8))


class TestViTCubicPatch(TokenBackboneTests):
    def make(self, in_channels=1):
        return ViT("tiny", in_channels, (4, 4, 4))


def test_positions_of_a_smaller_grid_are_a_corner_of_a_larger():
    vit = ViT("tiny", patch_size=(8, 8, 8)).double()
    large = vit.positions((4, 5, 6)).reshape(4, 5, 6, -1)
    assert torch.equal(vit.positions((2, 3, 4)).reshape(2, 3, 4, -1), large[:2, :3, :4])


def test_encode_is_the_last_block_on_the_grid():
    vit = ViT("tiny", patch_size=(4, 8, 4))
    x = torch.randn(1, 1, 8, 24, 16)
    (features,) = vit.encode(x)
    tokens = vit.blocks(vit.embed(x), (2, 3, 4))[0]
    assert features.shape == (1, 96, 2, 3, 4)
    assert torch.equal(features[0, :, 1, 2, 3], tokens[0, 1 * 12 + 2 * 4 + 3])


def test_decoder_reaches_full_resolution():
    vit = ViT("tiny", patch_size=(4, 16, 16))
    assert vit.decoder_strides == ((1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8))
    assert vit.decoder_channels == (16, 16, 24, 48)


def test_features_left_over_by_three_axes_are_zero():
    with torch.device("meta"):
        vit = ViT("L")
    assert vit.embed_dim % 6 == 4
    vit.patch_embed = torch.nn.Conv3d(1, 1024, 16, 16)
    table = vit.positions((1, 2, 3))
    assert table.shape == (6, 1024) and not table[:, -4:].any() and table[:, :-4].any(0)[-1]


def test_large_and_base_have_the_papers_sizes():
    with torch.device("meta"):
        base, large = ViT("B"), ViT("L")
    for vit, depth, millions in ((base, 12, 85.05), (large, 24, 302.3)):
        assert len(vit.layers) == depth
        assert sum(p.numel() for p in vit.layers.parameters()) == pytest.approx(millions * 1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": "huge"}, r"model\.size is 'huge'"),
        ({"in_channels": 0}, r"model\.in_channels is 0"),
        ({"patch_size": (6, 8, 8)}, r"model\.patch_size is \[6, 8, 8\]"),
        ({"patch_size": (1, 1, 1)}, r"model\.patch_size"),
    ],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ViT(**kwargs)
