"""One payment written in every way a parser may take it: one key, one service."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import pybase64
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from contracts.address import parse_address
from contracts.errors import FareboxError, MalformedMessage
from contracts.evm.devnet import Devnet
from contracts.headers import PAYMENT_SIGNATURE
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer
from seller.verify import payment_in, verify
from tests.attacks.parts import attacked
from tests.paying import authorize, encode, payment_document, sign_payment_v1
from tests.seller.shop import BODY, BUYER, CHAT

KEY = bytes([7]) * 32
OFFER = Offer(
    "exact",
    Network(84532),
    Asset(parse_address("0x" + "11" * 20), "USDC", "2", 6, "USDC"),
    1000,
    parse_address("0x" + "22" * 20),
    300,
)
# Good for longer than any run of the suite takes to come here.
SIGNED = authorize(KEY, OFFER, nonce=bytes(range(0xA0, 0xC0)), valid_before_s=2**33)
HEX_MEMBERS = ("from", "to", "nonce")
NUMBERS = ("value", "validAfter", "validBefore")


def recase(text: str, rng: random.Random) -> str:
    """Return hex text with its letters in random case, the 0x kept."""
    return text[:2] + "".join(rng.choice((digit.lower(), digit.upper())) for digit in text[2:])


def respell(document: dict[str, Any], rng: random.Random) -> str:
    """Return another header for the same payment: each place is respelled or left, at random."""
    document = json.loads(json.dumps(document))
    authorization = document["payload"]["authorization"]
    for name in HEX_MEMBERS:
        kind = rng.randrange(8)
        if kind < 5:
            authorization[name] = recase(authorization[name], rng)
        elif kind == 5:
            authorization[name] = rng.choice((authorization[name][2:], "0X" + authorization[name][2:]))
    for name in NUMBERS:
        if rng.random() < 0.8:
            continue
        text = authorization[name]
        wide = "".join(chr(0xFF10 + int(digit)) for digit in text)
        spellings = (text, "0" + text, "+" + text, " " + text, text + ".0", f"{text[:1]}_{text[1:]}", wide)
        authorization[name] = rng.choice((*spellings, int(text), hex(int(text))))
    signature = bytes.fromhex(document["payload"]["signature"][2:])
    v = rng.choice((signature[64], signature[64] - 27))
    document["payload"]["signature"] = recase("0x" + (signature[:64] + bytes((v,))).hex(), rng)
    if rng.random() < 0.5:
        document["payload"]["unknown"] = {"nonce": "0x00"}
        authorization["extra"] = rng.randrange(10)
    if rng.random() < 0.3:
        document["resource"] = {"url": "https://elsewhere.example/"}
    accepted = document["accepted"]
    accepted["payTo"] = recase(accepted["payTo"], rng)
    accepted["asset"] = recase(accepted["asset"], rng)
    members = list(document.items())
    rng.shuffle(members)
    text = json.dumps(dict(members), indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.5:
        text = text.replace('"nonce"', '"\\u006eonce"')
    return pybase64.b64encode(text.encode()).decode()


@hypothesis_settings(max_examples=500, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_every_accepted_spelling_of_a_payment_is_the_same_payment(seed: int) -> None:
    """S2, I20: by values, never by text."""
    header = respell(payment_document(*SIGNED, OFFER), random.Random(seed))
    try:
        payment = payment_in([(PAYMENT_SIGNATURE.lower().encode(), header.encode())])
        assert payment is not None
        verified = verify(payment, [OFFER], int(time.time()), 6)
    except MalformedMessage:
        return
    assert verified.authorization == SIGNED[0]


def test_the_generator_makes_accepted_and_refused_spellings() -> None:
    """The property above is worth something only when many spellings are taken."""
    accepted = set()
    for seed in range(3000):
        header = respell(payment_document(*SIGNED, OFFER), random.Random(seed))
        try:
            payment = payment_in([(PAYMENT_SIGNATURE.lower().encode(), header.encode())])
            assert payment is not None
            verify(payment, [OFFER], int(time.time()), 6)
            accepted.add(header)
        except FareboxError:
            pass
    assert 300 < len(accepted) < 2500


def test_version_one_and_version_two_of_a_payment_are_the_same_payment() -> None:
    """S2: the same authorization in both headers is one payment; its key does not know the version."""
    nonce = bytes(31) + b"\x01"
    second = encode(payment_document(*authorize(KEY, OFFER, nonce=nonce, valid_before_s=2**33), OFFER))
    first = sign_payment_v1(KEY, OFFER, nonce=nonce, valid_before_s=2**33)
    keys = []
    for name, header in ((b"payment-signature", second), (b"x-payment", first)):
        payment = payment_in([(name, header.encode())])
        assert payment is not None
        keys.append(verify(payment, [OFFER], int(time.time()), 6).authorization)
    assert keys[0] == keys[1]


@pytest.mark.parametrize("settle", ["auto", "before", "async"])
async def test_64_spellings_at_once_are_served_once(chain: Devnet, tmp_path: Path, settle: str) -> None:
    """S2, I1, I5."""
    async with attacked(chain, tmp_path, settle=settle) as (shop, till):
        offer = shop.seller.book.routes[0].quote_for(None).offer
        document = payment_document(*authorize(chain.accounts[BUYER].key, offer), offer)
        rng = random.Random(402)
        spellings = [respell(document, rng) for _ in range(400)]
        good = [header for header in spellings if accepted_by(header, offer)][:32]
        assert len(good) > 8
        bad = [header for header in spellings if header not in good][:32]
        await asyncio.gather(*(shop.buy(header) for header in [*good, *bad]))
        await asyncio.gather(*(shop.buy(header) for header in [*good, *bad]))
        assert shop.app.runs == 1
        assert till.statuses[400] == 2 * len(bad)


def accepted_by(header: str, offer: Offer) -> bool:
    try:
        payment = payment_in([(b"payment-signature", header.encode())])
        assert payment is not None
        verify(payment, [offer], int(time.time()), 60)
    except FareboxError:
        return False
    return True


async def test_no_base64_but_the_plain_one_is_read(chain: Devnet, tmp_path: Path) -> None:
    """S2, S16: alphabets, missing padding, line ends and trailing bytes are 400, before and after the payment."""
    async with attacked(chain, tmp_path) as (shop, till):
        header = shop.payment()
        odd = [
            header.rstrip("=") + "!",
            header + "=",
            header + header,
            header[:100] + " " + header[100:],
            header[:100] + "\t" + header[100:],
            header.replace("A", "-", 1).replace("Z", "_", 1),
            "base64," + header,
            f'"{header}"',
        ]
        for spelled in odd:
            answer = await shop.client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": spelled})
            assert answer.status_code == 400, spelled[:20]
        assert shop.app.runs == 0
        assert (await shop.buy(header)).status_code == 200
        assert till.statuses[400] == len(odd)
