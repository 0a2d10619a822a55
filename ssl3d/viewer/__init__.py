"""A slice viewer in a page: three linked planes of a small copy of a scan, without a network; imports nothing heavy."""

from ssl3d.viewer.grid import LARGEST, MOST_VOXELS, Grid, fit
from ssl3d.viewer.html import MOST_SCANS, embed, equip
from ssl3d.viewer.palette import CLASS_COLOURS, UNMEASURED, class_colours
from ssl3d.viewer.scan import Paint, Scan

__all__ = [
    "CLASS_COLOURS",
    "LARGEST",
    "MOST_SCANS",
    "MOST_VOXELS",
    "UNMEASURED",
    "Grid",
    "Paint",
    "Scan",
    "class_colours",
    "embed",
    "equip",
    "fit",
]
