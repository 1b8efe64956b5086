"""The network guard: which hosts of strangers may be connected to, decided on the address that is really dialled.

A name is resolved once, every address it has is checked, and the connection goes to a checked one, so that a name
which changes its address in between (DNS rebinding) gains nothing. TLS still proves the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore

from registry.limits import URL_CHARS_MAX

__all__ = ["GuardedNetwork", "NetworkPolicy", "Refused", "Resolver", "forbidden", "resolve"]

Resolver = Callable[[str, int], Awaitable[list[str]]]

# Only 2000::/3 is given out for the open internet (RFC 4291); interpreters disagree about the rest.
_GLOBAL_UNICAST_6 = ipaddress.ip_network("2000::/3")
# IETF protocol assignments with Teredo (RFC 2928, 4380), documentation (RFC 3849, 9637).
_NOT_GLOBAL_6 = tuple(map(ipaddress.ip_network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
# Anycast of 6to4 relays (RFC 7526), which no server has.
_RELAYS_4 = ipaddress.ip_network("192.88.99.0/24")
# Forms that carry an IPv4 address in their last 32 bits: mapped, compatible, NAT64 (RFC 6052, 8215).
_WRAPPED_LAST = tuple(map(ipaddress.ip_network, ("::ffff:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48")))
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


class Refused(Exception):
    """The guard does not connect there. `code` is one of the warning codes, `detail` names host or address."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What may be fetched: https on `ports`, at global addresses.

    `allow_private` is for tests and a chain of one's own: it adds plain http, every port, and every address.
    """

    allow_private: bool = False
    ports: frozenset[int] = frozenset({443})

    def check_url(self, url: str) -> None:
        """Raise `Refused` for a URL that is not fetched, whatever its host resolves to."""
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        except ValueError:
            raise Refused("url_malformed", url[:80]) from None
        if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise Refused("url_malformed", url[:80])
        if not parts.hostname or parts.username is not None or parts.password is not None:
            raise Refused("url_malformed", url[:80])
        if parts.scheme != "https" and not (self.allow_private and parts.scheme == "http"):
            raise Refused("scheme_refused", parts.scheme)
        if port not in self.ports and not self.allow_private:
            raise Refused("port_refused", str(port))

    def check_address(self, address: str) -> None:
        """Raise `Refused` for an address that is not connected to."""
        if self.allow_private:
            return
        reason = forbidden(address)
        if reason is not None:
            raise Refused("address_refused", f"{address} is {reason}")


def forbidden(address: str) -> str | None:
    """Return why `address` is not one of the open internet, or None when it is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "not an address"
    if isinstance(parsed, ipaddress.IPv4Address):
        if not parsed.is_global or parsed.is_multicast or parsed in _RELAYS_4:
            return "not a global address"
        return None
    if parsed.scope_id is not None:
        return "bound to a link"
    inner = _wrapped(parsed)
    if inner is not None:
        reason = forbidden(str(inner))
        if reason is not None:
            return f"a wrapped {inner}, {reason}"
        return None
    if parsed not in _GLOBAL_UNICAST_6 or any(parsed in network for network in _NOT_GLOBAL_6):
        return "not a global address"
    return None


def _wrapped(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address a packet to `address` would end at, where it carries one."""
    value = int(address)
    if any(address in network for network in _WRAPPED_LAST) or (value >> 32) & 0xFFFF_FFFF in _ISATAP:
        return ipaddress.IPv4Address(value & 0xFFFF_FFFF)
    if address in _SIX_TO_FOUR:
        return ipaddress.IPv4Address((value >> 80) & 0xFFFF_FFFF)
    return None


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of `host` by the system's resolver. Raises `Refused`."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Refused("name_unknown", host) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """The ordinary network, to addresses that `policy` allows. `resolver` stands in for the system's in tests."""

    def __init__(self, policy: NetworkPolicy, resolver: Resolver = resolve) -> None:
        self._policy = policy
        self._resolver = resolver
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of `host`. Raises `Refused` when any of its addresses is forbidden."""
        addresses = await self._resolver(host, port)
        if not addresses:
            raise Refused("name_unknown", host)
        for address in addresses:
            # An honest name has no forbidden address beside a good one.
            self._policy.check_address(address)
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, *_args: Any, **_options: Any) -> httpcore.AsyncNetworkStream:
        """Refuse: strangers have no business with sockets of this machine."""
        raise Refused("address_refused", "a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        """Wait between attempts to connect."""
        await self._inner.sleep(seconds)
