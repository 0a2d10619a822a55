"""Whose scan it is: pseudonyms that research data sets bring, or an HMAC under the user's own key.

The key (see ssl3d.data.subjects) lies outside the store. Without it nobody gets from a pseudonym to a patient.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from preprocessing.readers import split_extension
from ssl3d.data.subjects import PREFIX, default_key_path, hash_subject, make_key
from ssl3d.terminal import say

PATIENTS_FILE = "patients.json"


def key_file(path: str | Path | None) -> Path:
    """Where the key lies or will lie: `path`, or the user's default."""
    return default_key_path() if path is None else Path(path)


def load_key(path: str | Path | None, store: Path | None, keep: bool = True) -> bytes:
    """The key in `path` (None: the default file); one that is not there is made, readable by its owner only.

    `store`: where the store lies, None when that is no folder. `keep`: False makes a passing key instead of a file.
    Raises ValueError when it lies inside the store or is too short.
    """
    file = key_file(path)
    if store is not None and file.resolve().is_relative_to(store.resolve()):
        raise ValueError(
            f"subject key {file} lies inside the store: keep it elsewhere, else pseudonyms can be reversed"
        )
    if not keep and not file.is_file():
        return secrets.token_bytes(32)
    missing = not file.is_file()
    key = make_key(file)
    if missing:
        say(f"made the key that names of patients are hashed with: {file} (keep it, and keep it to yourself)")
    return key


def digits(raw: str, key: bytes) -> str:
    """The hexadecimal digits of the HMAC of anything that identifies (a series, a study)."""
    return hash_subject(raw, key).removeprefix(PREFIX)


class Patients:
    """Patients stated beside the data: `patients.json` {patient: [case, ...]} in a file's folder or the one above."""

    def __init__(self) -> None:
        self._tables: dict[Path, dict[str, str]] = {}

    def of(self, file: Path, case: str) -> str | None:
        """The patient of a case, or None where no table names it. Raises ValueError on a table that is none."""
        for folder in (file.parent, file.parent.parent):
            patient = self._table(folder).get(case)
            if patient is not None:
                return patient
        return None

    def _table(self, folder: Path) -> dict[str, str]:
        if folder not in self._tables:
            file = folder / PATIENTS_FILE
            self._tables[folder] = _read_patients(file) if file.is_file() else {}
        return self._tables[folder]


def _read_patients(file: Path) -> dict[str, str]:
    """{case: patient}"""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: it must map each patient to the list of its cases") from error
    if not isinstance(content, dict) or not all(isinstance(cases, list) for cases in content.values()):
        raise ValueError(f"{file} must map each patient to the list of its cases")
    return {split_extension(str(case))[0]: str(patient) for patient, cases in content.items() for case in cases}
