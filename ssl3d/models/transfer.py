"""The record of a transfer of weights, into this library or out of it: what became of every tensor."""

from __future__ import annotations

import html
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["copied", "adapted", "fresh", "ignored"]
Part = Literal["encoder", "decoder", "head"]

KINDS: tuple[Outcome, ...] = ("copied", "adapted", "fresh", "ignored")
MINIMUM = 0.5  # of the encoder's parameters: with fewer filled, what is left is hardly the pre-trained network
HTML_COLUMNS = ("what", *KINDS, "parameters filled", "encoder parameters", "encoder layers")


@dataclass(frozen=True)
class TensorOutcome:
    """What became of one tensor: `copied` bit by bit, `adapted` (then how), `fresh` (as initialised) or `ignored`.

    `part`: of the network that is filled; a 'head' is made anew for every use and counts in no share.
    """

    name: str
    outcome: Outcome
    shape: tuple[int, ...]
    reason: str = ""
    part: Part = "encoder"

    @property
    def filled(self) -> bool:
        """Whether it holds trained values now."""
        return self.outcome in ("copied", "adapted")

    @property
    def parameters(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)


@dataclass
class TransferReport:
    """One entry a tensor, aliases counted once; `ignored` entries are the source's, all others the target's."""

    tensors: list[TensorOutcome] = field(default_factory=list)

    def names(self, outcome: Outcome) -> list[str]:
        """Names of the tensors with this outcome."""
        return [t.name for t in self.tensors if t.outcome == outcome]

    def share(self, part: Part | None = None) -> float:
        """Share (0 to 1) of the target's parameters that were filled, of one part or of all but the heads."""
        counted = [t for t in self._target() if (t.part == part if part else t.part != "head")]
        return _ratio(sum(t.parameters for t in counted if t.filled), sum(t.parameters for t in counted))

    def encoder_depth(self) -> float:
        """Share (0 to 1) of the encoder's layers that were filled.

        A layer is a weight of two or more dimensions (a convolution's, a linear map's); norms and biases are none.
        """
        layers = self._layers()
        return _ratio(sum(t.filled for t in layers), len(layers))

    def summary(self) -> str:
        """One line: how many tensors were copied, adapted, left fresh, ignored."""
        count = Counter(t.outcome for t in self.tensors)
        return ", ".join(f"{count[kind]} {kind}" for kind in KINDS if count[kind]) or "no tensors"

    def shares(self) -> str:
        """One line: how much of the network, of its encoder and of the encoder's depth was filled."""
        layers = self._layers()
        return (
            f"{_percent(self.share())} of the parameters are filled, {_percent(self.share('encoder'))} of the "
            f"encoder's ({sum(t.filled for t in layers)} of its {len(layers)} layers)"
        )

    def refuse_inexact(self, source: str) -> None:
        """`--strict`: raise ValueError naming the first tensor of encoder or decoder that is not copied bit by bit."""
        for t in self.tensors:
            if t.outcome != "copied" and t.part != "head":
                why = f" ({t.reason})" if t.reason else ""
                raise ValueError(
                    f"{source}: --strict: '{t.name}' would be {t.outcome}{why}; leave --strict out to allow it"
                )

    def refuse_below(self, minimum: float, source: str) -> None:
        """Raise ValueError when less than `minimum` (0 to 1) of the encoder's parameters are filled."""
        share = self.share("encoder")
        if share >= minimum:
            return
        fresh = [t for t in self._target() if t.part == "encoder" and not t.filled]
        lower = math.floor(share * 100) / 100
        first = f"; the first is '{fresh[0].name}' ({fresh[0].reason})" if fresh else ""
        raise ValueError(
            f"{source}: only {_percent(share)} of the encoder's parameters would be filled ({self.summary()}), less "
            f"than the {_percent(minimum)} that are asked for{first}; --minimum {lower:g} allows it"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "summary": self.summary(),
            "shares": {
                "parameters": self.share(),
                "encoder_parameters": self.share("encoder"),
                "encoder_layers": self.encoder_depth(),
            },
            "tensors": [{**asdict(t), "shape": list(t.shape)} for t in self.tensors],
        }

    def html_row(self, what: str) -> str:
        """A row of an HTML table with the columns HTML_COLUMNS; `what` names the transfer."""
        count = Counter(t.outcome for t in self.tensors)
        shares = (self.share(), self.share("encoder"), self.encoder_depth())
        cells = [what, *(str(count[kind]) for kind in KINDS), *(_percent(share) for share in shares)]
        return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"

    def _target(self) -> list[TensorOutcome]:
        return [t for t in self.tensors if t.outcome != "ignored"]

    def _layers(self) -> list[TensorOutcome]:
        return [t for t in self._target() if t.part == "encoder" and len(t.shape) >= 2]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percent(share: float) -> str:
    """A share in words, never rounded up to all or down to none of it."""
    percent = 100 * share
    if 99.9 < percent < 100:
        return "99.9 %"
    if 0 < percent < 0.1:
        return "0.1 %"
    return f"{percent:.3g} %"
