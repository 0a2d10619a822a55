"""Warnings of one library to another are hidden from users, those they can act on are not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from ssl3d.known_warnings import hide_known_warnings, show_known_warnings

JIT = "`torch.jit.interface` is deprecated. Please use `torch.compile` instead."


@pytest.fixture(autouse=True)
def as_python_starts() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        yield


def heard(words: str, module: str, category: type[Warning] = FutureWarning) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit(words, category, f"{module}.py", 1, module)
    return bool(caught)


def test_what_is_hidden_is_told_by_its_words_and_its_module():
    assert heard(JIT, "torch.jit._script")
    hide_known_warnings()
    hide_known_warnings()
    assert len(warnings.filters) == 1
    assert not heard(JIT, "torch.jit._script")
    assert heard(JIT, "mine") and heard(JIT, "torch.optim")
    assert heard("`torch.jit.interface` will return something else", "torch.jit._script")
    assert heard(JIT, "torch.jit._script", UserWarning) and heard("torch 2.9 has a slow conv3d", "ssl3d.devices")


def test_who_asks_for_warnings_gets_them():
    warnings.simplefilter("default")  # as python -W default does
    hide_known_warnings()
    assert heard(JIT, "torch.jit._script")


def test_debug_shows_what_the_functions_behind_it_hide():
    show_known_warnings()
    hide_known_warnings()
    assert heard(JIT, "torch.jit._script")
