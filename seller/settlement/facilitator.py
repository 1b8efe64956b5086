"""The settler for sellers without a gas key: any x402 facilitator, trusted with nothing but gas.

A payment was verified here before it gets this far. A facilitator that says "paid" is believed only when the chain
shows it; one that says nothing has decided nothing, and the next one is asked. Two that settle the same payment cannot
both succeed: the token burns its nonce once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import httpx
import msgspec

from contracts.crash import checkpoint
from contracts.errors import FacilitatorUnavailable, MalformedMessage
from contracts.offers import Offer
from contracts.tls import tls_context
from contracts.wire import FacilitatorRequest, PaymentPayload, SettlementResponse, decode_json, encode_json
from seller.limits import (
    BATCH_MAX,
    FACILITATOR_ANSWER_BYTES_MAX,
    FACILITATOR_AT_ONCE_MAX,
    FACILITATOR_SHARE_MIN_S,
    FACILITATOR_TIMEOUT_S,
    RETRY_S,
)
from seller.settlement.evidence import Evidence
from seller.settlement.outbox import Item, Outbox, Stale, Verdict, now_ms

__all__ = ["FacilitatorSettler"]

_log = logging.getLogger("farebox.seller.settlement")

# "Broadcast, but not confirmed in time": not a refusal.
_PENDING = "settlement_pending"


class _NeverSent(FacilitatorUnavailable):
    """No connection was made, so this facilitator knows nothing of the payment."""


class FacilitatorSettler:
    """Settles through the first of the facilitators at `urls` that answers.

    `terms` is an offer of ours for each rail, by the rail's name; amounts come from the items.
    """

    account = "facilitator"

    def __init__(self, outbox: Outbox, urls: Sequence[str], terms: Mapping[str, Offer], evidence: Evidence) -> None:
        self._outbox = outbox
        self._terms = terms
        self._evidence = evidence
        self._posting: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._judged: list[int] = []
        self._urls = [url.rstrip("/") + "/settle" for url in urls]
        self._share_s = max(FACILITATOR_SHARE_MIN_S, FACILITATOR_TIMEOUT_S / len(urls))
        self._client = httpx.AsyncClient(
            timeout=FACILITATOR_TIMEOUT_S, follow_redirects=False, trust_env=False, verify=tls_context()
        )

    async def close(self) -> None:
        """Let running requests end; their items are marked as given away, so nothing is lost."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._client.aclose()

    def has_room(self) -> bool:
        """Tell whether another request may be started."""
        return len(self._posting) < FACILITATOR_AT_ONCE_MAX

    async def submit(self, items: Sequence[Item]) -> list[int]:
        """Mark up to `FACILITATOR_AT_ONCE_MAX` items as given away, durably, and start their requests."""
        chosen = items[: FACILITATOR_AT_ONCE_MAX - len(self._posting)]
        try:
            await self._outbox.submit(chosen, again_ms=int(RETRY_S * 1000))
        except Stale:
            return []
        checkpoint("settle.given_away")
        for item in chosen:
            self._start(item)
        return []

    async def resolve(self) -> list[int]:
        """Return the ids of the items judged since the last call."""
        judged, self._judged = self._judged, []
        return judged

    async def push(self) -> bool:
        """Ask again about items without a verdict; tell whether any request is open."""
        for item in self._outbox.unconfirmed(BATCH_MAX):
            if item.id not in self._posting and self.has_room():
                self._start(item, asked_before=True)
        return bool(self._posting)

    def _start(self, item: Item, *, asked_before: bool = False) -> None:
        self._posting.add(item.id)
        task = asyncio.ensure_future(self._settle(item, asked_before))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, item: Item, asked_before: bool) -> None:
        """Bring one item nearer to its verdict: the chain's word first, then the facilitator's."""
        try:
            verdict = await self._verdict(item, asked_before)
            checkpoint("settle.judged")
            if verdict is None:
                await self._outbox.postpone([item], self._pause_ms(item))
            else:
                await self._outbox.conclude([verdict])
                self._judged.append(item.id)
        except Exception as error:  # noqa: BLE001 - nobody awaits this task; the item stays where it is and is asked about again
            _log.warning("payment %d: %s: %s", item.id, type(error).__name__, error)
        finally:
            self._posting.discard(item.id)

    async def _verdict(self, item: Item, asked_before: bool) -> Verdict | None:
        """Ask one facilitator after the other. A refusal is final only where nobody else may still be acting."""
        somebody_may_act = asked_before
        for url in self._urls:
            try:
                answer = await self._post(url, item)
            except (FacilitatorUnavailable, MalformedMessage) as error:
                _log.warning("payment %d: %s", item.id, error.message)
                # It may have settled and not told: then the next one need not be asked.
                verdict = await self._from_chain(item)
                if verdict is not None:
                    return verdict
                somebody_may_act = somebody_may_act or not isinstance(error, _NeverSent)
                continue
            if answer.success or answer.error_reason == _PENDING or somebody_may_act:
                return await self._from_chain(item)
            _log.info("payment %d was refused by a facilitator: %s", item.id, str(answer.error_reason)[:120])
            # Refused may also mean "somebody else has settled it", which is paid.
            return await self._evidence.judge(item, on_chain=True)
        return None

    async def _from_chain(self, item: Item) -> Verdict | None:
        """Return what the chain has decided; "unused" decides nothing while a facilitator may still act."""
        verdict = await self._evidence.judge(item)
        return verdict if verdict.event is not None else None

    async def _post(self, url: str, item: Item) -> SettlementResponse:
        body = encode_json(self._request(item))
        try:
            async with (
                asyncio.timeout(self._share_s),
                self._client.stream(
                    "POST", url, content=body, headers={"content-type": "application/json"}
                ) as response,
            ):
                data = bytearray()
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > FACILITATOR_ANSWER_BYTES_MAX:
                        raise FacilitatorUnavailable("the facilitator's answer is too large")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise _NeverSent(f"the facilitator cannot be reached: {type(error).__name__}") from None
        except (httpx.HTTPError, TimeoutError) as error:
            raise FacilitatorUnavailable(f"the facilitator did not answer: {type(error).__name__}") from None
        if response.status_code != 200:
            raise FacilitatorUnavailable(f"the facilitator answered {response.status_code}")
        answer = decode_json(bytes(data), SettlementResponse, "/settle")
        if answer.success and not answer.transaction:
            raise FacilitatorUnavailable("the facilitator claims success without a transaction")
        return answer

    def _request(self, item: Item) -> FacilitatorRequest:
        offer = replace(
            self._terms[item.rail.NAME],
            amount_atomic=item.authorization.value_atomic,
            pay_to=item.authorization.payee,
        )
        # What is due stands in the requirements; what was signed, in what was accepted.
        due = replace(offer, amount_atomic=item.charged_atomic)
        payload = msgspec.Raw(msgspec.json.encode(item.rail.encode_payload(item.authorization, item.signature, offer)))
        return FacilitatorRequest(
            x402_version=2,
            payment_payload=PaymentPayload(x402_version=2, accepted=offer.spelled, payload=payload),
            payment_requirements=due.spelled,
        )

    @staticmethod
    def _pause_ms(item: Item) -> int:
        return int(max(RETRY_S * 1000, min(300_000, (now_ms() - item.created_ms) / 4)))
