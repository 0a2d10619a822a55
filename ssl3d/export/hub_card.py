"""The model card of a published run: what is known of it, and nothing else."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ssl3d.export.report import ExportReport
from ssl3d.export.source import Source

_FRONT = """---
library_name: ssl3d
license: other
license_name: to-be-stated
tags:
- medical-imaging
- self-supervised-learning
- 3d
---

# {title}

Weights of a 3D network pre-trained without labels by ssl3d {version}: a start for fine-tuning, not a model that
diagnoses or segments.
"""

_PROGRAMS = {"ResEncUNet": "nnunet", "PlainConvUNet": "nnunet", "Primus": "nnunet", "PrimusV2": "nnunet",
             "SwinUNETR": "monai", "SegResNet": "monai"}  # fmt: skip

_USE = """
## Use

In this folder, with ssl3d installed:

    {command}

or in Python:

    from ssl3d.weights import import_weights

    backbone, report = import_weights("model.safetensors")  # its network is in model.json
    features = backbone.encode(image)  # (B, {channels}, D, H, W): z to Superior, y to Posterior, x to the Left
"""

_END = """
## Limits

Features depend on the scanners, patients and body regions of the pre-training, which this card counts but does not
describe; on other data they may help less or not at all. Intensities and spacing must be brought to those above. No
clinical use was examined.{decoder}

## Licence

Whoever publishes this folder states the licence of the weights here, as far as the data allow (`license` in the head of
this file). ssl3d itself is under Apache-2.0.

## Cite

Cite the data, the papers of the method and the network (named in the recipe's classes), and ssl3d {version}.
{digest}"""


def model_card(
    source: Source,
    report: ExportReport,
    recipe: dict[str, Any] | None,
    losses: pd.DataFrame | None,
    counts: dict[str, int],
    evaluation: pd.DataFrame | None,
) -> str:
    """README.md of the folder, in Markdown."""
    network = type(source.backbone).__name__
    task = _name(recipe, "task")
    version = report.provenance["ssl3d"]
    digest = report.provenance.get("seen_digest")
    parts = [
        _FRONT.format(
            title=f"{network}, pre-trained by {task}" if task else f"{network}, pre-trained", version=version
        ),
        _data(source, counts),
        _training(source, recipe, losses),
        _evaluation(evaluation),
        _USE.format(channels=source.backbone.in_channels, command=_command(network)),
        f"\n{report.summary()}; {report.shares()}.\n",
        _END.format(
            version=version,
            decoder="" if source.trained_decoder else " The decoder was not trained and is not in the file.",
            digest=f"\nDigest of what was seen (seen.parquet of the run): {digest}\n" if digest else "",
        ),
    ]
    return "".join(parts)


def _data(source: Source, counts: dict[str, int]) -> str:
    lines = ["\n## Data\n"]
    if counts:
        lines.append(f"- {counts['volumes']} volumes of {counts['subjects']} subjects")
    else:
        lines.append("- how many volumes and subjects: not known")
    spacing = source.provenance.get("spacing")
    lines.append(
        f"- spacing (z, y, x): {', '.join(f'{s:g}' for s in spacing)} mm" if spacing else "- spacing: not known"
    )
    for modality, numbers in ((source.provenance.get("normalisation") or {}).get("modalities") or {}).items():
        if modality == "ct" and len(numbers) == 1 and {"low", "high", "mean", "std"} <= set(numbers[0]):
            n = numbers[0]
            words = f"clipped to [{n['low']:g}, {n['high']:g}] HU, minus {n['mean']:.4g}, divided by {n['std']:.4g}"
        else:
            words = 'numbers in config.json, "provenance"'
        lines.append(f"- {modality}: {words}")
    return "\n".join(lines) + "\n"


def _training(source: Source, recipe: dict[str, Any] | None, losses: pd.DataFrame | None) -> str:
    lines = ["\n## Training\n"]
    if step := source.provenance.get("step"):
        lines.append(f"- {step} steps" + (f" of {source.batch_size} regions" if source.batch_size else ""))
    if source.patch_size:
        lines.append(f"- patches of {' x '.join(map(str, source.patch_size))} voxels")
    if recipe is not None:
        optim = recipe.get("optim") or {}
        lines.append(f"- task {_name(recipe, 'task')}, optimiser {optim.get('name')}, learning rate {optim.get('lr')}")
        lines.append("- all else in recipe.yaml (paths replaced by ???)")
    if losses is not None:
        first, last = losses.iloc[0], losses.iloc[-1]
        lines.append(
            f"- pretext loss {first.loss:.4g} at step {first.step:.0f}, {last.loss:.4g} at step {last.step:.0f}"
        )
        lines.append("\n![pretext loss](curve.png)")
    return "\n".join(lines) + "\n"


def _evaluation(table: pd.DataFrame | None) -> str:
    if table is None:
        return "\n## Evaluation\n\nNone was found beside the run.\n"
    head = ["data", "schedule", "labelled patients", "metric", "from scratch", "pre-trained", "test cases"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table.to_dict("records"):
        scores = [f"{row[arm]:.3f}" if pd.notna(row.get(arm)) else "" for arm in ("scratch", "pretrained")]
        cells = [row["dataset"], row["schedule"], row["n_labelled"], row["metric"], *scores, row["cases"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return (
        "\n## Evaluation\n\n"
        + "\n".join(lines)
        + "\n\nMeans over test cases, subsets and seeds; the intervals are in the "
        "evaluation's report.\n"
    )


def _name(recipe: dict[str, Any] | None, section: str) -> str:
    """The class a section of the recipe names."""
    return str(((recipe or {}).get(section) or {}).get("_target_", "")).rpartition(".")[2]


def _command(network: str) -> str:
    """How these weights get to the program that has this network, or into a training here."""
    if network in _PROGRAMS:
        return f"ssl3d export model.safetensors --to {_PROGRAMS[network]} --out weights"
    return "ssl3d train RECIPE model.init=model.safetensors"
