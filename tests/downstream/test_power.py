"""Power before a study: against simulated studies and textbook numbers, and what more of anything is worth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_evaluation import rows

from downstream import coverage, coverage_runs
from downstream.power import (
    USUAL,
    Design,
    components_of,
    mean_components,
    minimum_detectable,
    of_checkpoint,
    power,
    seeds_needed,
    sentence,
)
from downstream.statistics import Components, half_widths, half_widths_of_any
from ssl3d.seeding import numpy_generator

VARIED = Components(replicate=0.3, patient=1.0, residual=1.0)
WITH_RUNS = Components(0.3, 1.0, 0.4, run=0.3, run_replicate=0.1, run_patient=0.1, replicate_patient=0.5)


def test_against_simulated_studies():
    tables = coverage.simulate(4000, 5, 12, (0.3, 1.0, 1.0), numpy_generator(0, "power"))
    mean, half = half_widths(tables + 1.2)
    assert power(1.2, Design(5, 12), VARIED) == pytest.approx(float((np.abs(mean) > half).mean()), abs=0.025)


def test_against_simulated_studies_with_runs():
    ratio = (0.3, 0.3, 1.0, 0.1, 0.1, 0.5, 0.4)
    tables = coverage_runs.simulate(4000, (3, 5, 12), ratio, numpy_generator(1, "power"))
    mean, half = half_widths_of_any(tables + 1.8, runs=True)
    assert power(1.8, Design(5, 12, 3), WITH_RUNS) == pytest.approx(float((np.abs(mean) > half).mean()), abs=0.025)


def test_the_textbook_paired_t_test():
    """Only patients vary: the power of a one-sample t test by the noncentral t distribution."""
    only = Components(replicate=0.0, patient=1.0, residual=0.0)
    limit, shift = stats.t.ppf(0.975, 19), 0.7 * np.sqrt(20)
    exact = stats.nct.sf(limit, 19, shift) + stats.nct.cdf(-limit, 19, shift)
    assert power(0.7, Design(4, 20), only) == pytest.approx(exact, abs=0.01)


def test_the_least_difference_has_the_wanted_power_and_no_effect_the_error_rate():
    for design, components in ((Design(5, 20), VARIED), (Design(5, 20, 3), WITH_RUNS)):
        found = minimum_detectable(design, components)
        assert power(found, design, components) == pytest.approx(0.8, abs=1e-6)
        assert 0.02 < power(0.0, design, components) < 0.07


def test_more_of_anything_finds_less():
    least = minimum_detectable(Design(5, 20, 3), WITH_RUNS)
    more = (Design(10, 20, 3), Design(5, 60, 3), Design(5, 20, 6))
    assert least > max(minimum_detectable(design, WITH_RUNS) for design in more)


def test_seeds_needed():
    needed = seeds_needed(1.0, 20, VARIED)
    assert minimum_detectable(Design(needed, 20), VARIED) <= 1.0 < minimum_detectable(Design(needed - 1, 20), VARIED)
    assert seeds_needed(0.1, 20, VARIED) is None  # twenty patients vary too much, whatever the seeds
    assert seeds_needed(1.0, 2, VARIED) is None


def test_no_interval_no_power():
    assert minimum_detectable(Design(2, 20), VARIED) is None
    with pytest.raises(ValueError, match="2 training seeds give no interval"):
        power(1.0, Design(2, 20), VARIED)
    assert "take 3 or more" in sentence(Design(5, 1), VARIED)


def test_components_of_an_earlier_evaluation():
    found = components_of(rows({"mae": {2: 0.05}, "other": {2: 0.0}}), "finetune")
    assert found.residual > 0 and found.run is None
    with pytest.raises(ValueError, match="no difference to scratch by 'probe'"):
        components_of(rows({"mae": {2: 0.05}}), "probe")


def test_sentences():
    start = "5 training seeds, 20 test patients, one pre-training run: a difference of "
    assert sentence(Design(5, 20), VARIED).startswith(start)
    assert "of a checkpoint" in sentence(Design(5, 20, 2), VARIED)
    assert "how much they do is not known" in sentence(Design(5, 20, 3), VARIED)
    assert "not known" not in sentence(Design(5, 20, 3), WITH_RUNS)


def test_a_checkpoint_of_components_with_runs():
    """How one run meets replicates and patients is luck of that checkpoint, and not seen apart."""
    ratio = (0.0, 0.3, 1.0, 0.3, 0.3, 0.5, 0.4)
    known = Components(0.3, 1.0, 0.4, run=0.0, run_replicate=0.3, run_patient=0.3, replicate_patient=0.5)
    tables = coverage_runs.simulate(4000, (1, 5, 12), ratio, numpy_generator(2, "power"))[:, 0]
    mean, half = half_widths(tables + 1.5)
    assert power(1.5, Design(5, 12), known) == pytest.approx(float((np.abs(mean) > half).mean()), abs=0.025)
    assert of_checkpoint(VARIED) == VARIED


def test_methods_and_checkpoints_are_not_averaged():
    """The residual of a checkpoint holds the interaction of replicate and patient, that of a method does not."""
    assert mean_components([VARIED, WITH_RUNS, WITH_RUNS]) == WITH_RUNS
    assert mean_components([VARIED, Components(0.1, 0.0, 0.0)]) == Components(0.2, 0.5, 0.5)


def test_each_network_has_its_scratch():
    table = rows({"mae": {2: 0.05}})
    one = table.assign(arm=table["arm"] + "-a")
    other = table.assign(arm=table["arm"] + "-b", value=table["value"] + 0.01)
    baselines = {f"{arm}-{n}": f"scratch-{n}" for arm in ("mae", "scratch") for n in "ab"}
    found = components_of(pd.concat([one, other]), "finetune", baselines=baselines)
    alone = components_of(table, "finetune")
    assert found.residual == pytest.approx(alone.residual)


@pytest.mark.parametrize("kind", list(USUAL))
def test_before_anything_was_run_components_of_the_studies_serve(kind):
    for components in USUAL[kind].values():
        assert 0 < minimum_detectable(Design(5, 30), components) < 0.5
