"""Intervals for scores of a crossed design: every training replicate (labelled subset and seed) meets every patient.

The model is d[s, p] = mu + S_s + P_p + E_sp with independent effects of the replicate s, the patient p and their
interaction. What is estimated is mu: the mean over labelled subsets and seeds that could have been drawn AND over
patients who could have been met. Resampling patients alone ignores S_s and covers far too rarely; docs/statistics.md
holds the simulation that chose the interval below. Where a method has several pre-training runs they are a third
random factor: downstream.three_factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from downstream import three_factor
from downstream.three_factor import quantile

Array = NDArray[np.float64]
LEVEL = 0.95
FEWEST = 3  # replicates, and patients: with two replicates the interval covers only 89 to 97 % (docs/statistics.md)
FEWEST_RUNS = 3  # pre-training runs behind a sentence about a method; with fewer it is about a checkpoint


@dataclass(frozen=True)
class Components:
    """Method-of-moments variance components of a complete table, never negative, in squared units of the score.

    The last four are None where there is no factor of pre-training runs; `residual` then holds the interaction of
    replicate and patient too.
    """

    replicate: float
    patient: float
    residual: float
    run: float | None = None
    run_replicate: float | None = None
    run_patient: float | None = None
    replicate_patient: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, and the data it rests on.

    `low` and `high` are None when no honest interval exists; `reason` then says why, in words. `dropped_replicates`,
    `dropped_patients` and `dropped_runs` were left out because some of their cells are missing. `runs`: pre-training
    runs, None where they are no factor of the model (one checkpoint, or scratch).
    """

    mean: float
    low: float | None
    high: float | None
    level: float
    replicates: int
    patients: int
    components: Components | None = None
    reason: str | None = None
    dropped_replicates: int = 0
    dropped_patients: int = 0
    runs: int | None = None
    dropped_runs: int = 0

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, None without an interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def sign(self) -> int:
        """+1 or -1 when the interval lies wholly on one side of zero; 0 otherwise, also without an interval."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def mean_squares(tables: Array) -> tuple[Array, ...]:
    """Grand mean and the mean squares (replicates, patients, residual) of complete tables (..., S, P), S, P >= 2."""
    s, p = tables.shape[-2:]
    mean = tables.mean((-2, -1))
    of_replicate, of_patient = tables.mean(-1), tables.mean(-2)
    residual = tables - of_replicate[..., :, None] - of_patient[..., None, :] + mean[..., None, None]
    return (
        mean,
        p * of_replicate.var(-1, ddof=1),
        s * of_patient.var(-1, ddof=1),
        (residual**2).sum((-2, -1)) / ((s - 1) * (p - 1)),
    )


def half_widths(tables: ArrayLike, level: float = LEVEL) -> tuple[Array, Array]:
    """Means and half-widths of the crossed interval for complete tables (..., S, P), many studies at once.

    With mean squares MS_S, MS_P, MS_E the variance of the mean is (A + B + MS_E) / (S P), with A = max(MS_S - MS_E, 0)
    and B = max(MS_P - MS_E, 0). A negative component counts as zero, and MS_E is then NOT reduced by it, which errs on
    the wide side. Each part is judged by its own degrees of freedom:
    half-width^2 = (t(S-1)^2 A + t(P-1)^2 B + t((S-1)(P-1))^2 MS_E) / (S P). One Satterthwaite quantile for the sum is
    too short with 3 replicates: it trusts a small MS_S that rests on 2 degrees of freedom. Giving every part its
    own quantile is Cochran's remedy for unequal variances (Biometrics 20, 1964) and the modified large-sample interval
    of Graybill and Wang (JASA 75, 1980). It is never shorter than the textbook t interval over the factor of which
    there is less: where the other has no variance, the sum above is (docs/statistics.md says by how much).
    """
    tables = np.asarray(tables, dtype=np.float64)
    s, p = tables.shape[-2:]
    mean, ms_replicate, ms_patient, ms_residual = mean_squares(tables)
    return mean, half_widths_of((ms_replicate, ms_patient, ms_residual), s, p, level)


def half_widths_of(squares: tuple[Array, ...], replicates: int, patients: int, level: float) -> Array:
    """The half-widths above from the mean squares of replicates, patients and the residual."""
    s, p = replicates, patients
    ms_replicate, ms_patient, ms_residual = squares
    squared = (
        np.maximum(ms_replicate - ms_residual, 0) * quantile(level, s - 1) ** 2
        + np.maximum(ms_patient - ms_residual, 0) * quantile(level, p - 1) ** 2
        + ms_residual * quantile(level, (s - 1) * (p - 1)) ** 2
    )
    for count, square in ((s, ms_replicate), (p, ms_patient)):
        if count == min(s, p):
            squared = np.maximum(squared, square * quantile(level, count - 1) ** 2)
    return np.asarray(np.sqrt(squared / (s * p)))


def crossed_interval(table: ArrayLike, level: float = LEVEL) -> Estimate:
    """The mean of a complete table (S replicates, P patients) or (R runs, S, P) and its interval over all of them.

    With fewer than three of any there is none: the variation over that factor cannot be seen, or hardly, and an
    interval over the others alone would look far surer than it is. Raises ValueError for missing or infinite values.
    """
    values = np.asarray(table, dtype=np.float64)
    if values.ndim not in (2, 3) or values.size == 0:
        raise ValueError(f"a score table has the shape (replicates, patients) or (runs, ...), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a score table has missing or infinite cells: reduce it with complete_block first")
    s, p = values.shape[-2:]
    runs = values.shape[0] if values.ndim == 3 else None
    reason = too_few(runs, s, p)
    if reason:
        return Estimate(float(values.mean()), None, None, level, s, p, reason=reason, runs=runs)
    mean, half = (float(number) for number in half_widths_of_any(values, level))
    return Estimate(mean, mean - half, mean + half, level, s, p, components(values), runs=runs)


def half_widths_of_any(tables: Array, level: float = LEVEL, runs: bool | None = None) -> tuple[Array, Array]:
    """Means and half-widths of (S, P) or (R, S, P); for more dimensions `runs` says whether the third last is runs."""
    if runs is None:
        runs = tables.ndim == 3
    if not runs:
        return half_widths(tables, level)
    sizes = (tables.shape[-3], tables.shape[-2], tables.shape[-1])
    mean, squares = three_factor.mean_squares(tables)
    return mean, three_factor.half_widths_of(squares, sizes, level)


def components(table: Array) -> Components:
    """Variance components of one complete table (S, P) or (R, S, P)."""
    if table.ndim == 3:
        sizes = (table.shape[0], table.shape[1], table.shape[2])
        found = three_factor.variances(three_factor.mean_squares(table)[1], sizes)
        run, replicate, patient, run_replicate, run_patient, replicate_patient, residual = (
            found[effect] for effect in three_factor.EFFECTS
        )
        return Components(replicate, patient, residual, run, run_replicate, run_patient, replicate_patient)
    s, p = table.shape
    _, ms_replicate, ms_patient, ms_residual = (float(number) for number in mean_squares(table))
    return Components(
        max(ms_replicate - ms_residual, 0.0) / p, max(ms_patient - ms_residual, 0.0) / s, max(ms_residual, 0.0)
    )


def p_value(table: ArrayLike) -> float | None:
    """The two-sided p-value that belongs to the crossed interval: 1 - the level at which it would just reach zero.

    None where there is no interval. It tests what the interval estimates, a mean of zero over runs, replicates and
    patients that could have been drawn, and holds as far as the interval covers.
    """
    values = np.asarray(table, dtype=np.float64)
    s, p = values.shape[-2:]
    if too_few(values.shape[0] if values.ndim == 3 else None, s, p):
        return None
    if values.ndim == 2:
        mean, *squares = mean_squares(values)
        return _p_from(lambda level: float(half_widths_of(tuple(squares), s, p, level)), abs(float(mean)))
    mean, effects = three_factor.mean_squares(values)
    sizes = (values.shape[0], s, p)
    return _p_from(lambda level: float(three_factor.half_widths_of(effects, sizes, level)), abs(float(mean)))


def _p_from(half: Callable[[float], float], distance: float) -> float:
    """Bisection on log p between 1e-12 and 1: half(1 - p) falls as p grows."""
    if distance == 0:
        return 1.0
    low, high = math.log(1e-12), 0.0
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (middle, high) if half(1 - math.exp(middle)) > distance else (low, middle)
    return math.exp(high)


def complete_block(table: pd.DataFrame) -> pd.DataFrame:
    """The part of a table (replicates x patients) without missing cells, dropping as little as a greedy search finds.

    The row or column with the largest share of missing cells goes first (on a tie the patient, since replicates are
    fewer), until nothing is missing. May return an empty table.
    """
    block = table.astype(float).replace([np.inf, -np.inf], np.nan)
    while block.size and bool(block.isna().to_numpy().any()):
        rows, columns = block.isna().mean(axis=1), block.isna().mean(axis=0)
        if float(rows.max()) > float(columns.max()):
            block = block.drop(index=[rows.idxmax()])
        else:
            block = block.drop(columns=[columns.idxmax()])
    return block


def estimate(
    table: pd.DataFrame, level: float = LEVEL, limits: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Mean and interval of a table (replicates x patients) with holes: complete cells only, the loss counted.

    `limits`: the score's range; an interval is cut there, which loses no value that could be true.
    """
    block = complete_block(table)
    if block.size == 0:
        reason = "no patient was scored under every training seed"
        return Estimate(math.nan, None, None, level, 0, 0, None, reason, *table.shape)
    found = crossed_interval(block.to_numpy(), level)
    return replace(
        cut(found, limits),
        dropped_replicates=table.shape[0] - block.shape[0],
        dropped_patients=table.shape[1] - block.shape[1],
    )


