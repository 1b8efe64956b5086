"""Whose certificates our HTTP clients accept."""

from __future__ import annotations

import functools
import ssl

import httpx

__all__ = ["tls_context"]


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return httpx's own default: certifi's authorities, certificates and host names checked.

    One for all clients of the process, and never changed: reading the authorities takes 14 ms of CPU, a hundred times
    the rest of a client.
    """
    return httpx.create_ssl_context(trust_env=False)
