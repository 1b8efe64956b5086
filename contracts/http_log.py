"""httpx writes every URL it asks into its log at level INFO. Ours may carry tokens in user, path or query."""

from __future__ import annotations

import logging

import httpx

__all__ = ["show_hosts_only"]


class _HostsOnly(logging.Filter):
    """Leaves of every URL in a log record its scheme, host and port."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_host(arg) if isinstance(arg, httpx.URL) else arg for arg in record.args)
        return True


def show_hosts_only() -> None:
    """Keep everything but hosts out of httpx's log, for this process and whoever configures its logging."""
    logger = logging.getLogger("httpx")
    if not any(isinstance(each, _HostsOnly) for each in logger.filters):
        logger.addFilter(_HostsOnly())


def _host(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"
