"""What the chain must say before anything is signed. Reads only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from buyer.asked import Option
from contracts.address import Address, address_text
from contracts.errors import ChainUnavailable, PayerHasCode, PriceAboveCap, RemoteError, TermsNotAllowed
from contracts.evm.agent_wallet import Policy, WalletRail, WalletState, day_of, read_wallet
from contracts.evm.permit2 import Permit2, Permit2Facts
from contracts.evm.rpc import Rpc
from contracts.evm.token import Head, Token, TokenFacts, chain_id_of, read_head
from contracts.money import format_amount
from contracts.networks import find_asset
from contracts.offers import Offer
from contracts.schemes.permit2 import domain_separator
from contracts.schemes.rails import proxy_of

__all__ = [
    "ChainFacts",
    "check_before_signing",
    "endpoints_by_chain",
    "read_allowances",
    "read_holdings",
    "with_chain_decimals",
]


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """The wallet's balance in the offer's token, in atomic units, and the head it was read at.

    `allowance_atomic` is how much of it Permit2 may move, where that is how the offer is paid; else None. `policy` is
    what an AgentWallet lets its agent pay.
    """

    balance_atomic: int
    head: Head
    allowance_atomic: int | None = None
    policy: Policy | None = None


async def endpoints_by_chain(rpc_urls: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return the RPC endpoints that answer, grouped by their chain id.

    A list that mixes chains would let a fail-over ask the wrong one. Raises `ChainUnavailable` when none answers.
    """
    answers = await asyncio.gather(*(_chain_id(url) for url in dict.fromkeys(rpc_urls)))
    grouped: dict[int, tuple[str, ...]] = {}
    for url, chain_id in zip(dict.fromkeys(rpc_urls), answers, strict=True):
        if chain_id is not None:
            grouped[chain_id] = (*grouped.get(chain_id, ()), url)
    if not rpc_urls:
        raise ChainUnavailable(
            "rpc: no endpoint of the chain is named", remedy="name one with --rpc URL, or in FAREBOX_RPC"
        )
    if not grouped:
        hosts = ", ".join(urlsplit(url).netloc.rpartition("@")[2] for url in rpc_urls)
        raise ChainUnavailable(
            f"no RPC endpoint answers: {hosts}", remedy="check it, or name another with --rpc URL or in FAREBOX_RPC"
        )
    return grouped


async def read_holdings(
    options: Sequence[Option], payer: Address, endpoints: Mapping[int, Sequence[str]]
) -> dict[tuple[int, Address], int]:
    """Return the wallet's atomic balance for each (chain, token) of the options on a chain we can ask."""
    wanted = _tokens([option.terms.offer for option in options if option.terms is not None], endpoints)
    holdings: dict[tuple[int, Address], int] = {}
    for chain_id, token in sorted(wanted):
        async with Rpc(endpoints[chain_id]) as rpc:
            if (await Token(rpc, token).facts()).has_code:
                holdings[chain_id, token] = await Token(rpc, token).balance_of(payer)
            else:
                holdings[chain_id, token] = 0
    return holdings


async def read_allowances(
    options: Sequence[Option], payer: Address, endpoints: Mapping[int, Sequence[str]]
) -> dict[tuple[int, Address], int]:
    """Return how much Permit2 may move of each (chain, token) that an option would have it move."""
    offers = [option.terms.offer for option in options if option.terms is not None]
    allowances: dict[tuple[int, Address], int] = {}
    for chain_id, token in sorted(_tokens([offer for offer in offers if proxy_of(offer) is not None], endpoints)):
        async with Rpc(endpoints[chain_id]) as rpc:
            if (await Token(rpc, token).facts()).has_code:
                allowances[chain_id, token] = await Permit2(rpc).allowance(token, payer)
    return allowances


def _tokens(offers: Sequence[Offer], endpoints: Mapping[int, Sequence[str]]) -> set[tuple[int, Address]]:
    known = [offer for offer in offers if offer.network.chain_id in endpoints]
    return {(offer.network.chain_id, offer.asset.address) for offer in known}


async def with_chain_decimals(option: Option, endpoints: Mapping[int, Sequence[str]]) -> Option:
    """Return the option with the token's own decimals, where Farebox's table does not know the token."""
    if option.terms is None:
        return option
    offer = option.terms.offer
    urls = endpoints.get(offer.network.chain_id)
    if urls is None or find_asset(offer.network, offer.asset.address) is not None:
        return option
    async with Rpc(urls) as rpc:
        facts = await Token(rpc, offer.asset.address).facts()
    if facts.decimals is None or facts.decimals == offer.asset.decimals or facts.decimals > 36:
        return option
    asset = replace(offer.asset, decimals=facts.decimals)
    return replace(option, terms=replace(option.terms, offer=replace(offer, asset=asset)))


