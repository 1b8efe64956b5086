"""The memory of a process that serves: what start-up made stays, and what a request makes dies with its last reference.

Python's garbage collector looks for cycles whenever some hundred new objects live. With dozens of requests under way
they always do, so it ran every tenth request, and each time a quarter had grown on top it went through everything the
imports had made: a sixth of the CPU of a paid request, and tens of milliseconds during which nobody is answered.
"""

from __future__ import annotations

import gc

from contracts.limits import YOUNG_OBJECTS_MAX

__all__ = ["settle_heap"]


def settle_heap() -> None:
    """Leave what lives now out of every later collection, and look at what is new less often.

    Call once, when a process of our own begins to serve. Whoever mounts a part of Farebox in a server of theirs decides
    about its memory themselves.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, *gc.get_threshold()[1:])
