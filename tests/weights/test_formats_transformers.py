"""Vision transformers of the real libraries, as they are published: imported, and the same features come out."""

import pytest
import timm
import torch
from dynamic_network_architectures.architectures.primus import Primus as NNUNetPrimus
from timm.models.vision_transformer import Block
from torch import nn

from ssl3d.models.dino_vit import DinoViT
from ssl3d.weights import Choices, fill_from, import_weights


@pytest.fixture
def primus(randomised):
    """primus(input_shape, classes) -> nnU-Net's own Primus, as small as our 'tiny', two channels."""

    def build(input_shape, classes=3):
        return randomised(
            NNUNetPrimus(
                input_channels=2, embed_dim=96, patch_embed_size=(8, 8, 8), num_classes=classes, eva_depth=4,
                eva_numheads=4, input_shape=input_shape, init_values=0.1, scale_attn_inner=True,
            )
        )  # fmt: skip

    return build


@torch.no_grad()
def primus_features(network, x, order="dhw"):
    """Tokens of nnU-Net's Primus on their grid; `order`: how it flattens the axes of (B, C, D, H, W)."""
    x = network.down_projection(x)
    axes = ["dhw".index(a) + 2 for a in order]
    grid = [x.shape[a] for a in axes]
    tokens, _ = network.eva(x.permute(0, *axes, 1).flatten(1, 3))
    back = [order.index(a) + 1 for a in "dhw"]
    return tokens.unflatten(1, grid).permute(0, 4, *back)


@torch.no_grad()
def test_primus_of_nnunet(save, primus, volume):
    network = primus((16, 24, 32))
    content = {"network_weights": network.state_dict(), "ssl3d": {"pretrain_patch_size": [16, 24, 32]}}
    backbone, report = import_weights(save(content))
    x = volume(16, 24, 32)
    assert type(backbone).__name__ == "Primus" and report.share("encoder") == 1
    assert torch.equal(backbone.encode(x)[0], primus_features(network, x))
    assert report.share("decoder") == 0, "nnU-Net derives the decoder's widths from the number of classes"
    whole = primus((16, 24, 32), classes=16)
    backbone, report = import_weights(save({**content, "network_weights": whole.state_dict()}))
    features = backbone.encode(x)
    assert report.share() == 1
    assert torch.equal(backbone.decode(features)[0], whole.up_projection(features[0]))


@torch.no_grad()
def test_primus_of_nnssl_gives_nnssls_features_in_our_token_order(save, primus, volume):
    """nnssl flattens (h w d): positions, learned and rotary, are brought to our order; equal up to rounding (1e-5)."""
    network = primus((16, 16, 24))
    plan = {"pretrain_patch_size": [16, 16, 24], "architecture_plans": {"arch_class_name": "PrimusM"}}
    backbone, report = import_weights(save({"network_weights": network.state_dict(), "nnssl_adaptation_plan": plan}))
    x = volume(16, 16, 24)
    theirs, ours = primus_features(network, x, "hdw"), backbone.encode(x)[0]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    plain = primus_features(network, x)
    assert (ours - plain).abs().max() > 0.01 * plain.abs().max(), "the order makes a difference"
    assert any("token" in t.reason for t in report.tensors if t.outcome == "adapted")


def test_primus_positions_that_are_no_cube_need_a_size(save, primus):
    path = save({"network_weights": primus((16, 24, 32)).state_dict()})
    with pytest.raises(ValueError, match=r"positions of 24 tokens, which is no cube.*model\.input_size"):
        import_weights(path)
    from ssl3d.models.primus import Primus

    assert fill_from(Primus("tiny", 2, input_size=(16, 24, 32)), path).share("encoder") == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("inflate", ["mean", "centre"])
