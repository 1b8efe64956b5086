"""Whether a facilitator still settles with the account that buyers have signed for."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence

import httpx

from contracts.address import Address, address_text, parse_address
from contracts.errors import FacilitatorUnavailable, FareboxError
from contracts.networks import Network
from contracts.tls import tls_context
from contracts.wire import SupportedResponse, decode_json
from seller.limits import FACILITATOR_ANSWER_BYTES_MAX, FACILITATOR_TIMEOUT_S

__all__ = ["settling_accounts", "warn_of_changed_facilitator"]

_log = logging.getLogger("farebox.seller.settlement")


async def settling_accounts(url: str, network: Network) -> list[Address]:
    """Return the accounts with which the facilitator at `url` settles prices by usage, as its /supported states them.

    Raises `FacilitatorUnavailable` when it does not answer, or `MalformedMessage` for an answer that does not parse.
    """
    async with httpx.AsyncClient(
        timeout=FACILITATOR_TIMEOUT_S, follow_redirects=False, trust_env=False, verify=tls_context()
    ) as client:
        data = bytearray()
        try:
            async with client.stream("GET", url.rstrip("/") + "/supported") as answer:
                async for chunk in answer.aiter_bytes():
                    data += chunk
                    if len(data) > FACILITATOR_ANSWER_BYTES_MAX:
                        raise FacilitatorUnavailable(f"{url}: the answer of /supported is too large")
        except httpx.HTTPError as error:
            raise FacilitatorUnavailable(f"{url}: /supported: {type(error).__name__}") from None
    if answer.status_code != 200:
        raise FacilitatorUnavailable(f"{url}: /supported answers {answer.status_code}")
    return _accounts(decode_json(bytes(data), SupportedResponse, "/supported"), network)


async def warn_of_changed_facilitator(urls: Sequence[str], network: Network, pinned: Address) -> None:
    """Log `facilitator_changed` where no facilitator settles with `pinned`: what was signed for it cannot be settled.

    One that does not answer is not judged.
    """
    stated: list[str] = []
    for url in urls:
        try:
            accounts = await settling_accounts(url, network)
        except FareboxError as error:
            _log.info("upto.facilitator is not compared: %s", error.message)
            return
        if pinned in accounts:
            return
        stated += [address_text(account) for account in accounts]
    _log.warning(
        "facilitator_changed: upto.facilitator is %s, but /supported states %s; payments that buyers have signed for "
        "the former cannot be settled. Write the new account into `upto`, and tell buyers to buy again",
        address_text(pinned),
        ", ".join(stated) or "none",
    )


def _accounts(supported: SupportedResponse, network: Network) -> list[Address]:
    kinds = [kind for kind in supported.kinds if kind.scheme == "upto" and _covers(kind.network, network)]
    texts = [kind.extra.get("facilitatorAddress") for kind in kinds if kind.extra]
    if kinds:
        # One that settles with several accounts states one of them at a time, and signs with all.
        texts += [
            text for name, signers in (supported.signers or {}).items() if _covers(name, network) for text in signers
        ]
    accounts: dict[Address, None] = {}
    for text in texts:
        try:
            accounts[parse_address(text, "facilitatorAddress")] = None
        except FareboxError:
            continue
    return list(accounts)


def _covers(name: str, network: Network) -> bool:
    return fnmatch.fnmatchcase(network.caip2, name)
