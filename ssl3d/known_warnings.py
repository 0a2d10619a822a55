"""Warnings of one library to the makers of another, about which nobody who runs ssl3d can do anything: their list.

Each by its words and the module that says it, so that a new one, or one of ours, is heard.
"""

from __future__ import annotations

import warnings

# (beginning of the message, category, beginning of the module's name)
KNOWN: tuple[tuple[str, type[Warning], str], ...] = (
    ("`torch[.]jit[.][a-z_]+` is deprecated", FutureWarning, "torch[.]jit"),  # timm's, MONAI's and torchvision's code
)


def hide_known_warnings() -> None:
    """Ignore KNOWN from here on, in this process, unless the user asked Python for warnings (-W, PYTHONWARNINGS)."""
    for message, category, module in KNOWN:
        warnings.filterwarnings("ignore", message, category, module, append=True)


def show_known_warnings() -> None:
    """Show KNOWN, whoever hides them later: for --debug."""
    for message, category, module in KNOWN:
        warnings.filterwarnings("default", message, category, module)