def complete_cube(tables: Sequence[pd.DataFrame]) -> Array:
    """As complete_block for several runs' tables (replicates x patients): the values (R, S, P) without missing cells.

    The run, replicate or patient with the largest share of missing cells goes first, on a tie a patient before a
    replicate before a run. What one run has not got is missing there.
    """
    rows = sorted(set().union(*(table.index for table in tables)))
    columns = sorted(set().union(*(table.columns for table in tables)))
    cube = np.stack([table.reindex(index=rows, columns=columns).to_numpy(dtype=np.float64) for table in tables])
    while cube.size and not np.isfinite(cube).all():
        missing = ~np.isfinite(cube)
        shares = [missing.mean((0, 1)), missing.mean((0, 2)), missing.mean((1, 2))]  # patients, replicates, runs
        worst = max(range(3), key=lambda axis: (float(shares[axis].max()), -axis))
        cube = np.delete(cube, int(shares[worst].argmax()), axis=2 - worst)
    return cube


def estimate_runs(
    tables: Sequence[pd.DataFrame], level: float = LEVEL, limits: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """As `estimate`, from a table a pre-training run: mean and interval over runs, replicates and patients."""
    cube = complete_cube(tables)
    replicates = len(set().union(*(table.index for table in tables)))
    patients = len(set().union(*(table.columns for table in tables)))
    if cube.size == 0:
        reason = "no patient was scored under every training seed of every pre-training run"
        return Estimate(math.nan, None, None, level, 0, 0, None, reason, replicates, patients, 0, len(tables))
    found = cut(crossed_interval(cube, level), limits)
    return replace(
        found,
        dropped_runs=len(tables) - cube.shape[0],
        dropped_replicates=replicates - cube.shape[1],
        dropped_patients=patients - cube.shape[2],
    )


def cut(found: Estimate, limits: tuple[float, float]) -> Estimate:
    """An interval ends where the score does, which loses no value that could be true."""
    return replace(
        found,
        low=None if found.low is None else max(found.low, limits[0]),
        high=None if found.high is None else min(found.high, limits[1]),
    )


def too_few(runs: int | None, replicates: int, patients: int) -> str | None:
    """Why there is no interval, in words, or None."""
    if runs is not None and runs < FEWEST_RUNS:
        return _only(runs, "pre-training run")
    if replicates < FEWEST:
        return _only(replicates, "training seed")
    return _only(patients, "test patient") if patients < FEWEST else None


def _only(count: int, what: str) -> str:
    return f"only one {what}" if count == 1 else f"only {count} {what}s"
