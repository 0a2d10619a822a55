"""What a person should know of the numbers that observers saw, in words, when it first shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssl3d.observers.attention import BLOCK, LOWEST
from ssl3d.observers.probe import SCORE

HOLDOUT = "holdout/loss"
RISE = 0.1  # of the held-out loss above its lowest, relative
PATIENCE = 5  # readings of the probe without a new best
FLAT = 0.1  # relative entropy of attention below which a block looks at single tokens

Line = Mapping[str, Any]


def sentences(lines: Sequence[Line]) -> list[str]:
    """Sentences for what the last of `lines` (of metrics.jsonl) shows and the reading before it did not yet.

    A pure function of what was logged: a resumed run says nothing twice.
    """
    said = []
    for key, rule in RULES.items():
        if not lines or key not in lines[-1]:
            continue
        history = [line for line in lines if key in line]
        sentence = rule(history)
        if sentence and not (len(history) > 1 and rule(history[:-1])):
            said.append(sentence)
    return said


def _holdout(history: Sequence[Line]) -> str | None:
    lowest = min(history, key=lambda line: line[HOLDOUT])
    now = history[-1]
    if now[HOLDOUT] - lowest[HOLDOUT] <= RISE * abs(lowest[HOLDOUT]):
        return None
    return (
        f"the held-out loss rose from {lowest[HOLDOUT]:.4g} at step {lowest['step']:,} to {now[HOLDOUT]:.4g} at step "
        f"{now['step']:,}: the network over-fits the pretext task; more data, more augmentation or fewer steps"
    )


def _probe(history: Sequence[Line]) -> str | None:
    best = max(range(len(history)), key=lambda i: history[i][SCORE])  # the first of equal ones
    if len(history) - 1 - best < PATIENCE:
        return None
    return (
        f"probe/score has not risen since step {history[best]['step']:,} ({history[best][SCORE]:.3g}; now, at step "
        f"{history[-1]['step']:,}, {history[-1][SCORE]:.3g}): checkpoints/best.pt holds the best weights"
    )


def _attention(history: Sequence[Line]) -> str | None:
    now = history[-1]
    if now[LOWEST] >= FLAT:
        return None
    return (
        f"attention of block {now[BLOCK]} has only {now[LOWEST]:.2g} of its largest entropy at step {now['step']:,}: "
        "its tokens look at single tokens, which goes before unstable training; lower optim.lr or optim.clip_norm"
    )


RULES: dict[str, Callable[[Sequence[Line]], str | None]] = {HOLDOUT: _holdout, SCORE: _probe, LOWEST: _attention}
