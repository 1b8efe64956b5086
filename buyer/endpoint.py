"""Endpoints: the base URL a purchase pays at, and the origin paid requests never leave."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from buyer.limits import URL_LENGTH_MAX
from contracts.errors import UsageError
from contracts.routes import INFERENCE_PATHS

__all__ = ["is_loopback", "normalise_endpoint", "origin_of", "parse_url"]

_SUFFIXES = (*INFERENCE_PATHS, "/chat/completions", "/v1")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_url(url: str, *, allow_http: bool = False, field: str = "--endpoint") -> SplitResult:
    """Return the parts of an http(s) URL without user names and fragments.

    Plain http is for loopback only, unless `allow_http`: anybody on the way could read and use what is sent. Raises
    `UsageError` naming `field`.
    """
    try:
        parts = urlsplit(url)
        port_is_sane = parts.port is None or parts.port > 0
    except ValueError:
        raise UsageError(f"{field}: {url[:80]!r} is not a URL") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not port_is_sane or len(url) > URL_LENGTH_MAX:
        raise UsageError(f"{field}: expected https://host/..., got {url[:80]!r}")
    if not url.isascii() or any(character.isspace() or ord(character) < 0x20 for character in url):
        raise UsageError(f"{field}: write the URL in ASCII, without spaces")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise UsageError(f"{field}: a user name, password or #fragment does not belong into it")
    if parts.scheme == "http" and not allow_http and not is_loopback(parts.hostname):
        raise UsageError(
            f"{field}: {parts.hostname} would be called over plain http",
            remedy="use https, or pass --allow-http if the network between is yours",
        )
    return parts


def normalise_endpoint(url: str, *, allow_http: bool = False) -> str:
    """Return the base URL of an OpenAI-shaped server: no trailing slash, `/v1` or `/v1/chat/completions` and the like.

    Any other path prefix is kept. Raises `UsageError`.
    """
    parts = parse_url(url, allow_http=allow_http)
    if parts.query:
        raise UsageError("--endpoint: a query does not belong into a base URL")
    path = parts.path.rstrip("/")
    for suffix in _SUFFIXES:
        if path.endswith(suffix):
            path = path[: -len(suffix)].rstrip("/")
            break
    return f"{parts.scheme}://{_netloc(parts, port_always=False)}{path}"


def origin_of(url: str) -> str:
    """Return `scheme://host:port`, the port always written, so that two spellings of one origin are equal."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{_netloc(parts, port_always=True)}"


def is_loopback(host: str) -> bool:
    """Tell whether `host` can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _netloc(parts: SplitResult, *, port_always: bool) -> str:
    host = parts.hostname or ""
    default = _DEFAULT_PORTS.get(parts.scheme, 0)
    port = parts.port or default
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if port_always or port != default else shown
