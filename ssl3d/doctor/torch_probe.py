"""What PyTorch says of itself, asked in a process of its own: an import that crashes takes nothing else along.

Run as a program it prints one JSON object; nothing of ours is imported there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 180.0  # the first import from a network file system takes its time


def probe() -> dict[str, Any]:
    """torch: version, cuda, hip, archs, available, devices [{name, gib, capability}], cuda_error; torchvision: version.

    Where one cannot be imported, `torch_error` or `torchvision_error` is the last line of its traceback instead.
    """
    command = [sys.executable, "-W", "ignore", str(Path(__file__))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"torch_error": f"importing it took more than {SECONDS:g} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"torch_error": f"importing it ended Python with exit code {done.returncode}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _about_torch() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    found |= {"available": torch.cuda.is_available(), "archs": torch.cuda.get_arch_list(), "devices": []}
    try:
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            capability = [about.major, about.minor]
            found["devices"].append({"name": about.name, "gib": about.total_memory / 2**30, "capability": capability})
    except (RuntimeError, AssertionError) as error:
        found["cuda_error"] = _last(error)
    return found


def _about_torchvision() -> dict[str, Any]:
    import torchvision

    return {"torchvision": torchvision.__version__}


def _last(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _answer() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, ask in (("torch", _about_torch), ("torchvision", _about_torchvision)):
        try:
            found |= ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            found[f"{name}_error"] = _last(error)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer()) + "\n")
