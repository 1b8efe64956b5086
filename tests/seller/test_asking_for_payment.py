"""What an unpaid or malformed request is told. No chain is needed for any of it, and none is asked."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from contracts.headers import decode_payment_required
from contracts.offers import offer_from_wire
from contracts.wire import PaymentRequiredV1, decode_json
from seller import PaymentMiddleware, SellerConfig
from seller.config import AssetSettings
from seller.limits import REQUEST_BODY_BYTES_MAX
from tests.paying import authorize, encode, payment_document, sign_payment, sign_payment_v1
from tests.seller.shop import BODY, CHAT, Application, error_of

KEY = bytes([1]) * 32
PAY_TO = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
FIELD = b'Content-Disposition: form-data; name="model"\r\n\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF\r\n'
ROUTES = [
    {"match": f"POST {CHAT}", "price": "0.001", "models": {"big-model": "0.01"}},
    {"match": "POST /v1/messages", "price": "0.001"},
    {"match": "POST /v1/embeddings", "models": {"small": "0.0001"}},
    {"match": "POST /v1/audio/transcriptions", "models": {"ears": "0.002"}},
    {"match": "GET /paid", "price": "0.01"},
    {"match": "GET /v1/models", "free": True},
]


class Window:
    """A shop whose chain is out of reach: whatever it answers, it answers by itself."""

    def __init__(self, folder: Path, network: str) -> None:
        asset = None
        if network.endswith(":31337"):
            asset = AssetSettings(address="0x" + "11" * 20, name="USDC", version="2", decimals=6, symbol="USDC")
        self.app = Application()
        self.middleware = PaymentMiddleware(
            self.app,
            SellerConfig.model_validate(
                {
                    "network": network,
                    "rpc": ["http://127.0.0.1:9"],
                    "asset": asset,
                    "pay_to": PAY_TO,
                    "settler": {"kind": "chain", "key_file": "nowhere.key"},
                    "store": f"sqlite:///{folder}/seller.db",
                    "public_url": "https://shop.example",
                    "routes": ROUTES,
                }
            ),
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.middleware), base_url="http://forged")
        self.offer = self.middleware.seller.book.routes[0].quote_for(None).offer

    async def close(self) -> None:
        await self.client.aclose()
        await self.middleware.close()


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Window]:
    window = Window(tmp_path, "eip155:31337")
    yield window
    await window.close()


@pytest.fixture
async def sepolia(tmp_path: Path) -> AsyncIterator[Window]:
    window = Window(tmp_path, "base-sepolia")
    yield window
    await window.close()


async def test_an_unpaid_call_is_offered_the_price_in_header_and_body(local: Window) -> None:
    answer = await local.client.post(CHAT, content=BODY)
    assert answer.status_code == 402
    assert answer.headers["cache-control"] == "no-store"
    required = decode_payment_required(answer.headers["PAYMENT-REQUIRED"])
    assert offer_from_wire(required.accepts[0]).amount_atomic == 1000
    assert required.resource is not None
    assert required.resource.url == f"https://shop.example{CHAT}"
    document = answer.json()
    assert document["x402Version"] == 2
    assert document["accepts"][0]["amount"] == "1000"
    assert document["error"]["type"] == document["error"]["code"] == "payment_required"
    assert document["error"]["param"] is None
    assert "0.001 USDC on local devnet" in document["error"]["message"]
    assert "farebox buy" in document["error"]["message"]
    assert local.app.runs == 0


async def test_where_version_one_has_a_name_for_the_network_the_body_speaks_version_one(sepolia: Window) -> None:
    answer = await sepolia.client.post(CHAT, content=BODY)
    assert decode_payment_required(answer.headers["PAYMENT-REQUIRED"]).x402_version == 2
    document = answer.json()
    del document["error"]  # an object for OpenAI clients where version 1 has a text
    required = decode_json(json.dumps(document).encode(), PaymentRequiredV1, "body")
    assert required.x402_version == 1
    assert required.accepts[0].network == "base-sepolia"
    assert required.accepts[0].max_amount_required == "1000"


async def test_anthropic_routes_use_their_own_envelope(local: Window) -> None:
    document = (await local.client.post("/v1/messages", content=BODY)).json()
    assert document["type"] == "error"
    assert document["error"]["type"] == "billing_error"
    assert document["x402Version"] == 2


@pytest.mark.parametrize(
    ("path", "body", "content_type", "price_atomic"),
    [
        (CHAT, b'{"model":"big-model"}', "application/json", 10_000),
        (CHAT, b'{"model":"any other"}', "application/json", 1000),
        (CHAT, b"", "application/json", 1000),
        (CHAT, b'{"messages":[{"model":"big-model"}],"model":"small"}', "application/json", 1000),
        (
            "/v1/audio/transcriptions",
            FILE + b"--x\r\n" + FIELD + b"ears\r\n--x--\r\n",
            'multipart/form-data; boundary="x"',
            2000,
        ),
    ],
)
async def test_the_model_decides_the_price(
    local: Window, path: str, body: bytes, content_type: str, price_atomic: int
) -> None:
    answer = await local.client.post(path, content=body, headers={"content-type": content_type})
    required = decode_payment_required(answer.headers["PAYMENT-REQUIRED"])
    assert required.accepts[0].amount == str(price_atomic)


async def test_an_unknown_model_is_404_before_any_price(local: Window) -> None:
    answer = await local.client.post("/v1/embeddings", content=b'{"model":"huge"}')
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    assert "payment-required" not in answer.headers


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"any","model":"big-model"}',
        b'{"model":"any","Model":"big-model"}',
        b'{"model":"any","\\u006dodel":"big-model"}',
        b'{"model":["big-model"]}',
        b'{"model":""}',
        b"[]",
        b"{",
        b'{"model":"big-model"}{"model":"any"}',
        b"\xff\xfe{\x00}\x00",
        b"[" * 100_000,
    ],
)
async def test_a_body_that_two_parsers_could_read_differently_is_400(local: Window, body: bytes) -> None:
    answer = await local.client.post(CHAT, content=body)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "malformed")


@pytest.mark.parametrize(
    "body",
    [
        b"--x\r\n" + FIELD + b"ears\r\n--x\r\n" + FIELD + b"other\r\n--x--\r\n",
        b"--x\r\n" + FIELD + b"ears\r\n",
        b"preamble\r\n--x\r\n" + FIELD + b"ears\r\n--x--\r\n",
        b"--x\r\nContent-Disposition: form-data; name=model; name=other\r\n\r\nears\r\n--x--\r\n",
        b"--x\r\nX: y\r\n\r\nears\r\n--x--\r\n",
        b"--x\r\n" + FIELD + b"\xff\r\n--x--\r\n",
    ],
)
async def test_a_form_that_two_parsers_could_read_differently_is_400(local: Window, body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await local.client.post("/v1/audio/transcriptions", content=body, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "malformed")


async def test_a_compressed_body_is_400_where_its_model_decides_the_price(local: Window) -> None:
    answer = await local.client.post(CHAT, content=BODY, headers={"content-encoding": "gzip"})
    assert answer.status_code == 400


async def test_a_body_above_the_cap_is_413_without_being_read(local: Window) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(REQUEST_BODY_BYTES_MAX // 2**20 + 2):
            yield bytes(2**20)

    for content in (bytes(REQUEST_BODY_BYTES_MAX + 1), endless()):
        answer = await local.client.post(CHAT, content=content)
        assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")


async def test_when_large_bodies_fill_the_memory_a_request_is_asked_to_come_again(local: Window) -> None:
    local.middleware.bodies.bytes_max = 1000
    answer = await local.client.post(CHAT, content=bytes(1001))
    assert (answer.status_code, error_of(answer)["code"]) == (503, "busy")
    assert "retry-after" in answer.headers
    assert local.middleware.bodies.held_bytes == 0
    assert (await local.client.post(CHAT, content=BODY)).status_code == 402


async def test_head_is_priced_like_get_and_runs_nothing(local: Window) -> None:
    answer = await local.client.head("/paid")
    assert answer.status_code == 402
    assert answer.content == b""
    assert local.app.runs == 0


@pytest.mark.parametrize(
    "path",
    [
        "/v1//chat/completions",
        "/v1/chat/completions/",
        "/v1/chat%2Fcompletions",
        "/v1/chat/%63ompletions",
        "/V1/chat/completions",
        "/v1/chat/completions;x",
        "/v1/chat/completions%00",
        "/v1/./chat/completions",
        "/v1/x/../chat/completions",
        "/api/pull",
        "/",
        "/metrics",
    ],
)
async def test_no_other_spelling_of_a_path_reaches_the_application(local: Window, path: str) -> None:
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": BODY}

    async def send(message: Any) -> None:
        messages.append(message)

    decoded = httpx.URL("http://x" + path).path if "%" in path else path
    scope = {"type": "http", "method": "POST", "path": decoded, "raw_path": path.encode(), "headers": []}
    await local.middleware(scope, receive, send)
    assert messages[0]["status"] in (404, 405)
    assert local.app.runs == 0


async def test_another_method_is_405_and_names_the_right_one(local: Window) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        answer = await local.client.request(method, CHAT)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert local.app.runs == 0


async def test_free_routes_pass_untouched(local: Window) -> None:
    answer = await local.client.get("/v1/models")
    assert answer.json() == {"ok": True}
    assert "cache-control" not in answer.headers


async def test_a_websocket_is_closed_before_it_is_accepted(local: Window) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await local.middleware({"type": "websocket", "path": CHAT, "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert local.app.runs == 0


async def test_when_the_chain_is_out_of_reach_a_payer_is_told_503_and_keeps_its_payment(local: Window) -> None:
    answer = await local.client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": sign_payment(KEY, local.offer)})
    assert (answer.status_code, error_of(answer)["code"]) == (503, "chain_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert local.middleware.seller.ledger.sums().payments == {}
    assert "127.0.0.1:9" not in answer.text


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"valid_before_s": 10}, 402, "payment_expired"),
        ({"valid_before_s": int(time.time()) + 20}, 402, "payment_expired"),
        ({"valid_after_s": int(time.time()) + 1000}, 402, "payment_not_yet_valid"),
        ({"value_atomic": 999}, 402, "amount_mismatch"),
        ({"value_atomic": 1001}, 402, "amount_mismatch"),
        ({"payee": bytes(20)}, 402, "recipient_mismatch"),
    ],
)
async def test_wrong_terms_are_402_with_their_reason_and_fresh_offers(
    local: Window, changed: dict[str, Any], status: int, code: str
) -> None:
    header = sign_payment(KEY, local.offer, **changed)
    answer = await local.client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header})
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert decode_payment_required(answer.headers["PAYMENT-REQUIRED"]).error is not None
    assert answer.json()["accepts"]


async def test_a_payment_for_a_cheaper_thing_does_not_buy_a_dearer_one(local: Window) -> None:
    header = sign_payment(KEY, local.offer)
    answer = await local.client.post(CHAT, content=b'{"model":"big-model"}', headers={"PAYMENT-SIGNATURE": header})
    assert (answer.status_code, error_of(answer)["code"]) == (402, "no_matching_offer")
    assert decode_payment_required(answer.headers["PAYMENT-REQUIRED"]).accepts[0].amount == "10000"


async def test_a_signature_by_another_key_is_402(local: Window) -> None:
    authorization, signature = authorize(KEY, local.offer)
    document = payment_document(authorization, signature, local.offer)
    document["payload"]["authorization"]["from"] = PAY_TO
    answer = await local.client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": encode(document)})
    assert (answer.status_code, error_of(answer)["code"]) == (402, "invalid_signature")


async def test_two_payments_in_one_request_are_400(sepolia: Window) -> None:
    one, two = sign_payment(KEY, sepolia.offer), sign_payment(KEY, sepolia.offer)
    doubled = [("PAYMENT-SIGNATURE", one), ("PAYMENT-SIGNATURE", one)]
    differing = [("PAYMENT-SIGNATURE", two), ("X-PAYMENT", sign_payment_v1(KEY, sepolia.offer))]
    for headers in (doubled, differing):
        answer = await sepolia.client.post(CHAT, content=BODY, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "malformed")


MUTATIONS = st.one_of(
    st.binary(max_size=300).map(lambda data: data.hex()),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=400),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
        max_leaves=12,
    ).map(encode),  # type: ignore[arg-type]
)


def paths(document: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [prefix] if prefix else []
    if isinstance(document, dict):
        for name, value in document.items():
            found += paths(value, (*prefix, name))
    return found


@st.composite
def mutated_payments(draw: st.DrawFn) -> str:
    """A well-formed payment with one member replaced, removed, or respelled."""
    document: Any = payment_document(*SIGNED[0])
    place = draw(st.sampled_from(paths(document)))
    parent = document
    for name in place[:-1]:
        parent = parent[name]
    value = parent[place[-1]]
    kinds: list[Any] = [
        None,
        0,
        -1,
        1.5,
        True,
        "",
        "0x",
        [],
        {},
        "9" * 5000,
        "\uff11\uff10",
        2**300,
        [value],
        {"a": value},
    ]
    if isinstance(value, str):
        kinds += [value.upper(), " " + value, "+" + value, value + "0", value[:-1], value.replace("0x", "0X")]
    if draw(st.booleans()):
        parent[place[-1]] = draw(st.sampled_from(kinds))
    else:
        del parent[place[-1]]
    return encode(document)


SIGNED: list[Any] = []


@hypothesis_settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
async def test_no_malformed_payment_is_answered_with_5xx_or_served(local: Window, data: st.DataObject) -> None:
    if not SIGNED:
        SIGNED.append((*authorize(KEY, local.offer), local.offer))
    header = data.draw(MUTATIONS | mutated_payments())
    name = data.draw(st.sampled_from(["PAYMENT-SIGNATURE", "X-PAYMENT"]))
    answer = await local.client.post(CHAT, content=BODY, headers=[(name.encode(), header.encode())])
    # 503 only says that the payment is well-formed: this shop's chain is out of reach.
    assert answer.status_code in (400, 402, 503)
    assert local.app.runs == 0
    if answer.status_code == 503:
        assert error_of(answer)["code"] == "chain_unavailable"
