"""SwinUNETR: the conformance suite, and equality with MONAI's network."""

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR

from ssl3d.models.swin import SwinUNETR
from ssl3d.testing.backbone import MaskableBackboneTests, randomise


class TestSwinUNETR(MaskableBackboneTests):
    def make(self, in_channels=1):
        return SwinUNETR("tiny", in_channels)

    def size(self, backbone):
        return (32, 64, 32)  # another distinct axis would double the time; equality with MONAI's covers it

    def test_float64_stays_float64(self):
        """Without scale 5 and what follows: the norm of its two voxels is a sign, which rounding can turn."""
        backbone = self.build()
        x = self.image(backbone, batch=1)
        with torch.no_grad():
            single = backbone.encode(x)
            double = backbone.double().encode(x.double())
        assert all(f.dtype == torch.float64 for f in double)
        for a, b in zip(single[:5], double[:5]):
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("use_v2", [True, False])
def test_forward_equals_monais(use_v2):
    ours = SwinUNETR("tiny", 2, use_v2).eval()
    randomise(ours)
    real = MonaiSwinUNETR(2, 3, feature_size=12, window_size=4, use_v2=use_v2).eval()
    missing, unexpected = real.load_state_dict(ours.state_dict(), strict=False)
    assert (missing, unexpected) == (["out.conv.conv.weight", "out.conv.conv.bias"], [])
    x = torch.randn(1, 2, 32, 96, 64)
    with torch.no_grad():
        features = ours.encode(x)
        assert [f.shape[2:] for f in features] == [(32 // s, 96 // s, 64 // s) for s in (1, 2, 4, 8, 16, 32)]
        assert torch.equal(real.out(ours.decode(features)[0]), real(x))


def test_vocos_embedding_is_the_averages_of_five_maps():
    ours = SwinUNETR("tiny", pooling="voco").eval()
    features = [torch.randn(2, c, 2, 3, 1) for c in ours.channels]
    pooled = ours.pool(features)
    assert pooled.shape == (2, 24 * 12) == (2, ours.pool_channels)
    expected = torch.cat([features[i].mean(dim=(2, 3, 4)) for i in (0, 1, 2, 3, 5)], dim=1)
    torch.testing.assert_close(pooled, expected)
    assert SwinUNETR("tiny").pool_channels == 16 * 12


def test_small_is_vocos_base():
    """1152 pooled features, and 72 M parameters with a segmentation head (VoCo's README)."""
    network = SwinUNETR("S", pooling="voco")
    assert network.pool_channels == 1152
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(72.76e6, rel=1e-3)


def test_what_stands_in_for_a_token_is_all_that_is_seen():
    """With every token replaced, nothing of the image is left in any map that SimMIM reads."""
    network = SwinUNETR("tiny").eval()
    images = torch.randn(2, 1, 32, 64, 32)
    with torch.no_grad():
        tokens = torch.zeros_like(network.embed(images))
        for features in network.encode_embedded(tokens, network.grid((32, 64, 32))):
            assert torch.equal(features[0], features[1])


def test_recomputing_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = SwinUNETR("tiny", recompute=recompute)
        x = torch.randn(1, 1, 32, 32, 64, generator=torch.Generator().manual_seed(1))
        network.pool(network.encode(x)).square().sum().backward()
        gradients.append(network.swinViT.layers1[0].blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": "H"}, r"model\.size is 'H'; it must be one of tiny, S, B, L"),
        ({"in_channels": 0}, r"model\.in_channels is 0"),
        ({"pooling": "max"}, r"model\.pooling is 'max'; it must be one of coarsest, voco"),
        ({"drop_path": -0.1}, r"model\.drop_path is -0\.1"),
    ],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SwinUNETR(**{"size": "tiny", **kwargs})


def test_a_single_voxel_at_the_coarsest_scale_is_refused():
    with pytest.raises(ValueError, match="single voxel"):
        SwinUNETR("tiny").check_size((32, 32, 32))
