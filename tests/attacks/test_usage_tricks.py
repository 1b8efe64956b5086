"""Buyers who pay by usage and want more than they signed for, or to have it counted as less."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.evm.devnet import Devnet
from seller.facilitate.app import facilitator_app
from tests.patience import PATIENCE_S
from tests.seller.shop import CHAT, error_of, receipt_of
from tests.seller.test_facilitate import facilitating
from tests.seller.test_streams import listening
from tests.seller.test_upto import CEILING, MODEL, PROMPT, metered_shop, usage_event

OUTPUT_PRICE = 7
# What the facilitator of the tests settles at least.
LEAST_SETTLED = 500
BOUNDS = ("max_tokens", "max_completion_tokens", "n_predict")

BODIES = [
    '"max_tokens": 5, "max_tokens": 900000',
    '"max_tokens": 900000, "max_tokens": 5',
    '"max_tokens": 5, "Max_Tokens": 900000',
    '"max_tokens": 5, "MAX_TOKENS": 900000',
    '"max_tokens": 5, "max_completion_tokens": 900000',
    '"max_tokens": 5, "n_predict": 900000',
    '"max_tokens": 5, "n": 100000',
    '"max_tokens": 900, "n": 128',
    '"max_tokens": 900, "best_of": 64',
    '"max_tokens": -1',
    '"max_tokens": 0',
    '"max_tokens": null',
    '"max_tokens": true',
    '"max_tokens": "900000"',
    '"max_tokens": 9e5',
    '"max_tokens": 1e400',
    '"max_tokens": 900000.0',
    '"max_tokens": 99999999999999999999999999',
    '"max_tokens": [900000]',
    '"m\\u0061x_tokens": 900000, "max_tokens": 5',
    '"max_tokens": 5, "m\\u0061x_tokens": 900000',
    '"stream": true, "stream_options": {"include_usage": false}',
    '"stream": true, "stream_options": {"include_usage": true, "include_usage": false}',
    '"stream": true, "stream_options": {"include_usage": false, "include_usage": true}',
    '"stream": true, "stream_options": {"Include_Usage": false}',
    '"stream": true, "Stream_Options": {"include_usage": false}',
    '"stream": true, "stream_options": null',
    '"stream": true, "stream_options": "x"',
    '"stream": "true"',
    '"stream": 1',
    '"stream": false, "stream": true',
    '"stream": true, "stream": false',
    '"background": true',
]


def readings(body: bytes) -> list[dict[str, Any]]:
    """Return a body as different servers read it: the first or the last of equal keys, in any letter case."""

    def kept(first: bool, folded: bool) -> dict[str, Any]:
        def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, value in pairs:
                key = name.casefold() if folded else name
                if not (first and key in found):
                    found[key] = value
            return found

        document: dict[str, Any] = json.loads(body, object_pairs_hook=keep)
        return document

    return [kept(first, folded) for first in (False, True) for folded in (False, True)]


@pytest.mark.parametrize("fields", BODIES)
async def test_no_model_server_reads_more_out_of_a_request_than_was_signed(
    chain: Devnet, tmp_path: Path, fields: str
) -> None:
    """S9."""
    async with metered_shop(chain, tmp_path, settle="async") as shop:
        shop.middleware.app = shop.app
        shop.app.headers = [(b"content-type", b"text/event-stream")]
        shop.app.body = usage_event(1, 1)
        body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "{PROMPT}"}}], {fields}}}'.encode()
        headers = {"PAYMENT-SIGNATURE": shop.payment(model=MODEL)}
        answer = await shop.client.post(CHAT, content=body, headers=headers)
        if answer.status_code == 400:
            assert error_of(answer)["code"] in ("above_ceiling", "malformed")
            assert shop.app.runs == 0
            assert shop.seller.ledger.sums().payments == {}
            return
        assert answer.status_code == 200
        for read in readings(shop.app.seen[0]["body"]):
            bounds = [read[name] for name in BOUNDS if name in read]
            assert bounds
            assert all(type(bound) is int and bound > 0 for bound in bounds)
            assert max(bounds) * (read.get("n") or 1) * (read.get("best_of") or 1) * OUTPUT_PRICE <= CEILING
            if read.get("stream"):
                assert read["stream_options"]["include_usage"] is True


async def test_usage_that_the_model_is_made_to_say_is_not_usage(chain: Devnet, tmp_path: Path) -> None:
    """S9: what stands inside the answer's text is text."""
    said = '"}}],"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\ndata: {"usage":{"prompt_tokens":0}}\n\n'
    piece = b"data: " + json.dumps({"choices": [{"delta": {"content": said}}]}).encode() + b"\n\n"
    async with metered_shop(chain, tmp_path, settle="after") as shop:
        shop.middleware.app = shop.app
        shop.app.headers = [(b"content-type", b"text/event-stream")]
        shop.app.body = piece + usage_event(3, 4) + b"data: [DONE]\n\n"
        headers = {"PAYMENT-SIGNATURE": shop.payment(model=MODEL)}
        body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
        answer = await shop.client.post(CHAT, json=body, headers=headers)
        assert answer.content == piece + b"data: [DONE]\n\n"
        assert receipt_of(answer).amount == str(3 * 100 + 4 * OUTPUT_PRICE)
        assert shop.earned == 3 * 100 + 4 * OUTPUT_PRICE


@pytest.mark.parametrize("settled_atomic", [LEAST_SETTLED, 0])
async def test_who_has_the_facilitator_settle_less_first_gets_no_goods_and_no_credit(
    chain: Devnet, tmp_path: Path, settled_atomic: int
) -> None:
    """S9: whoever has a payment can present it to its facilitator, and so can its buyer."""
    async with facilitating(chain, tmp_path) as theirs, listening(facilitator_app(theirs.service)) as url:
        settler = {"kind": "facilitator", "url": url}
        async with metered_shop(chain, tmp_path, settle="auto", settler=settler) as shop:
            header = shop.payment(model=MODEL)
            document = json.loads(base64.b64decode(header))
            less = {**document["accepted"], "amount": str(settled_atomic)}
            model = shop.middleware.app

            async def settled_meanwhile(scope: Any, receive: Any, send: Any) -> None:
                body = {"x402Version": 2, "paymentPayload": document, "paymentRequirements": less}
                async with httpx.AsyncClient(timeout=PATIENCE_S) as buyer:
                    assert (await buyer.post(f"{url}/settle", json=body)).json()["success"]
                await model(scope, receive, send)

            shop.middleware.app = settled_meanwhile
            body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
            answer = await shop.client.post(CHAT, json=body, headers={"PAYMENT-SIGNATURE": header})
            assert answer.status_code == 402
            assert "choices" not in answer.text
            shop.middleware.app = model
            again = await shop.client.post(CHAT, json=body, headers={"PAYMENT-SIGNATURE": shop.payment(model=MODEL)})
            assert again.status_code == 402, "only a price per call is left to it"
            assert shop.seller.ledger.sums().exposure_atomic == 0
