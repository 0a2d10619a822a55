"""DinoViT: the conformance suite for tokens, and that it is timm's network with a third axis."""

import pytest
import timm
import torch

from ssl3d.models.dino_vit import DinoViT
from ssl3d.testing.backbone import TokenBackboneTests, randomise


class TestDinoViT(TokenBackboneTests):
    def make(self, in_channels=1):
        return DinoViT(48, 2, 3, in_channels, (4, 6, 8), (8, 12, 24), registers=2)


class TestDinoViTWithoutTokens(TokenBackboneTests):
    def make(self, in_channels=1):
        gated = {"feed_forward": "swiglu", "mlp_features": 128}
        return DinoViT(48, 2, 4, in_channels, (4, 4, 2), (8, 12, 6), class_token=False, layer_scale=False, **gated)


def test_one_slice_of_tokens_is_timms_own_network():
    """Blocks, tokens and positions: with patches of one slice, timm's 2D features come out bit by bit."""
    torch.manual_seed(0)
    theirs = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=(28, 42), depth=2, in_chans=2, num_classes=0)
    randomise(theirs).eval()
    ours = DinoViT(384, 2, 6, 2, (1, 14, 14), (1, 28, 42), registers=4).eval()
    state = theirs.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unsqueeze(2)
    assert not ours.vit.load_state_dict(state, strict=True).missing_keys
    x = torch.randn(2, 2, 28, 42)
    with torch.no_grad():
        wanted = theirs.forward_features(x)[:, 5:].transpose(1, 2).unflatten(2, (1, 2, 3))
        (found,) = ours.encode(x.unsqueeze(2))
    assert torch.equal(found, wanted)


def test_scales_of_the_decoder_follow_the_prime_factors_of_the_patch():
    assert DinoViT(48, 1, 3, patch_size=(4, 14, 14), input_size=(4, 14, 14)).decoder_strides == ((1, 1, 1), (2, 2, 2))
    assert DinoViT(48, 1, 3, patch_size=(2, 16, 16), input_size=(2, 16, 16)).decoder_strides == (
        (1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"in_channels": 0}, "model.in_channels is 0"),
        ({"depth": 0}, "model.depth is 0"),
        ({"heads": 5}, r"model.embed_dim is 768; it must be a multiple of model.heads \(5\)"),
        ({"registers": -1}, "model.registers is -1"),
        ({"feed_forward": "relu"}, "model.feed_forward is 'relu'"),
        ({"patch_size": (1, 1, 1)}, "model.patch_size"),
        ({"input_size": (96, 96, 90)}, "model.input_size .* multiples of"),
    ],
)
def test_wrong_arguments_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DinoViT(**kwargs)
