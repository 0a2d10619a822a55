"""What a forge and a citing author read is valid, and agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import ssl3d

ROOT = Path(__file__).resolve().parents[2]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["version"] == ssl3d.__version__
    assert all(set(author) == {"name"} for author in citation["authors"])


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_issue_forms_are_what_a_forge_takes(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    for field in form["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "checkboxes")
        assert field["attributes"]["value" if field["type"] == "markdown" else "label"]
    names = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert names and len(set(names)) == len(names)


def test_a_bug_report_asks_for_the_doctor() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (doctor,) = [field for field in form["body"] if field.get("id") == "doctor"]
    assert doctor["validations"]["required"] and "ssl3d doctor" in doctor["attributes"]["description"]


def test_the_history_has_whole_rows() -> None:
    rows = [line for line in (ROOT / "benchmarks" / "history.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 10 and {row.count("|") for row in rows} == {8}
    assert all(re.match(r"\| 20\d\d-\d\d-\d\d", row) for row in rows[2:])


def test_scripts_of_the_house_can_be_run() -> None:
    scripts = [path for path in (ROOT / ".ci").iterdir() if path.is_file()]
    assert {"run", "oldest", "newest", "versions"} <= {path.name for path in scripts}
    assert all(path.stat().st_mode & 0o100 and path.read_text().startswith("#!") for path in scripts)
