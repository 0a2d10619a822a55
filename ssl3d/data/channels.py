"""Which channels of a volume a sample reads: all, one, or a fixed number whatever the volume has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ssl3d.seeding import mix, numpy_generator


@dataclass(frozen=True)
class ChannelChoice:
    """`how`: "all" (every volume must have as many), "one" drawn from the sample's seed, or a number of them.

    A number fits volumes of different channels to one network: of more than that, so many are drawn; of fewer, each
    stands there several times, in an order drawn from the seed. So a lone channel is repeated, which a network answers
    as it does after the usual transfer of its first layer to one channel, the sum over its kernels (ssl3d.weights).
    `dropout`: share of a volume's channels that are left out of a sample, one at least staying; others stand in their
    place, so that the network learns to do without any of them.
    Raises ValueError naming data.channels or data.channel_dropout when they cannot be.
    """

    how: Literal["all", "one"] | int = "all"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        number = isinstance(self.how, int) and not isinstance(self.how, bool)
        if self.how not in ("all", "one") and not (number and int(self.how) > 0):
            raise ValueError(f"data.channels is {self.how!r}: it must be all, one or a number of channels")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"data.channel_dropout is {self.dropout}: it must be at least 0 and below 1")
        if self.dropout and not number:
            raise ValueError(
                f"data.channel_dropout is {self.dropout}: others stand in for channels that are left out, so set "
                "data.channels to a number"
            )

    def count(self, channels: Iterable[int]) -> int:
        """Channels of a region, of volumes with so many `channels`. Raises ValueError when "all" cannot be."""
        if self.how != "all":
            return 1 if self.how == "one" else self.how
        counts = sorted(set(channels))
        if len(counts) > 1:
            raise ValueError(
                f"data.channels=all needs volumes with the same number of channels, but they have {counts}: "
                "set data.channels=one, or to a number"
            )
        return counts[0]

    def of(self, seed: int, channels: int) -> list[int] | None:
        """The channels that a sample with this seed reads of a volume with so many, in order; None for all."""
        if self.how == "all":
            return None
        if self.how == "one":
            return [mix(seed, "channel") % channels]
        rng = numpy_generator(seed, "channels")
        order = rng.permutation(channels).tolist()
        kept = [c for c, u in zip(order, rng.random(channels)) if u >= self.dropout] or order[:1]
        return [kept[i % len(kept)] for i in range(self.how)]
