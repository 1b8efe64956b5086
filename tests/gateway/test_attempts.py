"""Goal: answers kept for a repetition are whole, bounded and forgotten in time."""

from __future__ import annotations

import asyncio

import pytest

from gateway.attempts import Attempts, Broken, Record
from gateway.limits import KEPT_ANSWER_BYTES_MAX, KEPT_BYTES_MAX, KEPT_S


def whole(size: int = 1) -> Record:
    record = Record()
    record.start(200, [])
    record.add(b"x" * size)
    record.finish()
    return record


def keep(attempts: Attempts, key: str, record: Record) -> None:
    attempt = attempts.begin(key, "digest", lambda: True)
    attempt.record = record
    attempts.end(attempt, keep=True)


def test_a_kept_answer_is_forgotten_after_its_time() -> None:
    now = 0.0
    attempts = Attempts(lambda: now)
    keep(attempts, "a", whole())
    now = KEPT_S - 1
    assert attempts.kept("a") is not None
    now = KEPT_S
    assert attempts.kept("a") is None
    assert attempts.digest_of("a") is None


def test_the_oldest_answers_make_room() -> None:
    attempts = Attempts(lambda: 0.0)
    size = KEPT_ANSWER_BYTES_MAX - 1
    count = KEPT_BYTES_MAX // size + 1
    for number in range(count):
        keep(attempts, str(number), whole(size))
    assert attempts.kept("0") is None
    assert attempts.kept(str(count - 1)) is not None


def test_an_answer_past_the_cap_is_not_kept() -> None:
    attempts = Attempts()
    keep(attempts, "a", whole(KEPT_ANSWER_BYTES_MAX + 1))
    assert attempts.kept("a") is None


def test_an_answer_that_broke_off_is_not_kept() -> None:
    attempts, record = Attempts(), Record()
    record.start(200, [])
    record.add(b"half")
    keep(attempts, "a", record)
    assert attempts.kept("a") is None


async def test_a_follower_gets_every_chunk_however_it_arrives() -> None:
    record = Record()
    record.start(200, [])
    record.add(b"1")

    async def follow() -> list[bytes]:
        await record.started()
        return [chunk async for chunk in record.follow()]

    early = asyncio.create_task(follow())
    for chunk in (b"2", b"3"):
        await asyncio.sleep(0)
        record.add(chunk)
    late = asyncio.create_task(follow())
    await asyncio.sleep(0)
    record.finish()
    assert await early == await late == [b"1", b"2", b"3"]


@pytest.mark.parametrize("started", [False, True])
async def test_a_follower_of_a_broken_answer_is_told(started: bool) -> None:
    record = Record()
    if started:
        record.start(200, [])

    async def follow() -> list[bytes]:
        await record.started()
        return [chunk async for chunk in record.follow()]

    follower = asyncio.create_task(follow())
    await asyncio.sleep(0)
    record.fail()
    with pytest.raises(Broken):
        await follower
