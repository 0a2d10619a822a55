"""What stands around a run before and beside the loop: its folder and lock, data and first files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from ssl3d import config, schema
from ssl3d.config import ConfigError, Recipe
from ssl3d.data.channels import ChannelChoice
from ssl3d.data.format import FEW_SLICES
from ssl3d.data.loader import RegionLoader
from ssl3d.data.near import volume_table
from ssl3d.data.normalise import describe as describe_normalisation
from ssl3d.data.sampling import SamplingPlan, split_holdout
from ssl3d.data.source import Source
from ssl3d.data.subjects import matching
from ssl3d.data.synthetic import Options, is_synthetic, open_source
from ssl3d.environment import environment
from ssl3d.fabric import Fabric
from ssl3d.files import write_atomically, write_json, write_text
from ssl3d.guard import Guarded, guard
from ssl3d.initial import Initial
from ssl3d.leaks import SEEN_FILE, seen_digest
from ssl3d.recipe import DataConfig
from ssl3d.seeding import mix
from ssl3d.tasks.task import Objective
from ssl3d.terminal import say

# Keys that may differ when a run is resumed: they change neither samples nor weights, or are paths that may have moved
# (that the volumes are still the same ones is checked by their fingerprints). So may every `init`: it is read no more.
MAY_CHANGE = (
    "run.dir", "run.devices", "run.strategy", "run.recompute", "run.log_every", "run.checkpoint_every",
    "run.preview_every", "run.holdout_every", "run.collapse_every", "data.store", "data.workers", "data.cache_gb",
    "data.include", "data.exclude", "data.on_error", "model.init_minimum", "model.init_inflate",
    "model.init_cast", "model.init_trust", "probe", "wandb", "guard", "run.trackers",
)  # fmt: skip


def due(step: int, every: int) -> bool:
    """Whether something done every `every` steps (0: never) is due after step `step`."""
    return every > 0 and step % every == 0


def run_folder(recipe: Recipe) -> Path:
    """run.dir; below a wandb sweep agent <run.dir>/<sweep>/<run id>, so that its runs do not meet."""
    folder = Path(recipe.run.dir)
    sweep, run_id = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return folder / sweep / run_id if sweep and run_id else folder


@contextmanager
def claim(folder: Path, first_rank: bool) -> Iterator[None]:
    """Hold the run directory; raises ConfigError when another process trains in it or it cannot be made.

    A directory made for a run that is refused is removed again.
    """
    if not first_rank:
        yield
        return
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError([f"run.dir: another process is training in '{folder}'; choose another run.dir"]) from None
    except OSError as error:
        raise ConfigError([f"run.dir: '{folder}' cannot be made or written ({error.strerror})"]) from None
    try:
        yield
    finally:
        if made and folder.is_dir() and [path.name for path in folder.iterdir()] == [".lock"]:
            shutil.rmtree(folder)
        lock.release()


def refuse_other_recipe(folder: Path, before: Mapping[str, Any], recipe: Recipe) -> None:
    """A directory is resumed by the recipe that started it. Raises ConfigError naming the first key that differs.

    Keys that are younger than the run are taken to have had their default values.
    """
    with suppress(ConfigError, FileNotFoundError):  # what it names may be gone; then the keys are compared as they are
        before = config.load(before).to_dict()

    old, new = schema.flat(before), schema.flat(recipe.to_dict())
    for key in sorted(set(old) | set(new)):
        may_change = key.endswith(".init") or any(key == k or key.startswith(f"{k}.") for k in MAY_CHANGE)
        if old.get(key) != new.get(key) and not may_change:
            raise ConfigError(
                [f"{key} is {new.get(key)!r}, but the run in '{folder}' was started with {old.get(key)!r}: "
                 "choose another run.dir, or the old value to resume" + _further(key, folder)]
            )  # fmt: skip


def _further(key: str, folder: Path) -> str:
    """The way on for who wants a longer run than the one that is there."""
    return f"; model.init={folder} starts another run from its weights" if key == "run.steps" else ""


def open_stores(recipe: Recipe) -> list[Source]:
    """What data.store names. Raises as `store_paths`, and FileNotFoundError naming the path."""
    return [open_source(path) for path in store_paths(recipe)]


def store_paths(recipe: Recipe) -> list[str]:
    """data.store as a list. Raises ConfigError naming data.weights, or an option of synthetic volumes."""
    paths = recipe.data.store if isinstance(recipe.data.store, list) else [recipe.data.store]
    weights = recipe.data.weights
    if weights is not None and len(weights) != len(paths):
        raise ConfigError([f"data.weights has {len(weights)} values for {len(paths)} store(s) in data.store"])
    for path in filter(is_synthetic, paths):
        try:
            Options.parse(path)
        except ValueError as error:
            raise ConfigError([str(error)]) from None
    return paths


@dataclass
class RunData:
    """The data of a run: which samples train it, which are held out, and what is remembered of them."""

    recipe: Recipe
    plan: SamplingPlan
    holdout: SamplingPlan | None
    seen: pd.DataFrame
    seen_digest: str
    normalisation: dict[str, Any]
    median_spacing: list[float]
    guarded: Guarded
    initial: Initial | None

    @classmethod
    def build(
        cls, recipe: Recipe, stores: list[Source], objective: Objective, initial: Initial | None = None
    ) -> RunData:
        """Plans over the stores, less the excluded, leaking and held-out subjects; `initial`: what it starts from.

        Raises ConfigError when nothing is left, or as `ssl3d.guard.guard`.
        """
        data, spec = recipe.data, objective.region
        inherited = None if initial is None else initial.seen  # its weights have seen it too
        guarded = guard(recipe, stores, inherited)
        include = config.subjects(data.include, "data.include")
        exclude = (config.subjects(data.exclude, "data.exclude") or set()) | guarded.subjects
        common: dict[str, Any] = {
            "weights": data.weights, "balance": data.balance, "few_slices": data.few_slices,
            "patch_size": objective.placed_size,
        }  # fmt: skip
        if objective.placed_size == objective.input_size:  # else it is no patch of the network's
            common["multiple"] = objective.backbone.total_stride
        held_out = split_holdout(stores, data.holdout, recipe.run.seed) - exclude if data.holdout else set()
        held_out = held_out if include is None else held_out & include
        plan = SamplingPlan(
            stores, spec, recipe.run.seed, include=include, exclude=exclude | held_out,
            crops_per_volume=data.crops_per_volume, **common,
        )  # fmt: skip
        check_channels(plan, data, objective)
        holdout = None
        if held_out:
            seed = mix(recipe.run.seed, "holdout")
            try:
                holdout = SamplingPlan(stores, spec, seed, include=held_out, exclude=exclude, **common)
            except ValueError as error:  # too small or too few for this task: a diagnostic is no reason to stop
                say(f"no held-out loss will be reported: among the {len(held_out)} held-out subjects, {error}")
        seen = pd.concat([*(volume_table(store, plan.rows(i)) for i, store in enumerate(stores)), inherited])
        seen = seen.drop_duplicates(["fingerprint", "perceptual_hash", "subject"])
        seen = seen.sort_values("fingerprint", ignore_index=True)
        digest = seen_digest(seen)
        spacing = np.median(np.concatenate([s.column("spacing")[plan.rows(i)] for i, s in enumerate(stores)]), axis=0)
        numbers = describe_normalisation(stores, data.normalise)
        return cls(recipe, plan, holdout, seen, digest, numbers, [float(v) for v in spacing], guarded, initial)

    def loader(self, fabric: Fabric, start_step: int) -> RegionLoader:
        """Micro-batches of this rank from optimiser step `start_step` on."""
        data, run = self.recipe.data, self.recipe.run
        return RegionLoader(
            self.plan,
            data.batch_size,
            workers=data.workers,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            accumulate=run.accumulate,
            channels=data.channels,
            channel_dropout=data.channel_dropout,
            normalise=data.normalise,
            start_step=start_step,
            device=fabric.device,
            on_error=data.on_error,
            local_ranks=len(getattr(fabric.strategy, "parallel_devices", None) or [fabric.device]),
            cache_gb=data.cache_gb,
        )

    def lineage(self) -> dict[str, Any]:
        """What names the data, for trackers: numbers and the name of each store, no subject and no path."""
        stores = self.recipe.data.store if isinstance(self.recipe.data.store, list) else [self.recipe.data.store]
        return {
            "fingerprint": self.seen_digest,
            "volumes": len(self.seen),
            "subjects": int(self.seen["subject"].nunique()),
            "stores": [Path(store).name for store in stores],
        }

    def words(self) -> list[str]:
        """What is not trained on, in a sentence; none where everything is. And whether data.exclude found nobody."""
        data, stores = self.recipe.data, self.plan.stores
        total = sum(len(store) for store in stores)
        trained, held_out = (0 if plan is None else sum(len(plan.rows(i)) for i in range(len(stores)))
                             for plan in (self.plan, self.holdout))  # fmt: skip
        few = 0 if data.few_slices else sum(FEW_SLICES in f for s in stores for f in s.column("flags"))
        subjects = {str(v) for store in stores for v in store.column("subject")}
        apart: set[str] = set()
        for i, store in enumerate(stores):
            if self.holdout is not None:
                apart |= {str(v) for v in store.column("subject")[self.holdout.rows(i)]}
        parts = {  # whole subjects are held out: of a few large ones that is far more than the share that was asked for
            f"held out ({len(apart)} of {len(subjects)} subjects, data.holdout={data.holdout:g})": held_out,
            "of few slices (data.few_slices)": few,
        }
        words = "".join(f", {number} {what}" for what, number in parts.items() if number)
        sentences = [] if trained == total else [f"{trained} of {total} volumes to train on{words}"]
        excluded = config.subjects(data.exclude, "data.exclude") or set()
        if excluded and not matching(subjects, excluded):
            sentences.append(
                f"data.exclude leaves nobody out: none of its {len(excluded)} subjects goes by that name in "
                f"{', '.join(store.path for store in stores)}; what lies there under another, guard.suites finds"
            )
        return sentences

    def reader(self, plan: SamplingPlan) -> RegionLoader:
        """Reads single batches in this thread: previews, held-out subjects."""
        group = plan.spec.group
        data = self.recipe.data
        return RegionLoader(
            plan, group, workers=0, channels=data.channels, channel_dropout=data.channel_dropout,
            normalise=data.normalise, on_error=data.on_error,
        )  # fmt: skip

    def describe_samples(self, step: int, most: int = 8) -> str:
        """Volumes and positions of the samples of a step, for an error message."""
        size = self.recipe.data.batch_size
        words = []
        for index in range(step * size, (step + 1) * size)[:most]:
            sample = self.plan.sample(index)
            volume = self.plan.stores[sample.store].volume_id(sample.row)
            words.append(f"{volume}@{'/'.join(str(int(v)) for v in sample.start)}")
        return ", ".join(words) + (f" and {size - most} more" if size > most else "")


def check_channels(plan: SamplingPlan, data: DataConfig, objective: Objective) -> None:
    """Raise ConfigError when regions have another number of channels than the network takes."""
    found = ChannelChoice(data.channels, data.channel_dropout).count(plan.channels)
    wanted = objective.backbone.in_channels
    if found != wanted:
        raise ConfigError(
            [f"model.in_channels is {wanted}, but regions have {found} channel(s): set model.in_channels={found}, or "
             f"data.channels={wanted}, which fits volumes of any number"]
        )  # fmt: skip


def refuse_other_volumes(folder: Path, seen_digest: str, data: RunData) -> None:
    """A resumed run goes on with the volumes it was started with. Raises ConfigError when they are others."""
    if data.seen_digest != seen_digest:
        raise ConfigError(
            [f"data.store: the volumes are not those that the run in '{folder}' was started with: bring back the old "
             "store, data.include and data.exclude, or choose another run.dir"]
        )  # fmt: skip


def write_start(folder: Path, recipe: Recipe, data: RunData, fabric: Fabric) -> None:
    """recipe.yaml, environment.json, seen.parquet, normalisation.json, initial weights, before the first step."""
    write_text(folder / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(recipe.to_dict())))
    for sentence in (*data.guarded.sentences, *data.words(), *recipe.warnings()):
        say(sentence)
    write_json(folder / "environment.json", {
        **environment(), "world_size": fabric.world_size, "precision": fabric.strategy.precision.precision,
        "guard": list(data.guarded.sentences),
    })  # fmt: skip
    write_json(folder / "normalisation.json", data.normalisation)
    if data.initial is not None:
        data.initial.write(folder)
    write_atomically(folder / SEEN_FILE, lambda part: data.seen.to_parquet(part, index=False))
