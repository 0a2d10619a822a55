"""Every task on two gloo ranks with half of the batch each equals one rank with the whole: loss and gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ssl3d.augment import Compose, GaussianNoise, SpatialTransform
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT
from ssl3d.regions import RegionBatch
from ssl3d.tasks.combined import Combined, WeightedTask
from ssl3d.tasks.cuts import CUTS
from ssl3d.tasks.dino import DINO
from ssl3d.tasks.distillation import Distillation
from ssl3d.tasks.graph_matching import GraphMatching
from ssl3d.tasks.hi_end_mae import HiEndMAE
from ssl3d.tasks.jepa import JEPA
from ssl3d.tasks.joint_clustering import JointClustering
from ssl3d.tasks.lejepa import LeJEPA
from ssl3d.tasks.local_contrast import LocalContrast
from ssl3d.tasks.mae import MAE
from ssl3d.tasks.models_genesis import ModelsGenesis
from ssl3d.tasks.position import PositionRegression
from ssl3d.tasks.simclr import SimCLR
from ssl3d.tasks.simmim import SimMIM
from ssl3d.tasks.sparse_mae import SparseMAE
from ssl3d.tasks.swin_unetr_pretext import SwinUNETRPretext
from ssl3d.tasks.synthesis import Synthesis
from ssl3d.tasks.task import PretextTask
from ssl3d.tasks.trained_network import TrainedNetwork
from ssl3d.tasks.vicreg import VICReg
from ssl3d.tasks.voco import VoCo
from ssl3d.tasks.volume_fusion import VolumeFusion
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE, RANKS = (8, 16, 24), 2
VIEWS = Compose([SpatialTransform(p_rotation=1, shift=0.2), GaussianNoise(p=1)])
PLACES = {"count": 6, "region": 1, "min_distance": 2.0, "hidden_dim": 16, "out_dim": 8}
RESENC = {"n_stages": 3, "features_per_stage": [8, 16, 16], "n_blocks_per_stage": [1, 1, 1]}
TURNED = Compose([SpatialTransform(flip_axes=[0, 2], p_rotation=1, shift=0.2), GaussianNoise(p=1)])


def combined(balance) -> Combined:
    """Masked autoencoding beside a contrast that spans the ranks."""
    size, views = list(SIZE), {"_target_": "ssl3d.augment.Compose", "transforms": [{"_target_": "ssl3d.augment.Gamma"}]}
    mae = {"_target_": "ssl3d.tasks.mae.MAE", "patch_size": size, "mask_block": [2, 4, 4], "weight": 2.0}
    simclr = {"_target_": "ssl3d.tasks.simclr.SimCLR", "patch_size": size, "augment": views, "hidden_dim": 16}
    return Combined(TinyUNet(), {"mae": WeightedTask(mae), "simclr": WeightedTask(simclr)}, balance)


CROPS = {"global_size": SIZE, "local_size": (4, 8, 12), "global_augment": VIEWS, "local_augment": VIEWS}
CROPS |= {"local_crops": 1, "hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 6}
TEACHER = {"_target_": "ssl3d.testing.toys.TinyUNet", "width": 12}
TASKS: dict[str, Callable[[], PretextTask]] = {
    "MAE": lambda: MAE(TinyUNet(), SIZE, mask_block=(2, 4, 4), augment=VIEWS),
    "MAE on tokens": lambda: MAE(ViT("tiny", patch_size=(2, 4, 4)), SIZE, mask_block=(2, 4, 4), decoder_dim=32),
    "HiEndMAE": lambda: HiEndMAE(ViT("tiny", patch_size=(2, 4, 4)), SIZE, decoder_dim=32, decoder_heads=2),
    "JEPA": lambda: JEPA(ViT("tiny", patch_size=(2, 4, 4)), SIZE, predictor_dim=32, predictor_depth=1),
    "Distillation": lambda: Distillation(TinyUNet(), TrainedNetwork(TEACHER), SIZE, decoder=True, augment=VIEWS),
    "SparseMAE": lambda: SparseMAE(ResEncUNet("S", arch_kwargs=RESENC), SIZE, 0.6, (2, 4, 4), VIEWS),
    "SimMIM": lambda: SimMIM(ViT("tiny", patch_size=(2, 4, 4)), SIZE, mask_block=(2, 4, 4)),
    "PositionRegression": lambda: PositionRegression(TinyUNet(), SIZE, mask_share=0.5, augment=VIEWS),
    "VolumeFusion": lambda: VolumeFusion(TinyUNet(), SIZE, smallest=2, largest=(4, 8, 8)),
    "ModelsGenesis": lambda: ModelsGenesis(TinyUNet(), SIZE),
    "SimCLR": lambda: SimCLR(TinyUNet(), SIZE, VIEWS, hidden_dim=16, out_dim=8),
    "SwinUNETRPretext": lambda: SwinUNETRPretext(TinyUNet(), SIZE, TURNED, rotations=2, out_dim=8),
    "Synthesis": lambda: Synthesis(TinyUNet(), SIZE, voxels=64, hidden_dim=16, out_dim=8),
    "CUTS": lambda: CUTS(TinyUNet(), SIZE, local_patch=3, contrast_weight=0.5, augment=VIEWS, out_dim=8),
    "GraphMatching": lambda: GraphMatching(TinyUNet(), SIZE, VIEWS, neighbours=2, hidden_dim=16, out_dim=8),
    "JointClustering": lambda: JointClustering(
        TinyUNet(), (4, 8, 12), VIEWS, slices=3, prototypes=6, depth=1, heads=2, hidden_dim=16, out_dim=8
    ),
    "VICReg": lambda: VICReg(TinyUNet(), SIZE, VIEWS, hidden_dim=16, out_dim=8),
    "Combined by uncertainty": lambda: combined("uncertainty"),
    "Combined by gradient norm": lambda: combined("gradient_norm"),
    "LeJEPA": lambda: LeJEPA(TinyUNet(), SIZE, VIEWS, views=3, directions=32, hidden_dim=16, out_dim=8),
    "LocalContrast": lambda: LocalContrast(TinyUNet(), SIZE, VIEWS, scale=0, sigma=0.05, **PLACES),
    "LocalContrast LD": lambda: LocalContrast(
        TinyUNet(), SIZE, VIEWS, stage="local", scale=1, local_pairs="LD", **PLACES
    ),
    "LocalContrast as published": lambda: LocalContrast(
        TinyUNet(), SIZE, VIEWS, partition="hard", parts=2, points="lattice", local_pairs="LD", scale=0, **PLACES
    ),
    "DINO": lambda: DINO(TinyUNet(), **CROPS, ibot_weight=0.0),
    "DINO with iBOT": lambda: DINO(ViT("tiny", patch_size=(2, 4, 4)), **CROPS),
    "DINO with a centre": lambda: DINO(ViT("tiny", patch_size=(2, 4, 4)), **CROPS, targets="centre"),
    "VoCo v1": lambda: VoCo(TinyUNet(), (8, 4, 6), grid=(1, 3, 2), hidden_dim=16),
    "VoCo v2": lambda: VoCo(TinyUNet(), (8, 4, 6), grid=(1, 3, 2), version="v2", hidden_dim=16),
}


class Whole(nn.Module):
    """Tensors in and out for DDP."""

    def __init__(self, task: PretextTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: list[RegionBatch]) -> Tensor:
        return self.task(batch[0])["loss"]


def prepared(name: str) -> tuple[Whole, RegionBatch]:
    """The task in float64 and a batch of four, without padding: a mean over voxels is one over samples then."""
    torch.manual_seed(0)
    task = TASKS[name]().double().train()
    batch = make_batch(task.region.size, batch=4)
    return Whole(task), batch.replace(image=batch.image.double())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n.removeprefix("module."): p.grad for n, p in module.named_parameters() if p.grad is not None}


def worker(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=number, world_size=RANKS)
    for name in TASKS:
        model, batch = prepared(name)
        ddp = DistributedDataParallel(model)
        loss = ddp([batch[2 * number : 2 * number + 2]])
        loss.backward()
        total = loss.detach().clone()
        distributed.all_reduce(total)
        torch.save((total / RANKS, gradients(ddp)), Path(folder, f"{name} {number}.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=RANKS)
    for name in TASKS:
        model, batch = prepared(name)
        loss = model([batch])
        loss.backward()
        expected = gradients(model)
        for number in range(RANKS):
            total, found = torch.load(tmp_path / f"{name} {number}.pt")
            torch.testing.assert_close(total, loss.detach(), rtol=1e-9, atol=0, msg=f"{name}: the loss differs")
            assert found.keys() == expected.keys(), name
            for key, gradient in found.items():
                scale = expected[key].abs().max().item()
                torch.testing.assert_close(
                    gradient, expected[key], rtol=1e-9, atol=1e-9 * scale + 1e-14,
                    msg=lambda m, name=name, key=key: f"{name}, {key}: {m}",
                )  # fmt: skip
