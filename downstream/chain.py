"""quickstart: from raw scans to the report, the whole chain in one call, on a laptop's CPU.

On synthetic anatomy, or on a labelled data set in the MSD or nnU-Net layout. Every stage is what the command line
calls, and each goes on where it was stopped, so the same call again continues.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from downstream.evaluator import evaluate
from downstream.splits import Split, draw_split, load_split
from downstream.suite import load_suite
from preprocessing import convert, datasets
from preprocessing.source import clean_id
from preprocessing.subjects import PATIENTS_FILE
from ssl3d.config import load
from ssl3d.data.phantom import TARGETS_FILE, write_phantom
from ssl3d.data.store import open_store
from ssl3d.export import export
from ssl3d.files import write_bytes, write_json
from ssl3d.terminal import say
from ssl3d.train import train

SEED = 0
PHANTOM_SEED = 1  # not 0: the synthetic anatomy was designed on patients of seed 0, so none of those may be tested on
COPY_BYTES = 256 << 20  # a data set up to this size is copied to OUT/raw, a larger one is linked
MIN_VALIDATION, MIN_TEST, MIN_POOL = 2, 10, 6  # patients
VALIDATION_SHARE = 0.14  # of the patients
STARTED_FILE = "quickstart.json"


@dataclass(frozen=True)
class Variant:
    """What differs between the synthetic anatomy and real data: `recipe` to pre-train, `suite` to judge by.

    `test_share` of the patients is for testing; `patients`: how many synthetic ones are drawn.
    """

    recipe: str
    suite: str
    test_share: float
    patients: int = 0


PHANTOM = Variant("quickstart/phantom", "quickstart_phantom", test_share=0.2, patients=60)
REAL = Variant("quickstart/msd", "quickstart_msd", test_share=0.3)


def quickstart(out: Path | str, data: Path | str | None = None) -> Path:
    """Convert, split by patient, pre-train, export and evaluate below `out`; returns the path of the report.

    `data`: folder with dataset.json, imagesTr and labelsTr; None writes and uses the phantom. `out` then holds raw/,
    split.json, labelled.zarr, store.zarr (the pool's images only), run/, export/nnunet/ and evaluate/. Test patients
    are drawn before pre-training and never enter it.
    Raises FileNotFoundError or ValueError, one sentence, when `data` is missing, holds no labelled data set or too few
    patients, or when `out` was begun with other data.
    """
    out = Path(out)
    source = None if data is None else Path(data)
    if source is not None:
        _check_data(source)
    variant = PHANTOM if source is None else REAL
    _claim(out, source)
    raw = _raw(out / "raw", source, variant)

    say(f"2 of 6: converting {raw} to {out / 'labelled.zarr'} and the pool's images to {out / 'store.zarr'}")
    targets = raw / TARGETS_FILE
    convert([raw], out / "labelled.zarr", targets=targets if targets.exists() else None)
    split = _split(out, variant.test_share)
    convert([_pool(out, raw, split)], out / "store.zarr")

    say(f"3 of 6: pre-training on the pool's {len(split.pool)} patients, without labels")
    run = train(load(variant.recipe, [*_recipe_settings(out), f"run.dir={out / 'run'}"]))

    say(f"4 of 6: exporting the weights for nnU-Net to {out / 'export' / 'nnunet'}")
    export(run, "nnunet", out / "export" / "nnunet")

    say(f"5 of 6: fine-tuning and probing with few labels, tested on {len(split.test)} patients")
    report = evaluate([run], variant.suite, out / "evaluate", _suite_settings(out, raw, variant, split))

    say("6 of 6: what was found")
    for sentence in json.loads((report.parent / "report.json").read_text())["conclusions"]:
        say(f"  {sentence}")
    say(f"report: {report}")
    return report


def _check_data(data: Path) -> None:
    """Raises unless `data` is a folder with a description, images and labels."""
    if not data.is_dir():
        raise FileNotFoundError(f"--data {data} is no folder: give one with dataset.json, imagesTr and labelsTr")
    if not datasets.is_dataset(data) or not any(case.label for case in datasets.read_dataset(data).cases):
        raise ValueError(f"--data {data} holds no labelled data set: it needs dataset.json, imagesTr and labelsTr")


def _claim(out: Path, data: Path | None) -> None:
    """Remember what `out` was begun with, so that a second data set never mixes with the first."""
    started = {"data": None if data is None else str(data.resolve())}
    file = out / STARTED_FILE
    if file.exists():
        before = json.loads(file.read_text())["data"]
        if before != started["data"]:
            what = "the synthetic anatomy" if before is None else before
            raise ValueError(f"{out} was begun with {what}: choose another --out, or delete it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and holds no quickstart: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, started, indent=None)


def _raw(raw: Path, data: Path | None, variant: Variant) -> Path:
    """OUT/raw: the phantom, or the data set's files. dataset.json is written last: it says that they are complete."""
    if (raw / datasets.DATASET_FILE).exists():
        say(f"1 of 6: scans are in {raw} already")
        return raw
    if data is None:
        say(f"1 of 6: drawing {variant.patients} synthetic patients into {raw}")
        return write_phantom(raw, variant.patients, PHANTOM_SEED)
    files = _files(data)
    copied = sum(file.stat().st_size for file in files) <= COPY_BYTES
    say(f"1 of 6: {'copying' if copied else 'linking'} {len(files)} files of {data} into {raw}")
    for file in files:
        target = raw / file.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        if copied:
            shutil.copyfile(file, target)
        elif not target.exists():
            target.symlink_to(file.resolve())
    if not (raw / PATIENTS_FILE).exists():  # without one, every case is a patient of its own
        cases = [case.name for case in datasets.read_dataset(data).cases]
        write_json(raw / PATIENTS_FILE, {case: [case] for case in cases}, indent=1)
    write_bytes(raw / datasets.DATASET_FILE, (data / datasets.DATASET_FILE).read_bytes())
    return raw


def _files(data: Path) -> list[Path]:
    """Images and labels of the labelled cases, patients.json and targets.csv where they are; not dataset.json."""
    found = [data / name for name in (PATIENTS_FILE, TARGETS_FILE) if (data / name).is_file()]
    for case in datasets.read_dataset(data).cases:
        if case.label is not None:
            found += [*(image for image in case.images if image is not None), case.label]
    return found


def _split(out: Path, test_share: float) -> Split:
    """OUT/split.json: drawn once, by patient, from those whose labelled scans were converted."""
    path = out / "split.json"
    if path.exists():
        return load_split(path)
    index = open_store(out / "labelled.zarr").index
    patients = sorted(set(index.loc[index["has_label"], "subject"]))
    least = MIN_VALIDATION + MIN_TEST + MIN_POOL
    if len(patients) < least:
        raise ValueError(
            f"{out / 'raw'} has {len(patients)} labelled patients, and the quickstart needs at least {least} "
            f"({MIN_POOL} to learn from, {MIN_VALIDATION} to validate, {MIN_TEST} to test): give a larger data set"
        )
    validation = max(MIN_VALIDATION, round(VALIDATION_SHARE * len(patients)))
    test = max(MIN_TEST, round(test_share * len(patients)))
    split = draw_split(patients, validation, test, SEED)
    split.save(path)
    return split


def _pool(out: Path, raw: Path, split: Split) -> Path:
    """OUT/pool: the data set again as links, without labels, and with the pool's patients only."""
    index = open_store(out / "labelled.zarr").index
    mine = index[index["subject"].isin(split.pool)]
    subjects = dict(zip(mine["session"], mine["subject"]))
    pool = out / "pool"
    (pool / "imagesTr").mkdir(parents=True, exist_ok=True)
    grouped: dict[str, list[str]] = {}
    for case in datasets.read_dataset(raw).cases:
        subject = subjects.get(clean_id(case.name))
        if subject is None:
            continue
        grouped.setdefault(subject, []).append(case.name)
        for image in case.images:
            if image is not None and not (link := pool / "imagesTr" / image.name).is_symlink():
                link.symlink_to(os.path.relpath(image.resolve(), link.parent.resolve()))
    description = datasets.read_description(raw / datasets.DATASET_FILE)
    kept = {key: value for key, value in description.items() if key not in ("training", "test", "labels")}
    write_json(pool / PATIENTS_FILE, grouped, indent=1)
    write_json(pool / datasets.DATASET_FILE, kept, indent=1)
    return pool


def _recipe_settings(out: Path) -> list[str]:
    """Overrides of the recipe; `guard.suites` guards a second time against scans of test patients."""
    channels = int(open_store(out / "store.zarr").index["channels"].max())
    guarded = json.dumps([{"store": str(out / "labelled.zarr"), "split": str(out / "split.json")}])
    return [f"data.store={out / 'store.zarr'}", f"guard.suites={guarded}", f"model.in_channels={channels}"]


def _suite_settings(out: Path, raw: Path, variant: Variant, split: Split) -> list[str]:
    """Overrides of the suite: the stores, and no more labelled patients than the pool has."""
    name = datasets.read_description(raw / datasets.DATASET_FILE).get("name") or "data"
    given = [f"store={out / 'labelled.zarr'}", f"split={out / 'split.json'}", f"dataset={json.dumps(str(name))}"]
    suite = load_suite(variant.suite, given)
    for measure, settings in suite.measures.items():
        if max(settings.n_labelled) > len(split.pool):
            amounts = [n for n in settings.n_labelled if n < len(split.pool)] + [len(split.pool)]
            given.append(f"measures.{measure}.n_labelled={amounts}")
    return given
