"""What the benchmarks share: where they ran, CPU time, and results as JSON beside a table."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "ssl3d", "torch", "numpy", "scipy", "zarr", "numcodecs", "blosc2", "SimpleITK", "nibabel", "monai",
    "dynamic-network-architectures", "torchio",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures: processor, cores, accelerator and versions; no host names or paths."""
    cpuinfo = Path("/proc/cpuinfo")
    models = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.is_file()
        else []
    )
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": len(models) or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": found,
    }


def cpu_ms(function: Callable[[], Any]) -> float:
    """CPU milliseconds of this process, all of its threads, spent in one call."""
    before = time.process_time()
    function()
    return (time.process_time() - before) * 1e3


def wall_ms(function: Callable[[], Any]) -> float:
    """Wall-clock milliseconds of one call."""
    before = time.perf_counter()
    function()
    return (time.perf_counter() - before) * 1e3


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table; the columns are the keys of the first row, numbers with three significant digits."""

    def cell(value: Any) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def save(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    details: Mapping[str, Any],
    out: Path = RESULTS,
    more: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Write <out>/<name>.json and <name>.md and print the table; returns the JSON's path. `more`: {title: rows}."""
    out.mkdir(parents=True, exist_ok=True)
    where = machine()
    file = out / f"{name}.json"
    data = {"benchmark": name, "title": title, "machine": where, "rows": [dict(r) for r in rows], **details}
    if more:
        data["more"] = {heading: [dict(r) for r in others] for heading, others in more.items()}
    file.write_text(json.dumps(data, indent=2) + "\n")
    gpu = f", {where['gpu']}" if where["gpu"] else ""
    ran_on = f"{where['cores']} x {where['cpu']}{gpu}, torch {where['versions'].get('torch')}"
    text = f"# {title}\n\n{ran_on}\n\n{table(rows)}\n"
    text += "".join(f"\n## {heading}\n\n{table(others)}\n" for heading, others in (more or {}).items())
    file.with_suffix(".md").write_text(text)
    print(text)
    return file
