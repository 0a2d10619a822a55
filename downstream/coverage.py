"""Does the interval cover? Simulated studies with known variance components, and the intervals that were rejected.

python -m downstream.coverage --studies 4000                    a table of docs/statistics.md, as Markdown
python -m downstream.coverage --table runs --patients 20        others: runs, tests, labels, sets, pools, speed, search
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from downstream.statistics import LEVEL, half_widths, mean_squares
from ssl3d.seeding import numpy_generator

Tables = NDArray[np.float64]
Method = Callable[[Tables, np.random.Generator], NDArray[np.bool_]]

# variances of (replicate, patient, interaction); the interaction is the largest part in our fine-tunings
RATIOS = ((0.05, 0.5, 1.0), (0.1, 1.0, 1.0), (0.3, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 0.1, 1.0), (0.1, 1.0, 0.3))


def simulate(
    studies: int, replicates: int, patients: int, variances: Sequence[float], generator: np.random.Generator
) -> Tables:
    """Tables (studies, S, P) of a study whose true mean is 0: Gaussian effects with the given variances."""
    of_replicate, of_patient, residual = (np.sqrt(v) for v in variances)
    return (
        of_replicate * generator.standard_normal((studies, replicates, 1))
        + of_patient * generator.standard_normal((studies, 1, patients))
        + residual * generator.standard_normal((studies, replicates, patients))
    )


def covers_crossed(tables: Tables, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Our interval (statistics.half_widths); draws nothing."""
    mean, half = half_widths(tables)
    return np.abs(mean) <= half


def covers_satterthwaite(tables: Tables, generator: np.random.Generator) -> NDArray[np.bool_]:
    """The same variance of the mean, with one t quantile at Satterthwaite's degrees of freedom; draws nothing."""
    s, p = tables.shape[-2:]
    mean, ms_s, ms_p, ms_e = mean_squares(tables)
    with_s, with_p = (ms_s > ms_e).astype(float), (ms_p > ms_e).astype(float)
    with_e = 1 - with_s - with_p
    variance = with_s * ms_s + with_p * ms_p + with_e * ms_e
    spread = with_s * ms_s**2 / (s - 1) + with_p * ms_p**2 / (p - 1) + with_e**2 * ms_e**2 / ((s - 1) * (p - 1))
    half = stats.t.ppf(0.5 + LEVEL / 2, variance**2 / spread) * np.sqrt(variance / (s * p))
    return np.abs(mean) <= half


def covers_bootstrap(
    tables: Tables, generator: np.random.Generator, *, draws: int = 1000, resample_replicates: bool = True
) -> NDArray[np.bool_]:
    """The percentile bootstrap, resampling patients and (unless told otherwise) replicates with replacement."""
    s, p = tables.shape[-2:]
    covered = np.empty(len(tables), dtype=bool)
    for i, table in enumerate(tables):
        weights_p = generator.multinomial(p, np.full(p, 1 / p), draws) / p
        weights_s = np.full((draws, s), 1 / s)
        if resample_replicates:
            weights_s = generator.multinomial(s, np.full(s, 1 / s), draws) / s
        means = ((weights_s @ table) * weights_p).sum(-1)
        low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        covered[i] = low <= 0 <= high
    return covered


def covers_patients_only(tables: Tables, generator: np.random.Generator) -> NDArray[np.bool_]:
    """The percentile bootstrap over patients alone: what most papers report."""
    return covers_bootstrap(tables, generator, resample_replicates=False)


METHODS: dict[str, Method] = {
    "patients-only bootstrap": covers_patients_only,
    "crossed percentile bootstrap": covers_bootstrap,
    "Satterthwaite": covers_satterthwaite,
    "ours": covers_crossed,
}


def coverage(
    method: Method, studies: int, replicates: int, patients: int, variances: Sequence[float], seed: int
) -> float:
    """Share of simulated studies whose 95 % interval holds the true mean."""
    generator = numpy_generator(seed, "coverage", replicates, patients, *(str(v) for v in variances))
    tables = simulate(studies, replicates, patients, variances, generator)
    return float(method(tables, generator).mean())


def markdown(studies: int, replicates: Sequence[int], patients: Sequence[int], seed: int) -> str:
    """The coverage of every method as a Markdown table, a row a design, in per cent."""
    head = ["seeds", "patients", "variance seed : patient : residual", *METHODS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for s in replicates:
        for p in patients:
            for ratio in RATIOS:
                cells = [f"{100 * coverage(method, studies, s, p, ratio, seed):.1f}" for method in METHODS.values()]
                lines.append(f"| {s} | {p} | {' : '.join(f'{v:g}' for v in ratio)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies per design")
    parser.add_argument("--replicates", type=int, nargs="+", default=[3, 5, 10], help="training seeds")
    parser.add_argument("--patients", type=int, nargs="+", default=[10, 30], help="test patients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, nargs="+", default=[3, 5], help="pre-training runs, of --table runs")
    names = ["seeds", "runs", "tests", "labels", "sets", "pools", "speed", "search"]
    parser.add_argument("--table", choices=names, default="seeds")
    options = parser.parse_args(arguments)
    from downstream import coverage_design, coverage_runs, coverage_tests  # they import this module

    design = (options.studies, options.replicates, options.patients)
    tables = {
        "seeds": lambda: markdown(*design, options.seed),
        "runs": lambda: coverage_runs.markdown(*design, options.runs, options.seed),
        "tests": lambda: coverage_tests.markdown_tests(*design, options.seed),
        "labels": lambda: coverage_tests.markdown_labels(*design, options.seed),
        "sets": lambda: coverage_tests.markdown_sets(*design, options.seed),
        "pools": lambda: coverage_design.markdown_pools(*design, options.seed),
        "search": lambda: coverage_design.markdown_searches(*design, options.seed),
        "speed": lambda: coverage_design.markdown_speed(*design, options.seed),
    }
    sys.stdout.write(tables[options.table]())


if __name__ == "__main__":
    main()
