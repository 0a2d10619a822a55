"""Swin UNETR as MONAI, its self-supervised pre-training, VoCo and SuPreM publish it."""

from __future__ import annotations

from ssl3d.models.backbone import BackboneSpec
from ssl3d.models.swin import SIZES
from ssl3d.weights.recognised import Hints, Recognised, State, UnusableWeightsError, count

_EMBED = "swinViT.patch_embed.proj.weight"
_TABLE = "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"
_OURS = ("swinViT.", "encoder1.", "encoder2.", "encoder3.", "encoder4.", "encoder10.", "decoder")


def read(state: State, hints: Hints) -> Recognised | None:
    """Recognise by the transformer's names, with or without `swinViT.` in front (MONAI's pre-training leaves it out).

    Raises UnusableWeightsError: a width, window or depth that no size has.
    """
    names = {name: name for name in state}
    if _EMBED not in state and "layers1.0.blocks.0.attn.relative_position_bias_table" in state:
        names = {name: f"swinViT.{name}" for name in state if name.startswith(("patch_embed.", "layers", "norm."))}
    names = {n: t.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.") for n, t in names.items()}
    renamed = {new: state[old] for old, new in names.items()}
    if _EMBED not in renamed or _TABLE not in renamed:
        return None
    embed, table = renamed[_EMBED], renamed[_TABLE]
    depths = [count(renamed, rf"swinViT\.layers{i}\.0\.blocks\.(\d+)\.") for i in (1, 2, 3, 4)]
    made = (int(embed.shape[0]), (round(table.shape[0] ** (1 / 3)) + 1) // 2)
    size = next((name for name, value in SIZES.items() if value == made), None)
    if size is None or depths != [2, 2, 2, 2] or embed.shape[2:] != (2, 2, 2):
        raise UnusableWeightsError(
            f"holds a Swin transformer of {made[0]} features, window {made[1]}, {depths} blocks and patches of "
            f"{list(embed.shape[2:])} voxels; SwinUNETR has 2 blocks a stage, 2-voxel patches and "
            f"{', '.join(f'{f} features, window {w} ({name})' for name, (f, w) in SIZES.items())}"
        )
    use_v2 = any(name.startswith("swinViT.layers1c.") for name in renamed)
    kwargs = {"size": size, "in_channels": int(embed.shape[1]), "use_v2": use_v2}
    tensors = {name: value for name, value in renamed.items() if name.startswith(_OURS)}
    whole = "encoder1.layer.conv1.conv.weight" in tensors
    why = "the file holds no such layer" if whole else "the file holds only the transformer"
    return Recognised(
        format=f"Swin UNETR {'V2' if use_v2 else 'V1'} (MONAI, VoCo, SuPreM)",
        spec=BackboneSpec("ssl3d.models.swin.SwinUNETR", kwargs),
        tensors=tensors,
        ignored={n: "a head, which no backbone has" for n in state if names.get(n) not in tensors},
        missing={"": why},
        channels=int(embed.shape[1]),
    )
