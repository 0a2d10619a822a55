"""What the doctor found: one sentence with its remedy."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """`warning`: it works, worse than it could; `wrong`: something will fail."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """`about`: what was looked at; `sentence`: what is so; `remedy`: what to do, empty when there is nothing to do."""

    about: str
    state: State
    sentence: str
    remedy: str = ""

    def line(self) -> str:
        return f"{self.state:<8} {self.about:<12} {self.sentence}" + (f": {self.remedy}" if self.remedy else "")


def ok(about: str, sentence: str, remedy: str = "") -> Finding:
    return Finding(about, State.OK, sentence, remedy)


def warning(about: str, sentence: str, remedy: str) -> Finding:
    return Finding(about, State.WARNING, sentence, remedy)


def wrong(about: str, sentence: str, remedy: str) -> Finding:
    return Finding(about, State.WRONG, sentence, remedy)
