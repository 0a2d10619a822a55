"""THE loop. It knows no method by name; every method is trained, and compared, under this one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import Tensor, nn

from ssl3d import checkpoint, config, devices, meters, optim, setup_run, sharding
from ssl3d.check import refuse_beyond_memory
from ssl3d.checkpoint_writer import CheckpointWriter
from ssl3d.config import Recipe
from ssl3d.disk import WAIT_SECONDS, WAIT_SECONDS_OF_MANY
from ssl3d.fabric import Fabric
from ssl3d.initial import Initial, fill_trained, initialise
from ssl3d.initial import load as load_initial
from ssl3d.interruption import Interruption
from ssl3d.log import METRICS_FILE, MetricLog
from ssl3d.meters import Watch
from ssl3d.observers import observe, observers_of
from ssl3d.observers.observer import Observer
from ssl3d.precision import choose_precision, depths
from ssl3d.regions import RegionBatch
from ssl3d.seeding import mix
from ssl3d.setup_run import RunData
from ssl3d.signals import Interrupted
from ssl3d.tasks.task import Objective
from ssl3d.terminal import progress, say
from ssl3d.trackers import require, trackers_of
from ssl3d.training import Training


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message is one sentence for the user."""


class _Parcel:
    """A batch in, or outputs out, past Fabric, which would else convert float64 affines and losses to float32."""

    def __init__(self, content: Any) -> None:
        self.content = content


