"""Primus: the conformance suite for tokens, and equality with dynamic-network-architectures' own forward."""

import pytest
import torch
from dynamic_network_architectures.architectures import primus as dna

from ssl3d.models.primus import Primus, PrimusV2
from ssl3d.testing.backbone import TokenBackboneTests, randomise


class TestPrimus(TokenBackboneTests):
    def make(self, in_channels=1):
        return Primus("tiny", in_channels, (4, 4, 4), (8, 12, 16))


class TestPrimusAnisotropicPatch(TokenBackboneTests):
    def make(self, in_channels=1):
        return Primus("tiny", in_channels, (2, 8, 4), (4, 24, 16))


class TestPrimusV2(TokenBackboneTests):
    patches_are_apart = False  # its stem is convolutional

    def make(self, in_channels=1):
        return PrimusV2("tiny", in_channels, (16, 24, 32))


KWARGS = {"embed_dim": 96, "eva_depth": 4, "eva_numheads": 4, "init_values": 0.1, "scale_attn_inner": True}


def real_network(ours, size):
    """The network that nnU-Net trains, made for `size` voxels."""
    cls = dna.PrimusV2 if isinstance(ours, PrimusV2) else dna.Primus
    return cls(ours.in_channels, patch_embed_size=ours.patch_size, num_classes=16, input_shape=size, **KWARGS).eval()


NETWORKS = [
    pytest.param(lambda size: Primus("tiny", 2, (4, 2, 8), size), (8, 10, 32), id="v1"),
    pytest.param(lambda size: PrimusV2("tiny", 2, size), (16, 8, 32), id="v2"),
]


@pytest.mark.parametrize(("make", "size"), NETWORKS)
def test_forward_equals_the_original(make, size):
    ours = make(size).eval()
    randomise(ours)
    real = real_network(ours, size)
    missing, unexpected = real.load_state_dict(ours.state_dict(), strict=False)
    assert (missing, unexpected) == (["mask_token"], [])  # a buffer of zeros
    x = torch.randn(2, 2, *size)
    with torch.no_grad():
        features = ours.encode(x)
        order = real.eva(real.down_projection(x).flatten(2).transpose(1, 2))[0]
        assert torch.equal(features[0].flatten(2).transpose(1, 2), order)
        assert torch.equal(ours.decode(features)[0], real(x))


def test_another_grid_equals_the_original_with_a_resized_table():
    ours = Primus("tiny", 1, (4, 4, 4), (8, 12, 16)).eval()
    randomise(ours)
    grid = (4, 2, 3)
    real = real_network(ours, (16, 8, 12))
    state = ours.state_dict()
    state["eva.pos_embed"] = ours.positions(grid).detach()[None]
    real.load_state_dict(state, strict=False)
    x = torch.randn(1, 1, 16, 8, 12)
    with torch.no_grad():
        assert torch.equal(ours.decode(ours.encode(x))[0], real(x))


def test_table_is_resized_along_each_axis():
    ours = Primus("tiny", 1, (4, 4, 4), (8, 12, 16)).double()
    ramp = torch.cartesian_prod(*(torch.arange(n).double() + 0.5 for n in (2, 3, 4)))  # place of each token's centre
    with torch.no_grad():
        ours.eva.pos_embed.zero_()[0, :, :3] = ramp
    resized = ours.positions((4, 6, 8)).detach().reshape(4, 6, 8, -1)[..., :3]
    expected = torch.cartesian_prod(*(torch.arange(n).double() / 2 + 0.25 for n in (4, 6, 8))).reshape(4, 6, 8, 3)
    inner = (slice(1, -1),) * 3  # half a token at each border is held constant
    torch.testing.assert_close(resized[inner], expected[inner])


def test_rotary_positions_make_attention_relative():
    """Without the table, moving all tokens by one place changes nothing: rotary angles are differences of places."""
    ours = Primus("tiny", 1, (4, 4, 4), (8, 12, 16)).double().eval()
    randomise(ours)
    with torch.no_grad():
        ours.eva.pos_embed.zero_()
        tokens = torch.randn(1, 4, 96, dtype=torch.float64)
        place = torch.tensor([[0, 1, 5, 22]])  # of a grid of (3, 4, 5): one step along each axis stays inside
        moved = ours.blocks(tokens, (3, 4, 5), index=place + 20 + 5 + 1)[0]
        torch.testing.assert_close(moved, ours.blocks(tokens, (3, 4, 5), index=place)[0], rtol=1e-4, atol=1e-5)
        other = ours.blocks(tokens, (3, 4, 5), index=place + torch.tensor([[0, 0, 1, 0]]))[0]
        assert not torch.allclose(other, moved, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("size", "millions"), [("S", 25.86), ("B", 96.88), ("M", 150.55), ("L", 330.18)])
def test_sizes_are_the_papers(size, millions):
    with torch.device("meta"):
        network = Primus(size)
    assert sum(p.numel() for p in network.eva.parameters()) == pytest.approx(millions * 1e6, abs=1e4)
    assert network.decoder_strides == ((1, 1, 1), (2, 2, 2), (4, 4, 4))


def test_drop_path_acts_in_training_alone():
    network = Primus("tiny", 1, (4, 4, 4), (8, 8, 8), drop_path=0.9)
    x = torch.randn(4, 1, 8, 8, 8)
    assert not torch.equal(network.encode(x)[0], network.encode(x)[0])
    network.eval()
    assert torch.equal(network.encode(x)[0], network.encode(x)[0])


def test_v2_refuses_a_single_patch():
    with pytest.raises(ValueError, match="single voxel"):
        PrimusV2("tiny", 1, (16, 8, 8)).check_size((8, 8, 8))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": "H"}, r"model\.size is 'H'; it must be one of tiny, S, B, M, L"),
        ({"in_channels": 0}, r"model\.in_channels is 0"),
        ({"patch_size": (6, 8, 8)}, r"model\.patch_size is \[6, 8, 8\]"),
        ({"input_size": (100, 160, 160)}, r"model\.input_size is \[100, 160, 160\]; .* multiples of \[8, 8, 8\]"),
        ({"drop_path": 1.0}, r"model\.drop_path is 1\.0"),
    ],
)
def test_mistakes_name_their_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Primus(**{"size": "tiny", **kwargs})
