"""A suite: one YAML page that says on which labels, with how much training, and by which measures weights are judged.

Strict and typed like a recipe: unknown keys, wrong types and missing values fail before anything heavy starts, each
named with its key. Suites are looked up in recipes/downstream like recipes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssl3d import config, schema
from ssl3d.augment import Compose
from ssl3d.recipe import WandbConfig
from ssl3d.schema import ConfigError

SUITES = config.RECIPES / "downstream"
Transfer = Literal["encoder", "encoder+decoder"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]


@dataclass
class ProbeConfig:
    """Logistic regression on frozen features. `seeds`: a count or a list; `patch_size`: window of the encoder, voxels.

    `voxels_per_class`: training voxels sampled a class, over all labelled patients; `l2`: weight penalty relative to
    the mean loss, the same for every arm.
    """

    n_labelled: list[int]
    patch_size: tuple[int, int, int]
    seeds: int | list[int] = 5
    voxels_per_class: int = 2000
    l2: float = 1e-3


@dataclass
class TuneConfig:
    """The search of the learning rate, the same budget for every arm, scored on validation patients only.

    It runs at `n_labelled` labelled patients (null: the largest of the measure) with so many `seeds`.
    """

    n_labelled: int | None = None
    seeds: int = 1


@dataclass
class FinetuneOptim:
    """As a recipe's optim; of several `lr` each arm gets the one that is best on the validation patients."""

    lr: list[float]
    name: Literal["sgd", "adamw"] = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["poly", "cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    clip_norm: float | None = 12.0


@dataclass
class FinetuneConfig:
    """Supervised training of the whole network from each arm's weights, through the same loop as pre-training.

    `transfer`: which part of the pre-trained weights is loaded; the rest, and the head, start fresh and equal in every
    arm. `labelled_share`: share of patches centred on a class. `augment`: as in a recipe's task, or null. `window`:
    voxels of an inference window (null: patch_size); one that holds a whole small volume saves many overlapping ones.
    """

    n_labelled: list[int]
    patch_size: tuple[int, int, int]
    steps: int
    batch_size: int
    optim: FinetuneOptim
    seeds: int | list[int] = 3
    transfer: Transfer = "encoder"
    labelled_share: float = 0.33
    augment: dict[str, Any] | None = None
    window: tuple[int, int, int] | None = None
    tune: TuneConfig = field(default_factory=TuneConfig)


@dataclass
class Measures:
    """What is measured; null leaves a measure out."""

    probe: ProbeConfig | None = None
    finetune: FinetuneConfig | None = None


@dataclass
class Suite:
    """A checked, completed suite.

    `store`: labelled store; `split`: JSON file of patients (downstream.splits); `dataset`: its name in the results
    (null: the store's name); `classes`: names of the classes trained and scored (null: all); `seed`: draws the labelled
    subsets; `workers`: processes, results do not depend on it; `threads`: CPU threads of each; `pictures`: test cases
    shown in the report; `overlap`: of inference windows; `allow_leak`: go on although test patients were seen; `wandb`:
    as in a recipe, `auto` is disabled; its group is the suite and data set unless it is named.
    """

    name: str
    store: str
    split: str
    measures: Measures
    dataset: str | None = None
    classes: list[str] | None = None
    metrics: list[Literal["dice", "hd95", "assd"]] = field(default_factory=lambda: ["dice", "hd95", "assd"])
    seed: int = 0
    normalise: Literal["auto"] | dict[str, Any] = "auto"
    precision: Precision = "auto"
    overlap: float = 0.5
    workers: int | Literal["auto"] = "auto"
    threads: int = 1
    pictures: int = 3
    allow_leak: bool = False
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain YAML types; `load_suite` reads them back to an equal suite."""
        return schema.plain(self)

    @property
    def dataset_name(self) -> str:
        return self.dataset or Path(self.store.rstrip("/")).stem


def seeds(value: int | list[int]) -> list[int]:
    """The seeds of a measure: 3 means 0, 1, 2."""
    return list(range(value)) if isinstance(value, int) else list(value)


def load_suite(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Suite:
    """Read, override and check a suite. Raises ConfigError (one sentence a fault) or FileNotFoundError."""
    values = config.read(source if isinstance(source, Mapping) else config.find(str(source), SUITES, "suite"))
    values = config.override(values, overrides)
    _listed(values, "measures.finetune.optim.lr")
    completed, faults = schema.check_fields(values, schema.parameters(Suite), "")
    faults += _augment_faults(completed)
    if not faults:
        faults = _range_faults(completed)
    if faults:
        raise ConfigError(faults)
    finetune = completed["measures"]["finetune"] or {}
    augment = finetune.pop("augment", None)  # stays a mapping: it goes into each fine-tuning's recipe
    suite: Suite = schema.build(completed, Suite)
    if suite.measures.finetune is not None:
        suite.measures.finetune.augment = augment
    return suite


def _listed(values: dict[str, Any], key: str) -> None:
    """Let a lone number stand for a list of one: `optim.lr=0.01` is no search."""
    *parents, last = key.split(".")
    node: Any = values
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) and isinstance(node.get(last), int | float | str):
        node[last] = [node[last]]


def _augment_faults(completed: dict[str, Any]) -> list[str]:
    """Check and complete measures.finetune.augment against the signatures of the transforms."""
    measures = completed.get("measures")
    finetune = measures.get("finetune") if isinstance(measures, dict) else None
    if not isinstance(finetune, dict) or not isinstance(finetune.get("augment"), Mapping):
        return []
    key = "measures.finetune.augment"
    finetune["augment"], faults = schema.check_target(finetune["augment"], Compose, key)
    return faults


def _range_faults(values: Mapping[str, Any]) -> list[str]:
    """Ranges that a type cannot say, of the suite and each measure."""
    faults = []

    def require(ok: bool, key: str, value: Any, rule: str) -> None:
        if not ok:
            faults.append(f"{key} is {value}; it must be {rule}")

    require(0 <= values["overlap"] < 1, "overlap", values["overlap"], "at least 0 and below 1")
    require(values["threads"] > 0, "threads", values["threads"], "above 0")
    require(values["workers"] == "auto" or values["workers"] > 0, "workers", values["workers"], "auto or above 0")
    require(values["pictures"] >= 0, "pictures", values["pictures"], "0 or more")
    require(values["seed"] >= 0, "seed", values["seed"], "0 or more")
    require("dice" in values["metrics"], "metrics", values["metrics"], "a list with dice in it")
    measures = {name: m for name, m in values["measures"].items() if m is not None}
    if not measures:
        faults.append("measures is empty: give measures.probe or measures.finetune")
    for name, m in measures.items():
        key = f"measures.{name}"
        chosen, amounts = seeds(m["seeds"]), m["n_labelled"]
        require(bool(chosen) and min(chosen) >= 0, f"{key}.seeds", m["seeds"], "a count above 0 or a list of seeds")
        require(len(set(chosen)) == len(chosen), f"{key}.seeds", m["seeds"], "a list without repeats")
        require(bool(amounts) and min(amounts) > 0, f"{key}.n_labelled", amounts, "a list of counts above 0")
        require(len(set(amounts)) == len(amounts), f"{key}.n_labelled", amounts, "a list without repeats")
        require(min(m["patch_size"]) > 0, f"{key}.patch_size", m["patch_size"], "above 0 on every axis")
        if name == "probe":
            require(m["voxels_per_class"] > 0, f"{key}.voxels_per_class", m["voxels_per_class"], "above 0")
            require(m["l2"] > 0, f"{key}.l2", m["l2"], "above 0")
        else:
            faults += _finetune_faults(m, key)
    return faults


def _finetune_faults(m: Mapping[str, Any], key: str) -> list[str]:
    rules = [
        (m["steps"] > 0, "steps", m["steps"], "above 0"),
        (m["batch_size"] > 0, "batch_size", m["batch_size"], "above 0"),
        (0 <= m["labelled_share"] <= 1, "labelled_share", m["labelled_share"], "between 0 and 1"),
        (m["tune"]["seeds"] > 0, "tune.seeds", m["tune"]["seeds"], "above 0"),
        ((m["tune"]["n_labelled"] or 1) > 0, "tune.n_labelled", m["tune"]["n_labelled"], "null or above 0"),
        (bool(m["optim"]["lr"]) and min(m["optim"]["lr"]) > 0, "optim.lr", m["optim"]["lr"], "a list of rates above 0"),
        (len(set(m["optim"]["lr"])) == len(m["optim"]["lr"]), "optim.lr", m["optim"]["lr"], "a list without repeats"),
    ]
    return [f"{key}.{name} is {value}; it must be {rule}" for ok, name, value, rule in rules if not ok]


def largest_n(suite: Suite) -> int:
    """The most labelled patients any cell of the suite uses: what the split's pool must hold."""
    probe, finetune = suite.measures.probe, suite.measures.finetune
    amounts = [*(probe.n_labelled if probe else []), *(finetune.n_labelled if finetune else [])]
    if finetune and len(finetune.optim.lr) > 1:
        amounts.append(finetune.tune.n_labelled or 0)
    return max(amounts)


def settings(measure: ProbeConfig | FinetuneConfig) -> dict[str, Any]:
    """What of a measure decides the values of one of its cells: all but which cells there are."""
    values = dataclasses.asdict(measure)
    for name in ("n_labelled", "seeds", "tune"):
        values.pop(name, None)
    if "optim" in values:
        values["optim"] = {k: v for k, v in values["optim"].items() if k != "lr"}
    return values
