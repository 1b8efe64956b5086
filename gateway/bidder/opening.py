"""Opens the bidder of a home: its event log beside the pool, its models in the home, and no more than is installed."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from buyer.home import Home
from contracts.errors import StoreUnavailable
from gateway.bidder.events import EventLog
from gateway.bidder.service import Bidder

__all__ = ["events_url", "open_bidder"]

_log = logging.getLogger("farebox.bidder")


def events_url(home: Home) -> str:
    """Return where the event log is: in the pool's PostgreSQL, else in a SQLite file of its own."""
    return home.store or f"sqlite:///{home.path / 'bidder.db'}"


def open_bidder(home: Home) -> Bidder:
    """Return the bidder of a home. Without its log it forgets at the end; without LightGBM the rule decides."""
    log: EventLog | None = None
    try:
        log = EventLog.open(events_url(home))
        log.trim()
    except StoreUnavailable as error:
        _log.warning("the bidder keeps no log: %s", error.message)
    if find_spec("lightgbm") is None:
        return Bidder(log)
    return Bidder(log, models=home.path / "models", key_path=home.path / "models.key")
