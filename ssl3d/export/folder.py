"""The folder of an export: it overwrites what an export wrote, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

# What a target writes, below its folder; every one writes the report.
FILES: dict[str, tuple[str, ...]] = {
    "nnunet": (
        "checkpoint.pth", "architecture.json", "plans_fragment.json", "trainers/ssl3d_trainers.py", "ssl3dPlans.json",
        "HOW_TO.md",
    ),
    "nnssl": ("checkpoint_final.pth", "adaptation_plan.json", "config.json"),
    "monai": ("models/model.pt", "configs/inference.json", "configs/metadata.json", "docs/README.md"),
    "onnx": ("encoder.onnx", "encoder.json"),
    "torch_export": ("encoder.pt2", "encoder.json"),
    "hub": ("model.safetensors", "model.json", "config.json", "README.md", "recipe.yaml", "curve.png"),
    "safetensors": ("model.safetensors", "model.json"),
}  # fmt: skip
REPORT = ("report.json", "report.html")


def check_folder(out: Path, to: str) -> None:
    """Raises ValueError when `out` is no folder, is a run, or holds a file that no export wrote and this one would."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out {out}: '{path}' is a file; give a folder, which is made where there is none")
    if (out / "checkpoints").is_dir():
        raise ValueError(f"--out {out} is a run, whose files an export must not mix with; give a folder of its own")
    ours = _written(out)
    for name in (*FILES[to], *REPORT):
        if (out / name).exists() and Path(name).name not in ours:
            raise ValueError(
                f"--out {out}: its '{name}' would be overwritten, which no export lists in a report.json there; "
                "give another folder"
            )


def _written(out: Path) -> set[str]:
    """Names of the files that an earlier export to this folder lists."""
    try:
        content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(content, dict) or "target" not in content or not isinstance(content.get("files"), list):
        return set()
    return set(map(str, content["files"]))
