"""mkdocs hooks: pages from outside docs/, and Markdown as GitHub reads it.

The files are written for GitHub, where they link to each other wherever they lie. On the site the few pages outside
docs/ get an address of their own, links are rewritten to it, and any other file of the repository that is linked to is
put into the site under `repository/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {  # place in the repository: page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/history.md": "benchmark_history.md",
    "SECURITY.md": "security.md",
}
_PLACES = {page: place for place, page in OUTSIDE.items()}
_LINK = re.compile(r"\[([^\]\n]*)\]\((?!\w+:|#|/)([^)\s#]*)(#[^)\s]*)?\)")
_PATH = re.compile(r"[\w.-]*[/.][\w./-]*")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ITEM = re.compile(r"^(\s*)([-*]|\d+\.) ")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    from mkdocs.structure.files import File

    for place, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Mend the links of a page, and what Python-Markdown reads otherwise than GitHub."""
    place = _PLACES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return as_on_github(_LINK.sub(lambda found: _link(found, place, page.file.src_uri, config, files), markdown))


def _link(found: re.Match[str], place: str, page: str, config: Any, files: Files) -> str:
    text, path, anchor = found[1], found[2], found[3] or ""
    if not path:
        return found[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
    if (ROOT / target).is_dir():
        target = f"{target}/README.md"
    uri = OUTSIDE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else f"repository/{target}")
    if uri.startswith("repository/") and files.get_file_from_path(uri) is None and (ROOT / target).is_file():
        from mkdocs.structure.files import File

        files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
    if _PATH.fullmatch(text) and target.endswith(".md"):  # on GitHub a file is called by its name, here by its title
        text = title(ROOT / target)
    return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(page) or '.')}{anchor})"


def title(path: Path) -> str:
    """The first heading of a page, up to its colon."""
    return path.read_text(encoding="utf-8").partition("# ")[2].partition("\n")[0].partition(":")[0]


def as_on_github(markdown: str) -> str:
    """A blank line before each list, and four spaces below a numbered item: Python-Markdown sees no list without."""
    lines: list[str] = []
    in_fence = in_numbers = False
    for line in markdown.split("\n"):
        item = _ITEM.match(line)
        if not in_fence:
            if item and not item[1]:
                in_numbers = item[2][0].isdigit()
                previous = lines[-1] if lines else ""
                if previous.strip() and not _ITEM.match(previous) and not previous.startswith(" "):
                    lines.append("")
            elif line.strip() and not line.startswith(" "):
                in_numbers = False
        inside = in_fence or not line.startswith("    ")
        lines.append(f" {line}" if in_numbers and line.startswith("   ") and inside else line)
        if _FENCE.match(line):
            in_fence = not in_fence
    return "\n".join(lines)
