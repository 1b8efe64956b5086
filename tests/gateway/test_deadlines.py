"""Time limits of calls: who is late is ended by a time-out, nobody else is, and a cancellation stays one."""

from __future__ import annotations

import asyncio

import pytest

from gateway.deadlines import Deadlines

SOON_S, LATER_S = 0.01, 3600.0


async def waits(deadlines: Deadlines, limit_s: float, until: asyncio.Event) -> str:
    with deadlines.within(limit_s):
        await until.wait()
    return "in time"


async def test_who_is_late_is_ended_and_who_has_time_goes_on() -> None:
    deadlines, never, told = Deadlines(), asyncio.Event(), asyncio.Event()
    patient = asyncio.create_task(waits(deadlines, LATER_S, told))
    # Begun later and due sooner: the timer that is set already is not the one it needs.
    await asyncio.sleep(0)
    late = [asyncio.create_task(waits(deadlines, SOON_S, never)) for _ in range(2)]
    for task in late:
        with pytest.raises(TimeoutError):
            await task
    assert not patient.done()
    told.set()
    assert await patient == "in time"


async def test_limits_follow_one_another_on_the_same_timer() -> None:
    deadlines, never, told = Deadlines(), asyncio.Event(), asyncio.Event()
    told.set()
    assert await waits(deadlines, SOON_S, told) == "in time"
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await waits(deadlines, SOON_S, never)


async def test_a_cancellation_is_no_time_out() -> None:
    deadlines, never = Deadlines(), asyncio.Event()
    task = asyncio.create_task(waits(deadlines, LATER_S, never))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_work_itself_is_told_as_it_is() -> None:
    with pytest.raises(LookupError), Deadlines().within(LATER_S):
        raise LookupError
