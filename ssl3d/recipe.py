"""What a recipe says: its sections, typed. `ssl3d.config` reads, checks and builds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ssl3d import schema


@dataclass
class RunConfig:
    """Where and how long. `dir`: the run's folder (the same again resumes); `*_every`: steps, 0 is never.

    `trackers`: who is told of the run beside metrics.jsonl and wandb, which has a section of its own.

    `precision` auto: bf16-mixed where the processor or GPU has instructions for bfloat16, else 32-true.
    `strategy`: what several devices hold: ddp, all of the weights each; fsdp, a part each (ssl3d.sharding).
    `recompute`: keep the inputs of the backbone's segments alone, and run them again going backward: less memory, the
    same bits. `channels_last`: convolutions in the layout (B,D,H,W,C).
    """

    dir: str
    steps: int
    seed: int = 0
    devices: int | Literal["auto"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    accumulate: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    recompute: bool = False
    channels_last: bool = False
    log_every: int = 50
    checkpoint_every: int = 1000
    preview_every: int = 1000
    holdout_every: int = 1000
    collapse_every: int = 1000
    trackers: list[Literal["tensorboard", "mlflow"]] = field(default_factory=list)


@dataclass
class DataConfig:
    """Which regions: `batch_size` per optimiser step over all ranks and accumulation; `holdout` share of subjects.

    `store`: a path, `synthetic` (see ssl3d.data.synthetic), or several with `weights`; `include`/`exclude`: subjects,
    or a JSON file of them. A split file ({"pool"|"train", "validation", "test"}) excludes its validation and test
    patients.
    `balance` modality: each modality (CT, MR, ...) as often as the others, and within it the stores by their weights.
    `channels`: of a volume, all of them (every volume has as many), one drawn for each region, or a number, whatever
    the volumes have; `channel_dropout`: then, the share of a volume's channels left out (ssl3d.data.channels).
    `on_error`: at a volume that cannot be read, stop, or skip it: others are read in its place, and counted.
    `crops_per_volume`: so many in a row, for files that are slow to reach; a batch then holds fewer volumes.
    `cache_gb`: 1e9 bytes of decoded voxels kept in memory, on each machine, shared out among its ranks.
    """

    store: str | list[str]
    batch_size: int
    weights: list[float] | None = None
    workers: int | Literal["auto"] = "auto"
    normalise: Literal["auto"] | dict[str, Any] = "auto"
    balance: Literal["stores", "modality"] = "stores"
    channels: Literal["all", "one"] | int = "all"
    channel_dropout: float = 0.0
    holdout: float = 0.0
    include: str | list[str] | None = None
    exclude: str | list[str] | None = None
    few_slices: bool = False
    on_error: Literal["stop", "skip"] = "stop"
    crops_per_volume: int = 1
    cache_gb: float = 0.0


@dataclass
class GroupConfig:
    """Parameters whose name the regular expression `match` finds; frozen (no step, no decay) before `freeze_until`."""

    match: str
    lr_scale: float = 1.0
    weight_decay: float | None = None
    freeze_until: int = 0


@dataclass
class OptimConfig:
    """Optimiser and schedule, the same for every method. `lr` is reached after `warmup_steps`, linearly from 0.

    Norms, biases, positions and tokens are not decayed. `layer_decay` scales the rate by layer_decay^(layers above).
    `encoder_freeze_until`, `rest_freeze_until`: steps before which the encoder, or all that is no encoder, does not
    move (no step, no decay): the head first, or the encoder first.
    """

    lr: float
    name: Literal["sgd", "adamw"] = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    weight_decay_end: float | None = None
    schedule: Literal["poly", "cosine", "constant"] = "cosine"
    poly_power: float = 0.9
    lr_end: float = 0.0
    warmup_steps: int = 0
    clip_norm: float | None = None
    layer_decay: float | None = None
    encoder_freeze_until: int = 0
    rest_freeze_until: int = 0
    ema: float | None = None
    groups: list[GroupConfig] = field(default_factory=list)


@dataclass
class WandbConfig:
    """`auto` is online under a sweep agent, else disabled. `upload`: an export's files too, not their digests alone."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "ssl3d"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    upload: bool = False


@dataclass
class ProbeConfig:
    """A linear probe of the frozen encoder during training: `store` with labels (null: none), `every` so many steps.

    `regions`: how many are read of each half of its patients. `include`/`exclude`: as in data; a split file excludes
    its validation and test patients, so that what is evaluated later has chosen nothing.
    """

    store: str | None = None
    every: int = 1000
    regions: int = 32
    include: str | list[str] | None = None
    exclude: str | list[str] | None = None


@dataclass
class GuardedSuite:
    """An evaluation whose test patients must not be trained on: `suite`, a YAML file or a name (the suite.yaml of a
    finished evaluation names all); `store` and `split` where the file leaves them open, or without a file."""

    suite: str | None = None
    store: str | None = None
    split: str | None = None


@dataclass
class GuardConfig:
    """The leak guard: before training, the volumes are compared with the test volumes of `suites`, by fingerprint,
    subject and looks. A leaking subject is left out (`exclude`), or nothing is trained (`stop`)."""

    suites: list[GuardedSuite] = field(default_factory=list)
    on_leak: Literal["exclude", "stop"] = "exclude"


@dataclass
class Recipe:
    """A checked, completed recipe. `model` and `task` stay plain mappings until they are built."""

    run: RunConfig
    data: DataConfig
    model: dict[str, Any]
    task: dict[str, Any]
    optim: OptimConfig
    probe: ProbeConfig
    wandb: WandbConfig
    guard: GuardConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain YAML types; `load` reads them back to an equal recipe."""
        return schema.plain(self)

    def warnings(self) -> list[str]:
        """What is allowed and hardly meant, a sentence each."""
        steps, rising = self.run.steps, self.optim.warmup_steps
        if rising < steps:
            return []
        return [f"optim.warmup_steps is {rising}, run.steps {steps}: the rate still rises when the run ends"]
