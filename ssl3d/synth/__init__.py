"""Anatomy that nobody has: random label maps, and random contrasts painted on them, known at every position.

Sources: Dey et al., "Learning general-purpose biomedical volume representations using randomized synthesis" (anatomix),
ICLR 2025; Wittmann et al., "vesselFM", CVPR 2025; both after Billot et al., "SynthSeg", Medical Image Analysis 2023.
"""

from ssl3d.synth.fields import SmoothField
from ssl3d.synth.look import BRIGHTEST, Look
from ssl3d.synth.scene import Scene

__all__ = ["BRIGHTEST", "Look", "Scene", "SmoothField"]
