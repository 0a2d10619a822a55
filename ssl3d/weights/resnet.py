"""ResNets: MedicalNet's and MONAI's in 3D, torchvision's and timm's in 2D, which are inflated."""

from __future__ import annotations

from torch import Tensor

from ssl3d.models.backbone import BackboneSpec
from ssl3d.models.resnet import DEPTHS
from ssl3d.weights.inflate import WORDS, inflate
from ssl3d.weights.recognised import Hints, Recognised, State, UnusableWeightsError, count, split

_HEADS = ("fc.", "conv_seg.", "head.")


def read(state: State, hints: Hints) -> Recognised | None:
    """Recognise by the names of stem and layers; depth by the number of blocks.

    Raises UnusableWeightsError: another number of blocks, a stem or shortcut that no ResNet here has.
    """
    if "conv1.weight" not in state or "layer1.0.conv2.weight" not in state or "layer4.0.conv2.weight" not in state:
        return None
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    layers = [count(state, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)]
    depth = next((d for d, (b, n, _) in DEPTHS.items() if (b, n) == (block, layers)), None)
    stem = state["conv1.weight"]
    flat = stem.ndim == 4
    if depth is None or stem.shape[2:] != (7,) * (stem.ndim - 2):
        raise UnusableWeightsError(
            f"holds a ResNet of {layers} {block} blocks with a {list(stem.shape[2:])} stem; known are a 7 x 7 (x 7) "
            f"stem and depths {', '.join(map(str, DEPTHS))}"
        )
    if state["layer1.0.conv2.weight"].shape[1] != state["layer1.0.conv1.weight"].shape[0]:
        raise UnusableWeightsError("holds a ResNeXt (grouped convolutions), which no backbone is")
    width = int(stem.shape[0]) / 64
    if block == "bottleneck" and state["layer1.0.conv1.weight"].shape[0] != stem.shape[0]:
        raise UnusableWeightsError("holds a wide ResNet (wide inside its bottlenecks only), which no backbone is")
    used, ignored = split(state, _HEADS)
    shortcut = "B" if "layer2.0.downsample.0.weight" in state else "A"
    medicalnet = not flat and "module." in hints.prefix and "fc.weight" not in state
    kwargs = {
        "depth": depth, "in_channels": 1 if flat else int(stem.shape[1]), "dilated": medicalnet, "width": width,
        "shortcut": shortcut,
    }  # fmt: skip
    found = Recognised(
        format=f"ResNet-{depth} ({'torchvision, timm: 2D' if flat else 'MedicalNet' if medicalnet else 'MONAI'})",
        spec=BackboneSpec("ssl3d.models.resnet.ResNet", kwargs),
        tensors=used,
        ignored=ignored,
        channels=int(stem.shape[1]),
    )
    _fold_biases(found)
    if flat:
        _inflate(found, hints)
    elif not medicalnet:
        found.notes.append(
            "its stem is taken to have stride 2, as in the paper (MONAI's default is 1: not in the file)"
        )
    return found


def _fold_biases(found: Recognised) -> None:
    """MONAI's shortcuts may have a bias in front of a batch norm: the norm's running mean takes it in, exactly."""
    for name in [n for n in found.tensors if n.endswith(".downsample.0.bias")]:
        mean = name.replace(".0.bias", ".1.running_mean")
        found.tensors[mean] = found.tensors[mean] - found.tensors.pop(name)
        found.adapted[mean] = "minus the bias of the convolution before it, which a batch norm takes away"


def _inflate(found: Recognised, hints: Hints) -> None:
    for name, value in found.tensors.items():
        if value.ndim == 4:
            found.tensors[name] = inflate_square(value, hints)
            found.adapted[name] = f"inflated ({hints.inflate})"
    found.notes.append(f"2D kernels became 3D ({hints.inflate}): {WORDS[hints.inflate]}")
    found.notes.append("trained on photographs normalised by ImageNet's mean and deviation, which is not undone")


def inflate_square(value: Tensor, hints: Hints) -> Tensor:
    """(O, I, k, k) -> (O, I, k, k, k)."""
    return inflate(value, int(value.shape[2]), hints.inflate)
