"""GraphMatching: the scans of a step form a graph in each of two views; find which vertex is which by matching both.

Source: Nguyen et al., "LVM-Med: learning large-scale self-supervised vision models for medical imaging via second-order
graph matching", NeurIPS 2023, arXiv 2306.11925. The paper's pre-training code is not published; ours follows its idea
on volumes, with a relaxation in place of its discrete solver (see losses.matching) and without message passing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl3d.augment import Compose
from ssl3d.losses.dense import wide
from ssl3d.losses.gather import gather, world_size
from ssl3d.losses.matching import edge_directions, global_affinity, hamming, local_affinity, soft_matching
from ssl3d.losses.standardised import standardised_rows
from ssl3d.models.backbone import Backbone
from ssl3d.models.projector import Projector
from ssl3d.regions import RegionBatch, size3
from ssl3d.tasks.masking import as_size3
from ssl3d.tasks.two_views import TwoViews

CELL_VALID = 0.5  # share of a cell that must be valid for it to be compared


class GraphMatching(TwoViews):
    """Hamming distance of a soft second-order matching between the view graphs to the identity; see TwoViews.

    Vertices are the scans of all ranks, edges lead to their `neighbours` nearest. Two vertices are alike by
    `global_share` of the cosine of their pooled embeddings and for the rest by their cells: the coarsest features,
    averaged to `cells` (D,H,W) at most and embedded by a projector of their own, each compared with the most similar
    cell of the other scan; 1 compares pooled embeddings alone. Edges count `edge_weight` times the cosine of their
    directions; 0 is first-order matching. `temperature`, `rounds`, `iterations`: of the relaxation.
    At least two scans a step are needed.
    Raises ValueError naming the key when a value is out of range or does not fit the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        patch_size: int | tuple[int, int, int],
        augment: Compose,
        global_share: float = 0.8,
        cells: int | tuple[int, int, int] = 3,
        neighbours: int = 5,
        edge_weight: float = 1.0,
        temperature: float = 0.1,
        rounds: int = 3,
        iterations: int = 10,
        hidden_dim: int = 2048,
        out_dim: int = 128,
    ) -> None:
        super().__init__(backbone, patch_size, augment, hidden_dim, out_dim, layers=2)
        if not 0 <= global_share <= 1:
            raise ValueError(f"global_share={global_share}: a share, 0 to 1")
        if edge_weight < 0:
            raise ValueError(f"edge_weight={edge_weight}: at least 0")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be positive")
        for key, value, low in (("neighbours", neighbours, 1), ("rounds", rounds, 0), ("iterations", iterations, 1)):
            if value < low:
                raise ValueError(f"{key}={value}: at least {low}")
        self.cells = as_size3("cells", cells)
        self.global_share, self.edge_weight, self.neighbours = global_share, edge_weight, neighbours
        self.temperature, self.rounds, self.iterations = temperature, rounds, iterations
        if global_share < 1:
            self.local_projector = Projector(backbone.channels[-1], hidden_dim, out_dim)

    def scores(self, views: list[RegionBatch], features: list[Tensor]) -> dict[str, Tensor]:
        """Encoder features of both views -> loss, `similarity`, and `matched_share` (scans matched to themselves).

        Raises ValueError on a step of a single scan.
        """
        embedded = self.embed(features)
        first, second = (gather(half.contiguous()) for half in embedded.chunk(2))
        if len(first) < 2:
            raise ValueError(
                f"data.batch_size: GraphMatching matches the scans of a step, and this one has 1 on {world_size()} "
                "rank(s): use at least 2"
            )
        with torch.autocast(embedded.device.type, enabled=False):
            vertex = global_affinity(first, second)
            similarity = vertex.detach().diagonal().mean()
        if self.global_share < 1:
            local = self.compare_cells(views, features[-1])
            vertex = self.global_share * vertex + (1 - self.global_share) * local
        with torch.autocast(embedded.device.type, enabled=False):
            matching = self.match(vertex, first, second)
        found = matching.detach().argmax(1) == torch.arange(len(matching), device=matching.device)
        return {"loss": hamming(matching), "similarity": similarity, "matched_share": found.float().mean()}

    def match(self, vertex: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Vertex affinities (N,N) and the vertices' embeddings (N,F) -> a soft matching (N,N)."""
        edges = [edge_directions(half, self.neighbours) for half in (first, second)]
        return soft_matching(
            vertex, edges[0], edges[1], self.neighbours, self.edge_weight, self.temperature, self.rounds,
            self.iterations,
        )  # fmt: skip

    def compare_cells(self, views: list[RegionBatch], coarsest: Tensor) -> Tensor:
        """The coarsest features (2B,C,d,h,w), view by view -> local vertex affinities (N,N) of all ranks' scans."""
        grid = size3(min(c, n) for c, n in zip(self.cells, coarsest.shape[2:]))
        cells = F.adaptive_avg_pool3d(wide(coarsest), grid).flatten(2).transpose(1, 2)
        valid = torch.cat([view.valid_mask() for view in views]).to(cells.dtype)
        seen = F.adaptive_avg_pool3d(valid, grid).flatten(1)
        embedded = wide(self.local_projector(standardised_rows(cells, seen >= CELL_VALID)))
        first, second = (gather(half.contiguous()) for half in embedded.chunk(2))
        first_seen, second_seen = (gather(half.contiguous()) >= CELL_VALID for half in seen.chunk(2))
        with torch.autocast(embedded.device.type, enabled=False):
            return local_affinity(first, second, first_seen, second_seen)
