"""A purchase: one seller's pinned terms, and the caps under which more may be signed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from buyer.limits import MODEL_LENGTH_MAX, NAME_LENGTH_MAX
from contracts.address import Address
from contracts.errors import UsageError
from contracts.offers import Offer, offer_from_wire
from contracts.wire import Requirements, RequirementsV1, ResourceInfo

__all__ = ["Purchase", "PurchaseState", "RefillPolicy", "Terms", "check_model", "check_name", "terms_from_wire"]

PurchaseState = Literal["active", "draining", "removed"]

_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{NAME_LENGTH_MAX - 1}}}", re.ASCII)


class RefillPolicy(msgspec.Struct, frozen=True):
    """When `farebox process` may sign more, and how much ever.

    Below `threshold` spendable authorizations, `count` more are signed. `max_total_atomic` bounds all money this
    purchase can ever lose; `max_per_day_atomic` what is signed in one UTC day. None means no such bound. Both are text
    on disk, since they may exceed 64 bits.
    """

    threshold: int
    count: int
    max_total: str | None = None
    max_per_day: str | None = None
    enabled: bool = True

    @property
    def max_total_atomic(self) -> int | None:
        """Atomic units this purchase may ever lose, or None."""
        return None if self.max_total is None else int(self.max_total)

    @property
    def max_per_day_atomic(self) -> int | None:
        """Atomic units that may be signed in one UTC day, or None."""
        return None if self.max_per_day is None else int(self.max_per_day)


@dataclass(frozen=True, slots=True)
class Terms:
    """What one 402 offered, as values and as the exact echo a payment carries.

    `accepted` is the seller's own spelling; for x402 version 1 its `network` is the legacy name.
    """

    offer: Offer
    accepted: Requirements
    x402_version: int
    resource: ResourceInfo | None = None
    extensions: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Purchase:
    """Pinned terms of one seller for one model, paid by one wallet.

    `endpoint` is the base URL without trailing slash and without `/v1`; paid requests go only to `origin`.
    `price_cap_atomic` is the most one call may cost, also after a refill. `is_restored`: it comes from an older copy of
    the pool, and nothing of it is handed out until the chain was asked. Where `payer` is an AgentWallet, `agent` is the
    key that signs for it, and `calls_per_day` how many calls are signed ahead for each day.
    """

    id: int
    name: str
    kind: Literal["pool", "once"]
    state: PurchaseState
    endpoint: str
    origin: str
    model: str
    payer: Address
    price_cap_atomic: int
    ttl_s: int
    refill: RefillPolicy | None
    rpc_urls: tuple[str, ...] = field(repr=False)
    terms_id: int
    terms: Terms
    is_restored: bool = False
    agent: Address | None = None
    calls_per_day: int | None = None

    @property
    def offer(self) -> Offer:
        """The pinned terms as values."""
        return self.terms.offer

    @property
    def accepted(self) -> Requirements:
        """The exact echo of the seller's offer."""
        return self.terms.accepted

    @property
    def x402_version(self) -> int:
        """2, or 1 for a seller that speaks only the older protocol."""
        return self.terms.x402_version

    @property
    def resource(self) -> ResourceInfo | None:
        """What the seller says it sells, echoed."""
        return self.terms.resource

    @property
    def extensions(self) -> dict[str, Any] | None:
        """The seller's extensions, echoed."""
        return self.terms.extensions


def terms_from_wire(
    stated: Requirements | RequirementsV1,
    *,
    resource: ResourceInfo | None = None,
    extensions: dict[str, Any] | None = None,
    field: str = "accepts[0]",
    decimals: int | None = None,
) -> Terms:
    """Return the terms of one offer in a 402. Raises `MalformedMessage` or `UsageError` naming `field`.

    Of every extension only `info` is echoed: the schema half may be left out, and would multiply the header.
    """
    offer = offer_from_wire(stated, field=field, decimals=decimals)
    if isinstance(stated, Requirements):
        echoed = {
            name: {"info": body["info"]} if isinstance(body, dict) and "info" in body else body
            for name, body in (extensions or {}).items()
        }
        return Terms(offer, stated, 2, resource, echoed or None)
    accepted = Requirements(
        scheme=stated.scheme,
        network=stated.network,
        amount=stated.max_amount_required,
        asset=stated.asset,
        pay_to=stated.pay_to,
        max_timeout_seconds=stated.max_timeout_seconds,
        extra=stated.extra,
    )
    return Terms(offer, accepted, 1)


def check_name(name: str) -> str:
    """Return `name` if it can name a purchase. Raises `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"NAME: expected up to {NAME_LENGTH_MAX} of a-z, 0-9, '.', '_' and '-', starting with a letter or digit, "
            f"got {name[:80]!r}"
        )
    return name


def check_model(model: str) -> str:
    """Return `model` if it can be a model id. Raises `UsageError`."""
    if not model or len(model) > MODEL_LENGTH_MAX or not model.isprintable() or model != model.strip():
        raise UsageError(f"--model: expected up to {MODEL_LENGTH_MAX} printable characters, got {model[:80]!r}")
    return model
