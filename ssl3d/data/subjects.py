"""Pseudonyms of subjects: hashed under a key that stays outside the store, matched in either form."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Collection
from pathlib import Path

PREFIX = "h-"  # a hashed subject is "h-" and 20 hexadecimal digits


def default_key_path() -> Path:
    """The subject key of this user: ssl3d/subject.key in the configuration directory (XDG_CONFIG_HOME)."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "ssl3d" / "subject.key"


def read_key(path: str | Path | None = None) -> bytes | None:
    """The key at `path`, or at the default place; None when there is no default key yet.

    Raises FileNotFoundError when a `path` was named and is not there, ValueError when the file is too short for a key.
    """
    file = default_key_path() if path is None else Path(path)
    if not file.is_file():
        if path is None:
            return None
        raise FileNotFoundError(f"there is no subject key at {path}: create it, or leave --subject-key away")
    key = file.read_bytes().strip()
    if len(key) < 16:
        raise ValueError(f"{file} is no subject key: it needs at least 16 bytes")
    return key


def make_key(path: str | Path | None = None) -> bytes:
    """The key at `path` (default place when None), made with owner-only permissions when there is none yet."""
    file = default_key_path() if path is None else Path(path)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
                out.write(secrets.token_hex(32) + "\n")
        except FileExistsError:  # another process was first: its key counts
            pass
    key = read_key(file)
    assert key is not None
    return key


def hash_subject(raw: str, key: bytes) -> str:
    """The pseudonym of a subject: HMAC-SHA256 under `key`, the same in every store made with that key."""
    return PREFIX + hmac.new(key, raw.encode(), hashlib.sha256).hexdigest()[:20]


def matching(subjects: Collection[str], wanted: Collection[str], key: bytes | None = None) -> set[str]:
    """Those of `subjects` that `wanted` names, either of them raw or hashed under `key` (default: this user's key)."""
    key = read_key() if key is None else key
    forms = {str(w) for w in wanted}
    found = {s for s in subjects if s in forms}
    if key is not None and wanted:
        hashed = {hash_subject(w, key) for w in forms if not w.startswith(PREFIX)}
        found |= {s for s in subjects if s in hashed}
        if any(w.startswith(PREFIX) for w in forms):
            found |= {s for s in subjects if hash_subject(s, key) in forms}
    return found
