"""x402 extensions at a seller: payment-identifier, bazaar metadata, and echoes of what the 402 declared."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from x402.extensions.bazaar import validate_discovery_extension
from x402.extensions.bazaar.types import parse_discovery_extension
from x402.extensions.payment_identifier import append_payment_identifier_to_extensions

from contracts.evm.devnet import Devnet
from contracts.headers import decode_payment_required
from tests.paying import authorize, encode, payment_document
from tests.seller.shop import BODY, BUYER, Shop, error_of, is_replayed, open_shop

NAME = "payment-identifier"
ID = "pay_0123456789abcdef"


@pytest.fixture
async def shop(chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(chain, tmp_path) as opened:
        yield opened


async def declared(shop: Shop, path: str = "/v1/chat/completions") -> dict[str, Any]:
    answer = await shop.client.post(path, content=BODY)
    return copy.deepcopy(decode_payment_required(answer.headers["PAYMENT-REQUIRED"]).extensions or {})


def new_payment(shop: Shop, extensions: dict[str, Any] | None) -> str:
    offer = shop.seller.book.routes[0].quote_for(None).offer
    document = payment_document(*authorize(shop.chain.accounts[BUYER].key, offer), offer)
    return encode(document | ({} if extensions is None else {"extensions": extensions}))


async def named(shop: Shop, name: object = ID) -> str:
    """Return a new payment that the official SDK's helper would have named so."""
    extensions = await declared(shop)
    append_payment_identifier_to_extensions(extensions, ID)
    extensions[NAME]["info"]["id"] = name
    return new_payment(shop, extensions)


async def test_the_same_named_payment_gets_its_kept_answer_again(shop: Shop) -> None:
    header = await named(shop)
    first, again = await shop.buy(header), await shop.buy(header)
    assert (first.status_code, again.status_code) == (200, 200)
    assert is_replayed(again)
    assert shop.app.runs == 1


async def test_another_payment_of_the_same_name_is_409_and_costs_nothing(shop: Shop) -> None:
    assert (await shop.buy(await named(shop))).status_code == 200
    answer = await shop.buy(await named(shop))
    assert (answer.status_code, error_of(answer)["code"]) == (409, "payment_id_reused")
    assert shop.app.runs == 1
    assert (await shop.buy(await named(shop, "pay_fedcba9876543210"))).status_code == 200


async def test_of_many_payments_of_one_name_at_once_one_is_taken(shop: Shop) -> None:
    headers = [await named(shop) for _ in range(8)]
    answers = await asyncio.gather(*(shop.buy(header) for header in headers))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    assert shop.app.runs == 1


@pytest.mark.parametrize("name", ["short", "x" * 129, "with space_0123456789", "ümläut_0123456789abc", 17, ""])
async def test_a_name_that_is_none_is_400(shop: Shop, name: object) -> None:
    answer = await shop.buy(await named(shop, name))
    assert (answer.status_code, error_of(answer)["code"]) == (400, "malformed")
    assert shop.app.runs == 0


async def test_a_client_without_extensions_and_one_with_foreign_ones_pass(shop: Shop) -> None:
    assert (await shop.buy(new_payment(shop, None))).status_code == 200
    assert (await shop.buy(new_payment(shop, {"foreign": {"info": {"a": 1}}, "odd": 7}))).status_code == 200


@pytest.mark.parametrize(
    "spoil",
    [
        lambda echo: echo[NAME].pop("info"),
        lambda echo: echo[NAME]["info"].update(required=True),
        lambda echo: echo[NAME]["info"].pop("required"),
        lambda echo: echo.update({NAME: "no object"}),
        lambda echo: echo["bazaar"]["info"]["input"].update(method="GET"),
        lambda echo: echo["bazaar"]["info"]["input"]["body"]["messages"].append({}),
    ],
)
async def test_an_echo_that_lacks_or_changes_a_member_is_refused_by_name(shop: Shop, spoil: Any) -> None:
    extensions = await declared(shop)
    spoil(extensions)
    answer = await shop.buy(new_payment(shop, extensions))
    assert (answer.status_code, error_of(answer)["code"]) == (402, "extension_echo_mismatch")
    assert decode_payment_required(answer.headers["PAYMENT-REQUIRED"]).error == "extension_echo_mismatch"
    assert shop.app.runs == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_the_402_tells_catalogues_what_to_send(shop: Shop, path: str) -> None:
    extension = (await declared(shop, path))["bazaar"]
    read = parse_discovery_extension(extension).model_dump(by_alias=True)
    assert read["info"]["input"]["method"] == "POST"
    assert "messages" in read["info"]["input"]["body"]
    assert validate_discovery_extension(extension).valid


async def test_no_token_permit_is_offered_where_none_could_be_used(shop: Shop) -> None:
    assert set(await declared(shop)) == {NAME, "bazaar"}
