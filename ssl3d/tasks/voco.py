"""VoCo: tell from a crop's embedding how much it overlaps each of the base crops that tile a region.

Sources: Wu et al., "VoCo: a simple-yet-effective volume contrastive learning framework for 3D medical image analysis",
CVPR 2024 (v1); Wu et al., "Large-scale 3D medical image pre-training with geometric context priors", arXiv 2410.09890
(v2). Ours differs where published code errs: the teacher starts as the student, the gradient does not vanish where all
cosines are negative, other ranks' volumes take part, and labels follow the geometry in any number of axes. Published
projectors standardise features over all crops of a rank (batch norm); ours over the crops of each volume, so that the
loss does not depend on how volumes are spread over ranks and micro-batches.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ssl3d.augment import Compose, centre_crop
from ssl3d.augment.transform import check_probability
from ssl3d.losses.dense import wide
from ssl3d.losses.gather import gather, rank, world_size
from ssl3d.losses.overlap import Plateau, negative_term, positive_term, predicted_overlap, spread_of_bases
from ssl3d.losses.standardised import standardised
from ssl3d.models.backbone import Backbone
from ssl3d.models.projector import Projector
from ssl3d.regions import Geometry, RegionBatch, RegionSpec, Size3
from ssl3d.seeding import mix, torch_generators
from ssl3d.tasks.draws import between
from ssl3d.tasks.grey import grey
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.task import PretextTask, check_takes
from ssl3d.tasks.teacher import follow, make_teacher
from ssl3d.tasks.tokens import freeze_all_but


class VoCo(PretextTask):
    """Overlap of `crops` random crops with the base crops of a `grid`, from cosines of student and teacher embeddings.

    `crop_size`: voxels (D,H,W) of a crop, what the backbone sees; a region of grid * crop_size is read. `grid`: base
    crops (z,y,x): [1, 4, 4] is v1's, [1, 3, 3] v2's, [3, 3, 3] labels position on all axes. `version`: the losses; v2
    adds agreement with the next volume of the step. `teacher`: `full` (backbone and projector) or `projector` (v2's:
    one backbone for both); it follows with `momentum`. `dropout`: of the student's embedding features. `plateau`: see
    losses.overlap. `augment`: applied to every crop on its own; the overlap is the share of a crop's
    voxels that come from a base crop's cell, counted after flips, turns, scaling and deformation.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        crop_size: int | tuple[int, int, int],
        grid: tuple[int, int, int] = (1, 4, 4),
        crops: int = 2,
        version: Literal["v1", "v2"] = "v1",
        teacher: Literal["full", "projector"] = "full",
        momentum: float = 0.9,
        hidden_dim: int = 2048,
        dropout: float = 0.0,
        plateau: Plateau = "straight-through",
        augment: Compose | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_size = as_size3("crop_size", crop_size)
        self.grid = as_size3("grid", grid)
        if self.grid == (1, 1, 1):
            raise ValueError("grid=[1, 1, 1]: one base crop leaves nothing to tell apart; use [1, 4, 4]")
        for key, value in (("crops", crops), ("hidden_dim", hidden_dim)):
            if value < 1:
                raise ValueError(f"{key}={value}: at least 1")
        check_takes(backbone, self.input_size, "crop_size")
        self.crops, self.version, self.plateau = crops, version, plateau
        self.momentum, self.dropout = check_probability("momentum", momentum), check_probability("dropout", dropout)
        self.augment = augment
        self.read_size = augment.reach(self.input_size) if augment else self.input_size
        margin = [r - n for r, n in zip(self.read_size, self.input_size)]
        d, h, w = (g * n + m for g, n, m in zip(self.grid, self.input_size, margin))
        self.region = RegionSpec((d, h, w))
        self.margin = tuple(m // 2 for m in margin)
        self.spans_batch = version == "v2"
        self.passes = self.grid[0] * self.grid[1] * self.grid[2] + crops
        self.teacher_passes = self.passes if teacher == "full" else 0
        freeze_all_but(backbone, backbone.pool_parameter_names())
        self.projector = Projector(backbone.pool_channels, hidden_dim, hidden_dim, layers=3)
        self.teacher_backbone = make_teacher(backbone) if teacher == "full" else None
        self.teacher_projector = make_teacher(self.projector)

    @property
    def placed_size(self) -> Size3:
        """The tiled region is what is placed in a volume, not the crop."""
        d, h, w = (g * n for g, n in zip(self.grid, self.input_size))
        return (d, h, w)

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss, its terms, `overlap_error` (mean absolute) and `valid_share`."""
        images, overlap = self.draw_crops(batch)
        student, teacher = self.embed(images, len(batch))
        with torch.autocast(images.device.type, enabled=False):
            terms, predicted = self.compare(student, teacher, overlap)
        result = {"loss": sum(terms.values(), torch.zeros((), device=images.device))}
        result |= {name: term.detach() for name, term in terms.items()}
        result["overlap_error"] = (predicted.detach() - overlap).abs().mean()
        result["valid_share"] = batch.valid_mask().float().mean()
        if preview:
            first = images.unflatten(0, (-1, len(batch)))[-self.crops]
            result |= pictures(batch.image, first, overlap, predicted.detach(), self.grid)
        return result

    def draw_crops(self, batch: RegionBatch) -> tuple[Tensor, Tensor]:
        """(n*B,C,D,H,W), crop by crop, the K base crops first; and the true overlap (B,crops,K) of the random ones."""
        bases, starts = self.base_crops(batch), self.draw_starts(batch)
        randoms, geometries = zip(*(self.read_crop(batch, starts[:, j], f"crop {j}") for j in range(self.crops)))
        overlap = torch.stack([self.overlap(g, starts[:, j]) for j, g in enumerate(geometries)], dim=1)
        return torch.cat([crop.image for crop in (*bases, *randoms)]), overlap

    def embed(self, images: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Crops (n*B,C,D,H,W), crop by crop -> student's and teacher's embeddings (B,n,F) in at least float32."""
        pooled = self.apart(self.backbone, images, batch)
        student = wide(self.projector(nn.functional.dropout(pooled, self.dropout, self.training)))
        with torch.no_grad():
            network = self.teacher_backbone
            seen = pooled.detach() if network is None else self.apart(network, images, batch)
            teacher = wide(self.teacher_projector(seen))
        return student, teacher

    @staticmethod
    def apart(network: Backbone, images: Tensor, batch: int) -> Tensor:
        """Crops (n*B,C,D,H,W) -> pooled features (B,n,F), each standardised over the n crops of its volume."""
        pooled = wide(network.pool(network.encode(images))).unflatten(0, (-1, batch)).transpose(0, 1)
        return standardised(pooled, (1,))

    def compare(self, student: Tensor, teacher: Tensor, overlap: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Embeddings (B, K + crops, F), base crops first -> terms of the loss, and the predicted overlap."""
        k = self.grid[0] * self.grid[1] * self.grid[2]
        (bases, crops), (teacher_bases, teacher_crops) = ((z[:, :k], z[:, k:]) for z in (student, teacher))
        predicted = predicted_overlap(crops, teacher_bases, self.plateau)
        if self.version == "v1":
            predicted = 0.5 * (predicted + predicted_overlap(teacher_crops, bases, self.plateau))
        terms = {
            "positive": positive_term(predicted, overlap).mean(),
            "negative": negative_term(predicted, overlap, self.version).mean(),
            "regulariser": spread_of_bases(bases).mean(),
        }
        everyone = len(bases) * world_size()
        if self.version == "v2" and everyone > 1:
            following = (torch.arange(len(bases), device=bases.device) + rank() * len(bases) + 1) % everyone
            others, teacher_others = (gather(z.contiguous())[following] for z in (bases, teacher_bases))
            target = predicted_overlap(teacher_crops, teacher_others, "published")
            agreed = predicted_overlap(crops, others, self.plateau)
            terms["inter_volume"] = (positive_term(agreed, target) + negative_term(agreed, target, "v2")).mean()
        return terms, predicted

    def base_crops(self, batch: RegionBatch) -> list[RegionBatch]:
        """The tiles of the region, row-major over (z,y,x), each augmented on its own."""
        cells = [(z, y, x) for z in range(self.grid[0]) for y in range(self.grid[1]) for x in range(self.grid[2])]
        found = []
        for number, cell in enumerate(cells):
            start = torch.tensor([c * n for c, n in zip(cell, self.input_size)]).expand(len(batch), 3)
            found.append(self.read_crop(batch, start, f"base {number}")[0])
        return found

    def draw_starts(self, batch: RegionBatch) -> Tensor:
        """(B, crops, 3) int64 on the CPU: first voxels of the random crops, inside the tiled region."""
        last = [(g - 1) * n for g, n in zip(self.grid, self.input_size)]
        drawn = [[[between(0, m, g) for m in last] for _ in range(self.crops)]
                 for g in torch_generators(batch.seed, "crops")]  # fmt: skip
        return torch.tensor(drawn)

    def read_crop(self, batch: RegionBatch, start: Tensor, name: str) -> tuple[RegionBatch, Geometry]:
        """The crops at `start` (B,3) of the tiled region, augmented; the geometry points into what was read of them."""
        boxes = [tuple(slice(s, s + n) for s, n in zip(row, self.read_size)) for row in start.tolist()]

        def cut(field: Tensor | None) -> Tensor | None:
            return None if field is None else torch.stack([x[(..., *box)] for x, box in zip(field, boxes)])

        image = cut(batch.image)
        assert image is not None
        seeds = torch.tensor([mix(seed, name) for seed in batch.seed.tolist()])
        moved = batch.start + start.to(batch.start)
        crop = batch.replace(image=image, valid=cut(batch.valid), label=cut(batch.label), start=moved, seed=seeds)
        return (self.augment or centre_crop)(crop, self.input_size)

    def overlap(self, geometry: Geometry, start: Tensor) -> Tensor:
        """(B,K): the share of a crop's voxels that lie in each base crop, whatever flips, turns and scales it had."""
        device = geometry.matrix.device
        shift = (start - torch.tensor(self.margin)).to(device, non_blocking=True)[:, None, None, None]
        place = geometry.source_points() + shift + 0.5
        cell = (place / torch.tensor(self.input_size, device=device)).floor().long()
        inside = ((cell >= 0) & (cell < torch.tensor(self.grid, device=device))).all(-1).flatten(1)
        _, rows, columns = self.grid
        index = ((cell[..., 0] * rows + cell[..., 1]) * columns + cell[..., 2]).flatten(1)
        k = self.grid[0] * rows * columns
        counts = torch.zeros((len(index), k + 1), device=device)
        counts.scatter_add_(1, torch.where(inside, index, k), torch.ones_like(index, dtype=counts.dtype))
        return counts[:, :k] / index.shape[1]

    def after_step(self, step: int, steps: int) -> None:
        """The teacher follows."""
        follow(self.teacher_projector, self.projector, self.momentum)
        if self.teacher_backbone is not None:
            follow(self.teacher_backbone, self.backbone, self.momentum)


def pictures(image: Tensor, crop: Tensor, overlap: Tensor, predicted: Tensor, grid: Size3) -> dict[str, Tensor]:
    """Middle axial slices (B,H,W) in [0,1]: region, first crop, its true and predicted overlap with the base crops."""
    shown = {}
    for name, x in (("region", image), ("crop", crop)):
        shown[f"preview/{name}"] = grey(x[:, 0, x.shape[2] // 2])
    for name, y in (("overlap", overlap), ("predicted", predicted)):
        tiles = y[:, 0].float().unflatten(1, grid).sum(1).clamp(0, 1)  # (B, gH, gW), summed over z
        shown[f"preview/{name}"] = tiles.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return shown
