"""How long a test waits for what must come true: until nobody can blame a slow machine."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PATIENCE_S", "eventually"]

# Nothing that passes waits this long; less than pytest's own limit, so that the test says what it waited for.
PATIENCE_S = 240.0
_POLL_S = 0.01


def eventually(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """Return once `condition` holds; fail, naming `what`, when it does not in `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(_POLL_S)
