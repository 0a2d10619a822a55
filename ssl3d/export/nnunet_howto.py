"""HOW_TO.md: the commands that use an export, literally."""

from __future__ import annotations

import textwrap
from functools import partial

from ssl3d.export.nnunet_plans import CONFIGURATION, PARENT, PLANS_NAME, Plans
from ssl3d.export.report import ExportReport

TRAINER = "nnUNetTrainer"

_HEAD = """# Fine-tune these weights with nnU-Net

Run the commands in this folder, in the environment of nnU-Net (2.6 or later), with nnUNet_raw, nnUNet_preprocessed
and nnUNet_results set. On a machine without a GPU put -device cpu behind training and prediction.

Weights: {summary}; {shares}. {heads}
"""

_PLANNED = """
## The three commands

The configuration {configuration} is in your plans already ({plans}.json). It uses what is preprocessed for {parent};
skip the first command if that is done:

    nnUNetv2_preprocess -d {number} -plans_name {plans} -c {parent}
    nnUNetv2_train {dataset} {configuration} 0 -p {plans}{trainer} -pretrained_weights "$PWD/checkpoint.pth"
    nnUNetv2_predict -d {dataset} -i "{images}" -o predictions -c {configuration} -p {plans}{trainer} -f 0

Folds 1 to 4 likewise. nnU-Net names its results by trainer, plans and configuration: for other weights, or none to
compare with, set another nnUNet_results, or they replace these.
"""

_UNPLANNED = """
## 1. Plan and preprocess your data set (here Dataset004_Hippocampus, number 4), unless it is done

    nnUNetv2_plan_and_preprocess -d 4 -pl nnUNetPlannerResEncL -c {parent}

## 2. Add the configuration {configuration} to its plans

    DATASET="$nnUNet_preprocessed/Dataset004_Hippocampus"
    PLANS="$DATASET/nnUNetResEncUNetLPlans.json"
    ssl3d export RUN --to nnunet --out . --plans "$PLANS" --dataset-json "$DATASET/dataset.json"

RUN is the run or file that these weights were exported from, as seen from this folder. The command also fits the
weights to the number of channels ({channels} here) and the patch to your scans, and this page to your data set. Without
ssl3d put the entry of plans_fragment.json under "configurations" in that file by hand, if the channels are as many.

## 3. Train

    nnUNetv2_train 4 {configuration} 0 -p nnUNetResEncUNetLPlans{trainer} -pretrained_weights "$PWD/checkpoint.pth"
"""

_TRIAL = """
## A trial first

Ten steps, to see that data, plans and weights fit together; the log says how many of the network's tensors are those
of checkpoint.pth:

    export nnUNet_extTrainer="$PWD/trainers"
    nnUNetv2_train {where} -tr SSL3DTrial -pretrained_weights "$PWD/checkpoint.pth"
"""

_WARMUP = """
## Warm-up

{advice} Two trainers lie in trainers/ssl3d_trainers.py. Both train for 1000 epochs, as nnU-Net's own does. SSL3DWarmup
raises the learning rate over the first 50; SSL3DEncoderFirst trains the decoder alone for 50, warming it up, and then
warms up both over 50 more:

    export nnUNet_extTrainer="$PWD/trainers"
    nnUNetv2_train {where} -tr {warmup} -pretrained_weights "$PWD/checkpoint.pth"

nnUNetv2_predict takes the same -tr as the training, and that variable.
"""

_PRIMUS = """
{trainer_name} is nnU-Net's own trainer of this network; it warms up over the first 50 epochs by itself. The weights are
for the patch of {configuration} (its positions) and for {classes} output channels, as Primus has no part that nnU-Net
would leave out: export again when either changes.
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
    nnUNetv2_train {dataset} {parent} 0 -p {name}{trainer} -pretrained_weights "$PWD/checkpoint.pth"
    nnUNetv2_predict -d {dataset} -i "{images}" -o predictions -c {parent} -p {name}{trainer} -f 0

For another data set that nnU-Net has fingerprinted, move them on before preprocessing it:

    nnUNetv2_move_plans_between_datasets -s {dataset} -t OTHER -sp {name} -tp {name}"""


def how_to(report: ExportReport, plans: Plans | None, trainer: str = TRAINER, whole: bool = False) -> str:
    """The text of HOW_TO.md; `trainer`: nnU-Net's class that builds this network; `whole`: ssl3dPlans are beside it."""
    fresh = [t for t in report.tensors if t.outcome == "fresh" and t.part != "head"]
    decoder = fresh and all(t.part == "decoder" for t in fresh)
    untrained = bool(fresh) and not any(t.filled for t in report.tensors if t.part == "decoder")
    identifier = plans.identifier if plans else "nnUNetResEncUNetLPlans"
    dataset = plans.dataset if plans else "4"
    words = {
        "configuration": CONFIGURATION,
        "parent": PARENT,
        "summary": report.summary() + report.when(),
        "shares": report.shares(),
        "heads": f"{len(fresh)} {'decoder ' if decoder else ''}tensors are fresh."
        if fresh
        else "Fresh are the segmentation heads only.",
        "channels": report.provenance["in_channels"],
        "classes": report.provenance.get("out_channels", ""),
        "name": PLANS_NAME,
        "plans": identifier,
        "dataset": dataset,
        "images": f"$nnUNet_raw/{dataset}/imagesTs",
        "number": _number(plans.dataset) if plans else "",
        "trainer": "" if trainer == TRAINER else f" -tr {trainer}",
        "trainer_name": trainer,
        "where": f"{dataset} {CONFIGURATION} 0 -p {identifier}",
        "advice": "The decoder of these weights is fresh, so that an encoder-first warm-up is advised."
        if untrained
        else "Trained weights may be hurt by the first steps of a high learning rate.",
        "warmup": "SSL3DEncoderFirst" if untrained else "SSL3DWarmup",
    }
    other = _LIKE_PRETRAINING if whole else ""
    if plans is None:
        other = f" Exported with --plans,\n{PLANS_NAME}.json is written as well: whole plans that impose them."
    own = _PRIMUS + _TRIAL if trainer != TRAINER else _TRIAL + _WARMUP
    text = _HEAD + (_PLANNED if plans else _UNPLANNED) + own + _CAVEAT.replace("{other}", other)
    return _wrapped(text.format(**words))


def _wrapped(text: str) -> str:
    """Paragraphs filled anew, as the words put into them are of any length; commands and headings as they are."""
    blocks = text.rstrip().split("\n\n")
    fill = partial(textwrap.fill, width=110, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(b if b.startswith(("#", "    ")) else fill(b) for b in blocks) + "\n"


def _number(dataset: str) -> str:
    """4 for Dataset004_Hippocampus."""
    digits = dataset.removeprefix("Dataset")[:3]
    return str(int(digits)) if digits.isdigit() else dataset
