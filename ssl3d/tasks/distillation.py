"""Distillation: a network learns to say what a trained one says of the same image, at every scale.

To make a small network of a large one (features of a ResEnc L into one of size S, for who has no GPU); and, in a
Combined beside another task, to keep what imported weights knew while new scans are learnt from.

Sources: Romero et al., "FitNets: hints for thin deep nets", ICLR 2015, section 3.1 (features through a linear map of
the student's); Baevski et al., "data2vec", ICML 2022, section 3.3 (normalised targets, smooth L1), as features of
different scales have no common unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl3d.augment import Compose, centre_crop
from ssl3d.losses.dense import smooth_l1, wide
from ssl3d.models.backbone import Backbone
from ssl3d.regions import RegionBatch, RegionSpec, Size3, size3
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.teacher import TrainedTeacher
from ssl3d.tasks.tokens import decoder_parameter_names, freeze_all_but
from ssl3d.tasks.trained_network import Trained, TrainedNetwork


class Distillation(TrainedTeacher, PretextTask):
    """Smooth L1 between linear maps of the backbone's features and those of a trained `teacher`, mean over scales.

    `teacher`: a network as in the model section, with `init`, the run or weights file that fills it; it may be of
    another family and size. Each of its scales is predicted from the backbone's scale nearest in stride, and each of
    the backbone's predicts the teacher's nearest one; the finer of a pair is averaged to the coarser one's grid. Of the
    teacher each voxel's features are normalised over the channels. `decoder`: scales of both decoders too. `beta`:
    below this difference the loss is quadratic. `patch_size`: voxels (D,H,W) both see; `augment`: applied before.

    Voxels of a scale that hold no valid voxel of the image count nothing.
    Raises ValueError naming the key when a value is out of range or does not fit the networks.
    """

    def __init__(
        self,
        backbone: Backbone,
        teacher: TrainedNetwork,
        patch_size: int | tuple[int, int, int],
        decoder: bool = False,
        beta: float = 1.0,
        augment: Compose | None = None,
    ) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta={beta}: must be positive")
        self.backbone, self.augment, self.beta = backbone, augment, beta
        self.teacher, self.teacher_init = build_teacher(teacher), teacher.values["init"]
        check_agree(backbone, self.teacher, decoder)
        self.input_size = as_size3("patch_size", patch_size)
        check_takes(backbone, self.input_size, "patch_size")
        check_takes(self.teacher, self.input_size, "patch_size: teacher")
        self.region = RegionSpec(augment.reach(self.input_size) if augment else self.input_size)
        self.needs_decoder = decoder
        trained = backbone.encoder_parameter_names()
        freeze_all_but(
            backbone, trained | decoder_parameter_names(backbone, self.input_size, 0) if decoder else trained
        )
        self.pairs = nearest_pairs(backbone.strides, self.teacher.strides)
        width = [(backbone.channels[i], self.teacher.channels[j]) for i, j in self.pairs]
        if decoder:
            pairs = nearest_pairs(backbone.decoder_strides, self.teacher.decoder_strides)
            width += [(backbone.decoder_channels[i], self.teacher.decoder_channels[j]) for i, j in pairs]
            self.pairs += [(i + len(backbone.strides), j + len(self.teacher.strides)) for i, j in pairs]
        self.maps = nn.ModuleList(nn.Conv3d(mine, theirs, 1) for mine, theirs in width)

    def trained_networks(self) -> Mapping[str, Trained]:
        """The teacher."""
        return {"teacher": Trained(self.teacher, self.teacher_init, self.input_size, self.needs_decoder)}

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss; `cosine` of predicted and true features, mean over scales, 1 when they agree.

        Also `valid_share` (of voxels); with `preview` pictures (B,H,W).
        """
        batch, _ = (self.augment or centre_crop)(batch, self.input_size)
        with torch.no_grad():
            theirs = self.features(self.teacher, batch.image)
        mine = self.features(self.backbone, batch.image)
        losses, cosines = [], []
        finest: tuple[Tensor, Tensor] | None = None
        for (i, j), linear in zip(self.pairs, self.maps):
            predicted, target = to_one_grid(linear(mine[i]), theirs[j])
            predicted, target = wide(predicted), over_channels(target)
            where = valid_at(batch, target.shape[2:])
            losses.append(smooth_l1(predicted, target, where, self.beta))
            agreement = F.cosine_similarity(predicted.detach(), target, dim=1)[:, None]
            cosines.append((agreement * where).sum() / where.sum().clamp(min=1))
            finest = finest or (predicted.detach(), target)
        result = {
            "loss": torch.stack(losses).mean(),
            "cosine": torch.stack(cosines).mean(),
            "valid_share": batch.valid_mask().float().mean(),
        }
        if preview and finest:
            result["preview/input"] = grey(batch.image[:, 0, batch.size[0] // 2])
            for name, picture in zip(("teacher", "student"), principal_pictures(*finest, batch.size)):
                result[f"preview/{name}"] = picture
        return result

    def features(self, network: Backbone, image: Tensor) -> list[Tensor]:
        """(B,C,D,H,W) -> the maps of the encoder, finest first, then of the decoder where it is compared."""
        encoded = network.encode(image)
        return [*encoded, *network.decode(encoded)] if self.needs_decoder else encoded


def build_teacher(node: TrainedNetwork) -> Backbone:
    """The network of `teacher`. Raises ValueError beginning with that key."""
    try:
        return node.make()
    except ValueError as error:
        raise ValueError(f"teacher: {error}") from None


def check_agree(backbone: Backbone, teacher: Backbone, decoder: bool) -> None:
    """Raise ValueError when the two take other images, or a decoder is asked for that one has not."""
    if teacher.in_channels != backbone.in_channels:
        raise ValueError(
            f"teacher.in_channels={teacher.in_channels}: both see the same images, and model.in_channels is "
            f"{backbone.in_channels}"
        )
    for key, network in (("model", backbone), ("teacher", teacher)):
        if decoder and not network.decoder_channels:
            raise ValueError(f"decoder=true: the {key}, {type(network).__name__}, has no decoder; set decoder=false")


def nearest_pairs(mine: Sequence[Size3], theirs: Sequence[Size3]) -> list[tuple[int, int]]:
    """Strides of two lists of scales -> pairs (mine, theirs): each scale of either with the nearest of the other."""

    def distance(pair: tuple[int, int]) -> float:
        return sum(abs(math.log(a / b)) for a, b in zip(mine[pair[0]], theirs[pair[1]]))

    for_each = [min(((i, j) for i in range(len(mine))), key=distance) for j in range(len(theirs))]
    for_mine = [min(((i, j) for j in range(len(theirs))), key=distance) for i in range(len(mine))]
    return sorted({*for_each, *for_mine})


def to_one_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B,C,D,H,W) of one image, each averaged to the coarser grid along every axis."""
    grid = size3(min(n, m) for n, m in zip(a.shape[2:], b.shape[2:]))
    return F.adaptive_avg_pool3d(a, grid), F.adaptive_avg_pool3d(b, grid)


def over_channels(target: Tensor) -> Tensor:
    """(B,C,D,H,W) -> the same in at least float32, each voxel's features with mean 0 and deviation 1."""
    last = wide(target).movedim(1, -1)
    with torch.autocast(target.device.type, enabled=False):
        return F.layer_norm(last, last.shape[-1:]).movedim(-1, 1)


def valid_at(batch: RegionBatch, grid: Sequence[int]) -> Tensor:
    """(B,1,*grid) bool: where a scale sees at least one valid voxel."""
    return F.adaptive_max_pool3d(batch.valid_mask().float(), tuple(grid)) > 0


def principal_pictures(predicted: Tensor, target: Tensor, size: Size3) -> tuple[Tensor, Tensor]:
    """Middle axial slices (B,H,W) in [0,1] of both maps along the direction in which the teacher's vary most."""
    points = target.movedim(1, -1).flatten(0, -2).double()
    _, vectors = torch.linalg.eigh(torch.atleast_2d(torch.cov(points.T)))
    direction = vectors[:, -1] * vectors[:, -1].sum().sign()
    middle, pictures = target.shape[2] // 2, []
    for features in (target, predicted):
        plane = torch.einsum("bchw,c->bhw", features[:, :, middle].double(), direction).to(target.dtype)
        pictures.append(grey(F.interpolate(plane[:, None], size=size[1:], mode="nearest")[:, 0]))
    return pictures[0], pictures[1]
