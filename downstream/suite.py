"""A suite: one YAML page that says on which labels, with how much training, and by which measures weights are judged.

Strict and typed like a recipe: unknown keys, wrong types and missing values fail before anything heavy starts, each
named with its key. Suites are looked up in recipes/downstream like recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from downstream import split_rules
from downstream.measure import Measure
from downstream.schedule import AXES
from ssl3d import config, schema
from ssl3d.augment import Compose
from ssl3d.recipe import WandbConfig
from ssl3d.schema import TARGET, ConfigError

SUITES = config.RECIPES / "downstream"
_SPLIT_UNSET = (  # nobody guesses what to write there
    "split is not set: give a JSON file of patients, split=split.json, or draw them, "
    "split='{rule: folds, folds: 5, fold: 0, seed: 0, validation: 4}'"
)
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"]
# Measures of these names need no _target_.
USUAL = {"probe": "downstream.probe.Probe", "finetune": "downstream.finetune.Finetune"}


@dataclass
class Suite:
    """A checked, completed suite.

    `store`: labelled store; `split`: JSON file of patients, name of a shipped one or rule (downstream.split_rules);
    `measures`: {name: measure}, in the order of the report; `dataset`: its name in the results (null: the store's
    name); `classes`: names of the classes trained and scored (null: all); `target`: what whole volumes are judged by
    instead, a column of the store's targets, `target_kind` by its values when null (downstream.volume); `metrics` of
    segmentations, with `nsd_mm` the tolerance of the surface Dice; `seed`: draws the labelled subsets; `workers`:
    processes, results do not depend on it; `threads`: CPU threads of each; `scheduler`: address of
    a dask scheduler, whose workers see the same files and are used instead; `pictures`: test cases shown in the report,
    extremes first (of one cell an arm the predictions of all test patients are kept for that; 0 keeps none);
    `overlap`: of inference windows; `allow_leak`: go on although test patients were seen; `wandb`: as in a recipe,
    `auto` is disabled; its group is the suite and data set unless it is named.
    """

    name: str
    store: str
    split: str | dict[str, Any]
    measures: dict[str, Measure]
    dataset: str | None = None
    classes: list[str] | None = None
    target: str | None = None
    target_kind: Literal["classification", "regression"] | None = None
    metrics: list[Literal["dice", "nsd", "hd95", "assd"]] = field(default_factory=lambda: ["dice", "hd95", "assd"])
    nsd_mm: float = 2.0
    seed: int = 0
    normalise: Literal["auto"] | dict[str, Any] = "auto"
    precision: Precision = "auto"
    overlap: float = 0.5
    workers: int | Literal["auto"] = "auto"
    threads: int = 1
    scheduler: str | None = None
    pictures: int = 5
    allow_leak: bool = False
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain YAML types; `load_suite` reads them back to an equal suite."""
        measures = {name: {TARGET: target_of(m), **schema.plain(m)} for name, m in self.measures.items()}
        return schema.plain(self) | {"measures": measures}

    @property
    def dataset_name(self) -> str:
        return self.dataset or Path(self.store.rstrip("/")).stem


def load_suite(source: str | Path | Mapping[str, Any], overrides: config.Overrides = ()) -> Suite:
    """Read, override and check a suite. Raises ConfigError (one sentence a fault) or FileNotFoundError."""
    values = config.read(source, SUITES, overrides, "suite")
    values["measures"] = _measures(values.get("measures"))
    completed, faults = schema.check_fields(values, schema.parameters(Suite), "")
    faults = [_SPLIT_UNSET if fault.startswith("split is not set") else fault for fault in faults]
    if isinstance(values.get("split"), Mapping):
        faults += split_rules.faults(values["split"])
    augments = {}
    if not faults:
        for name, node in completed["measures"].items():
            if isinstance(node.get("augment"), Mapping):
                node["augment"], found = schema.check_target(node["augment"], Compose, f"measures.{name}.augment")
                faults += found
            augments[name] = node.pop("augment", None)  # stays a mapping: it goes into each training's recipe
    if faults:
        raise ConfigError(faults)
    suite: Suite = schema.build(completed, Suite)
    for name, augment in augments.items():
        if augment is not None:
            setattr(suite.measures[name], "augment", augment)  # noqa: B010 - not every measure has it
    if faults := _range_faults(suite):
        raise ConfigError(faults)
    return suite


def _measures(given: Any) -> dict[str, Any]:
    """The nodes of measures, ready to be checked: usual targets filled in, those that are null left out.

    Raises ConfigError when there is none, or a name that cannot stand in a table.
    """
    if not isinstance(given, Mapping) or not any(node is not None for node in given.values()):
        raise ConfigError(["measures is empty: give measures.probe or measures.finetune"])
    nodes = {}
    for name, node in given.items():
        if node is None:
            continue
        if not str(name).isidentifier():
            raise ConfigError([f"measures.{name}: a measure's name is made of letters, digits and underscores"])
        if not isinstance(node, Mapping) or (TARGET not in node and name not in USUAL):
            raise ConfigError([f"measures.{name} needs a {TARGET}: an import path such as {USUAL['probe']}"])
        nodes[name] = {TARGET: USUAL.get(name), **node}
        optim = node.get("optim")
        if isinstance(optim, Mapping):  # a lone value is a list of one: `optim.lr=0.01` is no search
            lone = {k: [v] for k, v in optim.items() if k in AXES and not isinstance(v, list)}
            nodes[name]["optim"] = {**optim, **lone}
    return nodes


def target_of(measure: Measure) -> str:
    """The import path of a measure's class."""
    return f"{type(measure).__module__}.{type(measure).__qualname__}"


def _range_faults(suite: Suite) -> list[str]:
    """Ranges that a type cannot say, of the suite and each measure."""
    rules = [
        (0 <= suite.overlap < 1, "overlap", suite.overlap, "at least 0 and below 1"),
        (suite.threads > 0, "threads", suite.threads, "above 0"),
        (suite.workers == "auto" or suite.workers > 0, "workers", suite.workers, "auto or above 0"),
        (suite.pictures >= 0, "pictures", suite.pictures, "0 or more"),
        (suite.seed >= 0, "seed", suite.seed, "0 or more"),
        (suite.nsd_mm > 0, "nsd_mm", suite.nsd_mm, "above 0"),
        (bool(suite.target) or not suite.target_kind, "target_kind", suite.target_kind, "null where target is"),
        ("dice" in suite.metrics, "metrics", suite.metrics, "a list with dice in it"),
        (len(set(suite.metrics)) == len(suite.metrics), "metrics", suite.metrics, "a list without repeats"),
        (suite.classes != [], "classes", suite.classes, "null for all classes, or a list that is not empty"),
    ]
    found = [f"{name} is {value}; it must be {rule}" for holds, name, value, rule in rules if not holds]
    found += [_unfit(suite, name) for name, m in suite.measures.items() if m.VOLUMES is (suite.target is None)]
    return found + [fault for name, m in suite.measures.items() for fault in m.check(f"measures.{name}")]


def _unfit(suite: Suite, name: str) -> str:
    """The fault of a measure that predicts other things than the suite asks for."""
    if suite.target is None:
        return f"measures.{name} predicts a target of whole volumes, but target is null: name one of the store's"
    return (
        f"measures.{name} segments, but the suite has the target '{suite.target}': take a measure of volumes, such as "
        "downstream.volume_probe.VolumeProbe"
    )
