"""Interrupts at safe moments only: what is begun inside is finished before Ctrl-C or a request to end takes effect."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["INTERRUPTS", "held_back"]

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """Run the context to its end; the first interrupt that arrives meanwhile takes effect right after it.

    For steps that must not be torn, such as starting a process and writing down that it runs. Keep it short or bounded:
    nobody can interrupt it. Signals that are ignored or left to the system stay so. Does nothing outside the main
    thread, the only one that Python interrupts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Handlers, not a signal mask: a child would inherit the mask, and another thread would still take the signal.
    before = {number: handler for number in INTERRUPTS if callable(handler := signal.getsignal(number))}
    arrived: list[int] = []
    released = False

    def hold(number: int, frame: FrameType | None) -> None:
        if released:
            before[signal.Signals(number)](number, frame)
        else:
            arrived.append(number)

    try:
        for number in before:
            signal.signal(number, hold)
        yield
    finally:
        # Said first: should an interrupt cut the next lines short, a handler that stays behind passes on what it gets.
        released = True
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
