"""How wide text in a figure is, and where it is broken so that it is neither cut off nor drawn over other text.

Names of runs and methods are the user's, and may be longer than any panel is wide. The layout engine makes room for the
height of a title, not for its width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

PIECE = re.compile(r"[^\s_\-/,.]*[\s_\-/,.]*")  # a name is broken after these before it is broken anywhere
LEADING = 1.2  # height of a line of text as a multiple of its size


@lru_cache(maxsize=4096)
def width(text: str, size: float, bold: bool = False) -> float:
    """Inches of one line of `text` in points `size` of matplotlib's own font, wider than those of most browsers."""
    font = FontProperties(family="sans-serif", size=size, weight="bold" if bold else "normal")
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def broken(text: str, inches: float, size: float, bold: bool = False) -> str:
    """`text` with line breaks, no line of it wider than `inches`: after spaces, hyphens and underscores if possible.

    Lines are about equally long: a name does not end in a line of one letter.
    """
    lines = _filled(text, inches, size, bold)
    pieces = [width(piece.rstrip(), size, bold) for piece in PIECE.findall(text)]
    narrow, wide = max([inches / 2, *(piece for piece in pieces if piece <= inches)]), inches
    for _ in range(5 if len(lines) > 1 else 0):  # the narrowest column that takes no more lines
        middle = (narrow + wide) / 2
        tried = _filled(text, middle, size, bold)
        narrow, wide, lines = (narrow, middle, tried) if len(tried) <= len(lines) else (middle, wide, lines)
    return "\n".join(lines)


def _filled(text: str, inches: float, size: float, bold: bool) -> list[str]:
    """Lines that are filled one after the other."""
    lines = [""]
    for piece in PIECE.findall(" ".join(text.split())):
        for part in [piece] if width(piece.rstrip(), size, bold) <= inches else piece:  # else letter by letter
            if lines[-1] and width((lines[-1] + part).rstrip(), size, bold) > inches:
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]


def height(texts: Sequence[str], size: float) -> float:
    """Inches of the tallest of some broken texts."""
    return max((text.count("\n") + 1 for text in texts), default=0) * LEADING * size / 72
