"""Check everything an evaluation needs before anything is trained: store, classes, split, runs, leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from downstream.arms import Arm, make_arms
from downstream.context import Context, store_digest
from downstream.finetune import Training
from downstream.guard import check_leak, check_sets
from downstream.measure import choice_words
from downstream.scoring import grid_warning
from downstream.split_rules import find_patients
from downstream.split_rules import words as split_words
from downstream.splits import FIELDS, Split
from downstream.suite import Precision, Suite
from downstream.volume import check_classes, volume_target
from ssl3d.data.fit import require_fit
from ssl3d.data.near import volume_table
from ssl3d.data.store import Store, open_store
from ssl3d.precision import choose_precision
from ssl3d.schema import did_you_mean


def prepare(runs: Sequence[str | Path], suite: Suite, out: Path) -> tuple[Context, Split, list[Arm], list[str]]:
    """(context, split, arms, warnings for the report).

    Raises FileNotFoundError or ValueError, one sentence that names the run, file, key or patient at fault.
    """
    for run in runs:
        if not Path(run).exists():
            raise FileNotFoundError(f"there is no run or weights file '{run}'")
    store = open_store(suite.store)
    target = None if suite.target is None else volume_target(store, suite.target, suite.target_kind)
    rows = labelled_rows(store) if target is None else target.patients
    classes: dict[int, str] = {}
    ignore = None
    if target is None:
        classes, ignore = label_classes(store, [row for own in rows.values() for row in own], suite.classes)
    split, notes = find_patients(suite.split, rows, suite.store)
    _check_amounts(suite, split)
    arms = make_arms(runs, _image_channels(suite, store, rows))
    notes += [
        f"{arm.name} was trained on images of {arm.trained_channels} channel(s), those of {suite.store} have "
        f"{arm.spec.kwargs['in_channels']}: the first layer is transferred, as by model.init"
        for arm in arms
        if arm.trained_channels is not None
    ]
    suite = replace(suite, precision=_precision(suite, arms))
    suite = suite if target is None else replace(suite, target_kind=target.kind)
    context = Context(suite, out, rows, classes, ignore, store_digest(store), target)
    about = grid_warning(context, split.test) if target is None else check_classes(target, split)
    tables = {part: volume_table(store, context.rows_of(getattr(split, part))) for part in FIELDS}
    warnings = check_sets(tables, suite.allow_leak)
    for arm in sorted({arm.run: arm for arm in arms if arm.run}.values(), key=lambda arm: arm.run):
        warnings += check_leak(Path(arm.run), tables["test"], suite.allow_leak, arm.provenance.get("seen_digest"))
    _check_arms(suite, store, context, arms)
    return context, split, arms, notes + warnings + about


def _precision(suite: Suite, arms: Sequence[Arm]) -> Precision:
    """ "auto" is settled here, for all networks that are trained: what was used is recorded, and names the cells."""
    if suite.precision != "auto":
        return suite.precision
    sizes = [size for measure in suite.measures.values() if measure.TRAINS for size in measure.sizes().values()]
    strides = [stride for arm in arms if arm.is_scratch for stride in arm.backbone(0).strides]
    return cast(Precision, choose_precision("auto", {size[0] // stride[0] for size in sizes for stride in strides}))


def labelled_rows(store: Store) -> dict[str, tuple[int, ...]]:
    """{patient: store rows of his labelled volumes}, in the order of volume ids. Raises ValueError when none is."""
    found: dict[str, list[int]] = {}
    labelled = store.index[store.index["has_label"]].sort_values("id")
    for row, subject in zip(labelled.index, labelled["subject"]):
        found.setdefault(str(subject), []).append(int(row))
    if not found:
        raise ValueError(
            f"the store {store.path} has no labels: convert a data set that lists them in its dataset.json, as MSD and "
            "nnU-Net do, or images with --labels DIR; or name another as store="
        )
    return {subject: tuple(rows) for subject, rows in found.items()}


def describe_data(context: Context, split: Split) -> dict[str, Any]:
    """What a report says of the labelled store: data.json.

    The modalities of its labelled volumes, and a digest of those of the split: what two evaluations must share.
    """
    store = context.store
    found = {str(m) for rows in context.rows.values() for row in rows for m in store.cell("modality", row)}
    patients = tuple(patient for part in FIELDS for patient in getattr(split, part))
    return {"modality": sorted(found), "digest": store_digest(store, context.rows_of(patients))}


def label_classes(store: Store, rows: Sequence[int], chosen: Sequence[str] | None) -> tuple[dict[int, str], int | None]:
    """({label value: class name} sorted by value, ignore value) of the labelled volumes, the `chosen` names only.

    Raises ValueError naming the class or volume when volumes disagree or a chosen class does not exist.
    """
    classes: dict[int, str] = {}
    ignores = {}
    for row in rows:
        info = store.label_info(row)
        ignores[info.ignore] = store.volume_id(row)
        for value, name in info.classes.items():
            if classes.setdefault(value, name) != name:
                raise ValueError(
                    f"volume {store.volume_id(row)} of {store.path} calls label {value} '{name}', another one calls it "
                    f"'{classes[value]}': convert the volumes with one list of classes"
                )
    if len(ignores) > 1:
        raise ValueError(
            f"the labels of {store.path} have different ignore values ({', '.join(map(str, ignores))}, for example in "
            f"{' and '.join(ignores.values())}): convert them with one"
        )
    ignore = next(iter(ignores))
    classes = {value: classes[value] for value in sorted(classes) if value not in (0, ignore)}
    for name in chosen or ():
        if name not in classes.values():
            hint = did_you_mean(name, [*classes.values()])
            raise ValueError(f"classes: the store {store.path} has no class '{name}'{hint}")
    if chosen is not None:
        classes = {value: name for value, name in classes.items() if name in chosen}
    if not classes:
        raise ValueError(f"the labels of {store.path} name no class besides background: there is nothing to score")
    return classes, ignore


def _image_channels(suite: Suite, store: Store, rows: Mapping[str, Sequence[int]]) -> int:
    """Of the labelled volumes. Raises ValueError when they differ."""
    channels = sorted({int(store.cell("channels", row)) for own in rows.values() for row in own})
    if len(channels) > 1:
        raise ValueError(
            f"the labelled volumes of {suite.store} have {' and '.join(map(str, channels))} channels, and a network "
            "takes one number of them: convert those of each number to a store of their own"
        )
    return channels[0]


def _check_amounts(suite: Suite, split: Split) -> None:
    for name, measure in suite.measures.items():
        if (most := max(measure.amounts())) > len(split.pool):
            raise ValueError(
                f"measures.{name} asks for {most} labelled patients, but the pool of the split "
                f"{split_words(suite.split)} has {len(split.pool)}: lower its n_labelled and tune.n_labelled, or "
                "enlarge the pool"
            )
    if not split.test:
        raise ValueError(f"the split {split_words(suite.split)} names no test patient")
    for name, measure in suite.measures.items():
        if measure.searches() and not split.validation:
            words = [choice_words(choice) for choice in measure.grid()]
            raise ValueError(
                f"measures.{name} has settings to choose from ({', '.join(words)}), but the split "
                f"{split_words(suite.split)} names no validation patient: give one value of each, or such patients"
            )


def _check_arms(suite: Suite, store: Store, context: Context, arms: Sequence[Arm]) -> None:
    """The networks fit the images and the patches."""
    sizes = {f"measures.{name}.{key}": size for name, m in suite.measures.items() for key, size in m.sizes().items()}
    shapes = store.column("shape")
    for arm in arms:
        backbone = arm.backbone(0)
        for key, size in sizes.items():
            try:
                backbone.check_size(size)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        for name, measure in suite.measures.items():
            if isinstance(measure, Training):  # its crops are drawn from volumes, and are not padded
                key = f"measures.{name}.patch_size"
                require_fit(measure.patch_size, shapes, backbone.total_stride, suite.store, key)
            measure.refuse(arm, f"measures.{name}")
