"""An interrupt waits for what must not be torn, and is never lost."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from contracts.evm.devnet import Devnet
from contracts.interrupts import INTERRUPTS, held_back


@contextmanager
def interrupting(number: signal.Signals) -> Iterator[None]:
    """Let `number` raise KeyboardInterrupt, as SIGINT does, for the time of the context."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def strike_before(done: list[str], *numbers: int) -> None:
    """Interrupt this process, then do something."""
    for number in numbers:
        signal.raise_signal(number)
    done.append("all of it")


@pytest.mark.parametrize("number", INTERRUPTS)
def test_what_is_begun_ends_before_the_interrupt_takes_effect(number: signal.Signals) -> None:
    done: list[str] = []
    with interrupting(number):
        with pytest.raises(KeyboardInterrupt), held_back():
            strike_before(done, number)
        assert signal.getsignal(number) is signal.default_int_handler
    assert done == ["all of it"]


def test_an_interrupt_waits_for_the_outermost_of_two() -> None:
    done: list[str] = []

    def nested() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
        done.append("all of it")

    with pytest.raises(KeyboardInterrupt), held_back():
        nested()
    assert done == ["all of it"]


def test_several_interrupts_are_one() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), held_back():
        strike_before(done, *INTERRUPTS[:1] * 3)
    with held_back():
        done.append("and no more")
    assert done == ["all of it", "and no more"]


def test_an_error_inside_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError), held_back():
        raise ZeroDivisionError


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held_back():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_needs_no_handlers() -> None:
    done = []

    def work() -> None:
        with held_back():
            done.append("all of it")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["all of it"]


def test_an_interrupt_while_the_local_chain_starts_does_not_lose_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class InterruptedPopen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)
    with pytest.raises(KeyboardInterrupt):
        Devnet().start()
    assert [process.poll() is not None for process in started] == [True]
