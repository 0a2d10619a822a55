"""Intervals for scores of a crossed design: every training replicate (labelled subset and seed) meets every patient.

The model is d[s, p] = mu + S_s + P_p + E_sp with independent effects of the replicate s, the patient p and their
interaction. What is estimated is mu: the mean over labelled subsets and seeds that could have been drawn AND over
patients who could have been met. Resampling patients alone ignores S_s and covers far too rarely; docs/statistics.md
holds the simulation that chose the interval below.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
FEWEST = (
    3  # of replicates and of patients: with two replicates the interval covers only 89 to 97 % (docs/statistics.md)
)


@dataclass(frozen=True)
class Components:
    """Method-of-moments variance components of a complete table, never negative, in squared units of the score."""

    replicate: float
    patient: float
    residual: float


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, and the data it rests on.

    `low` and `high` are None when no honest interval exists; `reason` then says why, in words. `dropped_replicates`
    and `dropped_patients` were left out because some of their cells are missing.
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

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, None without an interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def sign(self) -> int:
        """+1 or -1 when the interval lies wholly on one side of zero; 0 otherwise, also without an interval."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def as_dict(self) -> dict[str, Any]:
        """Plain types for summary.json."""
        return asdict(self)


def mean_squares(tables: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
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


def half_widths(tables: ArrayLike, level: float = LEVEL) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and half-widths of the crossed interval for complete tables (..., S, P), many studies at once.

    With mean squares MS_S, MS_P, MS_E the variance of the mean is (A + B + MS_E) / (S P), with A = max(MS_S - MS_E, 0)
    and B = max(MS_P - MS_E, 0). A negative component counts as zero, and MS_E is then NOT reduced by it, which errs on
    the wide side. Each part is judged by its own degrees of freedom:
    half-width^2 = (t(S-1)^2 A + t(P-1)^2 B + t((S-1)(P-1))^2 MS_E) / (S P). One Satterthwaite quantile for the sum is
    too short with 3 replicates: it trusts a small MS_S that rests on 2 degrees of freedom. Giving every part its
    own quantile is Cochran's remedy for unequal variances (Biometrics 20, 1964) and the modified large-sample interval
    of Graybill and Wang (JASA 75, 1980). It equals the textbook t interval when one factor has no variance.
    """
    tables = np.asarray(tables, dtype=np.float64)
    s, p = tables.shape[-2:]
    mean, ms_replicate, ms_patient, ms_residual = mean_squares(tables)
    squared = (
        np.maximum(ms_replicate - ms_residual, 0) * _quantile(level, s - 1) ** 2
        + np.maximum(ms_patient - ms_residual, 0) * _quantile(level, p - 1) ** 2
        + ms_residual * _quantile(level, (s - 1) * (p - 1)) ** 2
    )
    return mean, np.sqrt(squared / (s * p))


def crossed_interval(table: ArrayLike, level: float = LEVEL) -> Estimate:
    """The mean of a complete table (S replicates, P patients) and its interval over both.

    With fewer than three of either there is none: the variation over that factor cannot be seen, or hardly, and an
    interval over the other alone would look far surer than it is. Raises ValueError for missing or infinite values.
    """
    values = np.asarray(table, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"a score table has the shape (replicates, patients), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a score table has missing or infinite cells: reduce it with complete_block first")
    s, p = values.shape
    if s < FEWEST or p < FEWEST:
        reason = _only(s, "training seed") if s < FEWEST else _only(p, "test patient")
        return Estimate(float(values.mean()), None, None, level, s, p, reason=reason)
    mean, half = (float(number) for number in half_widths(values, level))
    _, ms_replicate, ms_patient, ms_residual = (float(number) for number in mean_squares(values))
    components = Components(
        max(ms_replicate - ms_residual, 0.0) / p, max(ms_patient - ms_residual, 0.0) / s, max(ms_residual, 0.0)
    )
    return Estimate(mean, mean - half, mean + half, level, s, p, components)


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
        found,
        low=None if found.low is None else max(found.low, limits[0]),
        high=None if found.high is None else min(found.high, limits[1]),
        dropped_replicates=table.shape[0] - block.shape[0],
        dropped_patients=table.shape[1] - block.shape[1],
    )


def _only(count: int, what: str) -> str:
    return f"only one {what}" if count == 1 else f"only {count} {what}s"


def _quantile(level: float, degrees: int) -> float:
    return float(stats.t.ppf(0.5 + level / 2, degrees))
