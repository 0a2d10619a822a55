"""A self-contained HTML page from sections: escaping, tables, charts, contents, the style sheet. No external asset."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from downstream import drawing
from downstream.blocks import Block, Chart, Html, Section, Table
from ssl3d.viewer import equip

STYLE = """
:root { --ink: #1b1d21; --soft: #5c6370; --line: #dfe2e7; --paper: #ffffff; --shade: #f5f6f8; --mark: #0072b2;
  --better: #00704f; --worse: #b04a00; color-scheme: light dark;
  --c0: #767676; --c1: #0072b2; --c2: #d55e00; --c3: #009e73; --c4: #b85c91; --c5: #c98600; --c6: #2f8fc4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e9ec; --soft: #a3a9b4; --line: #3a3e46; --paper: #16181c;
  --shade: #1f2228; --mark: #6bb8ea; --better: #4fc99f; --worse: #f0955a;
  --c0: #9aa0aa; --c1: #5ab0ea; --c2: #f08a45; --c3: #35c79c; --c4: #dc95bd; --c5: #ecb340; --c6: #8fd0f5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, ul { margin: .5rem 0; } li { margin: .2rem 0; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.lead { margin: 1.2rem 0 1.4rem; padding: .9rem 1.1rem; background: var(--shade); border-left: 4px solid var(--mark); }
.lead p { margin: .25rem 0; font-size: 1.05rem; }
.warning { padding: .7rem 1.1rem; background: var(--shade); border-left: 4px solid var(--worse); }
.skip { position: absolute; left: -999rem; } .skip:focus { position: static; }
a { color: var(--mark); } :focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
nav ol { margin: .5rem 0 1.2rem; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; }
nav li { margin: 0; font-size: .9rem; }
figure { margin: 1.2rem 0; } figure > svg, figure > img, .still > img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
caption { text-align: left; caption-side: bottom; padding-top: .4rem; }
th, td { padding: .35rem .55rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
thead th { font-weight: 600; border-bottom: 2px solid var(--soft); vertical-align: bottom; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.tight { white-space: nowrap; } td:not(.number):not(.tight) { min-width: 7em; }
td.better { color: var(--better); font-weight: 600; } td.worse { color: var(--worse); font-weight: 600; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .85em; }
pre { background: var(--shade); padding: .8rem 1rem; overflow-x: auto; line-height: 1.45; white-space: pre-wrap;
  overflow-wrap: anywhere; }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: 4px; padding: .45rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
.key { white-space: nowrap; margin-left: .6em; }
.key span { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em; }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --shade: #f3f3f3; --mark: #0072b2;
  --better: #00704f; --worse: #b04a00; color-scheme: light;
  --c0: #767676; --c1: #0072b2; --c2: #d55e00; --c3: #009e73; --c4: #b85c91; --c5: #c98600; --c6: #2f8fc4; }
  main { max-width: none; padding: 0; }
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .2rem .3rem; }
  td:not(.number):not(.tight) { min-width: 0; }
  figure > svg, figure > img { max-height: 78vh; } /* with its caption no longer than a page */
  nav, .skip { display: none; } main { font-size: 10.5pt; }
  details::details-content { content-visibility: visible; }
  body { font-size: 10.5pt; } h2, h3, summary { break-after: avoid; } figure, table, .lead li { break-inside: avoid; } }
"""


def text(value: object) -> str:
    """Escaped for element content and attributes alike."""
    return escape(str(value), quote=True)


def page(title: str, sections: Iterable[Section]) -> str:
    """The whole document; a script is in it only where slices can be looked through."""
    sections = list(sections)
    named = [section.title for section in sections if section.title]
    links = "".join(f'<li><a href="#{slug(name)}">{text(name)}</a></li>' for name in named)
    contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>' if len(named) > 3 else ""
    parts = [render(section) for section in sections]
    parts.insert(1 if sections and not sections[0].title else 0, contents)
    return equip(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the content</a>\n<main id="content">\n'
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def render(section: Section) -> str:
    """A section as HTML: its heading, then its blocks."""
    head = [f'<h2 id="{slug(section.title)}">{text(section.title)}</h2>'] if section.title else []
    return "\n".join([*head, *(_block(block) for block in section.blocks)])


def slug(title: str) -> str:
    """The id of a heading."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _block(block: Block) -> str:
    if isinstance(block, Html):
        return block.content
    if isinstance(block, Chart):
        return figure(drawing.inline(block.svg, block.figure.get_figwidth(), block.alt), block.caption)
    content = table(block)
    title = text(block.title)
    if block.folded:
        return f"<details><summary>{title or 'Table'}</summary>{content}</details>"
    return f"<h3>{title}</h3>\n{content}" if title else content


def table(block: Table) -> str:
    """A table that scrolls where it does not fit, by keyboard too."""

    def cell(tag: str, i: int, value: object) -> str:
        content = str(value)
        wanted = {"number": i in block.numbers, "tight": i in block.tight, content: content in block.marks}
        names = [name for name, given in wanted.items() if given]
        attribute = f' class="{" ".join(names)}"' if names else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{attribute}{scope}>{_breakable(content)}</{tag}>"

    lines = ["<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in block.rows]
    header = "<tr>" + "".join(cell("th", i, v) for i, v in enumerate(block.head)) + "</tr>"
    legend = f"<caption>{text(block.caption)}</caption>" if block.caption else ""
    body = "\n".join(lines)
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{text(block.title or "table")}">'
        f"<table>{legend}<thead>{header}</thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _breakable(content: str) -> str:
    """Escaped; a name may be broken after underscores and slashes, so that a table needs no more room than it has."""
    return re.sub(r"(?<=\w)([_/])(?=\w)", r"\1<wbr>", text(content))


def paragraph(content: str, kind: str = "") -> Html:
    """A plain paragraph, of the style sheet's class `kind`."""
    attribute = f' class="{kind}"' if kind else ""
    return Html(f"<p{attribute}>{text(content)}</p>")


def heading(content: str) -> Html:
    """A heading within a section."""
    return Html(f"<h3>{text(content)}</h3>")


def listing(items: Iterable[str]) -> Html:
    """A bullet list of plain sentences."""
    return Html("<ul>\n" + "\n".join(f"<li>{text(item)}</li>" for item in items) + "\n</ul>")


def details(title: str, content: str) -> Html:
    """Preformatted text, collapsed."""
    return Html(f"<details><summary>{text(title)}</summary><pre>{text(content)}</pre></details>")


def figure(content: str, caption: str) -> str:
    """A figure of finished HTML with a plain caption."""
    return f"<figure>\n{content}\n<figcaption>{text(caption)}</figcaption>\n</figure>"


def image(source: str, description: str) -> str:
    """An <img> from a data URI."""
    return f'<img src="{text(source)}" alt="{text(description)}">'
