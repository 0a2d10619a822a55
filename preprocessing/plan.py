"""What a run will make: the sources found, with the labels, targets and spacing that the user asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from preprocessing import datasets
from preprocessing.archives import Scratch
from preprocessing.drafts import Names
from preprocessing.geometry import canonical_grid, spacing_of
from preprocessing.readers import dicom, split_extension
from preprocessing.refusal import Refusal
from preprocessing.source import Source
from preprocessing.sources import Discovery
from preprocessing.volume import Spacing

SPACINGS = ("iso1", "median", "keep")


def find_sources(
    arguments: Sequence[str | Path],
    key: bytes,
    skip: Sequence[Path],
    scratch: Scratch,
    say: Callable[[str], None],
    guess_labels: bool = True,
) -> list[Source]:
    """All sources, each once, in an order that is not that of the arguments; `say` gets what was found, line by line.

    `skip`: folders not to look into. `scratch`: where archives are unpacked. `guess_labels`: pair masks of plain trees
    with their scans.
    Raises FileNotFoundError or ValueError naming a source that is missing or empty.
    """
    left_out = frozenset(folder.resolve() for folder in (*skip, scratch.path))
    discovery = Discovery(Names(key), left_out, scratch, say, guess_labels)
    for argument in arguments:
        discovery.add(argument)
    return discovery.finish()


def attach_labels(sources: Sequence[Source], folder: Path) -> None:
    """Give each source the label of its name (extensions aside) in `folder` or below.

    The name of its subject counts too where the subject has one scan. Names of classes come from a dataset.json in the
    folder or above it. Sources without a label stay unlabelled.
    Raises FileNotFoundError, and ValueError when not a single name fits.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--labels {folder} is no folder")
    labels: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        stem, extension = split_extension(path.name)
        if extension and not path.name.startswith("."):
            labels.setdefault(stem, path)
    description = next((d for d in (folder, folder.parent) if (d / datasets.DATASET_FILE).is_file()), None)
    classes: dict[int, str] = {}
    ignore: int | None = None
    if description is not None:
        classes, ignore = datasets.class_names(datasets.read_description(description / datasets.DATASET_FILE))
    matched = 0
    scans = Counter(source.raw_subject for source in sources)
    for source in sources:
        names = [source.case, _stem(source), *([source.raw_subject] if scans[source.raw_subject] == 1 else [])]
        label = next((labels[name] for name in names if name in labels), None)
        if label is not None:
            source.label, source.masks, source.classes, source.ignore = label, {}, dict(classes), ignore
            matched += 1
    if matched == 0:
        raise ValueError(f"--labels {folder}: no file there has the name of a source, such as {_example(sources)}")


def _stem(source: Source) -> str:
    return split_extension(source.paths[0].name)[0]


def _example(sources: Sequence[Source]) -> str:
    return sources[0].paths[0].name if sources else "case_001.nii.gz"


def attach_targets(sources: Sequence[Source], file: Path) -> None:
    """Give sources the numbers of a CSV: first column id, subject or file name, a target a further column.

    An empty cell is a missing target. Raises FileNotFoundError, and ValueError naming column and row that is no number,
    or when no row fits any source.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--targets {file} does not exist")
    table = pd.read_csv(file, sep="\t" if file.suffix.lower() == ".tsv" else ",", dtype=str, keep_default_na=False)
    if table.shape[1] < 2:
        raise ValueError(f"--targets {file} needs a first column of ids, subjects or file names, and a column a target")
    rows: dict[str, dict[str, float]] = {}
    for record in table.itertuples(index=False, name=None):
        values = {}
        for column, cell in zip(table.columns[1:], record[1:]):
            if not cell.strip():
                continue
            try:
                values[str(column)] = float(cell)
            except ValueError as error:
                raise ValueError(
                    f"--targets {file}: '{cell}' in column '{column}', row '{record[0]}' is no number"
                ) from error
            if not math.isfinite(values[str(column)]):
                del values[str(column)]
        name = str(record[0]).strip()
        rows[name] = rows[split_extension(name)[0]] = values
    matched = False
    for source in sources:
        names = (source.id, source.case, source.public, _stem(source), source.raw_subject, source.subject)
        row = next((rows[name] for name in names if name and name in rows), None)
        if row is not None:
            source.targets, matched = source.targets | row, True
    if not matched:
        raise ValueError(f"--targets {file}: its first column names no source, such as {_example(sources)}")


def parse_spacing(text: str | Sequence[float]) -> str | tuple[float, float, float]:
    """ "iso1", "median", "keep", or z,y,x in mm. Raises ValueError."""
    if text in SPACINGS:
        return str(text)
    parts = text.split(",") if isinstance(text, str) else list(text)
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(math.isfinite(n) and n > 0 for n in numbers):
        raise ValueError(f"--spacing {text}: give iso1, median, keep, or three sizes in mm as z,y,x, such as 3,1,1")
    return numbers[0], numbers[1], numbers[2]


def median_spacing(sources: Sequence[Source]) -> Spacing:
    """(z, y, x) mm: the median over all sources that can be read, from headers alone, to a micrometre."""
    spacings = []
    for source in sources:
        if source.problem is not None:
            continue
        try:
            if source.series:
                shape, affine = dicom.series_geometry(source.paths, source.selection)
            elif source.header is not None:
                shape, affine = source.header.shape, source.header.affine
            else:
                continue
            spacings.append(spacing_of(canonical_grid(affine, shape)[1]))
        except Refusal:
            continue  # the worker that reads it will say so
    if not spacings:
        raise ValueError("--spacing median: no source could be read, so there is no median")
    z, y, x = (round(float(s), 3) for s in np.median(np.array(spacings), axis=0))
    return z, y, x
