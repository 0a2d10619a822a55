"""Swin UNETR: MONAI's network without its segmentation head, so that published weights fit by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets.swin_unetr import SwinTransformerBlock
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ssl3d.models.backbone import (
    BackboneSpec,
    MaskableBackbone,
    check_image,
    check_normalisable,
    global_average,
    outermost,
)
from ssl3d.regions import Size3

Size = Literal["tiny", "S", "B", "L"]
Pooling = Literal["coarsest", "voco"]

# (features, window): S is the network of the Swin UNETR and VoCo papers ("VoCo-B"), B and L double it once and twice.
SIZES = {"tiny": (12, 4), "S": (48, 7), "B": (96, 7), "L": (192, 7)}
_POOLED_BY_VOCO = (0, 1, 2, 3, 5)  # stride 16 enters the decoder as it leaves the transformer, and no embedding


class _NumbersOnCPU(TorchFunctionMode):
    """MONAI reads its drop-path rates off a linspace, which holds no numbers while only shapes are built (on meta)."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = dict(named or {})
        return function(*arguments, **named | ({"device": "cpu"} if function is torch.linspace else {}))


class SwinUNETR(MaskableBackbone):
    """Swin UNETR: a four-stage shifted-window transformer of 2-voxel tokens, and a convolutional U-Net around it.

    `size`: tiny (CPU) | S | B | L, with f = 12, 48, 96, 192 features. `encode` gives six scales of strides 1, 2, 4, 8,
    16, 32 and f, f, 2f, 4f, 8f, 16f features: MONAI's encoder1, 2, 3, 4, the third stage as it is, and encoder10. Scale
    0 is convolutions of the image alone, so what follows from the tokens (`encode_embedded`) starts at scale 1.
    `decode` gives strides 1 to 16. Input sizes must be multiples of 32, and one of them at least 64.

    `use_v2`: a residual convolution in front of each stage (Swin UNETR V2). `pooling`: 'coarsest' averages scale 5
    (16f); 'voco' concatenates the averages of scales 0, 1, 2, 3 and 5 (24f), as VoCo does. `drop_path`: share of
    residual branches dropped in the last block, growing linearly from 0 in the first. `recompute`: keep no activations
    inside the transformer's blocks and compute them again going backward, for less memory.

    Names are those of MONAI's network without `out.`. Weights are drawn from torch's global generator. Raises
    ValueError naming the key. Tang et al., arXiv 2111.14791; V2: He et al., MICCAI 2023; VoCo: arXiv 2402.17300.
    """

    patch_size: Size3 = (2, 2, 2)
    embedded_from = 1

    def __init__(
        self,
        size: Size = "S",
        in_channels: int = 1,
        use_v2: bool = True,
        pooling: Pooling = "coarsest",
        drop_path: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"model.size is {size!r}; it must be one of {', '.join(SIZES)}")
        if in_channels < 1:
            raise ValueError(f"model.in_channels is {in_channels}; it must be at least 1")
        if pooling not in ("coarsest", "voco"):
            raise ValueError(f"model.pooling is {pooling!r}; it must be one of coarsest, voco")
        if not 0 <= drop_path < 1:
            raise ValueError(f"model.drop_path is {drop_path}; it must be at least 0 and below 1")
        self.in_channels = in_channels
        self._kwargs: dict[str, Any] = {
            "size": size,
            "in_channels": in_channels,
            "use_v2": use_v2,
            "pooling": pooling,
            "drop_path": drop_path,
            "recompute": recompute,
        }
        f, window = SIZES[size]
        self.embed_dim = f
        self.channels = (f, f, 2 * f, 4 * f, 8 * f, 16 * f)
        self.strides = tuple((s, s, s) for s in (1, 2, 4, 8, 16, 32))
        self.decoder_channels = self.channels[:-1]

        with _NumbersOnCPU():
            network = MonaiSwinUNETR(
                in_channels=in_channels,
                out_channels=1,
                feature_size=f,
                window_size=window,
                use_v2=use_v2,
                dropout_path_rate=drop_path,
                use_checkpoint=recompute,
            )
        self.swinViT = network.swinViT
        self.encoder1, self.encoder2, self.encoder3 = network.encoder1, network.encoder2, network.encoder3
        self.encoder4, self.encoder10 = network.encoder4, network.encoder10
        self.decoder5, self.decoder4, self.decoder3 = network.decoder5, network.decoder4, network.decoder3
        self.decoder2, self.decoder1 = network.decoder2, network.decoder1

    def embed(self, x: Tensor) -> Tensor:
        """(B,C,D,H,W) -> (B,N,embed_dim), tokens in (D,H,W) order. Raises ValueError on a wrong size or channels."""
        check_image(self, x)
        return self.swinViT.patch_embed(x).flatten(2).transpose(1, 2)

    def encode_embedded(self, tokens: Tensor, grid: Size3, coarsest: bool = False) -> list[Tensor]:
        """See MaskableBackbone.encode_embedded: scales 1 to 5 (strides 2 to 32) of `encode`."""
        vit = self.swinViT
        x = tokens.transpose(1, 2).unflatten(2, grid).contiguous()
        hidden = [vit.proj_out(x, normalize=True)]
        for i in range(1, 5):
            if vit.use_v2:
                x = getattr(vit, f"layers{i}c")[0](x)
            x = getattr(vit, f"layers{i}")[0](x).contiguous()
            hidden.append(vit.proj_out(x, normalize=True))
        last = self.encoder10(hidden[4])
        if coarsest:
            return [last]
        return [self.encoder2(hidden[0]), self.encoder3(hidden[1]), self.encoder4(hidden[2]), hidden[3], last]

    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> six feature maps, finest first. Raises ValueError on a wrong size or channel count."""
        check_image(self, x)
        return [self.encoder1(x), *self.encode_embedded(self.embed(x), self.grid(x.shape[2:]))]

    def decode(self, features: Sequence[Tensor], down_to: int = 0) -> list[Tensor]:
        """Encoder features -> decoder features of scales down_to, ..., 4, finest first, before any head."""
        self.check_down_to(down_to)
        x, outputs = features[-1], []
        ups = (self.decoder1, self.decoder2, self.decoder3, self.decoder4, self.decoder5)
        for scale in range(4, down_to - 1, -1):
            x = ups[scale](x, features[scale])
            outputs.append(x)
        return outputs[::-1]

    @property
    def pool_channels(self) -> int:
        """Width of `pool`: 16 f, or 24 f with model.pooling=voco."""
        return sum(self.channels[i] for i in self._pooled())

    def pool(self, features: Sequence[Tensor]) -> Tensor:
        """Encoder features -> (B, pool_channels): global averages, summed in at least float32."""
        return torch.cat([global_average(features[i]) for i in self._pooled()], dim=1)

    def _pooled(self) -> tuple[int, ...]:
        return _POOLED_BY_VOCO if self._kwargs["pooling"] == "voco" else (5,)

    def segments(self) -> list[nn.Module]:
        """The transformer's blocks, the convolutional ones of both ways."""
        return outermost(self, (SwinTransformerBlock, UnetrBasicBlock, UnetrUpBlock))

    def spec(self) -> BackboneSpec:
        """Constructor arguments."""
        return BackboneSpec("ssl3d.models.swin.SwinUNETR", dict(self._kwargs))

    def encoder_parameter_names(self) -> set[str]:
        """Every name outside `decoder1.` to `decoder5.`."""
        return {name for name in self.state_dict() if not name.startswith("decoder")}

    def embedded_parameter_names(self, coarsest: bool = False) -> set[str]:
        """The encoder's without `encoder1.`, which reads the image; with `coarsest` also without encoder2, 3 and 4."""
        used = (
            ("swinViT.", "encoder10.")
            if coarsest
            else ("swinViT.", "encoder10.", "encoder2.", "encoder3.", "encoder4.")
        )
        return {name for name in self.state_dict() if name.startswith(used)}

    def pool_parameter_names(self) -> set[str]:
        """All of the encoder with model.pooling=voco, else without the blocks of the scales that are not pooled."""
        if self._kwargs["pooling"] == "voco":
            return self.encoder_parameter_names()
        return self.embedded_parameter_names(coarsest=True)

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError when `size` (D,H,W) is no multiple of 32, or leaves one voxel to normalise."""
        super().check_size(size)
        check_normalisable(self, size)
