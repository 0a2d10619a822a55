"""Open a weights file of unknown origin: what it holds as plain types and tensors, without running anything in it."""

from __future__ import annotations

import hashlib
import json
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ssl3d.checkpoint_file import PUBLISHED

_HEAD = 512
_NAMED = 6  # globals that an error names


@dataclass(frozen=True)
class Container:
    """An opened file: its `content` (nested plain types and CPU tensors) and the blake2b `digest` of its bytes.

    `metadata`: what a safetensors file says of itself.
    """

    path: Path
    content: Any
    digest: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def find(path: Path) -> Path:
    """The weights file itself: `path`, or the one in the folder `path`, where another program keeps it.

    Raises FileNotFoundError naming what was looked for.
    """
    if path.is_dir():
        for name in PUBLISHED:
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"the folder '{path}' holds none of {', '.join(PUBLISHED)}: name the weights file")
    if not path.exists():
        raise FileNotFoundError(f"there is no run or weights file '{path}'")
    return path


def open_container(path: Path, trust: bool = False) -> Container:
    """Read a file that torch.save or safetensors wrote, told apart by content; nothing in it is run.

    `trust`: unpickle objects of any class, which runs code that the file names.
    Raises FileNotFoundError, ValueError: one sentence naming the file, what is wrong with it and the remedy.
    """
    path = find(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    _refuse_no_weights(path, head)
    if _is_safetensors(head):
        content, metadata = _read_safetensors(path)
        return Container(path, content, digest(path), metadata)
    return Container(path, _read_torch(path, head, trust), digest(path))


def digest(path: Path) -> str:
    """blake2b of a file's bytes, 16 bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _refuse_no_weights(path: Path, head: bytes) -> None:
    """What a download leaves in place of weights."""
    if not head:
        raise ValueError(f"'{path}' is empty (0 bytes): the download or copy did not finish, fetch it again")
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise ValueError(f"'{path}' is a git-lfs pointer, not the weights: run 'git lfs pull' where it was cloned")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"'{path}' is a web page, not weights (a login or confirmation page was saved): download it in a browser"
        )
    if text.startswith((b"{", b"[")):
        raise ValueError(f"'{path}' is JSON text, not weights: name the weights file beside it")
    if head.startswith((b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf")):
        raise ValueError(f"'{path}' is a packed archive: unpack it and name the weights file in it")


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, then the JSON object they measure."""
    return len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 40


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"'{path}' is a damaged or truncated safetensors file ({_first_line(error)}): fetch it again"
        ) from None


def _read_torch(path: Path, head: bytes, trust: bool) -> Any:
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"'{path}' is truncated (an archive without its end): fetch it again")
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in names:
                raise ValueError(f"'{path}' is a TorchScript program, not weights: name the state dict beside it")
            if "data.pkl" not in names:
                raise ValueError(f"'{path}' is a zip archive that torch.save did not write: unpack it")
    elif head[:1] != b"\x80":
        raise ValueError(f"'{path}' is neither a PyTorch nor a safetensors file")
    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch does not write itself
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = _globals(path, head)
        if not wanted:
            raise ValueError(f"'{path}' is damaged or not a PyTorch file ({_first_line(error)})") from None
        if not trust:
            more = f" and {len(wanted) - _NAMED} more" if len(wanted) > _NAMED else ""
            raise ValueError(
                f"'{path}' holds more than tensors: it asks to run {', '.join(wanted[:_NAMED])}{more}; if you trust "
                "where it comes from, say --trust (model.init_trust=true in a recipe)"
            ) from None
    except Exception as error:  # noqa: BLE001 - the reader of torch raises whatever damaged bytes lead it to
        raise ValueError(f"'{path}' is damaged or truncated ({_first_line(error)}): fetch it again") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"'{path}' needs a program that is not installed here ({error})") from None
    except Exception as error:  # noqa: BLE001 - what a trusted pickle raises is its own
        raise ValueError(f"'{path}' cannot be unpickled ({type(error).__name__}: {_first_line(error)})") from None


def _harmless() -> list[Any]:
    """numpy's numbers and arrays, which nnU-Net's checkpoints hold beside the weights, by numpy 1's and 2's names."""
    multiarray: Any = np._core.multiarray  # type: ignore[attr-defined]
    found: list[Any] = [np.dtype, np.ndarray]
    found += [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [(multiarray.scalar, f"{module}.scalar"), (multiarray._reconstruct, f"{module}._reconstruct")]
    return found


def _globals(path: Path, head: bytes) -> list[str]:
    """What a pickle would import beyond tensors and plain types, read from its opcodes without running them."""
    if head.startswith(b"PK"):
        with torch.serialization.safe_globals(_harmless()):
            try:
                return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            except (pickle.UnpicklingError, RuntimeError, ValueError):
                with zipfile.ZipFile(path) as archive:
                    name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                    with archive.open(name) as file:
                        return sorted(_opcode_globals(file))  # type: ignore[arg-type]
    with path.open("rb") as file:
        found: set[str] = set()
        for _ in range(4):  # an old torch file: magic number, protocol, system, content
            try:
                found |= _opcode_globals(file)
            except (ValueError, IndexError):
                break
    allowed = ("torch.", "collections.OrderedDict", "numpy.", "_codecs.encode")
    return sorted(name for name in found if not name.startswith(allowed))


def _opcode_globals(file: BinaryIO) -> set[str]:
    """module.name of every GLOBAL and STACK_GLOBAL of one pickle."""
    found: set[str] = set()
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            found.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return found


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def read_sidecar(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What ssl3d wrote of a safetensors file: into its metadata, else into <name>.json beside it."""
    text = metadata.get("ssl3d")
    if text is None:
        sidecar = path.with_suffix(".json")
        text = sidecar.read_text(encoding="utf-8", errors="replace") if sidecar.is_file() else None
    if text is None:
        return None
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return None
    return content if isinstance(content, dict) and isinstance(content.get("backbone"), dict) else None
