"""The memory of a process that serves."""

import subprocess
import sys

_SCRIPT = """
import gc, weakref
from contracts.heap import settle_heap

class Thing:
    pass

settle_heap()
frozen = gc.get_freeze_count()
thing = Thing()
thing.itself = thing
remembered = weakref.ref(thing)
del thing
looks = gc.get_stats()[0]["collections"]
young = [[] for _ in range(5000)]
print(frozen > 1000, gc.get_stats()[0]["collections"] - looks)
gc.collect()
print(remembered() is None)
"""


def test_a_serving_process_leaves_what_start_up_made_alone_and_still_collects_what_came_after() -> None:
    """In a process of its own: what is frozen stays so."""
    said = subprocess.run([sys.executable, "-c", _SCRIPT], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["True", "0", "True"]
