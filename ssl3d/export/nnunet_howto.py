"""HOW_TO.md: the commands that use an export, literally."""

from __future__ import annotations

from ssl3d.export.nnunet_plans import CONFIGURATION, PARENT, PLANS_NAME, Plans
from ssl3d.export.report import ExportReport

_HEAD = """# Fine-tune these weights with nnU-Net

Run the commands in this folder, in the environment of nnU-Net (2.6 or later), with nnUNet_raw, nnUNet_preprocessed
and nnUNet_results set. Weights: {summary}. {heads}
"""

_PLANNED = """
## Train

The configuration {configuration} is in your plans already ({plans}.json) and uses what is preprocessed for {parent}:

    nnUNetv2_train {dataset} {configuration} 0 -p {plans} -pretrained_weights "$PWD/checkpoint.pth"

Folds 1 to 4 likewise; predict with `nnUNetv2_predict ... -c {configuration} -p {plans}`.
"""

_UNPLANNED = """
## 1. Plan and preprocess your data set (here Dataset004_Hippocampus, number 4), unless it is done

    nnUNetv2_plan_and_preprocess -d 4 -pl nnUNetPlannerResEncL -c {parent}

## 2. Add the configuration {configuration} to its plans

    PLANS="$nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetResEncUNetLPlans.json"
    ssl3d export RUN --to nnunet --out . --plans "$PLANS"

or put the entry of plans_fragment.json under "configurations" in that file by hand. The command also fits the stem to
the number of channels ({channels} here) and the patch to your scans.

## 3. Train

    nnUNetv2_train 4 {configuration} 0 -p nnUNetResEncUNetLPlans -pretrained_weights "$PWD/checkpoint.pth"
"""

_CAVEAT = """
## Spacing and normalisation

{configuration} reuses your preprocessed data, so it does not impose the spacing and normalisation of the pre-training
(report.json, "provenance").{other}
"""

_LIKE_PRETRAINING = """ To impose them, use {name}.json: whole plans with the spacing
and, for CT, the intensity window of the pre-training. It preprocesses the data set again, so it is worth the time when
nnU-Net's own spacing is far off:

    cp {name}.json "$nnUNet_preprocessed/{dataset}/"
    nnUNetv2_preprocess -d {number} -plans_name {name} -c {parent}
    nnUNetv2_train {dataset} {parent} 0 -p {name} -pretrained_weights "$PWD/checkpoint.pth"

For another data set that nnU-Net has fingerprinted, move them on before preprocessing it:

    nnUNetv2_move_plans_between_datasets -s {dataset} -t OTHER -sp {name} -tp {name}"""


def how_to(report: ExportReport, plans: Plans | None) -> str:
    """The text of HOW_TO.md."""
    fresh = [t for t in report.tensors if t.outcome == "fresh" and ".seg_layers." not in t.name]
    words = {
        "configuration": CONFIGURATION,
        "parent": PARENT,
        "summary": report.summary(),
        "heads": f"{len(fresh)} decoder tensors are fresh." if fresh else "Fresh are the segmentation heads only.",
        "channels": report.provenance["in_channels"],
        "name": PLANS_NAME,
        "plans": plans.identifier if plans else "",
        "dataset": plans.dataset if plans else "",
        "number": _number(plans.dataset) if plans else "",
    }
    written = any(path.name == f"{PLANS_NAME}.json" for path in report.files)
    other = _LIKE_PRETRAINING if written else ""
    if plans is None:
        other = f" Exported with --plans,\n{PLANS_NAME}.json is written as well: whole plans that impose them."
    text = _HEAD + (_PLANNED if plans else _UNPLANNED) + _CAVEAT.replace("{other}", other)
    return text.format(**words)


def _number(dataset: str) -> str:
    """4 for Dataset004_Hippocampus."""
    digits = dataset.removeprefix("Dataset")[:3]
    return str(int(digits)) if digits.isdigit() else dataset
