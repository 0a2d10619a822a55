"""Colours of classes, the same in pictures and in the viewer."""

from __future__ import annotations

from collections.abc import Collection

# Okabe and Ito's, told apart under all common colour-vision deficiencies; their blue is what was not measured
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00")
UNMEASURED = "#0072B2"


def class_colours(values: Collection[int]) -> dict[int, str]:
    """{label value: colour}; after six values the colours come again."""
    return {value: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, value in enumerate(sorted(values))}
