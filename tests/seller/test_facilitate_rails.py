"""`farebox facilitator` on the other rails: Permit2 for `exact` and `upto`, and contract payers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from contracts.address import parse_address
from contracts.evm.devnet import Devnet
from contracts.networks import Network
from contracts.offers import PERMIT2, Offer
from tests.paying import authorize, payment_document
from tests.seller.permit2_shop import dollar, sponsored
from tests.seller.shop import BUYER, GAS, OTHER, PRICE_ATOMIC, SELLER
from tests.seller.test_facilitate import Counter, facilitating


@pytest.fixture
async def counter(chain: Devnet, tmp_path: Path) -> AsyncIterator[Counter]:
    buyer = chain.accounts[BUYER].address
    chain.mint(buyer, 100 * PRICE_ATOMIC)
    chain.approve_permit2(buyer, 100 * PRICE_ATOMIC)
    async with facilitating(chain, tmp_path, asset=dollar(chain)) as opened:
        yield opened


def offer(counter: Counter, scheme: str = "exact", facilitator: int = GAS) -> Offer:
    chain = counter.chain
    extra = {"facilitatorAddress": chain.accounts[facilitator].address} if scheme == "upto" else {}
    payee = parse_address(chain.accounts[SELLER].address)
    return Offer(scheme, Network(chain.chain_id), counter.config.token, PRICE_ATOMIC, payee, 300, PERMIT2, extra)


def settling(body: dict[str, Any], amount: int) -> dict[str, Any]:
    """Return the /settle request for what an `upto` payment came to."""
    return body | {"paymentRequirements": body["paymentRequirements"] | {"amount": str(amount)}}


def earned(counter: Counter) -> int:
    return counter.chain.balance_of(counter.chain.accounts[SELLER].address)


async def test_it_names_what_it_serves(counter: Counter) -> None:
    told = (await counter.client.get("/supported")).json()
    account = counter.chain.accounts[GAS].address
    kinds = {kind["scheme"]: kind.get("extra") for kind in told["kinds"]}
    assert kinds == {"exact": None, "upto": {"facilitatorAddress": account}}
    assert told["signers"] == {"eip155:*": [account]}
    assert told["extensions"] == ["eip2612GasSponsoring"]


async def test_a_permit_is_verified_settled_once_and_told_again(counter: Counter) -> None:
    body = counter.request(offer=offer(counter))
    assert (await counter.ask("verify", body))["isValid"]
    first, again = [await counter.ask("settle", body) for _ in range(2)]
    assert first["success"], first
    assert first == again
    assert earned(counter) == PRICE_ATOMIC


async def test_a_metered_payment_moves_what_it_came_to_and_no_more(counter: Counter) -> None:
    body = counter.request(offer=offer(counter, "upto"))
    assert (await counter.ask("verify", body))["isValid"]
    done = await counter.ask("settle", settling(body, 700))
    assert (done["success"], done["amount"]) == (True, "700"), done
    assert earned(counter) == 700
    changed = await counter.ask("settle", settling(body, 800))
    assert not changed["success"]
    assert earned(counter) == 700


async def test_nothing_due_is_settled_without_a_transaction(counter: Counter) -> None:
    body = counter.request(offer=offer(counter, "upto"))
    done = await counter.ask("settle", settling(body, 0))
    assert (done["success"], done.get("transaction", ""), done["amount"]) == (True, "", "0")
    assert earned(counter) == 0
    assert not (await counter.ask("settle", settling(body, 700)))["success"]


async def test_more_than_was_signed_is_refused(counter: Counter) -> None:
    body = counter.request(offer=offer(counter, "upto"))
    done = await counter.ask("settle", settling(body, PRICE_ATOMIC + 1))
    assert done["errorReason"] == "invalid_upto_evm_payload_settlement_exceeds_amount"
    assert earned(counter) == 0


async def test_a_cap_for_another_facilitator_is_refused_by_name(counter: Counter) -> None:
    body = counter.request(offer=offer(counter, "upto", OTHER))
    for what, reason in (("verify", "invalidReason"), ("settle", "errorReason")):
        assert (await counter.ask(what, body))[reason] == "upto_facilitator_mismatch"


@pytest.mark.parametrize("scheme", ["exact", "upto"])
async def test_a_missing_approval_is_named_and_may_come_with_the_payment(counter: Counter, scheme: str) -> None:
    chain, terms = counter.chain, offer(counter, scheme)
    chain.approve_permit2(chain.accounts[BUYER].address, 0)
    body = counter.request(offer=terms)
    assert (await counter.ask("verify", body))["invalidReason"] == "permit2_allowance_required"
    authorization, signature = authorize(chain.accounts[BUYER].key, terms)
    document = payment_document(authorization, signature, terms)
    document["extensions"] = sponsored(chain, terms, authorization)
    body |= {"paymentPayload": document}
    assert (await counter.ask("verify", body))["isValid"]
    done = await counter.ask("settle", body)
    assert done["success"], done
    assert earned(counter) == PRICE_ATOMIC
