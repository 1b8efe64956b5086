"""One connection to a PostgreSQL server, as a room's function sees it.

It takes the rooms' placeholders, gives rows that answer by index and by name, sends Python's values as SQLite would
store them, and never waits longer than `STORE_ANSWER_TIMEOUT_S` for an answer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.adapt import Buffer, Dumper
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumperUnknown

from contracts.errors import ConfigInvalid, StoreUnavailable
from contracts.limits import (
    STORE_ANSWER_TIMEOUT_S,
    STORE_BUSY_TIMEOUT_S,
    STORE_CONNECT_TIMEOUT_S,
    STORE_IDLE_TIMEOUT_S,
    STORE_KEEPALIVE_IDLE_S,
    STORE_KEEPALIVE_INTERVAL_S,
    STORE_KEEPALIVE_PROBES,
    STORE_RECONNECT_PAUSE_S,
    STORE_STATEMENT_TIMEOUT_S,
)
from contracts.storage.connection import Cursor, Values
from contracts.storage.dialect import postgres_statement

__all__ = ["Server", "Session", "unavailable"]

T = TypeVar("T")

_log = logging.getLogger("farebox.storage")

_SERVER_VERSION_MIN = 140_000
_SYNC = "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'"
_REMEDY = "check the database server and the `store` setting"


class Session:
    """A `Connection` outside any transaction until `BEGIN`."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._raw = raw

    def execute(self, sql: str, values: Values = (), /) -> Cursor:
        """Run one statement. Raises `psycopg.Error`."""
        text, names = postgres_statement(sql)
        return self._raw.execute(text, _bound(values, names))

    def executemany(self, sql: str, rows: Iterable[Values], /) -> Cursor:
        """Run one statement for each of `rows`, in one round trip. Raises `psycopg.Error`."""
        text, names = postgres_statement(sql)
        cursor = self._raw.cursor()
        cursor.executemany(text, [_bound(row, names) for row in rows])
        return cursor

    def run(self, script: str) -> str:
        """Run statements without values in one round trip; return the last one's tag. Raises `psycopg.Error`."""
        return self._raw.execute(script).statusmessage or ""

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._raw.closed

    @property
    def is_inside(self) -> bool:
        """Whether a transaction is open, failed or not."""
        return self._raw.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def roll_back(self) -> None:
        """Leave the transaction, if there is one; where the server does not answer, the connection goes with it."""
        if not self.is_lost and self._raw.info.transaction_status != TransactionStatus.IDLE:
            try:
                self.run("ROLLBACK")
            except psycopg.Error:
                self.close()

    def close(self) -> None:
        """Close the connection; the server forgets what it held."""
        with contextlib.suppress(psycopg.Error):
            self._raw.close()


