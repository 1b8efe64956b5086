"""Agent URIs: where the registration file of an agent is, or the file itself. Pure; nothing is fetched here.

Read tolerantly, never with an exception: what cannot be used is a `Location` without target, with its codes. Sources:
RFC 2397 (data), ERC-8004 section "Agent URI", the compression parameter `enc=` as 8004scan describes it.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

import pybase64

from registry.ipfs import Cid, parse_cid
from registry.limits import DOCUMENT_BYTES_MAX, URI_CHARS_MAX, URL_CHARS_MAX

__all__ = ["Location", "locate"]

_SPACE = re.compile(r"[ \t\r\n]+")
_ARWEAVE = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_SUBDOMAIN_GATEWAY = re.compile(r"(?P<cid>[a-z0-9]{46,100})\.ipfs\.", re.ASCII)
_JSON_TYPES = ("application/json", "text/plain", "text/json", "")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a file is: `kind`, and one of `url` (https), `cid` with `path` (ipfs), `url` as id (ar), or `data` itself.

    `kind` is `https`, `ipfs`, `ar`, `data`, `json` or `none`. `codes` are the warnings about the URI.
    """

    kind: str
    url: str | None = None
    cid: Cid | None = None
    path: str = ""
    data: bytes | None = None
    codes: tuple[str, ...] = ()


def locate(uri: object, *, allow_http: bool = False) -> Location:
    """Return where the file of `uri` is. Never raises."""
    if not isinstance(uri, str) or not uri.strip():
        return Location("none", codes=("uri_empty",))
    if len(uri) > URI_CHARS_MAX:
        return Location("none", codes=("uri_too_long",))
    text = uri.strip()
    if text.startswith(("{", "[")):
        return Location("json", data=text.encode("utf-8", "replace"))
    scheme, separator, rest = text.partition(":")
    scheme = scheme.lower()
    if scheme == "data" and separator:
        return _inline(rest)
    if len(text) > URL_CHARS_MAX:
        return Location("none", codes=("uri_too_long",))
    if scheme in ("ipfs", "ipns") and separator:
        return _ipfs(scheme, rest)
    if scheme == "ar" and separator:
        name = rest.lstrip("/")
        return Location("ar", url=name) if _ARWEAVE.fullmatch(name) else Location("none", codes=("ar_malformed",))
    if scheme in ("https", "http"):
        return _web(text, scheme, allow_http=allow_http)
    bare = _ipfs("ipfs", text)
    if bare.cid is not None:
        return Location("ipfs", cid=bare.cid, path=bare.path, codes=("uri_bare_cid",))
    return Location("none", codes=("uri_unknown_scheme",))


def _web(url: str, scheme: str, *, allow_http: bool) -> Location:
    try:
        parts = urlsplit(url)
    except ValueError:
        return Location("none", codes=("url_malformed",))
    gateway_path = re.match(r"/ipfs/(.+)", parts.path)
    if gateway_path:
        found = _ipfs("ipfs", gateway_path[1])
        if found.cid is not None:
            return found
    subdomain = _SUBDOMAIN_GATEWAY.match(parts.netloc)
    if subdomain and (cid := parse_cid(subdomain["cid"])):
        return Location("ipfs", cid=cid, path=parts.path.strip("/"))
    if scheme == "http" and not allow_http:
        return Location("none", codes=("http_refused",))
    return Location("https", url=url)


def _ipfs(scheme: str, rest: str) -> Location:
    if scheme == "ipns":
        return Location("none", codes=("ipns_unsupported",))
    name, _, path = rest.lstrip("/").removeprefix("ipfs/").partition("/")
    cid = parse_cid(name)
    if cid is None or ".." in path.split("/"):
        return Location("none", codes=("cid_malformed",))
    return Location("ipfs", cid=cid, path=path.strip("/"))


def _inline(rest: str) -> Location:
    """Return the bytes of a `data:` URI, in every form seen on chain."""
    head, comma, payload = rest.partition(",")
    if not comma:
        return Location("data", codes=("data_malformed",))
    parameters = [part.strip().lower() for part in head.split(";")]
    codes: list[str] = []
    if parameters[0] not in _JSON_TYPES:
        codes.append("data_not_json")
    encoding = next((part.removeprefix("enc=") for part in parameters if part.startswith("enc=")), None)
    data = _base64(payload, codes) if "base64" in parameters[1:] else unquote_to_bytes(payload)
    if data is not None and encoding is not None:
        data = _inflated(data, encoding, codes)
    if data is not None and len(data) > DOCUMENT_BYTES_MAX:
        codes.append("document_too_large")
        data = None
    return Location("data", data=data, codes=tuple(codes))


def _base64(payload: str, codes: list[str]) -> bytes | None:
    text = _SPACE.sub("", payload)
    if "%" in text:
        text = unquote_to_bytes(text).decode("latin-1")
    text = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return pybase64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        pass
    if payload.lstrip().startswith(("{", "%7B", "%7b")):
        codes.append("data_not_base64")
        return unquote_to_bytes(payload)
    codes.append("data_malformed")
    return None


def _inflated(data: bytes, encoding: str, codes: list[str]) -> bytes | None:
    """Return what `data` decompresses to, never holding more than the cap."""
    windows = {"gzip": zlib.MAX_WBITS | 16, "zlib": zlib.MAX_WBITS, "deflate": -zlib.MAX_WBITS}
    if encoding in ("", "none", "identity"):
        return data
    if encoding not in windows:
        codes.append("compression_unknown")
        return None
    decoder = zlib.decompressobj(windows[encoding])
    try:
        inflated = decoder.decompress(data, DOCUMENT_BYTES_MAX + 1)
    except zlib.error:
        codes.append("compression_malformed")
        return None
    if not decoder.eof and len(inflated) <= DOCUMENT_BYTES_MAX:
        codes.append("compression_malformed")
        return None
    return inflated
