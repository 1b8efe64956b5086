"""`farebox doctor`: everything a paid call depends on, checked one by one; each finding comes with its fix."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from buyer.chain import check_before_signing
from buyer.pool import Pool
from buyer.probe import probe_base
from buyer.purchase import Purchase
from contracts.address import address_text
from contracts.errors import FareboxError, InsufficientBalance, LocalError, TermsChanged
from contracts.evm.rpc import Rpc
from contracts.evm.token import chain_id_of, read_head
from contracts.money import format_amount
from contracts.networks import DEVNET_CHAIN_ID
from contracts.offers import Offer, requirements
from contracts.storage.disk import filesystem_of, may_be_shared
from gateway.config import GatewayConfig, host_only

__all__ = ["Check", "examine"]

# Signatures are valid for a time; a clock this far ahead of the chain's makes fresh ones look expired.
_CLOCK_BEHIND_S_MAX = 30
# A public chain makes a block every few seconds; a head this old is a stale endpoint, or our clock is ahead.
_HEAD_AGE_S_MAX = 300


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fix` is one line of what to do when it is not `ok`, `advice` one on what works and is not wise."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    advice: str = ""


class _ClockSkew(LocalError):
    """The local clock and the chain's differ too much."""

    code = "clock_skew"


Look = Callable[[], Awaitable[str]]


async def examine(config: GatewayConfig, rpc_urls: Sequence[str], seller: Path | None = None) -> list[Check]:
    """Return what was found, in the order in which a call needs it. Nothing is spent and nothing is signed.

    `rpc_urls` are asked besides those of the configuration and the purchases. `seller` is the settings file of a seller
    to look at, too. Raises nothing: every problem is a failed check.
    """
    return await _examine_buyer(config, rpc_urls) + (await _examine_seller(seller) if seller else [])


async def _examine_buyer(config: GatewayConfig, rpc_urls: Sequence[str]) -> list[Check]:
    try:
        pool = Pool.open(config.open_home())
    except FareboxError as error:
        return [Check("store", False, error.message, error.advice)]
    try:
        purchases = pool.purchases()
        looks: list[tuple[str, Look]] = [("store", lambda: _store(pool))]
        disk = _disk_advice(pool)
        looks += _chain_looks(_endpoints(config, rpc_urls, purchases))
        others = list(rpc_urls) or config.rpc
        for purchase in purchases:
            looks += _purchase_looks(pool, purchase, others)
        checks = await _checked(looks) + disk
        checks += [check for purchase in purchases for check in _purchase_advice(purchase, others)]
    finally:
        pool.close()
    if not purchases:
        checks.append(Check("purchases", True, "none yet; `farebox buy` makes one"))
    return checks


async def _examine_seller(path: Path) -> list[Check]:
    from seller.advice import advice
    from seller.checkup import has_gas_key, look_at_gas_account, look_at_token, look_at_upstream
    from seller.config import read_config

    try:
        config = read_config(path)
    except FareboxError as error:
        return [Check("seller", False, error.message, error.advice)]
    money = f"money goes to {config.pay_to} on {config.chain.label}"
    looks = [*_chain_looks(config.rpc), ("seller: token", lambda: look_at_token(config))]
    if has_gas_key(config):
        looks.append(("seller: gas account", lambda: look_at_gas_account(config)))
    if config.upstream is not None:
        looks.append(("seller: upstream", lambda: look_at_upstream(config)))
    checks = [Check("seller", True, f"{path} can be read; {money}"), *await _checked(looks)]
    if config.settler.key_file is not None and not has_gas_key(config):
        found = f"there is no key in {config.settler.key_file}"
        elsewhere = "so `farebox settle` must run where it is, and this machine sells with `--no-settle`"
        checks.append(Check("seller: gas account", True, found, advice=elsewhere))
    return checks + [Check("seller: settings", True, "they work", advice=line) for line in advice(config)]


def _endpoints(config: GatewayConfig, rpc_urls: Sequence[str], purchases: Sequence[Purchase]) -> list[str]:
    named = [*rpc_urls, *config.rpc, *(url for purchase in purchases for url in purchase.rpc_urls)]
    return list(dict.fromkeys(named))


def _purchase_looks(pool: Pool, purchase: Purchase, rpc_urls: Sequence[str]) -> list[tuple[str, Look]]:
    name = f"purchase {purchase.name}"
    looks: list[tuple[str, Look]] = [
        (f"{name}: pool", lambda: _stock(pool, purchase)),
        (f"{name}: seller", lambda: _seller(purchase)),
    ]
    if endpoints := list(purchase.rpc_urls) or list(rpc_urls):
        looks.append((f"{name}: token and wallet", lambda: _wallet(pool, purchase, endpoints)))
    return looks


def _chain_looks(urls: Sequence[str]) -> list[tuple[str, Look]]:
    return [(f"chain {host_only(url)}", _look(_chain, url)) for url in urls]


