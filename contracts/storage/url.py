"""The URL that names a store: what is allowed, and what of it may be shown."""

from __future__ import annotations

import re
from pathlib import Path

from contracts.errors import ConfigInvalid

__all__ = ["check_store_url", "is_postgres", "rooted_store_url", "shown_store_url", "sqlite_file"]

_SQLITE = "sqlite:///"
_POSTGRES = re.compile(
    r"(?P<scheme>postgres(?:ql)?)://(?:(?P<user>[^:@/?#]*)(?::[^@/?#]*)?@)?(?P<host>[^@/?#]*)(?P<database>/[^@/?#]*)?(?:[?#].*)?"
)


def check_store_url(url: str) -> None:
    """Raise `ConfigInvalid` unless `url` has a form that `open_database` takes. Opens nothing."""
    if is_postgres(url):
        if not _POSTGRES.fullmatch(url):
            raise ConfigInvalid("store: write @, /, ? and # in user or password as %40, %2F, %3F and %23")
        return
    sqlite_file(url)


def is_postgres(url: str) -> bool:
    """Tell whether `url` names a PostgreSQL database."""
    return url.startswith(("postgresql://", "postgres://"))


def sqlite_file(url: str) -> Path:
    """Return the file of `sqlite:///relative.db` or `sqlite:////absolute.db`. Raises `ConfigInvalid`."""
    name = url.removeprefix(_SQLITE)
    if not url.startswith(_SQLITE) or not name or name == ":memory:":
        raise ConfigInvalid(
            f"store: expected sqlite:///file.db or postgresql://user@host/database, got {shown_store_url(url)!r}"
        )
    return Path(name).expanduser()


def rooted_store_url(url: str, folder: Path) -> str:
    """Return `url` with a relative file taken as relative to `folder`; another store is not in a folder."""
    return url if is_postgres(url) else _SQLITE + str(folder / sqlite_file(url))


def shown_store_url(url: str) -> str:
    """Return `url` without password and parameters, which may be secrets."""
    if not is_postgres(url):
        return re.sub(r"//[^/]*@", "//***@", url)[:80]
    parts = _POSTGRES.fullmatch(url)
    if parts is None:
        return "postgresql://***"
    user = f"{parts['user']}@" if parts["user"] else ""
    return f"{parts['scheme']}://{user}{parts['host']}{parts['database'] or ''}"
