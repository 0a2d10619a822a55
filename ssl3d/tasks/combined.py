"""Combined: several pretext tasks train one backbone, their losses weighted by hand, by uncertainty or by gradients.

Sources: Kendall et al., "Multi-task learning using uncertainty to weigh losses for scene geometry and semantics", CVPR
2018, section 3 (uncertainty); Chen et al., "GradNorm: gradient normalization for adaptive loss balancing in deep
multitask networks", ICML 2018 (gradient norms: here the state that GradNorm steers to at alpha 0, all tasks' gradients
of one norm, is computed and not learnt).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ssl3d.augment import centre_crop
from ssl3d.losses.gather import gather
from ssl3d.models.backbone import Backbone
from ssl3d.regions import RegionBatch, RegionSpec, Size3, largest
from ssl3d.schema import Later
from ssl3d.seeding import global_stream
from ssl3d.tasks.task import PretextTask
from ssl3d.tasks.trained_network import Trained

RESERVED = ("collapse", "data", "holdout", "preview", "probe", "time")  # what other logged names begin with
MEMORY = 0.9  # of the running means of gradient norms, a measurement


class WeightedTask(Later):
    """A task of a Combined as a recipe writes it: its `_target_` and keys, and its `weight`."""

    base = PretextTask
    given = ("backbone",)
    extra: ClassVar[Mapping[str, tuple[Any, Any]]] = {"weight": (float, 1.0)}


class Combined(PretextTask):
    """The weighted sum of the losses of `tasks` {name: task}, every one on the same backbone and the same regions.

    Each task sends its own view of the region through the backbone: what one hides, fuses or moves is not what another
    does, so no pass is shared. The largest region of all is read, and each task gets the part in its middle that it
    would read alone; it draws what it would draw alone. Their logged values are `<name>/<value>`.

    `balance`: `fixed`, the weights w of the recipe; `uncertainty`, w (exp(-s) loss + s) with a learnt s a task, which
    tends to w / loss; or `gradient_norm`, w / norm of the task's gradient on the backbone, scaled so that the sum of
    weights times norms stays. `norms_every` so many steps (0: never) these norms are measured, in a further pass of
    every task, and logged as `<name>/gradient_norm`; weights follow a running mean. Logged weights are those in force.

    Raises ValueError naming the task (`tasks.<name>`) and key that is out of range or does not fit the backbone, and
    when two tasks want different regions drawn.
    """

    norms: Tensor
    steps_done: Tensor

    def __init__(
        self,
        backbone: Backbone,
        tasks: Mapping[str, WeightedTask],
        balance: Literal["fixed", "uncertainty", "gradient_norm"] = "fixed",
        norms_every: int = 50,
    ) -> None:
        super().__init__()
        check_names(tasks)
        if norms_every < 0 or (norms_every == 0 and balance == "gradient_norm"):
            least = "1 for balance gradient_norm" if balance == "gradient_norm" else "0 (never)"
            raise ValueError(f"norms_every={norms_every}: steps between measurements, at least {least}")
        self.backbone, self.balance, self.norms_every = backbone, balance, norms_every
        self.tasks = make_all(backbone, tasks)
        parts = self.parts()
        self.region = joint_region(parts)
        self.input_size = largest([part.input_size for part in parts.values()])
        voxels = math.prod(self.input_size)
        shares = {name: math.prod(part.input_size) / voxels for name, part in parts.items()}
        self.passes = sum(part.passes * shares[name] for name, part in parts.items())
        self.teacher_passes = sum(part.teacher_passes * shares[name] for name, part in parts.items())
        self.needs_decoder = any(part.needs_decoder for part in parts.values())
        self.spans_batch = any(part.spans_batch for part in parts.values())
        self.reads_weights = norms_every > 0 or any(part.reads_weights for part in parts.values())
        self.given = {name: task.values["weight"] for name, task in tasks.items()}
        if balance == "uncertainty":
            self.log_variance = nn.Parameter(torch.zeros(len(parts)))
        self.register_buffer("norms", torch.zeros(len(parts)))  # 0: not measured yet
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self.measured: Tensor | None = None
        self.count: int | None = None  # steps_done as a number: a GPU is asked for it once, after loading
        self.register_load_state_dict_post_hook(forget_count)

    @property
    def seen_sizes(self) -> frozenset[Size3]:
        """Those of all tasks."""
        return frozenset().union(*(part.seen_sizes for part in self.parts().values()))

    @property
    def placed_size(self) -> Size3:
        """The largest that any task places."""
        return largest([part.placed_size for part in self.parts().values()])

    def trained_networks(self) -> dict[str, Trained]:
        """Those of all tasks."""
        named = {name: part.trained_networks() for name, part in self.parts().items()}
        return {f"tasks.{name}.{key}": one for name, found in named.items() for key, one in found.items()}

    def parts(self) -> dict[str, PretextTask]:
        """The tasks by name."""
        return {name: part for name, part in self.tasks.items() if isinstance(part, PretextTask)}

    def forward(self, batch: RegionBatch, preview: bool = False) -> dict[str, Tensor]:
        """Normalised batch -> loss; of each task its loss, weight, what it logs, and when due gradient norm."""
        batches = {name: centre_crop(batch, part.region.size)[0] for name, part in self.parts().items()}
        self.measured = self.gradient_norms(batches) if self.is_due() else None
        results = {name: part(batches[name], preview) for name, part in self.parts().items()}
        losses = torch.stack([result["loss"] for result in results.values()])
        weights = self.weights(losses)
        loss = (weights * losses).sum()
        if self.balance == "uncertainty":
            loss = loss + (self.recipe_weights(losses) * self.log_variance).sum()
        combined = {"loss": loss}
        for number, (name, result) in enumerate(results.items()):
            combined |= {renamed(name, key): value for key, value in result.items() if key != "loss"}
            combined |= {f"{name}/loss": losses[number].detach(), f"{name}/weight": weights[number].detach()}
            if self.measured is not None:
                combined[f"{name}/gradient_norm"] = self.measured[number]
        return combined

    def recipe_weights(self, like: Tensor) -> Tensor:
        """(tasks,) on the device and in the type of `like`."""
        return torch.tensor(list(self.given.values()), dtype=like.dtype).to(like.device, non_blocking=True)

    def weights(self, losses: Tensor) -> Tensor:
        """(tasks,): what the losses (tasks,) are multiplied with."""
        given = self.recipe_weights(losses)
        if self.balance == "uncertainty":
            return given * (-self.log_variance).exp()
        if self.balance == "fixed":
            return given
        norms = (self.norms if self.measured is None else self.running_norms(self.measured)).to(losses)
        known = norms > 0
        mean = (given * norms).sum() / (given * known).sum().clamp(min=torch.finfo(losses.dtype).tiny)
        return torch.where(known, given * mean / torch.where(known, norms, 1), given)

    def running_norms(self, measured: Tensor) -> Tensor:
        """(tasks,): the running means after a measurement; the measurement itself where there was none before."""
        return torch.where(self.norms > 0, self.norms.lerp(measured, 1 - MEMORY), measured)

    def is_due(self) -> bool:
        """Whether gradient norms are measured at this step."""
        if not (self.norms_every and self.training and torch.is_grad_enabled()):
            return False
        if self.count is None:
            self.count = int(self.steps_done)
        return self.count % self.norms_every == 0

    def gradient_norms(self, batches: Mapping[str, RegionBatch]) -> Tensor:
        """(tasks,): norm of the gradient of each task's own loss on the backbone's weights, the mean of all ranks'.

        In a pass of its own: the graph of the real one is used once, as compiled networks demand.
        """
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        norms = []
        for name, part in self.parts().items():
            with global_stream(batches[name].image.device):  # dropout draws for the real pass what it would have drawn
                loss = part(batches[name])["loss"]
                found = torch.autograd.grad(loss, trained, allow_unused=True)
            squares = [gather(g[None]).mean(0).to(self.norms.dtype).square().sum() for g in found if g is not None]
            norms.append(torch.stack(squares).sum().sqrt())
        return torch.stack(norms)

    def after_step(self, step: int, steps: int) -> None:
        """Tells the tasks; takes what was measured into the running means."""
        for part in self.parts().values():
            part.after_step(step, steps)
        if self.measured is not None:
            self.norms.copy_(self.running_norms(self.measured))
        self.steps_done.fill_(step + 1)
        self.count = step + 1


def forget_count(combined: Combined, incompatible: Any) -> None:
    """What was loaded says how many steps are done."""
    combined.count = None


def renamed(name: str, key: str) -> str:
    """The name of a task's logged value or picture among those of all."""
    return f"preview/{name} {key.removeprefix('preview/')}" if key.startswith("preview/") else f"{name}/{key}"