async def check_before_signing(
    offer: Offer, payer: Address, rpc_urls: Sequence[str], *, agent: Address | None = None
) -> ChainFacts:
    """Return the facts for the balance check, once everything else about token and payer is in order.

    Raises `TermsNotAllowed` for another chain, an address without contract, other decimals or another EIP-712 domain
    than the offer's, and where Permit2 or the x402 proxy is missing that the offer needs; `PayerHasCode` for a wallet
    that is a contract, unless it is an AgentWallet that lets `agent` pay this; `ChainUnavailable`.
    """
    async with Rpc(rpc_urls) as rpc:
        token = Token(rpc, offer.asset.address)
        facts = await token.facts()
        _check_token(offer, facts)
        proxy, allowance_atomic = proxy_of(offer), None
        if proxy is None:
            _check_domain(offer, facts)
        else:
            permit2 = await Permit2(rpc).facts(proxy.address, offer.asset.address, payer)
            _check_permit2(offer, permit2)
            allowance_atomic = permit2.allowance_atomic
        payer_facts = await token.payer_facts(payer)
        head = await read_head(rpc)
        policy = None
        if agent is not None:
            state = await read_wallet(rpc, payer, offer.asset.address, day_of(head.timestamp_s))
            _check_wallet(offer, payer, state, agent)
            policy = state.policy
    if agent is None and payer_facts.has_code:
        raise PayerHasCode(
            f"the wallet {address_text(payer)} is a contract on {offer.network.label} (EIP-7702 delegation included); "
            "the token would refuse its key's signatures"
        )
    return ChainFacts(payer_facts.balance_atomic, head, allowance_atomic, policy)


def _check_token(offer: Offer, facts: TokenFacts) -> None:
    where = f"{offer.asset.address_text} on {offer.network.label}"
    if facts.chain_id != offer.network.chain_id:
        raise TermsNotAllowed(
            f"the RPC endpoint is of chain {facts.chain_id}, the offer of {offer.network.caip2}",
            remedy=f"name an endpoint of {offer.network.label} with --rpc",
        )
    if not facts.has_code:
        raise TermsNotAllowed(f"there is no token contract at {where}", remedy="the seller must correct its offer")
    if facts.decimals != offer.asset.decimals:
        raise TermsNotAllowed(f"the token {where} has {facts.decimals} decimals, not {offer.asset.decimals}")


def _check_domain(offer: Offer, facts: TokenFacts) -> None:
    where = f"{offer.asset.address_text} on {offer.network.label}"
    if facts.domain_separator != offer.domain.separator:
        raise TermsNotAllowed(
            f"the token {where} signs in another EIP-712 domain than name {offer.asset.name[:40]!r}, "
            f"version {offer.asset.version[:20]!r}; signatures would be worthless",
            remedy="the seller must correct `extra.name` and `extra.version`",
        )


def _check_permit2(offer: Offer, facts: Permit2Facts) -> None:
    """Where Permit2 or the proxy is not what the signature is made for, nobody could ever settle it."""
    if facts.domain_separator is None:
        raise TermsNotAllowed(f"there is no Permit2 on {offer.network.label}", remedy="choose another offer")
    if facts.domain_separator != domain_separator(offer.network.chain_id):
        raise TermsNotAllowed(f"Permit2 on {offer.network.label} signs in another EIP-712 domain than the known one")
    if not facts.proxy_has_code:
        raise TermsNotAllowed(f"the x402 proxy for {offer.scheme} is not deployed on {offer.network.label}")


def _check_wallet(offer: Offer, wallet: Address, state: WalletState, agent: Address) -> None:
    name, policy = f"the wallet {address_text(wallet)}", state.policy
    if state.is_frozen:
        raise TermsNotAllowed(f"{name} is frozen", remedy="its owner must name an agent again")
    if state.agent != agent:
        raise TermsNotAllowed(
            f"{name} is spent by {address_text(state.agent)}, the signer holds {address_text(agent)}",
            remedy="name the key of the wallet's agent with --signer",
        )
    wanted = WalletRail.EIP3009 if proxy_of(offer) is None else WalletRail.PERMIT2
    if policy.rail is not wanted:
        raise TermsNotAllowed(
            f"{name} pays {offer.asset.symbol} by {policy.rail.name.lower()}, this offer is paid by "
            f"{wanted.name.lower()}",
            remedy="its owner chooses one with `farebox wallet policy`",
        )
    if offer.amount_atomic > policy.unit_atomic:
        unit, price = (format_amount(amount, offer.asset) for amount in (policy.unit_atomic, offer.amount_atomic))
        raise PriceAboveCap(
            f"one payment of {name} is at most {unit}, this call costs {price}",
            remedy="its owner raises `--unit` with `farebox wallet policy`, from tomorrow on; or choose another seller",
        )


async def _chain_id(url: str) -> int | None:
    try:
        async with Rpc([url]) as rpc:
            return await chain_id_of(rpc)
    except (ChainUnavailable, RemoteError):
        return None
