"""What kind of scan it is, how sure that is, and what its air is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preprocessing.refusal import Refusal

CT_AIR = -1000.0  # HU
SURE = 0.75  # confidence from which on an inferred modality is believed
UNSURE_FLAG = "modality_unsure"
TRAINED = ("ct", "mr")  # what is converted without being asked for

_SAMPLE = 1_000_000  # voxels looked at
_NARROW_HU = 256.0  # a CT spans more, from air to soft tissue alone; less has been windowed
_CT_OFFSET = 1024.0  # what a reader that forgets the rescale intercept leaves on every voxel
_WORDS = {
    "ct": ("ct", "computed tomography", "hu"),
    "pet": ("pet", "pt", "suv"),
    "mr": ("mr", "mri", "t1", "t1w", "t1gd", "t1ce", "t1c", "t2", "t2w", "t2f", "flair", "adc", "dwi", "pd", "bold",
           "fmri", "mra", "swi", "lge"),
    "other": ("us", "ultrasound", "nm", "spect", "xr", "xa", "oct", "mammography", "other"),
}  # fmt: skip


@dataclass(frozen=True)
class Guess:
    """The modality of one channel, and a confidence from 0 to 1; 1 when somebody said so."""

    modality: str
    confidence: float = 1.0

    @property
    def unsure(self) -> bool:
        """True when the values could be of something else: treated as MR, whose values have no fixed scale."""
        return self.confidence < SURE


def from_name(name: str) -> str | None:
    """Modality that a data set's channel name states ("MRI", "T1w", "CT"); None when it states none."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    for modality, known in _WORDS.items():
        if any(word in known for word in words) or name.lower() in known:
            return modality
    return None


def _sampled(values: np.ndarray) -> np.ndarray:
    """Up to a million finite values, evenly spread, float64."""
    flat = values.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)
    return sample[np.isfinite(sample)]


def _whole_share(sample: np.ndarray) -> float:
    return float(np.mean(sample == np.rint(sample)))


def ct_confidence(sample: np.ndarray) -> float:
    """How much a sample of values looks like HU, 0 to 1: the sum of what speaks for it.

    0.40 air or lung: 0.5 % of the voxels within -1200..-700, and half as many as within -600..-300, where hardly any
    tissue lies; 0.30 a peak of soft tissue: 2 % within -150..150, and more than in between; 0.15 whole numbers; 0.15
    extremes that scanners store.
    """
    if sample.size == 0 or sample.min() < -32768 or sample.max() > 32767:
        return 0.0
    air = float(np.mean((sample >= -1200) & (sample <= -700)))
    between = float(np.mean((sample > -600) & (sample < -300)))
    tissue = float(np.mean((sample >= -150) & (sample <= 150)))
    confidence = 0.40 * min(1.0, air / 0.005, 2.0 * air / max(between, 1e-9))
    if tissue >= 0.02 and tissue > between:
        confidence += 0.30
    confidence += 0.15 * _whole_share(sample)
    if -4096 <= sample.min() <= -200 and sample.max() > 0:
        confidence += 0.15
    return confidence


def infer(values: np.ndarray) -> Guess:
    """The modality of one channel (any shape, physical values) by its values alone: CT, or MR and how sure.

    MR has no scale of its own, so it is what remains: non-negative numbers of a wide range. Not sure: 8-bit and 0..1
    ranges (a windowed CT looks the same), many negative values (z-scores, statistics, a CT without air), and HU whose
    offset of 1024 was lost.
    """
    sample = _sampled(values)
    if sample.size == 0:
        return Guess("mr", 0.0)
    as_ct = ct_confidence(sample)
    if as_ct >= SURE:
        return Guess("ct", as_ct)
    low, high = float(sample.min()), float(sample.max())
    top = float(np.percentile(sample, 99.5))
    eight_bit = low >= 0 and high <= 255
    negative = float(np.mean(sample < -0.05 * max(top, 0.0)))
    if eight_bit or negative > 0.02 or as_ct >= 0.5 or _lost_offset(sample):
        return Guess("mr", 0.5)
    return Guess("mr", 0.9)


def _lost_offset(sample: np.ndarray) -> bool:
    """Whether values are HU + 1024: air at 0, and at 1024 a peak of soft tissue too narrow for MR."""
    if np.mean(sample < -100) > 0.01 or ct_confidence(sample - _CT_OFFSET) < SURE:
        return False
    solid = sample[sample > 500] - _CT_OFFSET
    return bool(solid.size) and float(np.mean((solid > -150) & (solid < 150))) > 0.6


def of_channels(data: np.ndarray, requested: str, stated: Sequence[str | None] | None) -> list[Guess]:
    """Modality per channel of (C, Z, Y, X): what the user requested, else what the source states, else inferred.

    A source's "ct" is not believed where the values span less than 256: that is no HU, so it counts as unsure.
    Raises Refusal `modality_refused` when nothing was requested and no channel is CT or MR; a PET channel beside a CT
    or MR one is kept.
    """
    if requested != "auto":
        return [Guess(requested)] * len(data)
    given = list(stated or [None] * len(data))
    guesses = [_of_channel(name, channel) for name, channel in zip(given, data)]
    if not any(guess.modality in TRAINED for guess in guesses):
        modality = guesses[0].modality
        what = "PET" if modality == "pet" else "neither CT nor MR"
        raise Refusal("modality_refused", f"the scan is {what}: convert it with --modality {modality} if it is wanted")
    return guesses


def _of_channel(stated: str | None, channel: np.ndarray) -> Guess:
    if stated is None:
        return infer(channel)
    if stated == "ct":
        sample = _sampled(channel)
        if sample.size and sample.max() - sample.min() < _NARROW_HU:
            return Guess("mr", 0.5)
    return Guess(stated)


def air_value(values: np.ndarray, modality: str) -> float:
    """What an empty voxel holds: -1000 HU for CT, the 0.5 percentile of the given (finite) values otherwise."""
    if modality == "ct":
        return CT_AIR
    return float(np.percentile(values[:: max(1, values.size // _SAMPLE)], 0.5))
