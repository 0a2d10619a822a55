"""A scan beside its still picture, and the page that holds some: everything inside one file."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from ssl3d.viewer.scan import Scan

MOST_SCANS = 12  # of a page: with MOST_VOXELS a bound of its size
_SCRIPTS = ("unpack.js", "draw.js", "viewer.js")
_MARK = '<div class="viewer" data-scan="'


def embed(scan: Scan, still: str) -> str:
    """The HTML of a scan; `still`, finished HTML, is what print and browsers without scripts show."""
    content = json.dumps(scan.to_json(), separators=(",", ":"))
    return f'{_MARK}{escape(content)}"><div class="still">{still}</div></div>'


def equip(page: str) -> str:
    """A whole page with the viewer's style and script in it, once, if it holds a scan; otherwise as it is."""
    if _MARK not in page:
        return page
    head, _, rest = page.partition("</head>")
    body, _, end = rest.rpartition("</body>")
    script = "".join(_read(name) for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'  # its names are nobody else's
    return f"{head}<style>{_read('viewer.css')}</style></head>{body}<script>{script}</script></body>{end}"


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