class _Trained(nn.Module):
    """What Fabric wraps: unpacks the batch and calls the objective."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, parcel: _Parcel) -> _Parcel:
        return _Parcel(self.objective(parcel.content))


def train(recipe: Recipe, observers: Sequence[Observer] = ()) -> Path:
    """Train a recipe to its last step and return the run directory; the same directory again resumes exactly.

    `observers`: more of them than the recipe asks for.

    Raises ConfigError (a key is wrong), FileNotFoundError (no such store), TrainingStopped (the loss is not finite,
    the directory is in use or holds another run), DiskFull, Interrupted (by a signal: it saved, the same call goes on).
    """
    require(recipe)
    folder = setup_run.run_folder(recipe)
    stores = setup_run.open_stores(recipe)  # a missing store is named before anything heavy is built
    objective, initial = _objective(recipe, folder)
    fabric = devices.make_fabric(recipe, choose_precision(recipe.run.precision, depths(objective)))
    if fabric.device.type == "cpu":
        refuse_beyond_memory(recipe, objective)
    with setup_run.claim(folder, fabric.is_global_zero):
        previous, note = checkpoint.latest(folder)
        if previous is not None:
            setup_run.refuse_other_recipe(folder, previous["recipe"], recipe)
            if previous["step"] >= recipe.run.steps:
                if fabric.is_global_zero:
                    say(f"{folder}: all {recipe.run.steps} steps were done before")
                return folder
        if note and fabric.is_global_zero:
            say(note)
        data = RunData.build(recipe, stores, objective, initial)
        if previous is not None:
            setup_run.refuse_other_volumes(folder, previous["seen_digest"], data)
        training = _prepare(recipe, fabric, folder, data, objective)
        failed = True
        try:
            if previous is not None:
                _resume(training, previous)
            if fabric.is_global_zero:  # what was noted after the last checkpoint (the start, without one) is run again
                training.metrics.cut(training.step)
            del previous
            with training.interruption:
                _loop(training, observers)  # its last save is on the disk when it returns
            failed = False
        except Interrupted:
            failed = False
            raise
        finally:
            training.writer.close()
            for tracker in training.trackers:
                tracker.finish(failed)
    return folder


def _objective(recipe: Recipe, folder: Path) -> tuple[Objective, Initial | None]:
    """The objective with its initial weights: a pure function of the recipe; and what weights it starts from.

    The task is built around the filled backbone, so that a teacher copies what the student has. A run that resumes
    reads no initial weights again: its checkpoint has them, and the file may be gone.
    """
    torch.manual_seed(mix(recipe.run.seed, "initial weights"))
    backbone = config.build_model(recipe)
    resumes = checkpoint.exists(folder)
    initial = load_initial(folder) if resumes else initialise(backbone, recipe.model)
    objective = config.build_task(recipe, backbone)
    if not resumes:
        initial = fill_trained(objective, recipe.model, initial)
    devices.refuse_combinations(recipe, objective)
    return objective, initial


def _prepare(recipe: Recipe, fabric: Fabric, folder: Path, data: RunData, objective: Objective) -> Training:
    prefix = checkpoint.prefix_of(objective, objective.backbone)
    encoder = {f"objective.{prefix}{n}" for n in objective.backbone.encoder_parameter_names()}
    if recipe.run.precision == "64-true":
        objective.double()
    objective.to(fabric.device)
    devices.lay_out(objective, recipe, fabric.device)
    trained = _Trained(objective)
    if sharding.is_sharded(fabric):
        sharding.shard(trained, fabric.device)
    average = None if recipe.optim.ema is None else optim.WeightAverage(objective, recipe.optim.ema)
    optimizer = optim.build_optimizer(trained, recipe.optim, encoder)
    module, wrapped = fabric.setup(trained, optimizer)
    module.train()
    if fabric.is_global_zero:
        setup_run.write_start(folder, recipe, data, fabric)
    fabric.barrier()
    trackers = trackers_of(recipe, folder, fabric.is_global_zero, data.lineage())
    metrics = MetricLog(folder / METRICS_FILE, sum(len(store) for store in data.plan.stores))
    interruption = Interruption(fabric)
    patience = WAIT_SECONDS if fabric.world_size == 1 else WAIT_SECONDS_OF_MANY
    writer = CheckpointWriter(folder, interruption.asked, patience)
    return Training(
        recipe, fabric, folder, data, objective, module, wrapped, average, metrics, trackers, interruption, writer
    )


def _resume(training: Training, content: dict[str, Any]) -> None:
    """Put back weights, optimiser, moving average, sums of metrics and the position in the data."""
    sharding.load_model(training.objective, content["model"])
    sharding.load_optimizer(training.optimizer, content["optimizer"])
    if training.average is not None:
        own = training.average.state
        training.average.state = {k: sharding.part(v, own[k]) for k, v in content["average"].items()}
    training.fabric.strategy.precision.load_state_dict(content["precision"])
    training.step = content["step"]
    training.metrics.resume(content["metrics"], training.fabric.device)
    if training.fabric.is_global_zero:
        say(f"{training.folder}: resumed at step {training.step} of {training.recipe.run.steps}")
    training.fabric.barrier()


def _save(training: Training, wait: bool = False, best: bool = False) -> None:
    """Save the steps done so far, the last thing that happens at a step; `wait` until it is on the disk."""
    objective, first, sharded = training.objective, training.fabric.is_global_zero, sharding.is_sharded(training.fabric)
    if not best:  # the best is the first rank's own affair, unless all hold a part of it
        training.metrics.share(training.fabric)
    if not first and not sharded:
        return
    tensors = {
        "model": objective.state_dict(),
        "average": None if training.average is None else training.average.state,
        "optimizer": training.optimizer.state_dict(),
    }
    if sharded:  # every rank holds a part
        tensors = sharding.whole({**tensors, "model": objective.state_dict(keep_vars=True)}, keep=first)
        if not first:
            return
    content = {
        **tensors,
        "step": training.step,
        "recipe": training.recipe.to_dict(),
        "exported": checkpoint.exported_prefix(objective),
        "backbone_spec": checkpoint.spec_to_dict(objective.exported.spec()),
        "trained_decoder": checkpoint.trained_decoder(objective),
        "precision": training.fabric.strategy.precision.state_dict(),
        "metrics": training.metrics.state(),
        "normalisation": training.data.normalisation,
        "seen_digest": training.data.seen_digest,
        "input_size": list(objective.input_size),
        "batch_size": training.recipe.data.batch_size,
        "spacing": training.data.median_spacing,
        "initial_weights": None if training.data.initial is None else training.data.initial.record,
    }
    training.writer.save(content, wait, best)


def _loop(training: Training, more: Sequence[Observer]) -> None:
    recipe, run = training.recipe, training.recipe.run
    watch = meters.watch(recipe, training.objective, training.fabric)
    finite = _FiniteCheck(training)
    observers = [*observers_of(training), *more]
    every = setup_run.due
    with (
        training.data.loader(training.fabric, training.step) as loader,
        progress(training.folder.name, run.steps, training.fabric.is_global_zero) as bar,
    ):
        batches = iter(loader)
        while training.step < run.steps:
            watch.start()
            lr = optim.set_step(training.optimizer, training.step, run.steps, recipe.optim)
            torch.manual_seed(mix(run.seed, "step", training.step, training.fabric.global_rank))
            replaced = loader.replaced
            _step(training, batches, watch, finite)
            if recipe.data.on_error == "skip":
                training.metrics.add({"data/replaced": torch.tensor(loader.replaced - replaced)})
            training.step += 1
            last = training.step == run.steps
            tells = every(training.step, run.log_every) or last
            if tells:
                finite.check()  # waits for a GPU: what it has still to do belongs to these steps
            watch.stop()
            if tells:
                loss = _write_metrics(training, lr, watch)
                bar.update(training.step, f"loss {loss:.4g}")
            if observe(training, observers, last):
                _save(training, best=True)
            signal = training.interruption.seen()
            if every(training.step, run.checkpoint_every) or last or signal:
                finite.check()
                _save(training, wait=last or bool(signal))
            if signal and not last:
                said = (
                    f"{training.folder}: stopped by {Signals(signal).name} after step {training.step} of {run.steps} "
                    "and saved; the same command goes on"
                )
                raise Interrupted(said if training.fabric.is_global_zero else "", signal)


def _step(training: Training, batches: Iterator[RegionBatch], watch: Watch, finite: _FiniteCheck) -> None:
    """One optimiser step over `accumulate` micro-batches."""
    recipe, fabric = training.recipe, training.fabric
    for micro in range(recipe.run.accumulate):
        read = watch.wait(batches)
        training.metrics.saw(read.volume)
        batch = training.to_device(read)
        is_last = micro == recipe.run.accumulate - 1
        with fabric.no_backward_sync(training.module, enabled=not is_last):
            outputs = training.module(_Parcel(batch)).content
            finite.see(outputs["loss"])
            fabric.backward(outputs["loss"] / recipe.run.accumulate)
        training.metrics.add(outputs)
    optim.drop_frozen_gradients(training.optimizer, training.step)
    norm = _clip(training)
    if norm is not None:
        if recipe.run.precision != "16-mixed":  # its scaler skips steps whose gradients overflow
            finite.see(norm, "gradient")
        training.metrics.add({"grad_norm": norm})
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.objective.after_step(training.step, recipe.run.steps)
    if training.average is not None:
        training.average.update(training.objective)


def _clip(training: Training) -> Tensor | None:
    """Clip the gradients, if the recipe says so; their norm before, None where it is unknown (scaled, not clipped)."""
    recipe, optimizer = training.recipe, training.optimizer
    if recipe.optim.clip_norm is not None:
        limit = recipe.optim.clip_norm
        return training.fabric.clip_gradients(training.module, optimizer, max_norm=limit, error_if_nonfinite=False)
    if recipe.run.precision == "16-mixed":
        return None
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return sharding.plain(torch.nn.utils.get_total_norm(gradients))


def _write_metrics(training: Training, lr: float, watch: Watch) -> float:
    fabric = training.fabric
    training.metrics.share(fabric)
    means = training.metrics.means()
    line = {"step": training.step, **means, "lr": lr}
    line["samples"] = training.step * training.recipe.data.batch_size
    line["volumes"] = int(training.metrics.volumes.sum(dtype=torch.int64))
    line |= watch.read()
    if fabric.is_global_zero:
        training.tell(line)
    return means["loss"]


class _FiniteCheck:
    """Stops at a loss or gradient that is NaN or Inf, before it reaches a checkpoint.

    On the CPU at once; on a GPU, where looking costs a synchronisation, at each log line and before each checkpoint.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.flags: list[tuple[int, str, Tensor]] = []

    def see(self, value: Tensor, name: str = "loss") -> None:
        self.flags.append((self.training.step, name, torch.isfinite(value.detach()).all()))
        if value.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raises TrainingStopped naming the step and the sample ids."""
        if self.flags and not bool(torch.stack([flag for _, _, flag in self.flags]).all()):
            step, name, _ = next(f for f in self.flags if not bool(f[2]))
            samples = self.training.data.describe_samples(step)
            raise TrainingStopped(
                f"the {name} became NaN or Inf at step {step}, with samples {samples}; the last good checkpoint is "
                "kept: look at these volumes (ssl3d inspect), or lower optim.lr or set optim.clip_norm"
            )
        self.flags = []