def check_names(tasks: Mapping[str, WeightedTask]) -> None:
    """Raise ValueError naming `tasks` when there are fewer than two, or a name or weight that cannot be."""
    if len(tasks) < 2:
        raise ValueError(f"tasks: {len(tasks)} given; name at least two, each with its _target_")
    for name, task in tasks.items():
        if not name.isidentifier() or name in RESERVED or hasattr(nn.ModuleDict, name):
            raise ValueError(f"tasks.{name}: this name is taken or is no word; choose another, of letters and digits")
        if task.values["weight"] <= 0:
            raise ValueError(f"tasks.{name}: weight={task.values['weight']}: must be positive; leave the task out")


def make_all(backbone: Backbone, tasks: Mapping[str, WeightedTask]) -> nn.ModuleDict:
    """The tasks on one backbone, which is trained where any of them trains it.

    Raises ValueError naming the task whose constructor refuses something.
    """
    before = {name: p.requires_grad for name, p in backbone.named_parameters()}
    trained, made = dict.fromkeys(before, False), nn.ModuleDict()
    for name, task in tasks.items():
        for key, parameter in backbone.named_parameters():
            parameter.requires_grad_(before[key])
        try:
            part = task.make(backbone=backbone)
        except ValueError as error:
            raise ValueError(f"tasks.{name}: {error}") from None
        trained = {key: trained[key] or p.requires_grad for key, p in backbone.named_parameters()}
        # Known to the task as before, but registered once: else every checkpoint would hold it once for each task.
        del part._modules["backbone"]
        object.__setattr__(part, "backbone", backbone)
        made[name] = part
    for key, parameter in backbone.named_parameters():
        parameter.requires_grad_(trained[key])
    return made


def joint_region(parts: Mapping[str, PretextTask]) -> RegionSpec:
    """A region that has what each task reads. Raises ValueError when groups of one task must be of one volume, and
    those of another must not."""
    grouped = {name: part.region for name, part in parts.items() if part.region.group > 1}
    within = {name for name, region in grouped.items() if region.same_volume}
    if within and within != set(grouped):
        other = next(name for name in grouped if name not in within)
        raise ValueError(
            f"tasks.{other}: its groups are of different volumes, those of tasks.{min(within)} of one volume; the "
            "tasks of a Combined read the same regions: let both want the same (VolumeFusion: source)"
        )
    return RegionSpec(
        largest([part.region.size for part in parts.values()]),
        group=math.lcm(*(part.region.group for part in parts.values())),
        same_modality=any(part.region.same_modality for part in parts.values()),
        same_volume=bool(within),
    )
