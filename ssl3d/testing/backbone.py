"""What every backbone must do: inherit `BackboneTests` (or the subclass for its kind), override `make`, run pytest."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ssl3d.models.backbone import Backbone, MaskableBackbone, TokenBackbone, build_backbone
from ssl3d.regions import Size3


def _triple(values: Sequence[int]) -> Size3:
    d, h, w = values
    return (d, h, w)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter anew, so that zeros of an initialisation (last norms, biases) hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator).to(p))
    return module


class BackboneTests:
    """Conformance of a Backbone, on a non-cubic input. Keep the network that `make` builds small."""

    def make(self, in_channels: int = 1) -> Backbone:
        """A small network of the family under test."""
        raise NotImplementedError

    def size(self, backbone: Backbone) -> Size3:
        """An input size with three different numbers of coarsest voxels."""
        return _triple([s * n for s, n in zip(backbone.total_stride, (1, 2, 3))])

    def build(self, in_channels: int = 1) -> Backbone:
        """`make`, with every parameter random and the same each time."""
        torch.manual_seed(0)
        backbone = self.make(in_channels)
        randomise(backbone)
        return backbone.eval()

    def image(self, backbone: Backbone, batch: int = 2) -> Tensor:
        """A random input (B,C,D,H,W)."""
        shape = (batch, backbone.in_channels, *self.size(backbone))
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("in_channels", [1, 3])
    def test_shapes_follow_channels_and_strides(self, in_channels: int) -> None:
        backbone = self.build(in_channels)
        size = self.size(backbone)
        features = backbone.encode(self.image(backbone))
        assert backbone.in_channels == in_channels
        assert len(features) == len(backbone.channels) == len(backbone.strides)
        for f, c, stride in zip(features, backbone.channels, backbone.strides):
            assert f.shape == (2, c, *(n // s for n, s in zip(size, stride)))
        assert backbone.total_stride == backbone.strides[-1]
        assert backbone.pool(features).shape == (2, backbone.pool_channels)
        decoded = backbone.decode(features) if backbone.decoder_channels else []
        assert len(decoded) == len(backbone.decoder_channels) == len(backbone.decoder_strides)
        for f, c, stride in zip(decoded, backbone.decoder_channels, backbone.decoder_strides):
            assert f.shape == (2, c, *(n // s for n, s in zip(size, stride)))

    def test_frozen_features_are_as_wide_as_said(self) -> None:
        backbone = self.build().eval()
        with torch.no_grad():
            features = backbone.frozen_features(self.image(backbone))
            coarsest = backbone.encode(self.image(backbone))[-1]
        assert [f.shape[1] for f in features] == list(backbone.frozen_channels)
        torch.testing.assert_close(features[-1], coarsest)

    def test_scales_run_from_fine_to_coarse(self) -> None:
        backbone = self.build()
        for strides in (backbone.strides, backbone.decoder_strides):
            volumes = [math.prod(s) for s in strides]
            assert volumes == sorted(set(volumes))
        for fine, coarse in zip(backbone.strides, backbone.strides[1:]):
            assert all(c % f == 0 for f, c in zip(fine, coarse))

    def test_decode_down_to_a_scale_gives_the_same_features(self) -> None:
        backbone = self.build()
        features = backbone.encode(self.image(backbone))
        scales = len(backbone.decoder_channels)
        with torch.no_grad():
            full = backbone.decode(features) if scales else []
            for down_to in range(scales):
                part = backbone.decode(features, down_to)
                assert len(part) == scales - down_to
                assert all(torch.equal(a, b) for a, b in zip(part, full[down_to:]))
        for wrong in (-1, scales):
            with pytest.raises((ValueError, NotImplementedError)):
                backbone.decode(features, wrong)

    def test_gradient_reaches_every_parameter(self) -> None:
        backbone = self.build().train()
        features = backbone.encode(self.image(backbone))
        outputs = [*features, backbone.pool(features)]
        if backbone.decoder_channels:
            outputs += backbone.decode(features)
        _random_sum(outputs).backward()
        for name, p in backbone.named_parameters():
            assert p.grad is not None, f"{name} is never used"
            assert torch.isfinite(p.grad).all(), f"{name} has a gradient that is not finite"
            if p.ndim > 1:  # a bias before a norm has none
                assert p.grad.abs().max() > 0, f"{name} has no gradient"

    def test_encoder_names_part_the_state(self) -> None:
        backbone = self.build()
        state, encoder = set(backbone.state_dict()), backbone.encoder_parameter_names()
        assert encoder and encoder <= state
        assert bool(state - encoder) == bool(backbone.decoder_channels)
        features = backbone.encode(self.image(backbone))
        _random_sum([*features, backbone.pool(features)]).backward()
        for name, p in backbone.named_parameters():
            assert (p.grad is not None) == (name in encoder), name

    def test_spec_rebuilds_the_network(self) -> None:
        backbone = self.build(in_channels=2)
        plain = dataclasses.asdict(backbone.spec())
        assert json.loads(json.dumps(plain)) == plain, "a spec holds plain types only (lists, not tuples)"
        again = build_backbone(type(backbone.spec())(**plain)).eval()
        assert type(again) is type(backbone)
        assert again.spec() == backbone.spec()
        shapes = {k: v.shape for k, v in backbone.state_dict().items()}
        assert {k: v.shape for k, v in again.state_dict().items()} == shapes
        again.load_state_dict(backbone.state_dict())
        assert _all_equal(self._outputs(backbone), self._outputs(again))

    def test_wrong_sizes_are_refused_naming_the_axis(self) -> None:
        backbone = self.build()
        good = self.size(backbone)
        backbone.check_size(good)
        for i, axis in enumerate("DHW"):
            if backbone.total_stride[i] == 1:
                continue
            wrong = [n + 1 if j == i else n for j, n in enumerate(good)]
            with pytest.raises(ValueError, match=rf"axis {axis} is {wrong[i]}.*{backbone.total_stride[i]}"):
                backbone.check_size(wrong)
            with pytest.raises(ValueError, match=f"axis {axis}"):
                backbone.encode(torch.zeros(1, 1, *wrong))

    def test_wrong_channels_are_refused(self) -> None:
        backbone = self.build(in_channels=2)
        with pytest.raises(ValueError, match="3 channels"):
            backbone.encode(torch.zeros(1, 3, *self.size(backbone)))

    def test_is_deterministic(self) -> None:
        first, second = self.build(), self.build()
        assert _all_equal(self._outputs(first), self._outputs(first))
        assert _all_equal(self._outputs(first), self._outputs(second)), "the weights follow torch's seed"

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        backbone = self.build().double()
        x = self.image(backbone).double()
        with torch.no_grad():
            together, alone = backbone.encode(x), backbone.encode(x[1:])
        for a, b in zip(together, alone):
            torch.testing.assert_close(a[1:], b, rtol=1e-9, atol=1e-9)

    def test_float64_stays_float64(self) -> None:
        backbone = self.build()
        single = self._outputs(backbone)
        double = self._outputs(backbone.double())
        for a, b in zip(single, double):
            assert b.dtype == torch.float64
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3 * max(1.0, b.abs().max().item()))

    def test_bfloat16_autocast_is_finite_and_pools_in_float32(self) -> None:
        backbone = self.build()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = self._outputs(backbone)
        assert all(torch.isfinite(f).all() for f in outputs)
        assert backbone.pool([f.bfloat16() for f in outputs[: len(backbone.channels)]]).dtype == torch.float32

    def test_pool_depends_on_the_parameters_it_names(self) -> None:
        """What a pooled loss does not train is frozen by these names: DDP would wait for its gradients."""
        backbone = self.build()
        backbone.pool(backbone.encode(self.image(backbone))).sum().backward()
        reached = {name for name, p in backbone.named_parameters() if p.grad is not None}
        named = backbone.pool_parameter_names() & {name for name, _ in backbone.named_parameters()}
        assert reached == named, f"pool_parameter_names() is wrong about {sorted(reached ^ named)}"

    def test_runs_on_shapes_alone(self) -> None:
        """`ssl3d check` counts operations on meta tensors."""
        backbone = self.build().to("meta")
        features = backbone.encode(self.image(backbone).to("meta"))
        assert all(f.is_meta for f in features)
        if backbone.decoder_channels:
            assert all(f.is_meta for f in backbone.decode(features))

    @pytest.mark.slow
    def test_compiles_as_one_graph(self) -> None:
        backbone = self.build()
        x = self.image(backbone)
        encode = torch.compile(backbone.encode, backend="eager", fullgraph=True)
        with torch.no_grad():
            assert _all_equal(encode(x), backbone.encode(x))

    def test_a_deep_copy_is_equal_and_independent(self) -> None:
        backbone = self.build()
        twin = copy.deepcopy(backbone)
        before = self._outputs(backbone)
        assert len(list(twin.parameters())) == len(list(backbone.parameters())), "aliases stay aliases"
        randomise(twin, seed=2)
        assert _all_equal(before, self._outputs(backbone))
        assert not _all_equal(before, self._outputs(twin))

    def _outputs(self, backbone: Backbone) -> list[Tensor]:
        dtype = next(backbone.parameters()).dtype
        with torch.no_grad():
            features = backbone.encode(self.image(backbone).to(dtype))
            decoded = backbone.decode(features) if backbone.decoder_channels else []
            return [*features, *decoded, backbone.pool(features)]


class MaskableBackboneTests(BackboneTests):
    """Conformance of a MaskableBackbone: token order, and features from replaced tokens.

    `patches_are_apart`: whether a token depends on its own patch alone; a convolutional stem sees its neighbours too.
    """

    patches_are_apart = True

    def build(self, in_channels: int = 1) -> MaskableBackbone:
        """As BackboneTests.build."""
        backbone = super().build(in_channels)
        assert isinstance(backbone, MaskableBackbone)
        return backbone

    def test_tokens_stand_in_row_major_order(self) -> None:
        backbone = self.build()
        size, patch = self.size(backbone), backbone.patch_size
        grid = backbone.grid(size)
        x = self.image(backbone, batch=1)
        places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).tolist()
        with torch.no_grad():
            base = backbone.embed(x)
            assert base.shape == (1, math.prod(grid), backbone.embed_dim)
            for token in range(0, len(places), len(places) // 12 | 1):  # an odd step meets every column
                d, h, w = (slice(i * p, (i + 1) * p) for i, p in zip(places[token], patch))
                other = x.clone()
                other[:, :, d, h, w] += 1
                change = (backbone.embed(other) - base)[0].norm(dim=-1)
                assert change.argmax() == token, f"the patch at {places[token]} is not token {token}"
                if self.patches_are_apart:
                    assert change.nonzero().flatten().tolist() == [token], f"token {token} is not alone"

    def test_encode_embedded_is_encode(self) -> None:
        backbone = self.build()
        x = self.image(backbone)
        with torch.no_grad():
            features = backbone.encode_embedded(backbone.embed(x), backbone.grid(x.shape[2:]))
            assert _all_equal(features, backbone.encode(x)[backbone.embedded_from :])
            last = backbone.encode_embedded(backbone.embed(x), backbone.grid(x.shape[2:]), coarsest=True)
            assert _all_equal(last, features[-1:])

    def test_a_replaced_token_changes_every_feature_map(self) -> None:
        backbone = self.build()
        x = self.image(backbone)
        grid = backbone.grid(x.shape[2:])
        with torch.no_grad():
            tokens = backbone.embed(x)
            before = backbone.encode_embedded(tokens, grid)
            tokens[:, math.prod(grid) // 2] += 1
            after = backbone.encode_embedded(tokens, grid)
        assert len(after) == len(before) > 0
        assert not any(torch.equal(a, b) for a, b in zip(after, before))

    @pytest.mark.parametrize("coarsest", [False, True])
    def test_embedded_names_are_those_the_tokens_use(self, coarsest: bool) -> None:
        backbone = self.build()
        names = backbone.embedded_parameter_names(coarsest)
        assert names <= backbone.encoder_parameter_names()
        x = self.image(backbone)
        _random_sum(backbone.encode_embedded(backbone.embed(x), backbone.grid(x.shape[2:]), coarsest)).backward()
        for name, p in backbone.named_parameters():
            assert (p.grad is not None) == (name in names), name


class TokenBackboneTests(MaskableBackboneTests):
    """Conformance of a TokenBackbone: positions, kept subsets, prefix tokens, inner layers."""

    def build(self, in_channels: int = 1) -> TokenBackbone:
        """As BackboneTests.build."""
        backbone = super().build(in_channels)
        assert isinstance(backbone, TokenBackbone)
        return backbone

    def size(self, backbone: Backbone) -> Size3:
        """A grid of 2 x 3 x 4 tokens."""
        return _triple([s * n for s, n in zip(backbone.total_stride, (2, 3, 4))])

    def tokens(self) -> tuple[TokenBackbone, Size3, Tensor]:
        """A float64 network, a grid and random content tokens (2,N,C)."""
        backbone = self.build().double()
        grid = backbone.grid(self.size(backbone))
        shape = (2, math.prod(grid), backbone.embed_dim)
        return backbone, grid, torch.randn(shape, generator=torch.Generator().manual_seed(3)).double()

    def test_positions_for_any_grid(self) -> None:
        backbone = self.build().double()
        for grid in [(2, 3, 4), (4, 3, 2), (1, 5, 3), (3, 3, 3)]:
            table = backbone.positions(grid).detach()
            assert table.shape == (math.prod(grid), backbone.embed_dim)
            assert torch.isfinite(table).all()
            assert torch.equal(table, backbone.positions(grid).detach())
            distances = torch.cdist(table, table) + torch.eye(len(table))
            assert distances.min() > 1e-6, "two places share a position"

    def test_positions_follow_the_axes(self) -> None:
        backbone = self.build().double()
        table = backbone.positions((3, 4, 5)).detach().reshape(3, 4, 5, -1)
        for axis in range(3):  # nearer along an axis is more alike, on average
            steps = [
                (table.narrow(axis, k, table.shape[axis] - k) - table.narrow(axis, 0, table.shape[axis] - k)).norm(
                    dim=-1
                )
                for k in (1, 2)
            ]
            assert steps[0].mean() < steps[1].mean()

    def test_blocks_add_the_positions_themselves(self) -> None:
        backbone, grid, tokens = self.tokens()
        same = tokens[:, :1].expand(-1, tokens.shape[1], -1)  # as with one mask token everywhere
        out = backbone.blocks(same, grid)[0]
        assert torch.cdist(out, out).add(torch.eye(out.shape[1])).min() > 1e-6

    def test_index_keeps_places(self) -> None:
        backbone, grid, tokens = self.tokens()
        n = tokens.shape[1]
        full = backbone.blocks(tokens, grid)[0]
        everything = torch.arange(n).expand(2, n)
        torch.testing.assert_close(backbone.blocks(tokens, grid, index=everything)[0], full)
        shuffled = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(s)) for s in (4, 5)])
        out = backbone.blocks(_take(tokens, shuffled), grid, index=shuffled)[0]
        torch.testing.assert_close(out, _take(full, shuffled))

    def test_index_runs_on_the_kept_tokens_alone(self) -> None:
        backbone, grid, tokens = self.tokens()
        kept = torch.tensor([[1, 5, 6, 11], [0, 23, 7, 2]])
        together = backbone.blocks(_take(tokens, kept), grid, index=kept)[0]
        assert together.shape == (2, 4, backbone.embed_dim)
        for b in range(2):
            alone = backbone.blocks(tokens[b : b + 1, kept[b]], grid, index=kept[b : b + 1])[0]
            torch.testing.assert_close(together[b : b + 1], alone)
        elsewhere = backbone.blocks(_take(tokens, kept), grid, index=kept.flip(0))[0]
        assert not torch.allclose(together, elsewhere), "the places of the tokens make no difference"

    def test_prefix_tokens_stand_in_front_without_places(self) -> None:
        backbone, grid, tokens = self.tokens()
        prefix = torch.randn((2, 2, backbone.embed_dim), generator=torch.Generator().manual_seed(6)).double()
        out = backbone.blocks(tokens, grid, prefix=prefix)[0]
        assert out.shape == (2, 2 + tokens.shape[1], backbone.embed_dim)
        swapped = backbone.blocks(tokens, grid, prefix=prefix.flip(1))[0]
        torch.testing.assert_close(swapped[:, :2], out[:, :2].flip(1))
        torch.testing.assert_close(swapped[:, 2:], out[:, 2:])
        assert not torch.allclose(out[:, 2:], backbone.blocks(tokens, grid)[0])

    def test_layers_are_returned_as_asked(self) -> None:
        backbone, grid, tokens = self.tokens()
        first, second = backbone.blocks(tokens, grid, layers=[0, 1])
        assert first.shape == second.shape == tokens.shape
        assert not torch.equal(first, second)
        again = backbone.blocks(tokens, grid, layers=[1])
        assert len(again) == 1 and torch.equal(again[0], second)
        assert len(backbone.blocks(tokens, grid)) == 1
        with pytest.raises(ValueError, match="layers"):
            backbone.blocks(tokens, grid, layers=[backbone.depth])

    def test_frozen_features_are_blocks_over_the_depth(self) -> None:
        backbone = self.build().eval()
        layers = backbone.frozen_layers
        assert layers == sorted(set(layers)) and layers[-1] == backbone.depth - 1
        assert len(layers) == min(4, backbone.depth)
        image = self.image(backbone)
        with torch.no_grad():
            found = backbone.frozen_features(image)
            first = backbone.blocks(backbone.embed(image), backbone.grid(image.shape[2:]), layers=layers[:1])[0]
            assert torch.equal(found[0].flatten(2).transpose(1, 2), backbone.last_norm(first))

    def test_the_last_layer_normalised_is_what_is_encoded(self) -> None:
        backbone, grid, tokens = self.tokens()
        kept = torch.tensor([[1, 5, 6, 11], [0, 23, 7, 2]])
        few = _take(tokens, kept)
        last = backbone.blocks(few, grid, index=kept, layers=[0, backbone.depth - 1])[-1]
        assert torch.equal(backbone.last_norm(last), backbone.blocks(few, grid, index=kept)[0])


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _random_sum(outputs: Sequence[Tensor]) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.stack([(f * torch.randn(f.shape, generator=generator).to(f)).sum() for f in outputs]).sum()


def _all_equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))
