"""Progress where nobody looks: a line a minute, with what is left."""

from __future__ import annotations

import pytest

from ssl3d import terminal


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (45, "45 s"),
        (61, "1 min"),
        (3599, "1 h"),
        (3725, "1 h 2 min"),
        (90_000, "1 d 1 h"),
        (172_800, "2 d"),
    ],
)
def test_durations_in_words(seconds, words):
    assert terminal.duration(seconds) == words


def test_off_a_terminal_there_is_a_line_a_minute_and_what_is_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: False)
    with terminal.progress("run", 1000) as bar:
        for done in range(500, 1001, 10):  # resumed at 500: what was done before says nothing of the pace
            now[0] += 10
            bar.update(done, f"loss {done}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run: 550 of 1000 loss 550, about 8 min left" and lines[-1] == "run: 1000 of 1000 loss 1000"
    assert len(lines) == 9
