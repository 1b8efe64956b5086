"""The commands where money moves through Permit2: approve, buy, revoke, pay by usage, pay without an approval."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from buyer.approval import print_approval
from contracts.address import address_text, parse_address
from contracts.money import Asset
from contracts.networks import PERMIT2 as PERMIT2_CONTRACT
from contracts.offers import PERMIT2
from contracts.schemes import exact_permit2
from contracts.schemes.gas_sponsoring import GAS_SPONSORING, SPONSORING_DECLARED, token_permit
from tests.buyer.parts import call_token
from tests.buyer.town import OK, OVER_CAP, USAGE, Town

CENT = 10**16


def over_permit2(town: Town) -> list[str]:
    """Let the seller want a cent of the token that has no EIP-3009, through Permit2."""
    asset = Asset(parse_address(town.chain.plain_token), "Plain Dollar", "1", 18, "PLAIN")
    town.shop.offers = [replace(town.shop.offers[0], asset=asset, amount_atomic=CENT, method=PERMIT2)]
    town.chain.mint(town.chain.accounts[0].address, 10 * CENT, town.chain.plain_token)
    return ["--max-price", "0.01", "--yes"]


def test_a_pool_over_permit2_is_approved_bought_and_revoked(town: Town, capsys: pytest.CaptureFixture[str]) -> None:
    limits = over_permit2(town)
    code, document, _ = town.buy(*limits)
    assert (code, document["error"]["code"]) == (OVER_CAP, "insufficient_allowance")
    command = document["error"]["remedy"].partition("`farebox ")[2].partition("`")[0].split()
    assert command == ["approve", "--token", town.chain.plain_token, "--amount", "0.05"]
    code, document, _ = town.run(*command, *town.wallet, "--dry-run")
    assert (code, document["dry_run"], document["transaction"], document["amount_atomic"]) == (
        OK,
        True,
        None,
        "5" + "0" * 16,
    )
    assert int(document["gas_cost_max_wei"]) > 0
    print_approval(document)
    assert "gas: at most 0.000" in capsys.readouterr().out
    assert town.buy(*limits)[0] == OVER_CAP, "a dry run approves nothing"
    assert town.run(*command, *town.wallet, "--yes")[0] == OK
    code, document, _ = town.buy(*limits)
    assert (code, document["ready"], document["method"]) == (OK, 5, "permit2")
    code, document, _ = town.run("approve", "p", "--amount", "0", *town.wallet, "--dry-run")
    assert (document["before_atomic"], document["promised_atomic"]) == (str(5 * CENT), str(5 * CENT))
    code, document, _ = town.run("remove", "p", "--cancel-onchain", *town.wallet, "--yes")
    assert (code, document["cancelled"], document["live"]) == (OK, 5, 0)


def test_what_approve_cannot_do_is_said(town: Town) -> None:
    for words, code in (
        ([], USAGE),
        (["p", "--token", town.chain.token], USAGE),
        (["p"], USAGE),
        (["--token", town.chain.accounts[5].address], USAGE),
    ):
        assert town.run("approve", *words, "--amount", "1", *town.wallet, "--yes")[0] == code
    assert town.run("approve", "--token", town.chain.token, "--amount", "1,0", *town.wallet, "--yes")[0] == USAGE


def test_nothing_is_approved_on_a_chain_without_permit2(town: Town) -> None:
    town.chain.rpc("anvil_setCode", address_text(PERMIT2_CONTRACT), "0x")
    code, document, _ = town.run("approve", "--token", town.chain.token, "--amount", "1", *town.wallet, "--yes")
    assert (code, document["error"]["code"]) == (OVER_CAP, "terms_not_allowed")
    assert "no Permit2" in document["error"]["message"]


def test_a_payment_by_usage_is_made_for_who_says_so_and_shows_its_charge(town: Town) -> None:
    limits = over_permit2(town)
    facilitator = {"facilitatorAddress": town.chain.accounts[9].address}
    town.shop.offers = [replace(town.shop.offers[0], scheme="upto", extra=facilitator)]
    town.shop.charge_atomic = CENT // 10
    assert town.run("approve", "--token", town.chain.plain_token, "--amount", "1", *town.wallet, "--yes")[0] == OK
    code, document, _ = town.buy(*limits)
    assert (code, document["error"]["code"]) == (OVER_CAP, "terms_not_allowed")
    pay = ["pay", f"{town.url}/report", "--max-price", "0.01", *town.wallet, "--scheme", "upto"]
    assert town.run(*pay)[0] == OK
    assert town.chain.balance_of(town.chain.accounts[1].address, town.chain.plain_token) == CENT // 10
    (receipt,) = town.run("receipts")[1]["receipts"]
    assert (receipt["price_atomic"], receipt["charged_atomic"], receipt["charge_proven"]) == (
        str(CENT),
        str(CENT // 10),
        False,
    )
    assert town.run("process", "--all", *town.wallet)[0] == OK
    (receipt,) = town.run("receipts")[1]["receipts"]
    assert (receipt["charged_atomic"], receipt["charge_proven"], receipt["charged"]) == (
        str(CENT // 10),
        True,
        "0.001 PlainDollar",
    )


def test_one_payment_needs_no_approval_where_the_seller_submits_a_permit(town: Town) -> None:
    over_permit2(town)
    town.shop.chain, town.shop.extensions = None, {GAS_SPONSORING: SPONSORING_DECLARED}
    pay = ["pay", f"{town.url}/report", "--max-price", "0.01", *town.wallet]
    assert town.run(*pay)[0] == OK
    (payment,), offer = town.shop.payments, town.shop.offers[0]
    authorization, signature = exact_permit2.decode_payload(payment.payload, offer)
    permit = token_permit(payment.extensions, authorization, offer, int(time.time()), 6)
    assert permit is not None
    call = exact_permit2.settle_call(authorization, signature, offer.asset.address, CENT, permit=permit)
    call_token(town.chain, address_text(call.to), call.data)
    assert town.chain.balance_of(town.chain.accounts[1].address, town.chain.plain_token) == CENT
    # A second permit would take away what the first payment, had it not been settled, counts on.
    assert town.run("approve", "--token", town.chain.plain_token, "--amount", "0.01", *town.wallet, "--yes")[0] == OK
    code, document, _ = town.buy("--max-price", "0.01", "--yes", count=1)
    assert code == OK
    code, document, _ = town.run(*pay)
    assert (code, document["error"]["code"]) == (OVER_CAP, "insufficient_allowance")
    # The same where what is approved is less than one payment; what is said to do, does it.
    assert town.run("approve", "p", "--amount", "0", *town.wallet, "--yes")[0] == OK
    code, document, _ = town.run(*pay)
    assert (code, document["error"]["code"]) == (OVER_CAP, "insufficient_allowance")
    command = document["error"]["remedy"].partition("`farebox ")[2].partition("`")[0].split()
    assert town.run(*command, *town.wallet, "--yes")[0] == OK
    assert town.run(*pay)[0] == OK
