"""What `farebox pay` writes of an answer that somebody else made."""

from __future__ import annotations

import io

import pytest

from buyer.flow import Incoming, Outcome
from buyer.paid import write_answer

HOSTILE = b"one\n\x1b[2J\x1b]0;owned\x07two\xff"


class Screen(io.TextIOWrapper):
    """A stdout that is, or is not, a terminal."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.written = io.BytesIO()
        super().__init__(self.written, encoding="utf-8")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def shown(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> bytes:
    screen = Screen(is_terminal=is_terminal)
    monkeypatch.setattr("sys.stdout", screen)
    write_answer(Outcome("served", incoming=Incoming(200, {}, HOSTILE)))
    return screen.written.getvalue()


def test_into_a_file_an_answer_goes_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, is_terminal=False) == HOSTILE


def test_on_a_terminal_an_answer_is_text_that_steers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, is_terminal=True)
    assert text.startswith(b"one\n")
    assert text.endswith(b"\n")
    assert b"two" in text
    assert not {0x1B, 0x07} & set(text)
