"""Retrieving: from an agent's URI to the bytes of its file, wherever it is kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import quote

from registry.fetch import Answer, Fetcher, Unfetched
from registry.ipfs import Cid, block_matches, file_in_block
from registry.limits import DOCUMENT_BYTES_MAX, WELL_KNOWN_BYTES_MAX
from registry.uri import Location, locate

__all__ = ["IPFS_GATEWAY", "Gateways", "Retrieved", "retrieve", "retrieve_well_known"]

IPFS_GATEWAY = "https://ipfs.io"
WELL_KNOWN = "/.well-known/agent-registration.json"


@dataclass(frozen=True, slots=True)
class Gateways:
    """Where content of other networks is asked for. What IPFS gives is checked against its id, so any will do."""

    ipfs: str = IPFS_GATEWAY
    arweave: str = "https://arweave.net"


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What came of a URI: `data`, or the `error` code; `is_unchanged` for a file that is still what it was.

    `is_lasting`: the URI can never lead to other content. `codes` are warnings that hold although there is content.
    """

    data: bytes | None = None
    error: str | None = None
    codes: tuple[str, ...] = ()
    etag: str | None = None
    last_modified: str | None = None
    is_unchanged: bool = False
    is_lasting: bool = False

    @property
    def content_hash(self) -> bytes | None:
        """SHA-256 of the content."""
        return None if self.data is None else hashlib.sha256(self.data).digest()


async def retrieve(
    uri: str, fetcher: Fetcher, gateways: Gateways, *, etag: str | None = None, last_modified: str | None = None
) -> Retrieved:
    """Return what `uri` leads to. Never raises for anything a stranger does.

    `etag` and `last_modified` are those of the copy at hand, for which an unchanged file need not be sent again.
    """
    location = locate(uri, allow_http=fetcher.policy.allow_private)
    if location.data is not None:
        return Retrieved(location.data, codes=location.codes, is_lasting=True)
    try:
        if location.kind == "ipfs" and location.cid is not None:
            return await _from_ipfs(location, location.cid, fetcher, gateways)
        if location.kind == "ar":
            answer = await fetcher.get(
                f"{gateways.arweave}/{location.url}", body_max=DOCUMENT_BYTES_MAX, is_gateway=True
            )
            return _of(answer, (*location.codes, "content_unproven"))
        if location.url is not None:
            conditions = [("if-none-match", etag), ("if-modified-since", last_modified)]
            headers = [(name, value) for name, value in conditions if value]
            return _of(await fetcher.get(location.url, body_max=DOCUMENT_BYTES_MAX, headers=headers), location.codes)
    except Unfetched as problem:
        return Retrieved(error=problem.code, codes=location.codes)
    # What is wrong with the URI itself does not change with time.
    return Retrieved(error=(location.codes or ("uri_unknown_scheme",))[-1], codes=location.codes, is_lasting=True)


async def retrieve_well_known(origin: str, fetcher: Fetcher) -> Retrieved:
    """Return the proof that the domain of `origin` (`https://host`) publishes. A redirect would prove another one."""
    try:
        answer = await fetcher.get(origin + WELL_KNOWN, body_max=WELL_KNOWN_BYTES_MAX, redirects_max=0)
    except Unfetched as problem:
        return Retrieved(error=problem.code)
    return _of(answer, ())


async def _from_ipfs(location: Location, cid: Cid, fetcher: Fetcher, gateways: Gateways) -> Retrieved:
    path = f"/ipfs/{cid.text}" + (f"/{quote(location.path)}" if location.path else "")
    codes = location.codes
    if not location.path and cid.sha256 is not None:
        raw = await fetcher.get(
            f"{gateways.ipfs}{path}?format=raw",
            body_max=DOCUMENT_BYTES_MAX + 1024,
            headers=[("accept", "application/vnd.ipld.raw")],
            is_gateway=True,
        )
        if raw.status == 200:
            if not block_matches(cid, raw.body):
                return Retrieved(error="content_mismatch", codes=codes)
            content = file_in_block(cid, raw.body)
            if content is not None:
                return Retrieved(content, codes=codes, is_lasting=True)
    answer = await fetcher.get(gateways.ipfs + path, body_max=DOCUMENT_BYTES_MAX, is_gateway=True)
    if location.path or not cid.is_file:
        return _of(answer, (*codes, "content_unproven"))
    # A gateway must not get round the proof by knowing no raw blocks.
    if answer.status == 200 and not block_matches(cid, answer.body):
        return Retrieved(error="content_mismatch", codes=codes)
    return _of(answer, codes)


def _of(answer: Answer, codes: tuple[str, ...]) -> Retrieved:
    if answer.status == 304:
        return Retrieved(codes=codes, is_unchanged=True)
    if answer.status != 200:
        return Retrieved(error=f"status_{answer.status}", codes=codes)
    return Retrieved(
        answer.body,
        codes=codes,
        etag=_short(answer.headers.get("etag")),
        last_modified=_short(answer.headers.get("last-modified")),
    )


def _short(value: str | None) -> str | None:
    return value if value is not None and len(value) <= 200 and value.isascii() and value.isprintable() else None
