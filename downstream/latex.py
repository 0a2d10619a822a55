"""Tables for a paper: LaTeX with booktabs rules, nothing else needed, every character escaped."""

from __future__ import annotations

from collections.abc import Sequence

from downstream.blocks import Table

ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
}


def escape(value: object) -> str:
    """Text that LaTeX prints as it stands; a lone sign before a number becomes a real minus. Line breaks are spaces."""
    text = "".join(ESCAPES.get(character, character) for character in " ".join(str(value).split()))
    return f"$-${text[1:]}" if text[:1] == "-" and text[1:2].isdigit() else text


def latex(table: Table) -> str:
    r"""A table environment for \input: caption above, label tab:NAME.

    The preamble needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.
    """
    columns = "".join("r" if i in table.numbers else "l" for i in range(len(table.head)))
    caption = ". ".join(part.rstrip(".") for part in (table.title, table.caption) if part)
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}{'.' if caption else ''}}}",
        rf"\label{{tab:{label(table.name)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row(table.head),
        r"\midrule",
        *(_row(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def label(name: str) -> str:
    """A name that LaTeX takes in a label: letters, digits, hyphens."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name)


def _row(cells: Sequence[object]) -> str:
    return " & ".join(escape(cell) for cell in cells) + r" \\"
