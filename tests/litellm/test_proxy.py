"""Goal: through a real LiteLLM proxy a call is paid once, whatever LiteLLM does; method: the books before and after.

`moving` compares the buyer's counts, the calls that reached the model, and the seller's balance on chain.
"""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import openai
import pytest

from contracts.headers import decode_settlement_response
from tests.litellm.stack import COUNT, FREE_MODEL, OWN_MODEL, OWN_NAME, PAID, PRICE_ATOMIC, RARE_MODEL, Stack

# The first test waits for every part to start.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

# LiteLLM puts the renamed headers of these routes back; see the callback.
ROUTES_WITH_RECEIPT = ("chat", "streamed chat", "embeddings", "responses")
_numbers = itertools.count(1)


def said() -> str:
    """Return a prompt that no other call has sent: an equal one would be a repetition to the gateway."""
    return f"call number {next(_numbers)}"


def chat(stack: Stack, text: str, *, stream: bool = False, model: str = PAID, **more: Any) -> httpx.Response:
    headers = more.pop("headers", None)
    messages = [{"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "stream": stream, **more}
    return stack.post("/v1/chat/completions", body, headers)


def send(stack: Stack, route: str, text: str, **more: Any) -> httpx.Response:
    """Make one call on `route`; a failing one stays failed, because the fallback is off for it."""
    more = {"disable_fallbacks": True, **more}
    match route:
        case "chat":
            return chat(stack, text, **more)
        case "streamed chat":
            return chat(stack, text, stream=True, **more)
        case "completions":
            return stack.post("/v1/completions", {"model": PAID, "prompt": text, **more})
        case "embeddings":
            return stack.post("/v1/embeddings", {"model": PAID, "input": text, **more})
        case "responses":
            return stack.post("/v1/responses", {"model": PAID, "input": text, **more})
    messages = [{"role": "user", "content": text}]
    return stack.post("/v1/messages", {"model": PAID, "max_tokens": 50, "messages": messages, **more})


ALL_ROUTES = ("chat", "streamed chat", "embeddings", "completions", "responses", "messages")


def test_an_openai_client_buys_a_chat_through_the_proxy_with_one_authorization(running_stack: Stack) -> None:
    text = said()
    with running_stack.openai() as client, running_stack.moving(ready=-1, spent=1, model_calls=1):
        raw = client.chat.completions.with_raw_response.create(model=PAID, messages=[{"role": "user", "content": text}])
        answer = raw.parse()
    assert answer.model == PAID
    assert answer.choices[0].message.content
    receipt = decode_settlement_response(raw.headers["payment-response"])
    assert receipt.success
    assert receipt.network == running_stack.chain.network
    assert raw.headers["x-farebox-purchase"] == "demo"
    assert raw.headers["x-farebox-price-atomic"] == str(PRICE_ATOMIC)


def test_an_openai_client_buys_a_streamed_chat_with_one_authorization(running_stack: Stack) -> None:
    text = said()
    with running_stack.openai() as client, running_stack.moving(ready=-1, spent=1, model_calls=1):
        raw = client.chat.completions.with_raw_response.create(
            model=PAID, messages=[{"role": "user", "content": text}], stream=True
        )
        chunks = list(raw.parse())
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert decode_settlement_response(raw.headers["payment-response"]).success


def test_an_openai_client_buys_embeddings_with_one_authorization(running_stack: Stack) -> None:
    with running_stack.openai() as client, running_stack.moving(ready=-1, spent=1, model_calls=1):
        raw = client.embeddings.with_raw_response.create(model=PAID, input=[said()], encoding_format="float")
        answer = raw.parse()
    assert len(answer.data[0].embedding) > 1
    assert decode_settlement_response(raw.headers["payment-response"]).success


@pytest.mark.parametrize("route", ["completions", "responses", "messages"])
def test_the_other_routes_cost_one_authorization_too(running_stack: Stack, route: str) -> None:
    with running_stack.moving(ready=-1, spent=1, model_calls=1):
        answer = send(running_stack, route, said())
    assert answer.status_code == 200, answer.text
    assert ("payment-response" in answer.headers) is (route in ROUTES_WITH_RECEIPT)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("route", ALL_ROUTES)
def test_a_call_that_the_model_refuses_uses_one_authorization_and_pays_nothing(
    running_stack: Stack, route: str, status: int
) -> None:
    with running_stack.moving(ready=-1, unknown=1, model_calls=1), running_stack.model.refusing(status):
        answer = send(running_stack, route, said())
    assert answer.status_code == status, answer.text
    if route in ROUTES_WITH_RECEIPT:
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-farebox-charged"]
    assert "payment-response" not in answer.headers


def test_a_client_that_repeats_a_refused_call_spends_the_authorization_it_already_has(running_stack: Stack) -> None:
    text = said()
    with running_stack.moving(ready=-1, unknown=1, model_calls=1), running_stack.model.refusing(503):
        assert send(running_stack, "chat", text).status_code == 503
    with running_stack.moving(spent=1, unknown=-1, model_calls=1):
        assert send(running_stack, "chat", text).status_code == 200


def test_the_retries_of_an_openai_client_are_one_purchase(running_stack: Stack) -> None:
    text = said()
    with (
        running_stack.openai(max_retries=2) as client,
        running_stack.moving(ready=-1, unknown=1, model_calls=3),
        running_stack.model.refusing(429),
        pytest.raises(openai.RateLimitError),
    ):
        client.chat.completions.create(
            model=PAID, messages=[{"role": "user", "content": text}], extra_body={"disable_fallbacks": True}
        )


def test_the_users_own_models_keep_their_retries(running_stack: Stack) -> None:
    before = running_stack.free_model.calls
    with running_stack.moving(), running_stack.free_model.refusing(503):
        answer = chat(running_stack, said(), model=OWN_MODEL, disable_fallbacks=True)
    assert answer.status_code == 503
    assert running_stack.free_model.calls - before == 3


def test_an_empty_pool_falls_back_to_the_free_model(running_stack: Stack) -> None:
    rare = f"paid/{RARE_MODEL}"
    with running_stack.moving(ready=-1, spent=1, model_calls=1, name="rare"):
        bought = chat(running_stack, said(), model=rare)
    assert bought.headers["x-litellm-attempted-fallbacks"] == "0"

    free_before = running_stack.free_model.calls
    with running_stack.moving(name="rare"), running_stack.moving():
        answers = [chat(running_stack, said(), model=rare), chat(running_stack, said(), model=rare, stream=True)]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-litellm-attempted-fallbacks"] == "1"
        assert not [name for name in answer.headers if name.startswith(("payment-", "x-payment-"))]
    assert running_stack.free_model.calls - free_before == 2

    refused = chat(running_stack, said(), model=rare, disable_fallbacks=True)
    assert refused.status_code == 402
    assert "farebox refill rare" in refused.text or "farebox buy rare" in refused.text


@pytest.mark.parametrize("model", [PAID, OWN_NAME])
def test_one_failed_call_does_not_shut_a_model_out(running_stack: Stack, model: str) -> None:
    with running_stack.moving(ready=-2, spent=1, unknown=1, model_calls=2):
        with running_stack.model.refusing(404):
            failed = chat(running_stack, said(), model=model, disable_fallbacks=True)
        served = chat(running_stack, said(), model=model, disable_fallbacks=True)
    assert failed.status_code == 404
    assert served.status_code == 200, served.text


def test_a_model_nobody_sells_is_not_found_and_costs_nothing(running_stack: Stack) -> None:
    with running_stack.moving():
        answer = chat(running_stack, said(), model="paid/no-such-model", disable_fallbacks=True)
    assert answer.status_code == 404


def test_asking_litellm_for_its_health_buys_nothing(running_stack: Stack) -> None:
    with running_stack.moving():
        answer = running_stack.get("/health")
    assert answer.status_code == 200
    assert answer.json()["unhealthy_count"] == 0


def test_the_model_list_is_what_the_gateway_sells(running_stack: Stack) -> None:
    with running_stack.openai() as client, running_stack.moving():
        listed = sorted(model.id for model in client.models.list())
    assert listed == sorted([PAID, f"paid/{RARE_MODEL}", FREE_MODEL, OWN_MODEL, OWN_NAME])


def test_a_clients_own_price_cap_reaches_the_gateway(running_stack: Stack) -> None:
    with running_stack.moving():
        answer = chat(running_stack, said(), disable_fallbacks=True, headers={"x-farebox-max-price": "0.0001"})
    assert answer.status_code == 402
    assert "0.0001" in answer.text


def test_a_clients_own_request_id_makes_a_repetition_free(running_stack: Stack) -> None:
    text, identity = said(), {"x-farebox-request-id": "order-4711"}
    with running_stack.moving(ready=-1, spent=1, model_calls=1):
        first = chat(running_stack, text, headers=identity)
        second = chat(running_stack, text, headers=identity)
    assert first.status_code == second.status_code == 200
    assert second.headers["x-farebox-replayed"] == "true"
    assert first.json()["choices"] == second.json()["choices"]


def test_the_seller_owns_exactly_what_the_buyer_spent(running_stack: Stack) -> None:
    demo, rare = running_stack.books(), running_stack.books("rare")
    assert demo.ready + demo.spent + demo.unknown == COUNT
    assert demo.seller_balance_atomic == (demo.spent + rare.spent) * PRICE_ATOMIC