def _purchase_advice(purchase: Purchase, rpc_urls: Sequence[str]) -> list[Check]:
    if len(purchase.rpc_urls or rpc_urls) != 1 or purchase.offer.network.chain_id == DEVNET_CHAIN_ID:
        return []
    advice = (
        "while it is down, behind, or lies, what became of a payment in doubt cannot be told; name a second one, of "
        f"another provider, beside it: `farebox refill {purchase.name} --count N --rpc … --rpc …`"
    )
    return [Check(f"purchase {purchase.name}: endpoints", True, "one RPC endpoint alone", advice=advice)]


def _disk_advice(pool: Pool) -> list[Check]:
    folder = pool.database.folder
    kind = None if folder is None else filesystem_of(folder)
    if not may_be_shared(kind):
        return []
    advice = "no second machine may use this folder: two could spend the same payment; for several, use PostgreSQL"
    return [Check("store: disk", True, f"{folder} is on {kind}", advice=advice)]


def _look(look: Callable[[str], Awaitable[str]], argument: str) -> Look:
    return lambda: look(argument)


async def _checked(looks: Sequence[tuple[str, Look]]) -> list[Check]:
    return list(await asyncio.gather(*(_check(name, look) for name, look in looks)))


async def _check(name: str, look: Look) -> Check:
    try:
        return Check(name, True, await look())
    except FareboxError as error:
        return Check(name, False, error.message, error.advice)


async def _store(pool: Pool) -> str:
    await pool.database.check_writable()
    return f"{pool.database.name} can be written"


async def _chain(url: str) -> str:
    async with Rpc([url]) as rpc:
        chain_id = await chain_id_of(rpc)
        head = await read_head(rpc)
    ahead_s = head.timestamp_s - int(time.time())
    if ahead_s > _CLOCK_BEHIND_S_MAX:
        raise _ClockSkew(
            f"chain {chain_id} is {ahead_s} s ahead of this machine's clock",
            remedy="set the clock (NTP), then try again",
        )
    # A devnet makes a block only when somebody sends a transaction.
    if -ahead_s > _HEAD_AGE_S_MAX and chain_id != DEVNET_CHAIN_ID:
        raise _ClockSkew(
            f"the newest block of chain {chain_id} is {-ahead_s} s old",
            remedy="use an endpoint that keeps up, or set this machine's clock",
        )
    return f"chain {chain_id}, block {head.number}, clock differs by {abs(ahead_s)} s at most"


async def _stock(pool: Pool, purchase: Purchase) -> str:
    counts = pool.counts(purchase.name)
    spendable = pool.spendable(purchase, int(time.time()))
    if not spendable and purchase.state == "active":
        raise _Empty(
            f"nothing left to spend ({counts.ready} ready, {counts.unknown} unknown)",
            remedy=f"run `farebox refill {purchase.name} --count N`",
        )
    return f"{spendable} to spend, {counts.unknown} unknown, {purchase.state}"


class _Empty(LocalError):
    """A purchase that should serve has nothing to serve from."""

    code = "authorizations_exhausted"


async def _seller(purchase: Purchase) -> str:
    probe = await asyncio.to_thread(probe_base, purchase.endpoint, purchase.model)
    offers = [option.terms.offer for option in probe.asked.options if option.terms is not None]
    if not any(_same_terms(purchase.offer, offer) for offer in offers):
        asked = ", ".join(format_amount(offer.amount_atomic, offer.asset) for offer in offers[:3]) or "nothing readable"
        raise TermsChanged(f"{purchase.endpoint} no longer offers the pinned terms; it asks {asked}")
    return f"{purchase.endpoint} asks {format_amount(purchase.offer.amount_atomic, purchase.offer.asset)}, as pinned"


async def _wallet(pool: Pool, purchase: Purchase, rpc_urls: Sequence[str]) -> str:
    offer = purchase.offer
    facts = await check_before_signing(offer, purchase.payer, rpc_urls)
    promised_atomic = pool.payer_exposure_atomic(offer.network.chain_id, offer.asset.address, purchase.payer)
    holds, promised = (format_amount(amount, offer.asset) for amount in (facts.balance_atomic, promised_atomic))
    if facts.balance_atomic < promised_atomic:
        raise InsufficientBalance(
            f"{address_text(purchase.payer)} holds {holds}; live authorizations promise {promised}",
            remedy="fund the wallet, or sellers will refuse",
        )
    return (
        f"{address_text(purchase.payer)} holds {holds} and has promised {promised}; the signing domain is the token's"
    )


def _same_terms(pinned: Offer, offer: Offer) -> bool:
    one, other = requirements(pinned), requirements(offer)
    return (one.scheme, one.network, one.amount, one.asset, one.pay_to) == (
        other.scheme,
        other.network,
        other.amount,
        other.asset,
        other.pay_to,
    )
