"""PyTorch, torchvision beside it, and whether this build, the driver and the GPUs fit each other."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from typing import Any

from ssl3d.doctor.finding import Finding, ok, warning, wrong
from ssl3d.doctor.torch_probe import probe

INSTALL = "install both as https://pytorch.org says for your CUDA, in one command"


def pytorch() -> list[Finding]:
    """Import both in a process of their own and judge what they said."""
    said = probe()
    if "torch_error" in said:
        return [wrong("torch", f"cannot be imported ({said['torch_error']})", INSTALL)]
    return [_torch(said["torch"]), _torchvision(said), *_gpus(said)]


def _torch(version: str) -> Finding:
    if version.startswith("2.9."):
        return warning("torch", f"{version} has a slow conv3d under AMP", "use 2.8, or 2.10 and later")
    return ok("torch", version)


def _torchvision(said: dict[str, Any]) -> Finding:
    """timm and lightly import it; one built for another torch ends in 'operator torchvision::nms does not exist'."""
    wanted, torch = _wanted_torch(), said["torch"].split("+")[0]
    if "torchvision_error" in said:
        reason = f"is built for torch {wanted} and this is {torch}" if wanted not in (None, torch) else "is unusable"
        return wrong("torchvision", f"{reason} ({said['torchvision_error']})", INSTALL)
    if wanted not in (None, torch):
        return warning("torchvision", f"{said['torchvision']} is built for torch {wanted} and this is {torch}", INSTALL)
    return ok("torchvision", f"{said['torchvision']}, built for this torch")


def _wanted_torch() -> str | None:
    """The torch that torchvision's metadata pins; None where it pins none."""
    try:
        needs = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pins = (re.match(r"torch\s*\(?==\s*([\w.]+)", need) for need in needs)
    return next((pin.group(1) for pin in pins if pin), None)


def driver() -> tuple[str, str] | None:
    """(driver version, newest CUDA it runs) as nvidia-smi says; None without an NVIDIA driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        text = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"Driver Version:\s*([\d.]+).*?CUDA Version:\s*([\d.]+)", text, re.DOTALL)
    return (found.group(1), found.group(2)) if found else None


def _gpus(said: dict[str, Any]) -> list[Finding]:
    """Each GPU, or why there is none."""
    if said["devices"]:
        return [_gpu(device, said) for device in said["devices"]]
    there = driver()
    if there is None:
        return [warning("GPU", "none: everything computes on the CPU", "take the recipes that end in _s")]
    version, newest = there
    if said["cuda"] is None:
        return [wrong("GPU", f"there is a driver ({version}), but this torch is built without CUDA", INSTALL)]
    if _numbers(said["cuda"])[:1] > _numbers(newest)[:1]:
        built = f"torch is built for CUDA {said['cuda']}, driver {version} runs up to {newest}"
        return [wrong("GPU", built, "update the driver, or install a torch for an older CUDA")]
    reason = said.get("cuda_error", "CUDA_VISIBLE_DEVICES may hide them")
    return [wrong("GPU", f"driver {version} is there, but torch sees no GPU ({reason})", "nvidia-smi must list one")]


def _gpu(device: dict[str, Any], said: dict[str, Any]) -> Finding:
    sentence = f"{device['name']}, {device['gib']:.0f} GiB"
    major, minor = device["capability"]
    known = [arch.split("_")[1].rstrip("af") for arch in said["archs"] if re.match(r"(sm|compute)_\d", arch)]
    runs = any(int(a[:-1]) == major and int(a[-1]) <= minor for a in known) or any(
        arch.startswith("compute_") and int(arch[8:].rstrip("af")) <= 10 * major + minor for arch in said["archs"]
    )
    if known and not said["hip"] and not runs:
        return wrong("GPU", f"{sentence}: torch {said['torch']} has no code for its architecture sm_{major}{minor}",
                     INSTALL)  # fmt: skip
    return ok("GPU", f"{sentence}, CUDA {said['cuda']}" if said["cuda"] else sentence)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]
