"""Values: kept exactly where int16 allows, never edited; validity, foreground and statistics."""

import numpy as np
import pytest
from tests_prep import smooth

from preprocessing.fingerprint import fingerprint
from preprocessing.foreground import foreground
from preprocessing.quantise import MAX_SATURATED, quantise
from preprocessing.stats import channel_stats
from preprocessing.unmeasured import padding


def _back(q):
    return q.scale * q.stored.astype(np.float64) + q.offset


def test_ct_is_stored_as_hu_also_after_resampling():
    values = smooth((5, 9, 8)) * 2.3 - 1200
    q = quantise(values, None, "ct", kept_grid=False)
    assert (q.scale, q.offset) == (1.0, 0.0)
    assert q.max_error <= 0.5 and np.abs(_back(q) - values).max() == pytest.approx(q.max_error)


def test_integers_of_a_kept_grid_are_exact():
    small = np.arange(-60, 60).reshape(4, 5, 6) * 7.0
    q = quantise(small.astype(np.float32), None, "mr", kept_grid=True)
    assert (q.scale, q.offset, q.max_error) == (1.0, 0.0, 0.0)
    wide = np.linspace(0, 65535, 120).round().astype(np.uint16).reshape(4, 5, 6)
    q = quantise(wide, None, "mr", kept_grid=True)
    assert q.scale == 1.0 and q.max_error == 0.0
    np.testing.assert_array_equal(_back(q), wide)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1.7e6])
def test_floats_span_their_range_and_the_recorded_error_is_true(factor):
    values = smooth((6, 11, 7)) * factor
    q = quantise(values, None, "mr", kept_grid=True)
    error = np.abs(_back(q) - values.astype(np.float64)).max()
    assert error == pytest.approx(q.max_error, rel=1e-6)
    assert q.max_error <= 0.5001 * (values.max() - values.min()) / 65535 and q.saturated_share == 0


def test_only_when_levels_are_few_are_extremes_saturated():
    generator = np.random.default_rng(0)
    values = generator.normal(100, 10, size=(40, 50, 60)).astype(np.float32)
    values[3, 4, 5], values[6, 7, 8] = 1e6, -3e5  # two hot voxels of 120,000 leave 3 levels for the rest
    q = quantise(values, None, "mr", kept_grid=True)
    assert 0 < q.saturated_share <= MAX_SATURATED
    low, high = np.percentile(values, [0.5, 99.5])
    assert (high - low) / q.scale >= 4096
    inside = np.abs(values - 100) < 40
    assert np.abs(_back(q) - values)[inside].max() <= 0.51 * q.scale
    assert q.max_error > 9e5


def test_too_many_extremes_are_kept():
    values = np.random.default_rng(0).normal(100, 10, size=(40, 50, 60)).astype(np.float32)
    values[:2, :10, :10] = np.linspace(1e5, 1e6, 200, dtype=np.float32).reshape(2, 10, 10)  # 0.17 %
    q = quantise(values, None, "mr", kept_grid=True)
    assert q.saturated_share <= MAX_SATURATED
    assert _back(q).max() > 8e5


def test_padding_of_ct_is_a_constant_below_air():
    values = np.random.default_rng(0).normal(-990, 60, size=(10, 20, 30)).astype(np.int16)
    assert padding(values) is None  # noise below air is no constant
    values[:, :3] = -3024
    values[0, 10, 10] = -2000
    found = padding(values)
    assert found.sum() == (values == -3024).sum() + 1


def test_foreground_is_the_body_without_the_table():
    spacing = (3.0, 2.0, 2.0)
    _, y, x = np.meshgrid(np.arange(20), np.arange(120), np.arange(110), indexing="ij")
    values = np.full((20, 120, 110), -1000.0, np.float32)
    values[((y - 55) / 35) ** 2 + ((x - 50) / 45) ** 2 < 1] = 30
    values[((y - 50) / 12) ** 2 + ((x - 45) / 12) ** 2 < 1] = -850  # a lung belongs to the body
    values[:, 98:100, 5:105] = 200  # 4 mm of table
    mask, box = foreground(values, spacing, "ct", None)
    assert mask[10, 50, 45] and not mask[:, 96:].any()
    np.testing.assert_allclose(box, [[0, 20, 5], [20, 91, 96]], atol=3)


def test_foreground_of_few_slices_and_of_nothing_is_not_empty():
    few = np.full((4, 60, 50), -1000.0, np.float32)
    few[:, 10:50, 10:40] = 30
    mask, box = foreground(few, (1.0, 1.0, 1.0), "ct", None)
    assert mask.any() and box[0][0] == 0 and box[1][0] == 4
    valid = np.zeros((9, 8, 7), bool)
    valid[2:5, 1:6, 3:7] = True
    _, box = foreground(np.full((9, 8, 7), -1000.0, np.float32), (1, 1, 1), "ct", valid)
    assert box == [[2, 1, 3], [5, 6, 7]]


def test_otsu_finds_the_bright_object():
    values = np.random.default_rng(0).normal(20, 5, size=(30, 40, 50)).astype(np.float32)
    values[8:20, 10:30, 15:40] += 300
    _, box = foreground(values, (1, 1, 1), "mr", None)
    np.testing.assert_allclose(box, [[8, 10, 15], [20, 30, 40]], atol=3)


@pytest.mark.parametrize("kind", ["ct", "mr"])
def test_statistics_equal_numpy(kind):
    generator = np.random.default_rng(0)
    stored = generator.normal(0, 900, size=(9, 20, 30)).astype(np.int16)
    valid, inside = generator.random((2, *stored.shape)) < 0.6
    fg, everywhere = channel_stats(stored, valid, inside, 1.5, -20.0, kind)
    values = 1.5 * stored.astype(float) - 20
    for stats, mask in ((fg, valid & inside), (everywhere, valid)):
        chosen = values[mask]
        assert stats.count == mask.sum()
        assert stats.mean == pytest.approx(chosen.mean()) and stats.std == pytest.approx(chosen.std())
        assert (stats.minimum, stats.maximum) == (chosen.min(), chosen.max())
        for name, q in (("percentile_00_5", 0.5), ("percentile_50", 50), ("percentile_99_5", 99.5)):
            assert getattr(stats, name) == np.percentile(chosen, q, method="inverted_cdf")
        clipped = np.clip(chosen, stats.low, stats.high)
        assert stats.clipped_mean == pytest.approx(clipped.mean())
        assert stats.clipped_std == pytest.approx(clipped.std())
    expected = (-1000.0, 1000.0) if kind == "ct" else (everywhere.percentile_00_5, everywhere.percentile_99_5)
    assert (fg.low, fg.high) == (everywhere.low, everywhere.high) == expected


def test_fingerprint_is_of_values_not_of_their_type():
    values = smooth((1, 5, 6, 7)).round()
    assert fingerprint(values) == fingerprint(values.astype(np.int16)) == fingerprint(values.astype(">f8"))
    assert fingerprint(values) != fingerprint(values.transpose(0, 1, 3, 2))
    other = values.copy()
    other[0, 2, 3, 4] += 1
    assert fingerprint(values) != fingerprint(other)
