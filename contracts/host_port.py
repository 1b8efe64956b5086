"""`host:port`, as settings and options say where to listen."""

from __future__ import annotations

import re

__all__ = ["parse_host_port"]

_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", re.ASCII)


def parse_host_port(text: str) -> tuple[str, int]:
    """Return the parts of `127.0.0.1:8402` or `[::1]:8402`, the host without brackets. Port 0 is any free one.

    Raises `ValueError` for everything else.
    """
    found = _HOST_PORT.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise ValueError(f"expected host:port, as 127.0.0.1:8402, got {text[:60]!r}")
    return found[1].strip("[]"), int(found[2])
