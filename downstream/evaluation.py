"""An evaluation's directory as the report sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from downstream.comparison import SCRATCH
from downstream.domains import by_domain
from downstream.names import Network, method_names, network_names
from downstream.results import RESULTS_FILE, read_results
from downstream.splits import load_split

SUITE_FILE, ARMS_FILE, ENVIRONMENT_FILE = "suite.yaml", "arms.json", "environment.json"
SPLIT_FILE = "split.json"  # the patients, as the store calls them
MEASURES_FILE, DATA_FILE, WARNINGS_FILE, CASES = "measures.json", "data.json", "warnings.json", "cases"
# What measures.json says, for directories written before there was one.
USUAL_MEASURES: dict[str, dict[str, Any]] = {
    "finetune": {"title": "Fine-tuning", "baseline": "scratch", "trains": True},
    "probe": {"title": "Linear probe", "baseline": "a random encoder", "trains": False},
}


@dataclass(frozen=True)
class Evaluation:
    """What lies in a directory written by `ssl3d evaluate`; parts that are missing are empty.

    `arms` {name: what arms.json says}; `cases`: npz files; `warnings`: sentences the reader must see; `measures` {name:
    {title, baseline (the arm without pre-training, in words), trains (the network itself)}}; `data`: what the labelled
    store is (modality, digest); `pool`: the patients whose labels could be drawn.
    """

    directory: Path
    results: pd.DataFrame
    suite: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    cases: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    pool: tuple[str, ...] = ()

    @property
    def dataset(self) -> str:
        return ", ".join(sorted(set(self.results["dataset"])))

    @property
    def suite_name(self) -> str:
        return ", ".join(sorted(set(self.results["suite"])))

    @property
    def baselines(self) -> dict[str, str]:
        """{arm: the arm it is compared with}."""
        return {name: str(arm.get("baseline") or SCRATCH) for name, arm in self.arms.items()}

    @property
    def modality(self) -> str:
        """ "CT", "MR", "CT and MR"; "not recorded" in directories written before it was kept."""
        return " and ".join(str(m).upper() for m in self.data.get("modality", ())) or "not recorded"


def is_evaluation(directory: Path) -> bool:
    return (directory / RESULTS_FILE).is_file()


def load_evaluation(directory: Path) -> Evaluation:
    """Read a directory. Raises FileNotFoundError or ValueError naming the file (results.read_results)."""
    results = read_results(directory)
    arms = _json(directory / ARMS_FILE, {})
    suite_file = directory / SUITE_FILE
    suite: Any = OmegaConf.to_container(OmegaConf.load(suite_file)) if suite_file.is_file() else {}
    told = _json(directory / MEASURES_FILE, {})
    measures = {str(name): about for name, about in told.items() if isinstance(about, dict)} or dict(USUAL_MEASURES)
    results, measures = by_domain(results, measures)
    split_file = directory / SPLIT_FILE
    return Evaluation(
        directory,
        results,
        suite if isinstance(suite, dict) else {},
        {str(name): arm for name, arm in arms.items() if isinstance(arm, dict)},
        _json(directory / ENVIRONMENT_FILE, {}),
        tuple(sorted((directory / CASES).glob("*.npz"))),
        tuple(str(warning) for warning in _json(directory / WARNINGS_FILE, [])),
        measures,
        _json(directory / DATA_FILE, {}),
        pool=load_split(split_file).pool if split_file.is_file() else (),
    )


def readable(evaluation: Evaluation, beside: Sequence[Evaluation] = ()) -> Evaluation:
    """The same with methods and networks called by what differs between them (downstream.names), digests by none.

    `beside`: evaluations on the same page, where a method has the same name. For a report, at last: before evaluations
    are merged digests say which of their methods are the same.
    """
    names = _networks(evaluation)
    arms = {
        names.get(arm, arm): about | ({"baseline": names[about["baseline"]]} if about.get("baseline") in names else {})
        for arm, about in evaluation.arms.items()
    }
    rows = evaluation.results
    methods = _methods([evaluation, *beside])
    called = {arm: methods.get(_trained(evaluation, arm), {}) for arm in set(rows["arm"])}
    rows = rows.assign(
        arm=[names.get(arm, arm) for arm in rows["arm"]],
        method=[called[arm].get(method, method) for arm, method in zip(rows["arm"], rows["method"])],
    )
    return replace(evaluation, results=rows, arms=arms, renamed=names)


def _methods(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, str]]:
    """{network: {method: its name}}: what is compared within a network needs no network in its name."""
    recipes: dict[str, dict[str, dict[str, Any]]] = {}
    for evaluation in evaluations:
        ran = evaluation.results[["method", "arm"]].drop_duplicates().sort_values(["method", "arm"])
        for method, arm in ran[ran["method"] != ""].to_numpy():
            own = recipes.setdefault(_trained(evaluation, arm), {})
            own.setdefault(method, _recipe(evaluation.arms.get(arm, {})))
    return {network: method_names(dict(sorted(own.items()))) for network, own in recipes.items()}


def _trained(evaluation: Evaluation, arm: str) -> str:
    """The same for two arms of one network, in whatever evaluation; the scratch arm where the network is not said."""
    network = evaluation.arms.get(arm, {}).get("architecture")
    if not isinstance(network, dict):
        return evaluation.baselines.get(arm, SCRATCH)
    return json.dumps([network.get("target"), network.get("kwargs")], sort_keys=True)


def _recipe(arm: Mapping[str, Any]) -> dict[str, Any]:
    """What made an arm's weights: its recipe, and where the run ended."""
    recipe = arm.get("recipe")
    steps = (arm.get("provenance") or {}).get("steps")
    return {**recipe, "stopped_at": steps} if isinstance(recipe, dict) else {}


def _networks(evaluation: Evaluation) -> dict[str, str]:
    """{scratch arm: "scratch-ViT", ...} of several networks; scratch arms of one network keep their names."""
    found: dict[str, Network] = {}
    for name in sorted(set(evaluation.baselines.values())):
        about = evaluation.arms.get(name, {})
        if isinstance(network := about.get("architecture"), dict) and network.get("target"):
            found[name] = Network(
                str(network["target"]),
                network.get("kwargs") or {},
                tuple(network.get("channels") or ()),
                about.get("parameters"),
                str(about.get("digest", "")),
            )
    networks = [(network.target, network.kwargs) for network in found.values()]
    own = {name: n for name, n in found.items() if networks.count((n.target, n.kwargs)) == 1}
    if len(own) < 2:
        return {}
    names = {name: f"{SCRATCH}-{word}" for name, word in zip(own, network_names(list(own.values())))}
    taken = set(evaluation.arms) - set(own)
    return {name: new for name, new in names.items() if new != name and new not in taken}


def _json(path: Path, empty: Any) -> Any:
    """A JSON file's content, or `empty` when there is no file. Raises ValueError naming a broken one."""
    if not path.is_file():
        return empty
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): run ssl3d evaluate again") from None
    if type(content) is not type(empty):
        raise ValueError(f"{path} holds no {type(empty).__name__}: run ssl3d evaluate again")
    return content
