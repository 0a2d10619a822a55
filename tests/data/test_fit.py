"""Patches that do not fit are refused with a size that does."""

from __future__ import annotations

import pytest

from ssl3d.data.fit import require_fit

SHAPES = [(20, 90, 40), (44, 60, 70)]


def test_a_patch_that_some_volume_holds_on_every_axis_is_taken():
    require_fit((44, 90, 70), SHAPES, (4, 4, 4), "a.zarr")


def test_the_largest_usable_patch_is_a_multiple_of_the_stride():
    words = r"task\.patch_size \[48, 64, 64\] does not fit: .* a\.zarr is smaller; .* patch is \[40, 88, 64\]$"
    with pytest.raises(ValueError, match=words):
        require_fit((48, 64, 64), SHAPES, (8, 8, 16), "a.zarr", "task.patch_size")


def test_where_no_patch_can_be_used_it_says_so():
    words = r"at most \[44, 90, 70\] voxels, less than the network's stride of \[64, 32, 32\]"
    with pytest.raises(ValueError, match=words):
        require_fit((64, 64, 64), SHAPES, (64, 32, 32), "a.zarr")
