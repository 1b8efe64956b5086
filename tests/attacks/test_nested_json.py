"""Brackets alone end no process: not a seller that has settled, and so has loaded what raises the recursion limit."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx

from contracts.evm.devnet import Devnet
from tests.e2e.parts import MODEL, market

CHAT = "/v1/chat/completions"
DEPTH = 60_000
DEEP = b"[" * DEPTH + b"]" * DEPTH
MODEL_MEMBER = b'"model":"' + MODEL.encode() + b'"'
BODIES = {
    "in the model": b'{"model":' + DEEP + b"}",
    "beside the model": b"{" + MODEL_MEMBER + b',"messages":' + DEEP + b"}",
    "never closed": b"{" + MODEL_MEMBER + b',"messages":' + b'[{"x":' * DEPTH,
    "with a spelling that is looked at twice": b'{"\\u006dodel":"m",' + MODEL_MEMBER + b',"x":' + DEEP + b"}",
}


def test_nested_bodies_and_headers_are_refused_and_the_seller_lives(chain: Devnet, tmp_path: Path) -> None:
    with market(tmp_path, chain) as shop:
        shop.start_model_server()
        seller = shop.start_seller()
        shop.start_gateway()
        shop.buy(2)
        call = {"model": f"paid/{MODEL}", "messages": [{"role": "user", "content": "first"}]}
        assert httpx.post(shop.gateway_url + CHAT, json=call, timeout=60).status_code == 200
        shop.wait_settled(seller)

        for url in (shop.seller_url, shop.gateway_url):
            for name, body in BODIES.items():
                answer = httpx.post(url + CHAT, content=body, timeout=60)
                assert 400 <= answer.status_code < 500, f"{name} at {url}: {answer.status_code}"
        header = base64.b64encode(b'{"x402Version":2,"x":' + b"[" * 11_000).decode()
        refused = httpx.post(shop.seller_url + CHAT, json=call, headers={"PAYMENT-SIGNATURE": header}, timeout=60)
        assert refused.status_code == 400

        assert seller.process.poll() is None
        assert httpx.post(shop.gateway_url + CHAT, json=call, timeout=60).status_code == 200
