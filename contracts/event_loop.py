"""Which event loop a process of ours runs on."""

from __future__ import annotations

import asyncio

__all__ = ["fast_runner"]


def fast_runner() -> asyncio.Runner:
    """Return a runner on uvloop, where that is installed (the extra `gateway`), else on Python's own event loop."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=new_event_loop)