def test_timm_and_dinov2_in_one_slice_of_tokens(save, name, inflate):
    """A volume as deep as one patch, all slices equal (or the central one): timm's features, up to rounding (1e-5)."""
    patch = 14 if "14" in name else 16
    torch.manual_seed(0)
    network = timm.create_model(name, img_size=3 * patch, depth=2, num_classes=4).eval()
    for p in network.parameters():  # layer scales start at 1e-5: what a trained network's blocks do is in view
        p.add_(0.05 * torch.randn(p.shape))
    backbone, report = import_weights(save(network.state_dict()), Choices(inflate=inflate), in_channels=2)
    flat = torch.randn(2, 2, 3 * patch, 3 * patch, generator=torch.Generator().manual_seed(1))
    rgb = flat.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    volume = flat.unsqueeze(2).expand(-1, -1, patch, -1, -1).clone()
    if inflate == "centre":
        volume[:, :, : patch // 2] = 7.0
    prefix = network.num_prefix_tokens
    theirs = network.forward_features(rgb)[:, prefix:].transpose(1, 2).unflatten(2, (1, 3, 3))
    ours = backbone.encode(volume)[0]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert report.share("encoder") == 1 and backbone.in_channels == 2


class Volumetric(nn.Module):
    """DINOv2's network with three axes, from timm's blocks: what 3DINO and TAP-CT train."""

    def __init__(self, patch=(4, 8, 8), grid=(2, 2, 2), registers=0) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(2, 96, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 96))
        self.mask_token = nn.Parameter(torch.zeros(1, 96))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1] * grid[2], 96))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, 96))
        self.registers = registers
        self.blocks = nn.ModuleList(
            Block(96, 1, qkv_bias=True, init_values=1.0, norm_layer=lambda d, **_: nn.LayerNorm(d, eps=1e-6))
            for _ in range(4)
        )
        self.norm = nn.LayerNorm(96, eps=1e-6)

    def forward(self, x):
        x = self.patch_embed.proj(x)
        grid = x.shape[2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + self.pos_embed
        if self.registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + self.registers :].transpose(1, 2).unflatten(2, grid)


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 3])
def test_dinov2_in_three_axes(save, randomised, volume, registers):
    """3DINO's teacher in chunks of blocks; a class token with a position, registers without."""
    network = randomised(Volumetric(registers=registers))
    state = {f"backbone.{k}": v for k, v in network.state_dict().items()}
    for i in range(4):  # sharded training keeps its blocks in chunks, and their numbers
        for name in [n for n in state if n.startswith(f"backbone.blocks.{i}.")]:
            state[name.replace(f"blocks.{i}.", f"blocks.{i // 2}.{i}.")] = state.pop(name)
    state |= {"dino_head.mlp.0.weight": torch.ones(2, 2), "ibot_head.mlp.0.weight": torch.ones(2, 2)}
    backbone, report = import_weights(save({"teacher": state, "iteration": 9}))
    x = volume(8, 16, 16)
    ours, theirs = backbone.encode(x)[0], network(x)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert report.share("encoder") == 1 and "DINOv2 in 3D" in report.format
    assert {t.name for t in report.tensors if t.outcome == "ignored"} >= {"mask_token"}
    assert backbone.encode(volume(4, 24, 32))[0].shape == (2, 96, 1, 3, 4), "other grids have positions too"


@torch.no_grad()
def test_a_table_that_is_no_cube_needs_the_size_of_the_model(save, randomised, volume):
    network = randomised(Volumetric(grid=(2, 3, 2)))
    path = save(network.state_dict())
    with pytest.raises(ValueError, match=r"no cube is left.*model\.input_size"):
        import_weights(path)
    backbone = DinoViT(96, 4, 1, 2, (4, 8, 8), (8, 24, 16)).eval()
    fill_from(backbone, path)
    x = volume(8, 24, 16)
    theirs = network(x)
    assert (backbone.encode(x)[0] - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@torch.no_grad()
def test_hugging_faces_names_are_timms(save, randomised, volume):
    network = randomised(Volumetric(registers=2))
    state = {}
    for name, value in network.state_dict().items():
        for old, new in (
            ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
            ("pos_embed", "embeddings.position_embeddings"),
            ("cls_token", "embeddings.cls_token"), ("mask_token", "embeddings.mask_token"),
            ("register_tokens", "embeddings.register_tokens"), ("blocks.", "encoder.layer."),
            (".attn.proj.", ".attention.output.dense."), (".ls1.gamma", ".layer_scale1.lambda1"),
            (".ls2.gamma", ".layer_scale2.lambda1"),
        ):  # fmt: skip
            name = name.replace(old, new)
        name = name.replace("norm.", "layernorm.") if name.startswith("norm.") else name
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3)):
                state[name.replace("attn.qkv", f"attention.attention.{part}")] = piece.clone()
        else:
            state[name] = value
    backbone, report = import_weights(save(state))
    x = volume(8, 16, 16)
    theirs = network(x)
    assert (backbone.encode(x)[0] - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert report.share("encoder") == 1


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"rope.periods": torch.ones(5)}, "rotary positions"),
        ({"norm_pre.weight": torch.ones(96)}, "CLIP"),
        ({"blocks.0.attn.q_norm.weight": torch.ones(96)}, "norms of queries"),
    ],
)
def test_transformers_of_another_kind_say_what_they_have(save, extra, says):
    with pytest.raises(ValueError, match=f"vision transformer with .*{says}.*which DinoViT has not"):
        import_weights(save(Volumetric().state_dict() | extra))
