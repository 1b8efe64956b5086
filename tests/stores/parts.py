"""Places for stores, rooms that exist only in a test, and waiting."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from contracts.errors import StoreUnavailable
from contracts.storage import Connection, Database


@dataclass(frozen=True)
class Place:
    """Where the stores of one test are. Rooms share a PostgreSQL database, and have a SQLite file each."""

    kind: str
    url: Callable[[str], str]


class Migrations:
    """Writes migration packages of a room that exists only in the test; `folder` must be importable from."""

    _numbers = itertools.count()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, scripts: dict[str, str], *, room: str | None = None) -> str:
        """Return the name of a package with these files. The same `room` is a later release of the same tables."""
        # Python remembers imported packages by name for the whole run.
        number = next(self._numbers)
        room = room or f"room_{number}"
        package = f"{room}.release_{number}"
        (self.folder / room / f"release_{number}").mkdir(parents=True)
        for file, text in {"__init__.py": "", "notes.txt": "not a migration", **scripts}.items():
            (self.folder / room / f"release_{number}" / file).write_text(text)
        return package


class Held:
    """A write that keeps the writer busy until `release`; writes made meanwhile form the next group."""

    def __init__(self, database: Database) -> None:
        self.started, self._release = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def work(connection: Connection) -> None:
            loop.call_soon_threadsafe(self.started.set)
            assert self._release.wait(60)

        self.write = asyncio.create_task(database.write(work, durable=False))

    async def release(self) -> None:
        self._release.set()
        await self.write


async def held(database: Database) -> Held:
    holder = Held(database)
    await holder.started.wait()
    return holder


async def start(*writes: Any) -> list[asyncio.Task[Any]]:
    """Return tasks that have all reached their place in the queue."""
    tasks = [asyncio.create_task(write) for write in writes]
    await asyncio.sleep(0)
    return tasks


def suite_of(*modules: ModuleType, without: set[str]) -> dict[str, Any]:
    """Return the tests and fixtures of modules, to be collected a second time where their store is another one.

    Tests named in `without` look at what only SQLite has. Raises `AssertionError` when one of these is no test, or
    when two modules call different things by one name.
    """
    found: dict[str, Any] = {}
    for module in modules:
        for name, value in vars(module).items():
            if name.startswith("test_") or type(value).__name__ == "FixtureFunctionDefinition":
                assert found.setdefault(name, value) is value, f"{name} is there twice"
    assert without <= set(found), f"{without - set(found)} are not there"
    return {name: value for name, value in found.items() if name not in without}


class Forgetful:
    """Lets a store say of its next commit that nobody knows whether it was written, after it was or was not."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode: str | None = None
        commit, roll_back = database._commit, database._roll_back

        def unsure() -> None:
            mode, self.mode = self.mode, None
            if mode == "not written":
                roll_back()
            else:
                commit()
            if mode is not None:
                raise StoreUnavailable("the connection broke in a commit; it may be written or not")

        monkeypatch.setattr(database, "_commit", unsure)
