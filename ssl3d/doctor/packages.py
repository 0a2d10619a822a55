"""What is installed beside PyTorch: what ssl3d needs, what its extras add, and whether wandb knows the user."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import netrc
import os
import platform
import re
import sys
from pathlib import Path
from urllib.parse import urlparse

from ssl3d import __version__
from ssl3d.doctor.finding import Finding, ok, warning, wrong

PYTHONS = ((3, 11), (3, 13))  # tested, oldest and newest
# Extra -> what can be imported when it is installed.
EXTRAS = {
    "nnunet": ("nnunetv2",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "sweep": ("optuna",),
    "s3": ("s3fs",),
    "minc": ("h5py",),
}


def versions() -> list[Finding]:
    """ssl3d, Python and system."""
    sentence = f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return [warning("ssl3d", f"{sentence}, which is not tested", "use Python 3.11 to 3.13")]
    return [ok("ssl3d", sentence)]


def required() -> list[Finding]:
    """Whether everything is there that the installed ssl3d says it needs."""
    try:
        needs = importlib.metadata.requires("ssl3d") or []
    except importlib.metadata.PackageNotFoundError:
        return [warning("packages", "ssl3d is imported from a folder, not installed", "pip install -e . there")]
    names = [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    missing = [name for name in names if not _installed(name)]
    if missing:
        return [wrong("packages", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")]
    return [ok("packages", f"all {len(names)} that it needs")]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def extras() -> list[Finding]:
    """Which optional parts are there."""
    there = [e for e, modules in EXTRAS.items() if all(importlib.util.find_spec(m) is not None for m in modules)]
    absent = [extra for extra in EXTRAS if extra not in there]
    sentence = f"{', '.join(there) or 'none'}" + (f"; without {', '.join(absent)}" if absent else "")
    return [ok("extras", sentence, f"pip install 'ssl3d[{','.join(absent)}]' if you want them" if absent else "")]


def wandb() -> list[Finding]:
    """Whether a key is there to log in with; wandb's server is not asked."""
    if importlib.util.find_spec("wandb") is None:
        return []  # `required` says so
    if os.environ.get("WANDB_API_KEY"):
        return [ok("wandb", "logged in by WANDB_API_KEY")]
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        known = file.is_file() and netrc.netrc(str(file)).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError) as error:
        return [warning("wandb", f"the netrc file cannot be read ({type(error).__name__})", "run wandb login")]
    if known:
        return [ok("wandb", f"logged in to {host}")]
    if os.environ.get("WANDB_SWEEP_ID") or os.environ.get("WANDB_MODE") == "online":
        return [wrong("wandb", "is to be online, but nobody is logged in", "run wandb login, or set WANDB_API_KEY")]
    return [ok("wandb", "not logged in, which only wandb.mode=online and sweeps need")]
