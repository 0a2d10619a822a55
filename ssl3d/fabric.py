"""Lightning Fabric, imported without what it loads only to read a version number.

`lightning_fabric` asks torchmetrics for its version, which imports torchmetrics with torchvision and scipy.signal: a
quarter of the time until a command starts. It needs the answer for a spike detector that nothing here uses.
"""

from __future__ import annotations

import sys

_absent = "torchmetrics" not in sys.modules
if _absent:
    sys.modules["torchmetrics"] = None  # type: ignore[assignment]  # to import it fails, as if it were not installed
try:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import SLURMEnvironment
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.strategies.strategy import _BackwardSyncControl as BackwardSyncControl
finally:
    if _absent:
        del sys.modules["torchmetrics"]

__all__ = ["BackwardSyncControl", "DDPStrategy", "Fabric", "SLURMEnvironment"]
