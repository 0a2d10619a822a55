"""What a pair of task and backbone must do: learn one batch, resume to the same bits, export, be loaded back.

python -m ssl3d.testing.pairs > docs/acceptance/matrix.md     (every pair; a quarter of an hour on one core)
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl3d import checkpoint, config
from ssl3d.export import export
from ssl3d.export.nnunet import build_network
from ssl3d.models.backbone import Backbone, BackboneSpec, build_backbone
from ssl3d.models.init import load_weights
from ssl3d.regions import RegionBatch
from ssl3d.tasks.multi_crop import GLOBAL
from ssl3d.tasks.task import PretextTask
from ssl3d.testing.matrix import (
    backbone_classes,
    model_node,
    refusal,
    small_backbone,
    small_size,
    small_task,
    task_classes,
    task_node,
)
from ssl3d.testing.small_store import write_small
from ssl3d.testing.teachers import with_teachers
from ssl3d.testing.toys import make_batch
from ssl3d.train import train

MOST_STEPS, RATE, CLIP = 120, 3e-3, 1.0
SHARE = 0.5  # of what lies between the first loss and the least a network could reach
VOLUME = (64, 72, 80)  # the largest small region fits
# What nnU-Net is not given: a network it does not have, and a Primus of the smallest size.
REFUSALS = ("nnU-Net has no network like", "nnU-Net's Primus trainers build sizes")


def nt_xent_floor(samples: int, temperature: float) -> float:
    """The least NT-Xent of two views of `samples`: equal views, samples on a regular simplex (features permitting).

    Graf et al., "Dissecting supervised contrastive learning", ICML 2021, theorem 2 (classes are samples here).
    """
    others = 2 * (samples - 1)
    return math.log1p(others * math.exp((-1 / (samples - 1) - 1) / temperature))


def vicreg_floor(samples: int, features: int, variance: float, covariance: float) -> float:
    """The least VICReg of equal views whose features have one variance v: these cannot all be uncorrelated.

    The covariance of `samples` has rank samples - 1 at most, so the squares off its diagonal sum up to at least
    v^2 features (features / rank - 1); v weighs that against the hinge at a deviation of 1.
    """
    v = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    excess = max(features / (samples - 1) - 1, 0)
    return float((variance * (1 - (v + 1e-4).sqrt()).clamp(min=0) + 2 * covariance * excess * v**2).min())


def sigreg_floor(sigreg: Any) -> float:
    """The least SIGReg of two samples: what the best two points, a and -a, reach in every direction."""
    a = torch.linspace(0, 3, 3001, dtype=torch.float64)[:, None]
    t, normal, weights = sigreg.t.double(), sigreg.phi.double(), sigreg.weights.double()
    return 2 * float((((a * t).cos() - normal).square() @ weights).min())


def koleo_floor(samples: int) -> float:
    """The least KoLeo of `samples` points on a sphere: those of a regular simplex (features permitting)."""
    return -0.5 * math.log(2 * samples / (samples - 1))


# The least loss of tasks whose loss cannot reach 0 on `samples` samples; all others are measured against 0.
FLOORS: dict[str, Callable[[Any, int], float]] = {
    "Combined": lambda task, samples: sum(
        task.given[name] * floor_of(part, samples) for name, part in task.parts().items()
    ),
    "LeJEPA": lambda task, samples: task.weight * sigreg_floor(task.sigreg),  # more samples can do better than two
    # as many prototypes as samples: each sample can have one to itself, and then nothing but KoLeo is left
    "DINO": lambda task, samples: GLOBAL * task.weights["koleo"] * koleo_floor(samples),
    "SimCLR": lambda task, samples: nt_xent_floor(samples, task.nt_xent.temperature),
    "SwinUNETRPretext": lambda task, samples: (
        task.weights["contrast"] * nt_xent_floor(samples, task.nt_xent.temperature)
    ),
    "VICReg": lambda task, samples: vicreg_floor(
        samples, task.projector[-1].out_features, task.vicreg.mu_param, task.vicreg.nu_param
    ),
}


def floor_of(task: PretextTask, samples: int) -> float:
    """The least loss of a task on so many samples, as far as it is known: else 0."""
    return FLOORS.get(type(task).__name__, lambda *_: 0.0)(task, samples)


@dataclass(frozen=True)
class Learnt:
    """Losses of one batch: at the first step, at the last, the least that can be reached; after `steps` steps."""

    first: float
    last: float
    floor: float
    steps: int

    @property
    def share(self) -> float:
        """What is left of the distance between the first loss and the floor."""
        return (self.last - self.floor) / (self.first - self.floor)


def pair(task: type, family: type) -> tuple[PretextTask, RegionBatch]:
    """A small task in training mode on a small backbone, always with the same weights, and a batch for it."""
    torch.manual_seed(0)
    made = small_task(task, small_backbone(family)).train()
    pairs_samples = made.spans_batch or made.region.group > 1
    return made, make_batch(made.region.size, batch=max(2 if pairs_samples else 1, made.region.group), padded=1)


def step(task: PretextTask, batch: RegionBatch, optimizer: torch.optim.Optimizer, number: int = 0) -> float:
    """One step of the optimiser on a batch; the loss before it. Raises AssertionError where no gradient arrives."""
    torch.manual_seed(1)
    optimizer.zero_grad()
    loss = task(batch)["loss"]
    loss.backward()
    trained = [p for p in task.parameters() if p.requires_grad]
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    torch.nn.utils.clip_grad_norm_(trained, CLIP)
    optimizer.step()
    task.after_step(number, MOST_STEPS)
    return loss.item()


def learn(task: type, family: type) -> Learnt:
    """Train on one batch until half of the distance to the floor is gone, MOST_STEPS at most."""
    made, batch = pair(task, family)
    floor = floor_of(made, len(batch))
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    first = step(made, batch, optimizer)
    learnt = Learnt(first, first, floor, 0)
    while learnt.share > SHARE and learnt.steps < MOST_STEPS:
        learnt = Learnt(first, step(made, batch, optimizer, learnt.steps + 1), floor, learnt.steps + 1)
    return learnt


def recipe(task: type, family: type, store: str, folder: str) -> dict[str, Any]:
    """What `ssl3d train` and `ssl3d check` take: two steps, a checkpoint after each."""
    run = {
        "dir": folder, "steps": 2, "precision": "32-true", "devices": 1, "log_every": 1, "checkpoint_every": 1,
        "preview_every": 0, "holdout_every": 0,
    }  # fmt: skip
    return {
        "run": run,
        "data": {"store": store, "batch_size": 2, "workers": 0},
        "model": model_node(family),
        "task": task_node(task, small_backbone(family)),
        "optim": {"lr": 1e-3, "weight_decay": 1e-2},
    }


def resume(task: type, family: type, store: Path, folder: Path) -> Path:
    """Train two steps, lose the last checkpoint as a kill would, resume: the run, when it ends with the same bits.

    Raises AssertionError naming the first tensor or number that differs.
    """
    values = recipe(task, family, str(store), str(folder))
    values["task"] = with_teachers(values["task"], folder)
    loaded = config.load(values)
    train(loaded)
    whole = checkpoint.open_run(folder)
    (folder / checkpoint.FOLDER / checkpoint.LAST).unlink()
    assert checkpoint.open_run(folder)["step"] == 1
    train(loaded)
    _assert_same(whole, checkpoint.open_run(folder), "checkpoint")
    return folder


def _assert_same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b), f"{where} differs"
    elif isinstance(a, Mapping):
        assert a.keys() == b.keys(), f"{where} holds other keys"
        for key in a:
            _assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), f"{where} is longer or shorter"
        for number, (x, y) in enumerate(zip(a, b)):
            _assert_same(x, y, f"{where}.{number}")
    else:
        assert a == b or a != a, f"{where}: {a} and {b}"


def export_everywhere(run: Path, out: Path) -> list[str]:
    """Export a run to every format that takes its backbone, load it back, compare features; the formats' names.

    Raises AssertionError when features differ by a bit, or a format is refused without a reason.
    """
    from safetensors.torch import load_file

    backbone = checkpoint.load_backbone(run)
    image = make_batch(small_size(backbone), batch=1).image
    with torch.no_grad():
        expected = backbone.encode(image)
    export(run, "safetensors", out / "safetensors")
    described = json.loads((out / "safetensors" / "model.json").read_text())["backbone"]
    again = build_backbone(BackboneSpec(**described)).eval()
    load_weights(again, load_file(out / "safetensors" / "model.safetensors"), strict=False)
    _assert_same_features(expected, again.encode, image, "safetensors")
    architecture = backbone.spec().architecture
    if architecture is None:
        return ["safetensors", *_refused_by_nnunet(run, out)]
    export(run, "nnunet", out / "nnunet")
    network: Any = build_network(architecture, backbone.in_channels).eval()
    content = torch.load(out / "nnunet" / "checkpoint.pth", weights_only=True)
    network.load_state_dict(content["network_weights"])
    _assert_same_features(expected, network.encoder, image, "nnunet")
    return ["nnunet", "safetensors"]


def _assert_same_features(expected: list[Tensor], encode: Any, image: Tensor, name: str) -> None:
    with torch.no_grad():
        for wanted, found in zip(expected, encode(image), strict=True):
            assert torch.equal(wanted, found), f"{name}: features differ"


def _refused_by_nnunet(run: Path, out: Path) -> list[str]:
    try:
        export(run, "nnunet", out / "nnunet")
    except ValueError as error:
        assert str(error).startswith(REFUSALS) and "\n" not in str(error)
        return []
    raise AssertionError("nnU-Net was given a network that it does not have")


def is_long(backbone: Backbone) -> bool:
    """Whether the smallest input is so large that learning takes a minute: left to the acceptance tests."""
    return math.prod(small_size(backbone)) > 2**15


def page() -> str:
    """Every pair tried, as Markdown. Raises AssertionError at the first pair that fails."""
    lines = ["| task | backbone | loss | steps | resumed | exported and loaded |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        store = write_small(Path(temporary, "store.zarr"), 4, VOLUME)
        for task in task_classes():
            for family in backbone_classes():
                if refusal(task, family) is None:
                    lines.append(_row(task, family, store, Path(temporary, f"{task.__name__}-{family.__name__}")))
    head = (
        "# Every pair of task and backbone, tried\n\nMade by `python -m ssl3d.testing.pairs`, on the tiny networks of "
        "`ssl3d/testing/matrix.py`. Loss: of one batch, at the\nfirst step and after as many as it took to halve its "
        "distance to the least it can be (in brackets where that is not 0:\nit is computed, see `FLOORS` in "
        "`ssl3d/testing/pairs.py`). Resumed: killed after one of two steps, continued, equal to the\nuninterrupted run "
        "bit by bit. Exported: features of the loaded file equal the run's bit by bit. Pairs that make no sense "
        "are\nin [matrix.md](../matrix.md) with the sentence that refuses them.\n"
    )
    return "\n".join([head, *lines, ""])


def _row(task: type, family: type, store: Path, folder: Path) -> str:
    learnt = learn(task, family)
    assert learnt.share <= SHARE, f"{task.__name__} on {family.__name__}: {learnt}"
    formats = export_everywhere(resume(task, family, store, folder / "run"), folder / "out")
    floor = f" ({learnt.floor:.2g})" if learnt.floor > 0 else ""
    loss = f"{learnt.first:.3g} to {learnt.last:.3g}{floor}"
    return f"| {task.__name__} | {family.__name__} | {loss} | {learnt.steps} | yes | {', '.join(formats)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):  # what the runs say of themselves
        text = page()
    sys.stdout.write(text)