class Server:
    """Where a room's tables are: server, database and schema. Safe for threads."""

    def __init__(self, url: str, schema: str) -> None:
        """Read `url`; nothing is connected. Raises `ConfigInvalid`."""
        try:
            given = conninfo_to_dict(url)
        except psycopg.Error:
            # The driver's message repeats the URL, password included.
            raise ConfigInvalid("store: expected postgresql://user@host:5432/database") from None
        self.schema = schema
        self.name = f"postgresql {schema}"
        self._given = given
        self._gate = threading.Lock()
        self._refused: str | None = None
        self._refused_until_s = 0.0

    def connect(self, *, read_only: bool = False) -> Session:
        """Return a new connection. Raises `StoreUnavailable`; for a while after a failure, without trying.

        The while is as long as the failed attempt took, so that a server which stands still takes up at most half of
        an event loop's time.
        """
        with self._gate:
            if self._refused is not None and time.monotonic() < self._refused_until_s:
                raise StoreUnavailable(f"{self.name}: {self._refused}", remedy=_REMEDY)
            started_s = time.monotonic()
            try:
                session = self._connected(read_only)
            except psycopg.Error as error:
                failed_s = time.monotonic()
                failure = unavailable(self.name, error)
                self._refused = failure.message.removeprefix(f"{self.name}: ")
                self._refused_until_s = failed_s + max(STORE_RECONNECT_PAUSE_S, failed_s - started_s)
                raise failure from None
            self._refused = None
            return session

    def check(self) -> None:
        """Refuse a server that could lose what it reported written. Raises `ConfigInvalid`, `StoreUnavailable`."""
        with contextlib.closing(self.connect(read_only=True)) as session:
            version, sync = session.execute(
                "SELECT current_setting('server_version_num')::int, current_setting('fsync')"
            ).fetchone()
        if version < _SERVER_VERSION_MIN:
            raise ConfigInvalid(f"store: PostgreSQL 14 or later is needed, the server is {version // 10_000}")
        if sync == "off":
            raise ConfigInvalid(
                "store: the server runs with fsync = off and would forget payments with its machine",
                remedy="set fsync = on",
            )

    def _connected(self, read_only: bool) -> Session:
        settings = {
            "search_path": f"{self.schema},pg_temp",
            "default_transaction_isolation": r"read\ committed",
            "lock_timeout": _ms(STORE_BUSY_TIMEOUT_S),
            "statement_timeout": _ms(STORE_STATEMENT_TIMEOUT_S),
            "idle_in_transaction_session_timeout": _ms(STORE_IDLE_TIMEOUT_S),
            # A sign of life is a connection that is idle.
            "idle_session_timeout": 0,
            "tcp_keepalives_idle": STORE_KEEPALIVE_IDLE_S,
            "tcp_keepalives_interval": STORE_KEEPALIVE_INTERVAL_S,
            "tcp_keepalives_count": STORE_KEEPALIVE_PROBES,
            **({"default_transaction_read_only": "on"} if read_only else {}),
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        parameters: dict[str, Any] = {
            "application_name": f"farebox {self.schema}",
            "connect_timeout": STORE_CONNECT_TIMEOUT_S,
            "target_session_attrs": "primary",
            "tcp_user_timeout": _ms(STORE_ANSWER_TIMEOUT_S),
            "keepalives_idle": STORE_KEEPALIVE_IDLE_S,
            "keepalives_interval": STORE_KEEPALIVE_INTERVAL_S,
            "keepalives_count": STORE_KEEPALIVE_PROBES,
            **self._given,
            "client_encoding": "UTF8",
            "options": f"{self._given.get('options') or ''} {options}".strip(),
        }
        raw = _Bounded.connect(
            make_conninfo(**parameters), autocommit=True, row_factory=_row_factory, cursor_factory=psycopg.RawCursor
        )
        for kind, dumper in ((int, Int8Dumper), (bool, _BoolDumper), (str, _StrDumper)):
            raw.adapters.register_dumper(kind, dumper)
        try:
            # Stronger settings (a replica that must confirm) stay as the server has them.
            raw.execute(_SYNC)
        except psycopg.Error:
            raw.close()
            raise
        return Session(raw)


def unavailable(name: str, error: psycopg.Error) -> StoreUnavailable:
    """Return what a caller is told: the server's words, and of the connection only that it failed.

    A failed connection is described with addresses, which are the log's business and not a client's.
    """
    if error.sqlstate is not None and error.diag.message_primary:
        return StoreUnavailable(f"{name}: {error.diag.message_primary}", remedy=_REMEDY)
    _log.warning("%s: %s", name, " ".join(str(error).split()))
    return StoreUnavailable(f"{name}: the database server cannot be reached", remedy=_REMEDY)


class _Bounded(psycopg.Connection[Any]):
    """A connection that gives up on a server which stands still."""

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        try:
            return super().wait(_bounded(gen), *args, **kwargs)
        except _NoAnswer:
            # The answer may still come, and would be taken for that of the next statement.
            self.close()
            raise


class _NoAnswer(psycopg.OperationalError):
    """The server did not answer in time."""


def _bounded(steps: PQGen[T]) -> PQGen[T]:
    """Do the steps of an exchange; the driver comes by at least every tenth of a second."""
    deadline_s = time.monotonic() + STORE_ANSWER_TIMEOUT_S
    try:
        awaited = next(steps)
        while True:
            ready = yield awaited
            if time.monotonic() > deadline_s:
                raise _NoAnswer(f"the server did not answer within {STORE_ANSWER_TIMEOUT_S:.0f} s")
            awaited = steps.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


class _BoolDumper(Dumper):
    """SQLite knows no booleans, and the rooms' columns are integers."""

    oid = Int8Dumper.oid

    def dump(self, obj: bool) -> Buffer | None:
        return b"1" if obj else b"0"


class _StrDumper(StrDumperUnknown):
    """PostgreSQL's text holds no NUL, which a stranger's words may."""

    def dump(self, obj: str) -> Buffer | None:
        return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))


class _Row(tuple[Any, ...]):
    """`row[0]` and `row["name"]`."""

    __slots__ = ()
    _places: ClassVar[dict[str, int]] = {}

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            try:
                key = self._places[key]
            except KeyError:
                raise IndexError(f"no column {key!r}") from None
        return tuple.__getitem__(self, key)


@lru_cache(maxsize=512)
def _row_class(names: tuple[str, ...]) -> type[_Row]:
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    return type("Row", (_Row,), {"__slots__": (), "_places": places})


def _row_factory(cursor: Any) -> Callable[[Sequence[Any]], Any]:
    result = cursor.pgresult
    if result is None or not result.nfields:
        return tuple
    return _row_class(tuple(result.fname(place).decode() for place in range(result.nfields)))


def _bound(values: Values, names: tuple[str, ...] | None) -> Sequence[Any]:
    if isinstance(values, Mapping):
        return [values[name] for name in names or ()]
    return values


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
