"""Batches of regions, in order, forever: the samples of each step and rank, read by workers, assembled by index."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch

from ssl3d.data import normalise as normalisation
from ssl3d.data.cache import cache_for
from ssl3d.data.channels import ChannelChoice
from ssl3d.data.lru import LRU
from ssl3d.data.machine import available_cores
from ssl3d.data.reading import RegionReader
from ssl3d.data.sampling import Sample, SamplingPlan
from ssl3d.data.upload import upload_to
from ssl3d.data.workers import Inline, Pool, Processes, Target, Threads
from ssl3d.regions import RegionBatch

_log = logging.getLogger(__name__)
UNREADABLE = (ValueError, FileNotFoundError, RuntimeError)  # what a reader raises, naming the volume
REPLACEMENTS = 8  # tried for a sample that cannot be read
DESCRIBED = 8192  # volumes whose spacing, affine and normalisation numbers are kept decoded
MAX_AUTO_WORKERS = 8


class RegionLoader:
    """Iterates over the micro-batches of one rank, endlessly, from `start_step` on.

    Step s holds the samples [s * batch_size, (s + 1) * batch_size); rank r takes the r-th of `world_size` equal
    stretches of them and cuts it into `accumulate` micro-batches. What a sample is depends on its number only, so
    other workers, ranks or accumulation give the same samples, and a resume goes on where the steps ended.
    `workers`: 0 reads in the calling thread; "auto" leaves a CPU to the loop. `backend`: "threads" or "processes".
    `local_ranks`: ranks on this machine, which share its cores and the `cache_gb` (1e9 bytes) of decoded voxels that
    are kept in its memory (0: none; see `ssl3d.data.cache`).
    `channels`: "all", "one" drawn per sample, or a number; `channel_dropout`: share of them left out; see
    `ssl3d.data.channels`. `normalise`: see `ssl3d.data.normalise`. `device`: where
    batches are wanted; to a GPU they are copied one ahead, out of page-locked memory (see `ssl3d.data.upload`).
    `on_error`: "stop" raises what a reader raises; "skip" reads other samples instead, warns once a volume and
    counts them in `replaced`.
    Reads ahead by a bounded number of micro-batches. Leave an iterator, `close()` the loader or use it as a context
    manager, and its workers end.
    Raises ValueError when batch_size cannot be cut so, the volumes do not have the same number of channels, or the
    cache is larger than the memory that is free.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        batch_size: int,
        *,
        workers: int | Literal["auto"] = "auto",
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        channels: Literal["all", "one"] | int = "all",
        channel_dropout: float = 0.0,
        normalise: normalisation.Normalise = "auto",
        start_step: int = 0,
        device: torch.device | str = "cpu",
        backend: Literal["threads", "processes"] = "threads",
        on_error: Literal["stop", "skip"] = "stop",
        local_ranks: int | None = None,
        cache_gb: float = 0.0,
    ) -> None:
        parts = world_size * accumulate
        if batch_size < 1 or batch_size % parts:
            raise ValueError(
                f"data.batch_size is {batch_size}, which does not divide into {world_size} device(s) x {accumulate} "
                f"accumulation step(s): take {max(1, math.ceil(batch_size / parts)) * parts}"
            )
        self.micro_batch = batch_size // parts
        if self.micro_batch % plan.spec.group:
            raise ValueError(
                f"a micro-batch of {self.micro_batch} samples (data.batch_size {batch_size} over {parts}) is no "
                f"multiple of the task's group of {plan.spec.group}: take data.batch_size={plan.spec.group * parts}"
            )
        choice = ChannelChoice(channels, channel_dropout)
        if backend not in ("threads", "processes"):
            raise ValueError(f"backend is '{backend}': it must be threads or processes")
        normalisation.check(normalise)
        self.plan, self.batch_size, self.accumulate = plan, batch_size, accumulate
        self.rank, self.world_size, self.start_step = rank, world_size, start_step
        local_ranks = local_ranks or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.workers = _auto_workers(local_ranks) if workers == "auto" else int(workers)
        self.device = torch.device(device)
        self.backend, self.pin, self._normalise = backend, self.device.type == "cuda", normalise
        self.on_error, self.replaced, self._told = on_error, 0, set[str]()  # replaced: samples, so far
        self.channels = choice.count(plan.channels)
        self.target_names = _target_names(plan)
        self.cache = cache_for(cache_gb, local_ranks)
        images, labels = plan.spec.images, plan.spec.labels
        self._reader = RegionReader(plan.stores, plan.spec.size, choice, self.cache, images, labels and not images)
        self._described: LRU[int, dict[str, Any]] = LRU(DESCRIBED)
        self._iterators: list[Generator[RegionBatch]] = []
        # Enough samples ahead to keep every worker busy while one batch is consumed, and never fewer than two batches.
        self.prefetch = max(2, math.ceil(2 * self.workers / self.micro_batch)) if self.workers else 0

    def __iter__(self) -> Iterator[RegionBatch]:
        iterator = self._iterate()
        self._iterators.append(iterator)
        return iterator

    def __enter__(self) -> RegionLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all iterators and their workers."""
        for iterator in self._iterators:
            iterator.close()
        self._iterators.clear()

    def read(self, indices: Iterable[int]) -> RegionBatch:
        """One batch of any sample numbers, read in the calling thread."""
        batch, replaced = self._begin([self.plan.sample(int(i)) for i in indices], Inline(self._reader))()
        self.replaced += replaced
        return batch.to(self.device)

    def numbers(self, step: int, micro: int) -> range:
        """The sample numbers of this rank's micro-batch `micro` of step `step`."""
        first = step * self.batch_size + (self.rank * self.accumulate + micro) * self.micro_batch
        return range(first, first + self.micro_batch)

    def _iterate(self) -> Generator[RegionBatch]:
        pool, upload = self._pool(), upload_to(self.device)
        try:
            pending: deque[Callable[[], tuple[RegionBatch, int]]] = deque()
            uploading: deque[tuple[RegionBatch, int]] = deque()
            step = self.start_step
            while True:
                for micro in range(self.accumulate):
                    pending.append(self._begin(self._samples(self.numbers(step, micro)), pool))
                    if len(pending) > self.prefetch:
                        batch, replaced = pending.popleft()()
                        uploading.append((upload.start(batch), replaced))
                    if len(uploading) > upload.ahead:
                        batch, replaced = uploading.popleft()
                        self.replaced += replaced
                        yield upload.finish(batch)
                step += 1
        finally:
            pool.close()

    def _pool(self) -> Pool:
        if not self.workers:
            return Inline(self._reader)
        if self.backend == "threads":
            return Threads(self._reader, self.workers)
        ahead = (self.prefetch + 1) * self.micro_batch
        return Processes(self._reader, self.workers, ahead, self.channels, self.plan.spec.labels)

    def _samples(self, numbers: range) -> list[Sample]:
        group = self.plan.spec.group
        return [s for g in range(numbers.start // group, numbers.stop // group) for s in self.plan.group(g)]

    def _begin(self, samples: list[Sample], pool: Pool) -> Callable[[], tuple[RegionBatch, int]]:
        """Start reading a batch; the returned function waits for it, and says how many samples were replaced."""
        page = _Page(self._reader, samples, self.channels, self.plan.spec.labels, self.pin)
        waits = [pool.begin(sample, page.target(i)) for i, sample in enumerate(samples)]

        def finish() -> tuple[RegionBatch, int]:
            failures, group = _failures(waits, raise_first=self.on_error == "stop"), self.plan.spec.group
            replaced = 0
            for first in range(0, len(failures), group):
                if failed := next(filter(None, failures[first : first + group]), None):
                    self._replace(page, first, failed)
                    replaced += group
            valid = None if page.valid is None or page.valid.all() else page.valid
            return self._batch(page.samples, page.image, page.label, valid), replaced

        return finish

    def _replace(self, page: _Page, first: int, error: Exception) -> None:
        """Read other samples in the place of the group that begins at `first`, one of which cannot be read.

        Which ones is a pure function of their numbers too. Raises `error` when REPLACEMENTS of them cannot be read
        either: then it is no single volume that is damaged.
        """
        group = self.plan.spec.group
        for attempt in range(1, REPLACEMENTS + 1):
            for k, sample in enumerate(self.plan.group(page.samples[first].number // group, attempt)):
                page.place(first + k, sample)
            targets = [page.target(first + k) for k in range(group)]
            waits = [Inline(self._reader).begin(page.samples[first + k], t) for k, t in enumerate(targets)]
            if not any(_failures(waits)):
                break
        else:
            raise error
        if str(error) not in self._told:
            self._told.add(str(error))
            _log.warning("%s; other regions are read in its place (data.on_error=skip)", error)

    def _batch(
        self,
        samples: list[Sample],
        image: torch.Tensor,
        label: torch.Tensor | None,
        valid: torch.Tensor | None,
    ) -> RegionBatch:
        volumes = [self._described.get(s.volume, lambda s=s: self._describe(s)) for s in samples]  # type: ignore[misc]
        channels = [self._reader.channels(s) for s in samples]

        def column(name: str, dtype: torch.dtype) -> torch.Tensor:
            tensor = torch.from_numpy(np.stack([v[name] for v in volumes])).to(dtype)
            return tensor.pin_memory() if self.pin else tensor

        def per_channel(name: str) -> torch.Tensor:
            rows = [v[name] if c is None else v[name][c] for v, c in zip(volumes, channels)]
            tensor = torch.from_numpy(np.stack(rows)).float()
            return tensor.pin_memory() if self.pin else tensor

        def each(values: list[Any]) -> torch.Tensor:
            tensor = torch.tensor(values, dtype=torch.int64)
            return tensor.pin_memory() if self.pin else tensor

        return RegionBatch(
            image=image,
            **{key: per_channel(key) for key in ("slope", "intercept", "low", "high", "mean", "std")},
            start=each([s.start for s in samples]),
            volume_shape=column("shape", torch.int64),
            spacing=column("spacing", torch.float32),
            affine=column("affine", torch.float64),
            foreground_box=column("foreground_box", torch.int64),
            volume=each([s.volume for s in samples]),
            seed=each([s.seed for s in samples]),
            label=label,
            valid=valid,
            target=column("target", torch.float32) if self.target_names else None,
        )

    def _describe(self, sample: Sample) -> dict[str, np.ndarray]:
        """What a batch says about a volume, decoded from the index."""
        store, row = self.plan.stores[sample.store], sample.row
        numbers = normalisation.resolve(self._normalise, store, row)
        targets = store.cell("targets", row)
        return {
            **{key: np.array(numbers[key], dtype=np.float64) for key in normalisation.KEYS},
            "slope": np.array(store.cell("scale", row), dtype=np.float64),
            "intercept": np.array(store.cell("offset", row), dtype=np.float64),
            "shape": np.array(store.cell("shape", row)),
            "spacing": np.array(store.cell("spacing", row), dtype=np.float64),
            "affine": np.array(store.cell("affine", row), dtype=np.float64).reshape(4, 4),
            "foreground_box": np.array(store.cell("foreground_box", row)).reshape(2, 3),
            "target": np.array([targets.get(name, math.nan) for name in self.target_names], dtype=np.float64),
        }


class _Page:
    """The arrays of a batch being read, and which sample goes where."""

    def __init__(self, reader: RegionReader, samples: list[Sample], channels: int, labels: bool, pin: bool) -> None:
        n, size = len(samples), reader.size
        self.samples, self._reader, self._pin = samples, reader, pin
        self.image = torch.empty((n, channels, *size), dtype=torch.int16, pin_memory=pin)
        self.label = torch.empty((n, 1, *size), dtype=torch.int64, pin_memory=pin) if labels else None
        self.valid: torch.Tensor | None = None
        for i, sample in enumerate(samples):
            self.place(i, sample)

    def place(self, i: int, sample: Sample) -> None:
        """Sample `i` is this one."""
        self.samples[i] = sample
        if self._reader.may_be_invalid(sample) and self.valid is None:
            shape = (len(self.samples), 1, *self._reader.size)
            self.valid = torch.ones(shape, dtype=torch.bool, pin_memory=self._pin)

    def target(self, i: int) -> Target:
        """Where the voxels of sample `i` go."""
        doubtful = self.valid is not None and self._reader.may_be_invalid(self.samples[i])
        if self.valid is not None and not doubtful:
            self.valid[i] = True
        return Target(
            self.image[i].numpy(),
            None if self.label is None else self.label[i].numpy(),
            self.valid[i].numpy() if self.valid is not None and doubtful else None,
        )


def _failures(waits: list[Callable[[], Any]], raise_first: bool = False) -> list[Exception | None]:
    """What each of them raised, after all have ended."""
    failures: list[Exception | None] = []
    for wait in waits:
        try:
            wait()
            failures.append(None)
        except UNREADABLE as error:
            if raise_first:
                raise
            failures.append(error)
    return failures


def _auto_workers(local_ranks: int) -> int:
    """A worker for each core of this rank but one, which is the loop's; 8 at most.

    The ranks of a machine share its cores, unless SLURM has bound each to cores of its own.
    """
    cores, bound = available_cores(), os.environ.get("SLURM_CPUS_PER_TASK", "")
    if not (bound.isdigit() and cores <= int(bound)):
        cores //= local_ranks
    return max(1, min(MAX_AUTO_WORKERS, cores - 1))


def _target_names(plan: SamplingPlan) -> list[str]:
    """Sorted union of the names of the volumes' targets."""
    texts = {text for store in plan.stores for text in set(store.column("targets"))}
    return sorted({name for text in texts for name in json.loads(text)})
