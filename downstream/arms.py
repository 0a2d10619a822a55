"""The arms of an evaluation: scratch, and each run given."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from downstream.names import Network, network_names
from ssl3d.checkpoint import load_backbone
from ssl3d.initial import provenance
from ssl3d.models.backbone import Backbone, BackboneSpec, build_backbone
from ssl3d.seeding import mix

SCRATCH = "scratch"


@dataclass(frozen=True)
class Arm:
    """What one curve of the report starts from.

    `name`; `run`: the run or file as the user typed it, empty for scratch; `digest`: of the network and its weights,
    so that finished cells are found again whatever the arm is called; `baseline`: name of the scratch arm of the same
    network; `channels`: features of the network's stages; `provenance`: the run's recipe, seed and steps, where known;
    `trained_channels`: image channels that the run's own network takes, where the arm's takes others.
    """

    name: str
    run: str
    spec: BackboneSpec
    digest: str
    baseline: str
    parameters: int
    channels: tuple[int, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    trained_channels: int | None = None

    @property
    def is_scratch(self) -> bool:
        return not self.run

    @property
    def pretrain_seed(self) -> int | None:
        return self.provenance.get("seed")

    def backbone(self, seed: int) -> Backbone:
        """The arm's weights; for scratch a random network of that `seed`."""
        if self.run:
            own = self.trained_channels is None
            return load_backbone(Path(self.run)) if own else _transferred(self.run, self.spec.kwargs["in_channels"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, "random encoder"))
            return build_backbone(self.spec).eval()

    def to_json(self) -> dict[str, Any]:
        """What arms.json keeps."""
        return {
            "run": self.run,
            "baseline": self.baseline,
            "parameters": self.parameters,
            "digest": self.digest,
            "architecture": {
                "target": self.spec.target,
                "kwargs": self.spec.kwargs,
                "channels": list(self.channels),
            },
            "recipe": self.provenance.get("recipe"),
            "provenance": {k: v for k, v in self.provenance.items() if k != "recipe"},
        }


def make_arms(runs: Sequence[str | Path], in_channels: int | None = None) -> list[Arm]:
    """A scratch arm for each network among the runs, then an arm a run, in an order that does not depend on theirs.

    `in_channels`: of the images; the first layer of a network that takes another number is transferred, as by
    `model.init`. None: each as it is.
    Raises FileNotFoundError or ValueError naming the run (ssl3d.checkpoint.load_backbone).
    """
    sources = sorted(str(run) for run in runs)
    names = _arm_names(sources)
    loaded = [load_backbone(Path(source)) for source in sources]
    trained = [None if in_channels in (None, own.in_channels) else own.in_channels for own in loaded]
    for i, channels in enumerate(trained):
        if in_channels is not None and channels is not None:
            loaded[i] = _transferred(sources[i], in_channels)
    digests = [_spec_digest(backbone.spec()) for backbone in loaded]
    networks = sorted(set(digests))
    scratch = dict(zip(networks, _scratch_names([loaded[digests.index(d)] for d in networks], networks)))
    arms = [_arm(scratch[d], "", loaded[digests.index(d)], d, scratch[d]) for d in networks]
    for name, source, backbone, own, d in zip(names, sources, loaded, trained, digests):
        arm = _arm(name, source, backbone, _weights_digest(backbone, d), scratch[d], provenance(Path(source)))
        arms.append(replace(arm, trained_channels=own))
    return arms


def _transferred(run: str, in_channels: int) -> Backbone:
    """The network of a run or file for images of another number of channels."""
    from ssl3d import weights  # the networks that other programs know take seconds to import

    return weights.import_weights(run, in_channels=in_channels)[0]


def _arm(
    name: str, run: str, backbone: Backbone, digest: str, baseline: str, known: dict[str, Any] | None = None
) -> Arm:
    channels = tuple(backbone.channels)
    return Arm(name, run, backbone.spec(), digest, baseline, _count(backbone), channels, known or {})


def _scratch_names(backbones: Sequence[Backbone], digests: Sequence[str]) -> list[str]:
    """ "scratch"; of several networks "scratch-ViT", "scratch-ResEncUNet 16-128", ... (downstream.names)."""
    if len(backbones) == 1:
        return [SCRATCH]
    networks = [
        Network(backbone.spec().target, backbone.spec().kwargs, backbone.channels, _count(backbone), digest)
        for backbone, digest in zip(backbones, digests)
    ]
    return [f"{SCRATCH}-{name}" for name in network_names(networks)]


def _arm_names(sources: Sequence[str]) -> list[str]:
    """The last part of each path, longer where two runs share it, numbered where one is given twice."""
    parts = [Path(s).with_suffix("").parts if Path(s).suffix else Path(s).parts for s in sources]
    names = []
    for own in parts:
        depth = 1
        while depth < len(own) and any(p != own and p[-depth:] == own[-depth:] for p in parts):
            depth += 1
        names.append("/".join(own[-depth:]).strip("/") or "run")
    names = [f"{n} (run)" if n.startswith(SCRATCH) else n for n in names]  # scratch is taken
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):
        seen[name] += 1
        names[i] = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return names


def _count(backbone: Backbone) -> int:
    return sum(p.numel() for p in backbone.parameters())


def _spec_digest(spec: BackboneSpec) -> str:
    values = asdict(spec)
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _weights_digest(backbone: Backbone, spec_digest: str) -> str:
    state = hashlib.blake2b(spec_digest.encode(), digest_size=16)
    for name, tensor in sorted(backbone.state_dict().items()):
        state.update(name.encode())
        state.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
